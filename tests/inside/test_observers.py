"""`observe` and `record_calls`: what observers are told, where, and that they harm nobody."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import process_functions
import pytest
from conftest import Blocking, Caller, captured_async, wait_until

from unfazed.concurrency import (
    CallObserver,
    EventLoopThread,
    ObservedCall,
    WrongOptionError,
    contextmanager_in_threadpool,
    in_eventloop,
    in_threadpool,
    observe,
    record_calls,
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
    from collections.abc import Iterator

PLACES = ("threadpool", "processpool", "executor", "eventloop")
span: ContextVar[int] = ContextVar("span", default=0)


class Log(CallObserver):
    """Notes what it is told, and sets a context variable when a call begins."""

    def __init__(self) -> None:
        self.events: list[tuple[str, ObservedCall]] = []
        self.errors: dict[int, BaseException | None] = {}

    def queued(self, call: ObservedCall) -> None:
        self.events.append(("queued", call))

    def begun(self, call: ObservedCall) -> None:
        self.events.append(("begun", call))
        span.set(call.number)

    def ended(self, call: ObservedCall, error: BaseException | None) -> None:
        self.events.append(("ended", call))
        self.errors[call.number] = error

    def calls(self) -> list[ObservedCall]:
        return [call for event, call in self.events if event == "queued"]

    def of(self, call: ObservedCall) -> list[str]:
        return [event for event, each in self.events if each is call]


@pytest.fixture
def log() -> Iterator[Log]:
    log = Log()
    with observe(log):
        yield log


async def identity(value: Any) -> Any:
    return value


async def fail_async(error: BaseException) -> None:
    raise error


def read_span(*_: object) -> int:
    return span.get()


async def read_span_async() -> int:
    return span.get()


@pytest.mark.parametrize("place", PLACES)
def test_each_call_is_told_from_its_beginning_to_its_end(caller: Caller, place: str, log: Log) -> None:
    with ThreadPoolExecutor(1) as executor:
        first = (executor,) if place == "executor" else ()
        assert caller(place, *first, identity if place == "eventloop" else abs, 3) == 3

    call = log.calls()[-1]
    assert log.of(call) == ["queued", "begun", "ended"]
    kind = "async" if caller.kind == "async" else "sync"
    assert (call.place, call.function, call.caller) == (place, "identity" if place == "eventloop" else "abs", kind)
    assert call.helper == f"run_in_{place}" + ("" if kind == "async" else "_sync")
    assert call.outcome == "returned"
    assert log.errors[call.number] is None
    assert call.seconds_waited is not None
    assert call.seconds_waited >= 0
    assert call.seconds_run is not None
    assert call.seconds_run >= 0
    if caller.kind == "our worker":
        (outer, inner) = log.calls()
        assert (outer.function, outer.parent, inner.parent) == ("captured", None, outer.number)
        assert log.of(outer) == ["queued", "begun", "ended"]
    else:
        assert call.parent is None


@pytest.mark.parametrize("place", PLACES)
def test_what_a_call_raises_is_told(caller: Caller, place: str, log: Log) -> None:
    error = ValueError("no")
    with ThreadPoolExecutor(1) as executor:
        first = (executor,) if place == "executor" else ()
        with pytest.raises(ValueError, match="no"):
            caller(place, *first, fail_async if place == "eventloop" else process_functions.fail, error)

    call = log.calls()[-1]
    assert call.outcome == "raised"
    assert repr(log.errors[call.number]) == repr(error)


@pytest.mark.parametrize("place", ["threadpool", "executor", "eventloop"])
def test_what_an_observer_sets_is_seen_by_the_function_alone(caller: Caller, place: str, log: Log) -> None:
    with ThreadPoolExecutor(1) as executor:
        first = (executor,) if place == "executor" else ()
        seen = caller(place, *first, read_span_async if place == "eventloop" else read_span)

    assert seen == log.calls()[-1].number
    assert span.get() == 0


def test_a_call_in_another_process_changes_nothing_in_its_callers_context(caller: Caller, log: Log) -> None:
    assert caller("processpool", read_span) == 0
    assert span.get() == 0


@pytest.mark.anyio
async def test_nested_calls_have_their_parents_across_all_places(log: Log) -> None:
    with ThreadPoolExecutor(1) as executor:

        def in_executor_thread() -> None:
            run_in_processpool_sync(int)

        async def in_background() -> None:
            await run_in_executor(executor, in_executor_thread)

        def in_thread() -> None:
            run_in_eventloop_sync(in_own_loop)

        async def in_own_loop() -> None:
            await run_in_eventloop(in_background)

        await run_in_threadpool(in_thread)

    calls = log.calls()
    assert [call.function for call in calls] == [
        "in_thread",
        "in_own_loop",
        "in_background",
        "in_executor_thread",
        "int",
    ]
    assert [call.parent for call in calls] == [None, *(call.number for call in calls[:-1])]
    assert all(log.of(call) == ["queued", "begun", "ended"] for call in calls)


@pytest.mark.anyio
async def test_siblings_have_the_same_parent(log: Log) -> None:
    def outer() -> None:
        run_in_threadpool_sync(int)
        run_in_eventloop_sync(identity, 1)
        run_in_threadpool_sync(float)

    await run_in_threadpool(outer)

    first, *others = log.calls()
    assert [call.parent for call in others] == [first.number] * 3


@pytest.mark.anyio
async def test_a_call_in_the_current_loop_is_a_parent_and_leaves_no_trace(log: Log) -> None:
    @in_eventloop
    async def outer() -> int:
        await run_in_threadpool(int)
        return span.get()

    assert await outer() == 0
    await run_in_threadpool(float)
    with pytest.raises(ValueError, match="no"):
        await in_eventloop(fail_async)(ValueError("no"))

    first, nested, sibling, failed = log.calls()
    assert (first.helper, first.place, first.outcome) == ("in_eventloop", "eventloop", "returned")
    assert (nested.parent, sibling.parent, failed.parent) == (first.number, None, None)
    assert failed.outcome == "raised"


@pytest.mark.anyio
async def test_calls_in_a_context_that_was_given_have_the_right_parents(log: Log) -> None:
    context = copy_context()

    async def outer_async() -> None:
        await run_in_threadpool(float)

    def outer() -> None:
        run_in_threadpool_sync(int)

    await in_threadpool(outer, context=context)()
    await in_eventloop(outer_async, context=context)()

    first, below, second, below_second = log.calls()
    assert (below.parent, second.parent, below_second.parent) == (first.number, None, second.number)


@pytest.mark.anyio
async def test_a_call_that_never_begins_has_waited_and_not_run(log: Log) -> None:
    with anyio.CancelScope() as scope:
        scope.cancel()
        await run_in_threadpool(int)

    (call,) = log.calls()
    assert log.of(call) == ["queued", "ended"]
    assert (call.outcome, call.seconds_run) == ("cancelled", None)
    assert call.seconds_waited is not None


@pytest.mark.anyio
async def test_an_abandoned_call_ends_for_its_caller(log: Log) -> None:
    blocking = Blocking()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_threadpool(blocking, abandon_on_cancel=True))
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()

    assert log.calls()[-1].outcome == "abandoned"
    blocking.may_end.set()
    wait_until(lambda: not statistics().abandoned_threads, "the thread does not end")


def test_a_call_that_is_over_does_not_begin(log: Log) -> None:
    call = ObservedCall(1, 0, "threadpool", "f", "run_in_threadpool", "async")
    call.tell_ended("abandoned", None)
    call.tell_begun()

    assert log.of(call) == ["ended"]
    assert repr(call) == "<call 1: run_in_threadpool(f), for async, abandoned>"


@pytest.mark.anyio
async def test_steps_of_context_managers_are_told(log: Log) -> None:
    async with contextmanager_in_threadpool(threading.Lock()):
        pass

    enter, leave = log.calls()
    assert {enter.helper, leave.helper, enter.function} == {"contextmanager_in_threadpool"}
    assert log.of(leave) == ["queued", "begun", "ended"]


def test_a_call_to_a_loop_of_ones_own_is_told(log: Log, anyio_backend: tuple[str, Any]) -> None:
    with EventLoopThread(*anyio_backend) as loop:
        assert loop.run_sync(identity, 1) == 1
        assert anyio.run(partial(loop.run, identity, 2)) == 2

    assert [(call.helper, call.function, call.caller) for call in log.calls()] == [
        ("run_sync", "identity", "sync"),
        ("run", "identity", "async"),
    ]


# Observers harm nobody


class Failing(CallObserver):
    def queued(self, call: ObservedCall) -> None:
        raise ValueError("queued")

    def begun(self, call: ObservedCall) -> None:
        raise ValueError("begun")

    def ended(self, call: ObservedCall, error: BaseException | None) -> None:
        raise ValueError("ended")


@pytest.mark.parametrize("place", PLACES)
def test_what_an_observer_raises_is_logged_once(
    caller: Caller, place: str, caplog: pytest.LogCaptureFixture, log: Log
) -> None:
    with ThreadPoolExecutor(1) as executor, observe(Failing()), caplog.at_level(logging.ERROR):
        first = (executor,) if place == "executor" else ()
        for _ in range(2):
            assert caller(place, *first, identity if place == "eventloop" else abs, 3) == 3

    (record,) = caplog.records
    assert record.name == "unfazed.concurrency"
    assert record.message.startswith("Failing.queued() raised an error; that harms no call")
    assert record.exc_info is not None
    assert log.of(log.calls()[-1]) == ["queued", "begun", "ended"]


def test_a_call_that_an_observer_makes_is_not_observed(background: Any) -> None:
    seen: list[str] = []

    class Calling(CallObserver):
        def ended(self, call: ObservedCall, error: BaseException | None) -> None:
            seen.append(call.function)
            run_in_threadpool_sync(run_in_eventloop_sync, identity, 1)

    with observe(Calling()):
        run_in_threadpool_sync(int)

    assert seen == ["int"]


def test_an_observer_need_not_override_anything(background: Any) -> None:
    with observe(CallObserver()):
        assert run_in_threadpool_sync(int) == 0


# Beginning and stopping


def test_it_observes_from_the_call_until_stop(background: Any) -> None:
    log = Log()
    observation = observe(log)
    assert repr(observation).endswith("), observing>")
    run_in_threadpool_sync(int)
    observation.stop()
    observation.stop()
    run_in_threadpool_sync(int)

    assert len(log.calls()) == 1
    assert repr(observation).endswith("stopped>")


@pytest.mark.anyio
async def test_a_call_that_runs_already_is_not_told_and_one_that_runs_still_is_told_no_more() -> None:
    early, late, first, second = Log(), Log(), Blocking(), Blocking()
    observation = observe(early)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, first)
        await first.wait_until_started()
        observation.stop()
        with observe(late):
            first.may_end.set()
            second.may_end.set()
            await run_in_threadpool(second)

    assert [event for event, _ in early.events] == ["queued", "begun"]
    assert [call.number for call in late.calls()] == [call.number for event, call in late.events if event == "ended"]
    assert len(late.calls()) == 1


def test_what_is_no_observer_is_refused() -> None:
    with pytest.raises(WrongOptionError, match=r"observe\(\) expected an object of a class that inherits CallObserver"):
        observe(print)  # type: ignore[arg-type]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_goes_on_observing() -> None:
    source = """
