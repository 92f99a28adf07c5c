"""Sync iterables in async code that is cancelled: no item is lost, and each is closed."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING

import anyio
import pytest
from conftest import Gate, captured_async, drops_at_once, let_others_run, limit_threads, wait_for_event
from iterables import BlockingCounter, Counter

from unfazed.concurrency import iterate_in_threadpool, run_in_eventloop_sync, run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import Iterator

both_ways = pytest.mark.parametrize("prefetch", [0, 3])


@pytest.mark.anyio
@both_ways
async def test_closed_in_its_thread_when_the_body_is_cancelled(prefetch: int) -> None:
    source = Counter()

    with anyio.CancelScope() as scope:
        async for _ in iterate_in_threadpool(source, prefetch=prefetch):
            scope.cancel()
            await anyio.sleep_forever()

    assert scope.cancelled_caught
    await source.check_closed_in_its_thread()


@pytest.mark.anyio
@both_ways
@pytest.mark.parametrize("at", [0, 4])
async def test_a_consumer_cancelled_in_a_step_waits_for_it_and_closes_the_iterator(prefetch: int, at: int) -> None:
    source = BlockingCounter(at)
    ended = False

    async def consume() -> None:
        nonlocal ended
        try:
            async for _ in iterate_in_threadpool(source, prefetch=prefetch):
                pass
        finally:
            ended = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await source.gate.wait_until_reached()
        await let_others_run()
        tasks.cancel_scope.cancel()
        await let_others_run()
        assert not ended
        source.gate.opened.set()

    assert ended
    assert source.given == at + 1
    await source.check_closed_in_its_thread()


@drops_at_once
@pytest.mark.anyio
@both_ways
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_consumer_cancelled_by_asyncio_twice_waits_for_its_step_and_closes_the_iterator(prefetch: int) -> None:
    source = BlockingCounter(0)

    async def consume() -> None:
        async for _ in iterate_in_threadpool(source, prefetch=prefetch):
            pytest.fail("cancelled before the first item")

    task = asyncio.create_task(consume())
    await source.gate.wait_until_reached()
    await let_others_run()
    for _ in range(2):
        task.cancel()
        await let_others_run()
        assert not task.done()
    source.gate.opened.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    await source.check_closed_in_its_thread()


@pytest.mark.anyio
@both_ways
async def test_the_item_of_a_cancelled_step_is_delivered_next(prefetch: int) -> None:
    source = BlockingCounter(1)
    items = iterate_in_threadpool(source, prefetch=prefetch)

    async with anyio.create_task_group() as tasks:
        assert await anext(items) == 0
        tasks.start_soon(anext, items)
        await source.gate.wait_until_reached()
        await let_others_run()
        tasks.cancel_scope.cancel()
        await let_others_run()
        source.gate.opened.set()

    assert [await anext(items) for _ in range(5)] == [1, 2, 3, 4, 5]
    await items.aclose()
    await source.check_closed_in_its_thread()


@pytest.mark.anyio
@both_ways
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_the_item_of_a_step_cancelled_by_wait_for_is_delivered_next(prefetch: int) -> None:
    source = BlockingCounter(0)
    items = iterate_in_threadpool(source, prefetch=prefetch)

    task = asyncio.create_task(captured_async(partial(anext, items)))
    await source.gate.wait_until_reached()
    await let_others_run()
    task.cancel()
    await let_others_run()
    source.gate.opened.set()

    assert isinstance((await task)[1], asyncio.CancelledError)
    assert await anext(items) == 0
    await items.aclose()


@pytest.mark.anyio
@both_ways
async def test_a_step_that_is_cancelled_before_it_gets_a_slot_fetches_nothing(prefetch: int) -> None:
    limit_threads(1)
    gate = Gate()
    source = Counter()
    items = iterate_in_threadpool(source, prefetch=prefetch)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, gate.wait)
        await gate.wait_until_reached()
        async with anyio.create_task_group() as steps:
            steps.start_soon(anext, items)
            await let_others_run()
            steps.cancel_scope.cancel()
        assert source.given == 0
        gate.opened.set()

    assert await anext(items) == 0
    await items.aclose()


@pytest.mark.anyio
@both_ways
async def test_a_step_that_waits_for_a_slot_ends_when_another_task_closes_the_iterator(prefetch: int) -> None:
    limit_threads(1)
    gate = Gate()
    items = iterate_in_threadpool(Counter(), prefetch=prefetch)
    errors: list[BaseException | None] = []

    async def step() -> None:
        errors.append((await captured_async(partial(anext, items)))[1])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, gate.wait)
        await gate.wait_until_reached()
        tasks.start_soon(step)
        await let_others_run()
        await items.aclose()
        gate.opened.set()

    assert [type(error) for error in errors] == [StopAsyncIteration]


@pytest.mark.anyio
@both_ways
async def test_what_a_source_waits_for_is_cancelled_with_the_consumer(prefetch: int) -> None:
    sleeping = threading.Event()
    ended = threading.Event()
    errors: list[str] = []

    async def sleep() -> None:
        sleeping.set()
        await anyio.sleep_forever()

    def generator() -> Iterator[int]:
        try:
            run_in_eventloop_sync(sleep)
            yield 1
        except BaseException as exc:
            errors.append(type(exc).__name__)
            raise
        finally:
            ended.set()

    async def consume() -> None:
        async for _ in iterate_in_threadpool(generator(), prefetch=prefetch):
            pytest.fail("cancelled before the first item")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(consume)
        await wait_for_event(sleeping)
        tasks.cancel_scope.cancel()

    assert ended.is_set()
    assert errors[0].startswith("Cancelled")
