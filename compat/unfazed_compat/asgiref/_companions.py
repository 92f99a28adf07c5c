"""Threads with an event loop of their own, each the companion of one that runs sync code: how they start, run, end.

The loop is kept from call to call, and stands still between them; what a call leaves behind in it is ended with the
call, as `asyncio.run` does: tasks, async generators, and what its default executor does. The loop's settings are put
back. Open transports and timers stay for the next call, for so do clients that were made for this loop. A companion
ends when its thread ends, or at exit; a forked child makes new ones.

`Companion` is what others hold; when nobody does, its thread ends. The thread holds `_LoopThread`, and makes the loop:
what makes an event loop leaves its context there, in the callbacks of the loop's own sockets, so the context of the
first caller, or of the first request, would never be freed. The thread's context is empty. Nor is the thread ever
interrupted by a signal handler, as the main thread is.

`_running` and `_loops` change in one step each; the threads are daemons: the interpreter does not wait for them. How
they meet is in `_threads.py`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import sys
import threading
import time
import weakref
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, final

from unfazed.concurrency import LoopEndedError

from ._executors import WorkItem, end_lanes
from ._shared import loop_thread_executors
from ._threads import Worker

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from ._calls import Call
    from ._executors import Pump

P = ParamSpec("P")
T = TypeVar("T")

ROUNDS = 10  # how often tasks are cancelled that those which are being cancelled have started; arbitrary
EXIT_SECONDS = 3.0  # at exit, how long all companions together may take to end; arbitrary, as in the core

_EXITING = "the interpreter is exiting"


@final
class Companion(Executor):
    """A thread with an event loop, which does one thing after another. It starts with the first call."""

    def __init__(self) -> None:
        if _exiting:
            raise LoopEndedError(_EXITING)
        self._loop_thread = _LoopThread(self)
        self._callers: dict[int, _Visit] = {}  # the threads that wait for it; one entry belongs to one thread

    def is_lost(self) -> bool:
        """Return whether it takes no more calls: it was ended or given up, or stayed behind when the process forked."""
        worker = self._loop_thread.worker
        return worker.closed or worker.is_left_behind()

    def is_held_up(self) -> bool:
        """Return whether it cannot go on before this very thread does.

        The thread waits for it, in what a signal handler has interrupted; or is its own, in which a finalizer runs.
        """
        visit = self._callers.get(threading.get_ident())
        return (visit is not None and not visit.ended) or self._loop_thread.worker.is_this_thread()

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have the thread call *fn*, between the coroutines."""
        if self.is_lost():
            raise RuntimeError("cannot schedule new futures after shutdown")
        item = WorkItem(lambda: fn(*args, **kwargs))
        self._loop_thread.worker.send(item)
        return item.future

    def run(self, call: Call, pump: Pump, context: Context) -> None:
        """Have the loop run *call* in *context*, and wait for the end of all that it leaves behind there."""
        me = threading.get_ident()
        visit = _Visit(self._loop_thread, call, pump, context)

        def begin() -> bool:
            self._callers[me] = visit  # before it is sent: a handler's call would wait behind it
            try:
                self._loop_thread.worker.send(visit)
            except RuntimeError as exc:  # there are too many, or the interpreter is exiting
                raise LoopEndedError(f"the thread of an event loop could not be started: {exc}") from exc
            return True

        try:
            call.wait(begin, pump, visit.is_gone)
            self._leave(me, visit, call)
        except BaseException:
            self._leave(me, visit, call)
            raise
        visit.read()

    def _leave(self, me: int, visit: _Visit, call: Call) -> None:
        self._callers.pop(me, None)
        if not (visit.ended or call.is_dropped()):  # nobody waits for its end: the next call must not either
            self.shutdown(wait=False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread after what it has been sent so far."""
        self._loop_thread.worker.close()
        if wait:
            self._loop_thread.worker.join()


@final
class _LoopThread:
    """What the thread of a companion knows."""

    def __init__(self, owner: object) -> None:
        self.worker = Worker(owner, "unfazed-companion", _workers, self._end)
        # The rest is for the thread alone; but others look at the current call.
        self.loop: asyncio.AbstractEventLoop | None = None
        self._settings: tuple[Any, Any, Any] = (None, None, None)
        self._executor = _DefaultExecutor()
        self._generators = _Generators()
        self._current: Call | None = None

    def end_at_exit(self) -> None:
        """End it, and cancel what runs in it."""
        current = self._current  # once: it may end meanwhile
        if current is not None:
            current.cancel()
        self.worker.close()

    def run(self, call: Call, context: Context, pump: Pump) -> None:
        """Run *call*, and end all that it leaves behind."""
        loop = self.loop
        if loop is None:
            loop = self._make_loop()
        self._current = call
        loop_thread_executors[loop] = pump
        try:
            loop.call_soon(self._generators.watch, loop)
            task = context.run(call.start, loop)
            if task is not None:
                loop.run_until_complete(task)
        finally:
            try:
                self._end_what_is_left(loop)
            finally:
                self._current = None
                del loop_thread_executors[loop]
                self._put_settings_back(loop)
                if self._executor.ended:  # and a loop takes no other then
                    self.worker.close()

    def _make_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        self._settings = loop.get_debug(), loop.get_task_factory(), loop.get_exception_handler()
        loop.set_default_executor(self._executor)
        self.loop = loop
        _loops[loop] = _running[self] = None
        return loop

    def _put_settings_back(self, loop: asyncio.AbstractEventLoop) -> None:
        """Undo what the call has set: it may lead to what belongs to its caller."""
        debug, task_factory, exception_handler = self._settings
        loop.set_debug(debug)
        loop.set_task_factory(task_factory)
        loop.set_exception_handler(exception_handler)
        if not self._executor.ended:
            loop.set_default_executor(self._executor)

    def _end(self) -> None:
        """End the loop, with the thread. If there is another thread, it makes another one."""
        loop, self.loop = self.loop, None
        executor, self._executor = self._executor, _DefaultExecutor()
        if loop is not None:
            _running.pop(self, None)
            try:
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                executor.shutdown()  # the loop's own way starts a thread, which none can any more at exit
                loop.close()
                _loops.pop(loop, None)

    def _end_what_is_left(self, loop: asyncio.AbstractEventLoop) -> None:
        """End what the call has left behind: tasks, async generators, and what runs in the default executor."""
        self._generators.ending = True
        for _ in range(ROUNDS):  # pragma: no branch  a task that always starts another is left in the end
            tasks = asyncio.all_tasks(loop)
            if tasks:
                self._end_tasks(loop, tasks)
            elif self._generators.left():
                loop.run_until_complete(self._generators.close(loop))
            elif self._executor.running:
                loop.run_until_complete(self._executor.idle())
            else:
                break

    def _end_tasks(self, loop: asyncio.AbstractEventLoop, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.wait(tasks))
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                message = "a task that was left over at the end of async_to_sync() has failed"
                loop.call_exception_handler({"message": message, "exception": error, "task": task})


@final
class _Visit:
    """One call in the loop of a companion; a future would do, and take as long as all the rest."""

    __slots__ = ("_call", "_context", "_error", "_loop_thread", "_pump", "_thread", "ended")

    def __init__(self, loop_thread: _LoopThread, call: Call, pump: Pump, context: Context) -> None:
        self._loop_thread = loop_thread
        self._call = call
        self._pump = pump
        self._context = context
        self._thread: threading.Thread | None = None  # that has begun it
        self._error: BaseException | None = None
        self.ended = False

    def run(self) -> None:
        self._thread = threading.current_thread()
        try:
            self._loop_thread.run(self._call, self._context, self._pump)
        except BaseException as exc:
            self._error = exc
        self._finish()

    def drop(self, error: BaseException) -> None:
        if self._call.drop():
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._finish()

    def _finish(self) -> None:
        self.ended = True
        self._pump.finish()

    def is_gone(self) -> bool:
        """Return whether nobody will end it. See to it that somebody does."""
        if self._thread is not None:
            return not self._thread.is_alive()
        worker = self._loop_thread.worker
        if worker.is_left_behind():
            return True
        worker.look_after()
        return False

    def read(self) -> None:
        """Raise what another task has ended the loop with: `SystemExit`, say."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error


class _DefaultExecutor(ThreadPoolExecutor):
    """The default executor of a loop, as asyncio makes one, which knows what it still has to do."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="asyncio")
        self.running: set[Future[Any]] = set()
        self.ended = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        # In an empty context: this may start a thread, which inherits it on some builds. *fn* brings its own.
        future = Context().run(super().submit, fn, *args, **kwargs)
        self.running.add(future)
        future.add_done_callback(self.running.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.ended = True
        super().shutdown(wait, cancel_futures=cancel_futures)

    async def idle(self) -> None:
        """Wait for all that is running, in the loop, which that may need."""
        await asyncio.gather(*map(asyncio.wrap_future, self.running.copy()), return_exceptions=True)


class _Generators:
    """The async generators that a loop has begun: `loop.shutdown_asyncgens` is for one that is not to run again.

    A generator may be dropped on any thread, by the garbage collector. So both collections change in one step each, and
    are not iterated over (a `WeakSet` would be).
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun: dict[int, weakref.ref[AsyncGenerator[Any, Any]]] = {}
        self._dropped: list[AsyncGenerator[Any, Any]] = []  # by the program, and not closed yet
        self._hooks = sys.get_asyncgen_hooks()
        self._closing: asyncio.Task[None] | None = None
        self.ending = False  # whether those that are dropped are left for `close`

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take note of them from now on, in the loop, and of those that the program drops. The loop undoes this."""
        self._loop = loop
        self.ending = False
        self._hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._begin, self._drop)

    def _begin(self, generator: AsyncGenerator[Any, Any]) -> None:
        key, begun = id(generator), self._begun
        begun[key] = weakref.ref(generator, lambda _: begun.pop(key, None))
        if self._hooks.firstiter is not None:  # pragma: no branch  asyncio and uvloop have one
            self._hooks.firstiter(generator)

    def _drop(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Close one that nobody holds any more: soon, as the loop does, or at the end of the call."""
        self._dropped.append(generator)
        if self._loop is not None:  # pragma: no branch  it was set before the hook
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._start_closing, generator)

    def _start_closing(self, generator: AsyncGenerator[Any, Any]) -> None:
        if self._loop is not None and not self.ending and generator in self._dropped:
            self._closing = self._loop.create_task(self._close_dropped(generator))

    async def _close_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        await generator.aclose()
        self._dropped.remove(generator)  # only now: the task may be cancelled before it has begun
        self._closing = None  # with the context of whoever dropped it

    def left(self) -> bool:
        return bool(self._begun or self._dropped)

    async def close(self, loop: asyncio.AbstractEventLoop) -> None:
        generators = [each for reference in self._begun.copy().values() if (each := reference()) is not None]
        self._begun.clear()
        while self._dropped:
            generators.append(self._dropped.pop(0))
        for generator in generators:
            try:
                await generator.aclose()
            except Exception as exc:
                message = "an async generator that was left over at the end of async_to_sync() has failed"
                loop.call_exception_handler({"message": message, "exception": exc, "asyncgen": generator})


