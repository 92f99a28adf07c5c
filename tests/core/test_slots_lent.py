"""Lent slots: who may run on one, who takes it back, and who is let in when nobody runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import wait_until

from unfazed.concurrency._core import _limits, _slots

if TYPE_CHECKING:
    from collections.abc import Callable


def wakes(order: list[Any], name: object) -> Callable[[], bool]:
    """Return a callback that records the wake-up in *order*."""

    def wake() -> bool:
        order.append(name)
        return True

    return wake


@pytest.mark.anyio
async def test_a_lent_slot_goes_to_nobody_else_before_the_stall(monkeypatch: pytest.MonkeyPatch) -> None:
    """A call that waits for a lock of the lender must not get the lent slot."""
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
