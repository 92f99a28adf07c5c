"""Thread calls with the names and parameters of anyio's, for the modules of Starlette and FastAPI.

Whatever those functions return comes back: a program that does without `install()` may have a sync dependency that
returns a coroutine, which `unfazed.concurrency` takes for a mistake. So the result travels in a tuple.
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

# A dependency may wait, as it is entered, for what other requests hold: a connection. They need threads to go on and
# give it back. If it waited in one of those, they would wait for each other. Its thread is one of its own anyhow.
WITHOUT_SLOTS: Final = CapacityLimiter(math.inf)


def boxed(func: Callable[..., T], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[T]:
    """Call *func*, and return its result in a tuple."""
    return (func(*args, **kwargs),)


async def run_sync(
    func: Callable[..., T], *args: Any, abandon_on_cancel: bool = False, limiter: CapacityLimiter | None = None
) -> T:
    """Call *func* in a worker thread: `anyio.to_thread.run_sync`."""
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
    """A context manager whose entry gives its result in a tuple."""

    def __init__(self, cm: AbstractContextManager[T, bool | None]) -> None:
        self._cm = cm

    def __enter__(self) -> tuple[T]:
        return (self._cm.__enter__(),)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._cm.__exit__(exc_type, exc, traceback)


def enter(cm: AbstractContextManager[T, bool | None]) -> AbstractAsyncContextManager[tuple[T], bool | None]:
    """Use a sync context manager in a worker thread. Entering gives its result in a tuple."""
    return contextmanager_in_threadpool(_BoxedEntry(cm), limiter=WITHOUT_SLOTS)


class _File(AsyncFile[Any]):
    """A file whose methods are called in our threads."""

    async def aclose(self) -> None:
        with CancelScope(shield=True):
            await run_sync(self.wrapped.close, limiter=self.limiter)


def _in_a_thread(name: str) -> Callable[..., Any]:
    async def method(self: _File, *args: Any, **kwargs: Any) -> Any:
        # in their order: a file takes them by position only
        return await run_sync(getattr(self.wrapped, name), *args, *kwargs.values(), limiter=self.limiter)

    return method


for _name in (
    *("read", "read1", "readline", "readlines", "readinto", "readinto1"),
    *("write", "writelines", "truncate", "seek", "tell", "flush"),
):
    setattr(_File, _name, _in_a_thread(_name))


async def open_file(file: Any, *args: Any, limiter: CapacityLimiter | None = None, **kwargs: Any) -> AsyncFile[Any]:
    """Open a file in a worker thread, in which its methods run as well: `anyio.open_file`."""
    opened: IO[Any] = await run_sync(partial(open, file, *args, **kwargs), limiter=limiter)
    return _File(opened, limiter=limiter)


@final
class _Proxy(ModuleType):
    """A module of anyio's, with ours in place of its thread calls. What others have put there themselves stays."""

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
_BY_IDENTITY: Final = {id(theirs): ours for theirs, ours in _STAND_INS}  # which lasts, as they do


def in_place_of(value: object) -> object:
    """Return what stands for *value* in the modules of Starlette and FastAPI, or `None`."""
    return _BY_IDENTITY.get(id(value))
