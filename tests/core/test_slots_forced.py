"""Rare moments of slots: the loop is gone, a finalizer runs, no thread can start. Each is forced."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import anyio
from conftest import wait_until

from unfazed.concurrency._core import _limits, _slots

if TYPE_CHECKING:
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
