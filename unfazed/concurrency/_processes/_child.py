"""How a worker process starts, is killed and ends. It starts as `multiprocessing`'s spawn starts a process.

Guarantees:

- A forked child keeps no pipe of ours open, whenever the fork happens. A fork holds `fork_lock`. So do we, while we
  make pipes and add them to `children`, and while we close and remove them. A fork waits at most as long as one process
  takes to start.
- The exit status of a process is read once. If somebody else has read it, it is unknown, and never a wrong one.
"""

from __future__ import annotations

import marshal
import os
import pickle
import select
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, final

from ..._worker import channel
from .._core import _threadstart
from .._core._lifetime import in_forked_child

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

GRACE_SECONDS: Final = 1.0  # how long a process may live on after its pipes are closed; arbitrary
MOST_NOISE: Final = 1 << 20  # bytes that may be printed before `HELLO`; arbitrary
PIPE_BYTES: Final = 1 << 20  # the most that Linux allows a pipe of any user
UNKNOWN: Final = "for an unknown reason"
LATE_SECONDS: Final = 10.0  # how long importing the main module may take before we warn; arbitrary
GUARD: Final = (
    "a script that uses worker processes needs its own calls behind `if __name__ == '__main__':`, for each worker "
    "imports it"
)
FROZEN_GUARD: Final = (
    "a frozen program that uses worker processes needs `multiprocessing.freeze_support()` behind its "
    "`if __name__ == '__main__':`, as the first thing there"
)

# Its standard input holds one line with a number of bytes, and then as many bytes. The parent sends nothing else until
# the worker has answered: buffered reading would swallow it.
PROGRAM: Final = """\
import sys
from marshal import loads
with open(0, "rb", closefd=False) as file:
    preparation = loads(file.read(int(file.readline())))
sys.path[:] = preparation["sys_path"]
from unfazed._worker.main import main
main(preparation)
"""

fork_lock = threading.RLock()  # see above; reentrant: a finalizer may fork; replaced in a forked child


def holds_lock() -> bool:
    """Return whether this thread is starting or closing a process. Only a finalizer can ask that then."""
    lock: Any = fork_lock  # the stubs lack this method, which `threading.Condition` uses too
    owned: bool = lock._is_owned()
    return owned


class NotStartedError(Exception):
    """Raised if a worker process could not start; its text says why. *again*: whether another one may be able to."""

    def __init__(self, reason: str, again: bool = False) -> None:
        super().__init__(reason)
        self.again = again


def start_worker_thread(target: Callable[..., object], name: str, *args: object) -> None:
    """Start a thread that a worker needs. Raises `NotStartedError` if there are too many or the interpreter exits."""
    try:
        _threadstart.start_thread(target, name, *args)
    except RuntimeError as exc:
        raise NotStartedError(f"could not start ({exc})") from None


def refuse_in_preparation() -> None:
    """Refuse to start a worker in a worker that is still importing the main module: without a guard, each would."""
    worker: Any = sys.modules.get("unfazed._worker.main")
    if worker is not None and worker.preparing:
        worker.refused = True
        raise NotStartedError(f"could not start in a worker that imports the main module: {GUARD}")
    if getattr(sys, "frozen", False) and sys.argv[1:2] == ["--multiprocessing-fork"]:
        raise NotStartedError(f"could not start in what is to be a worker: {FROZEN_GUARD}")


def _command() -> list[str | bytes]:
    """Return the command line of a worker: the executable and interpreter options of spawn, with our program."""
    from multiprocessing import spawn

    if not spawn.get_executable():
        raise NotStartedError("could not start, as Python's executable is not known: multiprocessing.set_executable()")
    command: list[str | bytes] = [*spawn.get_command_line(pipe_handle=0)]
    if getattr(sys, "frozen", False):  # `multiprocessing.freeze_support()` takes over in there
        return command
    return [*command[:-3], "-c", PROGRAM, "unfazed-worker"]  # instead of spawn's own program


