"""Once in each worker: its signals, its streams, its line to the parent.

anyio talks to a worker through the file descriptors 0 and 1, and reads nothing of 2. Here these become harmless,
whatever a function, a C library or a child process does to them: nothing to read, and what is written goes to the
parent, as do the log records. The talk moves to other descriptors, which no child process inherits.
"""

from __future__ import annotations

import atexit
import io
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, NoReturn, cast

ORPHAN_CHECK_SECONDS = 1.0  # how often a worker looks whether its parent is still there
LAST_SECONDS = 0.5  # how long a worker whose pipe was closed stays, which is longer than to kill it takes
Address = tuple[str, bytes]  # where the parent listens, and what it wants to hear first
WELCOME = b"!"  # what the parent says to a worker that it has taken in
WELCOME_SECONDS = 5.0  # how long to wait for that; arbitrary
SERIAL_BYTES = 8  # the size of the memory where the parent sees which call runs
ANSWERED = 1 << 63  # is added there to the number of a call that has ended, and whose answer is on its way


class _Line:
    """What connects this worker with its parent."""

    def __init__(self, address: Address) -> None:
        """Connect, and hand over the end of the pipe where the output comes out, and the memory of the serial."""
        import mmap
        import socket

        name, token = address
        fds = [file := _open_memory()]
        try:
            os.ftruncate(file, SERIAL_BYTES)
            self.memory = mmap.mmap(file, SERIAL_BYTES)
            self.socket = socket.socket(socket.AF_UNIX)
            fds += os.pipe()
            try:
                self.socket.connect(name)
                socket.send_fds(self.socket, [token + os.getpid().to_bytes(4, "big")], [fds[1], file])
                self.socket.settimeout(WELCOME_SECONDS)
                if self.socket.recv(1) != WELCOME:
                    raise ConnectionError("the parent has no descriptors left")
                self.socket.settimeout(None)
                self.output = fds.pop()
            except OSError:
                self.socket.close()
                raise
        finally:
            for fd in fds:
                os.close(fd)
        # Guards all below. Reentrant, for a signal handler may log amid the sending of another record.
        self._lock = threading.RLock()
        self._serial = 0  # of the call that runs, or ran last
        self._records = 0  # how many log records it has sent
        self._waiting: list[bytes] = []  # records to be sent
        self._sending = False

    def begin(self, serial: int) -> None:
        """Note which call runs here from now on."""
        with self._lock:
            self._serial, self._records = serial, 0
            self._note(serial)

    def end(self) -> int:
        """Note that the call has ended. Return how many log records have been sent with its number."""
        with self._lock:
            self._note(self._serial | ANSWERED)
            return self._records

    def _note(self, serial: int) -> None:
        """Tell the parent, which may look after the death of this process."""
        self.memory[:] = serial.to_bytes(SERIAL_BYTES, "big")

    def send(self, record: bytes) -> None:
        """Send a log record. What a signal handler raises amid that leaves the line of no use: it is given up."""
        with self._lock:
            self._waiting.append(record)
            if self._sending:
                return  # it is sent by whom we have interrupted
            self._sending = True
            try:
                while self._waiting:
                    frame = self._serial.to_bytes(SERIAL_BYTES, "big") + self._waiting.pop(0)
                    self.socket.sendall(len(frame).to_bytes(4, "big") + frame)
                    self._records += 1
            except ConnectionError:  # the parent is gone
                self._waiting.clear()
            except BaseException:
                _hang_up_line(self)
                raise
            finally:
                self._sending = False


def _open_memory() -> int:
    if hasattr(os, "memfd_create"):
        return os.memfd_create("unfazed-serial")
    import tempfile

    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


_settled_in = False
_line: _Line | None = None
_talk: tuple[int, ...] = ()  # the file descriptors through which anyio talks
_streams: dict[str, Any] = dict.fromkeys(("stdin", "stdout", "stderr"))
_places: list[tuple[int, int] | None] = []  # where the file descriptors 0, 1 and 2 lead, if no function has changed it


def settle_in(address: Address | None) -> None:
    """See to it, once, that this worker is not interrupted, talks undisturbed, and ends with its parent."""
    global _settled_in
    if not _settled_in:
        _settled_in = True
        _settle_in()
    if _line is None and address is not None:
        _connect(address)


def is_connected() -> bool:
    """Return whether the parent hears this worker. Not where there were no file descriptors left."""
    return _line is not None


def _settle_in() -> None:
    if threading.current_thread() is threading.main_thread():
        # A terminal sends Ctrl-C to the workers as well. Not SIG_IGN, which the worker's own children would inherit.
        signal.signal(signal.SIGINT, _ignore)
    _move_streams()
    keep_places()
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=_leave_talk)
    # At the end of its loop, anyio closes its pipe and kills it: see `hang_up`.
    atexit.register(time.sleep, LAST_SECONDS)
    threading.Thread(target=_end_with, args=(os.getppid(),), name="unfazed-orphan-check", daemon=True).start()


def _connect(address: Address) -> None:
    """Have the parent hear what is written and logged here."""
    global _line
    try:
        _line = _Line(address)
    except OSError:  # too many files, here or there, or the parent is gone
        return
    for number in (1, 2):
        os.dup2(_line.output, number)
    keep_places()


def _hang_up_line(line: _Line) -> None:
    """Have the parent hear nothing more until the next call, which connects anew."""
    global _line
    line.socket.close()
    os.close(line.output)
    _line = None


def _place(fd: int) -> tuple[int, int] | None:
    try:
        found = os.fstat(fd)
    except OSError:
        return None
    return found.st_dev, found.st_ino


