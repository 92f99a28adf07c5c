"""A call in any `concurrent.futures.Executor`, from async and from sync code.

An executor may be a thread of one's own, another process pool, or a cluster. It decides where the function runs and how
many run at once. So a call takes no slot here; but a worker that waits for one lends its slot, as always.
"""

from __future__ import annotations

import sys
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextvars import copy_context
from functools import partial
from reprlib import repr as short_repr
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, ParamSpec, TypeVar

from anyio import Event

from ._core._checks import (
    async_function_error,
    close_coroutine,
    explain,
    name_of,
    require_sync,
    require_timeout,
)
from ._core._errors import ExecutorError, WrongFunctionError
from ._core._futures import OneShotFuture
from ._core._references import to_send
from ._eventloops._background import submit_to_background
from ._eventloops._loops import current_loop, forget_library
from ._eventloops._synccalls import call_from_sync
from ._eventloops._timeouts import Timeout, within
from ._eventloops._waiting import raise_if_cancelled, set_from_anywhere, wait_for_end
from ._eventloops._workers import lending

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio import CancelScope

P = ParamSpec("P")
T = TypeVar("T")


def require_executor(executor: object, helper: str) -> None:
    if not isinstance(executor, Executor):
        raise WrongFunctionError(
            f"{helper}() expected a concurrent.futures.Executor and then a function, got {short_repr(executor)}: "
            f"write `{helper}(executor, func, ...)`"
        )


def _runs_in_our_threads(executor: Executor) -> bool:
    """Return whether a call can have a context: not in another process or interpreter."""
    loaded: Any = sys.modules.get("concurrent.futures.thread")
    return (
        loaded is not None
        and isinstance(executor, loaded.ThreadPoolExecutor)
        and "Interpreter" not in type(executor).__name__
    )


class ExecutorCall(Generic[T]):
    """One call in an executor."""

    _never_started = False  # as far as the executor can tell

    def __init__(
        self,
        executor: Executor,
        func: Callable[..., T],
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        seconds: float | None = None,
    ) -> None:
        self._executor = executor
        self._func = func
        self._args = args
        self._kwargs = kwargs
        self._timeout = None if seconds is None else Timeout(seconds, name_of(func))

    def run(self) -> Awaitable[OneShotFuture[T]]:
        """Submit the call, wait for its end, and return its outcome. The error in it is not raised here.

        Who wakes us: the executor, which ends every future that it has accepted. Cancelled before the function has
        begun, it never begins. Cancelled later, we wait for its end, at most until the timeout.
        """
        return lending(within(self._timeout, self._run, self._what_it_waits_for))

    async def _run(self, timer: CancelScope | None) -> OneShotFuture[T]:
        executor, loop, event = self._executor, current_loop(), Event()
        await raise_if_cancelled(loop)
        try:
            if _runs_in_our_threads(executor):
                call = partial(self._func, *self._args, **self._kwargs)
                context = copy_context()
                context.run(forget_library)
                future: Future[T] = executor.submit(context.run, call)
            else:
                future = executor.submit(partial(_to_send(executor, self._func), *self._args, **self._kwargs))
        except Exception as exc:
            # The executor was shut down or is broken. Some libraries have an exception class of their own for that.
            if not isinstance(exc, RuntimeError) and not _is_of_library(exc, executor):
                raise
            reason = f"was not accepted by its {type(executor).__name__}: {exc}"
            raise ExecutorError(name_of(self._func), reason) from exc
        wake = partial(set_from_anywhere, loop, event)
        future.add_done_callback(lambda _: wake())
        if future.done():  # again: the executor may call `wake` in the line above, and drops what it raises
            wake()
        await wait_for_end(event, partial(self._cancel, future), timer)
        return _outcome(future, executor, self._func, self._kwargs)

    def _cancel(self, future: Future[T]) -> None:
        self._never_started = future.cancel()

    def _what_it_waits_for(self) -> str:
        return f"its turn in the {type(self._executor).__name__}" if self._never_started else ""


_SENDING_BY_NAME = ("concurrent.futures.process", "concurrent.futures.interpreter")


def _to_send(executor: Executor, func: Callable[P, T]) -> Callable[P, T]:
    """Return what to submit in order to send *func*.

    Executors that send functions of a script by value must get the function itself: its name leads nowhere there.
    """
    by_name = any(kind.__module__ in _SENDING_BY_NAME for kind in type(executor).__mro__)
    return func if getattr(func, "__module__", None) == "__main__" and not by_name else to_send(func)


