"""What type checkers must make of duals of generator functions and of context manager functions. Nothing here runs."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager, contextmanager

from anyio import CapacityLimiter
from typing_extensions import assert_type

from unfazed.concurrency import (
    ThreadpoolIterator,
    in_eventloop,
    in_threadpool,
)

limiter = CapacityLimiter(1)


@in_threadpool
def rows(path: str, *, size: int = 1) -> Generator[int, None, None]:
    raise NotImplementedError


@in_threadpool(limiter=limiter)
def rows_with_options(path: str) -> Generator[int, str, bytes]:
    raise NotImplementedError


@in_threadpool
@contextmanager
def transaction(path: str) -> Generator[bytes]:
    raise NotImplementedError


@in_eventloop
async def messages(path: str, *, size: int = 1) -> AsyncGenerator[int, None]:
    raise NotImplementedError
    yield 1


@in_eventloop()
async def messages_with_options(path: str) -> AsyncIterator[int]:
    raise NotImplementedError
    yield 1


@in_eventloop
@asynccontextmanager
async def connection(path: str) -> AsyncGenerator[bytes]:
    raise NotImplementedError
    yield b""


class Generators:
    @in_threadpool
    def rows(self, path: str) -> Generator[int, None, None]:
        raise NotImplementedError

    @in_threadpool(limiter=limiter)
    @contextmanager
    def transaction(self, path: str) -> Generator[bytes]:
        raise NotImplementedError

    @in_eventloop
    async def messages(self, path: str) -> AsyncGenerator[int, None]:
        raise NotImplementedError
        yield 1

    @in_eventloop
    @asynccontextmanager
    async def connection(self, path: str) -> AsyncGenerator[bytes]:
        raise NotImplementedError
        yield b""

    @in_threadpool
    @classmethod
    def rows_of_class(cls, path: str) -> Generator[int, None, None]:
        raise NotImplementedError

    @in_eventloop
    @classmethod
    async def messages_of_class(cls, path: str) -> AsyncGenerator[int, None]:
        raise NotImplementedError
        yield 1


async def generators(of: Generators) -> None:
    assert_type(rows("a", size=2), ThreadpoolIterator[int])
    assert_type(rows.sync("a", size=2), Generator[int, None, None])
    assert_type(rows_with_options("a"), ThreadpoolIterator[int])
    assert_type(messages("a", size=2), AsyncGenerator[int, None])
    assert_type(messages.sync("a"), Generator[int, None, None])
    assert_type(messages_with_options("a"), AsyncGenerator[int, None])
    assert_type([row async for row in of.rows("a")], list[int])
    assert_type(list(of.rows.sync("a")), list[int])
    assert_type(list(Generators.rows.sync(of, "a")), list[int])
    assert_type(list(of.messages.sync("a")), list[int])
    assert_type(list(Generators.rows_of_class.sync("a")), list[int])
    assert_type(list(of.messages_of_class.sync("a")), list[int])
    assert_type(in_threadpool(rows_function)("a"), ThreadpoolIterator[int])
    assert_type(in_threadpool(rows_function, limiter=limiter).sync("a"), Generator[int, None, None])
    async with transaction("a") as entered, of.transaction("a") as of_method, connection("a") as in_loop:
        assert_type(entered, bytes)
        assert_type(of_method, bytes)
        assert_type(in_loop, bytes)
    with transaction.sync("a") as from_sync, of.connection.sync("a") as in_loop_from_sync:
        assert_type(from_sync, bytes)
        assert_type(in_loop_from_sync, bytes)

    rows(1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
    rows.sync("a", length=1)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    of.messages.sync(1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    transaction.sync()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


def rows_function(path: str) -> Generator[int, None, None]:
    raise NotImplementedError
