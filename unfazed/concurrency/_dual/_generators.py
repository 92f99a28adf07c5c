"""Duals of generator functions and of context manager functions, sync or async.

    made by          of                            called                           `.sync`
    ---------------  ----------------------------  -------------------------------  -------------------------------
    `in_threadpool`  a generator function          iterates in a worker thread      iterates in a worker thread
                     a `@contextmanager` function  is entered in a worker thread    is entered in a worker thread
    `in_eventloop`   an async generator function   the async generator itself       iterates in an event loop
                     `@asynccontextmanager`        the async context manager itself is entered in an event loop

A call runs where its decorator says, whoever makes it.
"""

from __future__ import annotations

import functools
import inspect
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, cast, final, overload

from .._core._checks import is_async, name_of
from .._core._errors import WrongFunctionError, WrongOptionError
from ._binding import BoundDual
from ._callable import SyncForm
from ._metadata import options_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Generator, Iterable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from types import CodeType
    from typing import Concatenate

    from typing_extensions import Self

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
Owner = TypeVar("Owner")
AsyncItems = TypeVar("AsyncItems", bound="AsyncIterator[Any]")


def _code_of_what(decorator: Any) -> object:
    """Return the code object of the functions that *decorator* of contextlib makes: they all have the same."""
    return decorator(iter).__code__


# by decorator
_HELPERS: Final = {"in_threadpool": _code_of_what(contextmanager), "in_eventloop": _code_of_what(asynccontextmanager)}
_IS_GENERATOR: Final = {"in_threadpool": inspect.isgeneratorfunction, "in_eventloop": inspect.isasyncgenfunction}
_WHY: Final = {
    "timeout": "it is not one call, and each step takes as long as it takes: use `anyio.fail_after` around it",
    "abandon_on_cancel": "its thread is closed, and not abandoned",
    "context": "it has one context of its own, from its first step to its last",
}


@final
class DualIterator(BoundDual, Generic[P, T, AsyncItems]):
    """A generator function that knows where it runs. Async code and sync code can both iterate over it.

    `in_threadpool` makes it of a generator function, `in_eventloop` of an async one. Like a `DualCallable` it has the
    name, the docstring and the signature of that function, binds as it does, and can be pickled if it can.

    Example:
        `async for row in rows(path)` in async code, `for row in rows.sync(path)` in sync code
    """

    __slots__ = ()
    usage = "`async for ... in {0}(...)` in async code, `for ... in {0}.sync(...)` in sync code."

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> AsyncItems:
        """Iterate from async code."""
        return cast("AsyncItems", _iterate(self, self._func(*args, **kwargs)))

    if TYPE_CHECKING:

        @property
        def sync(self) -> Callable[P, Generator[T, None, None]]:
            """The same for sync code."""
            ...

        @overload
        def __get__(self, instance: None, owner: type, /) -> Self: ...
        @overload
        def __get__(
            self: DualIterator[Concatenate[Owner, Q], T, AsyncItems], instance: Owner, owner: type | None = None, /
        ) -> DualIterator[Q, T, AsyncItems]: ...
        def __get__(self, instance: object, owner: type | None = None, /) -> Any: ...

    else:

        @property
        def __code__(self) -> CodeType:
            """Of an async generator function, so that `inspect` and frameworks see one."""
            if self._place.decorator == "in_eventloop":
                return _AS_ASYNC_GENERATOR
            raise AttributeError("__code__")

        __defaults__ = None
        __kwdefaults__ = None


_CODE: CodeType = cast("Any", DualIterator).__call__.__code__
_AS_ASYNC_GENERATOR: Final = _CODE.replace(co_flags=_CODE.co_flags | inspect.CO_ASYNC_GENERATOR)


@final
class DualContextManager(BoundDual, Generic[P, T]):
    """A context manager function that knows where it runs. Async code and sync code can both enter what it returns.

    `in_threadpool` makes it of a `@contextmanager` function, `in_eventloop` of an `@asynccontextmanager` function. Like
    a `DualCallable` it has the name, the docstring and the signature of that function, binds as it does, and can be
    pickled if it can.

    Example:
        `async with transaction(db)` in async code, `with transaction.sync(db)` in sync code
    """

    __slots__ = ()
    usage = "`async with {0}(...)` in async code, `with {0}.sync(...)` in sync code."

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T, bool | None]:
        """Make the context manager for async code."""
        return cast("AbstractAsyncContextManager[T, bool | None]", _enter(self, self._func(*args, **kwargs)))

    if TYPE_CHECKING:

        @property
        def sync(self) -> Callable[P, AbstractContextManager[T, bool | None]]:
            """The same for sync code."""
            ...

        @overload
        def __get__(self, instance: None, owner: type, /) -> Self: ...
        @overload
        def __get__(
            self: DualContextManager[Concatenate[Owner, Q], T], instance: Owner, owner: type | None = None, /
        ) -> DualContextManager[Q, T]: ...
        def __get__(self, instance: object, owner: type | None = None, /) -> Any: ...


