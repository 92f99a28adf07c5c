"""Sync code calls async code: `AsyncToSync`.

    in a worker thread of a loop    the coroutine runs in that loop
    in any other thread             in the loop of the thread's companion
    in a thread that runs a loop    nowhere: `RuntimeError`

Meanwhile the calling thread runs the thread-sensitive work that the coroutine sends to it. All functions here work for
the methods of asgiref's own class as well, in whose place `install` puts them.
"""

from __future__ import annotations

import asyncio
import functools
import os
import sys
import threading
import warnings
import weakref
from concurrent.futures import Executor, Future
from contextlib import suppress
from contextvars import Context, Token, copy_context
from threading import get_ident
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar, overload

from anyio.lowlevel import checkpoint

from unfazed.concurrency import LoopEndedError

from . import _shared
from ._calls import Call
from ._companions import Companion, companion_of_this_thread, stands_still
from ._executors import Pump
from ._jobs import Calls
from ._loops import Loop, TrioLoop, current_loop, current_task, is_worker, loop_of_worker, was_cancelled_by_the_end
from ._marks import iscoroutinefunction

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import ContextVar
    from types import TracebackType
    from typing import Self
    from weakref import WeakKeyDictionary

    ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None]

P = ParamSpec("P")
R = TypeVar("R")


