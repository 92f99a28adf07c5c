"""The checks of what an event loop is to run, a function or an awaitable, and of the options that it starts with."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from inspect import CORO_CLOSED, CORO_CREATED, getcoroutinestate, isawaitable, signature
from reprlib import repr as short_repr
from types import CoroutineType
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, cast, final

from .._core._checks import (
    EVENTLOOP_OPTIONS,
    called,
    close_coroutine,
    is_async,
    name_of,
    not_async_error,
    require_async,
)
from .._core._errors import CallCancelledError, WrongFunctionError, WrongOptionError
from .._core._futures import Start
from ._loops import current_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection

    from .._core._loop import Loop


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
    func: Callable[..., Awaitable[T]] | Awaitable[T], args: tuple[object, ...], kwargs: dict[str, Any], helper: str
) -> Callable[[], Awaitable[T]]:
    """Return the async function without arguments that the loop is to run for a call of *func*, or for an awaitable."""
    if not callable(func) and isawaitable(func):
        awaiting = AwaitOnce(func, helper)
        awaiting.require_new(args, kwargs)
        return awaiting
    function: Any = func
    require_async(function, helper)
    call: Callable[[], Awaitable[T]] = partial(function, *args, **kwargs)
    if is_async(function):
        return call

    async def call_and_await() -> T:
        result = call()
        if not isawaitable(result):
            raise not_async_error(function, result, helper)
        return await result

    return call_and_await


def close_unless_begun(work: Callable[[], Awaitable[Any]]) -> None:
    """Close the coroutine that *work* was to await, if it is one that a caller handed over, and has not begun."""
    if isinstance(work, AwaitOnce):
        work.close()


def require_its_loop(work: Callable[[], Awaitable[Any]], loop: Loop) -> None:
    """Refuse *work* that is to await a future of another asyncio loop than *loop*."""
    if isinstance(work, AwaitOnce):
        work.require_loop(loop)


@final
class AwaitOnce(Generic[T]):
    """Awaits what a caller has handed over in place of a function: once, or never if `close` comes first."""

    def __init__(self, awaitable: Awaitable[T], helper: str) -> None:
        self.__qualname__ = name_of(awaitable)  # for error messages
        self._awaitable = awaitable
        self._helper = helper
        self._start = Start()

    async def __call__(self) -> T:
        """Await it, in the loop that it belongs to."""
        if not self._start.begin():
            raise CallCancelledError(self.__qualname__)
        self.require_loop(current_loop())
        return await self._awaitable

    def close(self) -> None:
        """Close it if it is a coroutine that has not begun: otherwise Python would warn that nobody awaited it."""
        if self._start.prevent():
            close_coroutine(self._awaitable)

    def require_new(self, args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a coroutine that has begun elsewhere, and arguments next to what is there already."""
        awaitable, name = cast("Any", self._awaitable), self.__qualname__
        state = getcoroutinestate(awaitable) if issubclass(type(awaitable), CoroutineType) else CORO_CREATED
        if state != CORO_CREATED:
            problem = "was awaited before" if state == CORO_CLOSED else "is being awaited elsewhere"
            raise WrongFunctionError(
                f"{called(self._helper)} got the coroutine {name}(...), which {problem}, and a coroutine can be "
                f"awaited only once: call {name}() again"
            )
        if args or kwargs:
            close_coroutine(awaitable)
            option = next((each for each in kwargs if each in EVENTLOOP_OPTIONS), None)
            advice = f"; options go to the wrapper: `in_eventloop({name}, {option}=...)`" if option else ""
            raise WrongFunctionError(
                f"{called(self._helper)} got further arguments after {short_repr(awaitable)}, which has its arguments "
                f"already: write `{self._helper}({name}(...))` or `{self._helper}({name}, ...)`{advice}"
            )

    def require_loop(self, loop: Loop) -> None:
        """Refuse a future or a task of another asyncio loop than *loop*, unless it is done."""
        asyncio, awaitable = sys.modules.get("asyncio"), cast("Any", self._awaitable)
        if asyncio is None or not asyncio.isfuture(awaitable) or awaitable.done():
            return
        if awaitable.get_loop() is not loop.native:
            raise WrongFunctionError(
                f"{called(self._helper)} cannot await {short_repr(awaitable)} here, because it belongs to another "
                f"event loop: await it in that one, or hand over a coroutine that is not a task yet"
            )
