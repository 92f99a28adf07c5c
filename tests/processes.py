"""List processes: with psutil, or on PyPy, where psutil cannot be built, from Linux's /proc."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

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

    def children_of(pid: int, *, recursive: bool = False) -> set[int]:
        """Return the child processes of one, and all of theirs if *recursive*."""
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        stats = {each: stat for each in pids if (stat := _stat(each))}

        def below(parent: int) -> Iterator[int]:
            for child, (_, its_parent) in stats.items():
                if its_parent == parent:
                    yield child
                    if recursive:
                        yield from below(child)

        return set(below(pid))

else:
    exists = psutil.pid_exists

    def is_dead(pid: int) -> bool:
        """Return whether a process has ended, whoever has read its status by now."""
        try:
            return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True

    def children_of(pid: int, *, recursive: bool = False) -> set[int]:
        """Return the child processes of one, and all of theirs if *recursive*."""
        return {child.pid for child in psutil.Process(pid).children(recursive)}
