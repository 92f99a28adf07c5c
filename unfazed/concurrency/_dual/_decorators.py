"""`in_threadpool`, `in_processpool`, `in_executor`, `in_eventloop`: they make dual callables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, overload

from .._core._checks import refuse_options, visible_names
from .._eventloops._background import EventloopPlace
from .._executors import ExecutorPlace
from .._processes import ProcessPlace
from .._threads._threadpool import ThreadPlace
from ._callable import DualCallable, DualMethod, Place
from ._metadata import PLACES, described

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor
    from contextvars import Context
    from types import CoroutineType
    from typing import Concatenate

    from anyio import CapacityLimiter
    from typing_extensions import TypedDict, Unpack

P = ParamSpec("P")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


if TYPE_CHECKING:
    # What checkers see of a decorated function in a class. They know it by the name of its first parameter, and get
    # its type without that one: or else no subclass could override it for them, and no protocol would know it.

    class _TakesSelf(Protocol[P, T_co]):
        def __call__(
            _me,  # noqa: N805
            self: Any,
            *args: P.args,
            **kwargs: P.kwargs,
        ) -> T_co: ...

    class _TakesCls(Protocol[P, T_co]):
        def __call__(
            _me,  # noqa: N805
            cls: Any,
            *args: P.args,
            **kwargs: P.kwargs,
        ) -> T_co: ...

    class _Method(Generic[P, T]):
        """A dual callable for a method, from where it is looked up on."""

        @property
        def sync(self) -> Callable[P, T]: ...
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> CoroutineType[Any, Any, T]: ...
        @overload
        def __get__(self, instance: None, owner: type, /) -> DualCallable[Concatenate[Any, P], T]: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None, /) -> DualCallable[P, T]: ...
        def __get__(self, instance: object, owner: type | None = None, /) -> Any: ...


def _make(place: Place, func: Any, others: dict[str, object]) -> Any:
    """Return the dual callable for *func*, or the decorator that makes one of what it is given."""
    if others:
        refuse_options(PLACES[type(place)], others)
    place.check()
    return _Decorator(place) if func is None else _wrap(place, func)


def _wrap(place: Place, func: Any) -> Any:
    is_method = issubclass(type(func), (classmethod, staticmethod))
    place.require(func.__func__ if is_method else func)
    make: Any = DualCallable
    dual = make(place, func)
    return cast("Any", DualMethod(dual)) if is_method else dual


class _Decorator:
    """Makes dual callables that run in one place, with the same options."""

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


if TYPE_CHECKING:

    class _AsyncDecorator(Protocol):
        """The same for async functions."""

        @overload
        def __call__(  # pyright: ignore[reportOverlappingOverload]
            self, func: _TakesSelf[P, Awaitable[T]], /
        ) -> _Method[P, T]: ...
        @overload
        def __call__(
            self,
            func: _TakesCls[P, Awaitable[T]] | classmethod[Any, P, Awaitable[T]] | staticmethod[P, Awaitable[T]],
            /,
        ) -> DualMethod[P, T]: ...
        @overload
        def __call__(self, func: Callable[P, Awaitable[T]], /) -> DualCallable[P, T]: ...

    class _ThreadOptions(TypedDict, total=False):
        limiter: CapacityLimiter | None
        abandon_on_cancel: bool
        timeout: float | None
        context: Context | None

    class _ProcessOptions(TypedDict, total=False):
        limiter: CapacityLimiter | None
        kill_on_cancel: bool
        timeout: float | None
        initializer: Callable[[], object] | None
        max_calls: int | None

    class _ExecutorOptions(TypedDict, total=False):
        timeout: float | None

    class _EventloopOptions(TypedDict, total=False):
        timeout: float | None
        context: Context | None


@overload
def in_threadpool(  # pyright: ignore[reportOverlappingOverload]
    func: _TakesSelf[P, T], /, **options: Unpack[_ThreadOptions]
) -> _Method[P, T]: ...
@overload
def in_threadpool(
    func: _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T],
    /,
    **options: Unpack[_ThreadOptions],
) -> DualMethod[P, T]: ...
@overload
def in_threadpool(func: Callable[P, T], /, **options: Unpack[_ThreadOptions]) -> DualCallable[P, T]: ...
@overload
def in_threadpool(**options: Unpack[_ThreadOptions]) -> _Decorator: ...
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

    Called as `await f(...)` it does what `run_in_threadpool` does, called as `f.sync(...)` what
    `run_in_threadpool_sync` does, with these options.

    Args:
        func: A sync function, a method, anything that can be called, a `classmethod` or a `staticmethod`. Left out,
            a decorator is returned.
        limiter: Bounds how many calls run at once, of all wrappers that share it, from any loop or thread; `None` is
            anyio's default thread limiter, 40 for each event loop.
        abandon_on_cancel: Whether a call that is cancelled stops waiting for its thread, which runs on unseen.
        timeout: After how many seconds, waiting for a slot included, to abandon the thread and raise
            `CallTimeoutError`; `None` for no limit.
        context: The context to run in, as it is, one call at a time; `None` for a copy of the caller's.

    Cancellation:
        As for `run_in_threadpool`: a function that has not started never starts; one that runs is waited for, but no
        longer than the timeout, nor with `abandon_on_cancel`. An abandoned thread keeps its slot and its context
        until it ends, and is counted by `count_abandoned_threads`; the async code that it waits for is cancelled.

    Returns:
        A `DualCallable`; for a `classmethod` or a `staticmethod`, what becomes one where it is looked up.

    Raises:
        WrongFunctionError: If *func* is async, or cannot be called; when it is called, if it returns a coroutine.
        WrongOptionError: If an option is not what it should be.
        CallTimeoutError: When it is called, if it has not ended in time.
        InUseError: When it is called, if *context* is in use.

    Example:
        `read = in_threadpool(read_file, limiter=disk, timeout=5)`
    """
    return _make(ThreadPlace(limiter, abandon_on_cancel, timeout, context), func, others)


