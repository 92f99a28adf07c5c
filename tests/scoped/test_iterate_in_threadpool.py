"""Sync iterables in async code: each has one thread and one context; what is raised, refused and nested."""

from __future__ import annotations

import contextvars
import threading
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from conftest import captured_async, in_plain_thread, limit_threads, without_address
from iterables import BlockingCounter, Counter

from unfazed.concurrency import (
    InUseError,
    LoopStateError,
    WrongFunctionError,
    WrongOptionError,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
    run_in_eventloop_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._scoped import _feed

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

both_ways = pytest.mark.parametrize("prefetch", [0, 3])


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
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()], ids=without_address)
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
    ids=without_address,
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
