"""A loop that stands still on purpose: the slots that its tasks hold."""

from __future__ import annotations

import re
import sys
import threading
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import process_functions
import pytest
from conftest import GRACE_SECONDS, Blocking, captured, let_others_run, wait_for_event, wait_until

from unfazed.concurrency import (
    CallGroup,
    EventLoopThread,
    LoopThreadError,
    allow_blocking_loop,
    in_processpool,
    in_threadpool,
    run_in_eventloop_sync,
    run_in_threadpool_sync,
)
from unfazed.concurrency._core import _blockedloops, _limits, _slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

Backend = tuple[str, dict[str, Any]]
SLOT = r"needs a slot that is taken in the event loop of the thread 'MainThread', which .*\(\) blocks until then"


@pytest.fixture
def limiter() -> anyio.CapacityLimiter:
    return anyio.CapacityLimiter(1)


def run(backend: Backend, afn: Callable[..., Any], *args: Any) -> Any:
    name, options = backend
    return anyio.run(afn, *args, backend=name, backend_options=options)


def when_it_stands_still(act: Callable[[], object]) -> None:
    """Call *act* in another thread, once a loop stands still."""

    def wait_and_act() -> None:
        wait_until(lambda: _blockedloops.blocked_loops, "the loop does not stand still")
        act()

    threading.Thread(target=wait_and_act).start()


@asynccontextmanager
async def process_call(limiter: anyio.CapacityLimiter, folder: Path) -> AsyncIterator[None]:
    """Have a task of this loop make a call in a process, which runs until we leave.

    Before it has begun, what the loop waits for would get its slot.
    """

    def begins() -> bool:
        limit = _limits.limits.get(id(limiter))
        calls = [] if limit is None else [slot.call for slot in limit.holders.copy()]
        return any(call is not None and call.place == "processpool" and call.began for call in calls)

    async with anyio.create_task_group() as tasks:
        call = in_processpool(process_functions.touch_then_wait_for, limiter=limiter)
        tasks.start_soon(call, folder / "begun", folder / "may end")
        try:
            with anyio.fail_after(GRACE_SECONDS):
                while not begins():
                    await anyio.sleep(0.001)
            yield
        finally:
            (folder / "may end").touch()


@pytest.mark.parametrize("ends", ["before", "meanwhile"])
def test_a_thread_that_has_ended_gives_its_slot_back_without_its_loop(
    background: Backend, limiter: anyio.CapacityLimiter, ends: str
) -> None:
    blocking = Blocking()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_threadpool(blocking, limiter=limiter))
            await blocking.wait_until_started()
            if ends == "before":
                blocking.may_end.set()
                wait_until(lambda: blocking.ended, "it does not end")  # on the thread of the loop, which sees nothing
            else:
                when_it_stands_still(blocking.may_end.set)
            with allow_blocking_loop():
                assert in_threadpool(int, limiter=limiter).sync("5") == 5

    run(background, main)


def test_a_call_that_queues_before_a_worker_of_the_loop_is_let_in(
    background: Backend, limiter: anyio.CapacityLimiter
) -> None:
    """The worker waits for the loop, and so lends its slot; rule 3 lets the other one in."""
    called = threading.Event()

    def call_the_loop() -> None:
        called.set()
        wait_until(lambda: _blockedloops.blocked_loops, "the loop does not stand still")
        run_in_eventloop_sync(anyio.sleep, 0)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_threadpool(call_the_loop, limiter=limiter))
            await wait_for_event(called)
            with allow_blocking_loop():
                assert in_threadpool(int, limiter=limiter).sync("5") == 5

    run(background, main)


