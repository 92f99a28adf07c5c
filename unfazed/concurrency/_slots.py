"""Slots: who may run, who lends while it waits. Thread-safe, for all loops at once; knows no loop.

A *slot* is one call's permission to run under a limiter. anyio's own limiters belong to one loop and are
not thread-safe, so we take only their `total_tokens` from them and count for ourselves.

The rule, which lets calls nest to any depth without a deadlock:

1. A call takes a free slot; where there is none it queues, first come first served.
2. A worker that waits in one of our sync calls *lends* its slot to the calls made on its behalf, and to no one
   else: whoever waits for a lock that the worker holds must not sit on the worker's slot. A descendant takes a
   lent slot before a free one, and hands it on to its siblings. The worker takes its slot back at once when it
   goes on; a descendant that still runs on it then counts as one more.
3. Where every holder of a limiter has been waiting in our calls for `STALL_SECONDS` while somebody queues, one
   more is let in, nested calls first: two limiters taken in opposite orders, or two calls that wait for each
   other, cannot be resolved in any other way. Of calls that are not nested, at most `total_tokens` come in so.

Everything here is guarded by `_lock`. A forked child starts with a new lock and with all slots free.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import weakref
from collections import OrderedDict
from contextvars import Context, ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from anyio import CapacityLimiter

STALL_SECONDS: Final = 0.05  # long enough to be no ordinary wait, short enough not to be noticed; otherwise arbitrary

current_slot: ContextVar[Slot | None] = ContextVar("unfazed_current_slot", default=None)
"""The slot of the call on whose behalf the current code runs: set in a worker, inherited by what it starts."""


class Slot:
    """One call's permission to run, from the moment that it is asked for."""

    # what a slot is like at first; a class says so faster than its `__init__` does
    held = False  # granted, and not given back yet
    given_up = False  # nobody wants it any more
    extra = False  # let in by rule 3 though it is not nested
    waits = 0  # how many of our calls this slot's thread is waiting in
    lender: Slot | None = None  # whose slot this is; None: its own
    borrower: Slot | None = None  # the descendant that runs on this slot while its owner waits
    ancestors: tuple[Slot, ...] = ()  # while queued: those with a slot of the same limiter, nearest first
    heirs: OrderedDict[Slot, None] | None = None  # queued descendants, oldest first

    def __init__(self, limit: Limit, parent: Slot | None, wake: Callable[[], bool] | None) -> None:
        self.limit = limit
        self.parent = parent  # the nearest call that this one was made on behalf of, whatever its limiter
        self.wake = wake  # None: nobody waits yet, and whoever will looks first

    def living_parent(self) -> Slot | None:
        """Return the nearest ancestor that has not ended, and forget the others, which could be ever so many."""
        parent = self.parent
        while parent is not None and not parent.held:
            parent = parent.parent
        self.parent = parent
        return parent

    def same_limit_ancestors(self) -> Iterator[Slot]:
        """Iterate over the ancestors that hold a slot of the same limiter, nearest first."""
        ancestor = self.living_parent()
        while ancestor is not None:
            if ancestor.limit is self.limit:
                yield ancestor
            ancestor = ancestor.living_parent()


