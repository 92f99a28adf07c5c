"""What may be called where, with which options: the checks that every helper makes before anything starts."""

from __future__ import annotations

import functools
import inspect
from contextvars import Context
from reprlib import repr as short_repr
from types import BuiltinFunctionType, CoroutineType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from anyio import CapacityLimiter

from ._errors import WrongFunctionError, WrongOptionError

if TYPE_CHECKING:
    from collections.abc import Callable


class Dual:
    """What dual callables are known by: a coroutine function with a `.sync` twin. `_dual.py` makes them."""

    if TYPE_CHECKING:  # a class with annotations would show them as those of its wrapped functions
        __wrapped__: Any


def name_of(func: object) -> str:
    """Return the name of *func* as its author would say it."""
    while isinstance(func, functools.partial):
        func = func.func
    name = getattr(func, "__qualname__", None)
    return (name if isinstance(name, str) else type(func).__qualname__).rpartition("<locals>.")[2]


def as_written(helper: str, options: Any) -> str:
    """Return what users write to give *options*, a named tuple, to the decorator *helper*."""
    defaults = options._field_defaults
    parts = [
        f"{name}={value!r}" if name in defaults else repr(value)
        for name, value in zip(options._fields, options, strict=True)
        if name not in defaults or value is not defaults[name]
    ]
    return f"{helper}({', '.join(parts)})"


_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def is_async(func: object) -> bool:
    """Return whether calling *func* gives a coroutine or an async generator, as far as can be told beforehand."""
    if type(func) is FunctionType:
        return bool(func.__code__.co_flags & _ASYNC)
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
    plain: object = func.__func__ if isinstance(func, MethodType) else func
    if type(plain) is BuiltinFunctionType or (type(plain) is FunctionType and not plain.__code__.co_flags & _ASYNC):
        return  # by far the commonest
    require_callable(func, helper)
    if is_async(func):
        raise async_function_error(func, helper)


def require_async(func: Callable[..., object], helper: str) -> None:
    """Refuse what does not run in an event loop, as far as can be told beforehand."""
    require_callable(func, helper)
    if inspect.isasyncgenfunction(inspect.unwrap(func)):
        name = name_of(func)
        raise WrongFunctionError(
            f"{helper}() runs async functions, and {name}() is an async generator: iterate over it, with "
            f"`async for ... in {name}(...)`, or from sync code `for ... in iterate_in_eventloop_sync({name}(...))`"
        )


def async_function_error(func: object, helper: str) -> WrongFunctionError:
    name = name_of(func)
    sync = helper.endswith("sync")
    if inspect.isasyncgenfunction(inspect.unwrap(func) if callable(func) else func):
        loop = f"for ... in iterate_in_eventloop_sync({name}(...))" if sync else f"async for ... in {name}(...)"
        return WrongFunctionError(
            f"{helper}() runs sync functions, and {name}() is an async generator: iterate over it, with `{loop}`"
        )
    twin = f"{name}.sync(...)" if isinstance(func, Dual) else f"run_in_eventloop_sync({name}, ...)"
    instead = twin if sync else f"await {name}(...)"
    return WrongFunctionError(f"{helper}() runs sync functions, and {name}() is async: write `{instead}` instead")


def require_limiter(limiter: object, helper: str) -> None:
    if limiter is not None and not isinstance(limiter, CapacityLimiter):
        raise WrongOptionError(
            f"{helper}(limiter=...) must be an anyio.CapacityLimiter, not {short_repr(limiter)}: "
            f"write `limiter=anyio.CapacityLimiter(10)`"
        )


def require_timeout(timeout: object, helper: str) -> None:
    if timeout is None or (isinstance(timeout, (int, float)) and not isinstance(timeout, bool) and timeout >= 0):
        return
    raise WrongOptionError(
        f"{helper}(timeout=...) must be a number of seconds, 0 or more, or None for no limit, not {short_repr(timeout)}"
    )


def require_context(context: object, helper: str) -> None:
    if context is not None and not isinstance(context, Context):
        raise WrongOptionError(
            f"{helper}(context=...) must be a contextvars.Context, not {short_repr(context)}: "
            f"write `context=contextvars.copy_context()`"
        )


def require_count(value: object, name: str, helper: str, at_least: int = 0) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < at_least:
        raise WrongOptionError(
            f"{helper}({name}=...) must be a whole number, {at_least} or more, not {short_repr(value)}"
        )


def require_flag(value: object, name: str, helper: str) -> None:
    if not isinstance(value, bool):
        raise WrongOptionError(f"{helper}({name}=...) must be True or False, not {short_repr(value)}")


def wrong_source(source: object, helper: str, expected: str, instead: str, other_way: str) -> WrongFunctionError:
    """Return the error for what cannot be iterated over, or entered, in the way that *helper* does it."""
    problem = f"{helper}() expected {expected}, got {short_repr(source)}"
    if close_coroutine(source):
        problem += f": write `await {name_of(source)}(...)` first"
    elif hasattr(type(source), other_way):
        problem += f": write `{instead}` without {helper}()"
    elif callable(source):
        problem += f": write `{helper}({name_of(source)}(...))`"
    return WrongFunctionError(problem)
