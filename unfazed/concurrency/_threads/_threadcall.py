"""One call in a worker thread: how it gets its slot, begins and ends.

The life of a `ThreadCall`. "loop" is the thread whose loop waits for the call, "worker" the thread that runs it.

    state        how to tell                        thread takes it   caller is cancelled   wait ends     function ends
    -----------  ---------------------------------  ----------------  --------------------  ------------  -------------
    queued       `slot.held` is false               -                 ended (loop)          -             -
    handed over  `slot.held`, `_start` is open      running           ended (loop)          -             -
    running      `_start` has begun                -                 cancelled             -             ended (loop)
    cancelled    the loop has claimed `outcome`     -                 cancelled             abandoned     ended (worker)
    abandoned    in `_abandoned`                    -                 -                     -             ended (worker)
    bypassing    a worker runs `run_bypassing`      running, or       ended (worker)        -             ended (worker)
                                                    queued: no slot
    ended        `_give_back` has been called       -                 -                     -             -

"thread takes it": a thread is about to run it. "wait ends": the loop waits no longer for a cancelled call, because its
timeout is over, its options say so, a signal handler raised, or the loop is gone. A call with `called_back_in_the_task`
(trio) goes from running to ended: anyio's own shield makes the loop wait.

All calls end in `_give_back`, which returns the slot and the context. In brackets: who calls it. While a sync caller
waits for the outcome, the worker always does, before it wakes the caller. A call that ends as queued or handed over
never runs its function. What the function of a cancelled or abandoned call returns or raises is dropped.

Guarantees:

- Either the worker begins the call or somebody else prevents that, perhaps by its handle: `Start` decides.
- Either the worker writes the outcome or the loop claims it: `OneShotFuture` decides.
- What a call takes it gives back, even if a signal handler raises at any bytecode of `_run`, and not before its
  function has ended. So `_run` has two `finally`: the first may be interrupted.

Assumptions: `set.add` and `set.discard` are atomic, and whoever comes second sees what the first did before. So
`_abandoned` needs no lock. A forked child starts with none.
"""

from __future__ import annotations

from functools import partial
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from anyio import CancelScope, to_thread

from .._core import _limits, _slots
from .._core._calls import UserCall, totals
from .._core._checks import async_function_error, close_coroutine, explain, name_of
from .._core._contexts import ContextLease
from .._core._futures import OneShotFuture, Start, without_our_frame
from .._core._lifetime import in_forked_child
from .._core._observing import observers
from .._eventloops._limiters import NO_LIMIT, thread_limiter
from .._eventloops._loops import forget_library, running_loop
from .._eventloops._timeouts import Timeout
from .._eventloops._waiting import cancelled_classes, set_from_anywhere, take_or_queue, wait_shielded
from .._eventloops._workers import Worker, lending, thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from anyio import CapacityLimiter

    from .._core._loop import Event, Loop
    from .._core._observing import CallOutcome

T = TypeVar("T")


class ThreadOptions(NamedTuple):
    """The options of `in_threadpool`, which documents them."""

    limiter: CapacityLimiter | None = None
    abandon_on_cancel: bool = False
    timeout: float | None = None
    context: Context | None = None


NO_OPTIONS: Final = ThreadOptions()
returned: Final = totals["threadpool"]["returned"]


