"""How a map ends: left early, closed, cancelled, interrupted, with its loop."""

from __future__ import annotations

import gc
import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import (
    GRACE_SECONDS,
    Caller,
    captured,
    drop_garbage,
    end_background_eventloop,
    in_plain_thread,
    let_others_run,
    wait_until,
)
from map_functions import double
from map_helpers import BlockingInput, Gated, all_of, letters
from own_programs import Program

from unfazed.concurrency import (
    EventLoopThread,
    ExecutorError,
    LoopEndedError,
    map_in_eventloop,
    map_in_eventloop_sync,
    map_in_executor,
    map_in_threadpool,
    map_in_threadpool_sync,
    run_in_threadpool,
)
from unfazed.concurrency._eventloops import _waiting
from unfazed.concurrency._eventloops._loopthread import submit_here
from unfazed.concurrency._many import _maprun

if TYPE_CHECKING:
    from pathlib import Path


async def begun(func: Gated, count: int) -> None:
    while len(func.begun) < count:
        await anyio.sleep(0.001)


# Left early


@pytest.mark.anyio
async def test_after_a_failure_nothing_begins_and_what_runs_is_waited_for() -> None:
    func = Gated()

    def fail_first(number: int) -> int:
        func(number)
        raise LookupError(number)

    results = map_in_threadpool(fail_first, range(100), limit=3)
    async with anyio.create_task_group() as tasks:
        errors: list[BaseException] = []

        async def take() -> None:
            try:
                await anext(results)
            except LookupError as exc:
                errors.append(exc)

        tasks.start_soon(take)
        await begun(func, 3)
        func.let_go(0)
        await let_others_run()
        assert not errors
        func.let_all_go()
    assert [str(error) for error in errors] == ["0"]
    assert sorted(func.begun) == sorted(func.ended) == [0, 1, 2]


def test_after_a_failure_in_sync_code_what_runs_is_waited_for(sync_caller: Caller) -> None:
    func = Gated()

    def fail_first(number: int) -> None:
        func(number)
        if number == 0:
            threading.Timer(0.02, func.let_all_go).start()
            raise LookupError(number)

    def use() -> None:
        func.let_go(0)
        with pytest.raises(LookupError, match="0"):
            list(map_in_threadpool_sync(fail_first, range(100), limit=3))
        assert sorted(func.begun) == sorted(func.ended)

    sync_caller.make(use)


@pytest.mark.anyio
async def test_a_cancelled_step_waits_for_what_runs_and_ends_the_iteration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "CHECK_SECONDS", 0.001)
    func = Gated()
    results = map_in_threadpool(func, range(100), limit=2)
    ended = False

    async def take() -> None:
        nonlocal ended
        try:
            await anext(results)
        finally:
            ended = True

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(take)
        await begun(func, 2)
        tasks.cancel_scope.cancel()
        await let_others_run()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0.01)
        assert not ended
        func.let_all_go()

    assert ended
    assert sorted(func.begun) == [0, 1]
    assert await all_of(results) == []


@pytest.mark.anyio
async def test_a_cancelled_worker_cancels_its_map(background: object) -> None:
    started = threading.Event()
    cancelled: list[int] = []

    async def wait(number: int) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            cancelled.append(number)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, lambda: list(map_in_eventloop_sync(wait, range(100), limit=2)))
        while not started.is_set():
            await anyio.sleep(0.001)
        await let_others_run()
        tasks.cancel_scope.cancel()

    assert sorted(cancelled) == [0, 1]


@pytest.mark.anyio
async def test_closing_waits_despite_cancellation() -> None:
    func = Gated()
    results = map_in_threadpool(func, range(100), limit=2)
    func.let_go(0)
    assert await anext(results) == 0
    await begun(func, 3)

    async def let_go_later() -> None:
        await let_others_run()
        assert len(func.ended) == 1
        func.let_all_go()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(let_go_later)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await results.aclose()

    assert scope.cancelled_caught
    assert sorted(func.ended) == [0, 1, 2]
    assert await all_of(results) == []
    await results.aclose()


