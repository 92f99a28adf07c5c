"""Threads with an event loop of their own, each the companion of one that runs sync code: how they start, run, end.

The loop is kept from call to call, and stands still between them; what a call leaves behind in it is ended with the
call, as `asyncio.run` does: tasks, async generators, and what its default executor does. The loop's settings are put
back. Open transports and timers stay for the next call, for so do clients that were made for this loop. A companion
ends when its thread ends, or at exit; a forked child makes new ones.

`_running` changes in one step each. Its members are daemon threads: the interpreter does not wait for them.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import sys
import threading
import time
import weakref
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextvars import Context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, final

from unfazed.concurrency import LoopEndedError

from ._executors import WorkItem, end_lanes
from ._shared import loop_thread_executors

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable

    from ._calls import Call
    from ._executors import Pump

P = ParamSpec("P")
T = TypeVar("T")

ROUNDS = 10  # how often tasks are cancelled that those which are being cancelled have started; arbitrary
EXIT_SECONDS = 3.0  # at exit, how long all companions together may take to end; arbitrary, as in the core

_EXITING = "the interpreter is exiting"
_numbers = itertools.count(1)


@final
class Companion(Executor):
    """A thread with an event loop, which does one thing after another."""

    def __init__(self) -> None:
        if _exiting:
            raise LoopEndedError(_EXITING)
        self.loop = loop = asyncio.new_event_loop()
        self._settings = loop.get_debug(), loop.get_task_factory(), loop.get_exception_handler()
        self._executor = _DefaultExecutor()
        self.callers: set[int] = set()  # the threads that wait for it
        self._items: SimpleQueue[WorkItem[Any] | _Visit | None] = SimpleQueue()
        self._generators = _Generators(self.loop)
        self._current: Call | None = None
        self._given_up = False  # by a caller who does not wait for the end of a call: the next one must not either
        options: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
        name = f"unfazed-companion-{next(_numbers)}"
        self._thread = threading.Thread(target=self._main, name=name, daemon=True, **options)
        _running.add(self)
        try:
            self._thread.start()
        except RuntimeError as exc:  # there are too many, or the interpreter is exiting
            _running.discard(self)
            self.loop.close()
            raise LoopEndedError(f"the thread of an event loop could not be started: {exc}") from exc

    def is_gone(self) -> bool:
        return not self._thread.is_alive()

    def is_lost(self) -> bool:
        """Return whether the thread has ended, stayed behind when the process forked, or been given up."""
        return self._given_up or self not in _running

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have the thread call *fn*, between the coroutines."""
        item = WorkItem(lambda: fn(*args, **kwargs))
        self._items.put(item)
        return item.future

    def run(self, call: Call, pump: Pump, context: Context) -> None:
        """Have the loop run *call* in *context*, and wait for the end of all that it leaves behind there."""
        me = threading.get_ident()
        self.callers.add(me)
        visit = _Visit(self, call, pump, context)
        self._items.put(visit)
        try:
            call.wait(pump, self.is_gone)
        finally:
            self.callers.discard(me)
            if not visit.ended:
                self._given_up = True
                self.shutdown(wait=False)
        visit.read()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread after what it has been sent so far."""
        self._items.put(None)
        if wait:
            self._thread.join()

    def end_at_exit(self) -> None:
        """End it, and cancel what runs in it."""
        current = self._current  # once: it may end meanwhile
        if current is not None:
            current.cancel()
        self.shutdown(wait=False)

    def join(self, seconds: float) -> None:
        self._thread.join(seconds)

    def _main(self) -> None:
        while True:
            item = self._items.get()
            if item is None:
                break
            item.run()
            del item  # its arguments and its result are nothing to us while we wait
        _running.discard(self)
        self.loop.run_until_complete(self.loop.shutdown_asyncgens())
        self._executor.shutdown()  # the loop's own way starts a thread, which none can any more at exit
        self.loop.close()

    def _run(self, call: Call, context: Context, pump: Pump) -> None:
        self._current = call
        loop_thread_executors[self.loop] = pump
        self._put_settings_back()
        try:
            self.loop.call_soon(self._generators.watch)
            task = context.run(call.start, self.loop)
            if task is not None:
                self.loop.run_until_complete(task)
        finally:
            try:
                self._end_what_is_left()
            finally:
                self._current = None
                del loop_thread_executors[self.loop]
                if self._executor.ended:  # and a loop takes no other then
                    self._given_up = True
                    self.shutdown(wait=False)

    def _put_settings_back(self) -> None:
        debug, task_factory, exception_handler = self._settings
        self.loop.set_debug(debug)
        self.loop.set_task_factory(task_factory)
        self.loop.set_exception_handler(exception_handler)
        self.loop.set_default_executor(self._executor)

    def _end_what_is_left(self) -> None:
        """End what the call has left behind: tasks, async generators, and what runs in the default executor."""
        self._generators.ending = True
        for _ in range(ROUNDS):  # pragma: no branch  a task that always starts another is left in the end
            tasks = asyncio.all_tasks(self.loop)
            if tasks:
                self._end_tasks(tasks)
            elif self._generators.left():
                self.loop.run_until_complete(self._generators.close())
            elif self._executor.running:
                self.loop.run_until_complete(self._executor.idle())
            else:
                break

    def _end_tasks(self, tasks: set[asyncio.Task[Any]]) -> None:
        for task in tasks:
            task.cancel()
        self.loop.run_until_complete(asyncio.wait(tasks))
        for task in tasks:
            error = None if task.cancelled() else task.exception()
            if error is not None:
                message = "a task that was left over at the end of async_to_sync() has failed"
                self.loop.call_exception_handler({"message": message, "exception": error, "task": task})


@final
class _Visit:
    """One call in the loop of a companion; a future would do, and take as long as all the rest."""

    __slots__ = ("_call", "_companion", "_context", "_error", "_pump", "ended")

    def __init__(self, companion: Companion, call: Call, pump: Pump, context: Context) -> None:
        self._companion = companion
        self._call = call
        self._pump = pump
        self._context = context
        self._error: BaseException | None = None
        self.ended = False

    def run(self) -> None:
        try:
            self._companion._run(self._call, self._context, self._pump)
        except BaseException as exc:
            self._error = exc
        self.ended = True
        self._pump.finish()

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
        future = super().submit(fn, *args, **kwargs)
        self.running.add(future)
        future.add_done_callback(self.running.discard)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        self.ended = True
        super().shutdown(wait, cancel_futures=cancel_futures)

    async def idle(self) -> None:
        """Wait for all that is running, in the loop, which that may need."""
        await asyncio.gather(*map(asyncio.wrap_future, tuple(self.running)), return_exceptions=True)


class _Generators:
    """The async generators that a loop has begun: `loop.shutdown_asyncgens` is for one that is not to run again."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._begun: weakref.WeakSet[AsyncGenerator[Any, Any]] = weakref.WeakSet()
        self._dropped: list[AsyncGenerator[Any, Any]] = []  # by the program, and not closed yet
        self._hooks = sys.get_asyncgen_hooks()
        self._closing: asyncio.Task[None] | None = None
        self.ending = False  # whether those that are dropped are left for `close`

    def watch(self) -> None:
        """Take note of them from now on, in the loop, and of those that the program drops. The loop undoes this."""
        self.ending = False
        self._hooks = sys.get_asyncgen_hooks()
        sys.set_asyncgen_hooks(self._begin, self._drop)

    def _begin(self, generator: AsyncGenerator[Any, Any]) -> None:
        self._begun.add(generator)
        if self._hooks.firstiter is not None:  # pragma: no branch  asyncio and uvloop have one
            self._hooks.firstiter(generator)

    def _drop(self, generator: AsyncGenerator[Any, Any]) -> None:
        """Close one that nobody holds any more: soon, as the loop does, or at the end of the call."""
        self._dropped.append(generator)
        self._loop.call_soon_threadsafe(self._start_closing, generator)

    def _start_closing(self, generator: AsyncGenerator[Any, Any]) -> None:
        if not self.ending and generator in self._dropped:
            self._closing = self._loop.create_task(self._close_dropped(generator))

    async def _close_dropped(self, generator: AsyncGenerator[Any, Any]) -> None:
        await generator.aclose()
        self._dropped.remove(generator)  # only now: the task may be cancelled before it has begun

    def left(self) -> bool:
        return bool(self._begun or self._dropped)

    async def close(self) -> None:
        generators = [*self._begun, *self._dropped]
        self._begun.clear()
        self._dropped.clear()
        for generator in generators:
            try:
                await generator.aclose()
            except Exception as exc:
                message = "an async generator that was left over at the end of async_to_sync() has failed"
                self._loop.call_exception_handler({"message": message, "exception": exc, "asyncgen": generator})


