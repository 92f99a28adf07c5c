"""The functions that make dual callables: `in_threadpool`, `in_processpool`, `in_executor`, `in_eventloop`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, overload

from .._core._checks import refuse_options, visible_names
from ._callable import DualCallable, DualMethod
from ._generators import dual_for, refuse_class
from ._metadata import described

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Awaitable, Callable
    from concurrent.futures import Executor
    from contextvars import Context
    from types import CoroutineType
    from typing import Concatenate

    from anyio import CapacityLimiter
    from typing_extensions import Unpack

    from .._eventloops._handle import Handle
    from ._binding import Place
    from ._generators import DualContextManager, DualIterator
    from ._typing import (
        AsyncDecorator,
        AsyncItems,
        AsyncManager,
        EventloopOptions,
        ExecutorOptions,
        IteratorMember,
        IteratorMethod,
        ManagerMember,
        ManagerMethod,
        OnlyAny,
        ProcessOptions,
        TakesMember,
        ThreadOptions,
        _TakesCls,
        _TakesSelf,
    )

P = ParamSpec("P")
T = TypeVar("T")


if TYPE_CHECKING:

    class _Method(Generic[P, T]):
        """A dual callable for a method: looking it up gives a `DualCallable`."""

        @property
        def sync(self) -> Callable[P, T]: ...
        def start(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> CoroutineType[Any, Any, T]: ...
        @overload
        def __get__(self, instance: None, owner: type, /) -> DualCallable[Concatenate[Any, P], T]: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None, /) -> DualCallable[P, T]: ...
        def __get__(self, instance: object, owner: type | None = None, /) -> Any: ...


def _make(place: Place, func: Any, others: dict[str, object]) -> Any:
    """Return the dual callable for *func*, or a decorator if *func* is `None`."""
    if others:
        refuse_options(place.decorator, others)
    place.check()
    return _Decorator(place) if func is None else _wrap(place, func)


def _wrap(place: Place, func: Any) -> Any:
    is_method = issubclass(type(func), (classmethod, staticmethod))
    plain = func.__func__ if is_method else func
    refuse_class(place, plain)
    make: Any = dual_for(place, plain)
    if make is None:
        place.require(plain)
        make = DualCallable
    dual = make(place, func)
    return cast("Any", DualMethod(dual)) if is_method else dual


class _Decorator:
    """Makes dual callables for one place: all of them have the same options."""

    def __init__(self, place: Place) -> None:
        self._place = place

    @overload
    def __call__(self, func: _TakesSelf[P, T], /) -> _Method[P, T]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, func: _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T], /) -> DualMethod[P, T]: ...
    @overload
    def __call__(self, func: Callable[P, T], /) -> DualCallable[P, T]: ...
    def __call__(self, func: Any, /) -> Any:
        return _wrap(self._place, func)

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        helper, first, options = described(self._place)
        return f"<{helper}({', '.join([*first, *options])})>"


@overload
def in_threadpool(  # pyright: ignore[reportOverlappingOverload]
    func: _TakesSelf[P, T], /, **options: Unpack[ThreadOptions]
) -> _Method[P, T]: ...
@overload
def in_threadpool(
    func: _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T],
    /,
    **options: Unpack[ThreadOptions],
) -> DualMethod[P, T]: ...
@overload
def in_threadpool(func: Callable[P, T], /, **options: Unpack[ThreadOptions]) -> DualCallable[P, T]: ...
@overload
def in_threadpool(**options: Unpack[ThreadOptions]) -> _Decorator: ...
def in_threadpool(
    func: Any = None,
    /,
    *,
    limiter: CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
    timeout: float | None = None,
    context: Context | None = None,
    **others: object,
) -> Any:
    """Make a dual callable that runs a sync function in a worker thread; also a decorator.

    `await f(...)` does the same as `run_in_threadpool`, and `f.sync(...)` does the same as `run_in_threadpool_sync`,
    with these options. Put on a generator function it makes a `DualIterator` (`async for ... in f(...)`,
    `for ... in f.sync(...)`), and on a `@contextmanager` function a `DualContextManager` (`async with f(...)`,
    `with f.sync(...)`). Both run in a worker thread, and take no option but *limiter*.

    Args:
        func: A sync function, a method, any callable object, a `classmethod` or a `staticmethod`. Without it, a
            decorator is returned.
        limiter: Bounds how many calls run at once. All wrappers that share it count, from any loop or thread. `None` is
            anyio's default thread limiter, 40 for each event loop.
        abandon_on_cancel: Whether a cancelled call stops waiting for its thread. The thread keeps running.
        timeout: The call abandons its thread and raises `CallTimeoutError` after so many seconds, including the wait
            for a slot. `None` for no limit.
        context: The context to run in, not a copy of it; one call at a time. `None` for a copy of the caller's context.

    Cancellation:
        As for `run_in_threadpool`: a function that has not begun never begins. The call waits for a function that
        runs, but not longer than the timeout, and not at all with `abandon_on_cancel`. An abandoned thread keeps its
        slot and its context until it ends, and `count_abandoned_threads` counts it. The async code that it waits for
        is cancelled.

    Returns:
        A `DualCallable`, `DualIterator` or `DualContextManager`. For a `classmethod` or a `staticmethod`, an attribute
        that gives one when it is looked up.

    Raises:
        WrongFunctionError: If *func* is async, cannot be called, or is a class with async methods. From a call, if
            *func* returns a coroutine.
        WrongOptionError: If an option has a wrong value, or there is no such option.
        CallTimeoutError: From a call, if it has not ended in time.
        InUseError: From a call, if *context* is in use.
        BaseException: From a call, whatever *func* raised.

    Example:
        `read = in_threadpool(read_file, limiter=disk, timeout=5)`
    """
    from .._threads._threadpool import ThreadPlace

    return _make(ThreadPlace(limiter, abandon_on_cancel, timeout, context), func, others)


@overload
def in_processpool(  # pyright: ignore[reportOverlappingOverload]
    func: _TakesSelf[P, T], /, **options: Unpack[ProcessOptions]
) -> _Method[P, T]: ...
@overload
def in_processpool(
    func: _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T],
    /,
    **options: Unpack[ProcessOptions],
) -> DualMethod[P, T]: ...
@overload
def in_processpool(func: Callable[P, T], /, **options: Unpack[ProcessOptions]) -> DualCallable[P, T]: ...
@overload
def in_processpool(**options: Unpack[ProcessOptions]) -> _Decorator: ...
def in_processpool(
    func: Any = None,
    /,
    *,
    limiter: CapacityLimiter | None = None,
    kill_on_cancel: bool = False,
    timeout: float | None = None,
    initializer: Callable[[], object] | None = None,
    max_calls: int | None = None,
    **others: object,
) -> Any:
    """Make a dual callable that runs a sync function in a worker process; also a decorator.

    `await f(...)` does the same as `run_in_processpool`, and `f.sync(...)` does the same as `run_in_processpool_sync`,
    with these options. The worker process finds a decorated function by its name.

    Args:
        func: A sync function at the top level of a module, a method of an object that can be pickled, a `classmethod`
            or a `staticmethod`. Without it, a decorator is returned.
        limiter: Bounds how many calls run at once. All wrappers that share it count, from any loop or thread. `None` is
            anyio's default process limiter: for each event loop, as many as the CPUs that this process may use.
        kill_on_cancel: Whether a cancelled call kills its worker process.
        timeout: The call kills its worker process and raises `CallTimeoutError` after so many seconds, including the
            wait for a slot. `None` for no limit.
        initializer: A function without arguments; use `functools.partial` to give it some. Each worker process calls it
            once, before its first call with this initializer. If it raises, the call raises the same, and the next call
            tries again.
        max_calls: Replace a worker process after so many calls, of any function. This helps if something leaks there.
            `None` for never.

    Cancellation:
        As for `run_in_processpool`: a call that has not been sent is never sent. The call waits for a function that
        runs, but not longer than the timeout, and not at all with `kill_on_cancel`. Then it kills its worker process,
        and the next call that needs a worker starts another.

    Returns:
        A `DualCallable`. For a `classmethod` or a `staticmethod`, an attribute that gives one when it is looked up.

    Raises:
        WrongFunctionError: If *func* or *initializer* is async, or cannot be called. From a call, if *func* returns a
            coroutine.
        NotSendableError: If *initializer* cannot be pickled. From a call, as for `run_in_processpool`.
        WrongOptionError: If an option has a wrong value, or there is no such option.
        CallTimeoutError: From a call, if it has not ended in time.
        WorkerProcessError: From a call, as for `run_in_processpool`.
        RemoteError: From a call, as for `run_in_processpool`.
        BaseException: From a call, whatever *func* or *initializer* raised.

    Example:
        `digest = in_processpool(hash_file, kill_on_cancel=True)`
    """
    from .._processes import ProcessPlace

    return _make(ProcessPlace(limiter, kill_on_cancel, timeout, initializer, max_calls), func, others)


@overload
def in_executor(  # pyright: ignore[reportOverlappingOverload]
    executor: Executor, func: _TakesSelf[P, T], /, **options: Unpack[ExecutorOptions]
) -> _Method[P, T]: ...
@overload
def in_executor(
    executor: Executor,
    func: _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T],
    /,
    **options: Unpack[ExecutorOptions],
) -> DualMethod[P, T]: ...
@overload
def in_executor(
    executor: Executor, func: Callable[P, T], /, **options: Unpack[ExecutorOptions]
) -> DualCallable[P, T]: ...
@overload
def in_executor(executor: Executor, /, **options: Unpack[ExecutorOptions]) -> _Decorator: ...
def in_executor(executor: Executor, func: Any = None, /, *, timeout: float | None = None, **others: object) -> Any:
    """Make a dual callable that runs a sync function in an executor; also a decorator.

    `await f(...)` does the same as `run_in_executor`, and `f.sync(...)` does the same as `run_in_executor_sync`, with
    these options.

    Args:
        executor: Any `concurrent.futures.Executor`. It decides where the function runs, and how many calls run at once.
        func: A sync function, a method, any callable object, a `classmethod` or a `staticmethod`. Without it, a
            decorator is returned.
        timeout: The call stops waiting and raises `CallTimeoutError` after so many seconds, including the wait in the
            executor's queue. `None` for no limit.

    Cancellation:
        As for `run_in_executor`: a function that the executor has not begun never begins. The call waits for a
        function that runs, but not longer than the timeout. After that the function keeps running.

    Returns:
        A `DualCallable`. For a `classmethod` or a `staticmethod`, an attribute that gives one when it is looked up.

    Raises:
        WrongFunctionError: If *executor* is not an executor, or *func* is async or cannot be called. From a call, if
            *func* returns a coroutine.
        WrongOptionError: If an option has a wrong value, or there is no such option.
        ExecutorError: From a call, as for `run_in_executor`.
        CallTimeoutError: From a call, if it has not ended in time.
        BaseException: From a call, whatever *func* raised.

    Example:
        `query = in_executor(one_thread, connection.execute, timeout=5)`
    """
    from .._executors import ExecutorPlace

    return _make(ExecutorPlace(executor, timeout), func, others)


@overload
def in_eventloop(func: Callable[P, OnlyAny], /, **options: Unpack[EventloopOptions]) -> DualCallable[P, Any]: ...
@overload
def in_eventloop(  # pyright: ignore[reportOverlappingOverload]
    func: _TakesSelf[P, AsyncItems[T]], /
) -> IteratorMethod[P, T, AsyncGenerator[T, None]]: ...
@overload
def in_eventloop(func: TakesMember[P, AsyncItems[T]], /) -> IteratorMember[P, T, AsyncGenerator[T, None]]: ...
@overload
def in_eventloop(func: Callable[P, AsyncItems[T]], /) -> DualIterator[P, T, AsyncGenerator[T, None]]: ...
@overload
def in_eventloop(  # pyright: ignore[reportOverlappingOverload]
    func: _TakesSelf[P, AsyncManager[T]], /
) -> ManagerMethod[P, T]: ...
@overload
def in_eventloop(func: TakesMember[P, AsyncManager[T]], /) -> ManagerMember[P, T]: ...
@overload
def in_eventloop(func: Callable[P, AsyncManager[T]], /) -> DualContextManager[P, T]: ...
@overload
def in_eventloop(  # pyright: ignore[reportOverlappingOverload]
    func: _TakesSelf[P, Awaitable[T]], /, **options: Unpack[EventloopOptions]
) -> _Method[P, T]: ...
@overload
def in_eventloop(
    func: _TakesCls[P, Awaitable[T]] | classmethod[Any, P, Awaitable[T]] | staticmethod[P, Awaitable[T]],
    /,
    **options: Unpack[EventloopOptions],
) -> DualMethod[P, T]: ...
@overload
def in_eventloop(func: Callable[P, Awaitable[T]], /, **options: Unpack[EventloopOptions]) -> DualCallable[P, T]: ...
@overload
def in_eventloop(**options: Unpack[EventloopOptions]) -> AsyncDecorator: ...
def in_eventloop(
    func: Any = None, /, *, timeout: float | None = None, context: Context | None = None, **others: object
) -> Any:
    """Make a dual callable of an async function; also a decorator.

    `await f(...)` runs the function in the current task, and `f.sync(...)` does the same as `run_in_eventloop_sync`,
    with these options. Put on an async generator function it makes a `DualIterator`: `f(...)` is the async generator
    itself, and `for ... in f.sync(...)` does the same as `iterate_in_eventloop_sync`. Put on an `@asynccontextmanager`
    function it makes a `DualContextManager`: `f(...)` is the async context manager itself, and `with f.sync(...)` does
    the same as `contextmanager_in_eventloop_sync`. Both take no options.

    Args:
        func: An async function, a method, any callable that returns an awaitable, a `classmethod` or a `staticmethod`.
            Without it, a decorator is returned.
        timeout: The call cancels the function after so many seconds, waits for its cleanup, and raises
            `CallTimeoutError`. `None` for no limit.
        context: The context to run in, not a copy of it; one call at a time. `None` for the caller's own context in
            async code, and a copy of it in sync code.

    Cancellation:
        In async code as for any awaited function, in sync code as for `run_in_eventloop_sync`. The call waits for the
        function's cleanup, however long that takes.

    Returns:
        A `DualCallable`, `DualIterator` or `DualContextManager`. For a `classmethod` or a `staticmethod`, an attribute
        that gives one when it is looked up.

    Raises:
        WrongFunctionError: If *func* is a class (`sync_twin` is for these), or cannot be called. From a call, if *func*
            does not return an awaitable.
        WrongOptionError: If an option has a wrong value, or there is no such option.
        CallTimeoutError: From a call, if it has not ended in time.
        InUseError: From a call, if *context* is in use.
        BaseException: From a call, whatever *func* raised.

    Example:
        `fetch = in_eventloop(client.get, timeout=5)`
    """
    from .._eventloops._background import EventloopPlace

    return _make(EventloopPlace(timeout, context), func, others)
