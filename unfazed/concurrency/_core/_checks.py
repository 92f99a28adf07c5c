"""The checks of functions, arguments and options that every helper makes before anything starts, and their errors."""

from __future__ import annotations

import functools
import inspect
import sys
from contextvars import Context
from reprlib import repr as short_repr
from types import BuiltinFunctionType, CoroutineType, FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Final

from anyio import CapacityLimiter

from ._errors import NotSendableError, WrongFunctionError, WrongOptionError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


class Dual:
    """The base of dual callables, which are in `_dual`: here it is enough to recognise them."""

    if TYPE_CHECKING:  # at run time, class annotations would pass for those of the wrapped functions
        __wrapped__: Any


def called(helper: str) -> str:
    """Return *helper* as an error message writes it: with `()`, unless it has parentheses already."""
    return helper if helper.endswith(")") else f"{helper}()"


def visible_names(self: object) -> list[str]:
    """Return the names that `dir` and completion show, without private ones. Classes use it as their `__dir__`."""
    return [name for name in object.__dir__(self) if not name.startswith("_") or name.startswith("__")]


def name_of(func: object) -> str:
    """Return the name of *func* for messages: no `partial` around it, and nothing before `<locals>.`."""
    while isinstance(func, functools.partial):
        func = func.func
    name = getattr(func, "__qualname__", None)
    return (name if isinstance(name, str) else type(func).__qualname__).rpartition("<locals>.")[2]


_ASYNC = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR


def is_async(func: object) -> bool:
    """Return whether calling *func* gives a coroutine or an async generator, as far as we can tell without a call."""
    if type(func) is FunctionType:
        return bool(func.__code__.co_flags & _ASYNC)
    while isinstance(func, functools.partial):
        func = func.func
    if inspect.iscoroutinefunction(func) or inspect.isasyncgenfunction(func):
        return True
    if inspect.isclass(func) or inspect.isroutine(func):
        return False
    call = getattr(type(func), "__call__", None)  # noqa: B004  we need the method itself
    return inspect.iscoroutinefunction(call) or inspect.isasyncgenfunction(call)


def close_coroutine(value: Any) -> bool:
    """Close *value* if it is a coroutine, because it would warn that nobody awaited it. Return whether it is one.

    One that has begun elsewhere is left alone.
    """
    if not issubclass(type(value), CoroutineType):
        return False
    if inspect.getcoroutinestate(value) == inspect.CORO_CREATED:
        value.close()
    return True


def require_callable(func: object, helper: str) -> None:
    """Refuse an object that cannot be called."""
    if callable(func):
        return
    if close_coroutine(func):
        name = name_of(func)
        problem = (
            f"{called(helper)} expected a function and its arguments, not a coroutine: "
            f"write `{name}` and its arguments instead of `{name}(...)`"
        )
    else:
        problem = f"{called(helper)} expected a function, got {short_repr(func)}"
    raise WrongFunctionError(problem)


def require_sync(func: Callable[..., object], helper: str) -> None:
    """Refuse what cannot run in a worker: an object that cannot be called, or an async function."""
    plain: object = func.__func__ if isinstance(func, MethodType) else func
    if type(plain) is BuiltinFunctionType or (type(plain) is FunctionType and not plain.__code__.co_flags & _ASYNC):
        return  # the common case, checked first for speed
    require_callable(func, helper)
    if is_async(func):
        raise async_function_error(func, helper)


def require_async(func: Callable[..., object], helper: str) -> None:
    """Refuse what cannot run in an event loop, as far as we can tell without a call."""
    require_callable(func, helper)
    if not inspect.iscoroutinefunction(func) and inspect.isasyncgenfunction(inspect.unwrap(func)):
        name = name_of(func)
        if is_of_contextlib(func):
            raise WrongFunctionError(f"{called(helper)} runs async functions, and {name}() {enter_it(name)}")
        raise WrongFunctionError(
            f"{called(helper)} runs async functions, and {name}() is an async generator: iterate over it, with "
            f"`async for ... in {name}(...)`, or from sync code `for ... in iterate_in_eventloop_sync({name}(...))`"
        )


