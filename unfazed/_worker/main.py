"""A worker process: how it begins, takes one call after the other, and ends.

The parent talks to it through what were the file descriptors 0 and 1, and reads its output from 2. Guarantees:

- before the main module is run, 0 reads nothing, and 1 leads where 2 does: whatever a function, a C library or a child
  process does to them, the talk goes on. No child process inherits the talk;
- after the answer to a call nothing is sent until the next one: log records of threads that a function has left behind
  wait here. A word in the output tells the parent that there are some;
- it ends with its parent: idle, as its pipe ends; busy, as a thread sees that it has another parent now. On Windows,
  where that cannot be seen, a busy worker ends after its call.

Assumption: the main thread is here, and functions run in it. Standard library only.
"""

from __future__ import annotations

import os
import pickle
import signal
import sys
import threading
import time
from contextlib import suppress
from typing import Any, cast

from . import call, channel

ORPHAN_CHECK_SECONDS = 0.4  # how often a busy worker looks whether its parent is there, which it outlives by no second
MOST_WAITING = 1000  # log records of threads left behind; such a thread waits then; arbitrary
LINE_UP_SECONDS = 0.01  # how often it looks whether there is room; arbitrary
BEGUN = [channel.BEGUN_FRAME]

preparing = False  # whether the main module is being run, in which nobody may start a worker
refused = False  # whether somebody has tried to


class _Records:
    """Log records, sent while a call runs, and kept until the next one otherwise. The lock guards all of this."""

    def __init__(self, frames: int, attention: bytes) -> None:
        self._frames = frames
        self._attention = attention  # what to write to have the parent ask for them
        self._output = os.dup(2)  # whatever the function does to that
        # Reentrant, for a signal handler may log amid the sending of another record.
        self._lock = threading.RLock()
        self._running = False
        self._sending = False
        self._waiting: list[bytes] = []

    def run(self) -> None:
        """From now on, send at once."""
        self._running = True

    def end(self) -> None:
        """Send no more until the next call."""
        with self._lock:  # until then, a thread may be sending
            self._running = False
            self.flush()

    def send(self, record: bytes) -> None:
        while True:
            with self._lock:
                if self._running or len(self._waiting) < MOST_WAITING:
                    self._waiting.append(channel.frame(channel.RECORD, record))
                    if self._running:
                        self.flush()
                    elif len(self._waiting) == 1:
                        self.remind()
                    return
            time.sleep(LINE_UP_SECONDS)

    def flush(self) -> None:
        """Send what waits, unless whom we have interrupted is at it."""
        with self._lock:
            if self._sending:
                return
            self._sending = True
            try:
                while self._waiting:
                    channel.write_all(self._frames, [self._waiting.pop(0)])
            except OSError as exc:
                if not channel.is_broken(exc):
                    raise
                self._waiting.clear()  # the parent is gone
            finally:
                self._sending = False

    def remind(self) -> None:
        """Have the parent ask, if there are some."""
        if self._waiting:
            with suppress(OSError):  # the parent is gone
                os.write(self._output, self._attention)


class Frozen:
    """Stands for the process object that `multiprocessing.freeze_support` unpickles and runs in a frozen program."""

    def __init__(self, preparation: dict[str, Any]) -> None:
        self._preparation = preparation

    def _bootstrap(self, calls: int) -> int:
        main(self._preparation, calls)
        return 0


def main(preparation: dict[str, Any], calls: int | None = None) -> None:
    """Be a worker process. The parent has sent *preparation*; *calls* come through the standard input by default."""
    global preparing
    nothing = os.open(os.devnull, os.O_RDWR)  # first: 0 may be closed by now, and must not be taken for what follows
    frames = os.dup(1)
    if calls is None:
        calls = os.dup(0)
    _give_streams_away(nothing)
    os.write(frames, channel.HELLO)
    # A terminal sends Ctrl-C to the workers as well. Not SIG_IGN, which the worker's own children would inherit.
    signal.signal(signal.SIGINT, _ignore)
    threading.Thread(target=_end_with, args=(os.getppid(),), name="unfazed-orphan-check", daemon=True).start()
    records = _Records(frames, preparation.pop("attention"))
    if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
        os.register_at_fork(after_in_child=lambda: _leave_talk(calls, frames))
    try:
        preparing = True
        _prepare(preparation)
    except BaseException as exc:
        reason = f"{type(exc).__qualname__}: {exc}" if str(exc) else type(exc).__qualname__
        # A server that the main module starts without a guard finds its address taken: it raises this, or exits.
        server = _is_of_a_library(exc) and (isinstance(exc, SystemExit) or "ddress already in use" in reason)
        with suppress(OSError):  # the parent is gone
            channel.write_all(frames, [channel.frame(channel.UNPREPARED, pickle.dumps((reason, refused, server)))])
        raise SystemExit(1) from None
    finally:
        preparing = False
    with suppress(channel.PipeEndError):  # the parent is gone, or wants no more
        _Worker(calls, frames, records).serve()


def _is_of_a_library(exc: BaseException) -> bool:
    """Return whether *exc* was raised by something that the main module called, and not by that itself."""
    traceback = exc.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is None or traceback.tb_frame.f_globals.get("__name__") != "__mp_main__"