class _SyncIterator(SyncForm[P, T]):
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        from .._scoped._taskiterators import iterate_in_task

        dual = self._dual
        return iterate_in_task(_iterate(dual, dual._func(*args, **kwargs)), dual, "{}.sync", "async for ... in {}(...)")


class _SyncContextManager(SyncForm[P, T]):
    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Any:
        from .._scoped._contextmanagers import enter_in_eventloop

        dual = self._dual
        return enter_in_eventloop(_enter(dual, dual._func(*args, **kwargs)), dual, "{}.sync", "async with {}(...)")


class _SyncFace:
    """The same for sync code."""

    def __init__(self, twin: type[SyncForm[..., Any]]) -> None:
        self._twin = twin

    def __get__(self, dual: BoundDual | None, owner: type | None = None) -> Any:
        return self if dual is None else self._twin(dual)


if not TYPE_CHECKING:
    DualIterator.sync = _SyncFace(_SyncIterator)
    DualContextManager.sync = _SyncFace(_SyncContextManager)


def _iterate(dual: BoundDual, iterable: Iterable[Any]) -> Any:
    """Return what async code iterates over."""
    place: Any = dual._place
    if place.decorator == "in_threadpool":
        from .._scoped._threaditerators import iterate_in_threadpool

        return iterate_in_threadpool(iterable, limiter=place.limiter)
    return iterable


def _enter(dual: BoundDual, manager: AbstractContextManager[Any, bool | None]) -> Any:
    """Return what async code enters."""
    place: Any = dual._place
    if place.decorator == "in_threadpool":
        from .._scoped._contextmanagers import contextmanager_in_threadpool

        return contextmanager_in_threadpool(manager, limiter=place.limiter)
    return manager


def dual_for(place: Any, func: Any) -> type[BoundDual] | None:
    """Return the class of the dual that *place* makes of *func*, or `None` if it is an ordinary function.

    Refuse options of *place* that make no sense there.
    """
    made = _dual_of(func, place.decorator) if place.decorator in _HELPERS else None
    if made is not None:
        for option in filter(_WHY.__contains__, options_of(place)):
            what = "is a generator function" if made is DualIterator else "gives a context manager"
            raise WrongOptionError(
                f"{place.decorator}({option}=...) is for functions, and {name_of(func)}() {what}: {_WHY[option]}"
            )
    return made


def _dual_of(func: Any, decorator: str) -> type[BoundDual] | None:
    is_generator = _IS_GENERATOR[decorator]
    for layer in _layers(func, decorator):
        if getattr(layer, "__code__", None) is _HELPERS[decorator]:
            return DualContextManager
        if is_generator(layer):
            return DualIterator
    return None


def _layers(func: Any, decorator: str) -> list[Any]:
    """Return *func* without `partial`s. For `in_eventloop`, also what sync functions around it wrap.

    In a sync function around an async generator function nothing can be awaited, so it returns the async generator.
    But what a sync function around a sync generator function returns may be anything.
    """
    layers: list[Any] = []
    while True:
        while isinstance(func, functools.partial):
            func = func.func
        layers.append(func)
        if decorator != "in_eventloop" or inspect.iscoroutinefunction(func) or not hasattr(func, "__wrapped__"):
            break
        func = func.__wrapped__
    if not inspect.isroutine(func) and not inspect.isclass(func):
        layers.append(type(func).__call__)
    return layers


def refuse_class(place: Any, func: Any) -> None:
    """Refuse a class, if `sync_twin` is what its users look for."""
    if not inspect.isclass(func) or hasattr(func, "__await__"):
        return
    in_loop = place.decorator == "in_eventloop"
    if in_loop or (place.decorator == "in_threadpool" and any(map(is_async, vars(func).values()))):
        raise WrongFunctionError(
            f"{place.decorator}() wraps functions, and {func.__qualname__} is a class: decorate its methods, "
            f"or have `sync_twin({func.__name__})` make a class for sync code of it"
        )
