"""How a decorated function is sent to another process.

Pickle sends a function by module and name, and a method by object and name. After decoration, that name belongs to the
wrapper. So we send a `Reference` to the wrapper, and the other process calls its `__wrapped__`. The `Reference` stays
one there, because that process may send it to a third one, as Dask's scheduler does.
"""

from __future__ import annotations

import io
import pickle
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
    """Stands for the function that *wrapper* wraps, and calls it, in any process."""

    def __init__(self, func: Callable[P, T], wrapper: object) -> None:
        self.__name__ = getattr(func, "__name__", "")  # some executors name the call by it
        self._func = func
        self._wrapper = wrapper

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Call the function, in this process."""
        return self._func(*args, **kwargs)

    def __reduce__(self) -> tuple[Any, ...]:
        return _refer_to_wrapped, (self._wrapper,)


def _refer_to_wrapped(wrapper: Any) -> Reference[..., Any]:
    return Reference(wrapper.__wrapped__, wrapper)


def owner_of(func: object) -> object:
    """Return the object, class or module in which pickle looks *func* up, or `None`."""
    if isinstance(func, MethodType):
        return func.__self__
    module, path = getattr(func, "__module__", None), getattr(func, "__qualname__", None)
    try:
        return reduce(getattr, str(path).split(".")[:-1], sys.modules[str(module)])
    except (AttributeError, KeyError):
        return None


def found_by_name(func: object) -> object:
    """Return what pickle finds under the name of *func*, or `None`."""
    return getattr(owner_of(func), getattr(func, "__name__", ""), None)


def to_send(func: Callable[P, T]) -> Callable[P, T]:
    """Return what to pickle in order to send *func*."""
    if not isinstance(func, (FunctionType, MethodType)):
        return func
    named: object = getattr(sys.modules.get(func.__module__), func.__name__, None)
    if named is func:  # the common case, and the fastest
        return func
    wrapper = found_by_name(func)
    if wrapper is None or wrapper is func or getattr(wrapper, "__wrapped__", None) != func:
        return func
    return Reference(func, wrapper)


class Unpickler(pickle.Unpickler):
    """Reads what a worker process sent. It calls our `__main__` `__mp_main__`, as `multiprocessing` does."""

    def find_class(self, module: str, name: str, /) -> Any:
        return super().find_class("__main__" if module == "__mp_main__" else module, name)


def load(data: bytes) -> Any:
    """Return the object that a worker process has pickled."""
    return Unpickler(io.BytesIO(data)).load()
