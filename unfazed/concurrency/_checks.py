"""What may be called where: the checks that every helper makes before anything starts."""

from __future__ import annotations

import functools
import inspect
from reprlib import repr as short_repr
from types import CoroutineType, FunctionType
from typing import TYPE_CHECKING

from ._errors import WrongFunctionError

if TYPE_CHECKING:
    from collections.abc import Callable


def name_of(func: object) -> str:
    """Return the name of *func* as its author would say it."""
    while isinstance(func, functools.partial):
        func = func.func
    name = getattr(func, "__qualname__", None)
    return (name if isinstance(name, str) else type(func).__qualname__).rpartition("<locals>.")[2]


def is_async(func: object) -> bool:
    """Return whether calling *func* gives a coroutine or an async generator, as far as can be told beforehand."""
    if type(func) is FunctionType:
        return bool(func.__code__.co_flags & (inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR))
    while isinstance(func, functools.partial):
        func = func.func
    if inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func):
        return True
    if inspect.isclass(func) or inspect.isroutine(func):
        return False
    call = getattr(type(func), "__call__", None)  # noqa: B004  not whether it can be called, but how
    return inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)


def close_coroutine(value: object) -> bool:
    """Return whether *value* is a coroutine, and close it then: it would complain that nobody has awaited it."""
    if not isinstance(value, CoroutineType):
        return False
    value.close()
    return True


def require_callable(func: object, helper: str) -> None:
    """Refuse what cannot be called."""
    if callable(func):
        return
    if close_coroutine(func):
        name = name_of(func)
        problem = (
            f"{helper}() expected a function and its arguments, not a coroutine: "
            f"write `{name}` and its arguments instead of `{name}(...)`"
        )
    else:
        problem = f"{helper}() expected a function, got {short_repr(func)}"
    raise WrongFunctionError(problem)


def require_sync(func: Callable[..., object], helper: str) -> None:
    """Refuse what does not run in a worker: that which cannot be called, and async functions."""
    if type(func) is FunctionType and not is_async(func):
        return  # by far the commonest
    require_callable(func, helper)
    if is_async(func):
        raise async_function_error(func, helper)


def async_function_error(func: object, helper: str) -> WrongFunctionError:
    name = name_of(func)
    if inspect.isasyncgenfunction(inspect.unwrap(func) if callable(func) else func):
        return WrongFunctionError(
            f"{helper}() runs sync functions, and {name}() is an async generator: "
            f"iterate over it in async code, with `async for ... in {name}(...)`"
        )
    instead = f"run_in_eventloop_sync({name}, ...)" if helper.endswith("_sync") else f"await {name}(...)"
    return WrongFunctionError(f"{helper}() runs sync functions, and {name}() is async: write `{instead}` instead")