@pytest.mark.parametrize("how", [in_processpool, in_threadpool])
def test_a_slot_that_only_a_task_of_the_loop_can_give_back_is_refused(
    background: Backend, limiter: anyio.CapacityLimiter, how: Any, tmp_path: Path
) -> None:
    async def main() -> None:
        async with process_call(limiter, tmp_path):
            with allow_blocking_loop(), pytest.raises(LoopThreadError, match=SLOT):
                how(int, limiter=limiter).sync("5")
        with allow_blocking_loop():
            assert how(int, limiter=limiter).sync("5") == 5

    run(background, main)


def test_such_a_slot_is_refused_to_worker_threads_that_the_loop_waits_for(
    background: Backend, limiter: anyio.CapacityLimiter, tmp_path: Path
) -> None:
    def in_thread() -> Any:
        return in_processpool(int, limiter=limiter).sync("5")

    async def main() -> None:
        async with process_call(limiter, tmp_path):
            with allow_blocking_loop(), pytest.raises(LoopThreadError, match=SLOT):
                run_in_threadpool_sync(in_thread)

    run(background, main)


def test_where_others_hold_slots_as_well_a_call_is_let_in(background: Backend, tmp_path: Path) -> None:
    """One holder is a process call of the loop, the other a worker that waits for the loop."""
    limiter = anyio.CapacityLimiter(2)
    called = threading.Event()

    def call_the_loop() -> None:
        called.set()
        wait_until(lambda: _blockedloops.blocked_loops, "the loop does not stand still")
        run_in_eventloop_sync(anyio.sleep, 0)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_threadpool(call_the_loop, limiter=limiter))
            await wait_for_event(called)
            async with process_call(limiter, tmp_path):
                with allow_blocking_loop():
                    assert in_threadpool(int, limiter=limiter).sync("5") == 5

    run(background, main)


def test_a_slot_of_another_loop_is_waited_for(background: Backend, limiter: anyio.CapacityLimiter) -> None:
    blocking = Blocking()
    call = in_threadpool(blocking, limiter=limiter)

    async def main() -> None:
        when_it_stands_still(lambda: threading.Timer(0.1, blocking.may_end.set).start())
        with allow_blocking_loop():
            assert in_threadpool(int, limiter=limiter).sync("5") == 5

    with EventLoopThread(*background) as other:
        waiting = threading.Thread(target=lambda: captured(partial(other.run_sync, call)))
        waiting.start()
        assert blocking.started.wait(GRACE_SECONDS)
        run(background, main)
        waiting.join(GRACE_SECONDS)


def test_who_is_not_waited_for_is_not_refused(
    background: Backend, limiter: anyio.CapacityLimiter, tmp_path: Path
) -> None:
    """It queues for the same slot, and gets it when the loop goes on."""
    outcomes: list[Any] = []

    def queue() -> None:
        outcomes.append(captured(partial(in_threadpool(int, limiter=limiter).sync, "6")))

    async def main() -> None:
        async with process_call(limiter, tmp_path):
            other = threading.Thread(target=queue)
            other.start()
            wait_until(lambda: _slots._watched, "it does not queue")
            with allow_blocking_loop(), pytest.raises(LoopThreadError, match=SLOT):
                in_threadpool(int, limiter=limiter).sync("5")
            assert not outcomes
        await anyio.to_thread.run_sync(other.join, GRACE_SECONDS)

    run(background, main)

    assert outcomes == [(6, None)]


@pytest.mark.parametrize("how", ["async with", "anyio's thread"])
def test_tokens_that_a_task_of_the_loop_has_borrowed_are_refused(
    background: Backend, limiter: anyio.CapacityLimiter, how: str
) -> None:
    may_end, ends = anyio.Event(), threading.Event()

    async def hold() -> None:
        if how == "async with":
            async with limiter:
                await may_end.wait()
        else:
            await anyio.to_thread.run_sync(ends.wait, GRACE_SECONDS, limiter=limiter)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold)
            await let_others_run()
            with allow_blocking_loop(), pytest.raises(LoopThreadError, match=SLOT):
                in_threadpool(int, limiter=limiter).sync("5")
            may_end.set()
            ends.set()

    run(background, main)


