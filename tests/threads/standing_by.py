"""What the tests of standby threads share."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from conftest import GRACE_SECONDS, Gate, Outcome, captured, have_a_thread_stand_by, wait_until

from unfazed.concurrency._eventloops import _background
from unfazed.concurrency._threads import _standby

if TYPE_CHECKING:
    from collections.abc import Callable

    from unfazed.concurrency import EventLoopThread


@pytest.fixture
def owner(background: tuple[str, Any]) -> EventLoopThread:
    """Return the background event loop, with one thread on standby."""
    have_a_thread_stand_by()
    return running()


def running() -> EventLoopThread:
    owner = _background.running_background()
    assert owner is not None
    return owner


def hold_up(owner: EventLoopThread) -> Gate:
    """Keep the loop busy until told to stop."""
    gate = Gate()
    owner._require_running().post(gate.wait)
    assert gate.reached.wait(GRACE_SECONDS)
    return gate


def have_it_go(owner: EventLoopThread) -> _standby._StandbyThread:
    """End the standby thread, as if it had been idle for long enough."""
    thread = _standby._idle[0]
    thread._calls.put(None)
    wait_until(lambda: thread._gone or thread._calls.empty(), "it does not go")
    return thread


def have_it_gone(owner: EventLoopThread) -> _standby._StandbyThread:
    """Do the same, but let a caller choose the thread just before."""
    thread = have_it_go(owner)
    wait_until(lambda: thread._gone and not _standby._idle, "it does not go")
    _standby._idle.append(thread)
    return thread


class Calling:
    """A call that another thread makes."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.outcomes: list[Outcome] = []
        self._thread = threading.Thread(target=lambda: self.outcomes.append(captured(call)), daemon=True)
        self._thread.start()

    def outcome(self) -> Outcome:
        self._thread.join(GRACE_SECONDS)
        assert self.outcomes, "the call hangs"
        return self.outcomes[0]
