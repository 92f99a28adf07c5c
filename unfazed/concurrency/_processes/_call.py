"""One call in a worker process: its states, what it sends and what comes back.

The caller itself sends a small call to an idle worker, and reads the answer as soon as the pipe is readable. The thread
of a worker does everything else. It starts workers, handles large calls, large answers and log records, and notices
that a worker has died. It also takes over the call of a caller that is cancelled or interrupted.

The life of a `ProcessCall`. "thread" is the thread of a worker.

    state        how to tell                           goes on as            caller is cancelled  killed
    -----------  ------------------------------------  --------------------  -------------------  ---------------------
    queued       `slot.held` is false                  direct, handed over   ended                ended
    direct       `_sent` is not empty, no `future`     ended, running        running              running, then killed
    handed over  `future` is set, `_start` is open     pickling, running     ended                ended
    pickling     `_start` begun, `_arguments` is set   running, ended        pickling             ended after pickling
    running      `_start` begun, `_arguments` is None  ended, handed over    running              ended, with its worker
    ended        `future.done`, `_ended`, or it was    -                     -                    -
                 read by its caller while direct

"caller is cancelled": or interrupted by a signal handler. It then waits until the call has ended. "killed": the timeout
is over, or the caller is cancelled and the options say `kill_on_cancel`.

A direct call ends when its caller has read a small answer. If anything else comes, or the worker dies, the thread runs
the call. A running call is handed over again if its worker dies before it has begun the call. It ends with an error
after `TRIES` workers, at exit, or if no worker can start.

Guarantees:

- At each bytecode it is known what has been sent and received (`channel.py`) and who owns the worker (`_pool.py`), even
  if a signal handler raises.
- The call does not return or raise while its arguments are being pickled. The caller pickles them, unless they are so
  large that an event loop would wait too long: then the thread does.
"""

from __future__ import annotations

import os
import sys
import time
from contextvars import Context, copy_context
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias, TypeVar, final

from ..._worker import call as outcomes
from ..._worker import channel, logs
from .._core import _limits, _slots
from .._core._calls import UserCall, totals
from .._core._checks import name_of
from .._core._errors import LoopEndedError, RemoteTraceback, WorkerProcessError
from .._core._futures import Start, without_our_frame
from .._eventloops._timeouts import Timeout
from ._output import settings
from ._packing import OFF_LOOP_BYTES, pack, pack_initializer, read_payload, to_error
from ._pool import pool

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio import CapacityLimiter

    from .._core._futures import OneShotFuture
    from .._core._observing import CallOutcome
    from ._worker import WorkerProcess

    Received: TypeAlias = tuple[WorkerProcess, bytes, bytes]  # the worker, and the kind and payload of its answer

T = TypeVar("T")

# Whether callers write to and read from the pipes themselves. On Windows the worker's thread always does: there, event
# loops cannot wait for a pipe, and Ctrl-C does not interrupt a thread that reads from one.
DIRECT = sys.platform != "win32"


class OutOfTheOrdinaryError(Exception):
    """Raised if anything other than a small answer has come. The worker's thread handles it."""


class CallOptions(NamedTuple):
    """The options of `in_processpool`, which documents them."""

    limiter: CapacityLimiter | None = None
    kill_on_cancel: bool = False
    timeout: float | None = None
    initializer: Callable[[], object] | None = None
    max_calls: int | None = None


NO_OPTIONS: Final = CallOptions()
returned: Final = totals["processpool"]["returned"]


