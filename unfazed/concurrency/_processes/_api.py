"""The public functions for calls in worker processes, and the place of `in_processpool`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .._core._checks import (
    Dual,
    explain,
    require_count,
    require_flag,
    require_limiter,
    require_sync,
    require_timeout,
)
from .._core._futures import OneShotFuture
from .._eventloops._background import submit_to_background
from .._eventloops._loops import current_loop
from .._eventloops._synccalls import call_from_sync
from .._eventloops._waiting import raise_if_cancelled, set_from_anywhere, wait_for_end
from ._call import CallOptions, ProcessCall
from ._limiter import default_limiter
from ._output import settings
from ._packing import pack_initializer
from ._pool import pool
from ._started import start
from ._waiting import run, wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._eventloops._handle import Handle, Join

P = ParamSpec("P")
T = TypeVar("T")


def require_sendable(func: Callable[P, T], helper: str) -> Callable[P, T]:
    """Return the function to send, or refuse *func*. From a dual callable, send the function that it wraps."""
    wrapped: Callable[P, T] = func.__wrapped__ if isinstance(func, Dual) else func
    require_sync(wrapped, helper)
    return wrapped


async def run_in_processpool(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in a worker process and await its result.

    The same as `anyio.to_process.run_sync`, except that it takes keyword arguments, that the worker survives what the
    function raises, and that errors carry the worker's traceback. Workers start when they are needed, as
    `multiprocessing`'s spawn starts them, and all calls of this process reuse them. Idle workers beyond the first two
    end after a minute. anyio's default process limiter bounds how many calls run at once: one for each CPU that this
    process may use.

    Args:
        func: A sync function at the top level of a module. Its positional and keyword arguments follow, whatever
            their names. All of them are pickled, and so is the result. If a pickle is larger than 256 KiB, another
            thread makes or reads it while the event loop goes on; large `bytes` are sent as they are and do not count.
            So other tasks must not change the arguments before this call has ended. The calling task cannot: even a
            cancelled call ends only after its arguments have been pickled.

    Cancellation:
        In a scope that is cancelled already, the call never begins. A call that has not been sent never begins either.
        After that, this call waits for the worker, drops its answer, and raises the cancellation. The same holds for
        asyncio's own `task.cancel()`, however often. The slot is given back when the worker has answered.

    Returns:
        A copy of what *func* returned.

    Raises:
        WrongFunctionError: If *func* is async, returns a coroutine, or cannot be called.
        NotSendableError: If *func*, its arguments or its result cannot be pickled.
        WorkerProcessError: If the worker ends before it has answered, or cannot start.
        RemoteError: If what *func* raised cannot be pickled.
        BaseException: Whatever *func* raised; its cause is a `RemoteTraceback`.

    Example:
        `digest = await run_in_processpool(hash_file, path, algorithm="sha256")`
    """
    call = ProcessCall("run_in_processpool", require_sendable(func, "run_in_processpool"), args, kwargs, at_once=True)
    try:
        result: T = await run(call)
        return result
    except TypeError as exc:
        explain(exc, "run_in_processpool", func, kwargs)
        raise


