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
import warnings
from contextlib import suppress
from contextvars import Context, Token, copy_context
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
from ._outcomes import Outcome

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor, Future
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
        outer: Executor | None = getattr(_shared.executors, "current", None)
        pump = Pump(outer)
        context: list[Context] = []
        result: Outcome[R] = Outcome()
        try:
            before = copy_context()  # `_threads.py` says why
            _shared.executors.current = pump
            del before
            context.append(copy_context())
            inner = self.awaitable(*args, **kwargs)
            call = Call(self.main_wrap(result, sys.exc_info(), _calls_of_this_thread(), context, inner), inner, result)
            try:
                if loop is None or not _run_there(loop, call, pump):
                    _run_apart(call, pump, context[0], self.force_new_loop)
            finally:
                call.drop()
            _go_back(state, context, outer)
            return result.result()
        except BaseException:
            pump.close(interrupted=True)  # a signal handler may have raised anywhere, in `_go_back` as well
            _go_back(state, context, outer)
            raise

    def __get__(self, parent: object, objtype: object) -> Callable[..., R]:
        """Include *parent* as `self`, for methods."""
        call: Callable[..., R] = self.__call__
        return functools.update_wrapper(functools.partial(call, parent), self.awaitable)

    async def main_wrap(
        self,
        call_result: Outcome[R] | Future[R],
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
        try:
            _end(call_result, loop, task, task_context, context, result, error)
        except BaseException:
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
    """Say what the coroutine has come to. Doing so twice is harmless."""
    try:
        if isinstance(task_context, Calls):
            task_context.end(task, error)
        elif task_context is not None and task in task_context:
            task_context.remove(task)
        if error is not None and was_cancelled_by_the_end(loop, task, error):
            error = LoopEndedError("the event loop of this call has ended")
        context[0] = copy_context()  # before the result: the caller goes on with that
        outcome: Any = call_result
        # One of ours is told again: what was interrupted may be the telling. A future takes it once.
        if isinstance(call_result, Outcome) or not outcome.done():
            if error is None:
                outcome.set_result(result)
            else:
                outcome.set_exception(error)
    finally:
        del error


def _go_back(state: tuple[object, object, object], context: list[Context], outer: Executor | None) -> None:
    """Leave this thread and its context as they are to be after the call. Doing so twice is harmless."""
    _shared.set_worker_state(state)  # asgiref's own wrappers leave it behind, with a loop that stands still
    if context:
        _shared.restore_context(context[0])
    before = copy_context()  # as above
    _shared.executors.current = outer
    del before


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
    call.result.on_done = pump.finish

    def begin() -> bool:
        try:
            call.send_to(loop)
        except RuntimeError:  # it has ended meanwhile
            call.result.on_done = None
            return False
        return True

    is_gone = loop.is_closed if isinstance(loop, TrioLoop) else functools.partial(stands_still, loop)
    return call.wait(begin, pump, is_gone, lending=is_worker())


def _run_apart(call: Call, pump: Pump, context: Context, new_loop: bool) -> None:
    """Run *call* in the loop of a companion, and wait for the end of all that it leaves there."""
    scope = _shared.async_single_thread_context.get(None)
    temporary: Companion | None = None
    if scope is None:
        executor: Executor | None = None if new_loop else companion_of_this_thread()
    else:
        executor = _executor_of(scope)
        if isinstance(executor, Companion) and executor.is_held_up():
            executor = None
    if executor is None:
        executor = temporary = Companion()
    try:
        if isinstance(executor, Companion) and (executor is temporary or not new_loop):
            executor.run(call, pump, context)
        else:
            _run_in_executor(executor, call, pump, context)
    finally:
        if temporary is not None:
            temporary.shutdown(wait=False)


def _executor_of(scope: object) -> Executor:
    """Return what threads in one `AsyncSingleThreadContext` share; the first to put it there makes it.

    A companion that nobody has put there has no thread yet. When the context goes, its companion goes: a copied context
    may be used, and make one, when the `with` block has ended.
    """
    executors = _shared.single_thread_contexts
    executor = executors.get(scope)
    if isinstance(executor, Companion) and executor.is_lost():
        removed = executors.pop(scope, None)
        if removed is not None and removed is not executor:  # another thread was faster
            executors.setdefault(scope, removed)
        executor = None
    return executors.setdefault(scope, Companion()) if executor is None else executor


def _run_in_executor(executor: Executor, call: Call, pump: Pump, context: Context) -> None:
    """Run *call* in a new loop in the thread of *executor*, and wait for the end of that loop."""
    sent: list[Future[None]] = []

    def begin() -> bool:
        sent.append(executor.submit(context.run, lambda: asyncio.run(_run_in_new_loop(call, pump))))
        sent[0].add_done_callback(pump.finish)
        return True

    call.wait(begin, pump, lambda: all(future.done() for future in sent))
    sent[0].result()


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
        scopes = _shared.async_single_thread_context
        before = scopes.get(None)
        try:
            if before is None:
                self.token = scopes.set(self)
            return self
        except BaseException:  # of a signal handler: the block never begins, nor ends
            self.token = None
            scopes.set(before)
            raise

    def __exit__(self, exc: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            # Not `self._end`: `install` puts these methods into asgiref's class.
            _leave_single_thread_context(self)
        except BaseException:
            _leave_single_thread_context(self)
            raise


def _leave_single_thread_context(scope: Any) -> None:
    """End what threads in *scope* share, and leave it. Doing so twice is harmless."""
    if scope.token is None:
        return
    executor = _shared.single_thread_contexts.get(scope)
    if executor is not None:
        executor.shutdown()
        _shared.single_thread_contexts.pop(scope, None)
    with suppress(RuntimeError):  # the first time, it was interrupted just after this
        _shared.async_single_thread_context.reset(scope.token)
    scope.token = None
