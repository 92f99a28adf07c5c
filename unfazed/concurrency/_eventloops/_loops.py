"""Running event loops as other threads see them: everything that differs between asyncio and trio.

Guarantee: neither library is imported before one of its loops runs. No thread and no loop is started here:
`_loopthread.py` does that.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from threading import main_thread
from typing import TYPE_CHECKING, Any, TypeVar, cast

from anyio import move_on_after
from anyio.lowlevel import checkpoint_if_cancelled

from .._core._errors import LoopEndedError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    import trio

    from .._core._loop import Event, Loop
    from .._core._taskcall import TaskCall

T = TypeVar("T")

RECHECK_SECONDS = 0.05  # a late timeout waits so long for a cleanup before it looks again; arbitrary


class AsyncioLoop:
    """A running asyncio loop, uvloop's included."""

    __slots__ = ("native",)
    calls_back_in_the_task = False
    cancels_once = True
    checkpoint_if_cancelled = staticmethod(checkpoint_if_cancelled)

    def __init__(self, native: asyncio.AbstractEventLoop) -> None:
        self.native = native

    def runs_here(self) -> bool:
        return _runs_here(self)

    def new_event(self) -> Event:
        event: Event = sys.modules["asyncio"].Event()
        return event

    def post(self, func: Callable[..., object], *args: object, context: Context | None = None) -> None:
        try:
            self.native.call_soon_threadsafe(func, *args, context=context)
        except RuntimeError:
            if self.native.is_closed():
                raise LoopEndedError("the event loop of this call has ended") from None
            raise

    def submit(self, call: TaskCall[Any], context: Context) -> None:
        call.set_loop(self)
        if not call.made_elsewhere and self.runs_here():
            # Not posted: that is slower, and a loop that is ending drops posted calls instead of cancelling them.
            context.run(call.begin, self._start, call)
        else:
            self.post(call.begin, self._start, call, context=context)

    def _start(self, call: TaskCall[Any]) -> None:
        _mark_context("asyncio")
        # The loop keeps only a weak reference to the task. The caller keeps it alive, by `call.task_has_ended`.
        running = self._run(call)
        try:
            task = self.native.create_task(running, name=call.task_name)
        except BaseException:  # raised by a user's task factory
            running.close()
            raise
        call.task_has_ended = task.done
        call.coroutine = running
        task.add_done_callback(partial(self._ended, call))

    @staticmethod
    def _ended(call: TaskCall[Any], task: asyncio.Task[None]) -> None:
        if not call.future.done:  # otherwise asyncio shows what the task raised
            call.fail_unless_run(None if task.cancelled() else task.exception())

    async def _run(self, call: TaskCall[Any]) -> None:
        await call.run(_current_task().cancel)

    def is_gone(self) -> bool:
        # A stopped loop may be run again, unless the interpreter is shutting down.
        return self.native.is_closed() or not (self.native.is_running() or main_thread().is_alive())

    def mark_context(self) -> None:
        _mark_context("asyncio")

    def cancellation(self) -> BaseException:
        cancellation: BaseException = sys.modules["asyncio"].CancelledError()
        return cancellation

    def cancellations(self) -> int:
        return _cancellations_of(_current_task())

    def forget_cancellation(self) -> None:
        uncancel = getattr(_current_task(), "uncancel", None)  # since Python 3.11
        if uncancel is not None:  # pragma: no branch
            uncancel()

    async def run_within(self, seconds: float, work: Callable[[], Awaitable[T]], late: Callable[[], Exception]) -> T:
        # Not a cancel scope: that would cancel the cleanup as well.
        task = _current_task()
        cancellations = _cancellations_of(task)
        expired = False
        timer: asyncio.TimerHandle

        def expire() -> None:
            nonlocal expired, timer
            if _cancellations_of(task) <= cancellations:
                expired = True
                task.cancel()
            else:  # the task cleans up after another cancellation, perhaps of an inner scope, and may go on after it
                timer = self.native.call_later(RECHECK_SECONDS, expire)

        timer = self.native.call_later(seconds, expire)
        try:
            return await work()
        except sys.modules["asyncio"].CancelledError as exc:
            if expired and _cancellations_of(task) <= cancellations + 1:  # otherwise our caller has been cancelled too
                raise late() from exc
            raise
        finally:
            timer.cancel()
            if expired:
                self.forget_cancellation()

    async def end_other_tasks(self) -> None:
        asyncio = sys.modules["asyncio"]
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class TrioLoop:
    """A running trio loop."""

    __slots__ = ("_process", "native")
    calls_back_in_the_task = True
    cancels_once = False

    def __init__(self, native: trio.lowlevel.TrioToken) -> None:
        self.native = native
        self._process = os.getpid()

    def runs_here(self) -> bool:
        return _runs_here(self)

    def new_event(self) -> Event:
        event: Event = sys.modules["trio"].Event()
        return event

    def post(self, func: Callable[..., object], *args: object) -> None:
        if self._process != os.getpid():  # a thread that the fork left behind may hold trio's lock
            raise LoopEndedError("the process has forked, and this event loop was left behind in the parent")
        try:
            self.native.run_sync_soon(func, *args)
        except RuntimeError as exc:
            if type(exc).__name__ != "RunFinishedError":  # by name: at exit we could not import the class
                raise
            raise LoopEndedError("the event loop of this call has ended") from None

    def submit(self, call: TaskCall[Any], context: Context) -> None:
        call.set_loop(self)
        if not call.made_elsewhere and self.runs_here():
            call.begin(self._start, call, context)
        else:
            self.post(call.begin, self._start, call, context)

    def _start(self, call: TaskCall[Any], context: Context) -> None:
        import trio

        try:
            task = trio.lowlevel.spawn_system_task(self._run, call, name=call.task_name, context=context)
        except RuntimeError:  # the main task has ended
            raise LoopEndedError("the event loop of this call has ended") from None
        call.task_has_ended = lambda: task.coro.cr_frame is None

    async def _run(self, call: TaskCall[Any]) -> None:
        try:
            with sys.modules["trio"].CancelScope() as scope:
                await call.run(scope.cancel)
        except Exception as exc:  # raised by a signal handler outside of `call.run`; it would end trio's run
            if call.future.done:
                sys.excepthook(type(exc), exc, exc.__traceback__)
            call.fail_unless_run(exc)

    def checkpoint_if_cancelled(self) -> Awaitable[None]:
        checked: Awaitable[None] = sys.modules["trio.lowlevel"].checkpoint_if_cancelled()
        return checked

    def is_gone(self) -> bool:
        try:
            self.post(int)
        except LoopEndedError:
            return True
        return False

    def mark_context(self) -> None:
        _mark_context("trio")

    def cancellation(self) -> BaseException:
        """Return a `trio.Cancelled`, which only trio itself can make: so run a loop in this thread for that."""
        return cast("BaseException", sys.modules["trio"].run(_cancelled_task))

    def cancellations(self) -> int:
        return 0

    def forget_cancellation(self) -> None:
        pass  # a cancelled scope stays cancelled

    async def run_within(self, seconds: float, work: Callable[[], Awaitable[T]], late: Callable[[], Exception]) -> T:
        with move_on_after(seconds):
            return await work()
        raise late()

    async def end_other_tasks(self) -> None:
        pass  # trio cancels them itself


