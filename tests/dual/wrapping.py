"""What the tests of dual callables share."""

from __future__ import annotations

import asyncio
import functools
import inspect
import warnings
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest

from unfazed.concurrency import in_eventloop, in_executor, in_processpool, in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable

never_used = ThreadPoolExecutor(max_workers=1)


def read(path: str, *, size: int = 1) -> bytes:
    """Read a file."""
    pytest.fail("must not run")


async def fetch(path: str, *, size: int = 1) -> bytes:
    """Read a file."""
    pytest.fail("must not run")


WRAPPERS: dict[str, Callable[..., Any]] = {
    "threadpool": in_threadpool,
    "processpool": in_processpool,
    "executor": lambda *args, **options: in_executor(never_used, *args, **options),
    "eventloop": in_eventloop,
}


@pytest.fixture(params=WRAPPERS)
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def wrap(place: str) -> Callable[..., Any]:
    return WRAPPERS[place]


def fitting(place: str, func: Callable[..., Any]) -> Callable[..., Any]:
    """Return *func*; for a place of async functions, an async function that does the same."""
    if place != "eventloop":
        return func

    @functools.wraps(func)
    async def async_func(*args: Any, **kwargs: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return func(*args, **kwargs)

    return async_func


@pytest.fixture
def func(place: str) -> Callable[..., Any]:
    return fetch if place == "eventloop" else read


def class_of_four(place: str, wrap: Callable[..., Any]) -> type[Any]:
    """Return a class with a method, a class method, a static method, and one that is abstract."""

    def method(self: object, a: int, b: int = 2) -> Any:
        """Say what came."""
        return self, a, b

    def static(a: int, b: int = 2) -> Any:
        """Say what came."""
        return a, b

    method, static = fitting(place, method), fitting(place, static)
    members = {
        "method": wrap(method),
        "of_class": wrap(classmethod(method)),
        "static": wrap(staticmethod(static)),
        "__module__": __name__,
    }
    return type("Four", (), members)


def is_coroutine_function(func: object) -> tuple[bool, bool]:
    """Return the answers of `inspect` and of `asyncio` (deprecated)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        said = asyncio.iscoroutinefunction(func) if hasattr(asyncio, "iscoroutinefunction") else None
    inspected = inspect.iscoroutinefunction(func)
    return inspected, inspected if said is None else said
