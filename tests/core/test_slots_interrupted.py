"""A signal handler that raises at any bytecode while a slot is taken back."""

from __future__ import annotations

import sys
from itertools import count
from pathlib import Path

import anyio
from conftest import captured
from interrupting import TRACES, Steps, raise_alarm
from slots import free_slots, nested

import unfazed.concurrency
from unfazed.concurrency._core import _limits, _slots

pytestmark = [*TRACES]

PACKAGE = str(Path(unfazed.concurrency.__file__).parent)


def test_a_slot_that_is_taken_back_leaves_its_borrower_one_of_its_own() -> None:
    """Otherwise one call more than allowed would run while the borrower does."""
    for number in count(1):
        limiter = anyio.CapacityLimiter(2)
        owner = _slots.acquire(limiter)
        _slots.lend(owner, "wait")
        borrower = nested(owner, limiter)
        steps = Steps(raise_alarm, number, PACKAGE)

        def take_back(owner: _limits.Slot = owner, steps: Steps = steps) -> None:
            try:
                with steps:
                    _slots.take_back(owner, "wait")
            finally:
                _slots.take_back(owner, "wait")

        captured(take_back)

        assert free_slots(limiter) == 0, steps.where
        _slots.release(borrower)
        _slots.release(owner)
        assert free_slots(limiter) == 2, steps.where
        if not steps.reached:
            break
    assert number > (10 if sys.version_info[:2] == (3, 11) else 20)  # which looks for signals at fewer places
