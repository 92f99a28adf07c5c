"""The checks of the functions that an event loop is to run, and of the options that it starts with."""

from __future__ import annotations

import importlib
from functools import partial
from inspect import isawaitable, signature
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

from .._core._checks import (
    is_async,
    not_async_error,
    require_async,
)
from .._core._errors import WrongOptionError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection


P = ParamSpec("P")
T = TypeVar("T")

BACKENDS: Final = ("asyncio", "trio")


def require_backend(backend: str, where: str) -> None:
    if backend not in BACKENDS:
        raise WrongOptionError(f"{where} must be one of {', '.join(map(repr, BACKENDS))}, not {short_repr(backend)}")


def require_name(name: object) -> None:
    if name is not None and not isinstance(name, str):
        raise WrongOptionError(f"EventLoopThread(name=...) must be a string, or None, not {short_repr(name)}")


def require_backend_options(options: Any, backend: str, helper: str) -> None:
    """Refuse options that *backend* does not have. With asyncio, `anyio.run` would silently ignore them."""
    if options is None:
        return
    if not isinstance(options, dict):
        raise WrongOptionError(
            f"{helper}(backend_options=...) must be a dict, such as {{'use_uvloop': True}}, or None, "
            f"not {short_repr(options)}"
        )
    known: Collection[str] = ("debug", "loop_factory", "use_uvloop")
    if backend == "trio":
        try:
            known = [*signature(importlib.import_module("trio").run).parameters][2:]  # without the function and `*args`
        except ImportError:  # starting the loop raises the error
            return
    for name in map(str, cast("dict[object, object]", options)):
        if name not in known:
            raise WrongOptionError(
                f"{helper}(backend_options=...) has no option {short_repr(name)} with {backend}: they are "
                f"{', '.join(known)}"
            )


def async_work(
    func: Callable[..., Awaitable[T]], args: tuple[object, ...], kwargs: dict[str, Any], helper: str
) -> Callable[[], Awaitable[T]]:
    """Return the async function without arguments that the loop is to run for a call of *func*."""
    require_async(func, helper)
    call = partial(func, *args, **kwargs)
    if is_async(func):
        return call

    async def call_and_await() -> T:
        result = call()
        if not isawaitable(result):
            raise not_async_error(func, result, helper)
        return await result

    return call_and_await
