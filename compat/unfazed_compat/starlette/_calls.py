"""Thread calls with the names and parameters of anyio's, for the modules of Starlette and FastAPI.

Results come back unchanged, even coroutines. `unfazed.concurrency` refuses a sync function that returns a coroutine,
but a program that works without `install()` may have such a dependency. So the result is wrapped in a tuple.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager
from functools import partial
from types import ModuleType
from typing import IO, TYPE_CHECKING, Any, Final, TypeVar, final

import anyio
import anyio.to_thread
from anyio import AsyncFile, CancelScope, CapacityLimiter

from unfazed.concurrency import contextmanager_in_threadpool, in_threadpool, iterate_in_threadpool, run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from unfazed.concurrency import ThreadpoolIterator

__all__ = ("CancelScope", "boxed", "enter", "in_place_of", "iterate", "run_in_threadpool")

T = TypeVar("T")

# Entering a dependency may wait for something that other requests hold, such as a connection. Those requests need slots
# to finish and release it. If the waiting dependency held a slot, they could deadlock. It has its own thread anyway.
WITHOUT_SLOTS: Final = CapacityLimiter(math.inf)


def boxed(func: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[T]:
    """Call *func* and return its result in a tuple."""
    return (func(*args, **kwargs),)


async def run_sync(
    func: Callable[..., T], *args: Any, abandon_on_cancel: bool = False, limiter: CapacityLimiter | None = None
) -> T:
    """Call *func* in a worker thread, like `anyio.to_thread.run_sync`."""
    if limiter is None and not abandon_on_cancel:
        (result,) = await run_in_threadpool(boxed, func, args, {})
    else:
        with_options = in_threadpool(boxed, limiter=limiter, abandon_on_cancel=abandon_on_cancel)
        (result,) = await with_options(func, args, {})
    return result


def iterate(iterator: Iterable[T]) -> ThreadpoolIterator[T]:
    """Iterate over a sync iterable in a worker thread."""
    return iterate_in_threadpool(iterator)


class _BoxedEntry(AbstractContextManager[tuple[T], "bool | None"]):
    """A context manager whose `__enter__` returns its result in a tuple."""

    def __init__(self, cm: AbstractContextManager[T, bool | None]) -> None:
        self._cm = cm

    def __enter__(self) -> tuple[T]:
        return (self._cm.__enter__(),)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._cm.__exit__(exc_type, exc, traceback)


def enter(cm: AbstractContextManager[T, bool | None]) -> AbstractAsyncContextManager[tuple[T], bool | None]:
    """Enter and leave a sync context manager in a worker thread. Entering returns its result in a tuple."""
    return contextmanager_in_threadpool(_BoxedEntry(cm), limiter=WITHOUT_SLOTS)


class _File(AsyncFile[Any]):
    """An open file. Its methods run in our worker threads."""

    async def aclose(self) -> None:
        with CancelScope(shield=True):
            await run_sync(self.wrapped.close, limiter=self.limiter)


def _in_a_thread(name: str) -> Callable[..., Any]:
    async def method(self: _File, *args: Any, **kwargs: Any) -> Any:
        # by position, because file methods take no keywords
        return await run_sync(getattr(self.wrapped, name), *args, *kwargs.values(), limiter=self.limiter)

    return method


for _name in (
    *("read", "read1", "readline", "readlines", "readinto", "readinto1"),
    *("write", "writelines", "truncate", "seek", "tell", "flush"),
):
    setattr(_File, _name, _in_a_thread(_name))


async def open_file(file: Any, *args: Any, limiter: CapacityLimiter | None = None, **kwargs: Any) -> AsyncFile[Any]:
    """Open a file in a worker thread, like `anyio.open_file`. Its methods run in worker threads too."""
    opened: IO[Any] = await run_sync(partial(open, file, *args, **kwargs), limiter=limiter)
    return _File(opened, limiter=limiter)


@final
class _Proxy(ModuleType):
    """A proxy of one of anyio's modules. It has our thread calls instead of anyio's, and keeps others' patches."""

    def __init__(self, module: ModuleType) -> None:
        super().__init__(module.__name__, module.__doc__)
        self.__dict__["_module"] = module

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._module, name)
        return in_place_of(value) or value

    def __dir__(self) -> list[str]:
        return dir(self._module)


_STAND_INS: Final[tuple[tuple[object, object], ...]] = (
    (anyio, _Proxy(anyio)),
    (anyio.to_thread, _Proxy(anyio.to_thread)),
    (anyio.to_thread.run_sync, run_sync),
    (anyio.open_file, open_file),
)
_BY_IDENTITY: Final = {id(theirs): ours for theirs, ours in _STAND_INS}  # `_STAND_INS` keeps them alive


def in_place_of(value: object) -> object:
    """Return what replaces *value* in the modules of Starlette and FastAPI, or `None` if it stays."""
    return _BY_IDENTITY.get(id(value))
