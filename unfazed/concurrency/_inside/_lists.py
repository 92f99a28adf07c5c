"""The calls, limiters, workers and loops that there are now, read without a lock.

Guarantees:

- It can be called at any moment, by any thread, by a signal handler and by a finalizer. It waits for nothing.
- At a moment when nothing changes, what it returns is exact. While things change, each call is in one list at most.

Assumption: copying a dict or a set is atomic, with and without a GIL (Python's documentation, "Thread Safety
Guarantees"). An `OrderedDict` is copied as a dict for that.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import TYPE_CHECKING, NamedTuple

from .._core._limits import limits
from .._core._taskcall import TaskCall
from .._eventloops import _loopthread
from .._executors import calls_in_executors
from .._threads._threadcall import abandoned_calls

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anyio import CapacityLimiter

    from .._core._calls import UserCall
    from .._core._limits import Limit, Slot


class Accounts(NamedTuple):
    """Who holds a slot of a limiter and who queues, at one moment."""

    limiter: CapacityLimiter
    limit: Limit
    holders: list[Slot]
    queue: list[Slot]  # the one that has waited longest is the first


def accounts() -> list[Accounts]:
    """Return the accounts of each limiter that lives and was used."""
    return [each for limit in limits.copy().values() if (each := accounts_of(limit)) is not None]


def accounts_of(limit: Limit) -> Accounts | None:
    """Return the accounts of one limiter, or `None` if it has just gone."""
    limiter = limit._limiter()
    if limiter is None:
        return None
    queue = super(
        OrderedDict, limit.queue
    ).copy()  # first: a slot that is granted meanwhile is added to the holders before it leaves
    holders = limit.holders.copy()
    waiting = [slot for slot in queue if slot not in holders and not slot.given_up]
    return Accounts(limiter, limit, list(holders), sorted(waiting, key=since))


def since(slot: Slot) -> float:
    """Return when the call of *slot* was made."""
    return 0.0 if slot.call is None else made(slot.call)


def _calls_without_slots() -> Iterator[UserCall]:
    """Yield the calls in executors and event loops that have not ended, and those that wait for a loop."""
    yield from calls_in_executors()
    waited_for = [wait for each in accounts() for slot in each.holders for wait in slot.waits]
    accepted = [call for loop_thread in _loopthread._running.copy() for call in loop_thread._calls.copy()]
    for task_call in (*accepted, *waited_for):
        if isinstance(task_call, TaskCall):  # what else is waited for is only a name for the wait
            yield from task_call.user_calls()


def made(call: UserCall) -> float:
    """Return when *call* was made, as far as that is known: otherwise when it began."""
    return call.since or call.began or 0.0


def live_calls() -> list[UserCall]:
    """Return the calls that have not ended, abandoned ones included, the oldest first."""
    found = dict.fromkeys(
        call
        for each in accounts()
        for slot in (*each.holders, *each.queue)
        if (call := slot.call) is not None  # read once: it is forgotten when the slot is given back
    )
    found.update(dict.fromkeys(abandoned_calls()))
    found.update(dict.fromkeys(_calls_without_slots()))
    return sorted(found, key=made)
