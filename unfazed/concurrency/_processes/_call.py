"""One call in a worker process: what is sent, how far it has come, and what it comes to.

A small call to an idle worker needs nobody else: its caller writes to the one pipe, and reads from the other one as
soon as there is something to read. All else goes by the worker's thread: calls that need a new worker, large calls and
answers, calls with log records, deaths, and what is left to be done when a caller is cancelled or interrupted.

    where the call is              a cancellation, or Ctrl-C             its timeout, or `kill_on_cancel`
    waits for a slot, a worker     it never begins                       the same
    with the caller, sent          its thread takes over; wait for it    its thread takes over; the worker is killed
    with the thread, sent          wait for it                           the worker is killed
    answered                       raise what came                       the same

Guarantees: what has been sent and what has come is known at each bytecode, whatever signal handlers raise
(`channel.py`), and so is who owns the worker (`_pool.py`). The call neither returns nor raises while its arguments are
being pickled: by the caller, or by the worker's thread where that takes too long for an event loop.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import suppress
from contextvars import Context, copy_context
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, final

from anyio import to_process

from ..._worker import call as outcomes
from ..._worker import channel, logs
from .._core import _limits, _slots
from .._core._checks import name_of
from .._core._errors import LoopEndedError
from .._core._futures import without_our_frame
from .._eventloops._limiters import DefaultLimiter
from .._eventloops._timeouts import Timeout
from ._output import settings
from ._packing import OFF_LOOP_BYTES, pack, pack_initializer, read_payload, to_error
from ._pool import pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio import CapacityLimiter

    from .._core._futures import OneShotFuture
    from ._worker import WorkerProcess

T = TypeVar("T")

# Whether callers talk to workers themselves. Not on Windows, where no event loop waits for a pipe, and Ctrl-C does not
# interrupt who reads from one: there, every call goes by the worker's thread.
DIRECT = sys.platform != "win32"


class OutOfTheOrdinaryError(Exception):
    """Raised where more than a small answer has come: the worker's thread sees to that."""


class ProcessOptions(NamedTuple):
    """What `in_processpool` takes; it says what each one means."""

    limiter: CapacityLimiter | None = None
    kill_on_cancel: bool = False
    timeout: float | None = None
    initializer: Callable[[], object] | None = None
    max_calls: int | None = None


NO_OPTIONS: Final = ProcessOptions()


def _find_limiter() -> CapacityLimiter:
    """Return the limiter of the current loop, which is to count the CPUs that this process may use.

    anyio counts those that there are. A total that is another one is the user's.
    """
    limiter = to_process.current_default_process_limiter()
    if limiter.total_tokens == os.cpu_count():
        if sys.version_info >= (3, 13):  # pragma: no cover  is measured on another one
            limiter.total_tokens = os.process_cpu_count() or 1
        elif hasattr(os, "sched_getaffinity"):  # pragma: no branch  elsewhere a process may use them all
            limiter.total_tokens = len(os.sched_getaffinity(0))
    return limiter


default_limiter = DefaultLimiter(_find_limiter)


