"""A worker process: it starts, runs one call after the other, and ends.

It starts with its two pipes to the parent as file descriptors 0 and 1, and moves them elsewhere. The parent reads its
output from 2.

Guarantees:

- Before the main module runs, 0 is at its end and 1 is the same as 2. So functions, C libraries and child processes may
  do anything to 0, 1 and 2 without disturbing the pipes. No child process inherits the pipes.
- Between the answer to a call and the next call, nothing is sent. Log records of threads that a function has started
  are kept. A marker in the output tells the parent that there are some.
- The worker ends when its parent ends. An idle worker sees that its pipe ends. A busy one has a thread that sees that
  its parent has changed. On Windows that cannot be seen, and a busy worker ends after its call.

Assumption: this runs in the main thread, and so do the functions. It imports the standard library only.
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

ORPHAN_CHECK_SECONDS = 0.4  # how often to check for the parent; a worker must not outlive it by 1 s
MOST_WAITING = 1000  # log records kept between calls; a thread that logs more waits; arbitrary
LINE_UP_SECONDS = 0.01  # how often it checks for room; arbitrary
BEGUN = [channel.BEGUN_FRAME]

preparing = False  # whether the main module is being imported: it must not start workers
refused = False  # whether it has tried to


class _Records:
    """Log records. They are sent while a call runs, and kept between calls. The lock guards all attributes."""

    def __init__(self, frames: int, attention: bytes) -> None:
        self._frames = frames
        self._attention = attention  # printed, it makes the parent ask for records
        self._output = os.dup(2)  # a copy: functions may close 2
        # Reentrant: a signal handler may log while another record is being sent.
        self._lock = threading.RLock()
        self._running = False
        self._sending = False
        self._waiting: list[bytes] = []

    def run(self) -> None:
        """Send records at once from now on."""
        self._running = True

    def end(self) -> None:
        """Keep records from now on, until the next call."""
        with self._lock:  # waits for a thread that is sending
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
        """Send the kept records. Do nothing in a signal handler that has interrupted just that."""
        with self._lock:
            if self._sending:
                return
            self._sending = True
            try:
                self._send_all()  # a function of its own: a `try` may miss what a signal handler raises in its loop
            except OSError as exc:
                if not channel.is_broken(exc):
                    raise
                self._waiting.clear()  # the parent is gone
            finally:
                self._sending = False

    def _send_all(self) -> None:
        while self._waiting:
            channel.write_all(self._frames, [self._waiting.pop(0)])

    def remind(self) -> None:
        """Make the parent ask for the kept records, if there are any."""
        if self._waiting:
            with suppress(OSError):  # the parent is gone
                os.write(self._output, self._attention)


class Frozen:
    """Replaces the process object that `multiprocessing.freeze_support` unpickles and runs in a frozen program."""

    def __init__(self, preparation: dict[str, Any]) -> None:
        self._preparation = preparation

    def _bootstrap(self, calls: int) -> int:
        main(self._preparation, calls)
        return 0


def main(preparation: dict[str, Any], calls: int | None = None) -> None:
    """Run a worker process. The parent has sent *preparation*. *calls* is a file descriptor, by default a copy of 0."""
    global preparing
    nothing = os.open(os.devnull, os.O_RDWR)  # first: if 0 is closed, this takes its number
    frames = os.dup(1)
    if calls is None:
        calls = os.dup(0)
    _give_streams_away(nothing)
    os.write(frames, channel.HELLO)
    # A terminal sends Ctrl-C to workers too. Not SIG_IGN: the worker's own child processes would inherit it.
    signal.signal(signal.SIGINT, _ignore)
    threading.Thread(target=_end_with, args=(os.getppid(),), name="unfazed-orphan-check", daemon=True).start()
    records = _Records(frames, preparation.pop("attention"))
    if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
        os.register_at_fork(after_in_child=lambda: _close_channel(calls, frames))
    try:
        preparing = True
        _prepare(preparation)
    except BaseException as exc:
        reason = f"{type(exc).__qualname__}: {exc}" if str(exc) else type(exc).__qualname__
        # If the main module starts a server without a guard, the address is in use: the server raises this, or exits.
        server = _is_of_a_library(exc) and (isinstance(exc, SystemExit) or "ddress already in use" in reason)
        with suppress(OSError):  # the parent is gone
            channel.write_all(frames, [channel.frame(channel.UNPREPARED, pickle.dumps((reason, refused, server)))])
        raise SystemExit(1) from None
    finally:
        preparing = False
    with suppress(channel.PipeEndError):  # the parent is gone, or ends this worker
        _Worker(calls, frames, records).serve()


def _is_of_a_library(exc: BaseException) -> bool:
    """Return whether *exc* was raised in code that the main module called, not in the main module itself."""
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
        """Run one call after the other. Raises `PipeEndError` when the parent has closed the pipe."""
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
        """Wait for the next frame. Ignore what signal handlers raise: a function may have installed some."""
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
        records.flush()  # they belong to no call
        self._answer(BEGUN)
        forward(self._levels, records.send)
        records.run()
        outcome = call.run(self._reader, initializer)
        if initializer is not None:
            self._streams.keep()  # an initializer may replace the streams for good
        self._streams.restore()
        records.end()
        self._answer(outcome)
        records.remind()

    def _answer(self, pieces: list[bytes]) -> None:
        """Send *pieces*. Ignore what signal handlers raise, as `_wait` does."""
        try:
            channel.write_all(self._frames, pieces, begun=True)
        except BaseException as exc:
            if channel.is_broken(exc):
                raise channel.PipeEndError from None


class _Streams:
    """The streams of this process. A function may close or replace them; the next call gets the old ones back."""

    def __init__(self) -> None:
        self._kept: dict[str, Any] = {}
        self.keep()

    def keep(self) -> None:
        self._kept = {name: getattr(sys, name) for name in ("stdin", "stdout", "stderr")}

    def restore(self) -> None:
        """Flush the streams, and undo what the last function has done to them."""
        for name in ("stdout", "stderr"):
            try:
                getattr(sys, name).flush()
            except BaseException:  # it may be None, closed, or the function's own object
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
    """Send log records at the *levels* of the parent: from now on, or as soon as `logging` is imported."""
    logs: Any = sys.modules.get("unfazed._worker.logs")  # not imported here: it imports `logging`, which is slow
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
    """A module finder that calls `logs.forward` as soon as `logging` has been imported."""

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
    """Make 0, 1 and 2, and the streams of `sys`, safe to use for anybody: no input, and all output to 2."""
    if nothing:
        os.dup2(nothing, 0)
        os.close(nothing)
    else:
        os.set_inheritable(0, True)
    os.dup2(2, 1)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:  # pragma: no branch  it is None without a console on Windows
            cast("Any", stream).reconfigure(encoding="utf-8", errors="backslashreplace", line_buffering=True)


def _close_channel(calls: int, frames: int) -> None:
    """Close the pipes to the parent, in a child that the worker has forked.

    Otherwise a child that returns from the function would answer too, and a child that lives on would keep the pipes
    open and so hide that the worker has died.
    """
    nothing = os.open(os.devnull, os.O_RDWR)
    for fd in (calls, frames):
        os.dup2(nothing, fd, inheritable=False)
    os.close(nothing)
    if "unfazed._worker.logs" in sys.modules:
        sys.modules["unfazed._worker.logs"].forget()


def _ignore(*args: object) -> None:
    """Handle a signal by doing nothing."""


def _end_with(parent: int) -> None:
    """End this process, whatever it does, soon after its parent has ended: nobody waits for an answer."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_SECONDS)
    os._exit(1)
