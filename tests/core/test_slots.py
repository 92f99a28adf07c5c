"""Slots: how many run at once, and that nothing deadlocks however calls are nested."""

from __future__ import annotations

import gc
import threading
import weakref
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
import starlette.concurrency
from conftest import GRACE_SECONDS

from unfazed.concurrency import EventLoopThread, run_in_eventloop_sync, run_in_threadpool, run_in_threadpool_sync
from unfazed.concurrency._core import _limits, _slots

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

OUTERMOST: dict[str, Callable[..., Coroutine[Any, Any, Any]]] = {
    "ours": run_in_threadpool,
    "anyio's": anyio.to_thread.run_sync,
    "Starlette's": starlette.concurrency.run_in_threadpool,
}


def set_limit(total: float) -> None:
    """Set the default limit of the current loop."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = total


async def set_limit_async(total: float) -> None:
    set_limit(total)


class Running:
    """Counts how many are inside at once."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.now = 0
        self.most = 0

    @contextmanager
    def one(self) -> Iterator[None]:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
        try:
            yield
        finally:
            with self._lock:
                self.now -= 1


async def gather(*calls: Callable[[], Coroutine[Any, Any, object]]) -> None:
    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(call)


def chain(depth: int) -> int:
    """Go down sync → async → sync → async, and count the way back up."""

    async def below() -> int:
        return await run_in_threadpool(chain, depth - 1)

    return 0 if depth == 0 else 1 + run_in_eventloop_sync(below)


@pytest.mark.anyio
@pytest.mark.parametrize("outermost", OUTERMOST)
async def test_a_chain_fifty_deep_completes_with_a_limit_of_one(outermost: str) -> None:
    set_limit(1)

    assert await OUTERMOST[outermost](chain, 50) == 50


@pytest.mark.anyio
async def test_depth_is_bounded_by_memory_alone() -> None:
    """No stack grows with it, neither a thread's nor a task's."""
    set_limit(1)

    assert await run_in_threadpool(chain, 300) == 300


def test_a_chain_from_plain_sync_code_completes_with_a_limit_of_one(background: Any) -> None:
    run_in_eventloop_sync(set_limit_async, 1)

    assert run_in_threadpool_sync(chain, 50) == 50
    assert chain(50) == 50


@pytest.mark.anyio
async def test_sync_calls_nest_fifty_deep_with_a_limit_of_one() -> None:
    def down(depth: int) -> int:
        return 0 if depth == 0 else 1 + run_in_threadpool_sync(down, depth - 1)

    set_limit(1)

    assert await run_in_threadpool(down, 50) == 50


@pytest.mark.anyio
@pytest.mark.parametrize("outermost", OUTERMOST)
async def test_a_fan_out_inside_a_nested_call_uses_all_slots(outermost: str) -> None:
    running = Running()
    five_at_once = threading.Barrier(5)

    def work() -> None:
        with running.one():
            five_at_once.wait(GRACE_SECONDS)  # breaks unless five run at once

    async def fan_out() -> None:
        await gather(*[partial(run_in_threadpool, work)] * 20)

    set_limit(5)
    await OUTERMOST[outermost](run_in_eventloop_sync, fan_out)

    assert running.most == 5


@pytest.mark.anyio
@pytest.mark.parametrize("limit", [1, 3, 40])
async def test_no_more_than_the_limit_run_at_once(limit: int) -> None:
    running = Running()
    full = threading.Event()

    def work() -> None:
        with running.one():
            if running.now == limit:
                full.set()
            assert full.wait(GRACE_SECONDS)

    set_limit(limit)
    await gather(*[partial(run_in_threadpool, work)] * 100)

    assert running.most == limit


@pytest.mark.anyio
async def test_eight_nested_workers_with_four_slots_complete() -> None:
    four_at_once = threading.Barrier(4)

    def inner() -> None:
        four_at_once.wait(GRACE_SECONDS)

    set_limit(4)
    await gather(*[partial(run_in_threadpool, run_in_threadpool_sync, inner)] * 8)


@pytest.mark.anyio
async def test_a_lock_held_across_a_call_does_not_deadlock() -> None:
    lock = threading.Lock()
    waiting_for_lock = threading.Event()

    async def until_the_other_waits() -> None:
        assert await anyio.to_thread.run_sync(waiting_for_lock.wait, GRACE_SECONDS)

    def holder() -> None:
        with lock:
            run_in_eventloop_sync(until_the_other_waits)  # the other is let in meanwhile, as we all wait
            run_in_threadpool_sync(int)

    def other() -> None:
        waiting_for_lock.set()
        with lock:
            pass

    set_limit(1)
    await gather(partial(run_in_threadpool, holder), partial(run_in_threadpool, other))


@pytest.mark.anyio
async def test_two_actors_that_wait_for_each_other_complete() -> None:
    here, there = anyio.Event(), anyio.Event()

    async def meet(mine: anyio.Event, other: anyio.Event) -> None:
        mine.set()
        await other.wait()

    set_limit(1)
    await gather(
        partial(run_in_threadpool, run_in_eventloop_sync, meet, here, there),
        partial(run_in_threadpool, run_in_eventloop_sync, meet, there, here),
    )


def test_two_limits_taken_in_opposite_orders_complete(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """Each loop has its own default limit; each of two workers holds one and asks for the other."""
    backend, options = anyio_backend
    both_hold = threading.Barrier(2)

    with EventLoopThread(backend, options) as left, EventLoopThread(backend, options) as right:

        def hold_and_ask(other: EventLoopThread) -> None:
            both_hold.wait(GRACE_SECONDS)
            other.run_sync(run_in_threadpool, int)

        async def both() -> None:
            await gather(
                partial(left.run, run_in_threadpool, hold_and_ask, right),
                partial(right.run, run_in_threadpool, hold_and_ask, left),
            )

        left.run_sync(set_limit_async, 1)
        right.run_sync(set_limit_async, 1)
        anyio.run(both, backend=backend, backend_options=options)


def test_a_limiter_lives_as_long_as_a_slot_of_it() -> None:
    """A taken or queued slot keeps its limiter alive, even if nobody else holds it."""
    limiter = anyio.CapacityLimiter(1)
    key, is_alive = id(limiter), weakref.ref(limiter)
    held, queued = (_slots.acquire(limiter, lambda: True) for _ in range(2))
    del limiter
    gc.collect()

    assert _limits.limits[key] is held.limit is queued.limit
    assert held.limit.free() == 0

    _slots.release(held)
    assert is_alive() is not None
    assert queued.held

    _slots.release(queued)
    gc.collect()
    assert is_alive() is None
    assert key not in _limits.limits


@pytest.mark.anyio
@pytest.mark.parametrize("to_worker", ["ours", "anyio's"])
async def test_an_actor_that_begins_its_next_step_for_ever_does_not_remember_all_of_them(to_worker: str) -> None:
    done = anyio.Event()
    ended = [anyio.Event() for _ in range(101)]
    depth = []

    async def run(step: int) -> None:
        await OUTERMOST[to_worker](work, step)
        ended[step].set()

    async def begin(step: int) -> None:
        if step:
            await ended[step - 1].wait()
        tasks.start_soon(run, step + 1)

    def work(step: int) -> None:
        if step < 100:
            run_in_eventloop_sync(begin, step)
        else:
            slot, length = _limits.current_slot.get(), 0
            while slot is not None:
                slot, length = slot.parent, length + 1
            depth.append(length)
            run_in_eventloop_sync(finish)

    async def finish() -> None:
        done.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run, 0)
        await done.wait()

    assert depth[0] <= 3
