"""Many calls at once, from sync code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from .._core._checks import require_async, require_sync
from ._mapdual import new_run
from ._mapiterators import MapIterator, sync_iterator

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable
    from concurrent.futures import Executor
    from typing import Literal

    from typing_extensions import Unpack

    from ._mapasync import ChunkOptions, Options

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
T = TypeVar("T")


@overload
def map_in_threadpool_sync(
    func: Callable[[A], T], a: Iterable[A], /, *, return_exceptions: Literal[False] = False, **options: Unpack[Options]
) -> MapIterator[T]: ...
@overload
def map_in_threadpool_sync(
    func: Callable[[A, B], T],
    a: Iterable[A],
    b: Iterable[B],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> MapIterator[T]: ...
@overload
def map_in_threadpool_sync(
    func: Callable[[A, B, C], T],
    a: Iterable[A],
    b: Iterable[B],
    c: Iterable[C],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> MapIterator[T]: ...
@overload
def map_in_threadpool_sync(
    func: Callable[..., T],
    /,
    *iterables: Iterable[Any],
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> MapIterator[T]: ...
@overload
def map_in_threadpool_sync(
    func: Callable[..., T], /, *iterables: Iterable[Any], return_exceptions: bool, **options: Unpack[Options]
) -> MapIterator[T | Exception]: ...
def map_in_threadpool_sync(
    func: Callable[..., Any],
    /,
    *iterables: Iterable[Any],
    limit: int | None = None,
    ordered: bool = True,
    return_exceptions: bool = False,
) -> MapIterator[Any]:
    """Call a sync function for each item, and iterate over the results: `map_in_threadpool` for sync code.

    Each call is one of `run_in_threadpool_sync`: the same slots, in a copy of the caller's context, and so on. In a
    worker thread, the calls run in the loop of that worker, otherwise on the background event loop.

    Args:
        func: A sync function. It gets one item of each iterable.
        iterables: Iterables, zipped as by `zip`. They may be infinite, and may block: a thread of their own reads them,
            unless they are lists and the like. No item is read before its call may begin.
        limit: How many calls may have begun and not been delivered. `None` is the total of anyio's default thread
            limiter.
        ordered: Whether results come in the order of the items. Otherwise what is ready comes first.
        return_exceptions: Whether an `Exception` that the function raises is a result like others. Otherwise it is
            raised when it is that item's turn, and ends the iteration.

    Cancellation:
        If a step is cancelled, with the task that waits for this worker thread or by Ctrl-C, if a call fails, or after
        `close()`: what has not begun never begins, and threads are waited for. A second Ctrl-C stops waiting. If the
        iteration is left early, by `break` or an exception, what has not begun never begins, and what runs goes on to
        its end, but nobody waits for that, except with `close()`, or with `with closing(map_in_threadpool_sync(...)) as
        results`.

    Returns:
        An iterator, with `close` and, where all of the input has a length, `__length_hint__`.

    Raises:
        LoopThreadError: From a step, if an event loop is running in this thread, which the step would block.
        LoopStartError: From a step, if the background event loop cannot start.
        LoopEndedError: From a step, if the event loop has ended, for example at exit.
        WrongFunctionError: If *func* is async or not callable, or an iterable is missing or cannot be iterated over.
        WrongOptionError: If an option has a wrong value.
        BaseException: From a step, whatever the function or the input raised. It has a note that names the item.

    Example:
        `for result in map_in_threadpool_sync(read, paths): ...`
    """
    from .._threads._threadpool import ThreadPlace

    helper = "map_in_threadpool_sync"
    require_sync(func, helper)
    run = new_run(ThreadPlace(), func, iterables, helper, limit, ordered, return_exceptions, sync=True)
    return sync_iterator(run, iterables, func, helper)


@overload
def map_in_processpool_sync(
    func: Callable[[A], T],
    a: Iterable[A],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[ChunkOptions],
) -> MapIterator[T]: ...
@overload
def map_in_processpool_sync(
    func: Callable[[A, B], T],
    a: Iterable[A],
    b: Iterable[B],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[ChunkOptions],
) -> MapIterator[T]: ...
@overload
def map_in_processpool_sync(
    func: Callable[[A, B, C], T],
    a: Iterable[A],
    b: Iterable[B],
    c: Iterable[C],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[ChunkOptions],
) -> MapIterator[T]: ...
@overload
def map_in_processpool_sync(
    func: Callable[..., T],
    /,
    *iterables: Iterable[Any],
    return_exceptions: Literal[False] = False,
    **options: Unpack[ChunkOptions],
) -> MapIterator[T]: ...
@overload
def map_in_processpool_sync(
    func: Callable[..., T], /, *iterables: Iterable[Any], return_exceptions: bool, **options: Unpack[ChunkOptions]
) -> MapIterator[T | Exception]: ...
def map_in_processpool_sync(
    func: Callable[..., Any],
    /,
    *iterables: Iterable[Any],
    limit: int | None = None,
    ordered: bool = True,
    return_exceptions: bool = False,
    chunk: int | None = None,
) -> MapIterator[Any]:
    """Call a sync function for each item, and iterate over the results: `map_in_processpool` for sync code.

    Each call is one of `run_in_processpool_sync`, but small items travel several to a call. The results are the same.
    If a worker process dies, all items of its call are lost, and each item that is lost has the error.

    Args:
        func: A sync function at the top level of a module. It gets one item of each iterable, pickled.
        iterables: Iterables, zipped as by `zip`. They may be infinite, and may block: a thread of their own reads them,
            unless they are lists and the like. No item is read before its call may begin.
        limit: How many calls may have begun and not been delivered. `None` is the total of anyio's default process
            limiter: one for each CPU.
        ordered, return_exceptions: As for `map_in_threadpool_sync`.
        chunk: How many items travel in one call. `None`: as many as take about a tenth of a second, measured on the
            way; but 1 with `timeout` or `max_calls`, which count calls.

    Cancellation:
        As for `map_in_threadpool_sync`: what runs is waited for, after `break` only by `close()`.

    Returns:
        An iterator, with `close` and, where all of the input has a length, `__length_hint__`.

    Raises:
        LoopThreadError: From a step, if an event loop is running in this thread, which the step would block.
        LoopStartError: From a step, if the background event loop cannot start.
        LoopEndedError: From a step, if the event loop has ended, for example at exit.
        WrongFunctionError: If *func* is async or not callable, or an iterable is missing or cannot be iterated over.
        WrongOptionError: If an option has a wrong value.
        BaseException: From a step, whatever the function or the input raised. It has a note that names the item.

    Example:
        `for result in map_in_processpool_sync(hash_file, paths): ...`
    """
    from .._processes import ProcessPlace
    from .._processes._api import require_sendable

    helper = "map_in_processpool_sync"
    sent: Callable[..., Any] = require_sendable(func, helper)
    run = new_run(ProcessPlace(), sent, iterables, helper, limit, ordered, return_exceptions, chunk, sync=True)
    return sync_iterator(run, iterables, func, helper)


@overload
def map_in_executor_sync(
    executor: Executor,
    func: Callable[[A], T],
    a: Iterable[A],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> MapIterator[T]: ...
@overload
def map_in_executor_sync(
    executor: Executor,
    func: Callable[[A, B], T],
    a: Iterable[A],
    b: Iterable[B],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> MapIterator[T]: ...
@overload
def map_in_executor_sync(
    executor: Executor,
    func: Callable[[A, B, C], T],
    a: Iterable[A],
    b: Iterable[B],
    c: Iterable[C],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> MapIterator[T]: ...
@overload
def map_in_executor_sync(
    executor: Executor,
    func: Callable[..., T],
    /,
    *iterables: Iterable[Any],
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> MapIterator[T]: ...
@overload
def map_in_executor_sync(
    executor: Executor,
    func: Callable[..., T],
    /,
    *iterables: Iterable[Any],
    return_exceptions: bool,
    **options: Unpack[Options],
) -> MapIterator[T | Exception]: ...
def map_in_executor_sync(
    executor: Executor,
    func: Callable[..., Any],
    /,
    *iterables: Iterable[Any],
    limit: int | None = None,
    ordered: bool = True,
    return_exceptions: bool = False,
) -> MapIterator[Any]:
    """Call a sync function for each item, and iterate over the results: `map_in_executor` for sync code.

    Each call is one of `run_in_executor_sync`.

    Args:
        executor: Any `concurrent.futures.Executor`: it decides where the function runs, and how many run at once.
        func: A sync function. It gets one item of each iterable.
        iterables: Iterables, zipped as by `zip`. They may be infinite, and may block: a thread of their own reads them,
            unless they are lists and the like. No item is read before its call may begin.
        limit: How many calls may have begun and not been delivered. `None` is 100. An executor with more workers needs
            more.
        ordered, return_exceptions: As for `map_in_threadpool_sync`.

    Cancellation:
        As for `map_in_threadpool_sync`: what runs is waited for, after `break` only by `close()`.

    Returns:
        An iterator, with `close` and, where all of the input has a length, `__length_hint__`.

    Raises:
        LoopThreadError: From a step, if an event loop is running in this thread, which the step would block.
        LoopStartError: From a step, if the background event loop cannot start.
        LoopEndedError: From a step, if the event loop has ended, for example at exit.
        WrongFunctionError: If *executor* is not an executor, or *func* is async or cannot be called, or an iterable is
            missing or cannot be iterated over.
        WrongOptionError: If an option has a wrong value.
        BaseException: From a step, whatever the function or the input raised. It has a note that names the item.

    Example:
        `for result in map_in_executor_sync(cluster, simulate, cases): ...`
    """
    from .._executors import ExecutorPlace, require_executor

    helper = "map_in_executor_sync"
    require_executor(executor, helper)
    require_sync(func, helper)
    run = new_run(ExecutorPlace(executor), func, iterables, helper, limit, ordered, return_exceptions, sync=True)
    return sync_iterator(run, iterables, func, helper)


@overload
def map_in_eventloop_sync(
    func: Callable[[A], Awaitable[T]],
    a: Iterable[A],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> MapIterator[T]: ...
@overload
def map_in_eventloop_sync(
    func: Callable[[A, B], Awaitable[T]],
    a: Iterable[A],
    b: Iterable[B],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> MapIterator[T]: ...
@overload
def map_in_eventloop_sync(
    func: Callable[[A, B, C], Awaitable[T]],
    a: Iterable[A],
    b: Iterable[B],
    c: Iterable[C],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> MapIterator[T]: ...
@overload
def map_in_eventloop_sync(
    func: Callable[..., Awaitable[T]],
    /,
    *iterables: Iterable[Any],
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> MapIterator[T]: ...
@overload
def map_in_eventloop_sync(
    func: Callable[..., Awaitable[T]], /, *iterables: Iterable[Any], return_exceptions: bool, **options: Unpack[Options]
) -> MapIterator[T | Exception]: ...
def map_in_eventloop_sync(
    func: Callable[..., Awaitable[Any]],
    /,
    *iterables: Iterable[Any],
    limit: int | None = None,
    ordered: bool = True,
    return_exceptions: bool = False,
) -> MapIterator[Any]:
    """Call an async function for each item, and iterate over the results: `map_in_eventloop` for sync code.

    Each call is one of `run_in_eventloop_sync`, in a task of its own and in a copy of the caller's context. In a worker
    thread, the calls run in the loop of that worker, otherwise on the background event loop.

    Args:
        func: An async function. It gets one item of each iterable.
        iterables: Iterables, zipped as by `zip`. They may be infinite, and may block: a thread of their own reads them,
            unless they are lists and the like. No item is read before its call may begin.
        limit: How many calls may have begun and not been delivered. `None` is 100.
        ordered, return_exceptions: As for `map_in_threadpool_sync`.

    Cancellation:
        As for `map_in_threadpool_sync`, except that what runs is cancelled. Its cleanup is awaited, after `break` only
        by `close()`.

    Returns:
        An iterator, with `close` and, where all of the input has a length, `__length_hint__`.

    Raises:
        LoopThreadError: From a step, if an event loop is running in this thread, which the step would block.
        LoopStartError: From a step, if the background event loop cannot start.
        LoopEndedError: From a step, if the event loop has ended, for example at exit.
        WrongFunctionError: If *func* is not callable, or an iterable is missing or cannot be iterated over.
        WrongOptionError: If an option has a wrong value.
        BaseException: From a step, whatever the function or the input raised. It has a note that names the item.

    Example:
        `for result in map_in_eventloop_sync(fetch, urls): ...`
    """
    from .._eventloops._background import EventloopPlace

    helper = "map_in_eventloop_sync"
    require_async(func, helper)
    run = new_run(EventloopPlace(), func, iterables, helper, limit, ordered, return_exceptions, sync=True)
    return sync_iterator(run, iterables, func, helper)