def _preparation(attention: bytes) -> bytes:
    """Return what a worker needs to know before it can take calls.

    Like `multiprocessing.spawn.get_preparation_data`. But that function fixes the start method of `multiprocessing` for
    the whole program, fails if the program comes from stdin, and keeps relative entries of `sys.path`. This one does
    not.
    """
    import multiprocessing
    from multiprocessing import process, util

    original: str | None = getattr(process, "ORIGINAL_DIR", None)  # the stubs lack this and `_log_to_stderr`
    found: dict[str, Any] = {
        "attention": attention,
        "authkey": bytes(process.current_process().authkey),
        "log_to_stderr": bool(getattr(util, "_log_to_stderr", False)),
        "orig_dir": original,
        "sys_argv": [str(each) for each in sys.argv],
        "sys_path": [os.path.abspath(each) for each in map(str, sys.path)],  # noqa: PTH100
    }
    method: Any = multiprocessing.get_start_method(allow_none=True)  # None, whatever the stub says, if none is fixed
    if method is not None:
        found["start_method"] = method
    with suppress(OSError):  # the directory has been removed
        found["dir"] = os.getcwd()  # noqa: PTH109  pathlib is slow to import
    main: ModuleType | None = sys.modules.get("__main__")
    spec = getattr(main, "__spec__", None)
    path = getattr(main, "__file__", None)
    if spec is not None:
        found["init_main_from_name"] = spec.name
    elif isinstance(path, str):
        path = os.path.normpath(os.path.join(original or "", path))  # noqa: PTH118
        if os.path.isfile(path):  # noqa: PTH113  not "<stdin>"
            found["init_main_from_path"] = path
    if getattr(sys, "frozen", False):  # `freeze_support()` reads two pickles: preparation and process
        from ..._worker.main import Frozen

        return pickle.dumps({}) + pickle.dumps(Frozen(found))
    packed = marshal.dumps(found, 2)  # a format that any version reads
    return b"%d\n%b" % (len(packed), packed)


@final
class Child:
    """A worker process as its parent sees it: three pipes and an exit status."""

    def __init__(self) -> None:
        import subprocess  # slow to import, as `multiprocessing` is

        command = _command()
        self._name = os.fsdecode(command[0])
        # Guards reading the status and killing: once the status is read, the pid may belong to another process. An
        # RLock knows its owner, so `kill` cannot release what it did not acquire because a signal handler raised.
        self._lock = threading.RLock()
        self._status: str | None = None  # how it has ended, in words
        self._hung_up = False
        self.attention = b"\0%b\n" % os.urandom(16).hex().encode()  # a worker prints it to announce log records
        self._process: subprocess.Popen[bytes]
        with fork_lock:
            try:
                self._process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
                )
            except (OSError, ValueError) as exc:
                raise NotStartedError(f"could not start with {self._name!r} ({type(exc).__qualname__}: {exc})") from exc
            children.add(self)
        process: Any = self._process
        self.calls: int = process.stdin.fileno()
        self.frames: int = process.stdout.fileno()
        self.output: int = process.stderr.fileno()
        _enlarge(self.frames)
        self.room = _enlarge(self.calls)  # bytes that an empty pipe takes in one write

    @property
    def pid(self) -> int:
        return self._process.pid

    def prepare(self) -> bytes:
        """Send the preparation and wait until the worker is ready. Return what it printed to the wrong pipe before."""
        noise = b""
        reader = channel.Reader(self.frames)
        try:
            channel.write_all(self.calls, [_preparation(self.attention)])
            while channel.HELLO not in noise:
                more = os.read(self.frames, channel.CHUNK_BYTES)
                if not more or len(noise) > MOST_NOISE:
                    raise channel.PipeEndError
                noise += more
            noise, _, reader.data = noise.partition(channel.HELLO)
            if not reader.data:
                _warn_if_late(self.frames)
            kind, _ = reader.next()
            payload = reader.take()
        except (channel.PipeEndError, OSError):
            status = self.end()
            said = f"could not start: {self._name!r} ended {status} before it was ready"
            if getattr(sys, "frozen", False):
                said += f"; {FROZEN_GUARD}"
            elif "py" not in self._name.rpartition(os.sep)[2].lower():
                said += "; if that is not Python, say what is: multiprocessing.set_executable(path)"
            raise NotStartedError(said, again="killed by" in status) from None
        if kind == channel.READY:
            return noise
        reason, refused, server = pickle.loads(payload)
        self.end()
        if refused:
            raise NotStartedError(f"could not start: {GUARD}")
        if server:  # such as `uvicorn.run(app)`
            raise NotStartedError(f"could not start, as it has run the main module, which ended ({reason}): {GUARD}")
        raise NotStartedError(f"could not start, as it could not import the main module ({reason})")

    def kill(self) -> None:
        """Kill it, unless it has ended. From any thread."""
        try:  # not `with`, as `_core/_threadstart.py` explains
            self._lock.acquire()
            if self._status is None:
                # Not `Popen.kill`: it may read the status. Windows has no SIGKILL.
                self._process.terminate() if sys.platform == "win32" else os.kill(self.pid, signal.SIGKILL)
        finally:
            with suppress(RuntimeError):  # a signal handler raised before we had it
                self._lock.release()

    def end(self) -> str:
        """Close the pipe for calls, wait until the process has ended, and return in words how it ended.

        Usually it has ended already, or ends because the pipe is closed. Otherwise it is killed.
        """
        self.close(self.calls)
        deadline = time.monotonic() + GRACE_SECONDS
        pause = 0.0005
        while self._status is None and self._poll() is None:
            if time.monotonic() > deadline and not self._hung_up:
                self._hung_up = True
                self.kill()
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        self.close(self.frames)
        assert self._status is not None, "it has ended"
        return "as it closed what connects it with this process" if self._hung_up else self._status

    def _poll(self) -> str | None:
        with self._lock:
            if sys.platform == "win32":  # pragma: no cover  nobody else can read the status there
                code = self._process.poll()
            else:
                # Not `Popen.poll`: it returns 0 if the status is not there any more.
                try:
                    pid, raw = os.waitpid(self.pid, os.WNOHANG)
                except ChildProcessError:
                    self._process.returncode = 0
                    self._status = UNKNOWN
                    return self._status
                code = os.waitstatus_to_exitcode(raw) if pid else None
            if code is not None:
                self._process.returncode = code
                self._status = _in_words(code)
            return self._status

    def close(self, fd: int) -> None:
        """Close one of its pipes. It may be called twice."""
        with fork_lock:
            for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
                if pipe is not None and not pipe.closed and pipe.fileno() == fd:
                    pipe.close()
            if self._process.stderr is not None and self._process.stderr.closed and self._status is not None:
                children.discard(self)

    def disown(self) -> None:
        """Kill it, and do not wait for its end. Called at exit."""
        self.kill()
        self._process.returncode = 0  # otherwise `Popen` warns that it still runs

    def leave(self) -> None:
        """Close the pipes and forget the process, in a forked child: it belongs to the parent."""
        process: Any = self._process
        for pipe in (process.stdin, process.stdout, process.stderr):
            pipe.close()
        self.calls = self.frames = self.output = -1
        self._lock = threading.RLock()
        self._status = UNKNOWN
        self._process.returncode = 0


