"""How a function that has been decorated is sent to another process, where its name leads to the decorated one.

Pickle sends a function by module and name, and a method by object and name. Where what is found there wraps the
function, `__wrapped__` is one step more, which the other process takes when it unpickles the reference.
"""

from __future__ import annotations

import sys
from functools import reduce
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


@final
class Reference(Generic[P, T]):
    """Stands for the function that *wrapper* wraps, and is unpickled as that function itself."""

    def __init__(self, func: Callable[P, T], wrapper: object) -> None:
        self._func = func
        self._wrapper = wrapper

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function here, for an executor that is not elsewhere after all."""
        return self._func(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._wrapper, "__wrapped__")


def owner_of(func: object) -> object:
    """Return the object, class or module in which pickle looks for *func*, or `None`."""
    if isinstance(func, MethodType):
        return func.__self__
    module, path = getattr(func, "__module__", None), getattr(func, "__qualname__", None)
    try:
        return reduce(getattr, str(path).split(".")[:-1], sys.modules[str(module)])
    except (AttributeError, KeyError):
        return None


def found_by_name(func: object) -> object:
    """Return what pickle finds where *func* says that it is, or `None`."""
    return getattr(owner_of(func), getattr(func, "__name__", ""), None)


def to_send(func: Callable[P, T]) -> Callable[P, T]:
    """Return what to pickle in order to send *func*."""
    if not isinstance(func, (FunctionType, MethodType)):
        return func
    wrapper = found_by_name(func)
    if wrapper is None or wrapper is func or getattr(wrapper, "__wrapped__", None) != func:
        return func
    return Reference(func, wrapper)
