"""Sync code calls async code: `AsyncToSync`. `_choose_loop.py` says which loop runs the call.

All functions here must also work for asgiref's own class, into which `install` puts these methods.

Guarantee: when a call returns or raises, its thread and its context are as they were before, plus what the async
function has changed in the context. That holds as well if a signal handler raises at any moment.
"""

from __future__ import annotations

import functools
import os
import sys
import warnings
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar, overload

from anyio.lowlevel import checkpoint

from unfazed.concurrency import LoopEndedError

from . import _shared
from ._choose_loop import loop_of_this_thread, run_in_its_loop, run_in_loop_thread, task_context_of_this_thread
from ._currentthreadexecutor import CurrentThreadExecutor
from ._futures import OneShotFuture
from ._loops import Loop, TrioLoop, current_loop, current_task, was_cancelled_by_the_end
from ._marks import iscoroutinefunction
from ._nestedtasks import NestedTasks
from ._taskcall import TaskCall

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor, Future
    from contextvars import ContextVar
    from types import TracebackType
    from weakref import WeakKeyDictionary

    from ._contextmanagers import AsyncSingleThreadContext

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
        loop = None if self.force_new_loop else loop_of_this_thread(self)
        state = _shared.worker_state()
        outer: Executor | None = getattr(_shared.executors, "current", None)
        caller = CurrentThreadExecutor(outer)
        context: list[Context] = []
        result: OneShotFuture[R] = OneShotFuture()
        try:
            before = copy_context()  # a workaround: see `_threads.py`
            _shared.executors.current = caller
            del before
            context.append(copy_context())
            inner = self.awaitable(*args, **kwargs)
            work = self.main_wrap(result, sys.exc_info(), task_context_of_this_thread(), context, inner)
            call = TaskCall(work, inner, result)
            try:
                if loop is None or not run_in_its_loop(loop, call, caller):
                    run_in_loop_thread(call, caller, context[0], self.force_new_loop)
            finally:
                call.give_up()
            _restore(state, context, outer)
            return result.result()
        except BaseException:
            caller.close(interrupted=True)
            _restore(state, context, outer)  # perhaps again: a signal handler may have raised in it
            raise

    def __get__(self, parent: object, objtype: object) -> Callable[..., R]:
        """Include *parent* as `self`, for methods."""
        call: Callable[..., R] = self.__call__
        return functools.update_wrapper(functools.partial(call, parent), self.awaitable)

    async def main_wrap(
        self,
        call_result: OneShotFuture[R] | Future[R],
        exc_info: ExcInfo,
        task_context: list[Any] | None,
        context: list[Context],
        awaitable: Awaitable[R],
    ) -> None:
        """Await *awaitable* in the loop, and write its result or error to *call_result*."""
        _shared.restore_context(context[0])
        loop = current_loop()
        _shared.set_library("trio" if isinstance(loop, TrioLoop) else "asyncio")
        task = current_task(loop)
        is_cancelled = False
        if isinstance(task_context, NestedTasks):
            is_cancelled = task_context.begin(task)
        elif task_context is not None:
            task_context.append(task)
        result: Any = None
        error: BaseException | None = None
        try:
            if is_cancelled:
                await _raise_cancellation(awaitable)
            if exc_info[1] is None:
                result = await awaitable
            else:
                try:
                    raise exc_info[1]  # so that the coroutine sees the `except` block of its caller
                except BaseException:
                    result = await awaitable
        except GeneratorExit:
            call_result.set_exception(LoopEndedError("the event loop of this call has ended"))
            raise
        except BaseException as exc:
            error = exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)  # our frame refers back to it
        try:
            _end(call_result, loop, task, task_context, context, result, error)
        except BaseException:  # a signal handler raised
            _end(call_result, loop, task, task_context, context, result, error)
            raise
        finally:
            del error


def _end(
    call_result: Any,
    loop: Loop,
    task: Any,
    task_context: list[Any] | None,
    context: list[Context],
    result: object,
    error: BaseException | None,
) -> None:
    """Write the result or error of the coroutine. Doing so twice is harmless."""
    try:
        if isinstance(task_context, NestedTasks):
            task_context.end(task, error)
        elif task_context is not None and task in task_context:
            task_context.remove(task)
        if error is not None and was_cancelled_by_the_end(loop, task, error):
            error = LoopEndedError("the event loop of this call has ended")
        context[0] = copy_context()  # before the result, which lets the caller go on
        # A future of ours is always written again, as `on_done` may have been interrupted. Others can be written once.
        future: Any = call_result  # not narrowed by `isinstance`
        if isinstance(call_result, OneShotFuture) or not future.done():
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)
    finally:
        del error


def _restore(state: tuple[object, object, object], context: list[Context], outer: Executor | None) -> None:
    """Restore this thread and its context after the call. Doing so twice is harmless."""
    _shared.set_worker_state(state)  # asgiref's own wrappers would leave theirs behind, with a stopped loop
    if context:
        _shared.restore_context(context[0])
    before = copy_context()  # a workaround: see `_threads.py`
    _shared.executors.current = outer
    del before


async def _raise_cancellation(awaitable: Awaitable[object]) -> None:
    """Raise the cancellation before *awaitable* begins: its first step might send a call to a thread."""
    try:
        await checkpoint()
    finally:
        close: Callable[[], object] | None = getattr(awaitable, "close", None)
        if close is not None:
            close()


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