async def _cancelled_task() -> BaseException:
    trio = sys.modules["trio"]
    with trio.CancelScope() as scope:
        scope.cancel()
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled as exc:
            cancellation: BaseException = exc.with_traceback(None)
            return cancellation
    raise AssertionError("a cancelled scope cancels each checkpoint")  # pragma: no cover


def _current_task() -> asyncio.Task[Any]:
    task: asyncio.Task[Any] = sys.modules["asyncio"].current_task()
    return task


def _cancellations_of(task: asyncio.Task[Any]) -> int:
    """Return how many cancellations *task* has not handled yet; always 0 before Python 3.11, which does not count."""
    cancelling = getattr(task, "cancelling", None)  # since Python 3.11
    return cancelling() if cancelling is not None else 0


def forget_library() -> None:
    """Mark the current context as one in which no loop runs. It may be a copy of a loop's context."""
    _mark_context(None)


def _mark_context(library: str | None) -> None:
    sniffio = _loaded("sniffio")
    if sniffio is not None:  # pragma: no branch  trio needs it
        sniffio.current_async_library_cvar.set(library)


def _loaded(name: str) -> Any:
    """Return the module of this name if it was imported, perhaps not to its end, or `None`."""
    # Not `get`, which takes the lock of the dict twice on Python 3.13 without a GIL: that takes 50 microseconds.
    try:
        return sys.modules[name] if name in sys.modules else None  # noqa: SIM401
    except KeyError:  # its import has just failed, in another thread
        return None


def running_loop() -> Loop | None:
    """Return the event loop that runs in this thread, if any."""
    lowlevel = _loaded("trio.lowlevel")
    in_trio_run = lowlevel and getattr(lowlevel, "in_trio_run", None)  # missing while another thread imports trio
    if in_trio_run is not None and in_trio_run():
        return TrioLoop(lowlevel.current_trio_token())
    events = _loaded("asyncio.events")
    get_running_loop = events and getattr(events, "_get_running_loop", None)  # it does not raise if no loop runs
    native = get_running_loop and get_running_loop()
    return None if native is None else AsyncioLoop(native)


def _runs_here(loop: Loop) -> bool:
    here = running_loop()
    return here is not None and here.native is loop.native


def current_loop() -> Loop:
    """Return the event loop that runs in this thread."""
    loop = running_loop()
    assert loop is not None, "async code runs in a loop"
    return loop
