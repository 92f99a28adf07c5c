"""How cost grows: calls in a second, against how many call at once, and against how many may run at once."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING

import anyio
import anyio.from_thread
import anyio.to_thread

from unfazed.concurrency import in_threadpool, run_in_threadpool, run_in_threadpool_sync

from ._rows import nothing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Curve = list[tuple[int, float]]

CALLERS = (1, 3, 10, 30, 100, 300, 1_000)
LIMITS = (1, 3, 10, 30, 100, 300, 1_000)
CALLS = 2_000  # by all callers together
ROUNDS = 5
OURS = "run_in_threadpool"
OURS_SYNC = "run_in_threadpool_sync"


def against_callers() -> dict[str, Curve]:
    """Return how many calls a second there are, for how many callers, with the default limit."""
    curves: dict[str, Curve] = {OURS: [], "anyio": [], "asyncio.to_thread": [], OURS_SYNC: [], "anyio portal": []}
    for callers in CALLERS:
        calls = CALLS // callers * callers
        found = asyncio.run(_async_rates(callers, calls))
        with anyio.from_thread.start_blocking_portal() as portal:
            found[OURS_SYNC] = _sync_rate(callers, calls, lambda: run_in_threadpool_sync(nothing))
            found["anyio portal"] = _sync_rate(callers, calls, lambda: portal.call(anyio.to_thread.run_sync, nothing))
        for name, rate in found.items():
            curves[name].append((callers, rate))
    return curves


async def _async_rates(callers: int, calls: int) -> dict[str, float]:
    return {
        OURS: await _rate(callers, calls, lambda: run_in_threadpool(nothing)),
        "anyio": await _rate(callers, calls, lambda: anyio.to_thread.run_sync(nothing)),
        "asyncio.to_thread": await _rate(callers, calls, lambda: asyncio.to_thread(nothing)),
    }


async def _rate(callers: int, calls: int, call: Callable[[], Awaitable[object]]) -> float:
    async def some(count: int) -> None:
        for _ in range(count):
            await call()

    async def once() -> float:
        start = perf_counter()
        async with anyio.create_task_group() as tasks:
            for _ in range(callers):
                tasks.start_soon(some, calls // callers)
        return calls / (perf_counter() - start)

    await once()
    return median([await once() for _ in range(ROUNDS)])


def _sync_rate(callers: int, calls: int, call: Callable[[], object]) -> float:
    barrier = threading.Barrier(callers + 1)

    def some() -> None:
        barrier.wait()
        for _ in range(calls // callers):
            call()

    def once() -> float:
        done = [threads.submit(some) for _ in range(callers)]
        barrier.wait()
        start = perf_counter()
        for each in done:
            each.result()
        return calls / (perf_counter() - start)

    with ThreadPoolExecutor(callers) as threads:
        once()
        return median(once() for _ in range(ROUNDS))


def against_limits() -> dict[str, Curve]:
    """Return how many calls a second there are of 1,000 callers, for how many may run at once."""
    return asyncio.run(_against_limits())


async def _against_limits() -> dict[str, Curve]:
    curves: dict[str, Curve] = {OURS: [], "anyio": []}
    for limit in LIMITS:
        ours = in_threadpool(nothing, limiter=anyio.CapacityLimiter(limit))
        curves[OURS].append((limit, await _rate(1_000, CALLS, ours)))
        limited = partial(anyio.to_thread.run_sync, nothing, limiter=anyio.CapacityLimiter(limit))
        curves["anyio"].append((limit, await _rate(1_000, CALLS, limited)))
    return curves
