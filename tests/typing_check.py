"""What type checkers see of the public names. Checked by mypy and pyright, never run.

Every `type: ignore` and `pyright: ignore` here is an error that users must get: both checkers complain of those
that are not needed.
"""

from __future__ import annotations

from concurrent.futures import Executor, Future, ThreadPoolExecutor, as_completed, wait
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast, overload

from anyio import CapacityLimiter
from typing_extensions import assert_type
from unfazed_compat import asyncer, starlette, stdlib

from unfazed import concurrecy
from unfazed.concurrency import (
    AsyncMapIterator,
    CallGroup,
    EventLoopThread,
    Handle,
    MapIterator,
    allow_blocking_loop,
    check_cancelled,
    configure_background_eventloop,
    in_eventloop,
    in_executor,
    in_processpool,
    in_threadpool,
    map_in_eventloop,
    map_in_eventloop_sync,
    map_in_executor,
    map_in_executor_sync,
    map_in_processpool,
    map_in_processpool_sync,
    map_in_threadpool,
    map_in_threadpool_sync,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_executor,
    run_in_executor_sync,
    run_in_processpool,
    run_in_processpool_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
    start_in_eventloop,
    start_in_executor,
    start_in_processpool,
    start_in_threadpool,
    sync_twin,
)
from unfazed.twins import SyncTwin, call

if TYPE_CHECKING:
    import asyncio
    from collections.abc import AsyncIterator, Awaitable
    from contextlib import AbstractContextManager

    import trio
    from anyio.lowlevel import EventLoopToken


def read(path: str, *, encoding: str = "utf-8") -> bytes:
    raise NotImplementedError


async def fetch(url: str, *, timeout: float = 1) -> list[int]:
    raise NotImplementedError


def returns_awaitable(url: str) -> Awaitable[str]:
    raise NotImplementedError


def returns_any(url: str) -> Any:
    raise NotImplementedError


T = TypeVar("T")


def identity(value: T) -> T:
    raise NotImplementedError


