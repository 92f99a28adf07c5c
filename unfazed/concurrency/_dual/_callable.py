"""Dual callables: functions that know where they run. Async code and sync code can both call them."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, cast, final, overload

from .._core._checks import visible_names
from ._binding import BoundDual

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from types import CodeType, CoroutineType
    from typing import Concatenate

    from typing_extensions import Self

    from .._eventloops._handle import Handle
    from .._many._mapdual import DualMap
    from .._scoped._threaditerators import ThreadpoolIterator
    from ._typing import Items, Manager, OnlyAny

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
Owner = TypeVar("Owner")
Item = TypeVar("Item")


# Attributes that `inspect` and `asyncio` set on a sync function to mark it as a coroutine function.
_COROUTINE_FUNCTION_MARKS = ("_is_coroutine_marker", "_is_coroutine")


def _as_coroutine_function(func: Any) -> CodeType:
    code: CodeType = func.__code__
    return code.replace(co_flags=code.co_flags | inspect.CO_COROUTINE)


class SyncForm(Generic[P, T]):
    """The `.sync` of a dual."""

    def __init__(self, dual: BoundDual) -> None:
        self.__dict__.update(dual.__dict__)
        for mark in _COROUTINE_FUNCTION_MARKS:
            self.__dict__.pop(mark, None)
        self._dual = dual

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = self._dual._place.run_sync(self._dual._func, args, kwargs)
        return result

    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        """Bind the function as if it were not wrapped. This method also makes `help` take the twin for a routine."""
        bind: Any = self._dual.__get__
        dual = bind(instance, owner)
        return self if dual is self._dual else type(self)(dual)

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        return f"{self._dual!r}.sync"

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._dual, "sync")


class _SyncFace:
    """The same for sync code, which waits for the result."""

    # Not a `property`: IPython would describe the property instead of the twin.

    def __get__(self, dual: DualCallable[P, T] | None, owner: type | None = None) -> Any:
        if dual is None:
            return self
        twin: SyncForm[P, T] = SyncForm(dual)
        return twin


class _MapFace:
    """The attribute `map` of dual callables."""

    def __get__(self, dual: DualCallable[P, T] | None, owner: type | None = None) -> Any:
        from .._many._mapdual import DualMap  # here, because only few callers need it, and it needs much

        if dual is None:
            return self
        dual_map: DualMap[P, T] = DualMap(dual)
        return dual_map


@final
class DualCallable(BoundDual, Generic[P, T]):
    """A function that knows where it runs. Async code and sync code can both call it.

    `in_threadpool`, `in_processpool`, `in_executor` and `in_eventloop` make it. It is a coroutine function. It has the
    name, the docstring and the signature of the function that it wraps, and keeps that function as `__wrapped__`. As an
    attribute of a class it binds like that function. It can be pickled if that function can. Threads and forked
    processes can share it.

    Example:
        `await read(path)` in async code, `read.sync(path)` in sync code
    """

    __slots__ = ()

    def start(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]:
        """Start a call, from sync or async code, and return its handle at once: as `start_in_threadpool` and its like.

        An async function runs on the background event loop. `handle.cancel()` cancels the call as its options say.
        """
        handle: Handle[T] = self._place.start(self._func, args, kwargs)
        return handle

    if TYPE_CHECKING:

        @overload
        def __call__(
            self: DualCallable[P, OnlyAny], /, *args: P.args, **kwargs: P.kwargs
        ) -> CoroutineType[Any, Any, Any]: ...
        @overload
        def __call__(  # type: ignore[overload-overlap]
            self: DualCallable[P, Items[Item]], /, *args: P.args, **kwargs: P.kwargs
        ) -> ThreadpoolIterator[Item]: ...
        @overload
        def __call__(  # type: ignore[overload-overlap]
            self: DualCallable[P, Manager[Item]], /, *args: P.args, **kwargs: P.kwargs
        ) -> AbstractAsyncContextManager[Item, bool | None]: ...
        @overload
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> CoroutineType[Any, Any, T]: ...
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Any: ...

        @property
        def sync(self) -> Callable[P, T]:
            """The same for sync code, which waits for the result."""
            ...

        @property
        def map(self) -> DualMap[P, T]:
            """One call for each item: `.map(items)` and, for sync code, `.map.sync(items)` iterate over the results."""
            ...

    else:

        def __call__(self, /, *args, **kwargs):
            """Call the function from async code and await its result."""
            coroutine = self._place.run(self._func, args, kwargs)
            # for the warning if nobody awaits it
            coroutine.__name__, coroutine.__qualname__ = self.__name__, self.__qualname__
            return coroutine

        sync = _SyncFace()
        map = _MapFace()

    # `inspect` takes an object with these attributes for a function, because compiled functions have them too. So
    # `inspect` and `asyncio` see a coroutine function on every Python, without the marker that only 3.12 and newer
    # know. Nobody runs this code.
    __code__: CodeType = _as_coroutine_function(__call__)
    __defaults__ = None
    __kwdefaults__ = None

    if TYPE_CHECKING:

        @overload
        def __get__(self, instance: None, owner: type, /) -> Self: ...
        @overload
        def __get__(
            self: DualCallable[Concatenate[Owner, Q], T], instance: Owner, owner: type | None = None, /
        ) -> DualCallable[Q, T]: ...
        def __get__(self, instance: object, owner: type | None = None, /) -> Any: ...


@final
class DualMethod(Generic[P, T]):
    """A dual callable for a `classmethod` or a `staticmethod`: looking it up gives a `DualCallable`."""

    def __init__(self, dual: Any) -> None:
        self.__dict__.update(dual.__dict__)
        self.__isabstractmethod__: bool = getattr(
            dual.__wrapped__, "__isabstractmethod__", False
        )  # `update` does not copy it
        self._dual = dual

    if TYPE_CHECKING:  # for protocols: type checkers look here, not at what `__get__` returns

        @property
        def sync(self) -> Callable[P, T]: ...
        def start(self, /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> CoroutineType[Any, Any, T]: ...

    else:

        @property
        def __class__(self):
            """Pretend to be the `classmethod` or `staticmethod`, for tools that document the class."""
            return type(self._dual._func)

        @property
        def __func__(self):
            return self._dual._func.__func__

    def __set_name__(self, owner: type, name: str) -> None:
        """Add a line to the docstring, so that `help` of the class shows both ways to call the method."""
        self._dual.__set_name__(owner, name)
        self.__dict__["__doc__"] = self._dual.__doc__

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        return repr(self._dual)

    def __get__(self, instance: object, owner: type | None = None, /) -> DualCallable[P, T]:
        """Bind the method as if it were not wrapped."""
        bound: Any = self._dual.__get__(instance, owner)
        return cast("DualCallable[P, T]", bound)