class Limit:
    """The accounts of one limiter."""

    __slots__ = ("_limiter", "extras", "occupied", "queue", "running", "stalled_since", "watched")

    def __init__(self, limiter: CapacityLimiter) -> None:
        self._limiter = weakref.ref(limiter, partial(_limits.pop, id(limiter)))
        self.occupied = 0  # slots held that are nobody else's: free is what is left of the total
        self.running = 0  # calls that hold a slot, lent ones included, and do not wait in our calls
        self.extras = 0  # unnested calls let in by rule 3 that have not ended yet
        self.queue: OrderedDict[Slot, None] = OrderedDict()  # oldest first
        self.stalled_since: float | None = None  # time.monotonic() seconds; None: somebody runs or nobody queues
        self.watched = False  # whether the watcher looks after it

    @property
    def total(self) -> float:
        limiter = self._limiter()
        return 0 if limiter is None else limiter.total_tokens

    def enqueue(self, slot: Slot) -> None:
        self.queue[slot] = None
        slot.ancestors = tuple(slot.same_limit_ancestors())
        for ancestor in slot.ancestors:
            if ancestor.heirs is None:
                ancestor.heirs = OrderedDict()
            ancestor.heirs[slot] = None

    def dequeue(self, slot: Slot) -> None:
        for ancestor in slot.ancestors:
            assert ancestor.heirs is not None, "made when the slot queued"
            ancestor.heirs.pop(slot, None)
        slot.ancestors = ()
        self.queue.pop(slot, None)

    def grant(self, slot: Slot, lender: Slot | None = None) -> None:
        """Let *slot* run: on *lender*'s slot, or on one of its own."""
        slot.held = True
        slot.lender = lender
        if lender is None:
            self.occupied += 1
        else:
            lender.borrower = slot
        self.running += 1
        self.stalled_since = None

    def wake_up(self, slot: Slot, lender: Slot | None = None) -> Slot:
        """Take *slot* out of the queue, let it run, and return it for its caller to be woken without the lock."""
        self.dequeue(slot)
        self.grant(slot, lender)
        if slot.given_up:  # in between, by the garbage collector on this very thread
            self.take_away(slot)
        return slot

    def take_away(self, slot: Slot) -> None:
        """End *slot*, without giving it to the next one yet."""
        slot.held = False
        if slot.parent is not None:
            slot.living_parent()
        if not slot.waits:
            self.running -= 1
        if slot.extra:
            self.extras -= 1
        borrower, lender = slot.borrower, slot.lender
        slot.borrower = slot.lender = None
        if borrower is not None:  # whoever still runs on this slot inherits it
            borrower.lender = lender
        if lender is not None:
            lender.borrower = borrower
        elif borrower is None:
            self.occupied -= 1

    def serve(self, lender: Slot | None = None) -> list[Slot]:
        """Give what there is to those who have queued longest: *lender*'s slot, if it is idle, then free ones.

        Return those whose callers are to be woken.
        """
        served: list[Slot] = []
        if lender is not None and lender.heirs and lender.waits and lender.borrower is None:
            served.append(self.wake_up(next(iter(lender.heirs)), lender))
        if self.queue:
            total = self.total
            while self.queue and self.occupied < total:
                served.append(self.wake_up(next(iter(self.queue))))
        if self.running or not self.queue or not self.occupied:
            self.stalled_since = None
        elif self.stalled_since is None:
            self.stalled_since = time.monotonic()
        return served

    def relieve(self, now: float) -> list[Slot]:
        """Let one more in where rule 3 asks for it. Return it for its caller to be woken."""
        if self.stalled_since is None or now - self.stalled_since < STALL_SECONDS:
            return []
        for slot in self.queue:
            if slot.living_parent() is not None:
                return [self.wake_up(slot)]
        if self.extras >= self.total:
            return []
        slot = next(iter(self.queue))
        slot.extra = True
        self.extras += 1
        return [self.wake_up(slot)]


# Guards every Slot and Limit, and the names below. Reentrant, for the garbage collector may end a coroutine, which
# gives its slot back, on a thread that is in here already.
_lock = threading.RLock()
_limits: dict[int, Limit] = {}  # by the id of the limiter, while it lives
_watched: set[Limit] = set()
_watcher: threading.Thread | None = None


def acquire(limiter: CapacityLimiter, wake: Callable[[], bool] | None = None, *, queue: bool = True) -> Slot:
    """Ask for a slot of *limiter*, for a call that the current context makes.

    Where the slot is not `held` on return it is queued: *wake* is called, from any thread, when it has been granted.
    It must return at once, and say whether anybody is left to be woken. It may be set later, by who then sees whether
    the slot is held. `release` ends the wait. Without *queue*, there is nothing to wait for.
    """
    global _watcher
    parent = current_slot.get()
    with _lock:
        limit = _limits.get(id(limiter)) or _open_accounts(limiter)
        slot = Slot(limit, parent, wake)
        if parent is not None:
            parent.living_parent()  # so that a call that begins the next one for ever does not remember them all
            for ancestor in slot.same_limit_ancestors():
                if ancestor.waits and ancestor.borrower is None:
                    limit.grant(slot, ancestor)
                    return slot
        if not limit.queue and limit.occupied < limiter.total_tokens:
            limit.grant(slot)
            return slot
        if not queue:
            return slot
        limit.enqueue(slot)
        served = limit.serve()
        if not limit.watched:
            limit.watched = True
            _watched.add(limit)
        watcher = None
        if _watcher is None:
            watcher = _watcher = _new_watcher()
    _wake(served)
    if watcher is not None:
        try:
            watcher.start()
        except RuntimeError:  # the interpreter is ending: nobody is let in early any more
            _watcher = None
    return slot