_has_warned = False  # about a worker that is late; if two threads set it at once, both warn

children: set[Child] = set()  # with an open pipe or an unread status; guarded by `fork_lock`


def _warn_if_late(frames: int) -> None:
    """Wait until something has come from *frames*, at most `LATE_SECONDS`, and warn if nothing has: once."""
    global _has_warned
    if _has_warned or sys.platform == "win32":  # where nobody can wait for a pipe
        return
    answers = select.poll()
    answers.register(frames, select.POLLIN)
    if answers.poll(LATE_SECONDS * 1000) or _has_warned:
        return
    _has_warned = True
    import logging  # slow

    logging.getLogger("unfazed.concurrency").warning(
        "a worker process has been importing the main module for %g s. If that runs a server or waits for something, "
        "the worker never becomes ready: %s",
        LATE_SECONDS,
        GUARD,
    )


def _enlarge(fd: int) -> int:
    """Make a pipe hold more, which only Linux allows. Return how many bytes it surely takes in one write."""
    try:
        from fcntl import F_SETPIPE_SZ, fcntl  # type: ignore[attr-defined,unused-ignore]

        return fcntl(fd, F_SETPIPE_SZ, PIPE_BYTES)
    except (ImportError, OSError):
        return channel.ATOMIC


def _in_words(code: int) -> str:
    if code >= 0:
        return f"with exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


def _take_fork_lock() -> None:
    fork_lock.acquire()


def _release_fork_lock() -> None:
    with suppress(RuntimeError):  # a signal handler raised before it was acquired
        fork_lock.release()


def _reset_after_fork() -> None:
    global fork_lock
    fork_lock = threading.RLock()
    for child in children:
        child.leave()
    children.clear()


in_forked_child(_reset_after_fork)
if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(before=_take_fork_lock, after_in_parent=_release_fork_lock)
