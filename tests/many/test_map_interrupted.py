"""A signal handler that raises at any bytecode of a map: it ends, nothing stays taken, and no call begins after that.

`interrupting.py` says how. `test_map_interrupted_forced.py` brings about what that rarely reaches.
"""

from __future__ import annotations

import gc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import captured, wait_until, wait_until_none
from interrupting import TRACES, Steps, numbers, raise_alarm
from map_helpers import all_of, double_async

import unfazed.concurrency
from unfazed.concurrency import (
    in_threadpool,
    map_in_eventloop,
    map_in_eventloop_sync,
    map_in_executor,
    map_in_executor_sync,
    map_in_processpool,
    map_in_processpool_sync,
    map_in_threadpool,
    map_in_threadpool_sync,
    run_in_eventloop_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._core import _limits
from unfazed.concurrency._many._maprun import MapRun

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

FOLDER = str(Path(unfazed.concurrency.__file__).parent)
STEPS = 10  # about how many bytecodes of each operation are tried; arbitrary

pytestmark = [
    *TRACES,
    pytest.mark.usefixtures("background"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]

executor: ThreadPoolExecutor
ITEMS = range(4)
DOUBLES = [0, 2, 4, 6]


async def numbers_async() -> AsyncIterator[int]:
    for number in ITEMS:
        yield number


# From sync code


def in_threads() -> None:
    assert list(map_in_threadpool_sync(int, ITEMS, limit=2)) == list(ITEMS)


def in_threads_out_of_order() -> None:
    slots = in_threadpool(int, limiter=anyio.CapacityLimiter(1))
    assert sorted(slots.map.sync(ITEMS, limit=2, ordered=False)) == list(ITEMS)


def in_processes() -> None:
    assert list(map_in_processpool_sync(int, ITEMS, limit=2)) == list(ITEMS)


def in_an_executor() -> None:
    assert list(map_in_executor_sync(executor, int, ITEMS, limit=2)) == list(ITEMS)


def in_a_loop() -> None:
    assert list(map_in_eventloop_sync(double_async, ITEMS, limit=2)) == DOUBLES


def over_an_input_that_may_block() -> None:
    assert list(map_in_threadpool_sync(int, map(int, ITEMS), limit=2)) == list(ITEMS)


def closed() -> None:
    results = map_in_threadpool_sync(int, map(int, range(100)), limit=2)
    assert next(results) == 0
    results.close()


def dropped() -> None:
    for number in map_in_eventloop_sync(double_async, range(100), limit=2):
        assert number == 0
        break


def failing() -> None:
    for fail in (map_in_threadpool_sync(int, ["0", "x", "1"], limit=2), map_in_processpool_sync(int, ["x"])):
        _, error = captured(lambda fail=fail: list(fail))  # type: ignore[misc]
        if not isinstance(error, ValueError):
            assert error is not None
            raise error


FROM_SYNC_CODE = (
    in_threads,
    in_threads_out_of_order,
    in_processes,
    in_an_executor,
    in_a_loop,
    over_an_input_that_may_block,
    closed,
    dropped,
    failing,
)


# From async code


async def in_threads_async() -> None:
    assert await all_of(map_in_threadpool(int, ITEMS, limit=2)) == list(ITEMS)


async def in_processes_async() -> None:
    assert await all_of(map_in_processpool(int, ITEMS, limit=2)) == list(ITEMS)


async def in_an_executor_async() -> None:
    assert await all_of(map_in_executor(executor, int, ITEMS, limit=2)) == list(ITEMS)


async def in_a_loop_async() -> None:
    assert await all_of(map_in_eventloop(double_async, ITEMS, limit=2)) == DOUBLES


async def over_an_input_that_may_block_async() -> None:
    assert await all_of(map_in_threadpool(int, map(int, ITEMS), limit=2)) == list(ITEMS)


async def over_an_async_input() -> None:
    assert await all_of(map_in_threadpool(int, numbers_async(), limit=2)) == list(ITEMS)


async def closed_async() -> None:
    for items in (map(int, range(100)), numbers_async()):
        results = map_in_threadpool(int, items, limit=2)
        assert await anext(results) == 0
        await results.aclose()


async def dropped_async() -> None:
    async for number in map_in_eventloop(double_async, range(100), limit=2):
        assert number == 0
        break


async def cancelled_async() -> None:
    async with anyio.create_task_group() as tasks:
        async for _ in map_in_eventloop(anyio.sleep, [0, 1000], limit=2):
            tasks.cancel_scope.cancel()


FROM_ASYNC_CODE = (
    in_threads_async,
    in_processes_async,
    in_an_executor_async,
    in_a_loop_async,
    over_an_input_that_may_block_async,
    over_an_async_input,
    closed_async,
    dropped_async,
    cancelled_async,
)


def what_is_left() -> list[object]:
    """Return the maps that have not ended, and the limits that have slots taken."""
    gc.collect()
    runs = [each for each in gc.get_objects() if type(each) is MapRun and getattr(each, "_map_tasks", None)]
    taken = [each for each in list(_limits.limits.values()) if each.holders or each.queue or each.occupied]
    return [*runs, *taken]


def interrupt(operation: Callable[[], None]) -> None:
    """Do *operation* again and again, each time interrupted at another bytecode."""
    global executor
    with ThreadPoolExecutor(1) as executor:
        operation()
        for number in numbers(operation, FOLDER, STEPS):
            with Steps(raise_alarm, number, FOLDER) as steps:
                _, error = captured(operation)
            where = f"{steps.where}, number {number}"
            assert not isinstance(error, AssertionError), where
            del error
            wait_until(lambda: not what_is_left(), f"{where}: {what_is_left()}")
            assert run_in_threadpool_sync(int) == 0, where
            assert run_in_eventloop_sync(double_async, 1) == 2, where
    wait_until_none(what_is_left)


@pytest.mark.parametrize("operation", FROM_SYNC_CODE, ids=lambda operation: operation.__name__)
def test_a_signal_handler_raises_at_any_bytecode_of_a_map_in_sync_code(operation: Callable[[], None]) -> None:
    interrupt(operation)


@pytest.mark.parametrize("operation", FROM_SYNC_CODE, ids=lambda operation: operation.__name__)
def test_a_signal_handler_raises_at_any_bytecode_of_the_loop_whose_worker_maps(
    operation: Callable[[], None], anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    name, options = anyio_backend
    interrupt(lambda: anyio.run(run_in_threadpool, operation, backend=name, backend_options=options))


@pytest.mark.parametrize("operation", FROM_ASYNC_CODE, ids=lambda operation: operation.__name__)
def test_a_signal_handler_raises_at_any_bytecode_of_a_map_in_async_code(
    operation: Callable[[], Awaitable[None]], anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    name, options = anyio_backend
    interrupt(lambda: anyio.run(operation, backend=name, backend_options=options))
