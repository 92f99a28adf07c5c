"""Many calls at once, from async code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar, overload

from .._core._checks import require_async, require_sync
from ._mapdual import new_run
from ._mapiterators import AsyncMapIterator

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable, Iterable
    from concurrent.futures import Executor
    from typing import Literal, TypeAlias

    from typing_extensions import TypedDict, Unpack

A = TypeVar("A")
B = TypeVar("B")
C = TypeVar("C")
T = TypeVar("T")

if TYPE_CHECKING:
    Source: TypeAlias = Iterable[A] | AsyncIterable[A]

    class Options(TypedDict, total=False):
        limit: int | None
        ordered: bool

    class ChunkOptions(Options, total=False):
        chunk: int | None


@overload
def map_in_threadpool(
    func: Callable[[A], T], a: Source[A], /, *, return_exceptions: Literal[False] = False, **options: Unpack[Options]
) -> AsyncMapIterator[T]: ...
@overload
def map_in_threadpool(
    func: Callable[[A, B], T],
    a: Source[A],
    b: Source[B],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_threadpool(
    func: Callable[[A, B, C], T],
    a: Source[A],
    b: Source[B],
    c: Source[C],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_threadpool(
    func: Callable[..., T],
    /,
    *iterables: Source[Any],
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_threadpool(
    func: Callable[..., T], /, *iterables: Source[Any], return_exceptions: bool, **options: Unpack[Options]
) -> AsyncMapIterator[T | Exception]: ...
def map_in_threadpool(
    func: Callable[..., Any],
    /,
    *iterables: Source[Any],
    limit: int | None = None,
    ordered: bool = True,
    return_exceptions: bool = False,
) -> AsyncMapIterator[Any]:
    """Call a sync function in a worker thread for each item, several at once, and iterate over the results.

    Each call is one of `run_in_threadpool`: the same slots, in a copy of the caller's context, and so on.

    Args:
        func: A sync function. It gets one item of each iterable.
        iterables: Iterables or async iterables, zipped as by `zip`. They may be infinite, and may block: a thread of
            their own reads them, unless they are lists and the like, and a task of its own reads async ones. No item is
            read before its call may begin.
        limit: How many calls may have begun and not been delivered. `None` is the total of anyio's default thread
            limiter.
        ordered: Whether results come in the order of the items. Otherwise what is ready comes first.
        return_exceptions: Whether an `Exception` that the function raises is a result like others. Otherwise it is
            raised when it is that item's turn, and ends the iteration.

    Cancellation:
        If a step is cancelled, if a call fails, or after `aclose()`: what has not begun never begins, and threads are
        waited for. Then the iteration is over. If it is left early, by `break` or an exception, what has not begun
        never begins, and what runs goes on to its end (on PyPy when the iterator is collected), but nobody waits for
        that, except with `aclose()`, or with `async with aclosing(map_in_threadpool(...)) as results`.

    Returns:
        An async iterator, with `aclose` and, where all of the input has a length, `__length_hint__`.

    Raises:
        InUseError: From a step, if another task is waiting for a result.
        LoopStateError: From a step, if it was begun in another event loop.
        WrongFunctionError: If *func* is async or not callable, or an iterable is missing or cannot be iterated over.
        WrongOptionError: If an option has a wrong value.
        BaseException: From a step, whatever the function or the input raised. It has a note that names the item.

    Example:
        `async for result in map_in_threadpool(read, paths): ...`
    """
    from .._threads._threadpool import ThreadPlace

    helper = "map_in_threadpool"
    require_sync(func, helper)
    run = new_run(ThreadPlace(), func, iterables, helper, limit, ordered, return_exceptions, sync=False)
    return AsyncMapIterator(run, iterables, func, helper)


@overload
def map_in_processpool(
    func: Callable[[A], T],
    a: Source[A],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[ChunkOptions],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_processpool(
    func: Callable[[A, B], T],
    a: Source[A],
    b: Source[B],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[ChunkOptions],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_processpool(
    func: Callable[[A, B, C], T],
    a: Source[A],
    b: Source[B],
    c: Source[C],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[ChunkOptions],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_processpool(
    func: Callable[..., T],
    /,
    *iterables: Source[Any],
    return_exceptions: Literal[False] = False,
    **options: Unpack[ChunkOptions],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_processpool(
    func: Callable[..., T], /, *iterables: Source[Any], return_exceptions: bool, **options: Unpack[ChunkOptions]
) -> AsyncMapIterator[T | Exception]: ...
def map_in_processpool(
    func: Callable[..., Any],
    /,
    *iterables: Source[Any],
    limit: int | None = None,
    ordered: bool = True,
    return_exceptions: bool = False,
    chunk: int | None = None,
) -> AsyncMapIterator[Any]:
    """Call a sync function in a worker process for each item, several at once, and iterate over the results.

    Each call is one of `run_in_processpool`, but small items travel several to a call. The results are the same. If a
    worker process dies, all items of its call are lost, and each item that is lost has the error.

    Args:
        func: A sync function at the top level of a module. It gets one item of each iterable, pickled.
        iterables: Iterables or async iterables, zipped as by `zip`. They may be infinite, and may block: a thread of
            their own reads them, unless they are lists and the like, and a task of its own reads async ones. No item is
            read before its call may begin.
        limit: How many calls may have begun and not been delivered. `None` is the total of anyio's default process
            limiter: one for each CPU.
        ordered, return_exceptions: As for `map_in_threadpool`.
        chunk: How many items travel in one call. `None`: as many as take about a tenth of a second, measured on the
            way; but 1 with `timeout` or `max_calls`, which count calls.

    Cancellation:
        As for `map_in_threadpool`: what runs is waited for, after `break` only by `aclose()`.

    Returns:
        An async iterator, with `aclose` and, where all of the input has a length, `__length_hint__`.

    Raises:
        InUseError: From a step, if another task is waiting for a result.
        LoopStateError: From a step, if it was begun in another event loop.
        WrongFunctionError: If *func* is async or not callable, or an iterable is missing or cannot be iterated over.
        WrongOptionError: If an option has a wrong value.
        BaseException: From a step, whatever the function or the input raised. It has a note that names the item.

    Example:
        `async for result in map_in_processpool(hash_file, paths): ...`
    """
    from .._processes import ProcessPlace
    from .._processes._api import require_sendable

    helper = "map_in_processpool"
    sent: Callable[..., Any] = require_sendable(func, helper)
    run = new_run(ProcessPlace(), sent, iterables, helper, limit, ordered, return_exceptions, chunk, sync=False)
    return AsyncMapIterator(run, iterables, func, helper)


@overload
def map_in_executor(
    executor: Executor,
    func: Callable[[A], T],
    a: Source[A],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_executor(
    executor: Executor,
    func: Callable[[A, B], T],
    a: Source[A],
    b: Source[B],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_executor(
    executor: Executor,
    func: Callable[[A, B, C], T],
    a: Source[A],
    b: Source[B],
    c: Source[C],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_executor(
    executor: Executor,
    func: Callable[..., T],
    /,
    *iterables: Source[Any],
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_executor(
    executor: Executor,
    func: Callable[..., T],
    /,
    *iterables: Source[Any],
    return_exceptions: bool,
    **options: Unpack[Options],
) -> AsyncMapIterator[T | Exception]: ...
def map_in_executor(
    executor: Executor,
    func: Callable[..., Any],
    /,
    *iterables: Source[Any],
    limit: int | None = None,
    ordered: bool = True,
    return_exceptions: bool = False,
) -> AsyncMapIterator[Any]:
    """Call a sync function in any executor for each item, several at once, and iterate over the results.

    Each call is one of `run_in_executor`.

    Args:
        executor: Any `concurrent.futures.Executor`: it decides where the function runs, and how many run at once.
        func: A sync function. It gets one item of each iterable.
        iterables: Iterables or async iterables, zipped as by `zip`. They may be infinite, and may block: a thread of
            their own reads them, unless they are lists and the like, and a task of its own reads async ones. No item is
            read before its call may begin.
        limit: How many calls may have begun and not been delivered. `None` is 100. An executor with more workers needs
            more.
        ordered, return_exceptions: As for `map_in_threadpool`.

    Cancellation:
        As for `map_in_threadpool`: what runs is waited for, after `break` only by `aclose()`.

    Returns:
        An async iterator, with `aclose` and, where all of the input has a length, `__length_hint__`.

    Raises:
        InUseError: From a step, if another task is waiting for a result.
        LoopStateError: From a step, if it was begun in another event loop.
        WrongFunctionError: If *executor* is not an executor, or *func* is async or cannot be called, or an iterable is
            missing or cannot be iterated over.
        WrongOptionError: If an option has a wrong value.
        BaseException: From a step, whatever the function or the input raised. It has a note that names the item.

    Example:
        `async for result in map_in_executor(cluster, simulate, cases): ...`
    """
    from .._executors import ExecutorPlace, require_executor

    helper = "map_in_executor"
    require_executor(executor, helper)
    require_sync(func, helper)
    run = new_run(ExecutorPlace(executor), func, iterables, helper, limit, ordered, return_exceptions, sync=False)
    return AsyncMapIterator(run, iterables, func, helper)


@overload
def map_in_eventloop(
    func: Callable[[A], Awaitable[T]],
    a: Source[A],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_eventloop(
    func: Callable[[A, B], Awaitable[T]],
    a: Source[A],
    b: Source[B],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_eventloop(
    func: Callable[[A, B, C], Awaitable[T]],
    a: Source[A],
    b: Source[B],
    c: Source[C],
    /,
    *,
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_eventloop(
    func: Callable[..., Awaitable[T]],
    /,
    *iterables: Source[Any],
    return_exceptions: Literal[False] = False,
    **options: Unpack[Options],
) -> AsyncMapIterator[T]: ...
@overload
def map_in_eventloop(
    func: Callable[..., Awaitable[T]], /, *iterables: Source[Any], return_exceptions: bool, **options: Unpack[Options]
) -> AsyncMapIterator[T | Exception]: ...
def map_in_eventloop(
    func: Callable[..., Awaitable[Any]],
    /,
    *iterables: Source[Any],
    limit: int | None = None,
    ordered: bool = True,
    return_exceptions: bool = False,
) -> AsyncMapIterator[Any]:
    """Call an async function on the background event loop for each item, several at once, and iterate over the results.

    Each call is one of `run_in_eventloop`, in a task of its own and in a copy of the caller's context.

    Args:
        func: An async function. It gets one item of each iterable.
        iterables: Iterables or async iterables, zipped as by `zip`. They may be infinite, and may block: a thread of
            their own reads them, unless they are lists and the like, and a task of its own reads async ones. No item is
            read before its call may begin.
        limit: How many calls may have begun and not been delivered. `None` is 100.
        ordered, return_exceptions: As for `map_in_threadpool`.

    Cancellation:
        As for `map_in_threadpool`, except that what runs is cancelled. Its cleanup is awaited, after `break` only by
        `aclose()`.

    Returns:
        An async iterator, with `aclose` and, where all of the input has a length, `__length_hint__`.

    Raises:
        InUseError: From a step, if another task is waiting for a result.
        LoopStateError: From a step, if it was begun in another event loop.
        WrongFunctionError: If *func* is not callable, or an iterable is missing or cannot be iterated over.
        WrongOptionError: If an option has a wrong value.
        BaseException: From a step, whatever the function or the input raised. It has a note that names the item.

    Example:
        `async for result in map_in_eventloop(fetch, urls): ...`
    """
    from .._eventloops._background import EventloopPlace

    helper = "map_in_eventloop"
    require_async(func, helper)
    run = new_run(
        EventloopPlace(), func, iterables, helper, limit, ordered, return_exceptions, sync=False, elsewhere=True
    )
    return AsyncMapIterator(run, iterables, func, helper)