@final
class ProcessCall(UserCall):
    """One call in a worker process. Error messages name *helper*."""

    place = "processpool"
    is_late = False  # whether its time was up
    initializer: bytes | None = None
    timeout: Timeout | None = None
    slot: _limits.Slot | None = None
    killed = False  # whether to end it at once, with its worker
    has_handle = False  # whether it was started: either its handle prevents it, or a worker begins it
    sent = False  # whether the caller has sent it, before it was handed over
    answer_bytes = 0  # how large the pickle of the answer was
    tries = 0  # how many workers have died before they began it, or could not start
    future: OneShotFuture[Any] | None = None  # set before it is handed over
    _context: Context | None = None  # the caller's: user code runs in it
    _worker: WorkerProcess | None = None  # whose thread has claimed it
    _start: Start  # begun by whoever sends the call, prevented by whoever cancels it
    # Locks as flags, because `acquire` tests and sets in one step. Made before the call is handed over.
    _taken_over: Lock  # by the first thread that gets it
    _ended: Lock  # by whoever answers or kills it: a worker that goes on must not be killed
    _elsewhere: Callable[[Callable[[], object]], object] | None = None  # calls a function in the caller's thread

    def __init__(
        self,
        helper: str,
        func: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        options: CallOptions = NO_OPTIONS,
        *,
        at_once: bool = False,
    ) -> None:
        self.helper = helper
        self.func: Callable[..., object] = func
        self.options = options
        if options is not NO_OPTIONS:
            if options.timeout is not None:
                self.timeout = Timeout(options.timeout, name_of(func))
            if options.initializer is not None:
                self.initializer = pack_initializer(options.initializer)
        self.request: list[bytes] = []
        self._arguments: tuple[Any, Any] | None = None  # too large: the worker's thread pickles them
        try:
            self.request = pack(func, args, kwargs, helper, at_once=at_once)
        except channel.TooMuchError:
            self._arguments = args, kwargs
        self.levels = logs.levels() if settings.logs else None
        self._sent: list[int] = []  # what the caller has written
        self._received: list[bytes] = []  # what the caller has read

    def outcome_of(self, exc: BaseException) -> CallOutcome:
        if isinstance(exc.__cause__, RemoteTraceback):  # the function has raised it
            return "raised"
        if self.is_late:
            return "timed out"
        return "worker died" if isinstance(exc, WorkerProcessError) else super().outcome_of(exc)

    def transferred(self) -> int:
        """Return how large the pickles of the call and of its answer were: the larger of the two."""
        return max(sum(map(len, self.request)), self.answer_bytes)

    def what_it_waits_for(self) -> str:
        """Return what to say if the call still waits for a slot when its time is up; "" for any other call."""
        return "" if self.slot is None else self.slot.what_it_waits_for()

    # For the worker's thread

    def take_over(self) -> bool:
        """Return whether this is the first thread that gets the call."""
        return self._taken_over.acquire(blocking=False)

    def claim(self, worker: WorkerProcess) -> bool:
        """Claim the call for *worker* and pickle it. Return `False` if it is prevented, killed, or not picklable."""
        self._worker = worker
        if not self._start.begin():
            return False
        arguments = self._arguments
        if arguments is None:
            return True
        try:
            self.request = self._in_context(lambda: pack(self.func, *arguments, self.helper))
        except BaseException as exc:
            self.finish(None, without_our_frame(exc))
            return False
        self._arguments = None  # 1: first this, then read `killed`. 2: `kill` does it the other way round
        if self.killed:
            self.finish(None, None)
        return not self.killed

    def is_decided(self) -> bool:
        """Return whether a worker has the call, or it will never begin."""
        return self._start.is_decided()

    def return_claim(self) -> None:
        """Allow another worker to claim the call."""
        self.sent = False
        self._received.clear()
        if self._start.has_begun():  # otherwise the worker died before it claimed the call
            self._start = Start()
        self._taken_over.release()

    def received(self) -> bytes:
        return b"".join(self._received)

    def have_handled(self, handle: Callable[[], object]) -> None:
        """Call *handle*, which handles a log record, on behalf of the caller."""
        if self._elsewhere is None:
            self._in_context(handle)
        else:
            self._elsewhere(handle)

    def _in_context(self, func: Callable[..., T], *args: object) -> T:
        """Call *func*, which may run user code, in the caller's context. Calls inside it may use the caller's slot."""
        slot, context = self.slot, self._context
        assert slot is not None and context is not None, "set before it was handed over"
        wait = object()
        try:
            _slots.lend(slot, wait)
            return context.run(func, *args)
        finally:
            _slots.take_back(slot, wait)

    def fetch_outcome(
        self, worker: WorkerProcess, kind: bytes, reader: channel.Reader
    ) -> tuple[Any, BaseException | None]:
        """Read the value or the error from *reader*. Raises `PipeEndError` if the worker dies meanwhile."""
        try:
            return self._in_context(self.read, worker, kind, reader), None
        except channel.PipeEndError:
            raise
        except BaseException as exc:
            return None, without_our_frame(exc)

    def was_last_of(self, worker: WorkerProcess) -> bool:
        """Return whether *worker* has reached the `max_calls` of this call."""
        max_calls = self.options.max_calls
        return max_calls is not None and worker.calls >= max_calls

    def try_claim_end(self) -> bool:
        """Keep others from killing the worker because of this call. Return `False` if somebody has."""
        return self._ended.acquire(blocking=False)

    def finish(self, value: Any, error: BaseException | None) -> None:
        """Write the future, which wakes the caller."""
        assert self.future is not None, "set before it was handed over"
        self.future.write(value, error)

    def fail(self, error: BaseException) -> None:
        self.finish(None, LoopEndedError("the interpreter is exiting") if pool.exiting else error)

    # For the caller

    def expect_handle(self) -> None:
        """Say that it is started: its handle may claim it from now on."""
        self._start = Start()
        self.has_handle = True

    def prevent_start(self) -> bool:
        """Keep the call from beginning, from any thread. Return `False` if a worker has it."""
        if not self._start.prevent():
            return False
        _slots.pass_through()  # `expect` does the same: either we see the future, or it sees what we have done
        if self.future is not None:
            self.finish(None, None)
        return True

    def is_prevented(self) -> bool:
        """Return whether it will never begin."""
        return self._start.is_prevented()

    def has_begun(self) -> bool:
        """Return whether a worker has it."""
        return self._start.has_begun()

    def send_directly(self, leased: list[WorkerProcess]) -> bool:
        """Move an idle worker to *leased*, and send it the call if it is small. Return whether it was sent."""
        if not DIRECT or self._arguments is not None or self.has_handle:
            return False
        pool.take_any(leased)
        if not leased:
            return False
        worker = leased[0]
        message = self.request
        if self.levels != worker.levels or self.initializer is not None:
            message = worker.message(self)
        if sum(map(len, message)) > min(worker.room, OFF_LOOP_BYTES):
            return False
        data = message[0] if len(message) == 1 else b"".join(message)
        try:
            channel.write_once(worker.into, data, self._sent)
        except OSError as exc:
            if channel.is_broken(exc):  # the worker has died: its thread handles that
                return False
            raise
        worker.levels = self.levels
        worker.calls += 1
        worker.call = self
        self.note_begin_elsewhere()
        return True

    def receive(self, leased: list[WorkerProcess]) -> Received | None:
        """Read once. If the answer is complete, give the worker back and return the arguments for `read`; else None."""
        worker = leased[0]
        received = self._received
        try:
            channel.read_once(worker.out, received)
        except BlockingIOError:  # libuv (uvloop) makes each pipe that it waits for non-blocking
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
        worker.call = None
        if self.options.max_calls is not None and self.was_last_of(worker):
            worker.retire()
            leased.clear()
        else:
            worker.used = time.monotonic()
            pool.return_from(leased)
        return worker, kind, data[2 * channel.HEADER_BYTES :]

    def read(self, worker: WorkerProcess, kind: bytes, data: bytes | channel.Reader) -> Any:
        """Read the answer from *data*: return the value, or raise the error."""
        self.answer_bytes = len(data) if isinstance(data, bytes) else data.left
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
        """Set what `hand_over` needs: *future* gets the outcome.

        *elsewhere*, if given, calls a function in the caller's own thread.
        """
        if self.future is None:
            self._context = context = copy_context()
            context.run(_limits.current_slot.set, self.slot)
            self._taken_over, self._ended = Lock(), Lock()
            if not self.has_handle:
                self._start = Start()
        if elsewhere is not None:
            self._elsewhere = lambda handle: elsewhere(lambda: self._in_context(handle))
        self.future = future
        if self.has_handle:
            _slots.pass_through()
            if self._start.is_prevented():
                self.finish(None, None)

    def hand_over(self, leased: list[WorkerProcess]) -> None:
        """Have a worker's thread run the call: the worker is the one in *leased*, an idle one, or a new one."""
        try:
            self._hand_over(leased)
        except BaseException:  # raised by a signal handler, say: the worker must not be lost
            if leased:
                self._hand_over(leased)
            raise

    def _hand_over(self, leased: list[WorkerProcess]) -> None:
        self.sent = bool(self._sent)
        if not leased:
            pool.take_any(leased)
        if not leased:
            self.since = time.monotonic()
            pool.submit(self)
            return
        if self.sent:
            leased[0].levels = self.levels  # a signal handler may have raised before `send_directly` set it
            self.claim(leased[0])
        leased[0].hand_over(self)
        leased.clear()

    def cancel(self) -> None:
        """Kill the call if the options say so; otherwise keep it from beginning. The caller was cancelled."""
        if self.options.kill_on_cancel:
            self.kill()
        else:
            self.prevent_start()

    def kill(self) -> None:
        """End the call and its worker at once. If its arguments are being pickled, it ends after that."""
        self.killed = True
        if not self.prevent_start() and self._arguments is None and self.try_claim_end():
            assert self._worker is not None, "it has claimed the call"
            self._worker.kill()
            self.finish(None, None)
