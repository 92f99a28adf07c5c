"""Slots as tests make them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from unfazed.concurrency._core import _limits, _slots

if TYPE_CHECKING:
    import anyio


def nested(parent: _limits.Slot, limiter: anyio.CapacityLimiter) -> _limits.Slot:
    """Return a slot for a call that is made on behalf of *parent*. It queues if it is not let in."""
    token = _limits.current_slot.set(parent)
    try:
        return _slots.acquire(limiter, lambda: True)
    finally:
        _limits.current_slot.reset(token)


def free_slots(limiter: anyio.CapacityLimiter) -> float:
    return _limits.limits[id(limiter)].free()