class _Own:
    """A thread's hold on its companion, which goes when the thread goes."""

    def __init__(self) -> None:
        self.companion = Companion()

    def __del__(self) -> None:
        companion = getattr(self, "companion", None)  # none, if it could not start
        if companion is not None:
            companion.shutdown(wait=False)


_thread = threading.local()


def companion_of_this_thread() -> Companion | None:
    """Return this thread's companion; none, if the thread waits for it already, in what a signal has interrupted."""
    own: _Own | None = getattr(_thread, "own", None)
    if own is None or own.companion.is_lost():
        own = _thread.own = _Own()
    return None if threading.get_ident() in own.companion.callers else own.companion


_running: set[Companion] = set()
_left_behind: list[Companion] = []  # by a fork: to close a loop that is shared with the parent would disturb that
_exiting = False


def end_companions(seconds: float = EXIT_SECONDS) -> None:
    """End all companions, and wait for that."""
    deadline = time.monotonic() + seconds
    ending = tuple(_running)
    for companion in ending:
        companion.end_at_exit()
    for companion in ending:
        companion.join(max(0.0, deadline - time.monotonic()))


def stands_still(loop: object) -> bool:
    """Return whether *loop* will never run what it has been sent: it is closed, or of a companion, between calls."""
    if not isinstance(loop, asyncio.AbstractEventLoop):
        return False
    return loop.is_closed() or (not loop.is_running() and any(loop is each.loop for each in tuple(_running)))


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


atexit.register(_end_at_exit)
if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_start_afresh)