def is_of_contextlib(func: object) -> bool:
    """Return whether `asynccontextmanager` has made *func*."""
    return getattr(func, "__globals__", {}).get("__name__") == "contextlib"


def enter_it(name: str) -> str:
    """Return the end of a message about the function *name*, which returns an async context manager."""
    return (
        f"gives an async context manager: enter it, with `async with {name}(...)`, or from sync code "
        f"`with contextmanager_in_eventloop_sync({name}(...))`"
    )


def in_code(func: object) -> str:
    """Return the name of *func* for a line of code, or "func" for a lambda function, which has no name."""
    name = name_of(func)
    return "func" if name.startswith("<") else name


def not_async_error(func: object, result: object, helper: str) -> WrongFunctionError:
    """Return the error for a function that returned *result*, which cannot be awaited."""
    name = in_code(func)
    problem = f"{called(helper)} runs async functions, and {name_of(func)}()"
    if hasattr(type(result), "__aenter__"):
        return WrongFunctionError(f"{problem} {enter_it(name)}")
    instead = {
        "in_eventloop": f"in_threadpool({name})",
        "run": f"await run_in_threadpool({name}, ...)",
        "run_in_eventloop": f"await run_in_threadpool({name}, ...)",
        "start": f"start_in_threadpool({name}, ...)",
        "start_in_eventloop": f"start_in_threadpool({name}, ...)",
    }.get(helper, f"run_in_threadpool_sync({name}, ...)")
    return WrongFunctionError(
        f"{problem} gave {short_repr(result)}, which cannot be awaited: write `{instead}`, or just call it"
    )


def async_function_error(func: object, helper: str) -> WrongFunctionError:
    name = name_of(func)
    sync = helper.endswith("sync")
    if inspect.isasyncgenfunction(inspect.unwrap(func) if callable(func) else func):
        loop = f"for ... in iterate_in_eventloop_sync({name}(...))" if sync else f"async for ... in {name}(...)"
        return WrongFunctionError(
            f"{called(helper)} runs sync functions, and {name}() is an async generator: iterate over it, with `{loop}`"
        )
    if helper == "in_processpool(initializer=...)":
        return WrongFunctionError(
            f"{helper} runs a sync function, and {name}() is async: write a `def` that calls "
            f"`run_in_eventloop_sync({name})`"
        )
    if helper.startswith("start"):
        instead = f"{name}.start(...)" if isinstance(func, Dual) else f"start_in_eventloop({name}, ...)"
    else:
        twin = f"{name}.sync(...)" if isinstance(func, Dual) else f"run_in_eventloop_sync({name}, ...)"
        instead = twin if sync else f"await {name}(...)"
    return WrongFunctionError(f"{called(helper)} runs sync functions, and {name}() is async: write `{instead}` instead")


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


def in_brief(source: object) -> str:
    """Return a short text for an iterable or a context manager. Its own `repr` might fetch its items (Django's)."""
    of_contextlib = type(source).__module__ == "contextlib"
    named = getattr(source, "gen", source) if of_contextlib else source
    name = getattr(named, "__qualname__", None)
    return f"{name_of(named)}(...)" if isinstance(name, str) else f"<{type(source).__qualname__} object>"


def not_copied(made: object) -> NotSendableError:
    """Return the error for an object that can be neither copied nor pickled."""
    return NotSendableError(
        f"{made!r} can be neither copied nor pickled, for it has a thread, or a task, of this process: make another one"
    )


def wrong_source(source: object, helper: str, expected: str, instead: str, other_way: str) -> WrongFunctionError:
    """Return the error for an object that *helper* cannot iterate over or enter.

    *other_way* is the method of objects that the caller can use directly, as *instead* says.
    """
    problem = f"{called(helper)} expected {expected}, got {short_repr(source)}"
    if close_coroutine(source):
        problem += f": write `await {name_of(source)}(...)` first"
    elif hasattr(type(source), other_way):
        problem += f": write `{instead}` without {helper}()"
    elif callable(source):
        problem += f": write `{helper}({name_of(source)}(...))`"
    return WrongFunctionError(problem)


