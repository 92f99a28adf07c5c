"""One call in a worker process, and how async code and sync code wait for it.

A small call to an idle worker needs nobody else: its caller writes to the one pipe, and reads from the other one as soon
as there is something to read. All else goes by the worker's thread: calls that need a new worker, large calls and
answers, calls with log records, deaths, and what is left to be done when a caller is cancelled or interrupted.

    where the call is              a cancellation, or Ctrl-C             its timeout, or `kill_on_cancel`
    waits for a slot, a worker     it never begins                       the same
    with the caller, sent          its thread takes over; wait for it    its thread takes over; the worker is killed
    with the thread, sent          wait for it                           the worker is killed
    answered                       raise what came                       the same

Guarantees: what has been sent and what has come is known at each bytecode, whatever signal handlers raise
(`channel.py`), and so is who owns the worker (`_pool.py`). Who wakes a caller: the worker, at its pipe; the thread, at
the one-shot answer; the end of either. The arguments are pickled before the call is queued; the call neither returns
nor raises before that is done.
"""

from __future__ import annotations

import sys
import threading
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar, final

from anyio import CancelScope, Event, from_thread, get_cancelled_exc_class, to_process, wait_readable

from ..._worker import call as outcomes
from ..._worker import channel, logs
from .. import _slots
from .._calls import Answer, SyncAnswer, without_our_frame
from .._checks import name_of
from .._errors import CallTimeoutError, LoopEndedError
from .._eventloop import running_background, submit_to_background
from .._loops import current_loop, running_loop
from .._synccalls import call_from_sync, lending, thread
from .._threadstart import start_thread
from .._waits import DefaultLimiter, Timeout, outlast, set_from_anywhere, until_held, wait_for_end, within
from ._output import settings
from ._packing import pack, pack_initializer, read_payload, to_error
from ._pool import pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio import CapacityLimiter

    from .._calls import Loop
    from ._worker import WorkerProcess

T = TypeVar("T")

# Whether callers talk to workers themselves. Not on Windows, where no event loop waits for a pipe, and Ctrl-C does not
# interrupt who reads from one: there, every call goes by the worker's thread.
DIRECT = sys.platform != "win32"
_BEGUN: Final = channel.BEGUN_FRAME
_HEADER: Final = channel.HEADER


LOOK_UP_SECONDS: Final = 1.0  # how often a thread that waits can be interrupted on Windows; arbitrary


class _OutOfTheOrdinaryError(Exception):
    """Raised where more than a small answer has come: the worker's thread sees to that."""


class ProcessOptions(NamedTuple):
    """What `in_processpool` takes; it says what each one means."""

    limiter: CapacityLimiter | None = None
    kill_on_cancel: bool = False
    timeout: float | None = None
    initializer: Callable[[], object] | None = None
    max_calls: int | None = None


NO_OPTIONS: Final = ProcessOptions()
default_limiter = DefaultLimiter(to_process.current_default_process_limiter)


