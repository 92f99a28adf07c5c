"""What is measured of many calls at once: maps against pools, and against a semaphore and a task group.

`ROWS` has these rows after those of `_rows_scoped.py`.
"""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from unfazed.concurrency import map_in_processpool_sync, map_in_threadpool

from ._measure import OURS
from ._rows import FEWER_ITEMS, ITEMS, PROCESS_POOL, consume, consume_sync, is_quick, numbers, row, same
from ._rows_scoped import ROWS as ROWS

if TYPE_CHECKING:
    from contextlib import ExitStack

    from ._rows import Calls, SyncCalls

MAPPED = 10_000
FEWER_MAPPED = 500  # in a quick run
FEW_ITEMS = 5_000
BY_HAND = "semaphore and task group"
CHUNKS = (5_000, 10_000, 25_000)  # the best of them is shown


@row("map_in_threadpool, 10,000 items", units=MAPPED, quick_units=FEWER_MAPPED, limits={BY_HAND: 1.0})
async def many_threads(_: ExitStack) -> Calls:
    items = range(FEWER_MAPPED if is_quick() else MAPPED)

    async def by_hand() -> None:
        semaphore = anyio.Semaphore(40)
        results: list[Any] = [None] * len(items)

        async def call(number: int) -> None:
            async with semaphore:
                results[number] = await anyio.to_thread.run_sync(same, number)

        async with anyio.create_task_group() as tasks:
            for number in items:
                tasks.start_soon(call, number)

    return {OURS: lambda: consume(map_in_threadpool(same, items)), BY_HAND: by_hand}


@row(
    "map_in_processpool_sync, 100,000 tiny items",
    units=ITEMS,
    quick_units=FEWER_ITEMS,
    on_one_cpu=False,
    backends=("asyncio",),
    limits={f"Pool.imap, chunksize={chunk}": 1.1 for chunk in CHUNKS},
)
def many_processes_sync(stack: ExitStack, _: dict[str, Any]) -> SyncCalls:
    pool = stack.enter_context(multiprocessing.get_context("spawn").Pool())
    calls: SyncCalls = {OURS: lambda: consume_sync(map_in_processpool_sync(same, numbers()))}
    for chunk in CHUNKS:
        calls[f"Pool.imap, chunksize={chunk}"] = partial(consume_pool, pool, chunk)
    return calls


@row(
    "map_in_processpool_sync, 5,000 tiny items",  # a call for each item, so one round of 100,000 would take ten seconds
    units=FEW_ITEMS,
    quick_units=FEW_ITEMS,
    on_one_cpu=False,
    backends=("asyncio",),
    limits={f"{PROCESS_POOL}.map": 0.05},
)
def several_processes_sync(stack: ExitStack, _: dict[str, Any]) -> SyncCalls:
    executor = stack.enter_context(ProcessPoolExecutor())
    return {
        OURS: lambda: consume_sync(map_in_processpool_sync(same, range(FEW_ITEMS))),
        f"{PROCESS_POOL}.map": lambda: consume_sync(executor.map(same, range(FEW_ITEMS))),
    }


def consume_pool(pool: Any, chunk: int) -> None:
    consume_sync(pool.imap(same, numbers(), chunk))
