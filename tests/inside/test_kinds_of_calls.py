"""Started calls, maps, groups, twins and blocked loops: what statistics, observers and dumps know of them."""

from __future__ import annotations

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import process_functions
import pytest
from conftest import GRACE_SECONDS, Blocking, Caller, Gate, wait_until
from counting import PLACES, Counted, calls_in, dumped, fail_async, identity, lines_of
from map_functions import double

import unfazed.concurrency
from unfazed.concurrency import (
    CallGroup,
    CallObserver,
    EventLoopThread,
    ObservedCall,
    allow_blocking_loop,
    in_eventloop,
    in_processpool,
    in_threadpool,
    iterate_in_eventloop_sync,
    map_in_executor_sync,
    map_in_processpool_sync,
    map_in_threadpool,
    map_in_threadpool_sync,
    record_calls,
    run_in_eventloop_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
    start_in_eventloop,
    start_in_executor,
    start_in_threadpool,
    sync_twin,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from unfazed.concurrency import Handle


def start(place: str, executor: ThreadPoolExecutor, func: Any, *args: Any) -> Handle[Any]:
    first = (executor,) if place == "executor" else ()
    handle: Handle[Any] = getattr(unfazed.concurrency, f"start_in_{place}")(*first, func, *args)
    return handle


async def double_async(value: int) -> int:
    return value * 2


# Started calls


@pytest.mark.parametrize("place", PLACES)
def test_a_started_call_is_counted_and_told_when_its_handle_is_done(place: str, background: Any) -> None:
    good, bad = (identity, fail_async) if place == "eventloop" else (abs, process_functions.fail)
    counted = Counted()
    with ThreadPoolExecutor(1) as executor, record_calls() as calls:
        assert start(place, executor, good, 3).result() == 3
        with pytest.raises(ValueError, match="no"):
            start(place, executor, bad, ValueError("no")).result()

    assert counted(place) == {"returned": 1, "raised": 1}
    assert [(call.place, call.helper, call.caller, call.outcome) for call in calls] == [
        (place, f"start_in_{place}", "handle", "returned"),
        (place, f"start_in_{place}", "handle", "raised"),
    ]
    assert all(call.seconds_run is not None for call in calls)


@pytest.mark.parametrize("place", PLACES)
def test_a_started_call_that_nobody_observes_is_counted_alike(place: str, background: Any) -> None:
    good, bad = (identity, fail_async) if place == "eventloop" else (abs, process_functions.fail)
    counted = Counted()
    with ThreadPoolExecutor(1) as executor:
        assert start(place, executor, good, 3).result() == 3
        assert start(place, executor, bad, ValueError("no")).exception() is not None

    assert counted(place) == {"returned": 1, "raised": 1}


def test_a_started_call_that_is_cancelled_is_counted_as_such(background: Any) -> None:
    gate, may_end, begun = Gate(), anyio.Event, threading.Event()
    counted = Counted()

    async def wait() -> None:
        begun.set()
        await may_end().wait()

    with ThreadPoolExecutor(1) as executor:
        first = start_in_executor(executor, gate.wait)
        assert gate.reached.wait(10)
        queued = start_in_executor(executor, int)
        wait_until(lambda: calls_in("executor").waiting, "it is not submitted")
        assert queued.cancel()
        running = start_in_eventloop(wait)
        assert begun.wait(10)
        assert running.cancel()
        wait_until(running.done, "it goes on")
        gate.opened.set()
        first.result()
    wait_until(lambda: counted("executor").get("cancelled"), "it is not counted")

    assert counted("executor") == {"returned": 1, "cancelled": 1}
    assert counted("eventloop") == {"cancelled": 1}


def test_a_started_call_that_is_abandoned_or_late_is_counted_as_such(background: Any) -> None:
    counted, blocking, gate = Counted(), Blocking(), Gate()
    abandoned = in_threadpool(blocking, abandon_on_cancel=True).start()
    assert blocking.started.wait(10)
    assert abandoned.cancel()
    wait_until(abandoned.done, "it is waited for")
    late = in_threadpool(gate.wait, timeout=0.001).start()
    assert isinstance(late.exception(), TimeoutError)
    blocking.may_end.set()
    gate.opened.set()
    wait_until(lambda: not calls_in("threadpool").running, "the threads do not end")

    assert counted("threadpool") == {"abandoned": 1, "timed_out": 1}


def test_a_worker_process_that_dies_with_a_started_call_is_counted(background: Any) -> None:
    counted = Counted()
    assert in_processpool(process_functions.kill_own_process).start().exception() is not None

    assert counted("processpool") == {"worker_died": 1}


def test_a_started_call_is_dumped_with_who_waits_for_it(background: Any) -> None:
    gate = Gate()

    def wait_for(handle: Handle[None]) -> None:
        handle.result()

    started = start_in_threadpool(gate.wait)
    assert gate.reached.wait(10)
    waiting = start_in_threadpool(wait_for, started)
    wait_until(lambda: " waits for " in dumped(), "it does not wait")
    text = dumped()
    gate.opened.set()
    waiting.result()

    lines_of(
        text,
        r"^  \d+: start_in_threadpool\(Gate.wait\) for handle: has run",
        r"^  \d+: start_in_threadpool\(wait_for\) for handle: has run",
        r"^Chain: \d+ wait_for\(\) waits for \d+ Gate.wait\(\), which runs",
    )
    assert "2 run" not in text
    assert calls_in("threadpool").running == 0


def test_a_started_call_has_the_call_that_has_started_it_as_its_parent(background: Any) -> None:
    handles: list[Handle[int]] = []

    def outer() -> None:
        handles.append(start_in_threadpool(int))

    with record_calls() as calls:
        run_in_threadpool_sync(outer)
        handles.pop().result()

    assert [(call.function, call.parent) for call in calls] == [("outer", None), ("int", calls[0].number)]


def test_a_call_that_waits_for_its_loop_is_dumped(background: Any) -> None:
    """Its thread cannot be chosen before the background event loop, which is busy, has had a look."""
    gate = Gate()

    async def block() -> None:
        gate.wait()

    blocking = start_in_eventloop(block)
    assert gate.reached.wait(10)
    waiting = in_threadpool(double, timeout=10).start(1)
    text, seen = dumped(), calls_in("threadpool")
    gate.opened.set()
    blocking.result()
    waiting.result()

    assert (seen.waiting, seen.running) == (1, 0)
    lines_of(text, r"in_threadpool\(double\) for handle: has waited for a thread$")


def test_an_observer_is_told_of_the_end_before_the_handle_is_done(background: Any) -> None:
    done: list[bool] = []
    handles: list[Handle[int]] = []
    may_begin = threading.Event()

    class Looking(CallObserver):
        def ended(self, call: ObservedCall, error: BaseException | None) -> None:
            done.append(handles[0].done())

    def wait() -> int:
        assert may_begin.wait(10)
        return 1

    with unfazed.concurrency.observe(Looking()):
        handles.append(start_in_threadpool(wait))
        may_begin.set()
        assert handles[0].result() == 1

    assert done == [False]


# Groups


def test_the_calls_of_a_group_are_counted_and_the_group_is_not(background: Any) -> None:
    counted = Counted()
    with record_calls() as calls, CallGroup() as group:
        group.start_in_threadpool(double, 1)
        group.start_in_eventloop(double_async, 1)

    assert counted("threadpool") == {"returned": 1}
    assert counted("eventloop") == {"returned": 1}
    assert {call.helper for call in calls} == {"start_in_threadpool", "start_in_eventloop"}


@pytest.mark.anyio
async def test_a_group_in_a_worker_thread_is_the_parents_own(background: Any) -> None:
    def outer() -> None:
        with CallGroup() as group:
            group.start_in_threadpool(int)

    with record_calls() as calls:
        await run_in_threadpool(outer)

    assert [(call.function, call.parent) for call in calls] == [("outer", None), ("int", calls[0].number)]


# Maps


@pytest.mark.parametrize("place", PLACES)
def test_each_item_of_a_map_is_a_call(caller: Caller, place: str) -> None:
    sync = caller.kind != "async"
    helper = f"map_in_{place}{'_sync' if sync else ''}"
    extra = {"returned": 1} if caller.kind == "our worker" and place == "threadpool" else {}
    counted = Counted()
    with ThreadPoolExecutor(1) as executor, record_calls() as calls:
        first = (executor,) if place == "executor" else ()
        func = double_async if place == "eventloop" else double
        options = {"chunk": 1} if place == "processpool" else {}

        def use() -> Any:
            results = getattr(unfazed.concurrency, helper)(*first, func, range(3), **options)
            return list(results) if sync else _all_of(results)

        assert caller.make(use) == [0, 2, 4]

    assert counted(place) == {"returned": 3 + extra.get("returned", 0)}
    items = [call for call in calls if call.helper == helper]
    assert [(call.function, call.caller, call.outcome) for call in items] == [
        (func.__name__, "sync" if sync else "async", "returned")
    ] * 3
    parent = calls[0].number if caller.kind == "our worker" else None
    assert {call.parent for call in items} == {parent}


async def _all_of(results: Any) -> list[Any]:
    return [result async for result in results]


def test_items_that_travel_together_are_one_call(background: Any) -> None:
    counted = Counted()
    assert list(map_in_processpool_sync(double, range(6), chunk=3)) == [*range(0, 12, 2)]

    assert counted("processpool") == {"returned": 2}


def test_an_item_that_fails_is_counted_as_such(background: Any) -> None:
    counted = Counted()
    with ThreadPoolExecutor(1) as executor:
        list(map_in_executor_sync(executor, int, ["1", "x"], return_exceptions=True))
    list(map_in_threadpool_sync(int, ["1", "x"], return_exceptions=True))
    list(in_eventloop(fail_async).map.sync([ValueError()], return_exceptions=True))

    assert counted("executor") == counted("threadpool") == {"returned": 1, "raised": 1}
    assert counted("eventloop") == {"raised": 1}


@pytest.mark.anyio
async def test_what_a_map_runs_and_what_waits_is_dumped() -> None:
    gate, limiter = Gate(), anyio.CapacityLimiter(1)

    @in_threadpool(limiter=limiter)
    def wait(item: int) -> None:
        gate.wait()

    async def use() -> None:
        async for _ in wait.map(range(2), limit=2):
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        await gate.wait_until_reached()
        with anyio.fail_after(10):
            while not calls_in("threadpool").waiting:
                await anyio.sleep(0.001)
        text = dumped()
        gate.opened.set()

    lines_of(text, r"wait.map\(wait\) for async code: has run")
    lines_of(
        text, r"wait.map\(wait\) for async code: has waited .* for a slot, but 1 of 1 are taken, by wait\(\) \(1\)$"
    )


# Twins, and loops that are blocked on purpose


class AsyncShop:
    async def buy(self, item: str) -> str:
        return await run_in_threadpool(str.upper, item)


def test_the_calls_of_a_twin_are_counted_and_told(sync_caller: Caller) -> None:
    counted = Counted()
    with record_calls() as calls:

        def use() -> str:
            shop = sync_twin(AsyncShop)()
            bought: str = shop.buy("tea")
            return bought

        assert sync_caller.make(use) == "TEA"

    assert counted("eventloop") == {"returned": 2}  # the constructor, too
    bought, upper = calls[-2:]
    assert (bought.place, bought.helper, bought.function, bought.caller) == (
        "eventloop", "the twin of AsyncShop.buy", "AsyncShop.buy", "sync",
    )  # fmt: skip
    assert (upper.function, upper.parent) == ("str.upper", bought.number)


def test_a_call_that_blocks_a_loop_is_counted_told_and_dumped(background: Any) -> None:
    texts: list[str] = []
    counted = Counted()

    def look() -> None:
        texts.append(dumped())

    async def block() -> None:
        with allow_blocking_loop():
            run_in_threadpool_sync(look)

    with EventLoopThread(background[0], name="mine") as loop:
        loop.run_sync(block)
        with record_calls() as calls:
            loop.run_sync(block)

    assert counted("threadpool") == counted("eventloop") == {"returned": 2}
    assert [(call.function, call.parent) for call in calls] == [("block", None), ("look", calls[0].number)]
    for text in texts:
        lines_of(
            text,
            r"^  \d+: run_sync\(block\) for sync code in MainThread \(\d+\): has run",
            r"^    \d+: run_in_threadpool_sync\(look\) for sync code in mine \(\d+\): has run",
            r"^Chain: \d+ block\(\) waits for \d+ look\(\), which runs$",
        )


def test_a_step_of_an_iterator_is_dumped(background: Any) -> None:
    gate = Gate()

    async def numbers() -> AsyncIterator[int]:
        await run_in_threadpool(gate.wait)
        yield 1

    iterating = threading.Thread(target=list, args=(iterate_in_eventloop_sync(numbers()),))
    iterating.start()
    assert gate.reached.wait(10)
    text = dumped()
    gate.opened.set()
    iterating.join()

    lines_of(text, r"^  \d+: iterate_in_eventloop_sync\(.*numbers\) for sync code in .*: has run")


# Parents of calls that nobody observes


@pytest.mark.anyio
async def test_a_dump_finds_parents_in_executors_and_in_async_functions(background: Any) -> None:
    gate = Gate()

    def in_executor_thread() -> None:
        run_in_eventloop_sync(in_background)

    async def in_background() -> None:
        await run_in_threadpool(gate.wait)

    with ThreadPoolExecutor(1) as executor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(unfazed.concurrency.run_in_executor, executor, in_executor_thread))
            await gate.wait_until_reached()
            text = dumped()
            gate.opened.set()

    below = "    " if _knows_coroutines() else ""
    lines_of(
        text,
        r"^  \d+: run_in_executor\(in_executor_thread\) for async code: has run",
        r"^    \d+: run_in_eventloop_sync\(in_background\) for sync code in ThreadPoolExecutor",
        rf"^  {below}\d+: run_in_threadpool\(Gate.wait\) for async code: has run",
    )


