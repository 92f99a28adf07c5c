"""One worker thread that does one step after another, in one context, for async code.

So one step can leave what an earlier one entered: reset a context variable, end a transaction.

The life of a `ThreadRunner`. A task of the loop, `_hold`, starts and holds the thread.

    state     how to tell                 a step comes      the thread starts  it is left   the loop cancels `_hold`
    --------  --------------------------  ----------------  -----------------  -----------  ------------------------
    new       the loop has not begun      starting          -                  leaving      -
              `_hold`
    starting  `_starts` is empty          starting          running            leaving      failed
    running   `_starts[0]` is "thread"    the step is done  -                  leaving      leaving, when the thread
                                                                                            sees it
    leaving   `_leaving`                  `LoopEndedError`  leaving            -            failed if not started
    failed    `_starts[0]` is "released"  `_error`          ends at once       -            -
    ended     `_ended` is set             `LoopEndedError`  -                  -            -

A runner that is left does the steps that it has been given, then the last step, then it ends. A new one starts its
thread for the last step only if somebody waits for that, in `left`.

Who wakes the thread: the loop, with a step, or whoever leaves the runner, with `None`. Who wakes the loop: the thread,
after each step. An idle runner holds no slot, and the last step never waits for one.

Guarantees:

- A runner is made before its thread starts. So whoever is interrupted by a signal handler has it and can leave it.
- The last step runs once, unless the thread cannot start; also if the loop has ended by then.
- `_ended` is set when the last step has ended and nothing holds the thread: not earlier, as asyncio may drop what is
  left when its last task has ended.

Assumptions: `list.append`, reading `list[0]` and `SimpleQueue.put` are atomic. Other state is for the loop's thread.
"""

from __future__ import annotations

from contextvars import copy_context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeVar, final

from anyio import to_thread

from .._core import _slots
from .._core._blockedloops import current_blocked_loop
from .._core._futures import OneShotFuture
from .._core._taskcall import TaskCall
from .._eventloops._limiters import NO_LIMIT, thread_limiter
from .._eventloops._loops import current_loop
from .._eventloops._loopthread import submit_here
from .._eventloops._timeouts import CHECK_SECONDS
from .._eventloops._waiting import cancelled_classes, set_from_anywhere, wait, wait_and_check, wait_shielded
from .._threads._threadcall import ThreadCall, ThreadOptions
from ._endings import elsewhere_error, ended_error, show_error

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio import CapacityLimiter

    from .._core._loop import Event, Loop

S = TypeVar("S")
T = TypeVar("T")


class _ThreadStepCall(ThreadCall[T]):
    """One step, in the thread of a runner."""

    must_hand_over = True

    def __init__(self, runner: ThreadRunner[Any], helper: str, func: Callable[[], T]) -> None:
        super().__init__(helper, func, (), {}, ThreadOptions(runner.limiter))
        self._runner = runner

    @property
    def name(self) -> str:
        return self.helper  # *func* is of ours

    async def hand_over(self) -> None:
        await self._runner.hand_over(self.work)


