"""One task that runs one call after another, in one context, for sync code.

So one call can leave what an earlier one entered: a cancel scope, a task group, a context variable.

The life of a `TaskRunner`. It is a `TaskCall` itself: what that says about its own beginning holds here too.

    state  how to tell           a call comes           it is left      its loop ends        a scope is cancelled
    -----  --------------------  ---------------------  --------------  -------------------  --------------------
    new    `loop` is None        `LoopEndedError`       -               -                    -
    idle   `_current` is None    busy                   last            last                 last
    busy   `_current` is set     the call queues        last, after it  it is cancelled,     it is cancelled,
                                                                        then last            then last
    last   `_last_begun`         the call queues        -               the step is          the step is
                                                                        cancelled            cancelled
    ended  `over`                `LoopEndedError`       -               -                    -

"a scope is cancelled": one that an earlier call entered and a later one is to leave. In "last" the runner does its last
step, once. `finish` does another step instead, within a call. Calls that queue when the runner ends fail with
`LoopEndedError`.

Who wakes the task: the caller, with the next call or by leaving, or the end of the loop.

Guarantee: a runner is made before its task starts. So whoever is interrupted by a signal handler has it and can leave
it.

All state is for the loop's thread, except `over`, which any thread may read, and that of `TaskCall`.
"""

from __future__ import annotations

import os
from collections import deque
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, TypeVar, final

from .._core import _limits
from .._core._blockedloops import current_blocked_loop, refuse_if_blocked
from .._core._errors import LoopEndedError
from .._core._futures import OneShotFuture, without_our_frame
from .._core._lifetime import in_forked_child
from .._core._taskcall import TaskCall
from .._eventloops._loops import current_loop
from .._eventloops._loopthread import submit_here
from .._eventloops._waiting import cancelled_classes
from ._endings import ended_error, show_error

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from .._core._blockedloops import BlockedLoop
    from .._core._calls import UserCall
    from .._core._loop import Event, Loop

T = TypeVar("T")

# Those that have not ended. asyncio keeps tasks weakly: the garbage collector would end the task of a runner along with
# the user of that runner, before its last step.
_started: set[TaskRunner] = set()


