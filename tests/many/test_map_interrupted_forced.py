"""Signal handlers that raise in a map, at moments that tracing rarely reaches: each is forced."""

from __future__ import annotations

import gc
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import drop_garbage, wait_until
from interrupting import Alarm, raise_alarm
from map_helpers import Gated, all_of, double_async, letters

from unfazed.concurrency import LoopEndedError, map_in_eventloop, map_in_threadpool, map_in_threadpool_sync
from unfazed.concurrency._eventloops import _waiting
from unfazed.concurrency._eventloops._loopthread import submit_here
from unfazed.concurrency._many import _mapinput, _maprun
from unfazed.concurrency._many._mapcall import How, MapCall
from unfazed.concurrency._scoped._taskrunner import TaskRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable


def first_raises(func: Callable[..., Any]) -> Callable[..., Any]:
    """Return a function whose first call raises, and whose others call *func*."""
    calls: list[None] = []

    def call(*args: Any) -> Any:
        calls.append(None)
        if len(calls) == 1:
            raise_alarm()
        return func(*args)

    return call


def raise_alarm_in_method(*_: object) -> None:
    raise Alarm


@pytest.mark.anyio
async def test_a_map_ends_that_was_interrupted_before_its_call_was_submitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_maprun, "submit_here", first_raises(submit_here))

    with pytest.raises(Alarm):
        await anext(map_in_threadpool(int, range(3)))


@pytest.mark.anyio
async def test_a_map_ends_that_was_interrupted_before_the_task_that_reads_began(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_mapinput, "submit_here", first_raises(submit_here))

    with pytest.raises(Alarm):
        await anext(map_in_threadpool(int, letters()))


@pytest.mark.anyio
async def test_whoever_is_interrupted_while_it_wakes_the_loop_keeps_nobody_else_from_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    results = map_in_threadpool(int, range(3), limit=1)
    assert await anext(results) == 0
    run = results._consumer.run
    with monkeypatch.context() as patch:
        patch.setattr(type(run.loop), "post", raise_alarm_in_method)
        with pytest.raises(Alarm):
            run.poke()

    assert not run._poked
    assert [number async for number in results] == [1, 2]


