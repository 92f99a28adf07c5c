"""How cost grows: calls in a second, against how many call at once, and against how many may run at once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, TypeVar

import anyio
import anyio.from_thread
import anyio.to_thread

from unfazed.concurrency import in_threadpool, run_in_threadpool, run_in_threadpool_sync

from ._rows import nothing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    Curve = list[tuple[int, float]]

T = TypeVar("T")

CALLERS = (1, 3, 10, 30, 100, 300, 1_000)
LIMITS = (1, 3, 10, 30, 100, 300, 1_000)
CALLS = 2_000  # by all callers together
ROUNDS = 5
OURS = "run_in_threadpool"
OURS_SYNC = "run_in_threadpool_sync"


def against_callers() -> dict[str, Curve]:
    """Return how many calls a second there are, for how many callers, with the default limit."""
    curves: dict[str, Curve] = {}
    for callers in CALLERS:
        calls = CALLS // callers * callers
        found = asyncio.run(
            _async_rates(
                callers,
                calls,
                {
                    OURS: lambda: run_in_threadpool(nothing),
                    "anyio": lambda: anyio.to_thread.run_sync(nothing),
                    "asyncio.to_thread": lambda: asyncio.to_thread(nothing),
                },
            )
        )
        with anyio.from_thread.start_blocking_portal() as portal:
            found |= _sync_rates(
                callers,
                calls,
                {
                    OURS_SYNC: lambda: run_in_threadpool_sync(nothing),
                    "anyio portal": lambda: portal.call(anyio.to_thread.run_sync, nothing),
                },
            )
        _add(curves, callers, found)
    return curves


def against_limits() -> dict[str, Curve]:
    """Return how many calls a second there are of 1,000 callers, for how many may run at once."""
    return asyncio.run(_against_limits())


async def _against_limits() -> dict[str, Curve]:
    curves: dict[str, Curve] = {}
    for limit in LIMITS:
        limited: dict[str, Callable[[], Awaitable[object]]] = {
            OURS: in_threadpool(nothing, limiter=anyio.CapacityLimiter(limit)),
            "anyio": partial(anyio.to_thread.run_sync, nothing, limiter=anyio.CapacityLimiter(limit)),
        }
        _add(curves, limit, await _async_rates(1_000, CALLS, limited))
    return curves


def _add(curves: dict[str, Curve], number: int, rates: Mapping[str, float]) -> None:
    for name, rate in rates.items():
        curves.setdefault(name, []).append((number, rate))


async def _async_rates(
    callers: int, calls: int, contenders: Mapping[str, Callable[[], Awaitable[object]]]
) -> dict[str, float]:
    async def some(call: Callable[[], Awaitable[object]]) -> None:
        for _ in range(calls // callers):
            await call()

    async def once(call: Callable[[], Awaitable[object]]) -> float:
        start = perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(callers):
                tasks.start_soon(some, call)
        return calls / (perf_counter() - start)

    return await _in_turn(contenders, once)


def _sync_rates(callers: int, calls: int, contenders: Mapping[str, Callable[[], object]]) -> dict[str, float]:
    barrier = threading.Barrier(callers + 1)

    def some(call: Callable[[], object]) -> None:
        barrier.wait()
        for _ in range(calls // callers):
            call()

    async def once(call: Callable[[], object]) -> float:
        done = [threads.submit(some, call) for _ in range(callers)]
        barrier.wait()
        start = perf_counter()
        for each in done:
            each.result()
        return calls / (perf_counter() - start)

    with ThreadPoolExecutor(callers) as threads:
        return asyncio.run(_in_turn(contenders, once))


async def _in_turn(contenders: Mapping[str, T], once: Callable[[T], Awaitable[float]]) -> dict[str, float]:
    """Return the median rate of each, all measured in turn, as the rows of the table."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(1 + ROUNDS):
        for name, call in contenders.items():
            rate = await once(call)
            if number:  # the first time, threads start
                rates[name].append(rate)
    return {name: median(found) for name, found in rates.items()}
