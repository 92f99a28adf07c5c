"""Iterators across the border, in both directions."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import traceback
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from conftest import (
    GRACE_SECONDS,
    Caller,
    Gate,
    captured,
    captured_async,
    drop_garbage,
    drops_at_once,
    end_background_eventloop,
    in_plain_thread,
    let_others_run,
    limit_threads,
    seen,
    wait_until,
)

from unfazed.concurrency import (
    EventLoopThread,
    InUseError,
    LoopEndedError,
    LoopStateError,
    LoopThreadError,
    WrongFunctionError,
    WrongOptionError,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
    run_in_eventloop_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._scoped import _feed, _threaditerators, _threadrunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

both_ways = pytest.mark.parametrize("prefetch", [0, 3])


class Counter:
    """Counts, and notes how far it has come, and in which threads and how often it was used and closed."""

    def __init__(self, end: int = 1000) -> None:
        self.end = end
        self.given = 0
        self.threads: set[int] = set()
        self.times_closed = 0
        self.closed = threading.Event()

    def __iter__(self) -> Counter:
        return self

    def __next__(self) -> int:
        self.threads.add(threading.get_ident())
        if self.given == self.end:
            raise StopIteration
        self.given += 1
        return self.given - 1

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.times_closed += 1
        self.closed.set()

    async def check_closed_in_its_thread(self) -> None:
        drop_garbage()
        await seen(self.closed)
        assert self.times_closed == 1
        assert len(self.threads) == 1
        assert threading.get_ident() not in self.threads


# A sync iterable, from async code


@pytest.mark.anyio
@both_ways
async def test_all_items_come_in_order(prefetch: int) -> None:
    assert [item async for item in iterate_in_threadpool(range(500), prefetch=prefetch)] == list(range(500))


@pytest.mark.anyio
async def test_an_iterable_that_has_only_getitem_is_iterated_over() -> None:
    class Letters:
        def __getitem__(self, index: int) -> str:
            return "abc"[index]

    letters: Any = Letters()

    assert [item async for item in iterate_in_threadpool(letters)] == ["a", "b", "c"]


@pytest.mark.anyio
@both_ways
async def test_one_thread_and_one_context_serve_the_whole_iteration(prefetch: int) -> None:
    threads: set[int] = set()

    def generator() -> Iterator[str]:
        token = variable.set("inside")
        for _ in range(10):
            threads.add(threading.get_ident())
            yield variable.get()
        threads.add(threading.get_ident())
        variable.reset(token)
        yield variable.get()

    variable.set("the caller's")
    items = [item async for item in iterate_in_threadpool(generator(), prefetch=prefetch)]

    assert items == ["inside"] * 10 + ["the caller's"]
    assert variable.get() == "the caller's"
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.anyio
@both_ways
async def test_the_context_is_that_of_the_first_step(prefetch: int) -> None:
    def generator() -> Iterator[str]:
        yield variable.get()
        yield variable.get()

    items = iterate_in_threadpool(generator(), prefetch=prefetch)
    variable.set("first step")
    first = await anext(items)
    variable.set("later")

    assert (first, [item async for item in items]) == ("first step", ["first step"])


@pytest.mark.anyio
@both_ways
async def test_a_generator_that_is_left_early_resets_its_token_in_its_thread(prefetch: int) -> None:
    ended = threading.Event()
    results: list[object] = []

    def generator() -> Iterator[int]:
        token = variable.set("inside")
        try:
            yield threading.get_ident()
            yield 1
        finally:
            results.append(captured(partial(variable.reset, token))[1])
            results.append(threading.get_ident())
            ended.set()

    async for item in iterate_in_threadpool(generator(), prefetch=prefetch):
        thread = item
        break
    drop_garbage()
    await seen(ended)

    assert results == [None, thread]


@pytest.mark.anyio
@both_ways
async def test_closed_in_its_thread_after_break(prefetch: int) -> None:
    source = Counter()

    async for item in iterate_in_threadpool(source, prefetch=prefetch):
        if item == 5:
            break

    await source.check_closed_in_its_thread()


@pytest.mark.anyio
@both_ways
async def test_closed_in_its_thread_after_an_exception_in_the_body(prefetch: int) -> None:
    source = Counter()

    async def body() -> None:
        async for _ in iterate_in_threadpool(source, prefetch=prefetch):
            raise ValueError("body")

    with pytest.raises(ValueError, match="body"):
        await body()

    await source.check_closed_in_its_thread()


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


class BlockingCounter(Counter):
    """Blocks before one of its items."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.gate = Gate()

    def __next__(self) -> int:
        if self.given == self.at:
            self.gate.wait()
        return super().__next__()


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
async def test_aclose_closes_the_iterator_and_waits_for_that(prefetch: int) -> None:
    source = Counter()
    items = iterate_in_threadpool(source, prefetch=prefetch)
    await anext(items)

    await items.aclose()

    assert source.closed.is_set()
    await source.check_closed_in_its_thread()
    assert len([item async for item in items]) < prefetch or prefetch == 0  # what was there already is delivered


