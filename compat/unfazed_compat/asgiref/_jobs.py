"""A function that a task has a thread call: how the task waits for it, and what happens when it waits no more.

`Job`     the function, and its outcome
`Calls`   the async calls that the function makes: what cancels the job cancels them

    state of a job    run (the thread)     drop, cancel (any thread)      fail (who interrupted the thread)
    new               running              dropped                        over, with an error
    running           running              running                        over, with an error
    over, dropped     as it is             as it is                       as it is

Who takes the function out of `_func` decides what happens to it (`list.pop`); the first outcome counts
(`_outcomes.py`). The thread may be the main one, in which a signal handler can raise amid all this: then its pump calls
`fail`. The loop may be the main thread's as well, and asyncio goes on when a handler raises in a callback, even before
the first step of that. So there the callback is a generator (`_waking`).
"""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from threading import get_ident, main_thread
from typing import TYPE_CHECKING, Any, TypeVar, cast

from anyio import CancelScope, Event, get_cancelled_exc_class

from unfazed.concurrency import ExecutorError

from ._loops import Cancellable, Loop, TrioLoop, cancelled_classes, running_asyncio_loop
from ._outcomes import Outcome

if TYPE_CHECKING:
    from collections.abc import Callable, Generator
    from concurrent.futures import Future

T = TypeVar("T")


class Calls(list[Cancellable]):
    """The tasks of the async calls that a function in a thread makes, innermost last.

    asgiref knows it as `task_context`, a list of tasks. The task that waits for the function cancels; the calls begin
    and end in their loops, which may be another thread's (`force_new_loop`). One side changes the list and then looks
    whether there was a cancellation; the other one notes the cancellation and then looks at a copy of the list.
    """

    made = 0  # how many cancellations there were; for the thread of the task that waits
    heeded = 0  # how many of them a task has seen to; for the thread of the call, of which there is one at a time
    released = False  # whether there has been none under way since, so that nobody waits any more
    on_end: Callable[[], object] | None = None  # is called when a task has ended
    _told: dict[Cancellable | None, int] | None = None  # how often each task was cancelled; None: the next one will be

    @property
    def unheeded(self) -> int:
        """How many cancellations no task has seen to."""
        return self.made - self.heeded

    def cancel(self) -> None:
        """Cancel the call that is under way, or else the next one."""
        told = self._told
        if told is None:
            told = self._told = {}
        self.made += 1
        told[None] = 1
        self._tell_innermost(told)

    def begin(self, task: Cancellable) -> bool:
        """Note that *task* is beginning. Return whether it has been cancelled at once."""
        self.append(task)
        if self._told is not None:
            self._tell_innermost(self._told)
            return task in self._told
        return False

    def _tell_innermost(self, told: dict[Cancellable | None, int]) -> None:
        tasks = self.copy()
        if not tasks or told.pop(None, None) is None:
            return
        task = tasks[-1]
        get_loop: Callable[[], asyncio.AbstractEventLoop] | None = getattr(task, "get_loop", None)  # asyncio's
        if get_loop is None or get_loop() is running_asyncio_loop():
            self._tell(task, told)
        else:  # in a new loop, as it was asked for
            with suppress(RuntimeError):  # it has ended
                get_loop().call_soon_threadsafe(self._tell, task, told)

    def _tell(self, task: Cancellable, told: dict[Cancellable | None, int]) -> None:
        if task in self:
            told[task] = told.get(task, 0) + 1
            task.cancel()

    def end(self, task: Cancellable, error: BaseException | None) -> None:
        """Note that *task* is ending, before it waits again. Doing so twice is harmless.

        On asyncio, a task that was cancelled and ends otherwise has seen to the cancellation, just as if it had been
        awaited. On trio a cancellation stays.
        """
        if task not in self:
            return
        on_asyncio = hasattr(task, "get_loop")
        if self._told is not None and on_asyncio and not isinstance(error, asyncio.CancelledError):
            self.heeded += self._told.pop(task, 0)
        self.remove(task)
        self.released = bool(self.unheeded) and not self  # now: the thread may make another one before anybody looks
        if self.on_end is not None:
            self.on_end()


