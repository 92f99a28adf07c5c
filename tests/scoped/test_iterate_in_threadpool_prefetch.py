"""Sync iterables in async code: what is fetched ahead."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from conftest import Gate, captured_async, drop_garbage, let_others_run, limit_threads, wait_for_event
from iterables import BlockingCounter, Counter

from unfazed.concurrency import LoopEndedError, iterate_in_threadpool, run_in_threadpool
from unfazed.concurrency._scoped import _feed

if TYPE_CHECKING:
    from collections.abc import Iterator

both_ways = pytest.mark.parametrize("prefetch", [0, 3])


@pytest.mark.anyio
async def test_dropped_while_it_fetches_ahead_it_is_closed_after_that_item() -> None:
    source = BlockingCounter(2)
    items = iterate_in_threadpool(source, prefetch=3)
    assert await anext(items) == 0
    await source.gate.wait_until_reached()

    del items
    drop_garbage()
    source.gate.opened.set()

    await source.check_closed_in_its_thread()
    assert source.given == 3


@pytest.mark.anyio
async def test_dropped_while_it_waits_for_a_slot_to_fetch_ahead_it_is_closed_at_once() -> None:
    limit_threads(1)
    gate = Gate()
    source = Counter()
    items = iterate_in_threadpool(source, prefetch=2)
    assert await anext(items) == 0

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, gate.wait)
        await gate.wait_until_reached()
        while source.given - 1 > 0 and items._feed._items:
            await anext(items)
        await let_others_run()
        del items
        await source.check_closed_in_its_thread()
        gate.opened.set()


@both_ways
def test_a_loop_that_cancels_our_task_before_it_has_begun_is_an_error(prefetch: int) -> None:
    """Only asyncio does that."""

    async def main() -> None:
        items = iterate_in_threadpool(Counter(), prefetch=prefetch)
        others = asyncio.all_tasks()
        step = asyncio.ensure_future(captured_async(items.__anext__))
        while not (ours := asyncio.all_tasks() - others - {step}):
            await asyncio.sleep(0)
        for task in ours:
            task.cancel()
        _, error = await step

        assert isinstance(error, LoopEndedError)

    asyncio.run(main())


@pytest.mark.anyio
async def test_a_loop_that_cancels_our_task_while_it_fetches_ahead_is_an_error() -> None:
    gate = Gate()
    limit_threads(1)
    items = iterate_in_threadpool(Counter(), prefetch=1)
    results: list[Any] = []

    async def step() -> None:
        results.append(await captured_async(items.__anext__))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, gate.wait)
        await gate.wait_until_reached()
        tasks.start_soon(step)
        await let_others_run()  # until it waits for the slot
        assert items._feed._fetching is not None
        assert items._feed._fetching._abort is not None
        items._feed._fetching._abort()  # as the end of the loop does
        await let_others_run()
        gate.opened.set()

    ((_, error),) = results
    assert isinstance(error, LoopEndedError)
    assert isinstance(error.__cause__, anyio.get_cancelled_exc_class())


def test_a_consumer_that_is_cancelled_as_the_fetching_ends_is_cancelled() -> None:
    """Only asyncio can cancel a task that was already woken."""

    async def main() -> None:
        gate = Gate()
        limit_threads(1)
        items = iterate_in_threadpool(Counter(), prefetch=1)
        blocking = asyncio.ensure_future(run_in_threadpool(gate.wait))
        await gate.wait_until_reached()
        step = asyncio.ensure_future(items.__anext__())
        await let_others_run()
        assert items._feed._fetching is not None
        assert items._feed._fetching._abort is not None
        items._feed._fetching._abort()
        while items._feed._fetching is not None:
            await asyncio.sleep(0)
        step.cancel()
        gate.opened.set()
        await blocking

        with pytest.raises(asyncio.CancelledError):
            await step
        await items.aclose()

    asyncio.run(main())


@pytest.mark.anyio
async def test_without_prefetch_the_source_is_not_advanced_before_it_is_asked() -> None:
    source = Counter()
    items = iterate_in_threadpool(source)
    advanced = [source.given]

    for _ in range(3):
        await anext(items)
        await run_in_threadpool(int)  # so that whatever was to run could have run
        await let_others_run()
        advanced.append(source.given)

    assert advanced == [0, 1, 2, 3]
    await items.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize("prefetch", [1, 2, 7])
async def test_prefetch_never_fetches_more_than_that_many_ahead(prefetch: int) -> None:
    delivered = 0
    excess: list[int] = []

    def generator() -> Iterator[int]:
        for number in range(200):
            if number - delivered > prefetch:  # one is about to be delivered, beyond which N may be fetched
                excess.append(number)
            yield number

    async for _ in iterate_in_threadpool(generator(), prefetch=prefetch):
        delivered += 1
        await anyio.lowlevel.checkpoint()

    assert delivered == 200
    assert not excess


@pytest.mark.anyio
async def test_prefetch_fetches_before_it_is_asked() -> None:
    filled = threading.Event()

    def generator() -> Iterator[int]:
        for number in range(100):
            if number == 2:
                filled.set()
            yield number

    items = iterate_in_threadpool(generator(), prefetch=3)
    assert await anext(items) == 0
    await wait_for_event(filled)

    await items.aclose()


@pytest.mark.anyio
async def test_prefetch_delivers_what_there_is_without_waiting_for_a_full_batch() -> None:
    source = BlockingCounter(2)
    items = iterate_in_threadpool(source, prefetch=50)

    delivered = [await anext(items), await anext(items)]
    source.gate.opened.set()

    assert delivered == [0, 1]
    await items.aclose()


@pytest.mark.anyio
async def test_an_item_that_comes_while_the_consumer_is_about_to_wait_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: the consumer has found nothing. 2: an item comes. 3: only now does the consumer look whether to wait."""
    fetch_ahead = _feed.Feed._fetch_ahead
    stale: list[Any] = []

    def fetch_ahead_and_let_it_come(feed: Any) -> None:
        fetch_ahead(feed)
        if not feed._items and not stale:
            stale.append(True)
            feed._items.append("came in between")

    monkeypatch.setattr(_feed.Feed, "_fetch_ahead", fetch_ahead_and_let_it_come)
    items: Any = iterate_in_threadpool(Counter(2), prefetch=3)

    assert await anext(items) == "came in between"
    assert [item async for item in items] == [0, 1]
