"""The two context managers that say which thread calls share: for `sync_to_async`, and for `async_to_sync`.

`install` puts their methods into asgiref's own classes. So whatever they call is a function and not a method, and an
object may lack attributes that older versions of asgiref do not set.

Guarantee: leaving a block can be repeated, and is repeated if a signal handler raises in it. If one raises on entering,
the block neither begins nor ends.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

from . import _shared
from ._loops import current_loop
from ._singlethreadexecutor import SingleThreadExecutor
from ._threadcall import ThreadCall
from ._threads import start_thread

if TYPE_CHECKING:
    from concurrent.futures import Executor
    from contextvars import Token
    from types import TracebackType
    from typing import Self


class ThreadSensitiveContext:
    """While it lasts, thread-sensitive calls run in one thread of its own, or in that of *executor*.

    Args:
        executor: Makes the calls, one at a time and in one thread, also inside of another context or of sync code. The
            caller shuts it down. A context with an executor can be entered only once, and calls of tasks that outlive
            it raise `RuntimeError`. `None` is a thread of its own, or that of the context around it.
    """

    def __init__(self, *, executor: Executor | None = None) -> None:
        self._executor = executor
        self.token: Token[Any] | None = None
        self._old_executor: Executor | None = None
        self._exited = False

    async def __aenter__(self) -> Self:
        executor: Executor | None = getattr(self, "_executor", None)  # asgiref 3.12 and older have none
        scopes = _shared.thread_sensitive_context
        before = scopes.get(None)
        if executor is None:
            if before is not None:
                return self
        elif self.token is not None:
            raise RuntimeError("ThreadSensitiveContext is already entered")
        elif self._exited:
            raise RuntimeError("ThreadSensitiveContext with an executor cannot be entered again")
        # Hidden, because it would come before ours. Sync code that the block calls sets its own again.
        hidden = getattr(_shared.executors, "current", None)
        try:
            self.token = scopes.set(self)
            if executor is not None:
                _shared.scope_executors[self] = executor
                self._old_executor = hidden
                _shared.executors.current = None
            return self
        except BaseException:  # a signal handler raised
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
            _leave_thread_sensitive_context(self)
            if executor is not None and getattr(self, "_executor", None) is None:
                await _end(executor)
        except BaseException:
            _leave_thread_sensitive_context(self)
            if isinstance(executor, SingleThreadExecutor):
                executor.shutdown(wait=False)
            raise


def _leave_thread_sensitive_context(scope: Any) -> None:
    """Have the next calls go elsewhere."""
    _shared.scope_executors.pop(scope, None)
    if scope.token is not None:
        with suppress(RuntimeError):  # it is already reset: we were interrupted just after that
            _shared.thread_sensitive_context.reset(scope.token)
        scope.token = None
    if getattr(scope, "_executor", None) is not None and not scope._exited:
        _shared.executors.current = scope._old_executor
        scope._old_executor = None
        scope._exited = True


async def _end(executor: Executor) -> None:
    """Wait for the calls that *executor* has been sent so far, and have its thread end.

    We do not wait for the end of the thread: it may be waiting for this very loop.
    """
    if isinstance(executor, SingleThreadExecutor):
        call = ThreadCall(current_loop(), int)
        try:
            executor.send(call)
            await call.wait()
        finally:
            executor.shutdown(wait=False)
    else:  # the program has put it there
        shutdown = ThreadCall(current_loop(), executor.shutdown)
        start_thread(shutdown.run, "unfazed-shutdown")
        await shutdown.wait()
        shutdown.result()


class AsyncSingleThreadContext:
    """While it lasts, the async code that sync code calls runs in one thread, unless it runs in the caller's loop."""

    def __init__(self) -> None:
        self.token: Token[Any] | None = None

    def __enter__(self) -> Self:
        scopes = _shared.async_single_thread_context
        before = scopes.get(None)
        try:
            if before is None:
                self.token = scopes.set(self)
            return self
        except BaseException:  # a signal handler raised
            self.token = None
            scopes.set(before)
            raise

    def __exit__(self, exc: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        try:
            _leave_single_thread_context(self)
        except BaseException:
            _leave_single_thread_context(self)
            raise


def _leave_single_thread_context(scope: Any) -> None:
    """End the thread that calls in *scope* share, and leave the block."""
    if scope.token is None:
        return
    executor = _shared.single_thread_contexts.get(scope)
    if executor is not None:
        executor.shutdown()
        _shared.single_thread_contexts.pop(scope, None)
    with suppress(RuntimeError):  # it is already reset: we were interrupted just after that
        _shared.async_single_thread_context.reset(scope.token)
    scope.token = None
