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
from conftest import GRACE_SECONDS, wait_until

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


def wakes(order: list[Any], name: object) -> Callable[[], bool]:
    """Return a way to be woken that notes it in *order*."""

    def wake() -> bool:
        order.append(name)
        return True

    return wake


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


@pytest.mark.anyio
async def test_a_lent_slot_goes_to_nobody_else_before_the_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for a lock that the lender holds must not get its slot."""
    monkeypatch.setattr(_limits.Limit, "relieve", lambda *_: [])  # on a busy machine the stall may come in between
    limiter = anyio.CapacityLimiter(1)
    holder = _slots.acquire(limiter, lambda: True)
    stranger_woken: list[bool] = []
    _slots.lend(holder)
    stranger = _slots.acquire(limiter, wakes(stranger_woken, True))

    _limits.current_slot.set(holder)
    descendant = _slots.acquire(limiter, lambda: True)

    assert descendant.held
    assert not stranger.held
    for slot in (descendant, holder):
        _slots.release(slot)
    assert stranger.held
    assert stranger_woken == [True]
    _slots.release(stranger)


def test_siblings_hand_a_lent_slot_on() -> None:
    limiter = anyio.CapacityLimiter(1)
    holder = _slots.acquire(limiter, lambda: True)
    _slots.lend(holder)
    token = _limits.current_slot.set(holder)
    try:
        siblings = [_slots.acquire(limiter, lambda: True) for _ in range(3)]
    finally:
        _limits.current_slot.reset(token)

    held = []
    for sibling in siblings:
        held.append([each.held for each in siblings])
        _slots.release(sibling)
    _slots.release(holder)

    assert held == [[True, False, False], [False, True, False], [False, False, True]]


def test_a_lent_slot_is_taken_back_at_once_and_its_borrower_counts_for_itself() -> None:
    limiter = anyio.CapacityLimiter(1)
    holder = _slots.acquire(limiter, lambda: True)
    _slots.lend(holder)
    token = _limits.current_slot.set(holder)
    try:
        background_task = _slots.acquire(limiter, lambda: True)
    finally:
        _limits.current_slot.reset(token)
    _slots.take_back(holder)
    _slots.release(holder)
    stranger = _slots.acquire(limiter, lambda: True)

    assert background_task.held
    assert not stranger.held
    _slots.release(background_task)
    assert stranger.held
    _slots.release(stranger)


def test_whoever_runs_on_the_slot_of_a_call_that_has_ended_inherits_it() -> None:
    limiter = anyio.CapacityLimiter(2)
    grandparent = _slots.acquire(limiter, lambda: True)
    _slots.lend(grandparent)
    slots = [grandparent]
    for _ in range(2):
        token = _limits.current_slot.set(slots[-1])
        slots.append(_slots.acquire(limiter, lambda: True))
        _limits.current_slot.reset(token)
        _slots.lend(slots[-1])
    _, parent, child = slots
    _slots.release(parent)

    assert child.lender is grandparent
    assert grandparent.borrower is child
    for slot in slots:
        _slots.release(slot)


def test_the_chain_of_ended_callers_is_forgotten() -> None:
    """A task that starts its own successor, for ever, must not remember all of its ancestors."""
    limiter = anyio.CapacityLimiter(2)
    token = _limits.current_slot.set(None)
    previous = None
    try:
        for _ in range(10):
            slot = _slots.acquire(limiter, lambda: True)
            if previous is not None:
                _slots.release(previous)
            _limits.current_slot.set(slot)
            previous = slot
        last = _slots.acquire(limiter, lambda: True)
        depth, ancestor = 0, last.parent
        while ancestor is not None:
            depth, ancestor = depth + 1, ancestor.parent
    finally:
        _limits.current_slot.reset(token)

    assert depth <= 2
    _slots.release(last)
    _slots.release(slot)


def test_a_raised_total_lets_those_in_who_queue() -> None:
    limiter = anyio.CapacityLimiter(1)
    granted: list[bool] = []
    first = _slots.acquire(limiter, lambda: True)
    second = _slots.acquire(limiter, wakes(granted, True))
    third = _slots.acquire(limiter, lambda: True)

    limiter.total_tokens = 2

    wait_until(lambda: granted, "the second is let in")
    assert not third.held
    for slot in (first, second, third):
        _slots.release(slot)


def test_a_slot_granted_to_a_loop_that_is_gone_goes_to_the_next() -> None:
    limiter = anyio.CapacityLimiter(1)
    first = _slots.acquire(limiter, lambda: True)
    gone = [_slots.acquire(limiter, lambda: False) for _ in range(5000)]
    last = _slots.acquire(limiter, lambda: True)

    _slots.release(first)

    wait_until(lambda: last.held, "the slot goes to the next")  # the watcher may have taken over passing it on
    assert not any(slot.held for slot in gone)
    _slots.release(last)


def test_after_a_stall_nested_calls_come_first_and_others_up_to_the_limit() -> None:
    limiter, elsewhere = anyio.CapacityLimiter(2), anyio.CapacityLimiter(1)
    holders = [_slots.acquire(limiter, lambda: True) for _ in range(2)]
    nested_by = _slots.acquire(elsewhere, lambda: True)
    order: list[str] = []

    def acquire(name: str) -> _limits.Slot:
        return _slots.acquire(limiter, wakes(order, name))

    strangers = [acquire(f"stranger {number}") for number in range(3)]
    token = _limits.current_slot.set(nested_by)
    nested = acquire("nested")
    _limits.current_slot.reset(token)
    for slot in holders:
        _slots.lend(slot)

    wait_until(lambda: order == ["nested"], "the nested call is let in")
    _slots.lend(nested)
    wait_until(lambda: order == ["nested", "stranger 0"], "then the first of the others")
    _slots.lend(strangers[0])
    wait_until(lambda: order == ["nested", "stranger 0", "stranger 1"], "then the second, which is the last")
    _slots.lend(strangers[1])
    stalled_since = strangers[2].limit.stalled_since
    assert stalled_since is not None
    assert strangers[2].limit.relieve(stalled_since + 10 * _limits.STALL_SECONDS) == []

    for slot in (*holders, nested_by, nested, *strangers):
        _slots.release(slot)


def test_nobody_is_let_in_while_somebody_runs() -> None:
    limiter = anyio.CapacityLimiter(2)
    running, waiting = (_slots.acquire(limiter, lambda: True) for _ in range(2))
    queued = _slots.acquire(limiter, lambda: True)
    _slots.lend(waiting)

    assert queued.limit.stalled_since is None
    assert queued.limit.relieve(float("inf")) == []
    for slot in (running, waiting, queued):
        _slots.release(slot)


def test_a_limiter_lives_as_long_as_a_slot_of_it() -> None:
    """Its accounts can be put in order as long as anybody is in them, though nobody else knows the limiter any more."""
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


def test_without_a_watcher_thread_calls_still_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """At exit no thread can be started any more."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    limiter = anyio.CapacityLimiter(1)
    first = _slots.acquire(limiter, lambda: True)
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        second = _slots.acquire(limiter, lambda: True)
    _slots.release(first)

    assert second.held
    _slots.release(second)
    third = _slots.acquire(limiter, lambda: True)
    fourth = _slots.acquire(limiter, lambda: True)  # which starts a watcher again
    _slots.release(third)
    _slots.release(fourth)