def _prepare(preparation: dict[str, Any]) -> None:
    from multiprocessing import spawn

    preparation["name"] = f"unfazed-worker-{os.getpid()}"
    prepare: Any = spawn.prepare
    prepare(preparation)


class _Worker:
    def __init__(self, calls: int, frames: int, records: _Records) -> None:
        self._reader = channel.Reader(calls)
        self._frames = frames
        self._records = records
        self._levels: dict[str, int] | None = None
        self._streams = _Streams()

    def serve(self) -> None:
        """Take one call after the other, until there are no more. Raises `PipeEndError` then."""
        initializer: bytes | None = None
        self._answer([channel.frame(channel.READY)])
        reader = self._reader
        while True:
            if not reader.data:
                self._wait()
            kind, _ = reader.next()
            if kind == channel.CALL:
                self._run(initializer)
                initializer = None
            elif kind == channel.INITIALIZER:
                initializer = self._reader.take()
            elif kind == channel.LEVELS:
                self._levels = pickle.loads(self._reader.take())
            else:
                self._records.flush()
                self._answer([channel.frame(channel.FLUSH)])

    def _wait(self) -> None:
        """Wait for the next frame, whatever signal handlers raise that a function has left behind."""
        reader = self._reader
        received: list[bytes] = []
        while not received:
            try:
                channel.read_once(reader.fd, received)
            except BaseException as exc:
                if channel.is_broken(exc):
                    raise channel.PipeEndError from None
        reader.data = received[0]
        if not reader.data:
            raise channel.PipeEndError

    def _run(self, initializer: bytes | None) -> None:
        records = self._records
        records.flush()  # they are of nobody's call
        self._answer(BEGUN)
        forward(self._levels, records.send)
        records.run()
        outcome = call.run(self._reader, initializer)
        if initializer is not None:
            self._streams.keep()  # it may have its own idea of where the output goes
        self._streams.restore()
        records.end()
        self._answer(outcome)
        records.remind()

    def _answer(self, pieces: list[bytes]) -> None:
        """Send *pieces*, whatever signal handlers raise that a function has left behind."""
        try:
            channel.write_all(self._frames, pieces, begun=True)
        except BaseException as exc:
            if channel.is_broken(exc):
                raise channel.PipeEndError from None


class _Streams:
    """The streams of this process: a function may close or replace them, for itself alone."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}
        self.keep()

    def keep(self) -> None:
        self._kept = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}

    def restore(self) -> None:
        """Write what is in the buffers, and undo what the last function has done to the streams."""
        for name in ("stdout", "stderr"):
            try:
                getattr(sys, name).flush()
            except BaseException:  # none, or closed by the function, or anything that it has put there
                continue
        for name, stream in self._kept.items():
            if getattr(stream, "closed", False):
                self._reopen(name)
            elif getattr(sys, name) is not stream:
                setattr(sys, name, stream)

    def _reopen(self, name: str) -> None:
        number = [*self._kept].index(name)
        stream = open(number, "w" if number else "r", 1, "utf-8", "backslashreplace", closefd=False)  # noqa: SIM115
        self._kept[name] = stream
        setattr(sys, name, stream)


def forward(levels: dict[str, int] | None, send: Any) -> None:
    """Have log records sent, at the *levels* of the parent, from now on or from when `logging` is imported."""
    logs: Any = sys.modules.get("unfazed._worker.logs")  # which imports `logging`
    if logs is not None:
        logs.forward(levels, send)
    elif "logging" in sys.modules:
        from . import logs as imported_now

        imported_now.forward(levels, send)
    elif levels is not None:
        _WhenLoggingIsImported.levels, _WhenLoggingIsImported.send = levels, send
        if _WhenLoggingIsImported not in sys.meta_path:
            sys.meta_path.insert(0, _WhenLoggingIsImported)


class _WhenLoggingIsImported:
    """A finder of modules that has the records forwarded as soon as there can be any."""

    levels: dict[str, int] | None = None
    send: Any = None

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

            logs.forward(cls.levels, cls.send)

        loader.exec_module = exec_and_forward
        return spec


def _give_streams_away(nothing: int) -> None:
    """Put at 0, 1 and 2 what anybody may use, in the streams that the interpreter has opened for them."""
    if nothing:
        os.dup2(nothing, 0)
        os.close(nothing)
    else:
        os.set_inheritable(0, True)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # pragma: no branch  as without a console on Windows
            cast("Any", stream).reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _leave_talk(calls: int, frames: int) -> None:
    """Leave what connects it with the parent to the worker, in a child that it has forked.

    A child that returns from the function would answer as well, and one that lives on would hide that the worker has
    died. Where a system calls nobody after a fork, as Windows does not fork, nothing is to be done.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (calls, frames):
        os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)
    if "unfazed._worker.logs" in sys.modules:
        sys.modules["unfazed._worker.logs"].forget()


def _ignore(*args: object) -> None:
    """Take a signal and do nothing."""


def _end_with(parent: int) -> None:
    """End this process, whatever it is doing, soon after its parent has ended: nobody is left to answer to."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_SECONDS)
    os._exit(1)
