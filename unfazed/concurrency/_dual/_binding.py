"""What all duals have in common: they bind, compare, copy, pickle and describe themselves as their function does.

A *place* says where a function runs, and with which options: `ThreadPlace`, `ProcessPlace`, `ExecutorPlace`,
`EventloopPlace`.
"""

from __future__ import annotations

from reprlib import repr as short_repr
from types import MethodType
from typing import TYPE_CHECKING, Any, Protocol, cast

from anyio import CapacityLimiter

from .._core._checks import Dual, name_of, visible_names
from .._core._errors import NotSendableError, WrongFunctionError
from .._core._references import found_by_name, owner_of
from ._metadata import add_line, can_be_pickled, copy_metadata, described, options_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

    from .._eventloops._handle import Handle


class Place(Protocol):
    """Where a function runs, and how."""

    @property
    def decorator(self) -> str: ...

    def check(self) -> None: ...

    def require(self, func: Callable[..., Any]) -> None: ...

    async def run(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any: ...

    def run_sync(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any: ...

    def start(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Handle[Any]: ...

    def _asdict(self) -> dict[str, Any]: ...


class BoundDual(Dual):
    """The base of all duals: a function and its place."""

    if TYPE_CHECKING:  # `Dual` says why
        __name__: str
        __qualname__: str
        _unbound: Any
        usage: str
    else:
        usage = "`await {0}(...)` in async code, `{0}.sync(...)` in sync code."  # of a method, for `help` of its class

    # Slots, because `__dict__` gets a copy of the function's own attributes, which could have these names.
    __slots__ = ("_func", "_place", "_unbound")  # `_unbound` is set only if it is bound

    def __new__(cls, place: Place | BoundDual, func: Callable[..., Any]) -> Self:
        """Make a dual, or bind one: some code rebinds a method with `type(method)(method.__func__, obj)`."""
        if hasattr(type(place), "decorator"):
            return super().__new__(cls)
        if not isinstance(place, BoundDual):
            raise WrongFunctionError(
                f"{cls.__name__}() expected what in_threadpool(), in_processpool(), in_executor() and in_eventloop() "
                f"give it: call one of these"
            )
        dual: Any = cast("Any", place)
        bound: Self = dual.__get__(None, func) if isinstance(dual._func, classmethod) else dual.__get__(func)
        return bound

    def __init__(self, place: Place | BoundDual, func: Callable[..., Any]) -> None:
        if isinstance(place, BoundDual):
            return
        copy_metadata(self, func)
        self._place = place
        self._func = func

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
        """The dual before it was bound."""
        return self._unbound

    if not TYPE_CHECKING:

        @property
        def __class__(self):
            """Pretend to be a method if it is bound, as mocks do: tools that document a class skip bound objects."""
            return MethodType if hasattr(self, "_unbound") and hasattr(self._func, "__self__") else type(self)

    def __set_name__(self, owner: type, name: str) -> None:
        """Add a line to the docstring, so that `help` of the class shows both ways to call the method."""
        if self.__qualname__ == f"{owner.__qualname__}.{name}":
            add_line(self.__dict__, type(self).usage.format(name))

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
        return type(other) is type(self) and self._place is other._place and bool(self._func == other._func)

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
        return type(self), (self._place, self._func)
