"""The parent's end of the line to its worker processes: their output, their log records, and how they end.

One daemon thread serves all workers of this process. Each connects once, hands over the end of a pipe where its output
comes out and the memory in which it notes the call that it runs, and then sends log records. Nothing here sends calls:
the process pool does. Elsewhere than on Linux there is no relay: workers are silent there, and how one has ended is not
known.
"""

from __future__ import annotations

import atexit
import codecs
import logging
import mmap
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Final, final

from anyio import Event

from .._worker import logs, settling
from ._references import load
from ._threadstart import new_thread
from ._waits import set_from_anywhere

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from .._worker import trampoline
    from ._calls import Loop

CHUNK_BYTES: Final = 1 << 16  # read at a time
LAST_CHUNKS: Final = 64  # more than a dead worker can have left; a child of it may write without end
CREDENTIALS: Final = struct.Struct("3i")  # process, user, group
STOP_SECONDS: Final = 1.0  # at exit, how long to wait for what workers have written; arbitrary
ROUNDS: Final = (
    4  # after so many looks at everything a worker that has just connected is known, and its end; see `_accept`
)
ACCEPT_PAUSE_SECONDS: Final = 0.01  # before the next try where there are too many files; arbitrary
UNKNOWN: Final = "for an unknown reason"
LINE_BYTES: Final = 1 << 16  # of output without an end of line that are kept back; arbitrary


@final
class Flight:
    """A call that a worker runs, as the relay sees it."""

    __slots__ = ("_event", "_wanted", "begun", "context", "loop", "on_lost", "outcome", "records", "status")

    def __init__(self, loop: Loop, context: Context, on_lost: Callable[[], object]) -> None:
        self.loop = loop
        self.context = context  # in which its log records are handled
        self.on_lost = on_lost  # is called in the loop's thread when the worker has died
        self.begun = False  # whether a worker that has died was at it, or has answered
        self.outcome: trampoline.Outcome | None = None  # what it has answered
        self.status = UNKNOWN  # how that worker has ended
        self.records = 0  # how many of its log records have been handled
        self._wanted = 0
        self._event: Event | None = None

    async def heard(self, relay: Relay, records: int) -> None:
        """Wait until so many log records have been handled. Who wakes us: the relay, or its end."""
        self._wanted = records
        self._event = event = Event()  # either we see the record, and the end, or the relay sees this
        if self.records < records and not relay.stopped:
            await event.wait()

    def record_handled(self) -> None:
        self.records += 1
        if self._event is not None and self.records >= self._wanted:
            set_from_anywhere(self.loop, self._event)

    def abandon(self) -> None:
        """Wait for no more log records: nobody handles them."""
        self.records = sys.maxsize - 1
        self.record_handled()

    def lose(self, status: str) -> None:
        self.begun = True
        self.status = status
        with suppress(RuntimeError):  # the loop is gone
            self.loop.post(self.on_lost)