import os, warnings
warnings.simplefilter("ignore")
from unfazed.concurrency import record_calls, run_in_threadpool_sync
with record_calls() as calls:
    run_in_threadpool_sync(int)
    if os.fork() == 0:
        run_in_threadpool_sync(int)
        print(len(calls), calls[-1].parent, flush=True)
        os._exit(0)
    os.wait()
    print(len(calls))
"""
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=50, check=False)

    assert (done.stdout.split(), done.stderr) == (["2", "None", "1"], "")


# record_calls


@pytest.mark.anyio
async def test_the_calls_of_a_block_are_recorded() -> None:
    await run_in_threadpool(int)
    with record_calls() as calls:
        await run_in_threadpool(run_in_threadpool_sync, float)
        _, error = await captured_async(partial(run_in_processpool, process_functions.fail, ValueError()))
    await run_in_threadpool(int)

    assert isinstance(error, ValueError)
    assert [(call.place, call.function, call.outcome) for call in calls] == [
        ("threadpool", "run_in_threadpool_sync", "returned"),
        ("threadpool", "float", "returned"),
        ("processpool", "fail", "raised"),
    ]
    assert calls[1].parent == calls[0].number


def test_calls_of_other_threads_are_recorded(background: Any) -> None:
    with record_calls() as calls, ThreadPoolExecutor(1) as executor:
        executor.submit(run_in_threadpool_sync, int).result()
        run_in_executor_sync(executor, float)

    assert [call.function for call in calls] == ["int", "float"]