@overload
def in_processpool(  # pyright: ignore[reportOverlappingOverload]
    func: _TakesSelf[P, T], /, **options: Unpack[_ProcessOptions]
) -> _Method[P, T]: ...
@overload
def in_processpool(
    func: _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T],
    /,
    **options: Unpack[_ProcessOptions],
) -> DualMethod[P, T]: ...
@overload
def in_processpool(func: Callable[P, T], /, **options: Unpack[_ProcessOptions]) -> DualCallable[P, T]: ...
@overload
def in_processpool(**options: Unpack[_ProcessOptions]) -> _Decorator: ...
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

    Called as `await f(...)` it does what `run_in_processpool` does, called as `f.sync(...)` what
    `run_in_processpool_sync` does, with these options. The worker finds a decorated function by its name.

    Args:
        func: A sync function at the top level of a module, or a method of an object that can be pickled, or a
            `classmethod` or a `staticmethod`. Left out, a decorator is returned.
        limiter: Bounds how many calls run at once, of all wrappers that share it, from any loop or thread; `None` is
            anyio's default process limiter, as many as CPU cores for each event loop.
        kill_on_cancel: Whether a call that is cancelled kills its worker process.
        timeout: After how many seconds, waiting for a slot included, to kill the worker process and raise
            `CallTimeoutError`; `None` for no limit.
        initializer: A function without arguments (`functools.partial` gives it some) that each worker process calls
            once, before its first such call; what it raises is raised by that call, and the next one tries again.
        max_calls: After how many calls, of whatever function, to replace the worker process, against what leaks there;
            `None` for never.

    Cancellation:
        As for `run_in_processpool`: a call that has not been sent never is; one that runs is waited for, but no
        longer than the timeout, nor with `kill_on_cancel`: then its worker process is killed, and the next call that
        needs one starts another.

    Returns:
        A `DualCallable`; for a `classmethod` or a `staticmethod`, what becomes one where it is looked up.

    Raises:
        WrongFunctionError: If *func* or *initializer* is async, or cannot be called; when it is called, if *func*
            returns a coroutine.
        NotSendableError: If *initializer* cannot be pickled; when it is called, as for `run_in_processpool`.
        WrongOptionError: If an option is not what it should be.
        CallTimeoutError: When it is called, if it has not ended in time.

    Example:
        `digest = in_processpool(hash_file, kill_on_cancel=True)`
    """
    return _make(ProcessPlace(limiter, kill_on_cancel, timeout, initializer, max_calls), func, others)


@overload
def in_executor(  # pyright: ignore[reportOverlappingOverload]
    executor: Executor, func: _TakesSelf[P, T], /, **options: Unpack[_ExecutorOptions]
) -> _Method[P, T]: ...
@overload
def in_executor(
    executor: Executor,
    func: _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T],
    /,
    **options: Unpack[_ExecutorOptions],
) -> DualMethod[P, T]: ...
@overload
def in_executor(
    executor: Executor, func: Callable[P, T], /, **options: Unpack[_ExecutorOptions]
) -> DualCallable[P, T]: ...
@overload
def in_executor(executor: Executor, /, **options: Unpack[_ExecutorOptions]) -> _Decorator: ...
def in_executor(executor: Executor, func: Any = None, /, *, timeout: float | None = None, **others: object) -> Any:
    """Make a dual callable that runs a sync function in an executor; also a decorator.

    Called as `await f(...)` it does what `run_in_executor` does, called as `f.sync(...)` what `run_in_executor_sync`
    does, with these options.

    Args:
        executor: Any `concurrent.futures.Executor`: it decides where the function runs, and how many run at once.
        func: A sync function, a method, anything that can be called, a `classmethod` or a `staticmethod`. Left out,
            a decorator is returned.
        timeout: After how many seconds, waiting in the executor's queue included, to stop waiting and raise
            `CallTimeoutError`; `None` for no limit.

    Cancellation:
        As for `run_in_executor`: a function that the executor has not started never starts; one that runs is waited
        for, but no longer than the timeout. Then it runs on unseen.

    Returns:
        A `DualCallable`; for a `classmethod` or a `staticmethod`, what becomes one where it is looked up.

    Raises:
        WrongFunctionError: If *executor* is none, or *func* is async, or cannot be called.
        WrongOptionError: If an option is not what it should be.
        CallTimeoutError: When it is called, if it has not ended in time.

    Example:
        `query = in_executor(one_thread, connection.execute, timeout=5)`
    """
    return _make(ExecutorPlace(executor, timeout), func, others)


@overload
def in_eventloop(  # pyright: ignore[reportOverlappingOverload]
    func: _TakesSelf[P, Awaitable[T]], /, **options: Unpack[_EventloopOptions]
) -> _Method[P, T]: ...
@overload
def in_eventloop(
    func: _TakesCls[P, Awaitable[T]] | classmethod[Any, P, Awaitable[T]] | staticmethod[P, Awaitable[T]],
    /,
    **options: Unpack[_EventloopOptions],
) -> DualMethod[P, T]: ...
@overload
def in_eventloop(func: Callable[P, Awaitable[T]], /, **options: Unpack[_EventloopOptions]) -> DualCallable[P, T]: ...
@overload
def in_eventloop(**options: Unpack[_EventloopOptions]) -> _AsyncDecorator: ...
def in_eventloop(
    func: Any = None, /, *, timeout: float | None = None, context: Context | None = None, **others: object
) -> Any:
    """Make a dual callable of an async function; also a decorator.

    Called as `await f(...)` it simply runs in the current task; called as `f.sync(...)` it does what
    `run_in_eventloop_sync` does: with these options.

    Args:
        func: An async function, a method, anything that gives something to await, a `classmethod` or a
            `staticmethod`. Left out, a decorator is returned.
        timeout: After how many seconds to cancel the function, wait for its cleanup, and raise `CallTimeoutError`;
            `None` for no limit.
        context: The context to run in, as it is, one call at a time; `None` for the caller's own in async code, and
            for a copy of it in sync code.

    Cancellation:
        In async code that of any awaited function; in sync code as for `run_in_eventloop_sync`. The function's
        cleanup is awaited, however long it takes.

    Returns:
        A `DualCallable`; for a `classmethod` or a `staticmethod`, what becomes one where it is looked up.

    Raises:
        WrongFunctionError: If *func* is an async generator, or cannot be called; when it is called, if it gives
            nothing to await.
        WrongOptionError: If an option is not what it should be.
        CallTimeoutError: When it is called, if it has not ended in time.
        InUseError: When it is called, if *context* is in use.

    Example:
        `fetch = in_eventloop(client.get, timeout=5)`
    """
    return _make(EventloopPlace(timeout, context), func, others)