@pytest.fixture
def run(anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Run async functions on asyncio, which logs what is raised in callbacks, and goes on."""
    name, options = anyio_backend
    if name == "trio":
        pytest.skip("trio ends its run if a signal handler interrupts a callback")
    monkeypatch.setattr(_waiting, "CHECK_SECONDS", 0.001)
    return partial(anyio.run, backend=name, backend_options=options)


def test_what_the_loop_was_kept_from_is_done_again(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """1: a thread brings items. 2: a signal handler raises as the loop is about to take them."""
    fill = first_raises(_maprun.MapRun._fill_when_poked)
    monkeypatch.setattr(_maprun.MapRun, "_fill_when_poked", lambda self: fill(self))

    assert run(lambda: all_of(map_in_threadpool(int, map(int, range(3)), limit=2))) == [0, 1, 2]


def test_a_call_that_reads_and_was_lost_is_made_again(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler raises as the task that reads is about to take the call."""
    take = first_raises(TaskRunner._take)
    monkeypatch.setattr(TaskRunner, "_take", lambda self, *args: take(self, *args))

    assert run(lambda: all_of(map_in_threadpool(str, letters(), limit=2))) == ["a", "b", "c"]


def test_an_end_of_reading_that_was_not_noted_is_noted_again(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Signal handlers raise twice: whoever writes a future says so twice."""
    note = first_raises(first_raises(_mapinput.ItemsFromThread._note_end_of_reading))
    monkeypatch.setattr(_mapinput.ItemsFromThread, "_note_end_of_reading", lambda self: note(self))

    assert run(lambda: all_of(map_in_threadpool(int, map(int, range(3)), limit=1))) == [0, 1, 2]


def test_an_error_that_was_not_noted_is_noted_again(run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    note = first_raises(first_raises(_maprun.MapRun._note_end_of))
    monkeypatch.setattr(_maprun.MapRun, "_note_end_of", lambda self, map_task: note(self, map_task))
    monkeypatch.setattr(_maprun.MapRun, "_note_result", raise_alarm_in_method)

    with pytest.raises(Alarm):
        run(lambda: all_of(map_in_threadpool(int, range(3))))


def test_who_waits_gets_what_is_raised_when_the_loop_looks(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    func = Gated()
    do_again = first_raises(_maprun.MapRun._do_again)

    def look(self: _maprun.MapRun) -> None:
        func.let_all_go()
        do_again(self)

    monkeypatch.setattr(_maprun.MapRun, "_do_again", look)

    with pytest.raises(Alarm):
        run(lambda: all_of(map_in_threadpool(func, range(3))))


def test_a_run_that_has_ended_is_kept_by_nobody(run: Callable[..., Any]) -> None:
    async def main() -> None:
        results = map_in_threadpool(int, range(3), limit=1)
        assert await all_of(results) == [0, 1, 2]
        reference = weakref.ref(results._consumer.run)
        del results
        await anyio.sleep(0.01)
        gc.collect()
        drop_garbage()
        assert reference() is None

    run(main)


@pytest.mark.anyio
async def test_a_task_that_ended_too_early_ends_the_map() -> None:
    """A signal handler raised in it, and another one when that was to become the error of the map."""
    results = map_in_threadpool(int, range(3), limit=1)
    assert await anext(results) == 0
    run = results._consumer.run
    (map_task,) = run._map_tasks
    map_task.task.future.write(None, None)

    with pytest.raises(LoopEndedError):
        await all_of(results)


def test_who_is_interrupted_when_a_result_was_noted_raises_that() -> None:
    class Results(list[Any]):
        def append(self, value: Any) -> None:
            super().append(value)
            raise Alarm

    call = MapCall([1], 0)
    call.values = Results()

    with pytest.raises(Alarm):
        call.settle(lambda: 1, How("map_in_threadpool", False, False))


@pytest.mark.usefixtures("background")
def test_an_iterator_whose_close_was_interrupted_is_closed_when_it_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    results = map_in_threadpool_sync(int, map(int, range(100)), limit=2)
    assert next(results) == 0
    run = results._consumer.run
    items: Any = run.items
    monkeypatch.setattr(run, "stop", first_raises(run.stop))
    with pytest.raises(Alarm):
        results.close()
    del results
    drop_garbage()

    wait_until(lambda: not run._map_tasks, "calls begin after the iterator was dropped")
    wait_until(lambda: items._runner._outcome, "the thread that reads the input stays")


@pytest.mark.anyio
async def test_an_async_iterator_whose_close_was_interrupted_is_closed_when_it_is_dropped(
    monkeypatch: pytest.MonkeyPatch, background: object
) -> None:
    results = map_in_eventloop(double_async, map(int, range(100)), limit=2)
    assert await anext(results) == 0
    run = results._consumer.run
    monkeypatch.setattr(run, "stop", first_raises(run.stop))
    with pytest.raises(Alarm):
        await results.aclose()
    del results
    drop_garbage()

    with anyio.fail_after(10):
        while run._map_tasks:
            await anyio.sleep(0.001)


@pytest.mark.anyio
async def test_a_reader_that_was_told_in_vain_to_end_is_told_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler raises in the callback that tells it. asyncio drops such a callback, trio ends."""
    monkeypatch.setattr(_waiting, "CHECK_SECONDS", 0.001)
    leave = TaskRunner._leave
    dropped: list[TaskRunner] = []

    def drop_first(self: TaskRunner) -> None:
        if dropped:
            leave(self)
        else:
            dropped.append(self)

    async def numbers() -> AsyncIterator[int]:
        for number in range(100):
            yield number

    results = map_in_threadpool(int, numbers(), limit=2)
    assert await anext(results) == 0
    monkeypatch.setattr(TaskRunner, "_leave", drop_first)
    await results.aclose()

    assert dropped
