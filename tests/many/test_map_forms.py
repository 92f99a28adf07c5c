"""The map functions as iterators: lengths, progress bars, dual callables, other executors."""

from __future__ import annotations

import copy
import io
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from operator import length_hint
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import rich.console
import rich.progress
import tqdm.asyncio
from conftest import Caller, let_others_run
from map_functions import double
from map_helpers import all_of, double_async, letters
from pages import recipes

from unfazed.concurrency import (
    NotSendableError,
    WrongOptionError,
    in_eventloop,
    in_executor,
    in_processpool,
    in_threadpool,
    map_in_executor,
    map_in_executor_sync,
    map_in_threadpool,
    map_in_threadpool_sync,
    run_in_eventloop_sync,
)

if TYPE_CHECKING:
    from pathlib import Path

tqdm.tqdm.monitor_interval = 0  # otherwise it has a thread
tqdm.tqdm.set_lock(threading.RLock())  # otherwise it has a lock of `multiprocessing`, which starts a process


def test_it_has_a_length_where_its_input_has_one() -> None:
    results = map_in_threadpool_sync(double, range(10))
    assert length_hint(results) == 10
    assert next(results) == 0
    assert length_hint(results) == 9
    assert list(results) == [2 * number for number in range(1, 10)]
    assert length_hint(results) == 0
    assert length_hint(map_in_threadpool_sync(max, range(10), "abc")) == 3
    assert length_hint(map_in_threadpool_sync(double, iter([1])), 77) == 77
    assert length_hint(map_in_threadpool(double, [1, 2])) == 2
    assert length_hint(map_in_threadpool(double, letters()), 77) == 77


def test_results_that_came_together_are_counted_one_by_one() -> None:
    results = in_processpool(double).map.sync(range(10), chunk=5)
    assert next(results) == 0
    assert length_hint(results) == 9
    results.close()
    assert length_hint(results) == 0


def test_progress_bars_and_enumerate_work_on_it() -> None:
    bar = io.StringIO()
    assert list(tqdm.tqdm(map_in_threadpool_sync(double, range(5)), total=5, file=bar)) == [0, 2, 4, 6, 8]
    assert "5/5" in bar.getvalue()

    console = rich.console.Console(file=io.StringIO(), force_terminal=True)
    tracked = rich.progress.track(map_in_threadpool_sync(double, range(5)), console=console)
    assert list(tracked) == [0, 2, 4, 6, 8]
    assert "100%" in console.file.getvalue()  # type: ignore[attr-defined]

    assert list(enumerate(map_in_threadpool_sync(double, "ab"))) == [(0, "aa"), (1, "bb")]


@pytest.mark.anyio
async def test_an_async_progress_bar_works_on_it() -> None:
    bar = io.StringIO()
    results = tqdm.asyncio.tqdm(map_in_threadpool(double, range(5)), total=5, file=bar)

    assert [result async for result in results] == [0, 2, 4, 6, 8]
    assert "5/5" in bar.getvalue()


def test_it_is_neither_copied_nor_pickled() -> None:
    results: Any
    for results in (map_in_threadpool_sync(double, [1]), map_in_threadpool(double, [1])):
        for attempt in (copy.copy, pickle.dumps):
            with pytest.raises(NotSendableError, match="can be neither copied nor pickled"):
                attempt(results)
        assert "_consumer" not in dir(results)


# Dual callables


class Holder:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @in_threadpool
    def times(self, number: int) -> int:
        return self.factor * number

    @in_threadpool(limiter=anyio.CapacityLimiter(2))
    @classmethod
    def name(cls, number: int) -> str:
        return f"{cls.__name__}{number}"

    @in_eventloop
    async def times_async(self, number: int) -> int:
        return self.factor * number


def in_both_ways(caller: Caller, dual: Any, *iterables: Any, **options: Any) -> Any:
    if caller.kind == "async":
        return caller.make(lambda: all_of(dual.map(*iterables, **options)))
    return caller.make(lambda: list(dual.map.sync(*iterables, **options)))


def test_dual_callables_map(caller: Caller) -> None:
    with ThreadPoolExecutor(1) as executor:
        for dual in (in_threadpool(double), in_executor(executor, double), in_eventloop(double_async)):
            assert in_both_ways(caller, dual, range(5)) == [0, 2, 4, 6, 8]
    assert in_both_ways(caller, Holder(3).times, range(3)) == [0, 3, 6]
    assert in_both_ways(caller, Holder.name, range(3), ordered=True, limit=2) == ["Holder0", "Holder1", "Holder2"]
    assert in_both_ways(caller, Holder(3).times_async, range(3)) == [0, 3, 6]


def test_a_shared_context_is_for_one_call_at_a_time(caller: Caller) -> None:
    dual = in_threadpool(double, context=copy_context())

    assert in_both_ways(caller, dual, range(20)) == [2 * number for number in range(20)]


def test_a_limiter_without_a_limit_allows_a_hundred() -> None:
    async def unlimited() -> anyio.CapacityLimiter:
        return anyio.CapacityLimiter(float("inf"))

    dual = in_threadpool(double, limiter=run_in_eventloop_sync(unlimited))

    assert list(dual.map.sync(range(300))) == [2 * number for number in range(300)]


def test_the_map_of_a_dual_callable_as_an_object() -> None:
    dual: Any = in_threadpool(double, timeout=5)
    assert repr(dual.map) == "<in_threadpool(double), timeout=5>.map"
    assert "_dual" not in dir(dual.map)
    assert type(dual).map.__get__(None, type(dual)) is type(dual).__dict__["map"]
    assert repr(pickle.loads(pickle.dumps(dual.map))) == repr(dual.map)
    assert repr(dual.map.sync([1])) == "<double.map.sync(double, ...), not begun>"
    with pytest.raises(WrongOptionError, match=r"double.map\(\) has no option `chunk`"):
        dual.map([1], chunk=2)


@pytest.mark.anyio
async def test_in_a_loop_the_sync_map_of_a_dual_callable_says_what_to_write() -> None:
    with pytest.raises(RuntimeError, match=r"write `async for \.\.\. in double\.map\(\.\.\.\)`"):
        next(in_threadpool(double).map.sync([1]))
    await let_others_run()


# Subinterpreters


@pytest.mark.skipif(sys.version_info < (3, 14), reason="needs InterpreterPoolExecutor")
@pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs InterpreterPoolExecutor")
def test_calls_run_in_subinterpreters(caller: Caller) -> None:
    from concurrent.futures import InterpreterPoolExecutor  # type: ignore[attr-defined,unused-ignore]

    with InterpreterPoolExecutor(2) as executor:

        async def use() -> Any:
            return await all_of(map_in_executor(executor, pow, range(5), [2] * 5))

        def use_sync() -> Any:
            return list(map_in_executor_sync(executor, pow, range(5), [2] * 5))

        assert caller.make(use if caller.kind == "async" else use_sync) == [0, 1, 4, 9, 16]
        assert caller("executor", executor, divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            caller("executor", executor, divmod, 7, 0)


@pytest.mark.skipif(sys.version_info < (3, 14), reason="needs InterpreterPoolExecutor")
def test_the_example_with_subinterpreters_runs(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(recipes()["interpreters.py"], "utf-8")

    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60, check=False)

    assert (done.stdout, done.stderr) == (f"{2**100}\n[0, 1, 4, 9, 16]\n", "")