class _Worker:
    """A worker process that has connected."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.received = bytearray()
        self.line = bytearray()  # of output, as far as it has come
        self.output = -1
        self.memory: mmap.mmap | None = None
        self.watched = False  # whether its death will be noticed, though its pipes stay open
        self.decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode

    def serial(self) -> int:
        """Return the number of the call that runs there, or has run last; 0 is none."""
        return 0 if self.memory is None else int.from_bytes(self.memory[:], "big") & ~settling.ANSWERED


@final
class Relay:
    """The thread, and what it listens to."""

    def __init__(self) -> None:
        self._wake = -1
        # In Linux's abstract namespace: no file is left behind, whatever ends this process.
        self._token = os.urandom(16)
        self.address: settling.Address = f"\0unfazed-{os.getpid()}-{os.urandom(8).hex()}", self._token
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(self.address[0])
        self._listener.listen(128)
        self.process = os.getpid()
        self.flights: dict[int, Flight] = {}  # by serial number
        self._workers: set[_Worker] = set()  # whose output can still come
        self._round = 0  # how often the thread has looked whether anything has happened
        self._tasks: deque[tuple[int, Callable[[], object]]] = deque()  # to be done when nothing has, or in which round
        self._handler: threading.Thread | None = None  # of log records, from the first one on
        self._records: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self.stopped = False
        self._wake_end, self._wake = os.pipe()
        os.set_blocking(self._wake, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ, self._accept)
        self._selector.register(self._wake_end, selectors.EVENT_READ, self._woken)
        self._thread = new_thread(self._serve, "unfazed-relay")
        self._thread.start()

    async def settled(self, loop: Loop, hears: bool) -> None:
        """Wait until all that has happened to workers before this call has been noted, and if it *hears*, handled."""
        event = Event()

        def tell() -> None:
            set_from_anywhere(loop, event)

        self._when_idle(partial(self._after_records, tell) if hears else tell)
        await event.wait()

    def stop(self) -> None:
        """Take in what workers have written so far, and end."""
        if self.process != os.getpid():  # a forked child has no such thread
            return
        self._when_idle(self._end)
        self._thread.join(STOP_SECONDS)
        if self._handler is not None:
            self._records.put(None)
            self._handler.join(STOP_SECONDS)
        atexit.unregister(self.stop)  # which has kept it, and its end of the pipe

    def _after_records(self, task: Callable[[], object]) -> None:
        """Have something done when the log records that have come so far have been handled."""
        if self._handler is None:
            task()
        else:
            self._records.put(task)

    def _handle_soon(self, frame: bytes) -> None:
        """Have a log record handled, in a thread of its own: a handler may wait for a worker, of which we must hear."""
        if self._handler is None:
            handler = new_thread(self._handle_all, "unfazed-logs")
            try:
                handler.start()
            except RuntimeError:  # there are too many threads, or the interpreter is exiting
                self._handle(frame)
                return
            self._handler = handler
        self._records.put(partial(self._handle, frame))

    def _handle_all(self) -> None:
        _here.handling = True
        while (task := self._records.get()) is not None:
            task()

    def _end(self) -> None:
        self.stopped = True

    def _when_idle(self, task: Callable[[], object]) -> None:
        """Have the thread do something when there is nothing else to do, or do it here if it has ended.

        There is always something else to do where a worker writes without end; so not later than after some rounds,
        of which one may be under way.
        """
        self._tasks.append((self._round + 1 + ROUNDS, task))
        with suppress(OSError):  # it will wake all the same, or has ended
            os.write(self._wake, b"x")
        if self.stopped:  # either we see this, or the thread sees the task
            self._do_tasks(sys.maxsize)

    def _do_tasks(self, due: int) -> None:
        with suppress(IndexError):
            while self._tasks[0][0] <= due:
                self._tasks.popleft()[1]()

    def _serve(self) -> None:
        while True:
            events = self._selector.select(0 if self._tasks else None)
            for key, _ in events:
                # It has not been closed by another one's event. Not by its object, whose number is lost by then.
                if self._selector.get_map().get(key.fd) is key:
                    key.data()
            self._round += 1
            self._do_tasks(self._round if events else sys.maxsize)
            if self.stopped:
                break
        for worker in tuple(self._workers):
            self._write(worker, b"\n" if worker.line else b"")
        for key in list(self._selector.get_map().values()):
            if isinstance(key.fileobj, socket.socket):
                key.fileobj.close()
            else:
                os.close(key.fd)
        self._selector.close()
        self._do_tasks(sys.maxsize)
        for flight in tuple(self.flights.values()):
            flight.abandon()

    def __del__(self) -> None:
        if self._wake >= 0:  # it could be made
            os.close(self._wake)

    def _woken(self) -> None:
        os.read(self._wake_end, CHUNK_BYTES)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:  # too many files: the worker has its answer when there are fewer
            time.sleep(ACCEPT_PAUSE_SECONDS)
            return
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
        if CREDENTIALS.unpack(credentials)[1] != os.getuid():  # anybody on this machine can connect
            connection.close()
            return
        worker = _Worker(connection)
        self._selector.register(connection, selectors.EVENT_READ, partial(self._greet, worker))

    def _greet(self, worker: _Worker) -> None:
        """Take in what a worker says first. Whoever does not know the token is no worker of ours."""
        token = self._token
        hello = b""
        fds: list[int] = []
        with suppress(OSError):  # it has gone away
            hello, fds, _, _ = socket.recv_fds(worker.connection, len(token) + 4, 2)
        self._selector.unregister(worker.connection)
        if len(fds) != 2 or hello[: len(token)] != token:
            for fd in fds:
                os.close(fd)
            worker.connection.close()
            return
        worker.output, memory = fds
        self._workers.add(worker)
        worker.memory = mmap.mmap(memory, settling.SERIAL_BYTES, prot=mmap.PROT_READ)
        os.close(memory)
        os.set_blocking(worker.output, False)
        self._selector.register(worker.connection, selectors.EVENT_READ, partial(self._receive, worker))
        self._selector.register(worker.output, selectors.EVENT_READ, partial(self._print, worker))
        self._watch(worker, int.from_bytes(hello[len(token) :], "big"))
        with suppress(OSError):  # it has ended
            worker.connection.send(settling.WELCOME)

    def _watch(self, worker: _Worker, pid: int) -> None:
        """Have the death of a worker noticed, though a child that it forked may hold its pipes open.

        Where that can't be, the end of its connection must do.
        """
        try:
            pidfd = os.pidfd_open(pid)
        except ProcessLookupError:  # it has ended, and somebody has read its status
            self._ended(worker, None)
            return
        except (AttributeError, OSError):  # this Python, this kernel, or what watches over us has no such thing
            return
        worker.watched = True
        self._selector.register(pidfd, selectors.EVENT_READ, partial(self._ended, worker, pidfd))

    def _ended(self, worker: _Worker, pidfd: int | None) -> None:
        """Note how a worker has ended, and tell the call that it was at."""
        status = UNKNOWN
        if pidfd is not None:
            with suppress(ChildProcessError):  # somebody else has read its status
                status = _status(os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOWAIT | os.WNOHANG)) or status
            self._selector.unregister(pidfd)
            os.close(pidfd)
        for _ in range(LAST_CHUNKS):
            if not (self._receive(worker) or self._print(worker)):
                break
        self._lose(worker, status)

    def _lose(self, worker: _Worker, status: str) -> None:
        flight = self.flights.get(worker.serial())
        if flight is not None:
            flight.lose(status)

    def _receive(self, worker: _Worker) -> bool:
        """Take in log records. Return whether there may be more."""
        if worker.connection.fileno() < 0:
            return False
        try:
            data = worker.connection.recv(CHUNK_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._selector.unregister(worker.connection)
            worker.connection.close()
            if not worker.watched:
                self._lose(worker, UNKNOWN)
            return False
        worker.received += data
        while len(worker.received) >= 4:
            end = 4 + int.from_bytes(worker.received[:4], "big")
            if len(worker.received) < end:
                break
            frame = bytes(worker.received[4:end])
            del worker.received[:end]
            self._handle_soon(frame)
        return True

    def _handle(self, frame: bytes) -> None:
        """Have a log record handled by the loggers here."""
        serial = int.from_bytes(frame[: settling.SERIAL_BYTES], "big")
        flight = self.flights.get(serial)
        try:
            record = logs.read(frame[settling.SERIAL_BYTES :], load)
            handle = logging.getLogger(record.name).handle
            if flight is None:  # a thread that the call has left behind
                handle(record)
            else:
                flight.context.run(handle, record)
        except BaseException as exc:  # SystemExit as well: it is of a handler, and must not end this thread
            with suppress(BaseException):
                sys.excepthook(type(exc), exc, exc.__traceback__)
        finally:
            if flight is not None:
                flight.record_handled()

    def _print(self, worker: _Worker) -> bool:
        """Take in output, and pass it on in whole lines. Return whether there may be more."""
        if worker.output < 0:
            return False
        try:
            data = os.read(worker.output, CHUNK_BYTES)
        except BlockingIOError:
            return False
        if not data:
            self._selector.unregister(worker.output)
            os.close(worker.output)
            worker.output = -1
            self._workers.discard(worker)
        self._write(worker, data or (b"\n" if worker.line else b""))
        return bool(data)

    def _write(self, worker: _Worker, data: bytes) -> None:
        worker.line += data
        end = max(worker.line.rfind(b"\n"), worker.line.rfind(b"\r")) + 1
        if not end and len(worker.line) > LINE_BYTES:
            end = len(worker.line)
        text, worker.line[:] = worker.decode(worker.line[:end], worker.output < 0), worker.line[end:]
        if text and settings.output and sys.stderr is not None:
            with suppress(BaseException):  # it is closed, or anything that users put there; this thread must go on
                sys.stderr.write(text)
                sys.stderr.flush()


def _status(result: Any) -> str | None:
    """Say in words what `waitid` has returned, if anything."""
    if result is None:
        return None
    if result.si_code == os.CLD_EXITED:
        return f"with exit code {result.si_status}"
    try:
        return f"killed by {signal.Signals(result.si_status).name}"
    except ValueError:
        return f"killed by signal {result.si_status}"


_here = threading.local()


def is_handling() -> bool:
    """Return whether this thread is handling log records."""
    return getattr(_here, "handling", False)


class _Settings:
    output = True
    logs = True


settings = _Settings()
_relay: Relay | None = None
_starting = threading.Lock()  # guards `_relay`; made anew in a forked child


def current() -> Relay | None:
    """Return the relay of this process, started if need be; `None` where there can be none."""
    global _relay
    relay = _relay
    if relay is not None:
        return relay
    if sys.platform != "linux":
        return None
    with _starting:  # two loops may come at once, and the workers of both must end up with the relay of their calls
        if _relay is None:
            try:
                _relay = Relay()
            except (OSError, RuntimeError):  # too many files; too many threads, or the interpreter is exiting
                return None
            atexit.register(_relay.stop)
        return _relay


def _start_afresh() -> None:
    global _relay, _starting
    _relay = None  # its thread is not in this child
    _starting = threading.Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_start_afresh)
