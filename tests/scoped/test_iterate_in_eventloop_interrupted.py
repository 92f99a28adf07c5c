"""A signal handler that raises while the garbage collector ends an iterator in sync code: it is closed all the same.

`interrupting.py` says how.
"""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from conftest import captured, wait_until
from interrupting import TRACES, Alarm, Steps, numbers, raise_alarm
from test_iterate_in_eventloop import Ticker

import unfazed.concurrency
from unfazed.concurrency import iterate_in_eventloop_sync

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = str(Path(unfazed.concurrency.__file__).parent)
STEPS = 30  # about how many bytecodes are tried; arbitrary

pytestmark = [*TRACES, pytest.mark.usefixtures("background")]


@pytest.fixture
def no_other_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def leave_one(ticker: Ticker) -> None:
    """Leave an iterator over *ticker* to the garbage collector."""
    items = iterate_in_eventloop_sync(ticker)
    next(items)
    holder: list[object] = [items]
    holder.append(holder)


@pytest.mark.usefixtures("no_other_collection")
def test_a_signal_handler_raises_while_the_collector_ends_it() -> None:
    leave_one(Ticker())
    for when in numbers(gc.collect, FOLDER, STEPS):
        ticker = Ticker()
        leave_one(ticker)
        steps = Steps(raise_alarm, when, FOLDER)
        with steps:
            _, error = captured(gc.collect)
        assert error is None or isinstance(error, Alarm), (steps.where, error)
        wait_until(lambda: ticker.times_closed == 1, f"it is never closed: {steps.where}")  # noqa: B023