@pytest.mark.anyio
async def test_aclose_of_an_iterator_that_was_never_begun_or_is_closed_or_over_does_nothing() -> None:
    begun, over, never = Counter(), Counter(1), Counter()
    items = iterate_in_threadpool(begun)
    await anext(items)
    for iterator in (items, items, iterate_in_threadpool(never)):
        await iterator.aclose()
    items = iterate_in_threadpool(over)
    assert [item async for item in items] == [0]
    await items.aclose()

    assert (begun.times_closed, over.times_closed, never.times_closed) == (1, 0, 0)


@pytest.mark.anyio
@both_ways
async def test_aclosing_closes_the_iterator_before_it_goes_on(prefetch: int) -> None:
    source = Counter()

    async with aclosing(iterate_in_threadpool(source, prefetch=prefetch)) as items:
        async for _ in items:
            break

    assert source.closed.is_set()


@pytest.mark.anyio
@both_ways
async def test_aclose_raises_what_closing_raised(prefetch: int) -> None:
    class Failing(Counter):
        def close(self) -> None:
            raise ValueError("closing")

    items = iterate_in_threadpool(Failing(), prefetch=prefetch)
    await anext(items)

    with pytest.raises(ValueError, match="closing"):
        await items.aclose()


@pytest.mark.anyio
async def test_aclose_raises_what_closing_raised_however_fast_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: the runner is left. 2: its thread has ended. 3: only now does the loop get round to waiting for that."""
    leave = _threadrunner.ThreadRunner.leave

    class Failing(Counter):
        def close(self) -> None:
            raise ValueError("closing")

    def leave_and_let_it_end(runner: _threadrunner.ThreadRunner[Any]) -> None:
        leave(runner)
        wait_until(lambda: runner._outcome is not None, "the thread ends")

    monkeypatch.setattr(_threadrunner.ThreadRunner, "leave", leave_and_let_it_end)
    items = iterate_in_threadpool(Failing())
    await anext(items)

    with pytest.raises(ValueError, match="closing"):
        await items.aclose()


@pytest.mark.anyio
@both_ways
async def test_aclose_that_is_cancelled_waits_all_the_same(prefetch: int) -> None:
    gate = Gate()

    class SlowToClose(Counter):
        def close(self) -> None:
            gate.wait()
            super().close()

    source = SlowToClose()
    items = iterate_in_threadpool(source, prefetch=prefetch)
    await anext(items)
    closed_when_raised: list[bool] = []

    async def close() -> None:
        try:
            await items.aclose()
        except anyio.get_cancelled_exc_class():
            closed_when_raised.append(source.closed.is_set())
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close)
        await gate.wait_until_reached()
        tasks.cancel_scope.cancel()
        await let_others_run()
        gate.opened.set()

    assert closed_when_raised == [True]


@pytest.mark.anyio
@both_ways
async def test_closing_waits_for_no_slot(prefetch: int) -> None:
    limit_threads(1)
    gate = Gate()
    source = Counter()
    items = iterate_in_threadpool(source, prefetch=prefetch)
    await anext(items)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, gate.wait)
        await gate.wait_until_reached()
        await items.aclose()
        gate.opened.set()

    await source.check_closed_in_its_thread()


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
    """Only asyncio cancels who has been woken."""

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


def test_an_iterator_that_could_not_be_made_is_dropped_in_silence() -> None:
    with pytest.raises(TypeError):
        _threaditerators.ThreadpoolIterator()  # type: ignore[call-arg]


@pytest.mark.anyio
@both_ways
async def test_dropped_in_another_thread_it_is_closed_in_its_own(prefetch: int) -> None:
    source = Counter()
    holder = [iterate_in_threadpool(source, prefetch=prefetch)]
    await anext(holder[0])

    await anyio.to_thread.run_sync(in_plain_thread, holder.clear)

    await source.check_closed_in_its_thread()


@pytest.mark.anyio
@both_ways
async def test_an_iterator_that_was_never_begun_starts_nothing_and_is_not_closed(prefetch: int) -> None:
    source = Counter()

    iterate_in_threadpool(source, prefetch=prefetch)

    assert (source.given, source.times_closed) == (0, 0)


@pytest.mark.anyio
@both_ways
async def test_exceptions_come_with_their_traceback_after_the_items_before_them(prefetch: int) -> None:
    error = ValueError("no")

    def fail() -> Iterator[int]:
        yield 1
        yield 2
        raise error

    items: list[int] = []

    async def consume() -> None:
        async for item in iterate_in_threadpool(fail(), prefetch=prefetch):
            items.append(item)

    with pytest.raises(ValueError, match="no") as caught:
        await consume()

    assert items == [1, 2]
    assert caught.value is error
    assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"


@pytest.mark.anyio
@both_ways
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=repr)
async def test_exceptions_that_end_programs_reach_the_consumer_alone(prefetch: int, error: BaseException) -> None:
    class Failing(Counter):
        def __next__(self) -> int:
            raise error

    caught = await captured_async(partial(anext, iterate_in_threadpool(Failing(), prefetch=prefetch)))

    assert caught == (None, error)
    assert await run_in_threadpool(int) == 0


@pytest.mark.anyio
@both_ways
async def test_after_an_error_the_iteration_is_over(prefetch: int) -> None:
    class Failing(Counter):
        def __next__(self) -> int:
            raise ValueError("no")

    source = Failing()
    items = iterate_in_threadpool(source, prefetch=prefetch)
    with pytest.raises(ValueError, match="no"):
        await anext(items)

    with pytest.raises(StopAsyncIteration):
        await anext(items)
    await items.aclose()
    assert source.times_closed == 1


@pytest.mark.anyio
@both_ways
async def test_stop_iteration_raised_by_iter_is_a_runtime_error(prefetch: int) -> None:
    class Failing(Counter):
        def __iter__(self) -> Counter:
            raise StopIteration

    with pytest.raises(RuntimeError) as caught:
        await anext(iterate_in_threadpool(Failing(), prefetch=prefetch))

    assert isinstance(caught.value.__cause__, StopIteration)


@pytest.mark.anyio
@both_ways
async def test_stop_async_iteration_raised_by_next_is_a_runtime_error(prefetch: int) -> None:
    class Failing(Counter):
        def __next__(self) -> int:
            raise StopAsyncIteration

    with pytest.raises(RuntimeError, match="StopAsyncIteration") as caught:
        await anext(iterate_in_threadpool(Failing(), prefetch=prefetch))

    assert isinstance(caught.value.__cause__, StopAsyncIteration)


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
    await seen(filled)

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


@pytest.mark.anyio
@both_ways
@pytest.mark.parametrize("total", [1, 2])
async def test_a_hundred_open_iterators_hold_no_slots_and_all_finish(prefetch: int, total: int) -> None:
    limit_threads(total)
    iterators = [iterate_in_threadpool(range(5), prefetch=prefetch) for _ in range(100)]
    sums = [0] * 100

    async def consume(index: int) -> None:
        async for item in iterators[index]:
            sums[index] += item

    for iterator in iterators:
        assert await anext(iterator) == 0
    assert await run_in_threadpool(int) == 0
    async with anyio.create_task_group() as tasks:
        for index in range(100):
            tasks.start_soon(consume, index)

    assert sums == [10] * 100


@pytest.mark.anyio
@both_ways
async def test_no_more_iterators_fetch_at_once_than_there_are_slots(prefetch: int) -> None:
    limit_threads(2)
    running: list[int] = []
    most = 0
    lock = threading.Lock()

    def generator() -> Iterator[int]:
        nonlocal most
        for number in range(5):
            with lock:
                running.append(number)
                most = max(most, len(running))
            with lock:
                running.pop()
            yield number

    async def consume() -> None:
        async for _ in iterate_in_threadpool(generator(), prefetch=prefetch):
            pass

    async with anyio.create_task_group() as tasks:
        for _ in range(20):
            tasks.start_soon(consume)

    assert 1 <= most <= 2


@pytest.mark.anyio
@both_ways
async def test_a_second_task_at_the_same_time_is_refused(prefetch: int) -> None:
    source = BlockingCounter(0)
    items = iterate_in_threadpool(source, prefetch=prefetch)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anext, items)
        await source.gate.wait_until_reached()
        with pytest.raises(InUseError, match="another task"):
            await anext(items)
        source.gate.opened.set()

    assert await anext(items) == 1
    await items.aclose()


@pytest.mark.anyio
@both_ways
async def test_tasks_may_take_turns(prefetch: int) -> None:
    items = iterate_in_threadpool(range(3), prefetch=prefetch)
    seen_items: list[int] = []

    async def step() -> None:
        seen_items.append(await anext(items))

    for _ in range(3):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(step)

    assert seen_items == [0, 1, 2]
    await items.aclose()


@pytest.mark.anyio
@both_ways
async def test_use_in_another_loop_is_refused(prefetch: int, anyio_backend: tuple[str, dict[str, Any]]) -> None:
    source = Counter()
    items = iterate_in_threadpool(source, prefetch=prefetch)
    await anext(items)
    backend, options = anyio_backend
    elsewhere = partial(anyio.run, captured_async, partial(anext, items), backend=backend, backend_options=options)

    _, error = await anyio.to_thread.run_sync(in_plain_thread, elsewhere)

    assert isinstance(error, LoopStateError)
    assert await anext(items) == 1
    await items.aclose()


async def async_function() -> None:
    pytest.fail("must not run")


async def async_generator() -> AsyncIterator[int]:
    pytest.fail("must not run")
    yield 1


def sync_generator() -> Iterator[int]:
    pytest.fail("must not run")
    yield 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (async_generator(), "`async for ... in` without iterate_in_threadpool"),
        (sync_generator, r"`iterate_in_threadpool\(sync_generator\(...\)\)`"),
        (3, "expected an iterable, got 3"),
        (None, "got None"),
    ],
    ids=repr,
)
def test_what_is_no_iterable_is_refused_at_once(source: Any, message: str) -> None:
    with pytest.raises(WrongFunctionError, match=message):
        iterate_in_threadpool(source)


def test_a_coroutine_is_refused_by_both_and_closed() -> None:
    coroutine: Any = async_function()
    with pytest.raises(WrongFunctionError, match=r"write `await async_function\(...\)` first"):
        iterate_in_threadpool(coroutine)
    coroutine = async_function()
    with pytest.raises(WrongFunctionError, match=r"write `await async_function\(...\)` first"):
        iterate_in_eventloop_sync(coroutine)


@pytest.mark.parametrize("prefetch", [-1, True, 1.5, "2", None])
def test_a_prefetch_that_is_no_number_of_items_is_refused_at_once(prefetch: Any) -> None:
    with pytest.raises(WrongOptionError, match="prefetch"):
        iterate_in_threadpool([], prefetch=prefetch)


@pytest.mark.anyio
@both_ways
async def test_a_source_may_call_async_code_and_nest_with_a_single_slot(prefetch: int) -> None:
    limit_threads(1)

    async def double(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        return await run_in_threadpool(lambda: 2 * number)

    def generator() -> Iterator[int]:
        for number in range(5):
            yield run_in_eventloop_sync(double, run_in_threadpool_sync(int, number))

    assert [item async for item in iterate_in_threadpool(generator(), prefetch=prefetch)] == [0, 2, 4, 6, 8]


@pytest.mark.anyio
@both_ways
async def test_both_directions_nest_to_some_depth_with_a_single_slot(prefetch: int) -> None:
    limit_threads(1)
    items: Any = range(5)
    for _ in range(4):
        items = iterate_in_eventloop_sync(iterate_in_threadpool(items, prefetch=prefetch))

    assert [item async for item in iterate_in_threadpool(items, prefetch=prefetch)] == [0, 1, 2, 3, 4]


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
        await seen(sleeping)
        tasks.cancel_scope.cancel()

    assert ended.is_set()
    assert errors[0].startswith("Cancelled")


@pytest.mark.anyio
@both_ways
async def test_threads_that_cannot_be_started_give_their_error(prefetch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_more_threads(*args: object, **kwargs: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("unfazed.concurrency._scoped._threadrunner.to_thread.run_sync", no_more_threads)
        items = iterate_in_threadpool(Counter(), prefetch=prefetch)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await anext(items)
        await items.aclose()

    assert await run_in_threadpool(int) == 0


@pytest.mark.anyio
@both_ways
async def test_threads_that_cannot_be_started_after_the_loop_has_waited_give_their_error(
    prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_more_threads(*args: object, **kwargs: object) -> None:
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("unfazed.concurrency._scoped._threadrunner.to_thread.run_sync", no_more_threads)
    items = iterate_in_threadpool(Counter(), prefetch=prefetch)

    with pytest.raises(RuntimeError, match="can't start new thread"):
        await anext(items)
    await items.aclose()


@pytest.mark.anyio
@both_ways
async def test_errors_of_closing_that_nobody_waits_for_reach_the_excepthook(
    prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    told = threading.Event()

    def excepthook(args: threading.ExceptHookArgs) -> None:
        reported.append((args.exc_type, args.exc_value))
        told.set()

    error = ValueError("closing")

    class Failing(Counter):
        def close(self) -> None:
            raise error

    monkeypatch.setattr(threading, "excepthook", excepthook)
    async for _ in iterate_in_threadpool(Failing(), prefetch=prefetch):
        break
    drop_garbage()
    await seen(told)

    assert reported == [(ValueError, error)]


@both_ways
def test_an_idle_iterator_is_closed_in_its_thread_when_its_loop_has_ended(
    prefetch: int, anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_threadrunner, "GONE_CHECK_SECONDS", 0.01)
    source = Counter()
    backend, options = anyio_backend
    kept: list[Any] = []

    async def begin() -> None:
        items = iterate_in_threadpool(source, prefetch=prefetch)
        kept.append(items)
        await anext(items)

    anyio.run(begin, backend=backend, backend_options=options)

    assert source.closed.wait(GRACE_SECONDS)
    assert len(source.threads) == 1
    assert source.times_closed == 1


@both_ways
def test_a_loop_thread_ends_with_an_idle_iterator_open(
    prefetch: int, anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_threadrunner, "GONE_CHECK_SECONDS", 0.01)
    source = Counter()
    items = iterate_in_threadpool(source, prefetch=prefetch)
    backend, options = anyio_backend

    async def step() -> int:
        return await anext(items)

    with EventLoopThread(backend, options) as loop:
        assert loop.run_sync(step) == 0

    assert source.closed.wait(GRACE_SECONDS)
    assert len(source.threads) == 1


@pytest.mark.anyio
async def test_other_tasks_get_their_turn_though_items_are_always_there() -> None:
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    async with anyio.create_task_group() as tasks:
        items = iterate_in_threadpool(range(10_000), prefetch=10_000)
        await anext(items)
        while len(items._feed._items) < 9_998:
            await anyio.lowlevel.checkpoint()
        tasks.start_soon(other)
        await anyio.lowlevel.checkpoint()
        turns = 0
        async for item in items:
            if item == 4_000:  # before the buffer is filled again
                break
        turns_then = turns
        tasks.cancel_scope.cancel()

    assert turns_then >= 4_000 // _feed.CHECKPOINT_ITEMS - 2


# An async iterable, from sync code


class Ticker:
    """Counts in a task, and notes which tasks and loops use and close it."""

    def __init__(self, end: int = 1000) -> None:
        self.end = end
        self.given = 0
        self.tasks: set[int] = set()
        self.threads: set[int] = set()
        self.times_closed = 0

    def note(self) -> None:
        self.tasks.add(anyio.get_current_task().id)
        self.threads.add(threading.get_ident())

    def __aiter__(self) -> Ticker:
        return self

    async def __anext__(self) -> int:
        self.note()
        await anyio.lowlevel.checkpoint()
        if self.given == self.end:
            raise StopAsyncIteration
        self.given += 1
        return self.given - 1

    async def aclose(self) -> None:
        self.note()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        self.times_closed += 1


def test_all_items_come_in_order_in_sync_code(sync_caller: Caller) -> None:
    assert sync_caller.make(lambda: list(iterate_in_eventloop_sync(Ticker(100)))) == list(range(100))


def test_one_task_and_one_context_serve_the_whole_iteration(sync_caller: Caller) -> None:
    tasks: set[int] = set()

    async def generator() -> AsyncIterator[str]:
        token = variable.set("inside")
        with anyio.CancelScope():
            async with anyio.create_task_group():
                for _ in range(5):
                    tasks.add(anyio.get_current_task().id)
                    yield variable.get()
        variable.reset(token)
        yield variable.get()

    def iterate() -> list[str]:
        variable.set("the caller's")
        return [*iterate_in_eventloop_sync(generator()), variable.get()]

    assert sync_caller.make(iterate) == ["inside"] * 5 + ["the caller's"] * 2
    assert len(tasks) == 1


def test_in_a_worker_it_runs_in_the_loop_of_that_worker(background: tuple[str, dict[str, Any]]) -> None:
    ticker = Ticker(3)
    for kind in ("our worker", "anyio's worker"):
        assert Caller(kind, background).make(lambda: next(iterate_in_eventloop_sync(ticker))) in (0, 1)

    assert ticker.threads == {threading.get_ident()}
    assert ticker.times_closed == 2


def test_closed_in_its_task_after_break_and_waited_for(sync_caller: Caller) -> None:
    ticker = Ticker()

    def iterate() -> int:
        for item in iterate_in_eventloop_sync(ticker):
            if item == 3:
                break
        drop_garbage()
        return ticker.times_closed

    assert sync_caller.make(iterate) == 1
    assert len(ticker.tasks) == 1


def test_closed_in_its_task_after_an_exception_in_the_body_and_waited_for(sync_caller: Caller) -> None:
    ticker = Ticker()

    def iterate() -> int:
        def body() -> None:
            for _ in iterate_in_eventloop_sync(ticker):
                raise ValueError("body")

        with pytest.raises(ValueError, match="body"):
            body()
        drop_garbage()
        return ticker.times_closed

    assert sync_caller.make(iterate) == 1
    assert len(ticker.tasks) == 1


def test_closed_in_its_task_by_close_and_waited_for(sync_caller: Caller) -> None:
    ticker = Ticker()

    def iterate() -> int:
        items = iterate_in_eventloop_sync(ticker)
        next(items)
        items.close()
        items.close()
        assert list(items) == []
        return ticker.times_closed

    assert sync_caller.make(iterate) == 1
    assert len(ticker.tasks) == 1


def test_an_async_generator_left_early_leaves_its_task_group_and_resets_its_token(sync_caller: Caller) -> None:
    results: list[object] = []

    async def generator() -> AsyncIterator[int]:
        token = variable.set("inside")
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                try:
                    yield 1
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            variable.reset(token)
            results.append("left")

    def iterate() -> None:
        with captured_items(generator()) as items:
            assert next(items) == 1

    sync_caller.make(iterate)

    assert results == ["left"]


class captured_items:  # noqa: N801  reads as what it does
    """An iterator that is closed at the end of a block; what ends a task group with it is expected."""

    def __init__(self, source: AsyncIterator[int]) -> None:
        self.items = iterate_in_eventloop_sync(source)

    def __enter__(self) -> Iterator[int]:
        return self.items

    def __exit__(self, *exc_info: object) -> None:
        _, error = captured(self.items.close)
        del error  # a task group wraps the GeneratorExit that went through it in a group


def test_an_iterator_at_its_end_is_not_closed(sync_caller: Caller) -> None:
    ticker = Ticker(2)

    assert sync_caller.make(lambda: list(iterate_in_eventloop_sync(ticker))) == [0, 1]
    assert ticker.times_closed == 0


def test_an_iterator_that_was_never_begun_runs_nothing(sync_caller: Caller) -> None:
    ticker = Ticker()

    sync_caller.make(lambda: iterate_in_eventloop_sync(ticker).close())

    assert (ticker.given, ticker.times_closed) == (0, 0)


def test_what_closing_raised_is_raised_in_sync_code(sync_caller: Caller) -> None:
    class Failing(Ticker):
        async def aclose(self) -> None:
            raise ValueError("closing")

    def iterate() -> None:
        items = iterate_in_eventloop_sync(Failing())
        next(items)
        with pytest.raises(ValueError, match="closing"):
            items.close()

    sync_caller.make(iterate)


def test_exceptions_come_with_their_traceback_in_sync_code(sync_caller: Caller) -> None:
    error = ValueError("no")

    async def fail() -> AsyncIterator[int]:
        yield 1
        raise error

    items: list[int] = []

    def iterate() -> None:
        items.extend(iterate_in_eventloop_sync(fail()))

    with pytest.raises(ValueError, match="no") as caught:
        sync_caller.make(iterate)

    assert caught.value is error
    assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"


def test_after_the_cancellation_of_a_scope_that_it_holds_a_step_raises_what_closing_it_raised(
    background: tuple[str, dict[str, Any]],
) -> None:
    scopes: list[anyio.CancelScope] = []

    async def numbers() -> AsyncIterator[int]:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            try:
                yield 1
            finally:
                raise ValueError("closed")

    async def cancel() -> None:
        scopes[0].cancel()
        await let_others_run()

    items = iterate_in_eventloop_sync(numbers())
    assert next(items) == 1
    run_in_eventloop_sync(cancel)

    with pytest.raises(ValueError, match="closed"):
        next(items)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_exceptions_that_end_programs_reach_the_sync_consumer_alone(sync_caller: Caller, error: BaseException) -> None:
    class Failing(Ticker):
        async def __anext__(self) -> int:
            raise error

    def iterate() -> Any:
        outcome = captured(lambda: next(iterate_in_eventloop_sync(Failing())))
        assert list(iterate_in_eventloop_sync(Ticker(1))) == [0]
        return outcome

    assert sync_caller.make(iterate) == (None, error)


def test_stop_iteration_raised_inside_is_a_runtime_error_in_sync_code(sync_caller: Caller) -> None:
    class FailsAtOnce:
        def __aiter__(self) -> AsyncIterator[int]:
            raise StopIteration

    class FailsLater(Ticker):
        def __anext__(self) -> Any:
            raise StopIteration

    for failing in (FailsAtOnce(), FailsLater()):
        with pytest.raises(RuntimeError, match="StopIteration"):
            sync_caller.make(lambda source=failing: list(iterate_in_eventloop_sync(source)))  # type: ignore[misc]


def test_a_step_is_cancelled_with_the_task_that_waits_for_the_worker(background: tuple[str, dict[str, Any]]) -> None:
    sleeping = threading.Event()
    events: list[str] = []

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
            sleeping.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            events.append("cleanup awaited")

    def iterate() -> None:
        try:
            for _ in iterate_in_eventloop_sync(generator()):
                pass
        except BaseException as exc:
            events.append(type(exc).__name__)
            raise

    async def main(run: Any) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, iterate)
            await seen(sleeping)
            tasks.cancel_scope.cancel()

    name = "CancelledError" if background[0] == "asyncio" else "Cancelled"
    Caller("", background).run(main, run_in_threadpool)

    assert events == ["cleanup awaited", name]


def test_after_a_cancelled_step_the_source_is_closed_in_its_task(background: tuple[str, dict[str, Any]]) -> None:
    class Sleepy(Ticker):
        async def __anext__(self) -> int:
            self.note()
            sleeping.set()
            await anyio.sleep_forever()
            return 0

        async def aclose(self) -> None:
            self.note()
            self.times_closed += 1

    sleeping = threading.Event()
    ticker = Sleepy()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_threadpool, lambda: list(iterate_in_eventloop_sync(ticker)))
            await seen(sleeping)
            tasks.cancel_scope.cancel()

    Caller("", background).run(main)

    assert ticker.times_closed == 1
    assert len(ticker.tasks) == 1


@pytest.mark.anyio
async def test_a_thread_with_a_running_loop_is_refused() -> None:
    ticker = Ticker()
    items = iterate_in_eventloop_sync(ticker)

    with pytest.raises(LoopThreadError, match=r"async for \.\.\. in Ticker"):
        next(items)
    assert ticker.given == 0


def test_dropped_by_the_garbage_collector_in_a_loops_thread_it_is_closed_without_blocking(background: Any) -> None:
    closed = threading.Event()

    class Slow(Ticker):
        async def aclose(self) -> None:
            while not may_close.is_set():
                await anyio.sleep(0.001)
            closed.set()

    may_close = threading.Event()
    holder = [iterate_in_eventloop_sync(Slow())]
    next(holder[0])

    async def drop() -> None:
        holder.clear()
        gc.collect()
        assert not closed.is_set()
        may_close.set()
        await seen(closed)

    Caller("", background).run(drop)

    assert closed.is_set()


def test_used_after_its_loop_has_ended_it_says_so(background: Any) -> None:
    ticker = Ticker()
    items = iterate_in_eventloop_sync(ticker)
    next(items)
    end_background_eventloop()

    with pytest.raises(LoopEndedError):
        next(items)
    assert ticker.times_closed == 1


def test_dropped_after_its_loop_has_ended_it_says_nothing(background: Any) -> None:
    ticker = Ticker()
    items = iterate_in_eventloop_sync(ticker)
    next(items)
    end_background_eventloop()

    items.close()

    assert ticker.times_closed == 1


def test_steps_from_different_threads_go_to_one_task(background: Any) -> None:
    ticker = Ticker()
    items = iterate_in_eventloop_sync(ticker)

    taken = [next(items), *(in_plain_thread(partial(next, items)) for _ in range(3))]
    in_plain_thread(items.close)

    assert taken == [0, 1, 2, 3]
    assert len(ticker.tasks) == 1
    assert ticker.times_closed == 1


def test_a_step_from_a_worker_goes_to_the_loop_where_the_iteration_was_begun(
    background: tuple[str, dict[str, Any]],
) -> None:
    ticker = Ticker()
    items = iterate_in_eventloop_sync(ticker)
    taken = [next(items)]

    for kind in ("our worker", "anyio's worker"):
        taken.append(Caller(kind, background).make(partial(next, items)))
    items.close()

    assert taken == [0, 1, 2]
    assert len(ticker.tasks) == len(ticker.threads) == 1
    assert ticker.times_closed == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([1, 2], "`for ... in` without iterate_in_eventloop_sync"),
        (async_generator, r"`iterate_in_eventloop_sync\(async_generator\(...\)\)`"),
        (3, "expected an async iterable, got 3"),
    ],
    ids=repr,
)
def test_what_is_no_async_iterable_is_refused_at_once(source: Any, message: str) -> None:
    with pytest.raises(WrongFunctionError, match=message):
        iterate_in_eventloop_sync(source)


def test_a_hundred_iterators_in_sync_code_at_once(background: Any) -> None:
    iterators = [iterate_in_eventloop_sync(Ticker(3)) for _ in range(100)]

    firsts = [next(items) for items in iterators]
    rest = [list(items) for items in iterators]

    assert (firsts, rest) == ([0] * 100, [[1, 2]] * 100)


def test_a_source_that_calls_the_pool_runs_on_the_slot_of_its_consumer(background: tuple[str, dict[str, Any]]) -> None:
    async def generator() -> AsyncIterator[int]:
        for number in range(3):
            yield await run_in_threadpool(int, number)

    async def main() -> list[int]:
        limit_threads(1)
        return await run_in_threadpool(lambda: list(iterate_in_eventloop_sync(generator())))

    assert Caller("", background).run(main) == [0, 1, 2]
