"""Rare moments of slots, forced: the loop is gone, a finalizer runs, no thread can start, a signal handler raises."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import anyio
from conftest import captured, wait_until
from forcing import once_before, raising
from interrupting import Alarm, raise_alarm
from slots import free_slots, nested

from unfazed.concurrency._core import _limits, _slots

if TYPE_CHECKING:
    from collections.abc import Callable

    import pytest


def test_a_slot_granted_to_a_loop_that_is_gone_goes_to_the_next() -> None:
    limiter = anyio.CapacityLimiter(1)
    first = _slots.acquire(limiter, lambda: True)
    gone = [_slots.acquire(limiter, lambda: False) for _ in range(5000)]
    last = _slots.acquire(limiter, lambda: True)

    _slots.release(first)

    wait_until(lambda: last.held, "the slot goes to the next")  # the watcher may have taken over passing it on
    assert not any(slot.held for slot in gone)
    _slots.release(last)


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


def test_a_lent_slot_goes_to_the_next_child_though_giving_it_back_was_interrupted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """1: a child gives back the slot that its parent lends. 2: a signal handler raises before the next one gets it."""
    limiter = anyio.CapacityLimiter(2)
    parent, other = _slots.acquire(limiter), _slots.acquire(limiter)
    _slots.lend(parent, "wait")
    first, second = nested(parent, limiter), nested(parent, limiter)
    assert (first.held, second.held) == (True, False)
    monkeypatch.setattr(_limits.Limit, "serve", once_before(_limits.Limit.serve, raise_alarm))

    def give_back() -> None:
        try:
            _slots.release(first)
        finally:
            _slots.release(first)

    assert isinstance(captured(give_back)[1], Alarm)
    assert second.held
    for slot in (second, parent, other):
        _slots.release(slot)
    assert free_slots(limiter) == 2


def test_a_limiter_that_raises_does_not_keep_the_others_from_being_looked_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", errors.append)
    limiters = [anyio.CapacityLimiter(1) for _ in range(3)]
    holders = [_slots.acquire(limiter) for limiter in limiters]
    woken = [threading.Event() for _ in limiters]

    def wake(event: threading.Event) -> Callable[[], bool]:
        return lambda: (event.set(), True)[1]  # type: ignore[func-returns-value]

    waiting = [_slots.acquire(limiter, wake(event)) for limiter, event in zip(limiters, woken, strict=True)]
    broken = holders[1].limit
    free = _limits.Limit.free
    monkeypatch.setattr(
        _limits.Limit, "free", lambda limit: raising(ValueError("no"))() if limit is broken else free(limit)
    )
    for limiter in limiters:
        limiter.total_tokens = 2  # which only the watcher notices

    wait_until(lambda: woken[0].is_set() and woken[2].is_set(), "the others are woken")
    wait_until(lambda: bool(errors), "the error is shown")

    assert {type(error.exc_value) for error in errors} == {ValueError}
    monkeypatch.undo()
    wait_until(lambda: woken[1].is_set(), "so is its caller, now that it works")
    for slot in [*holders, *waiting]:
        _slots.release(slot)


def test_without_a_watcher_a_raised_total_is_noticed_by_the_next_call(monkeypatch: pytest.MonkeyPatch) -> None:
    limiter = anyio.CapacityLimiter(1)
    first = _slots.acquire(limiter)
    with monkeypatch.context() as patch:
        patch.setattr(_slots, "_have_a_watcher", lambda: None)  # no thread can be started, as in subinterpreters
        second = _slots.acquire(limiter, lambda: True)
        assert not second.held

        limiter.total_tokens = 3
        third = _slots.acquire(limiter, lambda: True)

    assert (second.held, third.held) == (True, True)
    fourth = _slots.acquire(limiter, lambda: True)  # which starts a watcher
    for slot in (first, second, third, fourth):
        _slots.release(slot)
