"""A coroutine that a thread has a loop run, and waits for."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from threading import Lock
from typing import TYPE_CHECKING, Any

from unfazed.concurrency import LoopEndedError

from ._loops import Loop, TrioLoop, start_task

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from concurrent.futures import Future

    from ._executors import Pump

_ENDED = "the event loop of this call has ended"


class Call:
    """A coroutine that a thread has a loop run, to write what comes of it to *result*.

    *inner* is the awaitable that the coroutine awaits: neither is left un-awaited where the task never runs.
    """

    def __init__(self, work: Coroutine[Any, Any, None], inner: Awaitable[Any], result: Future[Any]) -> None:
        self._work = work
        self._inner = inner
        self.result = result
        self._loop: Loop | None = None
        self._task: Any = None
        self._claim = Lock()  # taken by the loop when it starts the task, or by whoever sees to it that it never does
        self._cancelled = False
        self._told = False  # whether the task was cancelled

    def start(self, loop: Loop) -> Any:
        """Start the task, in its loop's thread, and return it; `None` if it could not be started."""
        if not self._claim.acquire(blocking=False):
            return None
        self._loop = loop
        try:
            self._task = start_task(loop, self._work, self._ended)
        except BaseException as exc:  # of a task factory of the user's, or trio's when its main task has ended
            self._fail(LoopEndedError(_ENDED) if isinstance(loop, TrioLoop) else exc)
        else:
            if self._cancelled:
                self._tell()
        return self._task

    def cancel(self) -> None:
        """Cancel the task, now or when it starts, from any thread."""
        self._cancelled = True  # either `start` sees it, or we see its loop
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self._task is not None and not self._told:
            self._told = True
            self._task.cancel()

    def _ended(self, task: asyncio.Task[None] | BaseException | None) -> None:
        """Make sure of a result, in the loop's thread: where the task never began, or its method was overridden."""
        if not self.result.done():
            error = task
            if isinstance(task, asyncio.Task):
                error = asyncio.CancelledError() if task.cancelled() else task.exception()
            self._fail(error if isinstance(error, BaseException) else LoopEndedError(_ENDED))

    def _fail(self, error: BaseException) -> None:
        self._close()
        self.result.set_exception(error)

    def drop(self) -> None:
        """See to it that what has not started never does."""
        if self._claim.acquire(blocking=False):
            self._close()

    def _close(self) -> None:
        self._work.close()
        close = getattr(self._inner, "close", None)
        if close is not None:
            close()

    def wait(self, pump: Pump, is_gone: Callable[[], bool], *, lending: bool = False) -> None:
        """Wait until *pump* is finished; `serve` says what *lending* is, and who wakes us.

        Interrupted by Ctrl-C, or cancelled as a worker, cancel the task, and wait for it once more.
        """
        interrupted = True
        try:
            try:
                ended = pump.serve(is_gone, lending=lending)
            except BaseException:
                self.cancel()
                pump.serve(is_gone)
                interrupted = False
                raise
            interrupted = False
        finally:
            pump.close(interrupted=interrupted)
        if not ended and not self.result.done():
            raise LoopEndedError(_ENDED)
