"""The input of a map: it may block, be async or fail; several are zipped."""

from __future__ import annotations

import threading
from contextlib import aclosing, closing
from typing import TYPE_CHECKING

import anyio
import pytest
from conftest import (
    GRACE_SECONDS,
    Caller,
    let_others_run,
)
from map_functions import double
from map_helpers import BlockingInput, Gated, all_of, collect, letters

from unfazed.concurrency import (
    map_in_threadpool,
    map_in_threadpool_sync,
    run_in_threadpool,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


async def begun(func: Gated, count: int) -> None:
    while len(func.begun) < count:
        await anyio.sleep(0.001)


# The input


@pytest.mark.anyio
async def test_a_result_does_not_wait_for_an_input_that_blocks() -> None:
    source = BlockingInput(at=2)
    async with aclosing(map_in_threadpool(double, source)) as results:
        assert [await anext(results), await anext(results)] == [0, 2]
        assert source.read == 2
        source.may_go_on.set()
    assert source.closed.is_set()
    assert len(source.threads) == 1
    assert threading.get_ident() not in source.threads


def test_a_result_does_not_wait_for_an_input_that_blocks_in_sync_code(sync_caller: Caller) -> None:
    source = BlockingInput(at=2)

    def use() -> None:
        with closing(map_in_threadpool_sync(double, source)) as results:
            assert [next(results), next(results)] == [0, 2]
            assert source.read == 2
            source.may_go_on.set()

    sync_caller.make(use)

    assert source.closed.is_set()


def test_an_error_does_not_wait_for_an_input_that_blocks(caller: Caller) -> None:
    source = BlockingInput(at=2)

    def fail(number: int) -> None:
        raise LookupError(number)

    def use() -> None:
        with pytest.raises(LookupError):
            list(map_in_threadpool_sync(fail, source))
        source.may_go_on.set()  # before the loop ends, which waits for its threads

    async def use_async() -> None:
        with pytest.raises(LookupError):
            await all_of(map_in_threadpool(fail, source))
        source.may_go_on.set()

    caller.make(use_async if caller.kind == "async" else use)

    assert source.closed.wait(GRACE_SECONDS)


def test_what_the_input_raises_comes_after_the_results(caller: Caller) -> None:
    def numbers() -> Iterator[int]:
        yield from range(5)
        raise LookupError("no more")

    got: list[int] = []
    with pytest.raises(LookupError, match="no more"):
        collect(caller, "threadpool", got.append, numbers())
    with pytest.raises(LookupError, match="no more"):
        collect(caller, "threadpool", got.append, numbers(), ordered=False)

    assert sorted(got) == sorted([*range(5)] * 2)


def test_a_container_that_changes_ends_the_map(caller: Caller) -> None:
    changing = {1, 2, 3}

    def change(number: int) -> None:
        changing.add(number + 10)

    with pytest.raises(RuntimeError, match="changed size"):
        collect(caller, "threadpool", change, changing, limit=1)


def test_objects_with_getitem_and_broken_iterables(caller: Caller) -> None:
    class Letters:
        def __getitem__(self, index: int) -> str:
            return "abc"[index]

    class Broken:
        def __iter__(self) -> Iterator[int]:
            raise StopAsyncIteration("broken")

    assert collect(caller, "threadpool", double, Letters()) == ["aa", "bb", "cc"]
    with pytest.raises(RuntimeError, match="StopAsyncIteration"):
        collect(caller, "threadpool", double, Broken())


@pytest.mark.anyio
async def test_an_async_input_is_read_and_closed_in_one_task() -> None:
    closed: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            with anyio.CancelScope():  # must be left in the task that has entered it
                for number in range(100):
                    yield number
        finally:
            closed.append("closed")

    assert await all_of(map_in_threadpool(double, numbers())) == [2 * number for number in range(100)]
    async with aclosing(map_in_threadpool(double, numbers())) as results:
        assert await anext(results) == 0
    assert closed == ["closed", "closed"]


@pytest.mark.anyio
async def test_a_waiting_async_input_is_cancelled() -> None:
    ended: list[str] = []

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 0
            await anyio.sleep_forever()
        finally:
            ended.append("ended")

    results = map_in_threadpool(double, numbers())
    assert await anext(results) == 0
    await let_others_run()
    await results.aclose()

    assert ended == ["ended"]


@pytest.mark.anyio
async def test_what_an_async_input_raises_comes_after_the_results() -> None:
    async def numbers() -> AsyncIterator[int]:
        yield 1
        raise LookupError("no more")

    results = map_in_threadpool(double, numbers())

    assert await anext(results) == 2
    with pytest.raises(LookupError, match="no more"):
        await anext(results)


@pytest.mark.anyio
async def test_async_and_other_iterables_together() -> None:
    class Letters:
        """Async, and without `aclose`."""

        def __init__(self) -> None:
            self.left = list("cba")

        def __aiter__(self) -> Letters:
            return self

        async def __anext__(self) -> str:
            if not self.left:
                raise StopAsyncIteration
            return self.left.pop()

    source = BlockingInput(at=100)

    results = await all_of(map_in_threadpool(lambda *args: args, letters(), range(9), source, Letters()))

    assert results == [("a", 0, 0, "a"), ("b", 1, 1, "b"), ("c", 2, 2, "c")]
    assert await run_in_threadpool(source.closed.wait, GRACE_SECONDS)
    assert await all_of(map_in_threadpool(double, Letters())) == ["aa", "bb", "cc"]
    short: list[int] = []
    assert await all_of(map_in_threadpool(max, short, letters())) == []