class ThreadCall(Worker, UserCall, Generic[T]):
    """One call in a worker thread. It is also what that thread knows, its `Worker`. Error messages name *helper*."""

    place = "threadpool"
    slot: _limits.Slot | None = None
    outcome: OneShotFuture[T]  # made once it has its slot, without `on_done`: anyio wakes the loop
    must_hand_over = False  # whether we wait for the thread and cancel its calls ourselves on trio too, not anyio
    _timeout: Timeout | None = None
    limiter: CapacityLimiter | None = None  # set by `may_bypass`
    _lease: ContextLease | None = None  # of the context that the options name
    abandoned: float | None = None  # time.monotonic() when it was abandoned
    _is_late = False  # whether its time was up, and its function had not ended
    _failed = False  # whether its function has raised
    _ended: Event | None = None  # set by the worker of a cancelled call; made by the loop, which waits for it
    _sync_caller: OneShotFuture[OneShotFuture[T]] | None = None  # what the worker writes, ahead of the loop

    def __init__(
        self,
        helper: str,
        func: Callable[..., T],
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        options: ThreadOptions = NO_OPTIONS,
    ) -> None:
        self.helper = helper
        self.func: Callable[..., T] = func
        self._args = args
        self._kwargs = kwargs
        self._options = options
        if options.timeout is not None:
            self._timeout = Timeout(options.timeout, name_of(func))
        self._start = Start()

    def answer_directly(self, sync_caller: OneShotFuture[OneShotFuture[T]]) -> None:
        """Have the worker write the outcome to *sync_caller*, ahead of the loop."""
        self._sync_caller = sync_caller

    def may_bypass(self, loop: Loop) -> bool:
        """Return whether a sync caller's call needs nothing that only *loop* can do, such as wait for a slot."""
        self.limiter = self._options.limiter or thread_limiter.known(loop)
        return self.limiter is not None and self._options[1:] == NO_OPTIONS[1:] and _slots.seems_free(self.limiter)

    def run_bypassing(self, loop: Loop) -> bool:
        """Run the call in this thread, a worker of *loop*, if a slot is free. Return whether one was."""
        assert self.limiter is not None, "found by `may_bypass`"
        slot = _slots.acquire(self.limiter)
        if not slot.held:
            return False
        self._sync_caller = None  # whoever called us writes it after this
        forget_library()
        try:
            self.work_in(loop, slot)
        finally:
            self._give_back()
        return True

    def work_in(self, loop: Loop, slot: _limits.Slot) -> None:
        """Run the call in this thread, a worker of *loop*, with *slot*, which has been taken for it."""
        self.loop, self.slot = loop, slot
        slot.call = self
        self.outcome = OneShotFuture()
        self.work()

    @property
    def stops_when_cancelled(self) -> bool:
        """Whether a call that runs is abandoned when it is cancelled."""
        return self._options.abandon_on_cancel

    def prevent_start(self) -> bool:
        """Keep the worker from running the function. Return `False` if it has begun."""
        return self._start.prevent()

    def is_prevented(self) -> bool:
        """Return whether the worker will never run the function."""
        return self._start.is_prevented()

    def has_begun(self) -> bool:
        """Return whether the worker has begun to run the function."""
        return self._start.has_begun()

    def tell_cancelled(self) -> None:
        """Cancel the async calls that the worker waits for."""
        self.cancel()

    def run(self) -> Awaitable[OneShotFuture[T]]:
        """Run the call in a worker thread of the current loop, and return its outcome.

        The outcome is not read here: Python lets no `StopIteration` out of async code.

        Cancelled before the function has begun, it never begins. Cancelled later, the async calls that the worker waits
        for are cancelled too, and the worker is waited for, because a thread cannot be ended. The wait ends with the
        timeout, or at once if the call may be abandoned.
        """
        timeout = self._timeout
        running = self._run(None) if timeout is None else timeout.bound(self._run, self._what_it_waits_for)
        return running if thread.worker is None else lending(running)

    async def _run(self, timer: CancelScope | None) -> OneShotFuture[T]:
        loop = self.loop = running_loop()
        assert loop is not None, "async code runs in a loop"
        limiter, abandon_on_cancel, _, context = self._options
        # Slot and lease are made before they are taken, so that they can be given back if taking is interrupted.
        slot = self.slot = _limits.Slot(limiter or thread_limiter.of(loop))
        slot.call = self
        slot.awaited_in = loop.native
        if observers and self.waiter is None:
            self.introduce()
        if context is not None:
            self._lease = ContextLease(context, name_of(self.func))
        in_the_task = (
            loop.calls_back_in_the_task and timer is None and not abandon_on_cancel and not self.must_hand_over
        )
        try:
            try:
                if self._lease is not None:
                    self._lease.take()
                granted = take_or_queue(slot, loop)
                if granted is not None:
                    await granted.wait()
                    _slots.require(slot)
                self.outcome = OneShotFuture()
                cancellation: BaseException | None = None
                try:
                    if in_the_task:
                        self.called_back_in_the_task = True
                        await to_thread.run_sync(self.work, limiter=NO_LIMIT)
                        await loop.checkpoint_if_cancelled()
                    else:
                        await self.hand_over()
                except BaseException as exc:
                    if self.prevent_start():
                        raise
                    cancellation = exc
                if cancellation is not None:
                    try:
                        raise await self._wait_for_worker(cancellation, timer)
                    finally:
                        del cancellation
            finally:
                self._leave()
        except BaseException as exc:
            self._is_late = timer is not None and timer.cancel_called
            if self.waiter is None:
                self.note_end(exc)
            raise
        finally:
            self._leave()  # again: a signal handler may have raised in the first `finally`
        if self.waiter is None:
            if self._failed or observers:
                self.note_end(self.outcome.error)
            else:
                next(returned)
        return self.outcome

    @property
    def has_timeout(self) -> bool:
        return self._timeout is not None

    def outcome_of(self, exc: BaseException) -> CallOutcome:
        if self._is_late:
            return "timed out"
        return "abandoned" if self.abandoned is not None else super().outcome_of(exc)

    def _what_it_waits_for(self) -> str:
        """Return what to say if the function has never begun when the time is up."""
        if self.has_begun():
            return ""
        return (self.slot and self.slot.what_it_waits_for()) or "a thread"

    def hand_over(self) -> Awaitable[None]:
        """Have a thread call `work`, and wait for that. If we are cancelled, stop waiting at once."""
        return to_thread.run_sync(self.work, abandon_on_cancel=True, limiter=NO_LIMIT)

    async def _wait_for_worker(self, cancellation: BaseException, timer: CancelScope | None) -> BaseException:
        """Wait for the running worker despite *cancellation*, at most until *timer* ends. Return what to raise.

        anyio's own wait is not enough: asyncio's `task.cancel()` ignores its shield.
        """
        try:
            if self._claim():
                self.cancel()
                if not self._options.abandon_on_cancel:
                    assert self._ended is not None, "made by `_claim`"
                    cancellation = await wait_shielded(self._ended, cancellation, timer)
            return cancellation
        finally:
            del cancellation

    def _claim(self) -> bool:
        """Keep the worker from writing the outcome. Return `False` if it has, or if we have claimed it before."""
        if self._ended is None:
            self._ended = self.own_loop().new_event()  # before the claim: the worker sets it after that
        return self.outcome.try_claim()

    def _abandon(self, slot: _limits.Slot) -> None:
        """Wait no longer for the worker. It may be done twice."""
        self._claim()
        if slot.ended:  # just now: either the outcome is written, or the worker gives back the slot
            return
        self.abandoned = self.abandoned or monotonic()
        slot.abandoned = True
        _abandoned.add(self)
        if slot.ended:  # perhaps before we added the call: then the worker does not remove it
            _abandoned.discard(self)
        _warn_if_all_are_abandoned(slot)

    def work(self) -> None:
        """Run the call, in the worker thread."""
        if not self._start.begin():
            return
        assert self.slot is not None, "taken before the worker begins"
        self.slot.awaited_in = None
        _limits.current_slot.set(self.slot)
        thread.worker = self
        value: T | None = None
        error: BaseException | None = None
        try:
            self.thread, self.began = get_ident(), monotonic()
            if observers and self.observed is not None:
                self.observed.tell_begun()
            if self._lease is None:
                value = self.func(*self._args, **self._kwargs)
            else:
                value = self._lease.run(partial(self.func, *self._args, **self._kwargs), forget_library)
            if close_coroutine(value):
                raise async_function_error(self.func, self.helper)
        except BaseException as exc:
            self._failed = True
            error = without_our_frame(exc)
            if self._kwargs and error.__traceback__ is None:  # the function has not even begun, or is a builtin one
                explain(error, self.helper, self.func, self._kwargs)
        thread.worker = None
        self.slot.ended = True
        if self._sync_caller is not None:
            self._give_back()  # before its caller goes on. Otherwise the loop does it, which is faster
        if not self.outcome.write(value, error):
            self._end_cancelled()
        elif self._sync_caller is not None and not isinstance(error, cancelled_classes()):
            self._sync_caller.write(self.outcome, None)  # the loop tells of a cancellation: it may be its own end
        del value, error  # the traceback of the error refers to the function's frame, and that one to ours

    def _end_cancelled(self) -> None:
        """End a cancelled or abandoned call, in the worker thread."""
        self._give_back()
        _abandoned.discard(self)
        assert self._ended is not None, "made by the loop before it claimed the outcome"
        set_from_anywhere(self.own_loop(), self._ended)

    def _leave(self) -> None:
        """Give back what the call has taken, or leave that to its worker if its function still runs. In the loop."""
        slot = self.slot
        if slot is not None and not slot.ended and self._start.has_begun():
            self._abandon(slot)
        elif self.abandoned is not None:  # it has ended meanwhile
            _abandoned.discard(self)
        if slot is None or not slot.abandoned:
            self._give_back()

    def _give_back(self) -> None:
        """Give back what the call has taken. It may be called twice."""
        if self.slot is not None:  # pragma: no branch  without one, asking for it has failed
            _slots.release(self.slot)
        if self._lease is not None:
            self._lease.release()


_abandoned: set[ThreadCall[Any]] = set()


def abandoned_calls() -> set[ThreadCall[Any]]:
    """Return the calls whose threads run on though nobody waits for them. From any thread."""
    return _abandoned.copy()


def count_abandoned_threads() -> int:
    """Return how many worker threads still run a function that nobody waits for any more.

    A thread is abandoned if the `timeout` of its call ends, or if a call with `abandon_on_cancel=True` is cancelled. It
    keeps its slot until its function ends. The count is that of the whole process: an `EventLoopThread` and the
    background event loop are included.

    Returns:
        The number of threads.
    """
    return len(_abandoned)


def _warn_if_all_are_abandoned(slot: _limits.Slot) -> None:
    """Log a warning if nothing else can run under the limiter of *slot* any more; only once."""
    limit = slot.limit
    if limit.warned or not limit.is_abandoned():
        return
    limit.warned = True
    import logging  # which is slow to import, and rarely needed

    logging.getLogger("unfazed.concurrency").warning(
        "All slots of a limiter belong to abandoned threads, and calls wait until one of these ends: %s. Give what "
        "they do a timeout of its own, and what must not wait for them a limiter of its own.",
        limit.describe(),
    )


in_forked_child(_abandoned.clear)