@final
class ProcessCall:
    """One call in a worker process. *helper* is the name to use in error messages."""

    initializer: bytes | None = None
    killed = False  # whether nobody wants its answer any more, nor its worker to live on
    sent = False  # whether it was sent before the thread got it
    tries = 0  # how many workers have ended before they began it
    _timeout: Timeout | None = None
    _slot: _slots.Slot | None = None
    _context: Context | None = None  # in which its log records are handled, and its answer is unpickled
    _worker: WorkerProcess | None = None  # which runs it, as far as its thread knows

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
        self._helper = helper
        self._func = func
        self._options = options
        if options is not NO_OPTIONS:
            if options.timeout is not None:
                self._timeout = Timeout(options.timeout, name_of(func))
            if options.initializer is not None:
                self.initializer = pack_initializer(options.initializer)
        request = pack(func, args, kwargs, helper, at_once=at_once)
        self._arguments = None if request is not None else (args, kwargs)  # that are still to be pickled
        self.request: list[bytes] = request or []
        self.levels = logs.levels() if settings.logs else None
        self._sent: list[int] = []  # what the caller has written
        self._received: list[bytes] = []  # what the caller has read
        self._claimed = threading.Lock()  # taken by who sends the call, or sees to it that nobody does
        self._taken_over = threading.Lock()  # taken by the thread that it is handed over to

    @property
    def name(self) -> str:
        return name_of(self._func)

    # ---- for the worker's thread

    def take_over(self) -> bool:
        """Return whether this is the first thread that gets it."""
        return self._taken_over.acquire(blocking=False)

    def claim(self, worker: WorkerProcess) -> bool:
        """Let *worker* have the call, unless it has been withdrawn."""
        self._worker = worker
        return self._claimed.acquire(blocking=False)

    def return_claim(self) -> None:
        """Let another worker have the call."""
        self.sent = False
        self._received.clear()
        if self._claimed.locked():
            self._claimed.release()
        self._taken_over.release()

    def received(self) -> bytes:
        return b"".join(self._received)

    def run_in_context(self, func: Callable[..., T], *args: object) -> T:
        """Call what the user may have written, in the context of the caller, whose slot serves what that calls."""
        slot, context = self._slot, self._context
        assert slot is not None and context is not None, "set before it was handed over"
        _slots.lend(slot)
        try:
            return context.run(func, *args)
        finally:
            _slots.take_back(slot)

    def outcome(self, worker: WorkerProcess, kind: bytes, reader: channel.Reader) -> tuple[Any, BaseException | None]:
        """Return the value or the error that comes next."""
        try:
            return self.run_in_context(self._read, worker, kind, reader), None
        except channel.PipeEndError:
            raise
        except BaseException as exc:
            return None, without_our_frame(exc)

    def was_last_of(self, worker: WorkerProcess) -> bool:
        """Return whether *worker* has served its time."""
        max_calls = self._options.max_calls
        return max_calls is not None and worker.calls >= max_calls

    def finish(self, value: Any, error: BaseException | None) -> None:
        """Wake the caller, unless that has gone away."""
        self._answer.write(value, error)

    def fail(self, error: BaseException) -> None:
        self.finish(None, LoopEndedError("the interpreter is exiting") if pool.exiting else error)

    # ---- for both kinds of callers

    def _read(self, worker: WorkerProcess, kind: bytes, reader: channel.Reader) -> Any:
        """Return the value that comes next, or raise the error."""
        payload = read_payload(reader, self._func)
        failed_early = kind != channel.VALUE and payload[0] == outcomes.INITIALIZER_ERROR
        if self.initializer is not None and not failed_early:
            worker.initialized.add(self.initializer)
        if kind == channel.VALUE:
            return payload
        error = to_error(payload, self._func, self._helper)
        try:
            raise error
        finally:
            del error, payload

    def _send_directly(self, lease: list[WorkerProcess]) -> bool:
        """Send the call to an idle worker, which is in *lease* then, if both can be had at once."""
        if not DIRECT or len(self.request) > 1:
            return False
        pool.take_any(lease)
        if not lease:
            return False
        worker = lease[0]
        message = worker.message(self)
        data = message[0] if len(message) == 1 else b"".join(message)
        if len(data) > channel.ATOMIC:
            return False
        try:
            channel.write_once(worker.pipes[0], data, self._sent)
        except OSError as exc:
            if channel.is_broken(exc):  # it has died: its thread sees to that
                return False
            raise
        worker.levels = self.levels
        worker.calls += 1
        return True

    def _complete(self, worker: WorkerProcess) -> tuple[bytes, channel.Reader] | None:
        """Return what has come, if it is an answer and no more. `None` if there is more to come."""
        received = self._received
        data = received[0] if len(received) == 1 else b"".join(received)
        if not data.startswith(_BEGUN) or not received[-1]:
            raise _OutOfTheOrdinaryError
        rest = len(data) - len(_BEGUN)
        if rest >= _HEADER.size:
            kind, size = _HEADER.unpack_from(data, len(_BEGUN))
            if size > channel.CHUNK_BYTES or kind not in (channel.VALUE, channel.OUTCOME):
                raise _OutOfTheOrdinaryError
            if rest == _HEADER.size + size:
                reader = channel.Reader(worker.pipes[1], data[len(_BEGUN) + _HEADER.size :])
                reader.left = size
                return kind, reader
        return None

    def _leave_directly(self, lease: list[WorkerProcess]) -> None:
        """Give the worker back, which has answered."""
        if self._options.max_calls is not None and self.was_last_of(lease[0]):
            lease.pop().retire()
        else:
            pool.return_from(lease)

    def _hand_over(self, lease: list[WorkerProcess], answer: Answer[Any]) -> None:
        """Have a thread see to the call: that of the worker in *lease*, or one that the pool knows."""
        self._answer = answer
        if self._context is None:
            self._context = context = copy_context()
            if self._slot is not None:
                context.run(_slots.current_slot.set, self._slot)
        self.sent = bool(self._sent)
        if lease:
            if self.sent:
                lease[0].levels = self.levels  # as it may not know yet
                self.claim(lease[0])
            lease[0].hand_over(self)
            lease.clear()
        else:
            pool.submit(self)

    def _withdraw(self) -> bool:
        """See to it that nobody begins the call. Return whether that is so."""
        if not self._claimed.acquire(blocking=False):
            return False
        self._answer.write(None, None)
        return True

    def _kill(self) -> None:
        """Have the call end at once, with its worker."""
        self.killed = True
        if not self._withdraw():
            if self._worker is not None:
                self._worker.kill()
            self._answer.write(None, None)

    def _cancel(self) -> None:
        """Do what is to be done when nobody wants the answer any more."""
        if self._options.kill_on_cancel:
            self._kill()
        else:
            self._withdraw()

    # ---- async code

    def run(self) -> Awaitable[Any]:
        """Make the call from async code, and return its value."""
        return lending(within(self._timeout, self._run))

    async def _run(self, timer: CancelScope | None) -> Any:
        loop = current_loop()
        await loop.checkpoint_if_cancelled()
        if self._arguments is not None:
            await self._pack_in_thread(loop)
        slot = self._slot = _slots.acquire(self._options.limiter or default_limiter.of(loop))
        try:
            if not slot.held:
                await until_held(slot, loop)
            return await self._run_in_slot(loop, timer)
        finally:
            _slots.release(slot)

    async def _run_in_slot(self, loop: Loop, timer: CancelScope | None) -> Any:
        lease: list[WorkerProcess] = []
        cancellation: BaseException | None = None
        try:
            if self._send_directly(lease):
                worker = lease[0]
                frames = worker.pipes[1]
                while True:
                    await wait_readable(frames)
                    channel.read_once(frames, self._received)
                    complete = self._complete(worker)
                    if complete is not None:
                        self._leave_directly(lease)
                        return self._read(worker, *complete)
        except _OutOfTheOrdinaryError:
            pass
        except BaseException as exc:
            if not lease:
                raise
            cancellation = exc
        event = Event()
        answer: Answer[Any] = Answer(lambda: set_from_anywhere(loop, event))
        try:
            self._hand_over(lease, answer)
            if cancellation is None:
                await wait_for_end(event, self._cancel, timer, self._kill)
            else:
                cancellation = await self._see_to_its_end(event, cancellation, timer)
                raise cancellation
        finally:
            del cancellation
        return answer.read()

    async def _see_to_its_end(
        self, event: Event, cancellation: BaseException, timer: CancelScope | None
    ) -> BaseException:
        """Do what `wait_for_end` does when it is cancelled. Return what to raise."""
        try:
            if not isinstance(cancellation, get_cancelled_exc_class()):  # of a signal handler
                return cancellation
            self._cancel()
            cancellation = await outlast(event, cancellation, timer)
            if not event.is_set():
                self._kill()
            return cancellation
        finally:
            del cancellation

    async def _pack_in_thread(self, loop: Loop) -> None:
        """Pickle large arguments while the loop goes on. Who wakes us: the thread."""
        event = Event()
        made: Answer[list[bytes]] = Answer(lambda: set_from_anywhere(loop, event))
        start_thread(copy_context().run, "unfazed-pickling", self._pack, made)
        await wait_for_end(event, bool)  # cancelled or not, for the caller may change them afterwards
        self.request = made.read()
        self._arguments = None

    def _pack(self, made: Answer[list[bytes]]) -> None:
        assert self._arguments is not None, "they are still to be pickled"
        try:
            pieces = pack(self._func, *self._arguments, self._helper, at_once=False)
        except BaseException as exc:
            made.write(None, without_our_frame(exc))
        else:
            made.write(pieces, None)

    # ---- sync code

    def wait_for(self, helper: str, instead: str) -> Any:
        """Make the call from sync code, and return its value.

        A thread that belongs to an event loop asks that loop, whose task may be cancelled; any other one calls itself.
        """
        if running_loop() is not None or _slots.is_interrupted() or _belongs_to_loop():
            return call_from_sync(self.run, self._func, helper, instead, submit_to_background)
        limiter = self._options.limiter or _background_limiter()
        if limiter is None:
            limiter = call_from_sync(_ask_for_limiter, self._func, helper, instead, submit_to_background)
        slot = self._slot = _slots.acquire(limiter)
        try:
            if not slot.held:
                self._wait_for_slot(slot)
            return self._wait_in_slot()
        finally:
            _slots.release(slot)

    def _wait_for_slot(self, slot: _slots.Slot) -> None:
        """Wait until *slot* has been granted. Who wakes us: whoever gives one back, or the watcher."""
        granted = SyncAnswer[None]()
        slot.wake = lambda: granted.write(None, None)
        while not slot.held:  # either it was granted before, or whoever grants it wakes us
            self._acquire(granted.done)

    def _acquire(self, lock: threading.Lock) -> bool:
        """Wait for *lock*, but not for ever: on Windows, Ctrl-C does not interrupt that. Raise when the time is up."""
        left = LOOK_UP_SECONDS if self._timeout is None else min(LOOK_UP_SECONDS, self._timeout.left())
        acquired = lock.acquire(timeout=left)
        if not acquired and self._timeout is not None and not self._timeout.left():
            raise self._timeout.error()
        return acquired

    def _wait_in_slot(self) -> Any:
        lease: list[WorkerProcess] = []
        answer: SyncAnswer[Any] = SyncAnswer()
        try:
            if self._timeout is None and self._send_directly(lease):
                worker = lease[0]
                while True:
                    channel.read_once(worker.pipes[1], self._received)
                    complete = self._complete(worker)
                    if complete is not None:
                        self._leave_directly(lease)
                        return self._read(worker, *complete)
        except _OutOfTheOrdinaryError:
            pass
        except BaseException:  # Ctrl-C, or what another signal handler raised; a second one goes through
            if lease:
                self._hand_over(lease, answer)
                self._see_to_its_end_in_sync(answer)
            raise
        try:
            self._hand_over(lease, answer)
            while not answer.stands:
                self._acquire(answer.done)
        except CallTimeoutError:
            self._kill()
            raise
        except BaseException:  # as above
            self._see_to_its_end_in_sync(answer)
            raise
        return answer.read()

    def _see_to_its_end_in_sync(self, answer: SyncAnswer[Any]) -> None:
        """Wait for what has begun, or kill it; keep from beginning what has not."""
        self._cancel()
        try:
            while not answer.stands:
                self._acquire(answer.done)
        except CallTimeoutError:
            self._kill()


def _background_limiter() -> CapacityLimiter | None:
    """Return the limiter of the background event loop, if a call there has asked for it before."""
    owner = running_background()
    loop = owner and owner._loop
    return loop and default_limiter.known(loop)


async def _ask_for_limiter() -> CapacityLimiter:
    return default_limiter.of(current_loop())


def _belongs_to_loop() -> bool:
    """Return whether this is the worker thread of an event loop: ours, anyio's or trio's."""
    if thread.worker is not None:
        return True
    if thread.forked or threading.current_thread() is threading.main_thread():
        return False
    checks: list[Callable[[], object]] = [from_thread.check_cancelled]
    if "trio" in sys.modules:
        import trio

        checks.append(trio.from_thread.check_cancelled)
    for check in checks:
        try:
            check()
        except RuntimeError:
            continue
        except BaseException:  # it is, and has been cancelled: that loop sees to it
            return True
        return True
    return False