def test_a_thread_that_waits_in_two_calls_lends_until_both_are_done() -> None:
    """A worker may run an event loop of its own, in which several calls wait."""
    limiter = anyio.CapacityLimiter(1)
    holder = _slots.acquire(limiter, lambda: True)
    queued = []
    for wait in range(2):
        _slots.lend(holder, wait)
        token = _limits.current_slot.set(holder)
        queued.append(_slots.acquire(limiter, lambda: True))
        _limits.current_slot.reset(token)

    _slots.take_back(holder, 0)
    _slots.release(queued[0])

    assert queued[1].held
    _slots.take_back(holder, 1)
    for slot in (*queued, holder):
        _slots.release(slot)


def test_ancestors_under_other_limits_are_passed_over() -> None:
    limiter, other = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)
    holder = _slots.acquire(limiter, lambda: True)
    _slots.lend(holder)
    token = _limits.current_slot.set(holder)
    between = _slots.acquire(other, lambda: True)
    _slots.lend(between)
    _limits.current_slot.set(between)
    below = _slots.acquire(limiter, lambda: True)
    _limits.current_slot.reset(token)

    assert below.lender is holder
    for slot in (below, between, holder):
        _slots.release(slot)


def test_a_slot_that_was_given_back_while_its_thread_waits_stays_so() -> None:
    limiter = anyio.CapacityLimiter(1)
    slot = _slots.acquire(limiter, lambda: True)
    _slots.lend(slot)
    _slots.release(slot)
    _slots.take_back(slot)
    _slots.lend(slot)

    assert (slot.limit.occupied, slot.limit.running) == (0, 0)


@pytest.mark.anyio
@pytest.mark.parametrize("to_worker", ["ours", "anyio's"])
async def test_an_actor_that_begins_its_next_step_for_ever_does_not_remember_all_of_them(to_worker: str) -> None:
    done = anyio.Event()
    depth = []

    async def begin(step: int) -> None:
        async def next_step() -> None:
            await OUTERMOST[to_worker](work, step + 1)

        tasks.start_soon(next_step)

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
        tasks.start_soon(OUTERMOST[to_worker], work, 0)
        await done.wait()

    assert depth[0] <= 5


def test_what_the_garbage_collector_gives_back_in_the_midst_of_a_grant_is_not_lost() -> None:
    limiter = anyio.CapacityLimiter(1)
    first = _slots.acquire(limiter, lambda: True)
    collected = _slots.acquire(limiter, lambda: False)
    limit = first.limit

    class Grant(_limits.Limit):
        __slots__ = ()

        def grant(self, slot: _limits.Slot, lender: _limits.Slot | None = None) -> None:
            _slots.release(collected)  # as if it were collected just here
            super().grant(slot, lender)

    limit.__class__ = Grant
    _slots.release(first)

    assert (limit.occupied, limit.running) == (0, 0)


def test_a_worker_of_others_that_was_started_on_behalf_of_a_call_has_it_for_a_parent() -> None:
    limiter, other = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)
    ended, holder = (_slots.acquire(each, lambda: True) for each in (other, limiter))
    holder.parent = ended
    _slots.release(ended)
    token = _limits.current_slot.set(holder)
    adopted = _limits.Slot(limiter)
    _slots.adopt(adopted)
    _limits.current_slot.reset(token)

    assert adopted.parent is holder
    assert holder.parent is None
    assert adopted.limit.occupied == 2  # nobody asked us before it ran
    for slot in (adopted, holder):
        _slots.release(slot)
