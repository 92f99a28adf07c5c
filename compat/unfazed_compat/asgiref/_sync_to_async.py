"""Async code calls sync code in a thread: `SyncToAsync`, and `ThreadSensitiveContext`, which says in which.

Thread-sensitive calls go, in this order, to

1. the sync code that called the async code, and waits for it (`AsyncToSync.executors`)
2. the thread of a `ThreadSensitiveContext`
3. the thread that waits for all that the current loop does (`AsyncToSync.loop_thread_executors`)
4. one thread for the whole process (`SyncToAsync.single_thread_executor`)

and where 1 or 3 waits no more, for the call is made by a task that has outlived it, to the next one. Other calls go to
the loop's default executor, which on trio is anyio's threads. All functions here work for the methods of asgiref's own
class as well, in whose place `install` puts them.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context, Token, copy_context
from typing import TYPE_CHECKING, Any, ClassVar, Generic, ParamSpec, TypeVar, cast, overload

from . import _shared
from ._executors import Lane, Pump, send
from ._jobs import Calls, Job
from ._loops import Loop, TrioLoop, current_loop
from ._marks import iscoroutinefunction, markcoroutinefunction
from ._threads import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from concurrent.futures import Executor
    from contextvars import ContextVar
    from types import CodeType, TracebackType
    from typing import Self
    from weakref import WeakKeyDictionary

P = ParamSpec("P")
R = TypeVar("R")


lane = Lane()
_shared.replace_unused_executor(lane)  # asgiref's hangs in forked children


class _SingleThreadExecutor:
    """An attribute of a class: the executor that asgiref has there, or one of our own; or whatever is assigned.

    Assigned here, it is for these wrappers alone; on asgiref's class, for both.
    """

    def __get__(self, instance: object, owner: object) -> Executor:
        return _shared.single_thread_executor() or lane


class SyncToAsync(Generic[P, R]):
    """A sync function as an async one, which runs in a thread."""

    threadlocal: ClassVar[threading.local] = _shared.threadlocal
    single_thread_executor: ClassVar[Executor] = cast("Executor", _SingleThreadExecutor())
    thread_sensitive_context: ClassVar[ContextVar[ThreadSensitiveContext]] = _shared.thread_sensitive_context
    deadlock_context: ClassVar[ContextVar[bool]] = _shared.deadlock_context
    context_to_thread_executor: ClassVar[WeakKeyDictionary[ThreadSensitiveContext, Executor]] = _shared.scope_executors
    # the marker for `inspect` came with 3.12; before, that looks at these
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

        Cancelled before the function has started, it never starts. Later, the async calls that it makes are
        cancelled, and the cancellation is raised if none of those has seen to it; the function itself runs on, and
        what it raises is shown.
        """
        loop = current_loop()
        given: Context | None = getattr(self, "context", None)  # asgiref 3.10 and before has none
        context = copy_context() if given is None else given
        calls = Calls()
        child = functools.partial(self.func, *args, **kwargs)
        func = cast("Callable[..., R]", functools.partial(_shared.run_in_context, context))
        job = Job(loop, functools.partial(self.thread_handler, loop, sys.exc_info(), calls, func, child))
        try:
            send_to_its_thread(self, loop, job)
            await job.wait(calls)
        except BaseException:
            job.cancel()  # if a signal handler raised while it was being sent
            raise
        finally:
            if given is None:
                _shared.restore_context(context)
        return job.result()

    if sys.version_info < (3, 12):  # pragma: no branch  as above
        __code__: ClassVar[CodeType] = __call__.__code__

    def __get__(self, parent: object, objtype: object) -> Callable[..., Coroutine[Any, Any, R]]:
        """Include *parent* as `self`, for methods."""
        call = cast("Callable[..., Coroutine[Any, Any, R]]", self.__call__)
        return functools.update_wrapper(functools.partial(call, parent), self.func)

    def thread_handler(
        self, loop: Any, exc_info: Any, task_context: Any, func: Callable[..., R], *args: Any, **kwargs: Any
    ) -> R:
        """Call *func*, in the thread, so that the async code which it calls finds its way back."""
        before = _shared.worker_state()
        try:
            _shared.set_worker_state((loop, os.getpid(), task_context))
            if exc_info[1] is None:
                return func(*args, **kwargs)
            try:
                raise exc_info[1]  # so that the function, in an `except` block of the caller's, can raise it anew
            except BaseException:
                return func(*args, **kwargs)
        finally:
            _shared.set_worker_state(before)


