"""A sync function that a task has a thread call, and how the task waits for it.

The life of a `ThreadCall`. Whoever takes the function out of `_func` (`list.pop`) decides whether it runs; the first
outcome counts (`_futures.py`). "task" and "thread" say who may take the step.

    state      how to tell           run (thread)   cancel (task)      fail_unless_begun     fail
    ---------  --------------------  -------------  -----------------  --------------------  -----------------------
    queued     `_func` is full       running        ended, no outcome  ended with the error  ended with the error
    running    `_func` is empty      no effect      no effect          no effect             ended with the error
    ended      `done()`              no effect      no effect          no effect             no effect
    abandoned  `_abandoned`          no effect      no effect          no effect             its error is shown

A running call becomes abandoned when its task is cancelled and none of the function's async calls handles that: the
task raises the cancellation, and the thread runs on.

Guarantees:

- A task that waits is always woken: by the thread, or by the executor, which ends each future that it returns.
- If a signal handler raises in the thread, which may be the main one, the call fails (`fail`).
- If a signal handler raises in the loop's thread, asyncio goes on, even if that was before the first step of the
  callback that wakes the task. So that callback is a generator where it matters (`_waking`).
"""

from __future__ import annotations

import threading
from contextlib import suppress
from threading import get_ident, main_thread
from typing import TYPE_CHECKING, Any, TypeVar, cast

from anyio import CancelScope, Event, get_cancelled_exc_class

from unfazed.concurrency import ExecutorError

from ._futures import OneShotFuture
from ._loops import Loop, TrioLoop, cancelled_classes

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Generator
    from concurrent.futures import Future

    from ._nestedtasks import NestedTasks

T = TypeVar("T")


class ThreadCall(OneShotFuture[T]):
    """A function that a task on *loop* has a thread call, while the task waits."""

    __slots__ = ("_abandoned", "_func", "_loop", "_over", "_waiting", "_waker", "woken_by_loop")

    def __init__(self, loop: Loop, func: Callable[[], T]) -> None:
        self._written = {}
        self._loop = loop
        self._func: list[Callable[[], T]] = [func]  # empty: somebody has decided what happens to it
        self.woken_by_loop = False  # whether the loop's own executor makes the call, and the loop calls `waker` itself
        self._waker: Generator[None, Any, None] | None = None
        if get_ident() == main_thread().ident:  # where signal handlers run
            self._waker = waker = _waking(self)
            next(waker)
        # The rest is for the loop's thread only.
        self._waiting: asyncio.Future[None] | Event | None = None
        self._over = False
        self._abandoned = False

    def run(self) -> None:
        """Call the function, in the thread."""
        try:
            func = self._func.pop()  # also so that a task which keeps us does not keep the arguments
        except IndexError:
            return
        try:
            value = func()
        except BaseException as exc:
            # Without our frame, which refers back to the error.
            self.set_exception(exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next))
        else:
            self.set_result(value)

    def cancel(self) -> bool:
        """Keep the function from starting. Return `False` if it has started."""
        try:
            self._func.pop()
        except IndexError:
            return False
        return True

    def fail_unless_begun(self, error: BaseException) -> None:
        """Fail the call with *error* if the function has not started, from any thread."""
        if self.cancel():
            self.set_exception(error)

    def fail(self, error: BaseException) -> None:
        """Fail the call with *error* if it has no outcome, from any thread. Doing so twice is harmless."""
        self._func.clear()
        self.set_exception(error)

    def end_with(self, future: Future[Any]) -> None:
        """Fail the call if the executor has cancelled its own *future* for it, or was interrupted while it ran it."""
        if future.cancelled():
            self.fail_unless_begun(_cancelled_by_its_executor())
        elif future.exception() is not None:
            self.fail(cast("BaseException", future.exception()))

    def _call_on_done(self) -> None:
        if self.woken_by_loop and not self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(self.waker(), None)
        except RuntimeError:  # the loop has ended
            self._show_error()

    def waker(self) -> Callable[[Any], object]:
        """Return what must be called in the loop when the call has ended."""
        waker = self._waker
        return self.note_end if waker is None else waker.send

    def note_end(self, _: object = None) -> None:
        """Note that the call has ended, and wake the task; in the loop's thread. Doing so twice is harmless."""
        if self._func:  # the loop's executor has cancelled it
            self._written.setdefault("outcome", (None, _cancelled_by_its_executor()))
            self._func.clear()
        self._over = True
        self._wake_task()
        if self._abandoned:
            self._show_error()
        self._waker = None  # a reference cycle

    def _wake_task(self) -> None:
        if isinstance(self._waiting, Event):
            self._waiting.set()
        elif self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _wake_task_from_anywhere(self) -> None:
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._wake_task)

    def _show_error(self) -> None:
        """Show the error, if there is one, because nobody waits for it."""
        _, exc = self._written.get("outcome", (None, None))
        self._forget()
        if exc is not None and not isinstance(exc, cancelled_classes()):
            args = threading.ExceptHookArgs((type(exc), exc, exc.__traceback__, threading.current_thread()))
            with suppress(Exception):  # an error in the program's own hook must not end the thread
                threading.excepthook(args)

    async def wait(self, nested: NestedTasks | None = None) -> None:
        """Wait until the call has ended.

        Args:
            nested: The async calls that the function makes.

        Cancellation:
            Before the function has started: it never starts. Later: its async calls are cancelled, and awaited. If one
            of them handles the cancellation, this waits on, as if nothing had happened. Otherwise the cancellation is
            raised and the function runs on, so that a time limit holds.
        """
        try:
            await self._wait()
            return
        except BaseException as exc:
            # Not `get_cancelled_exc_class`: no loop runs if the task is dropped after its loop.
            if self.cancel() or nested is None or not isinstance(exc, cancelled_classes()):
                raise
            cancellation = exc
        try:
            nested.on_end = self._wake_task_from_anywhere
            nested.cancel()
            while not (self._over or nested.last_has_ended) and (nested or not nested.unhandled):
                try:
                    # The shield is against anyio's scopes, which cancel again and again. `task.cancel()` ignores it.
                    with CancelScope(shield=True):
                        await self._wait()
                except get_cancelled_exc_class() as exc:
                    cancellation = exc
                    nested.cancel()
            if nested.unhandled:
                self._abandoned = True
                if self._over:
                    self._show_error()
                raise cancellation
        finally:
            del cancellation

    async def _wait(self) -> None:
        """Wait until the call has ended, or one of its async calls."""
        if isinstance(self._loop, TrioLoop):
            self._waiting = Event()
            await self._waiting.wait()
        else:
            self._waiting = self._loop.create_future()
            await self._waiting


def _waking(call: ThreadCall[Any]) -> Generator[None, Any, None]:
    """Note the end of *call* when this generator is resumed, even if a signal handler raises in that moment.

    Workaround: what a signal handler raises before the first step of a function is raised outside of the function's
    `try`. A generator that is resumed is inside of its `try` already.
    """
    try:
        yield
        call.note_end()
    except GeneratorExit:  # nobody needs it any more
        raise
    except BaseException:
        call.note_end()
        raise
    while True:  # pragma: no branch  it goes on only if it is resumed again
        yield


def _cancelled_by_its_executor() -> ExecutorError:
    return ExecutorError("sync_to_async", "was cancelled by its executor, not by its caller")