_OPTIONS: Final = {
    "in_threadpool": ("limiter", "abandon_on_cancel", "timeout", "context"),
    "in_processpool": ("limiter", "kill_on_cancel", "timeout", "initializer", "max_calls"),
    "in_executor": ("timeout",),
    "in_eventloop": ("timeout", "context"),
}
EVENTLOOP_OPTIONS: Final = _OPTIONS["in_eventloop"]
# Options that a helper does not have but users may try, because other libraries or our other helpers have them. For
# each: what to write instead, or why there is no such option.
_INSTEAD: Final = {
    ("in_threadpool", "cancellable"): "write `abandon_on_cancel=True`",
    ("in_threadpool", "kill_on_cancel"): "a thread cannot be killed, only abandoned: write `abandon_on_cancel=True`",
    ("in_processpool", "cancellable"): "write `kill_on_cancel=True`",
    ("in_processpool", "abandon_on_cancel"): "write `kill_on_cancel=True`",
    ("in_processpool", "context"): "no context goes to another process: pass what it holds as arguments",
    ("in_processpool", "initargs"): "write `initializer=functools.partial(func, ...)`",
    ("in_processpool", "max_tasks_per_child"): "write `max_calls=...`",
    ("in_executor", "limiter"): "the executor says how many run at once",
    ("in_executor", "context"): "a `ThreadPoolExecutor` gets a copy of the caller's",
    ("in_executor", "initializer"): "give it to the executor",
    ("in_eventloop", "limiter"): "write `async with limiter:` in the function",
    ("in_eventloop", "cancellable"): "its functions can always be cancelled",
    ("in_eventloop", "abandon_on_cancel"): "its functions can always be cancelled",
    ("in_eventloop", "kill_on_cancel"): "its functions can always be cancelled",
}


def refuse_options(helper: str, options: Iterable[str]) -> None:
    """Raise the error for *options*, which *helper* does not have. It names the first one."""
    name = next(iter(options))
    places = [f"`{other}`" for other, names in _OPTIONS.items() if name in names]
    instead = _INSTEAD.get((helper, name)) or (f"{' and '.join(places)} has it" if places else "")
    all_of_them = ", ".join(f"`{each}`" for each in _OPTIONS[helper])
    raise WrongOptionError(f"{helper}() has no option `{name}`: {instead or f'its options are {all_of_them}'}")


def explain(error: BaseException, helper: str, func: object, kwargs: dict[str, Any]) -> None:
    """Add a note to *error* if the caller passed one of our options to *func*, which takes no such argument."""
    if not isinstance(error, TypeError) or isinstance(error, (WrongFunctionError, WrongOptionError)):
        return
    wrapper = f"in_{helper.removesuffix('_sync').rpartition('in_')[2]}" if "in_" in helper else "in_eventloop"
    executor = "executor, " if wrapper == "in_executor" else ""
    for name, value in kwargs.items():
        known = name in _OPTIONS[wrapper]
        instead = _INSTEAD.get((wrapper, name), "")
        if (known or instead) and not _takes(func, name, error):
            line = f"`{wrapper}({executor}{in_code(func)}, {name}={short_repr(value)})`"
            way_out = (
                f"as an option it goes to the wrapper: {line}"
                if known
                else f"{wrapper}() has no such option: {instead}"
            )
            _add_note(error, f"`{name}` was passed on to {name_of(func)}(), as all arguments are; {way_out}")


def _takes(func: Any, name: str, error: TypeError) -> bool:
    """Return whether *func* takes a keyword argument, or may."""
    try:
        parameters = inspect.signature(func).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return "keyword" not in str(error)
    if any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
        return True
    return name in parameters and parameters[name].kind is not inspect.Parameter.POSITIONAL_ONLY


def _add_note(error: BaseException, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:  # pragma: no cover  `exceptiongroup`, which anyio needs on 3.10, shows notes in tracebacks
        error.__notes__ = [*getattr(error, "__notes__", ()), note]