def send_to_its_thread(wrapper: Any, loop: Loop, job: Job[Any]) -> None:
    """Have the thread that is the right one for *wrapper* do *job*."""
    if not wrapper._thread_sensitive:
        executor: Executor | None = wrapper._executor
        if executor is not None:
            send(executor, job)
        elif isinstance(loop, TrioLoop):
            loop.call_in_thread(job.run, job.drop)
        else:
            job.woken_by_loop = True
            loop.run_in_executor(None, job.run).add_done_callback(job.waker())
        return
    if offer(getattr(_shared.executors, "current", None), job):
        return
    scope = wrapper.thread_sensitive_context.get(None)
    if scope is not None:
        if getattr(scope, "_exited", False):
            raise RuntimeError(
                "ThreadSensitiveContext has exited. Tasks created inside a context with an executor must finish "
                "before it exits."
            )
        executor = _shared.scope_executors.get(scope)
        if executor is None:
            executor = _shared.scope_executors.setdefault(scope, Lane())  # the first one, of several threads
        refuse_own_thread(executor)
        send(executor, job)
        return
    if offer(_shared.loop_thread_executors.get(loop), job):
        return
    last: Executor = wrapper.single_thread_executor
    refuse_own_thread(last)
    send(last, job)


def offer(executor: Executor | None, job: Job[Any]) -> bool:
    """Have the thread behind *executor* do *job*. Return whether it does: not where it waits no more."""
    if executor is None:
        return False
    try:
        send(executor, job)
    except RuntimeError:
        if isinstance(executor, (Pump, *_shared.pumps)):
            return False
        raise  # of somebody else's, about something else
    return True


def _start_afresh() -> None:
    """After a fork: asgiref's own executor, if its thread was there, has not come along."""
    executor = _shared.single_thread_executor()
    if type(executor) is ThreadPoolExecutor and executor._threads:
        _left_behind.append(executor)
        _shared.set_single_thread_executor(lane)


_left_behind: list[Executor] = []  # not to be ended: what they hold belongs to the parent

if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_start_afresh)


def refuse_own_thread(executor: Executor) -> None:
    """Refuse what would wait for itself: a loop that runs in the one thread to which the call is to go."""
    threads = getattr(executor, "_threads", ())
    if threading.current_thread() in threads and getattr(executor, "_max_workers", 1) == 1:
        raise RuntimeError("Single thread executor already being used, would deadlock")


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


class ThreadSensitiveContext:
    """While it lasts, thread-sensitive calls run in one thread of its own, or in that of *executor*.

    Args:
        executor: Runs one call at a time in one thread, even within another context or sync code, and is the
            caller's to shut down. Such a context can be entered only once, and calls of tasks that outlive it raise
            `RuntimeError`. `None` is a thread of its own, or that of the context around it.
    """

    def __init__(self, *, executor: Executor | None = None) -> None:
        self._executor = executor
        self.token: Token[Any] | None = None
        self._old_executor: Executor | None = None
        self._exited = False

    async def __aenter__(self) -> Self:
        executor: Executor | None = getattr(self, "_executor", None)  # asgiref 3.12 and before has none
        scopes = _shared.thread_sensitive_context
        before = scopes.get(None)
        if executor is None:
            if before is not None:
                return self
        elif self.token is not None:
            raise RuntimeError("ThreadSensitiveContext is already entered")
        elif self._exited:
            raise RuntimeError("ThreadSensitiveContext with an executor cannot be entered again")
        # Hidden, as it would come first. What async code within has sync code call is sent to that again.
        hidden = getattr(_shared.executors, "current", None)
        try:
            self.token = scopes.set(self)
            if executor is not None:
                _shared.scope_executors[self] = executor
                self._old_executor = hidden
                _shared.executors.current = None
            return self
        except BaseException:  # of a signal handler: the block never begins, nor ends
            self.token = self._old_executor = None
            scopes.set(before)
            if executor is not None:
                _shared.scope_executors.pop(self, None)
                _shared.executors.current = hidden
            raise

    async def __aexit__(
        self, exc: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self.token is None:
            return
        executor = _shared.scope_executors.get(self)
        try:
            _leave_context(self)  # not a method: `install` puts these into asgiref's class
            if executor is not None and getattr(self, "_executor", None) is None:
                await _end(executor)
        except BaseException:
            _leave_context(self)
            if isinstance(executor, Lane):
                executor.shutdown(wait=False)
            raise


def _leave_context(scope: Any) -> None:
    """Have calls go elsewhere from now on. Doing so twice is harmless."""
    _shared.scope_executors.pop(scope, None)
    if scope.token is not None:
        with suppress(RuntimeError):  # the first time, it was interrupted just after this
            _shared.thread_sensitive_context.reset(scope.token)
        scope.token = None
    if getattr(scope, "_executor", None) is not None and not scope._exited:
        _shared.executors.current = scope._old_executor
        scope._old_executor = None
        scope._exited = True


async def _end(executor: Executor) -> None:
    """Wait for what *executor* has been sent so far, and have its thread end.

    The thread may be waiting for this very loop, which therefore does not wait for the thread itself.
    """
    if isinstance(executor, Lane):
        job = Job(current_loop(), int)
        try:
            executor.send(job)
            await job.wait()
        finally:
            executor.shutdown(wait=False)
    else:  # somebody has put it there
        shutdown = Job(current_loop(), executor.shutdown)
        start_thread(shutdown.run, "unfazed-shutdown")
        await shutdown.wait()
        shutdown.result()