def keep_places() -> None:
    """Have the file descriptors 0, 1 and 2 lead where they do now, and the streams be these, from call to call."""
    _places[:] = map(_place, (0, 1, 2))
    _streams.update((name, getattr(sys, name)) for name in _streams)


def _restore_places() -> None:
    """Undo what the last function has done to the file descriptors 0, 1 and 2, and to the streams of the same."""
    if not _places:  # this is no worker
        return
    if [*map(_place, (0, 1, 2))] != _places:
        nothing = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(nothing if number == 0 or _line is None else _line.output, number)
        if nothing > 2:
            os.close(nothing)
        else:  # to itself, `dup2` leaves it as it was opened: not to be inherited
            os.set_inheritable(nothing, True)
        _places[:] = map(_place, (0, 1, 2))
    for number, (name, stream) in enumerate(_streams.items()):
        if getattr(stream, "closed", False):
            stream = open(number, "w" if number else "r", 1, errors="backslashreplace", closefd=False)  # noqa: SIM115
            _streams[name] = stream
        setattr(sys, name, stream)


def begin(serial: int, levels: dict[str, int] | None) -> None:
    """Note which call runs here from now on."""
    _restore_places()
    if _line is None:
        return
    _line.begin(serial)
    if "logging" in sys.modules:
        from . import logs

        logs.forward(levels, _send_record)
    elif levels is not None:
        _WhenLoggingIsImported.levels = levels
        if _WhenLoggingIsImported not in sys.meta_path:
            sys.meta_path.insert(0, _WhenLoggingIsImported)


def end() -> int:
    """Note that the call has ended. Return how many log records it has sent."""
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except Exception:  # none, or closed by the function, or anything that it has put there
        with suppress(Exception):
            sys.stderr.flush()
    return 0 if _line is None else _line.end()


def hang_up() -> NoReturn:
    """End this process without an answer.

    Not at once: anyio kills a worker whose pipe is closed. Where it is gone by then, asyncio complains of somebody
    else having read its exit status.
    """
    os.close(cast("io.TextIOWrapper", sys.__stdout__).fileno())
    time.sleep(LAST_SECONDS)
    os._exit(0)


def _leave_talk() -> None:
    """Leave what connects it with the parent to the worker, in a child that it has forked.

    Two on one line would get mixed, a child that returns from the function would answer as well, and one that lives
    on would hide that the worker has died.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in _talk:
        os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)
    if _line is not None:
        _hang_up_line(_line)
    if "unfazed._worker.logs" in sys.modules:
        sys.modules["unfazed._worker.logs"].forget()


def _send_record(record: bytes) -> None:
    if _line is not None:  # it has not been given up
        _line.send(record)


def _move_streams() -> None:
    """Have anyio talk through other descriptors, and put at 0, 1 and 2 what anybody may use.

    It reads from and writes to the streams that the interpreter has opened for these, and has put others in their
    place, which lead nowhere.
    """
    global _talk
    _talk = os.dup(0), os.dup(1)
    _reopen(sys.__stdin__, _talk[0], "rb")
    _reopen(sys.__stdout__, _talk[1], "wb")
    _close_duplicates()
    nothing = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(nothing, number)
    os.close(nothing)
    _reopen(sys.stdin, 0, "rb")
    for number, stream in ((1, sys.stdout), (2, sys.stderr)):
        if _reopen(stream, number, "wb"):
            cast("io.TextIOWrapper", stream).reconfigure(line_buffering=True)


def _close_duplicates() -> None:
    """Close what else leads to anyio: uvloop leaves it open, and children that are forked would keep it."""
    with suppress(OSError):  # there is no such directory
        # Not a device, such as /dev/null, where the streams that anyio has put in place lead as well.
        ends = [end for end in map(os.fstat, (0, 1, 2)) if not end.st_rdev]
        for fd in map(int, os.listdir("/proc/self/fd")):  # noqa: PTH208  numbers, and no module more
            with suppress(OSError):  # that of the directory itself
                if fd > 2 and fd not in _talk and any(os.path.samestat(os.fstat(fd), each) for each in ends):
                    os.close(fd)


def _reopen(stream: Any, fd: int, mode: str) -> bool:
    """Have a stream, whoever holds it already, read from or write to *fd*, if it is one of a file."""
    buffer = getattr(stream, "buffer", None)
    raw = getattr(buffer, "raw", buffer)  # the latter without a buffer, under -u
    if not isinstance(raw, io.FileIO):
        return False
    raw.__init__(fd, mode, closefd=False)  # type: ignore[misc]
    return True


class _WhenLoggingIsImported:
    """A finder of modules that has the records forwarded as soon as there can be any."""

    levels: dict[str, int] | None = None

    @classmethod
    def find_spec(cls, name: str, path: Any, target: Any = None) -> Any:
        if name != "logging":
            return None
        from importlib.machinery import PathFinder

        sys.meta_path.remove(cls)
        spec = PathFinder.find_spec(name, path)
        loader: Any = spec and spec.loader
        exec_module = loader.exec_module

        def exec_and_forward(module: Any) -> None:
            exec_module(module)
            from . import logs

            logs.forward(cls.levels, _send_record)

        loader.exec_module = exec_and_forward
        return spec


def _ignore(*args: object) -> None:
    """Take a signal and do nothing."""


def _end_with(parent: int) -> None:
    """End this process, whatever it is doing, soon after its parent has ended: nobody is left to answer to."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_SECONDS)
    os._exit(1)