@pytest.mark.anyio
async def test_after_break_nothing_begins_and_nobody_waits() -> None:
    func = Gated()
    func.let_go(0)
    async for _ in map_in_threadpool(func, range(100), limit=2):
        break
    drop_garbage()
    await let_others_run()
    count = len(func.begun)
    func.let_all_go()
    await let_others_run()

    assert len(func.begun) == count <= 3


def test_after_break_nothing_begins_and_nobody_waits_in_sync_code(sync_caller: Caller) -> None:
    func = Gated()
    func.let_go(0)

    def use() -> None:
        for _ in map_in_threadpool_sync(func, range(100), limit=2):
            break
        drop_garbage()

    sync_caller.make(use) if sync_caller.kind in ("main thread", "plain thread") else func.let_all_go()
    func.let_all_go()

    assert len(func.begun) <= 3


def test_one_that_was_never_begun_is_closed_or_dropped() -> None:
    with closing(map_in_threadpool_sync(double, BlockingInput(at=0))) as results:
        assert repr(results) == "<map_in_threadpool_sync(double, ...), not begun>"
    assert repr(results) == "<map_in_threadpool_sync(double, ...), ended>"
    assert list(results) == []
    map_in_threadpool_sync(double, [1])
    map_in_threadpool(double, [1])
    drop_garbage()


@pytest.mark.anyio
async def test_one_that_was_never_begun_is_closed_in_async_code() -> None:
    for source in ([1], letters(), BlockingInput(at=0)):
        results: Any = map_in_threadpool(double, source)
        await results.aclose()
        assert repr(results) == "<map_in_threadpool(double, ...), ended>"


def test_closing_drops_results_that_came_together(background: object) -> None:
    results = map_in_threadpool_sync(double, range(3))
    assert next(results) == 0
    results.close()

    assert list(results) == []
    results.close()


# Ctrl-C


def test_ctrl_c_waits_once(background: object) -> None:
    func = Gated()

    def interrupt() -> None:
        func.wait_for(2)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: results._consumer.run.stopped, "nothing is cancelled")
        func.let_all_go()

    results = map_in_threadpool_sync(func, range(100), limit=2)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        next(results)
    thread.join()

    assert sorted(func.ended) == [0, 1]
    assert list(results) == []


def test_a_second_ctrl_c_stops_waiting(background: object) -> None:
    func = Gated()

    def interrupt() -> None:
        func.wait_for(2)
        os.kill(os.getpid(), signal.SIGINT)
        wait_until(lambda: results._consumer._interrupts.times == 1, "it was not noticed")
        os.kill(os.getpid(), signal.SIGINT)

    results = map_in_threadpool_sync(func, range(100), limit=2)
    thread = threading.Thread(target=interrupt)
    thread.start()
    with pytest.raises(KeyboardInterrupt):
        next(results)
    thread.join()

    assert func.ended == []
    results.close()  # which does not wait any more either
    func.let_all_go()


# The end of the loop


def test_the_end_of_the_background_loop_ends_a_map(background: object) -> None:
    func = Gated()
    results = map_in_threadpool_sync(func, range(100), limit=2)
    func.let_go(0)
    assert next(results) == 0
    func.let_all_go()
    end_background_eventloop()

    with pytest.raises(LoopEndedError):
        list(results)