async def from_async_code() -> None:
    assert_type(await run_in_threadpool(read, "a", encoding="b"), bytes)
    assert_type(await run_in_processpool(read, "a", encoding="b"), bytes)
    assert_type(await run_in_eventloop(fetch, "a", timeout=2), list[int])
    assert_type(await run_in_eventloop(returns_awaitable, "a"), str)
    assert_type(await run_in_eventloop(fetch("a", timeout=2)), list[int])
    assert_type(await run_in_eventloop(returns_awaitable("a")), str)
    assert_type(await run_in_executor(ThreadPoolExecutor(), read, "a", encoding="b"), bytes)
    assert_type(await concurrecy.run_in_threadpool(read, "a"), bytes)
    with EventLoopThread("trio", {"restrict_keyboard_interrupt_to_checkpoints": True}, name="loop") as loop:
        assert_type(await loop.run(fetch, "a"), list[int])
        assert_type(loop.run_sync(fetch, "a", timeout=2), list[int])
        assert_type(await loop.run(fetch("a")), list[int])
        assert_type(loop.run_sync(fetch("a")), list[int])

    await run_in_threadpool(read, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await run_in_threadpool(read, "a", decoding="b")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await run_in_processpool(read)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await run_in_eventloop(read, "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    await run_in_eventloop(fetch("a"), "b")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


def from_sync_code() -> None:
    configure_background_eventloop(allow_blocking_loop=True)
    with allow_blocking_loop():
        check_cancelled()
    assert_type(run_in_threadpool_sync(read, "a", encoding="b"), bytes)
    assert_type(run_in_processpool_sync(read, "a", encoding="b"), bytes)
    assert_type(run_in_eventloop_sync(fetch, "a", timeout=2), list[int])
    assert_type(run_in_eventloop_sync(fetch("a", timeout=2)), list[int])
    assert_type(run_in_executor_sync(ThreadPoolExecutor(), read, "a", encoding="b"), bytes)

    run_in_threadpool_sync(read, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    run_in_processpool_sync(read, "a", decoding="b")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    run_in_eventloop_sync(fetch)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    run_in_eventloop_sync(read("a"))  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]


# Calls that are started


async def started(executor: Executor, loop: EventLoopThread) -> None:
    assert_type(start_in_threadpool(read, "a", encoding="b"), Handle[bytes])
    assert_type(start_in_processpool(read, "a"), Handle[bytes])
    assert_type(start_in_executor(executor, read, "a"), Handle[bytes])
    assert_type(start_in_eventloop(fetch, "a", timeout=2), Handle[list[int]])
    assert_type(start_in_eventloop(fetch("a")), Handle[list[int]])
    assert_type(loop.start(fetch, "a"), Handle[list[int]])
    assert_type(loop.start(fetch("a")), Handle[list[int]])
    assert_type(decorated.start("a", size=2), Handle[bytes])
    assert_type(decorated_async.start("a"), Handle[list[int]])
    assert_type(Holder().read.start("a", size=2), Handle[bytes])
    assert_type(Holder.of_class.start("a"), Handle[bytes])

    handle = start_in_threadpool(read, "a")
    assert_type(await handle, bytes)
    assert_type(handle.result(timeout=1), bytes)
    assert_type(handle.exception(), BaseException | None)
    assert_type(handle.cancel(), bool)
    assert_type(wait([handle]).done, set[Future[bytes]])
    assert_type(next(as_completed([handle])), Future[bytes])

    start_in_threadpool(read, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    start_in_processpool(read)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    start_in_executor(read, "a")  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]
    start_in_eventloop(read, "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    start_in_eventloop(fetch("a"), "b")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    loop.start(read, "a")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    decorated.start(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def groups(executor: Executor) -> None:
    with CallGroup() as group:
        assert_type(group.start_in_threadpool(read, "a", encoding="b"), Handle[bytes])
        assert_type(group.start_in_processpool(read, "a"), Handle[bytes])
        assert_type(group.start_in_executor(executor, read, "a"), Handle[bytes])
        assert_type(group.start_in_eventloop(fetch, "a", timeout=2), Handle[list[int]])
        assert_type(group.start_in_eventloop(fetch("a")), Handle[list[int]])
        assert_type(group.add(decorated.start("a")), Handle[bytes])
        group.start_in_threadpool(read)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        group.add(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(group, CallGroup)


async def groups_in_async_code() -> None:
    async with CallGroup() as group:
        assert_type(await group.start_in_threadpool(read, "a"), bytes)


# Many calls


def scale(path: str, size: int = 1, unit: str = "px") -> bytes:
    raise NotImplementedError


def add_four(a: int, b: int, c: int, d: int) -> int:
    raise NotImplementedError


async def fetch_page(url: str, retries: int = 1) -> list[int]:
    raise NotImplementedError


async def many_from_async_code(names: list[str], stream: AsyncIterator[str]) -> None:
    assert_type(map_in_threadpool(scale, names), AsyncMapIterator[bytes])
    assert_type(map_in_threadpool(scale, stream, range(9), limit=3), AsyncMapIterator[bytes])
    assert_type(map_in_processpool(scale, names, [1], "ab", chunk=2, ordered=False), AsyncMapIterator[bytes])
    assert_type(map_in_executor(ThreadPoolExecutor(), scale, names), AsyncMapIterator[bytes])
    assert_type(map_in_eventloop(fetch_page, names, [1, 2]), AsyncMapIterator[list[int]])
    assert_type(map_in_threadpool(add_four, [1], [2], [3], [4]), AsyncMapIterator[int])
    assert_type(map_in_threadpool(scale, names, return_exceptions=True), AsyncMapIterator[bytes | Exception])
    assert_type([page async for page in map_in_eventloop(fetch_page, names)], list[list[int]])
    assert_type(decorated.map(names), AsyncMapIterator[bytes])
    assert_type(decorated_async.map(names, return_exceptions=True), AsyncMapIterator[list[int] | Exception])


def many_from_sync_code(names: list[str], holder: Holder) -> None:
    assert_type(map_in_threadpool_sync(scale, names), MapIterator[bytes])
    assert_type(map_in_processpool_sync(scale, names, [1], chunk=2), MapIterator[bytes])
    assert_type(map_in_executor_sync(ThreadPoolExecutor(), scale, names, [1], "ab"), MapIterator[bytes])
    assert_type(map_in_eventloop_sync(fetch_page, names), MapIterator[list[int]])
    assert_type(map_in_threadpool_sync(add_four, [1], [2], [3], [4]), MapIterator[int])
    assert_type(map_in_threadpool_sync(scale, names, return_exceptions=True), MapIterator[bytes | Exception])
    assert_type(list(map_in_threadpool_sync(scale, names)), list[bytes])
    assert_type(decorated.map.sync(names, limit=2), MapIterator[bytes])
    assert_type(holder.read.map.sync(names), MapIterator[bytes])
    assert_type(Holder.of_class.map.sync(names), MapIterator[bytes])


# Dual callables

limiter = CapacityLimiter(1)
executor = ThreadPoolExecutor()


@in_threadpool
def decorated(path: str, *, size: int = 1) -> bytes:
    raise NotImplementedError


@in_processpool(limiter=limiter, kill_on_cancel=True, timeout=1)
def decorated_with_options(path: str, *, size: int = 1) -> bytes:
    raise NotImplementedError


@in_executor(executor)
def decorated_elsewhere(path: str, *, size: int = 1) -> bytes:
    raise NotImplementedError


@in_eventloop
async def decorated_async(url: str, *, timeout: float = 1) -> list[int]:
    raise NotImplementedError


@in_eventloop(timeout=1.5, context=copy_context())
async def decorated_async_with_options(url: str, *, timeout: float = 1) -> list[int]:
    raise NotImplementedError


def read_static(path: str) -> bytes:
    raise NotImplementedError


async def fetch_static(url: str) -> list[int]:
    raise NotImplementedError


def read_of_class(cls: type[object], path: str) -> bytes:
    raise NotImplementedError


async def fetch_of_class(cls: type[object], url: str) -> list[int]:
    raise NotImplementedError


class Holder:
    @in_threadpool
    def read(self, path: str, *, size: int = 1) -> bytes:
        raise NotImplementedError

    @in_threadpool(timeout=1)
    def read_with_options(self, path: str) -> bytes:
        raise NotImplementedError

    @in_eventloop
    async def fetch(self, url: str) -> list[int]:
        raise NotImplementedError

    # Written as calls: above `@staticmethod` and `@classmethod`, checkers show decorators the bare function.
    static = in_threadpool(staticmethod(read_static))
    async_static = in_eventloop(staticmethod(fetch_static), timeout=1)
    of_class = in_threadpool(classmethod(read_of_class), timeout=1)
    async_of_class = in_eventloop(classmethod(fetch_of_class))


async def both_sides() -> None:
    options = in_threadpool(read, limiter=limiter, abandon_on_cancel=True, timeout=1, context=copy_context())
    assert_type(await options("a", encoding="b"), bytes)
    assert_type(options.sync("a", encoding="b"), bytes)
    assert_type(await in_processpool(read)("a"), bytes)
    assert_type(in_processpool(read, kill_on_cancel=True).sync("a"), bytes)
    assert_type(await in_executor(executor, read, timeout=1)("a"), bytes)
    assert_type(in_executor(executor, read).sync("a"), bytes)
    assert_type(await in_eventloop(fetch)("a", timeout=2), list[int])
    assert_type(in_eventloop(fetch, timeout=1).sync("a", timeout=2), list[int])
    assert_type(in_eventloop(returns_awaitable).sync("a"), str)
    assert_type(await in_threadpool(returns_any)("a"), Any)
    assert_type(in_threadpool(returns_any).sync("a"), Any)
    assert_type(in_threadpool(identity).sync(b"a"), bytes)
    for dual in (decorated, decorated_with_options, decorated_elsewhere):
        assert_type(await dual("a", size=2), bytes)
        assert_type(dual.sync("a", size=2), bytes)
    for async_dual in (decorated_async, decorated_async_with_options):
        assert_type(await async_dual("a", timeout=2), list[int])
        assert_type(async_dual.sync("a", timeout=2), list[int])


async def methods(holder: Holder) -> None:
    assert_type(await holder.read("a", size=2), bytes)
    assert_type(holder.read.sync("a", size=2), bytes)
    assert_type(await holder.read_with_options("a"), bytes)
    assert_type(holder.read_with_options.sync("a"), bytes)
    assert_type(await holder.fetch("a"), list[int])
    assert_type(holder.fetch.sync("a"), list[int])
    assert_type(await Holder.read(holder, "a", size=2), bytes)
    assert_type(Holder.read.sync(holder, "a"), bytes)
    assert_type(await holder.static("a"), bytes)
    assert_type(Holder.static.sync("a"), bytes)
    assert_type(Holder.async_static.sync("a"), list[int])
    assert_type(await holder.of_class("a"), bytes)
    assert_type(Holder.of_class.sync("a"), bytes)
    assert_type(await Holder.async_of_class("a"), list[int])


# Subclasses and protocols


class Reader(Protocol):
    async def read(self, path: str) -> bytes: ...
    async def fetch(self, url: str) -> list[int]: ...
    async def of_class(self, path: str) -> bytes: ...


class SubHolder(Holder):
    @in_threadpool  # pyright takes what a subclass adds for another type
    def read(self, path: str, *, size: int = 1, more: int = 2) -> bytes:  # pyright: ignore[reportIncompatibleVariableOverride]
        raise NotImplementedError

    @in_eventloop(timeout=1)
    async def fetch(self, url: str) -> list[int]:
        raise NotImplementedError


class SameHolder(Holder):
    @in_threadpool(timeout=1)
    def read(self, path: str, *, size: int = 1) -> bytes:
        raise NotImplementedError

    @in_eventloop
    async def fetch(self, url: str) -> list[int]:
        raise NotImplementedError


def takes_reader(reader: Reader) -> None:
    takes_reader(Holder())
    takes_reader(SameHolder())


class InOrder:
    """Wrappers above `@classmethod`, and the recipe for static methods."""

    @in_threadpool
    @classmethod
    def of_class(cls, path: str) -> bytes:
        raise NotImplementedError

    @in_eventloop(timeout=1)
    @classmethod
    async def async_of_class(cls, url: str) -> list[int]:
        raise NotImplementedError

    static = in_threadpool(staticmethod(read_static))


async def in_order() -> None:
    assert_type(await InOrder.of_class("a"), bytes)
    assert_type(InOrder().of_class.sync("a"), bytes)
    assert_type(await InOrder().async_of_class("a"), list[int])
    assert_type(InOrder.async_of_class.sync("a"), list[int])
    assert_type(InOrder.static.sync("a"), bytes)
    assert_type(await InOrder().static("a"), bytes)

    await InOrder.of_class(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Overloads: checkers give a wrapper the first one alone. The recipe: one wrapper for each.


@overload
def parse(text: str) -> int: ...
@overload
def parse(text: bytes) -> float: ...
def parse(text: str | bytes) -> int | float:
    raise NotImplementedError


class Parse(Protocol):
    @overload
    async def __call__(self, text: str) -> int: ...
    @overload
    async def __call__(self, text: bytes) -> float: ...
    @property
    def sync(self) -> ParseSync: ...


class ParseSync(Protocol):
    @overload
    def __call__(self, text: str) -> int: ...
    @overload
    def __call__(self, text: bytes) -> float: ...


async def overloads() -> None:
    assert_type(in_threadpool(parse).sync("1"), int)
    parse_in_threadpool = cast("Parse", in_threadpool(parse))
    assert_type(parse_in_threadpool.sync("1"), int)
    assert_type(parse_in_threadpool.sync(b"1"), float)
    assert_type(await parse_in_threadpool(b"1"), float)


async def wrong_arguments(holder: Holder) -> None:
    await decorated(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    decorated.sync("a", length=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await decorated_with_options()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    decorated_async.sync(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    holder.read.sync(holder, "a")  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    await Holder.read("a")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await holder.static(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Holder.of_class.sync()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    in_threadpool(read, kill_on_cancel=True)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    in_processpool(read, timeout="1")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    in_executor(read)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    in_eventloop(read)  # type: ignore[arg-type]  # pyright: ignore[reportCallIssue, reportArgumentType]


async def names_of_others(
    loop: asyncio.AbstractEventLoop | trio.lowlevel.TrioToken | EventLoopToken | EventLoopThread,
    manager: AbstractContextManager[bytes],
) -> None:
    assert_type(await starlette.run_in_threadpool(read, "a", encoding="b"), bytes)
    assert_type([each async for each in starlette.iterate_in_threadpool(b"a")], list[int])
    async with starlette.contextmanager_in_threadpool(manager) as entered:
        assert_type(entered, bytes)
    assert_type(await asyncer.asyncify(read, abandon_on_cancel=True)("a", encoding="b"), bytes)
    assert_type(asyncer.syncify(fetch, raise_sync_error=False)("a", timeout=2), list[int])
    assert_type(asyncer.runnify(fetch, "trio")("a", timeout=2), list[int])
    assert_type(await stdlib.to_thread(read, "a", encoding="b"), bytes)
    assert_type(stdlib.run_coroutine_threadsafe(fetch("a"), loop), Future[list[int]])

    await starlette.run_in_threadpool(read, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await asyncer.asyncify(read)(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    asyncer.syncify(fetch)(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    asyncer.runnify(read)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    stdlib.run_coroutine_threadsafe(fetch, loop)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class AsyncClient:
    async def get(self, url: str) -> str:
        raise NotImplementedError


class Client(SyncTwin, twin_of=AsyncClient):
    """As `python -m unfazed.twins` writes it."""

    def get(self, url: str) -> str:
        return call(self, "get", url)


def twins() -> None:
    assert_type(sync_twin(AsyncClient), type[Any])
    assert_type(Client().get("a"), str)
    assert_type(Client().with_timeout(5).get("a"), str)
    assert_type(Client.from_async(AsyncClient()), Client)
    Client().post("a")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    sync_twin(3)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