def run_in_processpool_sync(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in a worker process and wait for its result: `run_in_processpool` for sync code.

    In a worker thread of an event loop, that loop's limiter counts; in any other thread, the background event loop's.

    Args:
        func: A sync function at the top level of a module. Its positional and keyword arguments follow, whatever
            their names. All of them are pickled, and so is the result.

    Cancellation:
        Interrupted by Ctrl-C (or whatever a signal handler raises): a call that has not been sent is never sent,
        one that runs is waited for, and then the exception is raised. A second Ctrl-C stops waiting.

    Returns:
        A copy of what *func* returned.

    Raises:
        LoopThreadError: If an event loop is running in this thread, which the call would block.
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the interpreter is exiting.
        WrongFunctionError: If *func* is async, returns a coroutine, or cannot be called.
        NotSendableError: If *func*, its arguments or its result cannot be pickled.
        WorkerProcessError: If the worker ends before it has answered, or cannot start.
        RemoteError: If what *func* raised cannot be pickled.
        BaseException: Whatever *func* raised; its cause is a `RemoteTraceback`.

    Example:
        `digest = run_in_processpool_sync(hash_file, path, algorithm="sha256")`
    """
    helper = "run_in_processpool_sync"
    call = ProcessCall(helper, require_sendable(func, helper), args, kwargs)
    try:
        result: T = wait_for(call, helper, "await run_in_processpool({}, ...)")
        return result
    except TypeError as exc:
        explain(exc, helper, func, kwargs)
        raise


def start_in_processpool(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]:
    """Start a call of a sync function in a worker process, and return its handle at once; from sync or async code.

    The call belongs to the background event loop, so it outlives the caller and the caller's loop. That loop's default
    process limiter bounds how many run at once.

    Args:
        func: A sync function at the top level of a module. Its positional and keyword arguments follow, whatever
            their names. All of them are pickled before this returns, so they may change after it; large ones take
            their time here.

    Cancellation:
        Nothing here waits. After `handle.cancel()`, a call that no worker has never begins; one that runs goes on,
        unless `in_processpool(func, kill_on_cancel=True).start(...)` has started it. Whoever waits for the handle and
        is cancelled stops waiting; the call goes on. At exit, the worker that runs it is killed.

    Returns:
        A `Handle`: a `concurrent.futures.Future` that can also be awaited. It gets a copy of what *func* returned.

    Raises:
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the interpreter is exiting.
        WrongFunctionError: If *func* is async or cannot be called. From the handle, if it returns a coroutine.
        NotSendableError: If *func* or its arguments cannot be pickled. From the handle, if its result cannot.
        WorkerProcessError: From the handle, if the worker ends before it has answered, or cannot start.
        RemoteError: From the handle, if what *func* raised cannot be pickled.
        BaseException: From the handle, whatever *func* raised; its cause is a `RemoteTraceback`.

    Example:
        `handle = start_in_processpool(hash_file, path, algorithm="sha256")`
    """
    return start_in_process(func, args, kwargs)


def start_in_process(
    func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any], join: Join | None = None
) -> Handle[T]:
    """Do what `start_in_processpool` does, and have the handle join a group first."""
    helper = "start_in_processpool"
    return start(ProcessCall(helper, require_sendable(func, helper), args, kwargs), kwargs, join)


async def warm_up_processpool(count: int, /) -> None:
    """Start worker processes ahead of the first calls, and wait until they are ready.

    Args:
        count: How many workers there should be, those included that have been started before. The limiter of the
            calls decides how many of them run at once. Idle workers beyond the first two end after a minute.

    Cancellation:
        If it is cancelled, it waits until the workers have started, and then raises.

    Raises:
        WrongOptionError: If *count* is not a number of processes.
        WorkerProcessError: If a worker cannot start.

    Example:
        `await warm_up_processpool(4)`
    """
    require_count(count, "count", "warm_up_processpool")
    loop = current_loop()
    event = loop.new_event()
    await raise_if_cancelled(loop)
    waiting = [None] * (count - len(pool.workers))
    if not waiting:
        return

    def on_start() -> None:
        waiting.pop()
        if not waiting:
            set_from_anywhere(loop, event)

    answers: list[OneShotFuture[None]] = [OneShotFuture(on_start) for _ in waiting]
    for future in answers:
        pool.warm_up(future)
    await wait_for_end(event, bool)
    for future in answers:
        future.read()


def warm_up_processpool_sync(count: int, /) -> None:
    """Start worker processes ahead of the first calls: `warm_up_processpool` for sync code.

    Args:
        count: How many workers there should be, those included that have been started before.

    Cancellation:
        Interrupted by Ctrl-C, it waits until the workers have started, and then raises. A second Ctrl-C stops waiting.

    Raises:
        LoopThreadError: If an event loop is running in this thread, which the call would block.
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the interpreter is exiting.
        WrongOptionError: If *count* is not a number of processes.
        WorkerProcessError: If a worker cannot start.

    Example:
        `warm_up_processpool_sync(4)`
    """
    helper = "warm_up_processpool_sync"
    require_count(count, "count", helper)
    warm_up = partial(warm_up_processpool, count)
    instead = f"await warm_up_processpool({count})"
    call_from_sync(warm_up, warm_up, helper, instead, submit_to_background, counted=False)


def configure_processpool(*, limit: int | None = None, output: bool = True, logs: bool = True) -> None:
    """Choose how many calls run in worker processes at once, and whether this process shows what they write and log.

    It may be called at any time, and holds for all workers. If `sys.stderr` blocks, only workers that write wait for
    it. If a log handler blocks, only workers that log wait for it.

    Args:
        limit: The total of anyio's default process limiter, in each event loop from its next call of ours on. A total
            that was set by anyio's own means stays. `None` for what was chosen before, or else the environment variable
            `UNFAZED_PROCESSES`, or else the number of CPUs that this process may use.
        output: Whether what workers write, with `print` or otherwise, appears on `sys.stderr`, in whole lines.
            Otherwise it is dropped.
        logs: Whether the loggers of this process handle the log records of workers: the logger of the same name, if
            the record reaches its level here. Otherwise each worker handles its own records. It has no handlers unless
            the function's modules add some, so warnings go to its output. Calls that run already are not affected.

    Raises:
        WrongOptionError: If an option has a wrong value. The first call that needs the environment variable checks it.

    Example:
        `configure_processpool(limit=4, output=False)`
    """
    if limit is not None:
        require_count(limit, "limit", "configure_processpool", at_least=1)
    require_flag(output, "output", "configure_processpool")
    require_flag(logs, "logs", "configure_processpool")
    if limit is not None:
        default_limiter.choose(limit)
    settings.output = output
    settings.logs = logs


class ProcessPlace(CallOptions):
    """Where `in_processpool` runs a function, and how."""

    __slots__ = ()

    @property
    def decorator(self) -> str:
        """The name of the decorator that makes it."""
        return "in_processpool"

    def check(self) -> None:
        """Refuse wrong options."""
        require_limiter(self.limiter, "in_processpool")
        require_flag(self.kill_on_cancel, "kill_on_cancel", "in_processpool")
        require_timeout(self.timeout, "in_processpool")
        if self.initializer is not None:
            require_sync(self.initializer, "in_processpool(initializer=...)")
            pack_initializer(self.initializer)
        if self.max_calls is not None:
            require_count(self.max_calls, "max_calls", "in_processpool", at_least=1)

    def require(self, func: Callable[..., object]) -> None:
        """Refuse what cannot run here."""
        require_sync(func, "in_processpool")

    async def run(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call for async code."""
        try:
            return await run(ProcessCall("in_processpool", func, args, kwargs, self, at_once=True))
        except TypeError as exc:
            explain(exc, "in_processpool", func, kwargs)
            raise

    def run_sync(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call for sync code."""
        try:
            return wait_for(ProcessCall("in_processpool", func, args, kwargs, self), "{}.sync", "await {}(...)")
        except TypeError as exc:
            explain(exc, "in_processpool", func, kwargs)
            raise

    def start(
        self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any], join: Join | None = None
    ) -> Handle[Any]:
        """Start a call, and have its handle join a group first."""
        return start(ProcessCall("in_processpool", func, args, kwargs, self), kwargs, join)