class Job(Outcome[T]):
    """A function that a task on *loop* has a thread call, while it waits for it."""

    __slots__ = ("_abandoned", "_func", "_loop", "_over", "_waiting", "_waker", "woken_by_loop")

    def __init__(self, loop: Loop, func: Callable[[], T]) -> None:
        self._written = {}
        self._loop = loop
        self._func: list[Callable[[], T]] = [func]  # empty: somebody has decided what happens to it
        self.woken_by_loop = False  # whether its thread is one of the loop's, which will call `wake_up`
        self._waker: Generator[None, Any, None] | None = None
        if get_ident() == main_thread().ident:
            self._waker = waker = _waking(self)
            next(waker)
        # The rest is for the loop's thread only.
        self._waiting: asyncio.Future[None] | Event | None = None
        self._over = False
        self._abandoned = False  # whether nobody waits any more

    def run(self) -> None:
        """Call the function, in the thread."""
        try:
            func = self._func.pop()  # its arguments are nothing to the task, which may keep us
        except IndexError:
            return
        try:
            value = func()
        except BaseException as exc:
            # our frame refers back to it
            self.set_exception(exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next))
        else:
            self.set_result(value)

    def cancel(self) -> bool:
        """Return whether the function has not started. Then it never does."""
        try:
            self._func.pop()
        except IndexError:
            return False
        return True

    def drop(self, error: BaseException) -> None:
        """Say that the function will never be called, if it has not started. From any thread."""
        if self.cancel():
            self.set_exception(error)

    def fail(self, error: BaseException) -> None:
        """Say that nobody goes on with the function, if it has no outcome. From any thread, and more than once."""
        self._func.clear()
        self.set_exception(error)

    def watch(self, future: Future[Any]) -> None:
        """Take note of an executor that drops the job, or was interrupted amid it."""
        if future.cancelled():
            self.drop(_dropped())
        elif future.exception() is not None:
            self.fail(cast("BaseException", future.exception()))

    def _announce(self) -> None:
        if self.woken_by_loop and not self._loop.is_closed():
            return
        try:
            self._loop.call_soon_threadsafe(self.waker(), None)
        except RuntimeError:  # it has ended
            self._show()

    def waker(self) -> Callable[[Any], object]:
        """Return what is to be called in the loop when it is over."""
        waker = self._waker
        return self.wake_up if waker is None else waker.send

    def wake_up(self, _: object = None) -> None:
        """Note, in the loop, that it is over. Doing so twice is harmless."""
        if self._func:  # the loop's executor has dropped it
            self._written.setdefault("outcome", (None, _dropped()))
            self._func.clear()
        self._over = True
        self._nudge()
        if self._abandoned:
            self._show()
        self._waker = None  # they lead to each other

    def _nudge(self) -> None:
        if isinstance(self._waiting, Event):
            self._waiting.set()
        elif self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(None)

    def _nudge_from_anywhere(self) -> None:
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._nudge)

    def _show(self) -> None:
        """Show the error, if it is one, that nobody is there to be told."""
        _, exc = self._written.get("outcome", (None, None))
        self._forget()
        if exc is not None and not isinstance(exc, cancelled_classes()):
            args = threading.ExceptHookArgs((type(exc), exc, exc.__traceback__, threading.current_thread()))
            with suppress(Exception):  # of a hook of the user's, which must not end the thread
                threading.excepthook(args)

    async def wait(self, calls: Calls | None = None) -> None:
        """Wait for the function. Who wakes us: the thread, or else its executor, which ends each future it gives out.

        Cancelled before the function has started, it never starts. Later, the async *calls* that it makes are
        cancelled, and waited for. Then the cancellation is raised, and the function runs on: who has set a time limit
        must not wait longer. But if all cancellations have been seen to within, this goes on as before.
        """
        try:
            await self._wait()
            return
        except BaseException as exc:
            # Not `get_cancelled_exc_class`: when the task is dropped after its loop, none runs.
            if self.cancel() or calls is None or not isinstance(exc, cancelled_classes()):
                raise
            cancellation = exc
        try:
            calls.on_end = self._nudge_from_anywhere
            calls.cancel()
            while not (self._over or calls.released) and (calls.copy() or not calls.unheeded):
                try:
                    # Against a scope of anyio's, which cancels again and again; asyncio's own goes through it.
                    with CancelScope(shield=True):
                        await self._wait()
                except get_cancelled_exc_class() as exc:
                    cancellation = exc
                    calls.cancel()
            if calls.unheeded:
                self._abandoned = True
                if self._over:
                    self._show()
                raise cancellation
        finally:
            del cancellation

    async def _wait(self) -> None:
        """Wait until it is over, or somebody has given a nudge."""
        if isinstance(self._loop, TrioLoop):
            self._waiting = Event()
            await self._waiting.wait()
        else:
            self._waiting = self._loop.create_future()
            await self._waiting


def _waking(job: Job[Any]) -> Generator[None, Any, None]:
    """Wake up *job* when this goes on.

    What a signal handler raises before the first step of a function, is raised outside of the `try` in it. A generator
    that goes on is in its `try` already.
    """
    try:
        yield
        job.wake_up()
    except GeneratorExit:  # nobody needs it any more
        raise
    except BaseException:
        job.wake_up()
        raise
    while True:  # pragma: no branch  it goes on only if it is called again
        yield


def _dropped() -> ExecutorError:
    return ExecutorError("sync_to_async", "was cancelled by its executor, not by its caller")
