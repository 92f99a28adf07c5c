"""What runs inside of a `LoopThread`: its event loop, and the cleanup after each call.

The loop is kept from call to call. Between calls it is stopped, not closed.

Guarantees:

- When a call ends, what it leaves behind ends too, as with `asyncio.run`: tasks, async generators, and what runs in the
  loop's default executor. `ROUNDS` bounds that.
- The loop's settings are put back after each call: debug mode, task factory, exception handler, default executor.
- Open transports and timers stay for the next call. So do clients that were made for this loop.

The thread itself makes the loop. Whoever makes a loop leaves its context in the callbacks of the loop's own sockets,
and the context of the first caller, perhaps of a request, would never be freed. The thread's own context is empty.
"""

from __future__ import annotations

import asyncio
import sys
import weakref
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, final

from ._shared import loop_thread_executors
from ._threads import ThreadRunner

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from ._currentthreadexecutor import CurrentThreadExecutor
    from ._taskcall import TaskCall

P = ParamSpec("P")
T = TypeVar("T")

ROUNDS = 10  # how often to cancel the tasks that cancelled tasks have started; arbitrary

threads: dict[ThreadRunner, None] = {}  # the threads of all `LoopThread`s
runners: dict[LoopRunner, None] = {}  # those that have a loop
loops: dict[asyncio.AbstractEventLoop, None] = {}  # their loops


@final
class LoopRunner:
    """The part of a `LoopThread` that its thread keeps alive.

    Args:
        owner: The `LoopThread`. When nobody holds it any more, the thread ends.
    """

    def __init__(self, owner: object) -> None:
        self.thread_runner = ThreadRunner(owner, "unfazed-async-to-sync", threads, self.close_loop)
        # The rest is for the thread only; but others may read `_current`.
        self.loop: asyncio.AbstractEventLoop | None = None
        self._settings: tuple[Any, Any, Any] = (None, None, None)
        self._executor = _DefaultExecutor()
        self._generators = _AsyncGenerators()
        self._current: TaskCall | None = None

    def end_at_exit(self) -> None:
        """Cancel the current call and end the thread, from any thread."""
        current = self._current  # read once: the thread may set it to `None`
        if current is not None:
            current.cancel()
        self.thread_runner.close()

    def run(self, call: TaskCall, context: Context, caller: CurrentThreadExecutor) -> None:
        """Run *call* in *context*, then end all that it has left behind."""
        loop = self.loop
        if loop is None:
            loop = self._make_loop()
        self._current = call
        loop_thread_executors[loop] = caller
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
                if self._executor.has_ended:  # the call has shut it down, and a loop accepts no other one then
                    self.thread_runner.close()

    def _make_loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        self._settings = loop.get_debug(), loop.get_task_factory(), loop.get_exception_handler()
        loop.set_default_executor(self._executor)
        self.loop = loop
        loops[loop] = runners[self] = None
        return loop

    def _put_settings_back(self, loop: asyncio.AbstractEventLoop) -> None:
        """Undo the settings of the call. They may keep alive what belongs to its caller."""
        debug, task_factory, exception_handler = self._settings
        loop.set_debug(debug)
        loop.set_task_factory(task_factory)
        loop.set_exception_handler(exception_handler)
        if not self._executor.has_ended:
            loop.set_default_executor(self._executor)

    def close_loop(self) -> None:
        """Close the loop, as the last step of the thread. If another thread replaces it, that makes a new loop."""
        loop, self.loop = self.loop, None
        executor, self._executor = self._executor, _DefaultExecutor()
        if loop is not None:
            runners.pop(self, None)
            try:
                loop.run_until_complete(loop.shutdown_asyncgens())
            finally:
                # Not `loop.shutdown_default_executor()`: that starts a thread, which is impossible at exit.
                executor.shutdown()
                loop.close()
                loops.pop(loop, None)

    def _end_what_is_left(self, loop: asyncio.AbstractEventLoop) -> None:
        self._generators.ending = True
        for _ in range(ROUNDS):  # pragma: no branch  a task that always starts another one is left in the end
            tasks = asyncio.all_tasks(loop)
            if tasks:
                self._end_tasks(loop, tasks)
            elif self._generators.are_left():
                loop.run_until_complete(self._generators.close(loop))
            elif self._executor.running:
                loop.run_until_complete(self._executor.wait_until_idle())
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


class _DefaultExecutor(ThreadPoolExecutor):
    """A loop's default executor, as asyncio makes one, which also knows what is running in it."""

    def __init__(self) -> None:
        super().__init__(thread_name_prefix="asyncio")
        self.running: set[Future[Any]] = set()
        self.has_ended = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        # In an empty context: this may start a thread, which inherits the context on Python's free-threaded builds.
        submit: Any = partial(super().submit, fn, *args, **kwargs)  # PyPy's `run` has parameters with names
        future: Future[T] = Context().run(submit)
        self.running.add(future)
        future.add_done_callback(self.running.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.has_ended = True
        super().shutdown(wait, cancel_futures=cancel_futures)

    async def wait_until_idle(self) -> None:
        """Wait for all that is running. In the loop, because that may need the loop."""
        await asyncio.gather(*map(asyncio.wrap_future, self.running.copy()), return_exceptions=True)


class _AsyncGenerators:
    """The async generators of a call. `loop.shutdown_asyncgens()` would be for a loop that does not run again.

    The garbage collector may drop a generator in any thread. So both collections change in one step each, and are never
    iterated over. (A `WeakSet` would be.)
    """

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop | None = None
        self._begun: dict[int, weakref.ref[AsyncGenerator[Any, Any]]] = {}
        self._dropped: list[AsyncGenerator[Any, Any]] = []  # by the program, and not closed yet
        self._hooks = sys.get_asyncgen_hooks()
        self._closing: asyncio.Task[None] | None = None
        self.ending = False  # whether dropped generators are left to `close`

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """From now on note the generators that begin and those that are dropped. For the loop; it undoes this."""
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
        """Close a generator that nobody holds any more: soon, as the loop does, or at the end of the call."""
        self._dropped.append(generator)
        if self._loop is not None:  # pragma: no branch  `watch` sets it before the hook
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._start_closing, generator)

    def _start_closing(self, generator: AsyncGenerator[Any, Any]) -> None:
        if self._loop is not None and not self.ending and generator in self._dropped:
            self._closing = self._loop.create_task(self._close_dropped(generator))

    async def _close_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        await generator.aclose()
        self._dropped.remove(generator)  # after it: this task may be cancelled before it begins
        self._closing = None  # the task has the context of whoever dropped the generator

    def are_left(self) -> bool:
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