@final
class ProcessCall:
    """One call in a worker process. *helper* is the name to use in error messages."""

    initializer: bytes | None = None
    timeout: Timeout | None = None
    slot: _limits.Slot | None = None
    killed = False  # whether nobody wants its answer any more, nor its worker to live on
    sent = False  # whether it was sent before the thread got it
    tries = 0  # how many workers have ended before they began it
    future: OneShotFuture[Any] | None = None  # from when it is about to be handed over
    _context: Context | None = None  # in which its log records are handled, and its answer is unpickled
    _worker: WorkerProcess | None = None  # which runs it, as far as its thread knows
    # Made when it is handed over; each is taken once, as a flag that is tested and set in one step.
    _claimed: Lock  # by who sends the call, or sees to it that nobody does
    _taken_over: Lock  # by the thread that it is handed over to
    _ended: Lock  # by who answers it, or kills it: a worker that goes on is not killed
    _elsewhere: Callable[[Callable[[], object]], object] | None = None  # has something done in the caller's thread

    def __init__(
        self,
        helper: str,
        func: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        options: ProcessOptions = NO_OPTIONS,
        *,
        at_once: bool = False,
    ) -> None:
        self.helper = helper
        self.func = func
        self.options = options
        if options is not NO_OPTIONS:
            if options.timeout is not None:
                self.timeout = Timeout(options.timeout, name_of(func))
            if options.initializer is not None:
                self.initializer = pack_initializer(options.initializer)
        self.request: list[bytes] = []
        self._arguments: tuple[Any, Any] | None = None  # which the worker's thread is to pickle
        try:
            self.request = pack(func, args, kwargs, helper, at_once=at_once)
        except channel.TooMuchError:
            self._arguments = args, kwargs
        self.levels = logs.levels() if settings.logs else None
        self._sent: list[int] = []  # what the caller has written
        self._received: list[bytes] = []  # what the caller has read

    @property
    def name(self) -> str:
        return name_of(self.func)

    def what_it_waits_for(self) -> str:
        """Return what to say of a call that has never begun when its time is up; nothing of any other one."""
        return "" if self.slot is None else self.slot.what_it_waits_for(name_of)

    # For the worker's thread

    def take_over(self) -> bool:
        """Return whether this is the first thread that gets it."""
        return self._taken_over.acquire(blocking=False)

    def claim(self, worker: WorkerProcess) -> bool:
        """Let *worker* have the call, pickled, unless it has been withdrawn or cannot be pickled."""
        self._worker = worker
        if not self._claimed.acquire(blocking=False):
            return False
        arguments = self._arguments
        if arguments is None:
            return True
        try:
            self.request = self._in_context(lambda: pack(self.func, *arguments, self.helper))
        except BaseException as exc:
            self.finish(None, without_our_frame(exc))
            return False
        self._arguments = None  # 1: this, and a look at `killed`. 2: `kill` sets that, and looks at this.
        if self.killed:
            self.finish(None, None)
        return not self.killed

    def is_claimed(self) -> bool:
        """Return whether somebody has it, or it has been withdrawn."""
        return self._claimed.locked()

    def return_claim(self) -> None:
        """Let another worker have the call."""
        self.sent = False
        self._received.clear()
        with suppress(RuntimeError):  # the worker had ended before it could have it
            self._claimed.release()
        self._taken_over.release()

    def received(self) -> bytes:
        return b"".join(self._received)

    def have_handled(self, handle: Callable[[], object]) -> None:
        """Have a log record handled, for the caller."""
        if self._elsewhere is None:
            self._in_context(handle)
        else:
            self._elsewhere(handle)

    def _in_context(self, func: Callable[..., T], *args: object) -> T:
        """Call what the user may have written, in the context of the caller, whose slot serves what that calls."""
        slot, context = self.slot, self._context
        assert slot is not None and context is not None, "set before it was handed over"
        wait = object()
        try:
            _slots.lend(slot, wait)
            return context.run(func, *args)
        finally:
            _slots.take_back(slot, wait)

    def outcome(self, worker: WorkerProcess, kind: bytes, reader: channel.Reader) -> tuple[Any, BaseException | None]:
        """Return the value or the error that comes next."""
        try:
            return self._in_context(self.read, worker, kind, reader), None
        except channel.PipeEndError:
            raise
        except BaseException as exc:
            return None, without_our_frame(exc)

    def was_last_of(self, worker: WorkerProcess) -> bool:
        """Return whether *worker* has served its time."""
        max_calls = self.options.max_calls
        return max_calls is not None and worker.calls >= max_calls

    def end(self) -> bool:
        """Keep others from killing the worker on account of this call. Return whether nobody has."""
        return self._ended.acquire(blocking=False)

    def finish(self, value: Any, error: BaseException | None) -> None:
        """Wake the caller, unless that has gone away."""
        assert self.future is not None, "set before it was handed over"
        self.future.write(value, error)

    def fail(self, error: BaseException) -> None:
        self.finish(None, LoopEndedError("the interpreter is exiting") if pool.exiting else error)

    # For whoever waits for it

    def send_directly(self, lease: list[WorkerProcess]) -> bool:
        """Send the call to an idle worker, which is in *lease* then, if both can be had at once."""
        if not DIRECT or self._arguments is not None:
            return False
        pool.take_any(lease)
        if not lease:
            return False
        worker = lease[0]
        message = self.request
        if self.levels != worker.levels or self.initializer is not None:
            message = worker.message(self)
        if sum(map(len, message)) > min(worker.room, OFF_LOOP_BYTES):
            return False
        data = message[0] if len(message) == 1 else b"".join(message)
        try:
            channel.write_once(worker.into, data, self._sent)
        except OSError as exc:
            if channel.is_broken(exc):  # it has died: its thread sees to that
                return False
            raise
        worker.levels = self.levels
        worker.calls += 1
        return True

    def receive(self, lease: list[WorkerProcess]) -> tuple[WorkerProcess, bytes, bytes] | None:
        """Read what has come. If that is an answer, give the worker back, and return what `read` takes."""
        worker = lease[0]
        received = self._received
        try:
            channel.read_once(worker.out, received)
        except BlockingIOError:  # libuv, on which uvloop stands, leaves a pipe that it has waited for in this state
            os.set_blocking(worker.out, True)
            return None
        data = received[0] if len(received) == 1 else b"".join(received)
        if not received[-1] or not data.startswith(channel.BEGUN_FRAME):
            raise OutOfTheOrdinaryError
        rest = len(data) - 2 * channel.HEADER_BYTES
        if rest < 0:
            return None
        kind, size = channel.read_header(data, channel.HEADER_BYTES)
        if size > OFF_LOOP_BYTES or kind not in (channel.VALUE, channel.OUTCOME):
            raise OutOfTheOrdinaryError
        if rest < size:
            return None
        if self.options.max_calls is not None and self.was_last_of(worker):
            worker.retire()
            lease.clear()
        else:
            worker.used = time.monotonic()
            pool.return_from(lease)
        return worker, kind, data[2 * channel.HEADER_BYTES :]

    def read(self, worker: WorkerProcess, kind: bytes, data: bytes | channel.Reader) -> Any:
        """Return the value that is in *data*, or comes from there; or raise the error."""
        payload = read_payload(data, self.func)
        if self.initializer is not None and (kind == channel.VALUE or payload[0] != outcomes.INITIALIZER_ERROR):
            worker.initialized.add(self.initializer)
        if kind == channel.VALUE:
            return payload
        error = to_error(payload, self.func, self.helper)
        try:
            raise error
        finally:
            del error, payload

    def expect(
        self, future: OneShotFuture[Any], elsewhere: Callable[[Callable[[], object]], object] | None = None
    ) -> None:
        """Say who is to be told the end, before it is handed over.

        *elsewhere*, if anything, is told what to do in the caller's own thread.
        """
        if self.future is None:
            self._context = context = copy_context()
            context.run(_limits.current_slot.set, self.slot)
            self._claimed, self._taken_over, self._ended = Lock(), Lock(), Lock()
        if elsewhere is not None:
            self._elsewhere = lambda handle: elsewhere(lambda: self._in_context(handle))
        self.future = future

    def hand_over(self, lease: list[WorkerProcess]) -> None:
        """Have a thread see to the call: that of the worker in *lease*, or of an idle one, or of a new one."""
        try:
            self._hand_over(lease)
        except BaseException:  # of a signal handler, for one, which must not lose the worker
            if lease:
                self._hand_over(lease)
            raise

    def _hand_over(self, lease: list[WorkerProcess]) -> None:
        self.sent = bool(self._sent)
        if not lease:
            pool.take_any(lease)
        if not lease:
            pool.submit(self)
            return
        if self.sent:
            lease[0].levels = self.levels  # as it may not know yet
            self.claim(lease[0])
        lease[0].hand_over(self)
        lease.clear()

    def cancel(self) -> None:
        """Do what is to be done when nobody wants the answer any more."""
        if self.options.kill_on_cancel:
            self.kill()
        else:
            self._withdraw()

    def kill(self) -> None:
        """Have the call end at once, with its worker; if its arguments are being pickled, after that."""
        self.killed = True
        if not self._withdraw() and self._arguments is None and self.end():
            assert self._worker is not None, "it has claimed the call"
            self._worker.kill()
            self.finish(None, None)

    def _withdraw(self) -> bool:
        """See to it that nobody begins the call. Return whether that is so."""
        if not self._claimed.acquire(blocking=False):
            return False
        self.finish(None, None)
        return True
