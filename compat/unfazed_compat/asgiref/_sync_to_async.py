"""Async code calls sync code in a thread: `SyncToAsync`. `_choose_thread.py` says in which thread.

All functions here must also work for asgiref's own class, into which `install` puts these methods.
"""

from __future__ import annotations

import functools
import os
import sys
from contextlib import suppress
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar, cast, overload

from . import _shared
from ._choose_thread import fallback_executor, send_to_its_thread
from ._loops import current_loop
from ._marks import iscoroutinefunction, markcoroutinefunction
from ._nestedtasks import NestedTasks
from ._threadcall import ThreadCall

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor
    from contextvars import ContextVar
    from types import CodeType
    from weakref import WeakKeyDictionary

    from ._contextmanagers import ThreadSensitiveContext

P = ParamSpec("P")
R = TypeVar("R")


class _SingleThreadExecutorAttribute:
    """A class attribute: asgiref's own executor, or ours if asgiref is not installed.

    A program may assign another one, here for our wrappers only, or to asgiref's class for both.
    """

    def __get__(self, instance: object, owner: object) -> Executor:
        return _shared.single_thread_executor() or fallback_executor


class SyncToAsync(Generic[P, R]):
    """A sync function as an async one, which runs in a thread."""

    threadlocal: ClassVar[threading.local] = _shared.threadlocal
    single_thread_executor: ClassVar[Executor] = cast("Executor", _SingleThreadExecutorAttribute())
    thread_sensitive_context: ClassVar[ContextVar[ThreadSensitiveContext]] = _shared.thread_sensitive_context
    deadlock_context: ClassVar[ContextVar[bool]] = _shared.deadlock_context
    context_to_thread_executor: ClassVar[WeakKeyDictionary[ThreadSensitiveContext, Executor]] = _shared.scope_executors
    # Python 3.12 brought `inspect.markcoroutinefunction`. Before that, `inspect` looks at these attributes.
    if sys.version_info < (3, 12):  # pragma: no branch
        __defaults__: ClassVar[None] = None
        __kwdefaults__: ClassVar[None] = None

    def __init__(
        self,
        func: Callable[P, R],
        thread_sensitive: bool = True,
        executor: Executor | None = None,
        context: Context | None = None,
    ) -> None:
        if (
            not callable(func) or iscoroutinefunction(func) or iscoroutinefunction(getattr(func, "__call__", func))  # noqa: B004
        ):
            raise TypeError("sync_to_async can only be applied to sync functions.")
        functools.update_wrapper(self, func)
        self.func = func
        self.context = context
        self._thread_sensitive = thread_sensitive
        markcoroutinefunction(self)
        if thread_sensitive and executor is not None:
            raise TypeError("executor must not be set when thread_sensitive is True")
        self._executor = executor
        if not hasattr(self, "__name__"):
            self.__name__: str = type(func).__name__
        with suppress(AttributeError):
            self.__self__: object = getattr(func, "__self__")  # noqa: B009

    async def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function in its thread, and await its result.

        Cancellation:
            Before the function has started: it never starts. Later: the async calls that it makes are cancelled. If
            none of them handles that, the cancellation is raised and the function runs on. If it raises an error then,
            `threading.excepthook` shows it.
        """
        loop = current_loop()
        given: Context | None = getattr(self, "context", None)  # asgiref 3.10 and older have none
        context = copy_context() if given is None else given
        nested = NestedTasks()
        child = functools.partial(self.func, *args, **kwargs)
        func = cast("Callable[..., R]", functools.partial(_shared.run_in_context, context))
        call = ThreadCall(loop, functools.partial(self.thread_handler, loop, sys.exc_info(), nested, func, child))
        try:
            send_to_its_thread(self, loop, call)
            await call.wait(nested)
        except BaseException:
            call.cancel()  # a signal handler may have raised while it was being sent
            raise
        finally:
            if given is None:
                _shared.restore_context(context)
        return call.result()

    if sys.version_info < (3, 12):  # pragma: no branch  the same workaround
        __code__: ClassVar[CodeType] = __call__.__code__

    def __get__(self, parent: object, objtype: object) -> Callable[..., Coroutine[Any, Any, R]]:
        """Include *parent* as `self`, for methods."""
        call = cast("Callable[..., Coroutine[Any, Any, R]]", self.__call__)
        return functools.update_wrapper(functools.partial(call, parent), self.func)

    def thread_handler(
        self, loop: Any, exc_info: Any, task_context: Any, func: Callable[..., R], *args: Any, **kwargs: Any
    ) -> R:
        """Call *func*, in the thread, so that its own async calls find the way back to *loop*."""
        before = _shared.worker_state()
        try:
            _shared.set_worker_state((loop, os.getpid(), task_context))
            if exc_info[1] is None:
                return func(*args, **kwargs)
            try:
                raise exc_info[1]  # so that the function sees the `except` block of its caller
            except BaseException:
                return func(*args, **kwargs)
        finally:
            _shared.set_worker_state(before)


@overload
def sync_to_async(
    func: None = None,
    *,
    thread_sensitive: bool = True,
    executor: Executor | None = None,
    context: Context | None = None,
) -> Callable[[Callable[P, R]], SyncToAsync[P, R]]: ...


@overload
def sync_to_async(
    func: Callable[P, R],
    *,
    thread_sensitive: bool = True,
    executor: Executor | None = None,
    context: Context | None = None,
) -> SyncToAsync[P, R]: ...


def sync_to_async(
    func: Callable[P, R] | None = None,
    *,
    thread_sensitive: bool = True,
    executor: Executor | None = None,
    context: Context | None = None,
) -> SyncToAsync[P, R] | Callable[[Callable[P, R]], SyncToAsync[P, R]]:
    """Return a sync function as an async one, or a decorator that does.

    Args:
        func: The sync function.
        thread_sensitive: Whether it must run in the same thread as the sync code around it.
        executor: Where it runs otherwise; `None` is the loop's default executor, on trio anyio's threads.
        context: The context to run it in; `None` is a copy of the caller's, whose changes come back.
    """
    if func is None:
        return lambda func: SyncToAsync(func, thread_sensitive, executor, context)
    return SyncToAsync(func, thread_sensitive, executor, context)