def _knows_coroutines() -> bool:
    from unfazed.concurrency._inside import _parents

    return bool(_parents.HAS_GIL)


@pytest.mark.anyio
async def test_each_kind_of_call_that_an_async_function_awaits_is_below_it(background: Any) -> None:
    if not _knows_coroutines():
        pytest.skip("without a GIL, the frames of tasks are left alone")
    gate = Gate()
    with ThreadPoolExecutor(1) as executor:
        awaited: dict[str, Any] = {
            "run_in_executor": partial(unfazed.concurrency.run_in_executor, executor, gate.wait),
            "run_in_eventloop": partial(unfazed.concurrency.run_in_eventloop, run_in_threadpool, gate.wait),
        }

        async def outer(name: str) -> None:
            await awaited[name]()

        for name in awaited:
            gate.reached.clear()
            gate.opened.clear()
            handle = start_in_eventloop(outer, name)
            await gate.wait_until_reached()
            below = re.compile(rf"^    \d+: {name}\(", re.MULTILINE)
            with anyio.fail_after(GRACE_SECONDS):
                while not below.search(dumped()):  # not yet: the function has begun before its caller awaits it
                    await anyio.sleep(0.001)
            text = dumped()
            gate.opened.set()
            await handle
            lines_of(text, r"^  \d+: start_in_eventloop\(outer\) for handle", below.pattern)


@pytest.mark.anyio
async def test_a_map_in_a_worker_has_that_as_its_parent() -> None:
    async def use() -> None:
        async for _ in map_in_threadpool(int, [1]):
            pass

    with record_calls() as calls:
        await run_in_threadpool(partial(run_in_eventloop_sync, use))

    numbers = [call.number for call in calls]
    assert [call.parent for call in calls] == [None, *numbers[:-1]]