def _libraries(executor: Executor) -> set[str]:
    """Return the top-level packages of the classes of *executor*, without the standard library."""
    found = {kind.__module__.partition(".")[0] for kind in type(executor).__mro__}
    return found - sys.stdlib_module_names


def _is_of_library(error: BaseException, executor: Executor) -> bool:
    return type(error).__module__.partition(".")[0] in _libraries(executor)


def _is_its_own(error: BaseException, executor: Executor, func: object) -> bool:
    """Return whether the executor raised *error*, and not *func*.

    Libraries have exception classes for a lost call that we do not know, such as Dask's `KilledWorker`. It is one if
    its class is of the executor's library, *func* is not, and all frames of its traceback are of that library. An error
    that *func* raised in another process has the frames from there, or their text as its cause.
    """
    libraries = _libraries(executor)
    while isinstance(func, partial):
        func = func.func
    frames = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return (
        _is_of_library(error, executor)
        and error.__cause__ is None
        and str(getattr(func, "__module__", "")).partition(".")[0] not in libraries
        and all(name.partition(".")[0] in libraries for name in frames)
    )


def _outcome(
    future: Future[T], executor: Executor, func: Callable[..., object], kwargs: dict[str, Any]
) -> OneShotFuture[T]:
    """Return the outcome of a future that is done."""
    outcome: OneShotFuture[T] = OneShotFuture()
    name = name_of(func)
    try:
        error = future.exception()
    except CancelledError as exc:
        error = ExecutorError(name, "was cancelled by its executor, not by its caller")
        error.__cause__ = exc
    if isinstance(error, BrokenExecutor):
        broken, error = error, ExecutorError(name, f"was lost, as its executor broke: {error}")
        error.__cause__ = broken
    elif error is not None and _is_its_own(error, executor, func):
        own, error = error, ExecutorError(name, f"was lost by its {type(executor).__name__}: {error}")
        error.__cause__ = own
    if error is not None:
        explain(error, "in_executor", func, kwargs)
    outcome.write(None if error is not None else future.result(), error)
    return outcome


def read_outcome(outcome: OneShotFuture[T], func: object, helper: str) -> T:
    value = outcome.read()
    if close_coroutine(value):
        raise async_function_error(func, helper)
    return value


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
        A function that the executor has not started never starts. If it runs, this call waits for its end, drops
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
    return read_outcome(await ExecutorCall(executor, func, args, kwargs).run(), func, "run_in_executor")


def run_in_executor_sync(executor: Executor, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in any executor and wait for its result: `run_in_executor` for sync code.

    Args:
        executor: Any `concurrent.futures.Executor`: it decides where the function runs, and how many run at once.
        func: A sync function. Its positional and keyword arguments follow, whatever their names.

    Cancellation:
        Interrupted by Ctrl-C (or whatever a signal handler raises): a function that has not started never starts,
        one that runs is waited for, and then the exception is raised. A second Ctrl-C stops waiting. In a worker
        thread, the call is cancelled with the task that waits for the thread.

    Returns:
        What *func* returned.

    Raises:
        LoopThreadError: If an event loop is running in this thread, which the call would block.
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the interpreter is exiting.
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
    call = ExecutorCall(executor, func, args, kwargs)
    return _wait_for(call, func, helper, helper, "await run_in_executor(executor, {}, ...)")


def _wait_for(call: ExecutorCall[T], func: Callable[..., T], helper: str, twin: str, instead: str) -> T:
    return read_outcome(call_from_sync(call.run, func, twin, instead, submit_to_background), func, helper)


class ExecutorPlace(NamedTuple):
    """Where `in_executor` runs a function, and how."""

    executor: Executor
    timeout: float | None = None

    def check(self) -> None:
        """Refuse wrong options."""
        require_executor(self.executor, "in_executor")
        require_timeout(self.timeout, "in_executor")

    def require(self, func: Callable[..., object]) -> None:
        """Refuse what cannot run here."""
        require_sync(func, "in_executor")

    async def run(self, func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any]) -> T:
        """Run a call for async code."""
        return read_outcome(
            await ExecutorCall(self.executor, func, args, kwargs, self.timeout).run(), func, "in_executor"
        )

    def run_sync(self, func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any]) -> T:
        """Run a call for sync code."""
        call = ExecutorCall(self.executor, func, args, kwargs, self.timeout)
        return _wait_for(call, func, "in_executor", "{}.sync", "await {}(...)")
