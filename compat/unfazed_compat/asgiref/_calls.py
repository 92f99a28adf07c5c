"""A coroutine that a thread has a loop run, and waits for.

Who decides whether the task starts, does it in one step, in `_decided`:

    state          start (the loop)      drop, cancel (any thread)      the task ends
    new            started               dropped                        -
    started        started               started; `cancel` tells the loop      ended: there is a result
    dropped        dropped               dropped                        -

The loop may be the main thread's, in which a signal handler can raise at any time, and asyncio goes on after that. So
`start` can be repeated, and the thread that waits has it repeated (`look_after`).
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from unfazed.concurrency import LoopEndedError

from ._loops import Loop, TrioLoop, start_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from ._executors import Pump
    from ._outcomes import Outcome

_ENDED = "the event loop of this call has ended"


class Call:
    """A coroutine that a thread has a loop run, to write what comes of it to *result*.

    *inner* is the awaitable that the coroutine awaits: neither is left un-awaited when the task never runs.
    """

    def __init__(self, work: Coroutine[Any, Any, None], inner: Awaitable[Any], result: Outcome[Any]) -> None:
        self._work = work
        self._inner = inner
        self.result = result
        self._loop: Loop | None = None
        self._task: Any = None
        self._decided: dict[str, str] = {}
        self._told = False  # whether the task was cancelled

    def send_to(self, loop: Loop) -> None:
        """Have *loop* start the task soon; raise a `RuntimeError` if it has ended."""
        self._loop = loop
        loop.call_soon_threadsafe(self.start, loop)

    def start(self, loop: Loop) -> Any:
        """Start the task, in its loop's thread, unless that has happened. Return it; `None` if it was not started."""
        self._loop = loop  # before the decision: `cancel` looks for it after that
        if self._decided.setdefault("by", "start") != "start":
            return None
        if self._task is None and not self.result.done():
            try:
                self._task = start_task(loop, self._work, self._ended)
            except BaseException as exc:  # of a task factory of the user's, or trio's when its main task has ended
                self._task = self._find_task(loop)
                if self._task is not None:  # or of a signal handler
                    self._task.add_done_callback(self._ended)
                    raise
                self._fail(LoopEndedError(_ENDED) if isinstance(loop, TrioLoop) else exc)
        return self._task

    def _find_task(self, loop: Loop) -> asyncio.Task[None] | None:
        """Return the task, if asyncio has made one before it was interrupted."""
        if isinstance(loop, TrioLoop):
            return None
        return next((task for task in asyncio.all_tasks(loop) if task.get_coro() is self._work), None)

    def look_after(self) -> None:
        """Make good what the loop has lost because a signal handler raised amid it. From any thread."""
        loop = self._loop
        if loop is not None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(self.look_after_here)

    def look_after_here(self) -> None:
        """Do so in the loop's thread."""
        if self._loop is not None:
            task: Any = self.start(self._loop)
            if not isinstance(self._loop, TrioLoop) and task is not None and task.done():
                self._ended(task)

    def cancel(self) -> bool:
        """Cancel the task, or see to it that it never starts, from any thread. Return whether it has started."""
        if self.drop():
            return False
        assert self._loop is not None, "it was set before that was decided"
        with suppress(RuntimeError):  # it has ended
            self._loop.call_soon_threadsafe(self._tell)
        return True

    def _tell(self) -> None:
        if self._loop is not None and not self._told:
            task = self.start(self._loop)  # if that was interrupted
            if task is not None:
                task.cancel()
                self._told = True

    def _ended(self, task: asyncio.Task[None] | BaseException | None) -> None:
        """Make sure of a result, in the loop's thread: when the task never began, or its method was overridden."""
        if not self.result.done():
            error = task
            if isinstance(task, asyncio.Task):
                error = asyncio.CancelledError() if task.cancelled() else task.exception()
            self._fail(error if isinstance(error, BaseException) else LoopEndedError(_ENDED))
        elif isinstance(task, asyncio.Task) and not task.cancelled():
            task.exception()  # a signal handler's, which has gone its way: asyncio is not to say that nobody saw it

    def _fail(self, error: BaseException) -> None:
        self._close()
        self.result.set_exception(error)

    def drop(self) -> bool:
        """See to it that what has not started never does. Return whether it has not."""
        if self._decided.setdefault("by", "drop") != "drop":
            return False
        self._close()
        return True

    def is_dropped(self) -> bool:
        return self._decided.get("by") == "drop"

    def _close(self) -> None:
        self._work.close()
        close = getattr(self._inner, "close", None)
        if close is not None:
            close()

    def wait(
        self, begin: Callable[[], bool], pump: Pump, is_gone: Callable[[], bool], *, lending: bool = False
    ) -> bool:
        """Have *begin* send this to its loop, and wait until *pump* is finished. Return whether that takes it.

        Interrupted by Ctrl-C, or cancelled as a worker, cancel the task, and wait for it once more. `serve` says what
        *lending* is, and who wakes us.
        """
        try:
            if not begin():
                return False
            ended = pump.serve(is_gone, self, lending=lending)
        except BaseException:
            interrupted = True
            try:
                if self.cancel():
                    pump.serve(is_gone, self)
                    interrupted = False
            finally:
                pump.close(interrupted=interrupted)
            raise
        pump.close(interrupted=False)
        if not ended and not self.result.done():
            raise LoopEndedError(_ENDED)
        return True
