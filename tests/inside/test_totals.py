"""What `statistics()` has counted: calls by place and outcome, for every place and every kind of caller."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import process_functions
import pytest
from conftest import GRACE_SECONDS, Blocking, Caller, Gate, captured, captured_async, wait_until
from counting import PLACES, Counted, fail_async, identity

from unfazed.concurrency import (
    CallTimeoutError,
    LoopThreadError,
    WorkerProcessError,
    contextmanager_in_eventloop_sync,
    contextmanager_in_threadpool,
    in_eventloop,
    in_executor,
    in_processpool,
    in_threadpool,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_executor,
    run_in_executor_sync,
    run_in_processpool,
    run_in_processpool_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
    statistics,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

# What calls come to


@pytest.mark.parametrize("place", PLACES)
def test_calls_are_counted_by_place_and_outcome(caller: Caller, place: str) -> None:
    nested = {"returned": 1} if caller.kind == "our worker" and place == "threadpool" else {}
    with ThreadPoolExecutor(1) as executor:
        first = (executor,) if place == "executor" else ()
        good, bad = (identity, fail_async) if place == "eventloop" else (abs, process_functions.fail)
        counted = Counted()

        assert caller(place, *first, good, 3) == 3

        assert counted(place) == {"returned": 1 + nested.get("returned", 0)}

        counted = Counted()
        with pytest.raises(ValueError, match="no"):
            caller(place, *first, bad, ValueError("no"))

        assert counted(place) == {"raised": 1, **nested}


@pytest.mark.parametrize("place", PLACES)
def test_calls_of_dual_callables_are_counted_alike(caller: Caller, place: str) -> None:
    with ThreadPoolExecutor(1) as executor:
        duals: dict[str, Any] = {
            "threadpool": in_threadpool(timeout=GRACE_SECONDS)(abs),
            "processpool": in_processpool(timeout=GRACE_SECONDS)(abs),
            "executor": in_executor(executor, timeout=GRACE_SECONDS)(abs),
            "eventloop": in_eventloop(timeout=GRACE_SECONDS)(identity),
        }
        counted = Counted()

        assert caller.dual(duals[place], 3) == 3

        extra = 1 if caller.kind == "our worker" and place == "threadpool" else 0
        assert counted(place) == {"returned": 1 + extra}


@pytest.mark.anyio
async def test_a_call_in_a_scope_that_is_cancelled_is_counted_as_cancelled() -> None:
    counted = Counted()
    with ThreadPoolExecutor(1) as executor:
        calls: list[Callable[[], Any]] = [
            lambda: run_in_threadpool(int),
            lambda: run_in_processpool(int),
            lambda: run_in_executor(executor, int),
            lambda: run_in_eventloop(identity, 1),
            lambda: in_eventloop(anyio.sleep)(0),
        ]
        for call in calls:
            with anyio.CancelScope() as scope:
                scope.cancel()
                await call()

    assert [counted(place) for place in PLACES] == [{"cancelled": 1}] * 3 + [{"cancelled": 2}]


@pytest.mark.anyio
async def test_the_end_of_a_timeout_is_counted_as_such() -> None:
    counted, blocking, gate = Counted(), Blocking(), Gate()
    thread = in_threadpool(blocking, timeout=0.001)
    with ThreadPoolExecutor(1) as executor:
        calls: list[Callable[[], Any]] = [
            thread,
            in_executor(executor, gate.wait, timeout=0.001),
            lambda: in_processpool(process_functions.end_at_once, timeout=0)(1),
            lambda: in_eventloop(anyio.sleep, timeout=0.001)(GRACE_SECONDS),
        ]
        for call in calls:
            with pytest.raises(CallTimeoutError):
                await call()
        gate.opened.set()
        blocking.may_end.set()
    wait_until(lambda: not statistics().abandoned_threads, "the thread does not end")

    assert [counted(place) for place in PLACES] == [{"timed_out": 1}] * 4


def test_the_end_of_a_timeout_in_sync_code_is_counted_as_such(background: Any) -> None:
    counted, gate = Counted(), Gate()
    with ThreadPoolExecutor(1) as executor:
        calls: list[Callable[[], Any]] = [
            in_threadpool(gate.wait, timeout=0.001).sync,
            in_executor(executor, gate.wait, timeout=0.001).sync,
            lambda: in_processpool(process_functions.end_at_once, timeout=0).sync(1),
            lambda: in_eventloop(anyio.sleep, timeout=0.001).sync(GRACE_SECONDS),
        ]
        for call in calls:
            with pytest.raises(CallTimeoutError):
                call()
        gate.opened.set()

    wait_until(lambda: not statistics().abandoned_threads, "the thread does not end")

    assert [counted(place) for place in PLACES] == [{"timed_out": 1}] * 4


@pytest.mark.anyio
async def test_a_timeout_of_what_the_function_calls_is_what_it_has_raised() -> None:
    counted = Counted()
    inner = in_eventloop(anyio.sleep, timeout=0.001)

    calls: list[Callable[[], Any]] = [
        lambda: run_in_threadpool(inner.sync, 9),
        lambda: run_in_eventloop(outer_of(inner)),
    ]
    for call in calls:
        with pytest.raises(CallTimeoutError):
            await call()

    assert counted("threadpool") == {"raised": 1}
    assert counted("eventloop") == {"raised": 1, "timed_out": 2}


def outer_of(inner: Callable[..., Any]) -> Callable[[], Any]:
    async def outer() -> None:
        await inner(9)

    return outer


@pytest.mark.anyio
async def test_what_an_async_function_raises_is_told_from_its_cancellation() -> None:
    counted = Counted()

    assert isinstance((await captured_async(partial(run_in_eventloop, fail_async, SystemExit(1))))[1], SystemExit)

    assert counted("eventloop") == {"raised": 1}


@pytest.mark.anyio
async def test_a_worker_that_dies_is_counted_as_such() -> None:
    counted = Counted()

    with pytest.raises(WorkerProcessError):
        await run_in_processpool(process_functions.kill_own_process)

    assert counted("processpool") == {"worker_died": 1}


def test_each_step_of_iterators_and_context_managers_is_counted(caller: Caller) -> None:
    counted = Counted()

    async def numbers() -> AsyncIterator[int]:
        yield 1

    class Manager:
        async def __aenter__(self) -> int:
            return 1

        async def __aexit__(self, *exc_info: object) -> None: ...

    def sync() -> None:
        assert list(iterate_in_eventloop_sync(numbers())) == [1]
        with contextmanager_in_eventloop_sync(Manager()):
            pass

    if caller.kind != "async":
        caller.make(sync)
        assert counted("eventloop") == {"returned": 5}  # 1, the end, closing; entering, leaving
        return

    async def use() -> None:
        assert [item async for item in iterate_in_threadpool([1])] == [1]
        async with contextmanager_in_threadpool(threading.Lock()):
            pass

    caller.run(use)
    wait_until(lambda: counted("threadpool") == {"returned": 5}, "a step is not counted")  # and closing the iterator


@pytest.mark.usefixtures("background")
def test_counts_are_exact_with_many_threads() -> None:
    counted, times = Counted(), 200

    def call_often() -> None:
        for _ in range(times):
            assert run_in_threadpool_sync(int) == 0

    threads = [threading.Thread(target=call_often) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GRACE_SECONDS * 5)

    assert counted("threadpool") == {"returned": 8 * times}


def test_a_call_that_is_refused_is_not_counted(background: Any) -> None:
    counted = Counted()
    with ThreadPoolExecutor(1) as executor:
        calls: list[Callable[[], Any]] = [
            lambda: run_in_threadpool_sync(int),
            lambda: run_in_processpool_sync(int),
            lambda: run_in_executor_sync(executor, int),
            lambda: run_in_eventloop_sync(identity, 1),
            lambda: in_eventloop(identity).sync(1),
            lambda: contextmanager_in_eventloop_sync(Failing()).__enter__(),
        ]

        async def make_all() -> list[object]:
            return [captured(call)[1] for call in calls]

        errors = anyio.run(make_all)

    assert all(isinstance(error, LoopThreadError) for error in errors)
    assert [counted(place) for place in PLACES] == [{}] * 4


class Harmless:
    async def __aenter__(self) -> int:
        return 1

    async def __aexit__(self, *exc_info: object) -> None: ...


class Failing(Harmless):
    async def __aexit__(self, *exc_info: object) -> None:
        raise ValueError("no")


def test_a_step_that_raises_or_is_refused_is_counted_once(background: Any) -> None:
    counted = Counted()
    manager = contextmanager_in_eventloop_sync(Harmless())
    assert manager.__enter__() == 1

    async def leave_in_a_loop() -> object:
        return captured(lambda: manager.__exit__(None, None, None))[1]

    assert isinstance(anyio.run(leave_in_a_loop), LoopThreadError)
    assert counted("eventloop") == {"returned": 1}

    counted = Counted()
    with pytest.raises(ValueError, match="no"), contextmanager_in_eventloop_sync(Failing()):
        pass

    assert counted("eventloop") == {"returned": 1, "raised": 1}
