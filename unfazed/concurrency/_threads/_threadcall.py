"""One call in a worker thread: its slot, its start, its end, and what becomes of it when nobody waits any more.

Guarantees: who begins first is decided by trying to take a lock, which is atomic; who abandons or ends first, by
`list.append`, which is too. What the call takes it gives back, whatever a signal handler raises and wherever.
`_abandoned` needs no lock: `set.add` and `discard` are atomic. A forked child starts with none.
"""

from __future__ import annotations

import os
from functools import partial
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

from anyio import CancelScope, Event, to_thread

from .._core import _limits, _slots
from .._core._checks import async_function_error, close_coroutine, name_of
from .._core._contexts import ContextLease
from .._core._futures import OneShotFuture, without_our_frame
from .._eventloops._limiters import NO_LIMIT, DefaultLimiter
from .._eventloops._loops import forget_library, running_loop
from .._eventloops._timeouts import Timeout
from .._eventloops._waiting import set_from_anywhere, wait_for_slot, wait_shielded
from .._eventloops._workers import Worker, lending, thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from anyio import CapacityLimiter

    from .._core._loop import Loop

T = TypeVar("T")


class ThreadOptions(NamedTuple):
    """What `in_threadpool` takes; it says what each one means."""

    limiter: CapacityLimiter | None = None
    abandon_on_cancel: bool = False
    timeout: float | None = None
    context: Context | None = None


NO_OPTIONS: Final = ThreadOptions()