def seems_free(limiter: CapacityLimiter) -> bool:
    """Return whether there was a slot of *limiter* just now."""
    limit = _limits.get(id(limiter))
    return limit is None or not (limit.queue or limit.occupied >= limiter.total_tokens)


def is_interrupted() -> bool:
    """Return whether this thread is in here already: the garbage collector has come in between, with a finalizer."""
    lock: Any = _lock  # no stub has what `Condition`, too, asks a lock
    owned: bool = lock._is_owned()
    return owned


def release(slot: Slot) -> None:
    """Give *slot* back, or leave the queue. Doing so twice is harmless."""
    if not slot.given_up:
        served = _give_back(slot)
        if served:
            _wake(served)


def lend(slot: Slot) -> None:
    """Say that the thread which runs on *slot* waits in one of our calls from now on."""
    with _lock:
        slot.waits += 1
        if slot.waits > 1 or not slot.held:
            return
        slot.limit.running -= 1
        if not slot.limit.queue:
            return
        served = slot.limit.serve(slot)
    _wake(served)


def take_back(slot: Slot) -> None:
    """Say that the thread which runs on *slot* goes on."""
    with _lock:
        slot.waits -= 1
        if slot.waits == 0 and slot.held:
            limit = slot.limit
            limit.running += 1
            limit.stalled_since = None
            if slot.borrower is not None:  # it outlives our wait: from now on it counts for itself
                slot.borrower.lender = None
                slot.borrower = None
                limit.occupied += 1


def acquire_now(limiter: CapacityLimiter) -> Slot:
    """Take a slot of *limiter* without waiting for it, though it may be one more than the limit."""
    with _lock:
        limit = _limits.get(id(limiter)) or _open_accounts(limiter)
        slot = Slot(limit, current_slot.get(), None)
        parent = slot.living_parent()
        if parent is not None:
            parent.living_parent()  # as in `acquire`
        limit.grant(slot)
    return slot


def adopt(limiter: CapacityLimiter) -> Slot:
    """Count a worker that others started as holding a slot of *limiter*, which it lends from the start.

    Nobody asked us before it ran, so it may be one more than the limit.
    """
    slot = acquire_now(limiter)
    lend(slot)
    return slot


def _open_accounts(limiter: CapacityLimiter) -> Limit:
    limit = _limits[id(limiter)] = Limit(limiter)
    return limit


def _give_back(slot: Slot) -> list[Slot]:
    """End *slot*. Return those who get one now."""
    limit = slot.limit
    with _lock:
        slot.given_up = True
        lender = slot.lender
        if slot.held:
            limit.take_away(slot)
        else:
            limit.dequeue(slot)
        return limit.serve(lender) if limit.queue else []


def _wake(served: list[Slot]) -> None:
    """Wake those who were granted a slot. Where nobody is left to be woken, the slot goes to the next one."""
    for slot in served:
        if slot.wake is not None and not slot.wake():
            served.extend(_give_back(slot))


def _new_watcher() -> threading.Thread:
    options: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
    return threading.Thread(target=_watch, name="unfazed-slots", daemon=True, **options)


def _watch() -> None:
    """Look after the limits with a queue until there is none: rule 3, and totals that were raised meanwhile."""
    global _watcher
    while True:
        time.sleep(STALL_SECONDS / 2)
        with _lock:
            served: list[Slot] = []
            for limit in tuple(_watched):
                served += limit.serve()
                served += limit.relieve(time.monotonic())
                if not limit.queue:
                    limit.watched = False
                    _watched.discard(limit)
            done = not _watched
            if done:
                _watcher = None
        _wake(served)
        if done:
            return


def _start_afresh() -> None:
    """After a fork: no thread that held a slot has come along, and the lock may have been taken by one of them."""
    global _lock, _watcher
    _lock = threading.RLock()
    _limits.clear()
    _watched.clear()
    _watcher = None
    current_slot.set(None)


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_start_afresh)
