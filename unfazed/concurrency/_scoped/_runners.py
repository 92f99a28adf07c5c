"""Lanes: one worker thread, or one task, that does one thing after another, in one context.

What one step enters, another can so leave: a context variable's token, a cancel scope, a transaction.

    ThreadLane    a worker thread, for async code
    TaskLane      a task in an event loop, for sync code

Each ends with a last step, which nothing keeps from running: neither slots nor cancellation. An idle lane holds no
slot. Who wakes a lane: its user, with the next step or by leaving; or the end of its loop. A lane is made first and
started by its first step, so that whoever is interrupted by a signal handler has it to leave.

Assumptions: `list.append`, reading `list[0]`, and putting into a `SimpleQueue` are atomic. All but what threads say by
these is for the loop's thread only.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from anyio import Event, get_cancelled_exc_class, to_thread

from .._core import _limits, _slots
from .._core._errors import LoopEndedError
from .._core._futures import OneShotFuture, without_our_frame
from .._core._taskcall import TaskCall
from .._eventloops._limiters import NO_LIMIT
from .._eventloops._loops import current_loop
from .._eventloops._loopthread import submit_here
from .._eventloops._synccalls import GONE_CHECK_SECONDS
from .._eventloops._waiting import cancelled_classes, set_from_anywhere, wait_shielded
from .._threads._threadcall import ThreadCall, ThreadOptions

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from anyio import CapacityLimiter

    from .._core._loop import Loop

S = TypeVar("S")
T = TypeVar("T")

_ENDED = "the event loop of this iterator or context manager has ended, or cancelled it"


class _Step(ThreadCall[T]):
    """One call in the thread of a lane."""

    chooses_its_thread = True

    def __init__(self, runner: ThreadRunner[Any], helper: str, func: Callable[[], T]) -> None:
        super().__init__(helper, func, (), {}, ThreadOptions(runner.limiter))
        self._runner = runner

    async def hand_over(self) -> None:
        await self._runner.hand_over(self.work)


@final
class ThreadRunner(Generic[T]):
    """A worker thread of the current loop, which does one step after another, and *last* when it is left."""

    def __init__(self, helper: str, last: Callable[[], T], limiter: CapacityLimiter | None = None) -> None:
        self._helper = helper
        self._last = last
        self.loop: Loop = current_loop()
        self.limiter: CapacityLimiter = limiter or to_thread.current_default_thread_limiter()
        self._steps: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._first: list[str] = []  # "thread" when that starts, or "never" if the loop says so first
        self._error: BaseException | None = None  # why it never did
        self._waiting: Event | None = None  # of the step that is under way
        self._leaving = False
        # "over" when the last step has been done, "released" when nothing holds the thread any more: whoever comes
        # second sets the event. Not before that: asyncio may drop what is left when its last task has ended.
        self._ends: list[str] = []
        self._ended = Event()
        self._outcome: OneShotFuture[T] | None = None  # of the last step
        self.heard = False  # whether somebody waits for that; said before the lane is left, to be seen by its thread
        self._hold: TaskCall[None] = TaskCall(self._stay, OneShotFuture(self._stayed))

    async def run(self, func: Callable[[], S]) -> S:
        """Run *func* in the thread, when a slot is free, and await its result. Cancelled, it waits as a job does."""
        outcome = await _Step(self, self._helper, func).run()
        return outcome.read()

    def leave(self) -> None:
        """Have the thread do its last step, after the one that is under way. From any thread; returns at once."""
        self._leaving = True
        self._steps.put(None)

    async def left(self) -> T:
        """Wait for the end of the last step, whatever cancels us, and return its result.

        What it raised is raised; or else the cancellation, if there was one.
        """
        cancellation: BaseException | None = None
        try:
            self._have_a_thread()
            await self._ended.wait()
        except BaseException as exc:
            cancellation = exc
        try:
            if cancellation is not None:
                self._have_a_thread()  # if a signal handler has kept us from that, or ended what was to hold it
                self._hold.fail_if_lost()
                cancellation = await wait_shielded(self._ended, cancellation)
                if not self._ended.is_set():  # nobody is there to wait any more
                    raise cancellation
            assert self._outcome is not None, "there is one when it has ended"
            result = self._outcome.read()
            if cancellation is not None:
                raise cancellation
            return result
        finally:
            del cancellation

    async def hand_over(self, work: Callable[[], None]) -> None:
        """Have the thread do *work*, and wait for that."""
        if self._leaving:
            raise LoopEndedError(_ENDED)
        self._have_a_thread()
        loop, event = self.loop, Event()

        def step() -> None:
            work()
            set_from_anywhere(loop, event)

        self._waiting = event
        self._steps.put(step)
        if self._error is None:
            await event.wait()
        if self._error is not None:
            raise self._error

    def _have_a_thread(self) -> None:
        if not self._hold.accepted:
            submit_here(self._hold, copy_context())

    async def _stay(self) -> None:
        """Hold the thread, in a task of its own. Where the end of the loop cancels that, the thread sees it itself."""
        await to_thread.run_sync(self._serve, abandon_on_cancel=True, limiter=NO_LIMIT)

    def _stayed(self) -> None:
        """Note that nothing holds the thread any more, and if it has never started, why."""
        self._first.append("never")
        if self._first[0] != "never":
            self._ends.append("released")
            if self._ends[0] == "over":
                self._ended.set()
            return
        try:
            self._hold.future.read()
        except cancelled_classes():
            self._error = LoopEndedError(_ENDED)
        except BaseException as exc:
            self._error = exc
        self._outcome = OneShotFuture()
        self._outcome.write(None, None)
        self._ended.set()
        if self._waiting is not None:
            self._waiting.set()

    def _serve(self) -> None:
        """Do one step after another, and the last one, in the thread."""
        self._first.append("thread")
        if self._first[0] != "thread":
            return
        while True:
            try:
                step = self._steps.get(timeout=GONE_CHECK_SECONDS)
            except Empty:
                if not self.loop.is_gone():
                    continue
                step = None
            if step is None:
                break
            step()
        thread_call = ThreadCall(self._helper, self._last, (), {})
        thread_call.loop = self.loop
        thread_call.slot = _slots.acquire_now(self.limiter)
        thread_call.work()
        _slots.release(thread_call.slot)
        self._outcome = thread_call.outcome
        heard = self.heard and not self.loop.is_gone()
        self._ends.append("over")
        if self._ends[0] == "released":
            heard = set_from_anywhere(self.loop, self._ended) and heard
        if not heard:
            report(thread_call.outcome)


@final
class TaskRunner(TaskCall[None]):
    """A task that runs one call after another, and *last* when it is left, or cancelled.

    That is told what has cancelled it: the end of the loop, or a scope that one call has entered and another is to
    leave. In the latter case it has an `outcome`, for the user, who comes too late then: where it raised something else
    or says that it took the cancellation for its own.
    """

    def __init__(self, last: Callable[[BaseException | None], Awaitable[object]]) -> None:
        super().__init__(self._serve, OneShotFuture())
        self._last = last
        self._process = os.getpid()  # a forked child has a copy of the loop, which takes calls and never runs
        # All of these are for the loop's thread only.
        self._calls: deque[tuple[TaskCall[Any], _limits.Slot | None]] = deque()
        self._current: TaskCall[Any] | None = None
        self._wake: Event | None = None
        self._leaving = False
        self._left = False  # whether the last step has begun
        self.over = False  # whether it has ended; set in the loop's thread, read in any
        self.outcome: OneShotFuture[None] | None = None

    async def start(self) -> None:
        """Start the task, in the loop that runs here."""
        submit_here(self, copy_context())

    def take(self, call: TaskCall[Any], context: Context) -> None:
        """Have the task run *call*, on behalf of whom *context* says. From any thread; returns at once."""
        if self._process != os.getpid() or self.loop is None:  # or its start was interrupted
            raise LoopEndedError(_ENDED)
        call.set_loop(self.loop)
        self.loop.post(self._take, call, context.run(_limits.current_slot.get))

    def leave(self) -> None:
        """Have the task do its last step after the call that is under way. From any thread; returns at once."""
        if self.loop is not None and not self.over:
            self.loop.post(self._leave)

    async def finish(self, last: Callable[[], Awaitable[T]]) -> T:
        """Do *last*, within a call, instead of the last step."""
        self._leaving = self._left = True
        return await last()

    def _take(self, call: TaskCall[Any], slot: _limits.Slot | None) -> None:
        if call.accepted:
            return
        try:
            died = self.task_has_ended is not None and self.task_has_ended()
            if self.over or died or not self.accepted:  # its start was interrupted
                call.end(LoopEndedError(_ENDED))
            else:
                self._calls.append((call, slot))
                self._wake_up()
            call.accepted = True
        except BaseException as exc:  # of a signal handler
            call.end(without_our_frame(exc))

    def _leave(self) -> None:
        self._leaving = True
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None:
            self._wake.set()

    def _cancel(self) -> None:
        """End the lane: its loop is ending."""
        if self._current is not None:
            self._leaving = True
            self._current.cancel(self._reason)
        else:
            super()._cancel()

    async def _serve(self) -> None:
        """Run one call after another, and the last step, in the task."""
        cancellation: BaseException | None = None
        interruption: BaseException | None = None
        try:
            try:
                await self._run_calls(self._abort or _do_nothing, current_loop())
            except get_cancelled_exc_class() as exc:  # between calls: by the end of the loop, or a scope held open
                cancellation = exc if self._reason is None else None
            except BaseException as exc:  # of a signal handler
                interruption = exc
            if not self._left:
                await self._do_last(cancellation)
            if interruption is not None:
                raise interruption
        finally:
            del cancellation, interruption
            self._end()  # not before the last step: who is told that he comes too late hears of its outcome

    async def run(self, abort: Callable[[], object]) -> None:
        try:
            await super().run(abort)
        finally:  # though a signal handler raised before the first step, or in the end of the last one
            self._end()

    def end(self, error: BaseException | None) -> None:
        self._end()
        super().end(error)

    def _end(self) -> None:
        """Refuse all calls from now on, and those that queue."""
        self.over = True
        for call, _ in self._calls:
            call.end(LoopEndedError(_ENDED))

    async def _run_calls(self, abort: Callable[[], object], loop: Loop) -> None:
        try:
            while not self._leaving:
                if not self._calls:
                    self._wake = Event()
                    await self._wake.wait()
                    continue
                call, slot = self._calls[0]
                self._current = call
                _limits.current_slot.set(slot)
                await call.run(abort)
                self._current = None
                self._calls.popleft()  # not before: if a signal handler has raised, `_end` is to see it
                if call.aborted:
                    loop.forget_cancellation()
                elif call.cancelled_by_others:
                    break
        finally:
            self._leaving = True

    async def _do_last(self, cancellation: BaseException | None) -> None:
        """Do the last step, of whose outcome the user hears if he comes back for it."""
        self._left = True
        error: BaseException | None = None
        try:
            if not await self._last(cancellation):
                return
        except get_cancelled_exc_class():
            raise
        except BaseException as exc:
            error = without_our_frame(exc)
        outcome: OneShotFuture[None] = OneShotFuture()
        outcome.write(None, error)
        if cancellation is None:  # he does not
            report(outcome)
        else:
            self.outcome = outcome
        del error


def _do_nothing() -> None:
    """Stand in for the way to cancel a task that is cancelled already."""


def report(outcome: OneShotFuture[Any]) -> None:
    """Show the error, if it is one, that nobody is there to be told; not where it is the end of the loop."""
    try:
        outcome.read()
    except BaseException as exc:
        if _is_only(exc, (LoopEndedError, *cancelled_classes())):
            return
        threading.excepthook(threading.ExceptHookArgs((type(exc), exc, exc.__traceback__, threading.current_thread())))


def _is_only(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    """Return whether *error* is of these kinds, or a group that has only such members."""
    members: tuple[BaseException, ...] | None = getattr(error, "exceptions", None)
    return isinstance(error, kinds) if members is None else all(_is_only(member, kinds) for member in members)