@final
class TaskRunner(TaskCall[None]):
    """A task that runs one call after another, and *last* when it is left or cancelled.

    *last* gets the cancellation if a scope was cancelled that a call had entered; otherwise, at the end of the loop for
    one, it gets `None`. In the first case the user comes too late to leave the scope. So if *last* raises anything but
    a cancellation, or returns true because it has suppressed the cancellation, that is the `outcome` for the user. The
    name of the task is *title*.
    """

    def __init__(self, last: Callable[[BaseException | None], Awaitable[object]], title: str = "unfazed") -> None:
        super().__init__(self._serve, OneShotFuture())
        self.title = title
        self._last = last
        self._process = os.getpid()  # in a forked child, the copy of the loop takes calls and never runs
        self._calls: deque[tuple[TaskCall[Any], _limits.Ancestor | None, BlockedLoop | None]] = deque()
        self._current: TaskCall[Any] | None = None
        self._wake: Event | None = None
        self._leaving = False
        self._last_begun = False  # whether the last step has begun
        self.over = False  # whether no calls are taken any more
        self.outcome: OneShotFuture[None] | None = None  # of the last step, if a scope was cancelled

    async def start(self) -> None:
        """Start the task, in the current loop."""
        submit_here(self, copy_context())
        _started.add(self)

    def take(self, call: TaskCall[Any], context: Context) -> None:
        """Have the task run *call*, on behalf of the call of *context*. From any thread; returns at once."""
        if self._process != os.getpid() or self.loop is None:  # not started, because that was interrupted
            raise ended_error()
        blocked_loop = context.get(current_blocked_loop)
        if blocked_loop is not None:
            refuse_if_blocked(self.loop.native, call, blocked_loop)
        call.set_loop(self.loop)
        self.loop.post(self._take, call, context.run(_limits.current_slot.get), blocked_loop)

    def user_calls(self) -> list[UserCall]:
        return [each for call, *_ in self._calls.copy() for each in call.user_calls()]

    def leave(self) -> None:
        """Have the task do its last step, after the current call. From any thread; returns at once."""
        if self.loop is not None and not self.over:
            try:
                self.loop.post(self._leave)
            except LoopEndedError:
                _started.discard(self)
                raise

    async def finish(self, last: Callable[[], Awaitable[T]]) -> T:
        """Do *last* instead of the last step; within a call."""
        self._leaving = self._last_begun = True
        return await last()

    def _take(self, call: TaskCall[Any], slot: _limits.Ancestor | None, blocked_loop: BlockedLoop | None) -> None:
        if call.taken:
            return
        try:
            if self._is_over() or not self.taken:  # not begun, because that was interrupted
                call.end(ended_error())
            else:
                self._calls.append((call, slot, blocked_loop))
                self._wake_up()
            call.task_has_ended = self._is_over
            call.taken = True
        except BaseException as exc:  # raised by a signal handler
            call.end(without_our_frame(exc))

    def _is_over(self) -> bool:
        return self.over or self.has_no_task()

    def _leave(self) -> None:
        self._leaving = True
        self._wake_up()

    def _wake_up(self) -> None:
        if self._wake is not None:
            self._wake.set()

    def _cancel(self) -> None:
        """End the runner, because its loop ends."""
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
            except GeneratorExit:  # the loop was closed before, and nothing can be awaited any more
                raise
            except cancelled_classes() as exc:  # between calls: the loop ends, or a scope was cancelled
                cancellation = exc if self._reason is None else None
            except BaseException as exc:  # raised by a signal handler
                interruption = exc
            if not self._last_begun:
                await self._do_last(cancellation)
            if interruption is not None:
                raise interruption
        finally:
            del cancellation, interruption
            self._end()  # after the last step: whoever is refused by this may read its outcome

    async def run(self, abort: Callable[[], object]) -> None:
        try:
            await super().run(abort)
        finally:  # again: a signal handler may have raised before `_serve` began, or in its `finally`
            self._end()

    def end(self, error: BaseException | None, value: None = None) -> None:
        try:
            self._end()
        finally:
            super().end(error, value)

    def _end(self) -> None:
        """Refuse the calls that queue, and all that come."""
        self.over = True
        for call, *_ in self._calls:
            call.end(ended_error())
        _started.discard(self)

    async def _run_calls(self, abort: Callable[[], object], loop: Loop) -> None:
        while not self._leaving:
            if not self._calls:
                self._wake = loop.new_event()
                await self._wake.wait()
                continue
            call, slot, blocked_loop = self._calls[0]
            self._current = call
            _limits.current_slot.set(slot)
            current_blocked_loop.set(blocked_loop)
            if self._reason is not None:
                call.expect_the_end(self._reason)
            before = loop.cancellations()
            await call.run(abort)
            self._current = None
            self._calls.popleft()  # after the run: if a signal handler raises before this, `_end` sees the call
            cancelled_by_others = call.cancelled_by_others
            if call.aborted:
                loop.forget_cancellation()  # asyncio delivers two cancellations as one: the other may be not ours
                cancelled_by_others = loop.cancellations() > before
            if cancelled_by_others:
                break

    async def _do_last(self, cancellation: BaseException | None) -> None:
        """Do the last step. Keep its outcome for the user if a scope was cancelled; otherwise show its error."""
        self._last_begun = True
        error: BaseException | None = None
        try:
            if not await self._last(cancellation):
                return
        except BaseException as exc:
            if self._is_dropped() or isinstance(exc, cancelled_classes()):
                raise
            error = without_our_frame(exc)
        outcome: OneShotFuture[None] = OneShotFuture()
        outcome.write(None, error)
        if cancellation is None:
            show_error(outcome)
        else:
            self.outcome = outcome
        del error


def _do_nothing() -> None:
    """Do instead of cancelling the task: it has been cancelled already."""


def _reset_after_fork() -> None:
    """In a forked child: nobody runs the tasks, so nobody leaves them. They are kept, because nothing may end them."""
    for runner in _started:
        runner.over = True


in_forked_child(_reset_after_fork)