_thread = threading.local()


def companion_of_this_thread() -> Companion | None:
    """Return this thread's companion; none, if that cannot go on before the thread does."""
    own: Companion | None = getattr(_thread, "own", None)  # goes when the thread goes
    if own is None or own.is_lost():
        own = _thread.own = Companion()
    return None if own.is_held_up() else own


_workers: dict[Worker, None] = {}
_running: dict[_LoopThread, None] = {}  # those that have a loop
_loops: dict[asyncio.AbstractEventLoop, None] = {}  # and the loops
_left_behind: list[object] = []  # by a fork: to close a loop that is shared with the parent would disturb that
_exiting = False


def end_companions(seconds: float = EXIT_SECONDS) -> None:
    """End all companions, and wait for that."""
    deadline = time.monotonic() + seconds
    for loop_thread in _running.copy():
        loop_thread.end_at_exit()
    ending = _workers.copy()
    for worker in ending:
        worker.close()
    for worker in ending:
        worker.join(max(0.0, deadline - time.monotonic()))


def stands_still(loop: object) -> bool:
    """Return whether *loop* will never run what it has been sent: it is closed, or of a companion, between calls."""
    if not isinstance(loop, asyncio.AbstractEventLoop):
        return False
    return loop.is_closed() or (not loop.is_running() and loop in _loops)


def _end_at_exit() -> None:
    """At exit: first the threads of sync code, which may wait for companions."""
    global _exiting
    end_lanes()
    _exiting = True
    end_companions()


def _start_afresh() -> None:
    """After a fork: the companions have not come along."""
    _left_behind.extend(_running)
    _running.clear()
    _workers.clear()
    _loops.clear()


atexit.register(_end_at_exit)
if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_start_afresh)