def test_the_end_of_a_loop_ends_its_maps(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    func = Gated()
    source = BlockingInput(at=3)
    results = map_in_threadpool(func, source)
    waiting: list[BaseException | None] = []

    async def take() -> None:
        await anext(results)

    name, options = anyio_backend
    with EventLoopThread(name, options) as loop:
        thread = threading.Thread(target=lambda: waiting.append(captured(partial(loop.run_sync, take))[1]))
        thread.start()
        func.wait_for(1)
        source.may_go_on.set()
        threading.Timer(0.02, func.let_all_go).start()
    thread.join()

    assert isinstance(waiting[0], LoopEndedError) or waiting == [None]


@pytest.mark.anyio
async def test_what_breaks_a_run_is_told_to_its_consumer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Alarm(Exception):  # noqa: N818
        """Raised by a signal handler, say."""

    def alarm(*args: object) -> None:
        raise Alarm

    results = map_in_threadpool(double, BlockingInput(at=1000), limit=1)
    assert await anext(results) == 0
    with monkeypatch.context() as patched:
        patched.setattr(_maprun.MapRun, "fill", alarm)
        results._consumer.run._fill_when_poked()
    with pytest.raises(Alarm):
        await all_of(results)

    results = map_in_threadpool(double, range(1000), limit=1)
    monkeypatch.setattr(_maprun.MapRun, "_note_result", alarm)
    with pytest.raises(Alarm):
        await all_of(results)


@pytest.mark.anyio
async def test_tasks_that_others_cancel_end_a_run() -> None:
    source = BlockingInput(at=1)
    results = map_in_threadpool(double, source, limit=2)
    assert await anext(results) == 0
    await run_in_threadpool(source.reached.wait, GRACE_SECONDS)
    results._consumer.run.items.reading.cancel()  # type: ignore[attr-defined]
    source.may_go_on.set()
    with pytest.raises(LoopEndedError):
        await all_of(results)

    source = BlockingInput(at=1)
    results = map_in_threadpool(double, source, limit=2)
    assert await anext(results) == 0
    run = results._consumer.run
    for map_task in run._map_tasks.copy():
        map_task.task.cancel()
    with pytest.raises(LoopEndedError):
        await anext(results)
    source.may_go_on.set()
    run._note_end_of(_maprun._MapTask())  # once more


@pytest.mark.anyio
async def test_a_call_that_begins_while_the_run_is_stopped_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    results = map_in_threadpool(double, range(10))
    submit = submit_here

    def stop_and_submit(*args: Any) -> None:
        results._consumer.run.stop()
        submit(*args)

    monkeypatch.setattr(_maprun, "submit_here", stop_and_submit)

    assert await all_of(results) == []


@pytest.mark.anyio
async def test_whoever_waits_goes_on_when_another_task_closes_it() -> None:
    source = BlockingInput(at=0)
    results = map_in_threadpool(double, source)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(all_of, results)
        await run_in_threadpool(source.reached.wait, GRACE_SECONDS)
        source.may_go_on.set()
        await results.aclose()


def test_whoever_waits_goes_on_when_another_thread_closes_it(background: object) -> None:
    source = BlockingInput(at=0)
    results = map_in_threadpool_sync(double, source)
    thread = threading.Thread(target=list, args=(results,))
    thread.start()
    assert source.reached.wait(GRACE_SECONDS)
    threading.Timer(0.02, source.may_go_on.set).start()
    results.close()
    thread.join()

    assert source.closed.wait(GRACE_SECONDS)


@pytest.mark.anyio
async def test_calls_in_executors_are_cancelled_too() -> None:
    func = Gated()
    with ThreadPoolExecutor(1) as executor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(all_of, map_in_executor(executor, func, range(10)))
            await begun(func, 1)
            tasks.cancel_scope.cancel()
            await let_others_run()
            func.let_all_go()
    assert func.begun == [0]


@pytest.mark.anyio
async def test_of_several_inputs_those_are_closed_that_can_be() -> None:
    source = BlockingInput(at=1000)
    results = map_in_threadpool(max, [1, 2, 3], source, limit=1)
    assert await anext(results) == 1
    await results.aclose()

    assert source.closed.is_set()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_in_a_forked_child_an_open_map_has_ended_and_new_ones_work(
    tmp_path: Path, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    assert Program(
        tmp_path,
        anyio_backend,
        """
        def use():
            try:
                list(results)
            except LoopEndedError:
                say("ended")
            say(list(map_in_threadpool_sync(abs, [-1, -2])))
        results = map_in_threadpool_sync(abs, iter(range(1000)), limit=1)
        say(next(results))
        in_child(use)
        say(next(results))
        results.close()
        """,
    ).run() == (0, "0\nended\n[1, 2]\nchild 0\n1\n", "")


@pytest.mark.anyio
async def test_an_executor_that_breaks_ends_the_map() -> None:
    executor = ThreadPoolExecutor(1)
    executor.shutdown()
    with pytest.raises(ExecutorError, match="was not accepted"):
        await all_of(map_in_executor(executor, double, [1]))
    with pytest.raises(TypeError):
        await all_of(map_in_eventloop(anyio.sleep, ["no number"]))
    gc.collect()
    assert in_plain_thread(lambda: list(map_in_threadpool_sync(double, [1]))) == [2]
