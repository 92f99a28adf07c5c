"""What is measured: each call of ours, and the same of others, with the most that ours may take of their time.

A row is a function that makes ready what its calls need, has *stack* undo that, and returns the calls by who makes
them. An async row is measured on each loop; a sync one too, where the loop is that which does the work behind it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_process
import anyio.to_thread
import asgiref.sync
import asyncer
import httpx
import loky
import starlette.concurrency
import synchronicity
import unfazed_compat.asgiref as adapter
import unfazed_compat.starlette as web_adapter
from fastapi import FastAPI

from unfazed.concurrency import (
    in_threadpool,
    iterate_in_threadpool,
    run_in_eventloop_sync,
    run_in_executor,
    run_in_executor_sync,
    run_in_processpool,
    run_in_processpool_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
    start_in_threadpool,
    sync_twin,
)

from ._measure import OURS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
    from contextlib import ExitStack

    Calls = dict[str, Callable[[], Awaitable[object]]]
    SyncCalls = dict[str, Callable[[], object]]

GATHERED = 5_000
FEWER_GATHERED = 500  # in a quick run
CALLERS = 64
ITEMS = 100_000
FEWER_ITEMS = 2_000  # in a quick run
ANYIO = "anyio"
ASGIREF = "asgiref"
PROCESS_POOL = "ProcessPoolExecutor"


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    make: Callable[..., Any]
    is_async: bool
    limits: dict[str, float] = field(default_factory=dict)  # of the ratio, by whom it is against
    trio_limits: dict[str, float] = field(default_factory=dict)  # where these differ on trio
    units: int = 1  # how many of what is counted one call does
    quick_units: int = 1
    backends: tuple[str, ...] = ("asyncio", "uvloop", "trio")
    in_quick_run: bool = True
    on_one_cpu: bool = True  # not where processes do something at the same time


ROWS: list[Row] = []


def row(name: str, **options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    def add(make: Callable[..., Any]) -> Callable[..., Any]:
        is_async = asyncio.iscoroutinefunction(make)
        ROWS.append(Row(name, make, is_async, **options))
        return make

    return add


ON_ASYNCIO = ("asyncio", "uvloop")


def nothing() -> None:
    """Return at once."""


async def nothing_async() -> None:
    """Return at once."""


def same(value: Any) -> Any:
    """Return what came."""
    return value


def on_asyncio() -> bool:
    return "asyncio" in sys.modules and asyncio._get_running_loop() is not None


# ---- threads


@row("run_in_threadpool", limits={ANYIO: 1.05, ASGIREF: 1.05}, trio_limits={ANYIO: 1.08})
async def threads(stack: ExitStack) -> Calls:
    calls: Calls = {
        OURS: lambda: run_in_threadpool(nothing),
        ANYIO: lambda: anyio.to_thread.run_sync(nothing),
        "Starlette": lambda: starlette.concurrency.run_in_threadpool(nothing),
        "asyncer": asyncer.asyncify(nothing),
    }
    if on_asyncio():
        calls[ASGIREF] = asgiref.sync.sync_to_async(nothing, thread_sensitive=False)
        calls["asyncio.to_thread"] = lambda: asyncio.to_thread(nothing)
        calls["two threads that wake each other"] = ping_pong(stack)
    else:
        import trio  # not on asyncio: what is imported is asked whether it runs

        calls["trio.to_thread"] = lambda: trio.to_thread.run_sync(nothing)
    return calls


def ping_pong(stack: ExitStack) -> Callable[[], Awaitable[object]]:
    """Return what nothing of this kind can be faster than: another thread is woken, and wakes this one."""
    asked: SimpleQueue[bool] = SimpleQueue()
    answered: SimpleQueue[bool] = SimpleQueue()

    def answer() -> None:
        while asked.get():
            answered.put(True)

    threading.Thread(target=answer).start()
    stack.callback(asked.put, False)

    async def call() -> None:
        asked.put(True)
        answered.get()

    return call


@row("in_threadpool(…)", limits={ANYIO: 1.05}, trio_limits={ANYIO: 1.08})
async def dual_threads(_: ExitStack) -> Calls:
    return {OURS: in_threadpool(nothing), ANYIO: lambda: anyio.to_thread.run_sync(nothing)}


@row("run_in_threadpool, 5,000 at once", limits={ANYIO: 1.1}, units=GATHERED, quick_units=FEWER_GATHERED)
async def gathered_threads(_: ExitStack) -> Calls:
    calls: Calls = {
        OURS: partial(gather, run_in_threadpool),
        ANYIO: partial(gather, anyio.to_thread.run_sync),
    }
    if on_asyncio():
        calls["asyncio.to_thread"] = partial(gather, asyncio.to_thread)
    return calls


async def gather(call: Callable[..., Coroutine[Any, Any, object]]) -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(FEWER_GATHERED if is_quick() else GATHERED):
            tasks.start_soon(call, nothing)


@row("run_in_threadpool_sync", limits={"anyio portal": 0.2}, trio_limits={"anyio portal": 0.7})
def threads_sync(stack: ExitStack, backend: dict[str, Any]) -> SyncCalls:
    portal = stack.enter_context(anyio.from_thread.start_blocking_portal(**backend))
    executor = stack.enter_context(ThreadPoolExecutor())
    return {
        OURS: lambda: run_in_threadpool_sync(nothing),
        "anyio portal": lambda: portal.call(anyio.to_thread.run_sync, nothing),
        "executor.submit().result()": lambda: executor.submit(nothing).result(),
    }


@row("run_in_threadpool_sync, 64 callers", limits={"anyio portal": 0.3}, units=CALLERS * 10, quick_units=CALLERS * 10)
def threads_for_many(stack: ExitStack, backend: dict[str, Any]) -> SyncCalls:
    portal = stack.enter_context(anyio.from_thread.start_blocking_portal(**backend))
    executor = stack.enter_context(ThreadPoolExecutor(40))
    callers = stack.enter_context(ThreadPoolExecutor(CALLERS))
    return {
        OURS: partial(all_call, callers, lambda: run_in_threadpool_sync(nothing)),
        "anyio portal": partial(all_call, callers, lambda: portal.call(anyio.to_thread.run_sync, nothing)),
        "executor.submit().result()": partial(all_call, callers, lambda: executor.submit(nothing).result()),
    }


def all_call(callers: ThreadPoolExecutor, call: Callable[[], object]) -> None:
    barrier = threading.Barrier(CALLERS)

    def some() -> None:
        barrier.wait()
        for _ in range(10):
            call()

    for done in [callers.submit(some) for _ in range(CALLERS)]:
        done.result()


@row("start_in_threadpool(...).result()")
def started(stack: ExitStack, _: dict[str, Any]) -> SyncCalls:
    executor = stack.enter_context(ThreadPoolExecutor())
    return {
        OURS: lambda: start_in_threadpool(nothing).result(),
        "executor.submit().result()": lambda: executor.submit(nothing).result(),
        "run_in_threadpool_sync": lambda: run_in_threadpool_sync(nothing),
    }


# ---- executors


@row("run_in_executor", limits={"loop.run_in_executor": 1.2})
async def executors(stack: ExitStack) -> Calls:
    executor = stack.enter_context(ThreadPoolExecutor())
    calls: Calls = {OURS: lambda: run_in_executor(executor, nothing)}
    if on_asyncio():
        loop = asyncio.get_running_loop()
        calls["loop.run_in_executor"] = lambda: loop.run_in_executor(executor, nothing)
    return calls


@row("run_in_executor_sync", backends=("asyncio",), limits={"executor.submit().result()": 1.5})
def executors_sync(stack: ExitStack, _: dict[str, Any]) -> SyncCalls:
    executor = stack.enter_context(ThreadPoolExecutor())
    return {
        OURS: lambda: run_in_executor_sync(executor, nothing),
        "executor.submit().result()": lambda: executor.submit(nothing).result(),
    }


# ---- event loops


@row("run_in_eventloop_sync", limits={ASGIREF: 0.2, "anyio portal": 0.6})
def eventloop_sync(stack: ExitStack, backend: dict[str, Any]) -> SyncCalls:
    portal = stack.enter_context(anyio.from_thread.start_blocking_portal(**backend))
    calls: SyncCalls = {
        OURS: lambda: run_in_eventloop_sync(nothing_async),
        "anyio portal": lambda: portal.call(nothing_async),
        ASGIREF: asgiref.sync.async_to_sync(nothing_async),
    }
    if backend["backend"] == "asyncio":
        loop: asyncio.AbstractEventLoop = portal.call(running_loop)
        calls["run_coroutine_threadsafe().result()"] = lambda: asyncio.run_coroutine_threadsafe(
            nothing_async(), loop
        ).result()
    return calls


class AsyncNothing:
    """An async class with nothing to do."""

    async def nothing(self) -> None:
        """Return at once."""


@row("a method of a sync_twin", limits={"run_in_eventloop_sync": 1.1})
def twins_sync(_: ExitStack, backend: dict[str, Any]) -> SyncCalls:
    nothing_there = AsyncNothing()
    calls: SyncCalls = {
        OURS: sync_twin(AsyncNothing)().nothing,
        "run_in_eventloop_sync": lambda: run_in_eventloop_sync(nothing_there.nothing),
    }
    if backend["backend"] == "asyncio":  # the only one that it knows
        wrapped = synchronicity.Synchronizer().wrap(AsyncNothing, name="BlockingNothing", target_module=__name__)
        calls["synchronicity"] = wrapped().nothing
    return calls


async def running_loop() -> asyncio.AbstractEventLoop:
    return asyncio.get_running_loop()


# ---- processes


@row("run_in_processpool", on_one_cpu=False, limits={ANYIO: 0.85, PROCESS_POOL: 0.35})
async def processes(stack: ExitStack) -> Calls:
    return process_calls(stack, nothing)


@row("run_in_processpool_sync", on_one_cpu=False, limits={PROCESS_POOL: 0.35, "loky": 0.25})
def processes_sync(stack: ExitStack, backend: dict[str, Any]) -> SyncCalls:
    portal = stack.enter_context(anyio.from_thread.start_blocking_portal(**backend))
    executor = stack.enter_context(ProcessPoolExecutor())
    others = loky.get_reusable_executor()
    return {
        OURS: lambda: run_in_processpool_sync(nothing),
        "anyio portal": lambda: portal.call(anyio.to_process.run_sync, nothing),
        PROCESS_POOL: lambda: executor.submit(nothing).result(),
        "loky": lambda: others.submit(nothing).result(),
    }


def process_calls(stack: ExitStack, func: Callable[..., object], *args: object) -> Calls:
    calls: Calls = {
        OURS: lambda: run_in_processpool(func, *args),
        ANYIO: lambda: anyio.to_process.run_sync(func, *args),
    }
    if on_asyncio():
        loop = asyncio.get_running_loop()
        executor = stack.enter_context(ProcessPoolExecutor())
        calls[PROCESS_POOL] = lambda: loop.run_in_executor(executor, func, *args)
    return calls


def add_payloads() -> None:
    """Add a row for each size of bytes that go to a worker and come back."""
    for size, name, most, in_quick_run in (
        (64 * 1024, "64 kB", 0.85, False),
        (1024**2, "1 MB", 0.35, True),
        (64 * 1024**2, "64 MB", 0.4, False),
        (256 * 1024**2, "256 MB", 0.2, False),
    ):

        async def payload(stack: ExitStack, size: int = size) -> Calls:
            return process_calls(stack, same, os.urandom(size))

        limits = {ANYIO: most, PROCESS_POOL: most}
        title = f"run_in_processpool, {name} both ways"
        row(title, on_one_cpu=False, limits=limits, in_quick_run=in_quick_run)(payload)


add_payloads()


# ---- the adapter for asgiref


def keep_apart(stack: ExitStack) -> None:
    """Give asgiref a thread of its own, which it shares with the adapter otherwise."""
    adapter.SyncToAsync.single_thread_executor = adapter.SyncToAsync.single_thread_executor
    theirs: Any = asgiref.sync.SyncToAsync
    theirs.single_thread_executor = stack.enter_context(ThreadPoolExecutor(max_workers=1))


@row("adapter's sync_to_async", backends=ON_ASYNCIO, limits={ASGIREF: 0.8})
async def thread_sensitive(stack: ExitStack) -> Calls:
    keep_apart(stack)
    return {OURS: adapter.sync_to_async(nothing), ASGIREF: asgiref.sync.sync_to_async(nothing)}


@row("adapter's sync_to_async, not thread-sensitive", backends=ON_ASYNCIO, limits={ASGIREF: 1.05})
async def not_thread_sensitive(_: ExitStack) -> Calls:
    return {
        OURS: adapter.sync_to_async(nothing, thread_sensitive=False),
        ASGIREF: asgiref.sync.sync_to_async(nothing, thread_sensitive=False),
    }


@row("adapter's async_to_sync in sync_to_async", backends=ON_ASYNCIO, limits={ASGIREF: 1.0})
async def async_within_sync(stack: ExitStack) -> Calls:
    keep_apart(stack)
    return {
        OURS: adapter.sync_to_async(adapter.async_to_sync(nothing_async)),
        ASGIREF: asgiref.sync.sync_to_async(asgiref.sync.async_to_sync(nothing_async)),
    }


@row("adapter's async_to_sync", backends=("asyncio",), limits={ASGIREF: 0.3})
def async_to_sync(_: ExitStack, __: dict[str, Any]) -> SyncCalls:
    return {OURS: adapter.async_to_sync(nothing_async), ASGIREF: asgiref.sync.async_to_sync(nothing_async)}


@row("adapter's sync_to_async in async_to_sync", backends=("asyncio",), limits={ASGIREF: 1.0})
def sync_within_async(_: ExitStack, __: dict[str, Any]) -> SyncCalls:
    def calling(library: Any) -> Callable[[], object]:
        call = library.sync_to_async(nothing)

        async def outer() -> None:
            await call()

        sync: Callable[[], object] = library.async_to_sync(outer)
        return sync

    return {OURS: calling(adapter), ASGIREF: calling(asgiref.sync)}


# ---- web


@row(
    "a request to a sync endpoint, with install()",
    limits={"FastAPI alone": 1.05},
)
async def sync_endpoint(stack: ExitStack) -> Calls:
    app = FastAPI()
    app.get("/")(nothing)
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app")
    stack.callback(web_adapter.uninstall)
    installed = False

    def requesting(with_install: bool) -> Callable[[], Awaitable[object]]:
        async def call() -> None:
            nonlocal installed
            if installed is not with_install:  # in the calls to warm up, which are not measured
                installed = with_install
                (web_adapter.install if installed else web_adapter.uninstall)()
            assert (await client.get("/")).status_code == 200

        return call

    return {OURS: requesting(True), "FastAPI alone": requesting(False)}


# ---- iterators


@row("iterate_in_threadpool(prefetch=100)", units=ITEMS, quick_units=FEWER_ITEMS, limits={"Starlette": 0.05})
async def iterators(_: ExitStack) -> Calls:
    return {
        OURS: lambda: consume(iterate_in_threadpool(numbers(), prefetch=100)),
        "Starlette": lambda: consume(starlette.concurrency.iterate_in_threadpool(numbers())),
    }


def numbers() -> Iterator[int]:
    return iter(range(FEWER_ITEMS if is_quick() else ITEMS))


def consume_sync(items: Iterator[object]) -> None:
    for _ in items:
        pass


def is_quick() -> bool:
    return "UNFAZED_BENCH_QUICK" in os.environ


async def consume(items: AsyncIterator[object]) -> None:
    async for _ in items:
        pass