class ThreadCall(Worker, Generic[T]):
    """One call in a worker thread. *helper* is the name to use in error messages."""

    in_a_runner = False  # whether it goes to a thread of its own choice
    _timeout: Timeout | None = None
    limiter: CapacityLimiter | None = None  # where that is looked up before the slot is taken
    _lease: ContextLease | None = None  # of a context that was given
    _abandoned = False  # whether the loop has stopped waiting for the worker
    _ended: Event | None = None  # set where the loop waits for the worker after all
    _waiting: OneShotFuture[OneShotFuture[T]] | None = None  # of a sync caller, to be told by the worker

    def __init__(
        self,
        helper: str,
        func: Callable[..., T],
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        options: ThreadOptions = NO_OPTIONS,
    ) -> None:
        self._helper = helper
        self._func = func
        self._args = args
        self._kwargs = kwargs
        self._options = options
        if options.timeout is not None:
            self._timeout = Timeout(options.timeout, name_of(func))
        self._parting: list[str] = []  # "ended" by the worker, "abandoned" by the loop: which came first
        self._started = Lock()  # taken by the worker when it starts, or by the loop so that it never does
        # Nobody listens, for anyio does the waking. The loop claims it so that what the worker comes to is dropped.
        self.outcome: OneShotFuture[T] = OneShotFuture()

    def answer_directly(self, waiting: OneShotFuture[OneShotFuture[T]]) -> None:
        """Have the worker hand the outcome to a sync caller, ahead of the loop."""
        self._waiting = waiting

    def may_go_past(self, loop: Loop) -> bool:
        """Return whether a sync caller's call needs nothing that *loop* alone can do, such as to wait for a slot.

        On trio, the task that waits for the worker is what cancels the calls that it makes by means of anyio.
        """
        self.limiter = self._options.limiter or _default_limiter.known(loop)
        return (
            self.limiter is not None
            and self._options[1:] == NO_OPTIONS[1:]
            and not loop.calls_back_in_the_task
            and _slots.seems_free(self.limiter)
        )

    def run_here(self, loop: Loop) -> bool:
        """Run the call in this thread, a worker of *loop*, if a slot is still free. Return whether there was one."""
        assert self.limiter is not None, "known, or the call would not have gone past the loop"
        slot = _slots.acquire(self.limiter)
        if not slot.held:
            return False
        self.loop, self.slot = loop, slot
        self._waiting = None  # is told when this has returned
        forget_library()
        try:
            self.work()
        finally:
            self._give_back()
        return True

    def never_begin(self) -> bool:
        """Keep the worker from running the function, unless it has begun."""
        return self._started.acquire(blocking=False)

    def run(self) -> Awaitable[OneShotFuture[T]]:
        """Run the call, from the loop whose worker thread is to do it, and return its outcome.

        Only its reader may raise what the function raised: Python lets no `StopIteration` out of async code.

        Cancelled before the worker has started, it never starts. Cancelled later, the async calls that the worker
        waits for are cancelled as well, and the worker is waited for: it wakes us when it has ended, as there is
        no way to end a thread. What it comes to is dropped then. It is not waited for any longer than the timeout,
        nor at all where that is the option: abandoned, it gives its slot back itself.
        """
        running = self._run(None) if self._timeout is None else self._timeout.bound(self._run)
        return running if thread.worker is None else lending(running)

    async def _run(self, timer: CancelScope | None) -> OneShotFuture[T]:
        loop = self.loop = running_loop()
        assert loop is not None, "async code runs in a loop"
        limiter, abandon_on_cancel, _, context = self._options
        # Made before anything is taken, and given back in two `finally`: a signal handler may raise between any two
        # bytecodes, those of the first one included.
        slot = self.slot = _limits.Slot(limiter or _default_limiter.of(loop))
        self._lease = None if context is None else ContextLease(context, name_of(self._func))
        in_the_task = loop.calls_back_in_the_task and timer is None and not abandon_on_cancel and not self.in_a_runner
        try:
            try:
                if self._lease is not None:
                    self._lease.take()
                if not _slots.take(slot):
                    await wait_for_slot(slot, loop)
                cancellation: BaseException | None = None
                try:
                    if in_the_task:
                        self.called_back_in_the_task = True
                        await to_thread.run_sync(self.work, limiter=NO_LIMIT)
                        await loop.checkpoint_if_cancelled()
                    else:
                        await self.hand_over()
                except BaseException as exc:
                    if self.never_begin():
                        raise
                    cancellation = exc
                if cancellation is not None:
                    try:
                        raise await self._outlive(cancellation, timer)
                    finally:
                        del cancellation
            finally:
                if not self._abandoned:  # pragma: no branch (that always raises)
                    self._give_back()
        finally:
            if not self._abandoned:  # pragma: no branch
                self._give_back()
        return self.outcome

    def hand_over(self) -> Awaitable[None]:
        """Have a thread do the work, and wait for that. Cancelled meanwhile, do not wait for it."""
        return to_thread.run_sync(self.work, abandon_on_cancel=True, limiter=NO_LIMIT)

    async def _outlive(self, cancellation: BaseException, timer: CancelScope | None) -> BaseException:
        """Do on asyncio what anyio's shield does on trio; and on both, what no shield does: wait, but not for ever.

        Return what to raise then.
        """
        self._ended = Event()  # before the claim: a worker that comes second sets it
        try:
            if self.outcome.try_claim():
                try:
                    self.cancel()
                    if not self._options.abandon_on_cancel:
                        cancellation = await wait_shielded(self._ended, cancellation, timer)
                finally:  # though a signal handler raised
                    if not self._ended.is_set():
                        self._abandon()
            return cancellation
        finally:
            del cancellation

    def _abandon(self) -> None:
        """Wait no longer for the worker, which gives its slot back itself, and may have done so by now."""
        self._abandoned = True
        _abandoned.add(self)
        self._parting.append("abandoned")
        if self._parting[0] == "ended":  # before we added it: the worker will not come back to remove it
            _abandoned.discard(self)

    def work(self) -> None:
        """Run the call, in the worker thread."""
        if not self._started.acquire(blocking=False):
            return
        assert self.slot is not None, "taken before the worker starts"
        _limits.current_slot.set(self.slot)
        thread.worker = self
        value: T | None = None
        error: BaseException | None = None
        try:
            if self._lease is None:
                value = self._func(*self._args, **self._kwargs)
            else:
                value = self._lease.run(partial(self._func, *self._args, **self._kwargs), forget_library)
            if close_coroutine(value):
                raise async_function_error(self._func, self._helper)
        except BaseException as exc:
            error = without_our_frame(exc)
        thread.worker = None
        if self._waiting is not None:
            self._give_back()  # before its caller goes on; otherwise the loop does it, which costs it less
        if self.outcome.write(value, error):
            if self._waiting is not None:
                self._waiting.write(self.outcome, None)
        else:
            self._give_back()
            self._parting.append("ended")  # before the removal: if the loop adds us after that, it sees this
            _abandoned.discard(self)
            assert self._ended is not None, "the loop has claimed the outcome to wait for us"
            set_from_anywhere(self.way_back(), self._ended)
        del value, error  # the traceback of the error leads to the function's frame, and that one back to this

    def _give_back(self) -> None:
        """Give back what the call has taken. Doing so twice is harmless."""
        if self.slot is not None:  # pragma: no branch  without one, asking for it has failed
            _slots.release(self.slot)
        if self._lease is not None:
            self._lease.release()


_default_limiter = DefaultLimiter(to_thread.current_default_thread_limiter)
_abandoned: set[ThreadCall[Any]] = set()


def count_abandoned_threads() -> int:
    """Return how many worker threads still run a function that nobody waits for any more.

    A thread is abandoned at the end of a `timeout`, or where a call with `abandon_on_cancel=True` is cancelled. It
    keeps its slot until its function ends. Counted for the whole process; an `EventLoopThread` and the background
    event loop included.

    Returns:
        The number of threads.
    """
    return len(_abandoned)


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_abandoned.clear)
