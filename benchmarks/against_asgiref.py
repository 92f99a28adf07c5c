"""The adapter for asgiref against asgiref itself: each call in batches of about 6 ms, ours and theirs in turn.

    python benchmarks/against_asgiref.py [rounds]

Shown are the microseconds of one call, as the median of the batches, and the median of the ratios of the two batches
of each round: which hardly depends on what else the machine does.
"""

from __future__ import annotations

import asyncio
import platform
import sys
from concurrent.futures import ThreadPoolExecutor
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any

import asgiref
import asgiref.sync as theirs
import unfazed_compat.asgiref as ours

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    Batch = Callable[[int], float]  # makes so many calls, and returns how many seconds they took

BATCH_SECONDS = 0.006
WARM_UP_CALLS = 20


def nothing() -> None:
    """Return at once."""


async def nothing_async() -> None:
    """Return at once."""


def sync_batch(call: Callable[[], object]) -> Batch:
    def batch(count: int) -> float:
        start = perf_counter()
        for _ in range(count):
            call()
        return perf_counter() - start

    return batch


def async_batch(loop: asyncio.AbstractEventLoop, call: Callable[[], Awaitable[object]]) -> Batch:
    async def batch(count: int) -> float:
        start = perf_counter()
        for _ in range(count):
            await call()
        return perf_counter() - start

    return lambda count: loop.run_until_complete(batch(count))


def thread_sensitive(library: Any, loop: asyncio.AbstractEventLoop) -> Batch:
    return async_batch(loop, library.sync_to_async(nothing))


def not_thread_sensitive(library: Any, loop: asyncio.AbstractEventLoop) -> Batch:
    return async_batch(loop, library.sync_to_async(nothing, thread_sensitive=False))


def async_from_sync(library: Any, _loop: asyncio.AbstractEventLoop) -> Batch:
    return sync_batch(library.async_to_sync(nothing_async))


def async_within_sync_within_async(library: Any, loop: asyncio.AbstractEventLoop) -> Batch:
    return async_batch(loop, library.sync_to_async(library.async_to_sync(nothing_async)))


def sync_within_async_within_sync(library: Any, _loop: asyncio.AbstractEventLoop) -> Batch:
    call = library.sync_to_async(nothing)

    async def outer() -> None:
        await call()

    return sync_batch(library.async_to_sync(outer))


CASES = {  # and the most that ours may take of their time
    "sync_to_async, thread-sensitive": (thread_sensitive, 0.8),
    "sync_to_async, not thread-sensitive": (not_thread_sensitive, 1.05),
    "async_to_sync, plain sync code": (async_from_sync, 0.2),
    "async_to_sync in sync_to_async": (async_within_sync_within_async, 1.0),
    "sync_to_async in async_to_sync": (sync_within_async_within_sync, 1.0),
}


def compare(ours: Batch, theirs: Batch, rounds: int) -> tuple[float, float, float]:
    """Return the seconds of our call and of theirs, and the ratio."""
    counts = [max(1, int(BATCH_SECONDS / (batch(WARM_UP_CALLS) / WARM_UP_CALLS))) for batch in (ours, theirs)]
    pairs = [(ours(counts[0]) / counts[0], theirs(counts[1]) / counts[1]) for _ in range(rounds)]
    return median(a for a, _ in pairs), median(b for _, b in pairs), median(a / b for a, b in pairs)


def keep_apart(loop: asyncio.AbstractEventLoop) -> None:
    """Give each library the executor of its own, which they share otherwise."""
    loop.run_until_complete(ours.sync_to_async(nothing)())
    ours.SyncToAsync.single_thread_executor = ours.SyncToAsync.single_thread_executor
    theirs.SyncToAsync.single_thread_executor = ThreadPoolExecutor(max_workers=1)


def main() -> None:
    """Compare all cases."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    loop = asyncio.new_event_loop()
    keep_apart(loop)
    print(f"Python {platform.python_version()}, asgiref {asgiref.__version__}, {rounds} rounds")
    print(f"{'':38}{'ours':>8}{'theirs':>9}{'ratio':>8}{'at most':>9}")
    for name, (case, most) in CASES.items():
        our_time, their_time, ratio = compare(case(ours, loop), case(theirs, loop), rounds)
        print(f"{name:38}{our_time * 1e6:8.1f}{their_time * 1e6:9.1f}{ratio:8.3f}{most:9.2f}")
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()


if __name__ == "__main__":
    main()