def test_tokens_that_a_task_of_another_loop_has_borrowed_are_waited_for(limiter: anyio.CapacityLimiter) -> None:
    held, may_end = threading.Event(), threading.Event()

    async def hold() -> None:
        async with limiter:
            held.set()
            while not may_end.is_set():
                await anyio.sleep(0.001)

    async def main() -> None:
        when_it_stands_still(lambda: threading.Timer(0.1, may_end.set).start())
        with allow_blocking_loop():
            assert in_threadpool(int, limiter=limiter).sync("5") == 5

    with EventLoopThread() as other:
        waiting = threading.Thread(target=lambda: other.run_sync(hold))
        waiting.start()
        assert held.wait(GRACE_SECONDS)
        run(("asyncio", {}), main)
        waiting.join(GRACE_SECONDS)


def in_a_group(call: Any) -> int:
    with CallGroup() as group:
        handle = group.add(call.start("5"))
    return int(handle.result())


def in_a_map(call: Any) -> int:
    return sum(call.map.sync(["5"]))


WAITS: dict[str, Callable[[Any], int]] = {
    "a call": lambda call: call.sync("5"),
    "a handle": lambda call: call.start("5").result(),
    "a group": in_a_group,
    "a map": in_a_map,
}
ways = pytest.mark.parametrize("way", WAITS)


@ways
def test_a_slot_on_which_nothing_runs_yet_is_lent_to_what_the_loop_waits_for(
    background: Backend, limiter: anyio.CapacityLimiter, way: str
) -> None:
    """1: a task of the loop queues for the slot. 2: the loop is blocked. 3: the task is granted the slot."""
    first = Blocking()
    results: list[int] = []

    async def later() -> None:
        results.append(await in_threadpool(int, limiter=limiter)("6"))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(later)
            await let_others_run()
            when_it_stands_still(first.may_end.set)
            with allow_blocking_loop():
                assert WAITS[way](in_threadpool(int, limiter=limiter)) == 5
            assert not results

    holder = threading.Thread(target=in_threadpool(first, limiter=limiter).sync)
    holder.start()
    assert first.started.wait(GRACE_SECONDS)
    run(background, main)
    holder.join(GRACE_SECONDS)

    assert results == [6]


@ways
def test_a_slot_that_only_a_task_of_the_loop_can_give_back_is_refused_to_all_that_it_waits_for(
    background: Backend, limiter: anyio.CapacityLimiter, way: str, tmp_path: Path
) -> None:
    async def main() -> None:
        async with process_call(limiter, tmp_path):
            with allow_blocking_loop(), pytest.raises((LoopThreadError, ExceptionGroup)) as caught:
                WAITS[way](in_threadpool(int, limiter=limiter))
        error = caught.value.exceptions[0] if isinstance(caught.value, ExceptionGroup) else caught.value
        assert isinstance(error, LoopThreadError)
        assert re.search(SLOT, str(error))

    run(background, main)


def test_a_call_that_the_loop_waits_for_is_let_in_though_all_that_rule_3_lets_in_wait_for_it(
    background: Backend, limiter: anyio.CapacityLimiter
) -> None:
    done, begun = threading.Event(), threading.Semaphore(0)

    async def until_done() -> None:
        while not done.is_set():
            await anyio.sleep(0.001)

    def wait() -> None:
        begun.release()
        run_in_eventloop_sync(until_done)

    async def main() -> None:
        with allow_blocking_loop():
            in_threadpool(done.set, limiter=limiter).sync()

    others = [threading.Thread(target=in_threadpool(wait, limiter=limiter).sync) for _ in range(2)]
    for other in others:
        other.start()
        assert begun.acquire(timeout=GRACE_SECONDS)  # the second one is all that rule 3 lets in, with a limit of 1
    run(background, main)
    for other in others:
        other.join(GRACE_SECONDS)