class AsyncToSync(Generic[P, R]):
    """An async function as a sync one, for threads in which no loop runs."""

    executors: ClassVar[Any] = _shared.executors
    loop_thread_executors: ClassVar[dict[Any, Executor]] = _shared.loop_thread_executors
    async_single_thread_context: ClassVar[ContextVar[AsyncSingleThreadContext]] = _shared.async_single_thread_context
    context_to_thread_executor: ClassVar[WeakKeyDictionary[AsyncSingleThreadContext, Executor]] = (
        _shared.single_thread_contexts
    )

    def __init__(self, awaitable: Callable[P, Awaitable[R]], force_new_loop: bool = False) -> None:
        if not callable(awaitable) or not (
            iscoroutinefunction(awaitable) or iscoroutinefunction(getattr(awaitable, "__call__", awaitable))  # noqa: B004
        ):
            warnings.warn("async_to_sync was passed a non-async-marked callable", stacklevel=2)
        for name in functools.WRAPPER_ASSIGNMENTS:  # and nothing else: this is no coroutine function
            with suppress(AttributeError):
                setattr(self, name, getattr(awaitable, name))
        self.awaitable = awaitable
        with suppress(AttributeError):
            self.__self__: object = getattr(awaitable, "__self__")  # noqa: B009
        self.force_new_loop = force_new_loop
        if _shared.binds_to_loop:
            self.main_event_loop_pid: int = os.getpid()
            with suppress(RuntimeError):
                self.main_event_loop: Loop | None = current_loop()

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the async function, and wait for its result.

        Interrupted by Ctrl-C, it is cancelled, and its cleanup is awaited; a second Ctrl-C stops waiting.
        """
        try:
            current_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError(
                "You cannot use AsyncToSync in the same thread as an async event loop - "
                "just await the async function directly."
            )
        loop = None if self.force_new_loop else _loop_of_this_thread(self)
        state = _shared.worker_state()
        executors = _shared.executors
        outer: Executor | None = getattr(executors, "current", None)
        pump = executors.current = Pump(outer)
        context = [copy_context()]
        result: Future[R] = Future()
        try:
            inner = self.awaitable(*args, **kwargs)
            call = Call(self.main_wrap(result, sys.exc_info(), _calls_of_this_thread(), context, inner), inner, result)
            try:
                if loop is None or not _run_there(loop, call, pump):
                    _run_apart(call, pump, context[0], self.force_new_loop)
            finally:
                call.drop()
            return result.result()
        finally:
            _shared.set_worker_state(state)  # asgiref's own wrappers leave it behind, with a loop that stands still
            _shared.restore_context(context[0])
            executors.current = outer
            del result  # what it raised leads here

    def __get__(self, parent: object, objtype: object) -> Callable[..., R]:
        """Include *parent* as `self`, for methods."""
        call: Callable[..., R] = self.__call__
        return functools.update_wrapper(functools.partial(call, parent), self.awaitable)

    async def main_wrap(
        self,
        call_result: Future[R],
        exc_info: ExcInfo,
        task_context: list[Any] | None,
        context: list[Context],
        awaitable: Awaitable[R],
    ) -> None:
        """Await *awaitable* in the loop, and write what comes of it to *call_result*."""
        _shared.restore_context(context[0])
        loop = current_loop()
        _shared.mark_context("trio" if isinstance(loop, TrioLoop) else "asyncio")
        task = current_task(loop)
        is_cancelled = False
        if isinstance(task_context, Calls):
            is_cancelled = task_context.begin(task)
        elif task_context is not None:
            task_context.append(task)
        result: Any = None
        error: BaseException | None = None
        try:
            if is_cancelled:
                await _never_begin(awaitable)
            if exc_info[1] is None:
                result = await awaitable
            else:
                try:
                    raise exc_info[1]  # so that the coroutine, in an `except` block of the caller's, can raise it anew
                except BaseException:
                    result = await awaitable
        except GeneratorExit:
            call_result.set_exception(LoopEndedError("the event loop of this call has ended"))
            raise
        except BaseException as exc:
            error = exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)  # ours refers back to it
        if isinstance(task_context, Calls):
            task_context.end(task, error)
        elif task_context is not None:
            task_context.remove(task)
        if error is not None and was_cancelled_by_the_end(loop, task, error):
            error = LoopEndedError("the event loop of this call has ended")
        context[0] = copy_context()  # before the result: the caller goes on with that
        if error is None:
            call_result.set_result(result)
        else:
            call_result.set_exception(error)
        del error


async def _never_begin(awaitable: Awaitable[object]) -> None:
    """Raise the cancellation now: at its first step, *awaitable* may send to a thread what is not to run any more."""
    try:
        await checkpoint()
    finally:
        close: Callable[[], object] | None = getattr(awaitable, "close", None)
        if close is not None:
            close()


def _loop_of_this_thread(wrapper: object) -> Loop | None:
    """Return the loop whose worker this thread is, or else the one that *wrapper* is bound to.

    None that has ended, or stayed behind when the process forked.
    """
    loop = _known_loop(_shared.threadlocal, 0)
    if loop is not None:
        return loop if loop.is_running() else None
    loop = _known_loop(wrapper, _shared.process)
    return loop if loop is not None and loop.is_running() else loop_of_worker()


def _known_loop(holder: object, process: int) -> Loop | None:
    loop: Loop | None = getattr(holder, "main_event_loop", None)
    return loop if getattr(holder, "main_event_loop_pid", process) == os.getpid() else None


def _calls_of_this_thread() -> list[Any] | None:
    """Return the list of the async calls that this thread makes as a worker, unless it has forked since."""
    forked = getattr(_shared.threadlocal, "main_event_loop_pid", 0) != os.getpid()
    return None if forked else getattr(_shared.threadlocal, "task_context", None)


def _run_there(loop: Loop, call: Call, pump: Pump) -> bool:
    """Run *call* in *loop*, and wait for its end. Return whether that takes it."""
    try:
        loop.call_soon_threadsafe(call.start, loop)
    except RuntimeError:  # it has ended meanwhile
        return False
    call.result.add_done_callback(pump.finish)
    is_gone = loop.is_closed if isinstance(loop, TrioLoop) else functools.partial(stands_still, loop)
    call.wait(pump, is_gone, lending=is_worker())
    return True


# Guards the making of what threads in one `AsyncSingleThreadContext` share; made anew in a forked child.
_sharing = threading.Lock()


def _forget_lock() -> None:
    global _sharing
    _sharing = threading.Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_forget_lock)


def _run_apart(call: Call, pump: Pump, context: Context, new_loop: bool) -> None:
    """Run *call* in the loop of a companion, and wait for the end of all that it leaves there."""
    scope = _shared.async_single_thread_context.get(None)
    temporary: Companion | None = None
    if scope is None:
        executor: Executor | None = None if new_loop else companion_of_this_thread()
    else:
        executor = _shared.single_thread_contexts.get(scope)
        if isinstance(executor, Companion) and executor.is_lost():
            del _shared.single_thread_contexts[scope]
            executor = None
        if executor is None:
            with _sharing:
                executor = _shared.single_thread_contexts.get(scope)
                if executor is None:
                    executor = _shared.single_thread_contexts[scope] = Companion()
                    # a copied context may be used, and make one, when the `with` block has ended
                    weakref.finalize(scope, executor.shutdown, wait=False).atexit = False
        elif isinstance(executor, Companion) and get_ident() in executor.callers:
            executor = None  # in what a signal has interrupted: it would wait for itself
    if executor is None:
        executor = temporary = Companion()
    try:
        if isinstance(executor, Companion) and (executor is temporary or not new_loop):
            executor.run(call, pump, context)
        else:
            done = executor.submit(context.run, lambda: asyncio.run(_run_in_new_loop(call, pump)))
            done.add_done_callback(pump.finish)
            call.wait(pump, bool)
            done.result()
    finally:
        if temporary is not None:
            temporary.shutdown(wait=False)


async def _run_in_new_loop(call: Call, pump: Pump) -> None:
    loop = asyncio.get_running_loop()
    _shared.loop_thread_executors[loop] = pump
    try:
        task = call.start(loop)
        if task is not None:
            await asyncio.wait([task])
    finally:
        del _shared.loop_thread_executors[loop]


@overload
def async_to_sync(
    awaitable: None = None, *, force_new_loop: bool = False
) -> Callable[[Callable[P, Awaitable[R]]], AsyncToSync[P, R]]: ...


@overload
def async_to_sync(awaitable: Callable[P, Awaitable[R]], *, force_new_loop: bool = False) -> AsyncToSync[P, R]: ...


def async_to_sync(
    awaitable: Callable[P, Awaitable[R]] | None = None, *, force_new_loop: bool = False
) -> AsyncToSync[P, R] | Callable[[Callable[P, Awaitable[R]]], AsyncToSync[P, R]]:
    """Return an async function as a sync one, or a decorator that does.

    Args:
        awaitable: The async function.
        force_new_loop: Whether each call runs in a new loop in a new thread.
    """
    if awaitable is None:
        return lambda awaitable: AsyncToSync(awaitable, force_new_loop=force_new_loop)
    return AsyncToSync(awaitable, force_new_loop=force_new_loop)


class AsyncSingleThreadContext:
    """While it lasts, all async code that sync code calls runs in one thread, unless in that of a running loop."""

    def __init__(self) -> None:
        self.token: Token[Any] | None = None

    def __enter__(self) -> Self:
        if _shared.async_single_thread_context.get(None) is None:
            self.token = _shared.async_single_thread_context.set(self)
        return self

    def __exit__(self, exc: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        if self.token is None:
            return
        executor = _shared.single_thread_contexts.pop(self, None)
        if executor is not None:
            executor.shutdown()
        _shared.async_single_thread_context.reset(self.token)
        self.token = None
