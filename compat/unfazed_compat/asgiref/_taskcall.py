"""A coroutine that a thread has a loop run, in a task of its own, while it waits.

The life of a `TaskCall`. `start` and `give_up` decide in one atomic step, in `_decided`. "loop" says that only the
loop's thread takes the step.

    state      how to tell               start (loop)    give_up      cancel                    ends by
    ---------  ------------------------  --------------  -----------  ------------------------  -------------------
    new        `_decided` is empty       started         given up     given up                  -
    started    `_decided` is "start"     the same task   no effect    loop: task is cancelled   the end of its task
    given up   `_decided` is "give_up"   no effect       no effect    no effect                 -
    ended      `result.done()`           no effect       no effect    no effect                 -

Guarantees:

- The task starts at most once. If it never starts, its coroutine and the awaitable in that are closed.
- A started call gets a result, even if its task is cancelled before it begins or `main_wrap` was overridden.
- A signal handler may raise in the loop's thread at any time, and asyncio goes on after that. `start` can be repeated,
  and the waiting thread has it repeated (`repeat_lost_steps`).

`_threads.py` has the rules that this rests on.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from inspect import CORO_CREATED, getcoroutinestate
from typing import TYPE_CHECKING, Any

from unfazed.concurrency import LoopEndedError

from ._loops import Loop, TrioLoop, start_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from ._currentthreadexecutor import CurrentThreadExecutor
    from ._futures import OneShotFuture

_ENDED = "the event loop of this call has ended"


class TaskCall:
    """A coroutine that a thread has a loop run.

    Args:
        work: The coroutine. It writes *result*.
        inner: The awaitable that it awaits.
        result: What the thread waits for.
    """

    def __init__(self, work: Coroutine[Any, Any, None], inner: Awaitable[Any], result: OneShotFuture[Any]) -> None:
        self._work = work
        self._inner = inner
        self.result = result
        self._loop: Loop | None = None
        self._task: Any = None
        self._decided: dict[str, str] = {}
        self._task_is_cancelled = False

    def send_to(self, loop: Loop) -> None:
        """Have *loop* start the task soon; raise a `RuntimeError` if it has ended."""
        self._loop = loop
        loop.call_soon_threadsafe(self.start, loop)

    def start(self, loop: Loop) -> Any:
        """Start the task if there is none, in its loop's thread. Return it; `None` if it does not start."""
        self._loop = loop  # before the decision: `cancel` reads it after that
        if self._decided.setdefault("by", "start") != "start":
            return None
        if self._task is None and not self.result.done():
            try:
                self._task = start_task(loop, self._work, self._task_ended)
            except BaseException as exc:  # a task factory raised, trio's main task has ended, or a signal handler
                self._task = self._find_task(loop)
                if self._task is not None:  # a signal handler
                    self._task.add_done_callback(self._task_ended)
                    raise
                self._fail(LoopEndedError(_ENDED) if isinstance(loop, TrioLoop) else exc)
        return self._task

    def _find_task(self, loop: Loop) -> asyncio.Task[None] | None:
        """Return the task if asyncio had made one before a signal handler raised."""
        if isinstance(loop, TrioLoop):
            return None
        return next((task for task in asyncio.all_tasks(loop) if task.get_coro() is self._work), None)

    def repeat_lost_steps(self) -> None:
        """Repeat what a signal handler may have kept the loop from doing, from any thread."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self.repeat_lost_steps_here)

    def repeat_lost_steps_here(self) -> None:
        """The same, in the loop's thread."""
        if self._loop is not None:
            task: Any = self.start(self._loop)
            if not isinstance(self._loop, TrioLoop) and task is not None and task.done():
                self._task_ended(task)

    def cancel(self) -> bool:
        """Cancel the task, or see to it that it never starts, from any thread. Return whether it has started."""
        if self.give_up():
            return False
        assert self._loop is not None, "`start` sets it before it decides"
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._cancel_task)
        return True

    def _cancel_task(self) -> None:
        if self._loop is not None and not self._task_is_cancelled:
            task = self.start(self._loop)  # a signal handler may have kept it from starting
            if task is not None:
                task.cancel()
                self._task_is_cancelled = True

    def _task_ended(self, task: asyncio.Task[None] | BaseException | None) -> None:
        """Make sure that there is a result, in the loop's thread. Trio gives the error instead of the task."""
        if not self.result.done():
            error = task
            if isinstance(task, asyncio.Task):
                error = asyncio.CancelledError() if task.cancelled() else task.exception()
            self._fail(error if isinstance(error, BaseException) else LoopEndedError(_ENDED))
        elif isinstance(task, asyncio.Task) and not task.cancelled():
            task.exception()  # a signal handler raised it in the loop's thread; asyncio must not report it as unseen

    def _fail(self, error: BaseException) -> None:
        self._close()
        self.result.set_exception(error)

    def give_up(self) -> bool:
        """See to it that the task never starts, from any thread. Return `False` if it has started."""
        if self._decided.setdefault("by", "give_up") != "give_up":
            return False
        self._close()
        return True

    def is_given_up(self) -> bool:
        return self._decided.get("by") == "give_up"

    def _close(self) -> None:
        """Close both coroutines, so that Python does not warn that they were never awaited."""
        self._work.close()
        close = getattr(self._inner, "close", None)
        if close is not None:
            close()

    def wait(
        self,
        send: Callable[[], bool],
        caller: CurrentThreadExecutor,
        is_gone: Callable[[], bool],
        *,
        lending: bool = False,
    ) -> bool:
        """Call *send*, which sends this to its loop, and wait until *caller* is finished.

        Interrupted by Ctrl-C, or cancelled as a worker, it cancels the task and waits once more. A second interruption
        ends that. `serve` documents *is_gone*, *lending* and who wakes the thread.

        Return what *send* returns. If that is `False`, there was nothing to wait for.
        """
        try:
            if not send():
                return False
            ended = caller.serve(is_gone, self, lending=lending)
        except BaseException:
            interrupted = True
            try:
                if self.cancel():
                    caller.serve(is_gone, self)
                    interrupted = False
            finally:
                caller.close(interrupted=interrupted)
            raise
        caller.close(interrupted=False)
        if not ended and not self.result.done():
            if getcoroutinestate(self._work) == CORO_CREATED:  # the loop made the task, and ended before its first step
                self._close()
            raise LoopEndedError(_ENDED)
        return True
