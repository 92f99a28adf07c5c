"""List processes: with psutil, or on PyPy, where psutil cannot be built, from Linux's /proc."""

from __future__ import annotations

from pathlib import Path

try:
    import psutil
except ImportError:

    def _stat(pid: int) -> tuple[str, int] | None:
        """Return the state of a process, and its parent; None: it is gone."""
        try:
            state, parent = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()[:2]
        except OSError:  # also of one that goes while we read
            return None
        return state, int(parent)

    def exists(pid: int) -> bool:
        """Return whether a process is there, if only for its status to be read."""
        return _stat(pid) is not None

    def is_dead(pid: int) -> bool:
        """Return whether a process has ended, whoever has read its status by now."""
        stat = _stat(pid)
        return stat is None or stat[0] == "Z"

    def _children_of_any(pid: int) -> set[int]:
        """Return the child processes of one. This looks at all processes."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return {each for each in pids if (stat := _stat(each)) and stat[1] == pid}

else:
    exists = psutil.pid_exists

    def is_dead(pid: int) -> bool:
        """Return whether a process has ended, whoever has read its status by now."""
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def _children_of_any(pid: int) -> set[int]:
        """Return the child processes of one. This looks at all processes."""
        try:
            return {child.pid for child in psutil.Process(pid).children()}
        except psutil.NoSuchProcess:
            return set()


def _children(pid: int) -> set[int]:
    """Return the child processes of one."""
    try:  # a list that Linux may keep for each thread
        lists = [path.read_text() for path in Path(f"/proc/{pid}/task").glob("*/children")]
    except OSError:  # a thread has ended meanwhile
        lists = []
    return {int(child) for each in lists for child in each.split()} if lists else _children_of_any(pid)


def children_of(pid: int, *, recursive: bool = False) -> set[int]:
    """Return the child processes of one, and all of theirs if *recursive*."""
    children = _children(pid)
    return children.union(*(children_of(child, recursive=True) for child in children)) if recursive else children
