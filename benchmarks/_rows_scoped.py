"""What is measured of event loops in threads of their own, of iterators and of context managers.

`ROWS` has these rows after those of `_rows.py`.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio.from_thread
import fastapi.concurrency
import starlette.concurrency

from unfazed.concurrency import (
    EventLoopThread,
    contextmanager_in_eventloop_sync,
    contextmanager_in_threadpool,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
)

from ._measure import OURS
from ._rows import ROWS as ROWS
from ._rows import consume, consume_sync, nothing_async, row, running_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from contextlib import ExitStack

    from ._rows import Calls, SyncCalls

PORTAL = "anyio portal"
STEPS = 100  # of one iterator, so that its beginning and its end count little


# ---- event loops in threads of their own


@row("EventLoopThread.run_sync", limits={PORTAL: 0.6})
def loop_threads(stack: ExitStack, backend: dict[str, Any]) -> SyncCalls:
    portal = stack.enter_context(anyio.from_thread.start_blocking_portal(**backend))
    loop = stack.enter_context(EventLoopThread(**backend))
    calls: SyncCalls = {OURS: lambda: loop.run_sync(nothing_async), PORTAL: lambda: portal.call(nothing_async)}
    if backend["backend"] == "asyncio":
        native: asyncio.AbstractEventLoop = portal.call(running_loop)
        calls["run_coroutine_threadsafe().result()"] = lambda: asyncio.run_coroutine_threadsafe(
            nothing_async(), native
        ).result()
    return calls


@row("EventLoopThread.start(...).result()", limits={PORTAL: 1.0})
def started_in_loop_threads(stack: ExitStack, backend: dict[str, Any]) -> SyncCalls:
    portal = stack.enter_context(anyio.from_thread.start_blocking_portal(**backend))
    loop = stack.enter_context(EventLoopThread(**backend))
    return {
        OURS: lambda: loop.start(nothing_async).result(),
        PORTAL: lambda: portal.start_task_soon(nothing_async).result(),
    }


@row("an EventLoopThread, started and ended", limits={PORTAL: 1.1})
def whole_loop_threads(_: ExitStack, backend: dict[str, Any]) -> SyncCalls:
    def ours() -> None:
        with EventLoopThread(**backend) as loop:
            loop.run_sync(nothing_async)

    def theirs() -> None:
        with anyio.from_thread.start_blocking_portal(**backend) as portal:
            portal.call(nothing_async)

    return {OURS: ours, PORTAL: theirs}


# ---- iterators


@row("iterate_in_threadpool", units=STEPS, quick_units=STEPS, limits={"Starlette": 1.0})
async def iterators_by_step(_: ExitStack) -> Calls:
    return {
        OURS: lambda: consume(iterate_in_threadpool(iter(range(STEPS)))),
        "Starlette": lambda: consume(starlette.concurrency.iterate_in_threadpool(iter(range(STEPS)))),
    }


@row("iterate_in_threadpool, of no items", limits={"Starlette": 2.0})
async def empty_iterators(_: ExitStack) -> Calls:
    return {
        OURS: lambda: consume(iterate_in_threadpool(iter(()))),
        "Starlette": lambda: consume(starlette.concurrency.iterate_in_threadpool(iter(()))),
    }


@row("iterate_in_eventloop_sync", units=STEPS, quick_units=STEPS, limits={PORTAL: 0.6})
def iterators_sync(stack: ExitStack, backend: dict[str, Any]) -> SyncCalls:
    portal = stack.enter_context(anyio.from_thread.start_blocking_portal(**backend))

    def by_portal() -> Iterator[int]:
        numbers = steps()
        for _ in range(STEPS):
            yield portal.call(numbers.__anext__)

    return {OURS: lambda: consume_sync(iterate_in_eventloop_sync(steps())), PORTAL: lambda: consume_sync(by_portal())}


async def steps() -> AsyncIterator[int]:
    for number in range(STEPS):
        yield number


# ---- context managers


@contextmanager
def manager() -> Iterator[None]:
    """Have nothing to do."""
    yield


@asynccontextmanager
async def async_manager() -> AsyncIterator[None]:
    """Have nothing to do."""
    yield


@row("contextmanager_in_threadpool", limits={"FastAPI": 1.0})
async def managers(_: ExitStack) -> Calls:
    async def ours() -> None:
        async with contextmanager_in_threadpool(manager()):
            pass

    async def theirs() -> None:
        async with fastapi.concurrency.contextmanager_in_threadpool(manager()):
            pass

    return {OURS: ours, "FastAPI": theirs}


@row("contextmanager_in_eventloop_sync", limits={PORTAL: 0.6})
def managers_sync(stack: ExitStack, backend: dict[str, Any]) -> SyncCalls:
    portal = stack.enter_context(anyio.from_thread.start_blocking_portal(**backend))

    def ours() -> None:
        with contextmanager_in_eventloop_sync(async_manager()):
            pass

    def theirs() -> None:
        with portal.wrap_async_context_manager(async_manager()):
            pass

    return {OURS: ours, PORTAL: theirs}
