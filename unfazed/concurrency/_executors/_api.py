"""Calls in any executor, from async and from sync code: the public functions, and the place of `in_executor`."""

from __future__ import annotations

from concurrent.futures import Executor
from reprlib import repr as short_repr
from threading import get_ident
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

from .._core._checks import (
    require_sync,
    require_timeout,
)
from .._core._errors import WrongFunctionError
from .._eventloops._background import submit_to_background
from .._eventloops._synccalls import call_from_sync, must_use_loop
from ._call import ExecutorCall

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._eventloops._handle import Handle, Join

P = ParamSpec("P")
T = TypeVar("T")


def require_executor(executor: object, helper: str) -> None:
    if not isinstance(executor, Executor):
        raise WrongFunctionError(
            f"{helper}() expected a concurrent.futures.Executor and then a function, got {short_repr(executor)}: "
            f"write `{helper}(executor, func, ...)`"
        )


async def run_in_executor(executor: Executor, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in any executor and await its result.

    The same as `loop.run_in_executor`, but also on trio, with keyword arguments, and with cancellation that waits. In a
    `ThreadPoolExecutor` the function runs in a copy of the caller's context. Other executors may run it in another
    process or interpreter, where it has no such context. See the executor's documentation for what it needs of the
    function and its arguments: most of those that use other processes pickle them.

    Args:
        executor: Any `concurrent.futures.Executor`: it decides where the function runs, and how many run at once.
        func: A sync function. Its positional and keyword arguments follow, whatever their names.

    Cancellation:
        A function that the executor has not begun never begins. If it runs, this call waits for its end, drops
        what it returned or raised, and raises the cancellation. That holds for asyncio's own `task.cancel()` too. An
        executor that cannot tell what runs (Dask's) also cancels a call that runs: then the function may run on unseen.

    Returns:
        What *func* returned.

    Raises:
        WrongFunctionError: If *executor* is not an executor, or *func* is async, returns a coroutine, or cannot be
            called.
        ExecutorError: If the executor does not accept the call, for example after its shutdown, or if it breaks, or
            loses or cancels the call.
        BaseException: Whatever *func* raised.

    Example:
        `rows = await run_in_executor(one_thread, connection.execute, "select 1")`
    """
    require_executor(executor, "run_in_executor")
    require_sync(func, "run_in_executor")
    outcome = await ExecutorCall("run_in_executor", executor, func, args, kwargs).run()
    return outcome.read()


def run_in_executor_sync(executor: Executor, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in any executor and wait for its result: `run_in_executor` for sync code.

    Args:
        executor: Any `concurrent.futures.Executor`: it decides where the function runs, and how many run at once.
        func: A sync function. Its positional and keyword arguments follow, whatever their names.

    Cancellation:
        Interrupted by Ctrl-C (or whatever a signal handler raises): a function that has not begun never begins,
        one that runs is waited for, and then the exception is raised. A second Ctrl-C stops waiting. In a worker
        thread, the call is cancelled with the task that waits for the thread.

    Returns:
        What *func* returned.

    Raises:
        LoopThreadError: If an event loop is running in this thread, which the call would block.
        LoopEndedError: In a worker thread, if its event loop ends.
        WrongFunctionError: If *executor* is not an executor, or *func* is async, returns a coroutine, or cannot be
            called.
        ExecutorError: If the executor does not accept the call, for example after its shutdown, or if it breaks, or
            loses or cancels the call.
        BaseException: Whatever *func* raised.

    Example:
        `rows = run_in_executor_sync(one_thread, connection.execute, "select 1")`
    """
    helper = "run_in_executor_sync"
    require_executor(executor, helper)
    require_sync(func, helper)
    call = ExecutorCall(helper, executor, func, args, kwargs)
    return _wait_for(call, func, helper, "await run_in_executor(executor, {}, ...)")


def start_in_executor(executor: Executor, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]:
    """Start a call of a sync function in any executor, and return its handle at once; from sync or async code.

    The background event loop submits the call to the executor and waits for it. In a `ThreadPoolExecutor` the function
    runs in a copy of the caller's context.

    Args:
        executor: Any `concurrent.futures.Executor`: it decides where the function runs, and how many run at once.
        func: A sync function. Its positional and keyword arguments follow, whatever their names.

    Cancellation:
        Nothing here waits. After `handle.cancel()`, a function that the executor has not begun never begins; one that
        runs goes on. Whoever waits for the handle and is cancelled stops waiting; the call goes on.

    Returns:
        A `Handle`: a `concurrent.futures.Future` that can also be awaited.

    Raises:
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the interpreter is exiting.
        WrongFunctionError: If *executor* is not an executor, or *func* is async or cannot be called. From the handle,
            if it returns a coroutine.
        ExecutorError: From the handle, if the executor does not accept the call, or if it breaks, or loses or cancels
            the call.
        BaseException: From the handle, whatever *func* raised.

    Example:
        `handle = start_in_executor(one_thread, connection.execute, "select 1")`
    """
    return start_in_any_executor(executor, func, args, kwargs)


def start_in_any_executor(
    executor: Executor,
    func: Callable[..., T],
    args: tuple[object, ...],
    kwargs: dict[str, Any],
    join: Join | None = None,
) -> Handle[T]:
    """Do what `start_in_executor` does, and have the handle join a group first."""
    helper = "start_in_executor"
    require_executor(executor, helper)
    require_sync(func, helper)
    return ExecutorCall(helper, executor, func, args, kwargs).start(join)


def _wait_for(call: ExecutorCall[T], func: Callable[..., T], helper: str, instead: str) -> T:
    try:
        try:
            return _make(call, func, helper, instead)
        finally:
            call.leave()
    finally:
        call.leave()  # again: a signal handler may have raised in the first `finally`


def _make(call: ExecutorCall[T], func: Callable[..., T], helper: str, instead: str) -> T:
    try:
        if must_use_loop():
            value = call_from_sync(call.run, func, helper, instead, submit_to_background, carried=call).read()
        else:
            call.waiter = get_ident()
            call.introduce()
            value = call.run_sync()
    except BaseException as exc:
        if call.waiter is not None:  # otherwise it was refused
            call.note_end(exc)
        raise
    call.note_end(None)
    return value


class ExecutorPlace(NamedTuple):
    """Where `in_executor` runs a function, and how."""

    executor: Executor
    timeout: float | None = None

    @property
    def decorator(self) -> str:
        """The name of the decorator that makes it."""
        return "in_executor"

    def check(self) -> None:
        """Refuse wrong options."""
        require_executor(self.executor, "in_executor")
        require_timeout(self.timeout, "in_executor")

    def require(self, func: Callable[..., object]) -> None:
        """Refuse what cannot run here."""
        require_sync(func, "in_executor")

    async def run(self, func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any]) -> T:
        """Run a call for async code."""
        outcome = await self._call(func, args, kwargs).run()
        return outcome.read()

    def run_sync(self, func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any]) -> T:
        """Run a call for sync code."""
        return _wait_for(self._call(func, args, kwargs), func, "{}.sync", "await {}(...)")

    def start(
        self, func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any], join: Join | None = None
    ) -> Handle[T]:
        """Start a call, and have its handle join a group first."""
        return self._call(func, args, kwargs).start(join)

    def _call(self, func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any]) -> ExecutorCall[T]:
        return ExecutorCall("in_executor", self.executor, func, args, kwargs, self.timeout)
