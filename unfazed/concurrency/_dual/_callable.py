"""Dual callables: functions that know where they run. Async code and sync code can both call them.

A *place* says where a function runs, and with which options: `ThreadPlace`, `ProcessPlace`, `ExecutorPlace`,
`EventloopPlace`.
"""

from __future__ import annotations

import inspect
from reprlib import repr as short_repr
from types import CoroutineType, MethodType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, cast, final, overload

from anyio import CapacityLimiter

from .._core._checks import Dual, name_of, visible_names
from .._core._errors import NotSendableError, WrongFunctionError
from .._core._references import found_by_name, owner_of
from .._many._mapdual import MapFace
from ._metadata import PLACES, add_line, can_be_pickled, copy_metadata, described, options_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Concatenate

    from typing_extensions import Self

    from .._many._mapdual import DualMap

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
Owner = TypeVar("Owner")


# Attributes that `inspect` and `asyncio` set on a sync function to mark it as a coroutine function.
_COROUTINE_FUNCTION_MARKS = ("_is_coroutine_marker", "_is_coroutine")


def _as_coroutine_function(func: Any) -> CodeType:
    code: CodeType = func.__code__
    return code.replace(co_flags=code.co_flags | inspect.CO_COROUTINE)


class Place(Protocol):
    """Where a function runs, and how."""

    def check(self) -> None: ...

    def require(self, func: Callable[..., Any]) -> None: ...

    async def run(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any: ...

    def run_sync(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any: ...

    def _asdict(self) -> dict[str, Any]: ...


class _Twin(Generic[P, T]):
    """The `.sync` of a dual callable."""

    def __init__(self, dual: DualCallable[P, T]) -> None:
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
        return self if dual is self._dual else _Twin(dual)

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
        return self if dual is None else _Twin(dual)


@final
class DualCallable(Dual, Generic[P, T]):
    """A function that knows where it runs. Async code and sync code can both call it.

    `in_threadpool`, `in_processpool`, `in_executor` and `in_eventloop` make it. It is a coroutine function. It has the
    name, the docstring and the signature of the function that it wraps, and keeps that function as `__wrapped__`. As an
    attribute of a class it binds like that function. It can be pickled if that function can. Threads and forked
    processes can share it.

    Example:
        `await read(path)` in async code, `read.sync(path)` in sync code
    """

    if TYPE_CHECKING:  # `Dual` says why
        __name__: str
        __qualname__: str
        _unbound: Any

    # Slots, because `__dict__` gets a copy of the function's own attributes, which could have these names.
    __slots__ = ("_func", "_place", "_unbound")  # `_unbound` is set only if it is bound

    def __new__(cls, place: Place | DualCallable[..., Any], func: Callable[P, Any]) -> Self:
        """Make a dual callable, or bind one: some code rebinds a method with `type(method)(method.__func__, obj)`."""
        if type(place) in PLACES:
            return super().__new__(cls)
        if not isinstance(place, DualCallable):
            raise WrongFunctionError(
                "DualCallable() expected what in_threadpool(), in_processpool(), in_executor() and in_eventloop() give "
                "it: call one of these"
            )
        dual: Any = cast("Any", place)
        bound: Self = dual.__get__(None, func) if isinstance(dual._func, classmethod) else dual.__get__(func)
        return bound

    def __init__(self, place: Place | DualCallable[..., Any], func: Callable[P, Any]) -> None:
        if isinstance(place, DualCallable):
            return
        copy_metadata(self, func)
        self._place = place
        self._func = func

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> CoroutineType[Any, Any, T]:
        """Call the function from async code and await its result."""
        coroutine: Any = self._place.run(self._func, args, kwargs)
        coroutine.__name__, coroutine.__qualname__ = (
            self.__name__,
            self.__qualname__,
        )  # for the warning if nobody awaits it
        return cast("CoroutineType[Any, Any, T]", coroutine)

    if TYPE_CHECKING:

        @property
        def sync(self) -> Callable[P, T]:
            """The same for sync code, which waits for the result."""
            ...

        @property
        def map(self) -> DualMap[P, T]:
            """One call for each item: `.map(items)` and, for sync code, `.map.sync(items)` iterate over the results."""
            ...

    else:
        sync = _SyncFace()
        map = MapFace()

    # `inspect` takes an object with these attributes for a function, because compiled functions have them too. So
    # `inspect` and `asyncio` see a coroutine function on every Python, without the marker that only 3.12 and newer
    # know. Nobody runs this code.
    __code__: CodeType = _as_coroutine_function(__call__)
    __defaults__ = None
    __kwdefaults__ = None

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(
        self: DualCallable[Concatenate[Owner, Q], T], instance: Owner, owner: type | None = None, /
    ) -> DualCallable[Q, T]: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        """Bind the function as if it were not wrapped."""
        bind = getattr(type(self._func), "__get__", None)
        if bind is None:
            return self
        func = bind(self._func, instance, owner)
        return self if func is self._func else self._rebound(func)

    # Bound methods have these attributes. With them `weakref.WeakMethod` works, and so do signals that use it, such as
    # Django's. A plain weak reference would be dead at once, because each lookup makes a new bound object.

    @property
    def __self__(self) -> object:
        """The object that the function is bound to."""
        bound: Any = self._func if self.__func__ is not None else None
        return bound.__self__

    @property
    def __func__(self) -> Any:
        """The dual callable before it was bound."""
        return self._unbound

    if not TYPE_CHECKING:

        @property
        def __class__(self):
            """Pretend to be a method if it is bound, as mocks do: tools that document a class skip bound objects."""
            return MethodType if hasattr(self, "_unbound") and hasattr(self._func, "__self__") else DualCallable

    def __set_name__(self, owner: type, name: str) -> None:
        """Add a line to the docstring, so that `help` of the class shows both ways to call the method."""
        if self.__qualname__ == f"{owner.__qualname__}.{name}":
            add_line(self.__dict__, f"`await {name}(...)` in async code, `{name}.sync(...)` in sync code.")

    def _rebound(self, func: Any) -> Self:
        bound: Any = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound.__dict__["__wrapped__"] = func
        bound._place = self._place
        bound._func = func
        bound._unbound = self
        rebound: Self = bound
        return rebound

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy the object that the function is bound to, as for a plain method. The copy shares the limiter."""
        import copy  # here, because only a caller that has loaded it needs it

        func = copy.deepcopy(self._func, memo)
        return self if func is self._func else self._rebound(func)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DualCallable) and self._place is other._place and bool(self._func == other._func)

    def __hash__(self) -> int:
        return hash((id(self._place), self._func))

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        func: Any = self._func
        name = name_of(func)
        if isinstance(func, (classmethod, staticmethod)):
            name = f"{'class' if isinstance(func, classmethod) else 'static'}method({name})"
        bound = f", of {short_repr(func.__self__)}" if isinstance(func, MethodType) else ""
        helper, first, options = described(self._place)
        return f"<{helper}({', '.join([*first, name])}){''.join(f', {option}' for option in options)}{bound}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        func: Any = self._func
        found = found_by_name(func)
        if found is self:
            return cast("str", func.__qualname__)
        if found == self:  # a method: each lookup makes a new object
            return getattr, (owner_of(func), func.__name__)
        for name, value in options_of(self._place).items():
            if isinstance(value, CapacityLimiter) or not can_be_pickled(value):
                raise NotSendableError(
                    f"{self!r} cannot be pickled with its `{name}`, which stays in this process: decorate a function "
                    f"at the top level of a module, which is pickled by its name, or wrap it where it is called"
                )
        return DualCallable, (self._place, self._func)


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
