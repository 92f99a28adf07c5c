"""Many calls in worker processes: how many items travel together, and what becomes of errors then."""

from __future__ import annotations

import time
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import process_functions as functions
import pytest
from conftest import Caller
from map_functions import (
    add_all,
    append_line,
    double,
    end_at,
    fail_at,
    give_coroutine,
    give_odd_values,
    leave,
    stop,
    wait_at,
)
from map_helpers import all_of, collect, letters

from unfazed._worker import chunks as worker_chunks
from unfazed.concurrency import (
    CallTimeoutError,
    NotSendableError,
    RemoteTraceback,
    WorkerProcessError,
    WrongFunctionError,
    in_processpool,
    map_in_processpool,
    map_in_processpool_sync,
)
from unfazed.concurrency._many import _chunks

if TYPE_CHECKING:
    from pathlib import Path


class Sizes:
    """Notes how many items each call had."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.sizes: list[int] = []
        run = _chunks.ProcessCalls.run

        async def noting(calls: Any, call: Any) -> None:
            self.sizes.append(len(call.items))
            await run(calls, call)

        monkeypatch.setattr(_chunks.ProcessCalls, "run", noting)


@pytest.fixture
def sizes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    return Sizes(monkeypatch).sizes


@pytest.mark.parametrize("kind", ["async", "main thread", "our worker"])
def test_results_are_the_same_however_many_items_travel_together(kind: str, background: Any) -> None:
    caller = Caller(kind, background)
    expected = [2 * number for number in range(500)]

    assert collect(caller, "processpool", double, range(500)) == expected
    assert collect(caller, "processpool", double, range(500), chunk=7, limit=3) == expected
    assert sorted(collect(caller, "processpool", double, range(500), chunk=7, ordered=False)) == expected
    assert collect(caller, "processpool", double, (n for n in range(500))) == expected
    assert collect(caller, "processpool", add_all, [1, 2, 3], [10, 20], range(9), chunk=3) == [11, 23]
    results = collect(caller, "processpool", fail_at, range(60), return_exceptions=True, chunk=20)
    assert [type(result) for result in results if not isinstance(result, int)] == [LookupError]
    assert isinstance(results[30], LookupError)
    with pytest.raises(LookupError, match="thirty") as caught:
        collect(caller, "processpool", fail_at, range(60), chunk=25)
    assert isinstance(caught.value.__cause__, RemoteTraceback)
    assert "in fail_at" in str(caught.value.__cause__)
    assert "chunks.py" not in str(caught.value.__cause__)
    assert caught.value.__notes__[0].startswith("raised for item 30, 30, of map_in_processpool")


def test_small_items_travel_together_and_more_and_more_of_them(sizes: list[int]) -> None:
    assert list(map_in_processpool_sync(double, range(20_000))) == [2 * number for number in range(20_000)]

    assert sizes[0] == 1
    assert max(sizes) > 100
    assert sum(sizes) == 20_000


def test_long_items_travel_alone(sizes: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunks, "CALL_SECONDS", 0.01)

    assert list(map_in_processpool_sync(partial(wait_at, seconds=0.011), range(101, 109))) == [*range(101, 109)]
    assert sizes == [1] * 8


def test_large_items_do_not_travel_together(sizes: list[int]) -> None:
    large = b"x" * 200_000

    assert [len(each) for each in map_in_processpool_sync(double, [large] * 6)] == [400_000] * 6
    assert sizes == [1] * 6


def test_a_call_whose_items_take_longer_than_expected_is_divided(
    sizes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_chunks, "MOST_SECONDS", 0.02)

    results = list(map_in_processpool_sync(partial(wait_at, seconds=0.003), range(150), limit=1))

    assert results == [*range(150)]
    assert sum(sizes) > 150  # some were sent twice, and began once


def test_each_item_begins_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_chunks, "MOST_SECONDS", 0.0001)
    path = tmp_path / "lines"

    assert list(map_in_processpool_sync(partial(append_line, path), range(40))) == [*range(40)]
    assert sorted(map(int, path.read_text("utf-8").split())) == [*range(40)]


def test_what_counts_calls_counts_items(sizes: list[int]) -> None:
    for dual in (in_processpool(double, timeout=60), in_processpool(double, max_calls=100)):
        assert list(dual.map.sync(range(20))) == [2 * number for number in range(20)]
    assert sizes == [1] * 40
    slow = in_processpool(time.sleep, timeout=0.2)
    with pytest.raises(CallTimeoutError):
        list(slow.map.sync([0, 60]))


def test_a_worker_that_dies_takes_the_items_of_its_call_with_it() -> None:
    results = list(map_in_processpool_sync(end_at, range(20), chunk=5, return_exceptions=True))

    assert [type(result) is WorkerProcessError for result in results] == [5 <= number < 10 for number in range(20)]
    assert results[:5] + results[10:] == [*range(5), *range(10, 20)]
    with pytest.raises(WorkerProcessError, match=r"for end_at\(\) ended with exit code 3") as caught:
        list(map_in_processpool_sync(end_at, range(20), chunk=5))
    assert "item 5" in caught.value.__notes__[0]


@pytest.mark.parametrize("kind", ["async", "main thread"])
def test_what_cannot_be_sent_is_told_for_each_item(kind: str, background: Any) -> None:
    caller = Caller(kind, background)
    items: list[Any] = [1, lambda: 2, 3]
    results = collect(caller, "processpool", functions.echo_of_one, items, chunk=3, return_exceptions=True)
    assert (results[0], type(results[1]), results[2]) == (1, NotSendableError, 3)
    assert "cannot send the arguments of echo_of_one() to a worker process" in str(results[1])

    results = collect(caller, "processpool", give_odd_values, range(4), chunk=4, return_exceptions=True)
    assert [type(result) for result in results] == [int, NotSendableError, int, NotSendableError]
    assert "what give_odd_values() returned cannot be sent back from its worker process" in str(results[1])
    with pytest.raises(NotSendableError, match="cannot be sent back") as caught:
        collect(caller, "processpool", give_odd_values, [0, 2, 1, 4], chunk=4)
    assert "item 2" in caught.value.__notes__[0]

    with pytest.raises(WrongFunctionError, match=r"give_coroutine\(\) is async"):
        collect(caller, "processpool", give_coroutine, range(4), chunk=4)
    with pytest.raises(NotSendableError, match=r"cannot send .*<lambda>"):
        collect(caller, "processpool", lambda x: x, range(4))
    with pytest.raises(NotSendableError, match="cannot be found in the worker process"):
        collect(caller, "processpool", functions.echo_of_one, [1, functions.WorkerOnly(), 3], chunk=3)


def test_there_is_no_memory_for_one_of_the_results() -> None:
    results = list(map_in_processpool_sync(functions.return_too_large, [False, True], chunk=2, return_exceptions=True))

    assert isinstance(results[0], MemoryError)


def test_what_ends_an_iteration_or_a_program_comes_from_a_worker_as_well() -> None:
    with pytest.raises(SystemExit):
        list(map_in_processpool_sync(leave, [1, 2, 3], chunk=3, return_exceptions=True))
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(map_in_processpool_sync(stop, [1, 2, 3], chunk=3))
    results = list(map_in_processpool_sync(stop, [1, 2, 3], chunk=3, return_exceptions=True))
    assert [type(result) for result in results] == [StopIteration] * 3


@pytest.mark.anyio
async def test_async_code_shares_the_loop_with_others_between_results_that_came_together() -> None:
    others = 0

    async def count() -> None:
        nonlocal others
        while True:
            others += 1
            await anyio.sleep(0)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(count)
        seen: list[int] = []
        async for _ in map_in_processpool(double, range(1000), chunk=1000):
            seen.append(others)
        tasks.cancel_scope.cancel()

    assert len(set(seen)) > 5
    assert await all_of(map_in_processpool(double, letters())) == ["aa", "bb", "cc"]


@pytest.mark.anyio
@pytest.mark.parametrize("chunk", [None, 1])
async def test_a_cancelled_map_kills_its_workers_if_told_so(tmp_path: Path, chunk: int | None) -> None:
    waiting = in_processpool(functions.touch_then_wait_for, kill_on_cancel=True)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(all_of, waiting.map([tmp_path / "touched"], [tmp_path / "never"], chunk=chunk))
        while not (tmp_path / "touched").exists():
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()


def test_the_worker_looks_at_the_clock_only_now_and_then() -> None:
    numbers = [*range(1000)]
    chunk = worker_chunks.Chunk(double, "double", False, False, 0.0)

    results = chunk(numbers)

    assert 1 <= len(results.values) < 1000
    assert results.values == [2 * number for number in numbers[: len(results.values)]]