@final
class ThreadRunner(Generic[T]):
    """A worker thread of the current loop. It does one step after another, and *last* when it is left."""

    def __init__(self, helper: str, last: Callable[[], T], limiter: CapacityLimiter | None = None) -> None:
        self._helper = helper
        self._last = last
        self.loop: Loop = current_loop()
        self.limiter: CapacityLimiter = limiter or thread_limiter.of(self.loop)
        self._steps: SimpleQueue[Callable[[], object] | None] = SimpleQueue()
        self._hold: TaskCall[None] = TaskCall(self._stay, OneShotFuture(self._released))
        self._hold.title = f"{helper}: holds its thread"
        self._starts: list[str] = []  # "thread" if that starts, "released" by the loop: which came first
        self._error: BaseException | None = None  # why the thread could not start
        self._waiting: Event | None = None  # of the current step
        self._leaving = False
        self._ends: list[str] = []  # "last step" by the thread, "released" by the loop: the second sets `_ended`
        self._ended = self.loop.new_event()
        self._outcome: OneShotFuture[T] | None = None  # of the last step
        self._has_waiter = False  # whether somebody waits for the last step; set before `leave`, so the thread sees it

    async def run(self, func: Callable[[], S]) -> S:
        """Run *func* in the thread, when a slot is free, and await its result. It is cancelled as a thread call is."""
        outcome = await _ThreadStepCall(self, self._helper, func).run()
        return outcome.read()

    def announce_waiter(self) -> None:
        """Say that somebody will wait for the end after `leave`, unless this is another loop, which cannot."""
        self._has_waiter = self.loop.runs_here()

    def leave(self) -> None:
        """Have the thread do the last step, after the current one. From any thread; returns at once."""
        self._leaving = True
        self._steps.put(None)

    async def wait_until_ended(self) -> T:
        """Wait for the end of the last step despite cancellation, and return its result.

        Raise its error, or else the cancellation, if there was one.
        """
        if not self.loop.runs_here():
            if self._outcome is None:
                raise elsewhere_error()
            return self._outcome.read()
        cancellation: BaseException | None = None
        try:
            self._ensure_started()
            await wait(self._ended)
        except BaseException as exc:
            cancellation = exc
        try:
            if cancellation is not None:
                self._ensure_started()  # a signal handler may have raised before that, or ended `_hold`
                self._hold.fail_if_lost()
                cancellation = await wait_shielded(self._ended, cancellation, check=self._hold.fail_if_lost)
                if not self._ended.is_set():  # the loop is gone, and nobody can wait
                    raise cancellation
            assert self._outcome is not None, "set before `_ended`"
            result = self._outcome.read()
            if cancellation is not None:
                raise cancellation
            return result
        finally:
            del cancellation

    async def hand_over(self, work: Callable[[], None]) -> None:
        """Have the thread call *work*, and wait for that."""
        if not self._hold.taken:  # otherwise a thread that starts quickly would begin what is cancelled already
            await self.loop.checkpoint_if_cancelled()
        if self._leaving:
            raise ended_error()
        self._ensure_started()
        loop, blocked_loop = self.loop, current_blocked_loop.get()
        event = loop.new_event()

        def step() -> None:
            current_blocked_loop.set(blocked_loop)
            work()
            set_from_anywhere(loop, event)

        self._waiting = event
        self._steps.put(step)
        if self._error is None and self._starts:
            await event.wait()
        elif self._error is None:  # signal handlers may end the task that is to start the thread
            await wait_and_check(event, self._hold.fail_if_lost)
        if self._error is not None:
            raise self._error

    def _ensure_started(self) -> None:
        if not self._hold.taken:
            submit_here(self._hold, copy_context())

    async def _stay(self) -> None:
        """Hold the thread, in a task. If the end of the loop cancels the task, the thread sees that by itself."""
        await to_thread.run_sync(self._serve, abandon_on_cancel=True, limiter=NO_LIMIT)

    def _released(self) -> None:
        """Note that nothing holds the thread any more, or that it could not start, and why."""
        self._starts.append("released")
        if self._starts[0] != "released":
            self._ends.append("released")
            if self._ends[0] == "last step":
                self._ended.set()
            return
        try:
            self._hold.future.read()
        except cancelled_classes():
            self._error = ended_error()
        except BaseException as exc:
            self._error = exc
        self._outcome = OneShotFuture()
        self._outcome.write(None, None)
        self._ended.set()
        if self._waiting is not None:
            self._waiting.set()

    def _serve(self) -> None:
        """Do one step after another, and the last one, in the thread."""
        self._starts.append("thread")
        if self._starts[0] != "thread":
            return
        while True:
            try:
                step = self._steps.get(timeout=CHECK_SECONDS)
            except Empty:
                if not self.loop.is_gone():
                    continue
                step = None
            if step is None:
                break
            step()
        self._do_last()

    def _do_last(self) -> None:
        """Do the last step, and tell who waits for it, or show its error."""
        thread_call = _ThreadStepCall(self, self._helper, self._last)
        thread_call.introduce()
        slot = _slots.acquire_now(self.limiter)
        thread_call.work_in(self.loop, slot)
        _slots.release(slot)
        thread_call.note_end(thread_call.outcome.error)
        self._outcome = thread_call.outcome
        has_waiter = self._has_waiter and not self.loop.is_gone()
        self._ends.append("last step")
        if self._ends[0] == "released":
            has_waiter = set_from_anywhere(self.loop, self._ended) and has_waiter
        if not has_waiter:
            show_error(thread_call.outcome)
