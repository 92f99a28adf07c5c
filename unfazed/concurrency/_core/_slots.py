"""Slots: who may run, who lends while it waits. Thread-safe, for all loops at once; knows no loop.

A *slot* is one call's permission to run under a limiter. anyio's own limiters belong to one loop and are
not thread-safe, so we count for ourselves: a slot is free while ours, and the tokens that others have borrowed from
the limiter by anyio's own means, are fewer than its `total_tokens`.

The rule, which lets calls nest to any depth without a deadlock:

1. A call takes a free slot. Where there is none it queues, first come first served.
2. A worker that waits in one of our sync calls *lends* its slot to the calls made on its behalf, and to no one
   else: whoever waits for a lock that the worker holds must not sit on the worker's slot. A descendant takes a
   lent slot before a free one, and hands it on to its siblings. The worker takes its slot back at once when it
   goes on; a descendant that still runs on it then counts as one more.
3. Where every holder of a limiter has been waiting in our calls for `STALL_SECONDS` while somebody queues, one
   more is let in, nested calls first: two limiters taken in opposite orders, or two calls that wait for each
   other, cannot be resolved in any other way. Of calls that are not nested, at most `total_tokens` come in so.

Guarantees:

- `_lock` guards every `Slot`, every `Limit` and the names beside it. Nobody waits for anything else while holding it.
- A finalizer that the garbage collector runs on the thread that holds the lock changes nothing there. What it gives
  back is noted in `_notes`, and done by that thread before it goes on.
- A signal handler may raise at any bytecode. The lock is not left taken; whoever takes it next puts the accounts in
  order (`Limit.repair`); a note is removed after it has been carried out, and each can be carried out twice.
- Who is granted a slot is woken until that has worked: by whoever granted it, or else by the watcher.
- The watcher goes on whatever it meets, and is started again if it has gone.

Assumptions: `deque.append` is one step for other threads, and so is reading an attribute that another thread sets.
Finalizers do not wait for locks. Whoever creates a `Slot` releases it in a `finally`, taken or not.

A forked child starts with a new lock and with all slots free.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import OrderedDict, deque
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final

from ._errors import LoopStateError
from ._threadstart import start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anyio import CapacityLimiter

STALL_SECONDS: Final = 0.05  # long enough to be no ordinary wait, short enough not to be noticed; otherwise arbitrary

current_slot: ContextVar[Slot | None] = ContextVar("unfazed_current_slot", default=None)
"""The slot of the call on whose behalf the current code runs: set in a worker, inherited by what it starts."""


class Slot:
    """One call's permission to run. Made before it is asked for, so that whoever is interrupted can give it back.

    Args:
        limiter: The limiter that bounds the call.
    """

    # what a slot is like at first; a class says so faster than its `__init__` does
    held = False  # granted, and not given back yet
    given_up = False  # nobody wants it any more
    extra = False  # let in by rule 3 though it is not nested
    adopted = False  # taken by a worker that others started, whose token the limiter may count as well
    woken = False  # whether its caller has been told that it was granted
    waits: frozenset[object] = frozenset()  # our calls that this slot's thread is waiting in
    wake: Callable[[], bool] | None = None  # how to wake its caller, where that queues
    lender: Slot | None = None  # whose slot this is; None: its own
    borrower: Slot | None = None  # the descendant that runs on this slot while its owner waits
    ancestors: tuple[Slot, ...] = ()  # while queued: those with a slot of the same limiter, nearest first
    queued_descendants: OrderedDict[Slot, None] | None = None  # queued descendants, oldest first

    def __init__(self, limiter: CapacityLimiter) -> None:
        self.limiter: CapacityLimiter | None = limiter  # kept alive, and its accounts with it, until we end
        self.limit = _limits.get(id(limiter)) or _open_accounts(limiter)
        self.parent = current_slot.get()  # the nearest call that this one is made on behalf of, whatever its limiter

    def living_parent(self) -> Slot | None:
        """Return the nearest ancestor that has not ended, and forget the others, which could be ever so many."""
        parent = self.parent
        while parent is not None and not parent.held:
            parent = parent.parent
        self.parent = parent
        return parent

    def give_back(self) -> Sequence[Slot]:
        """End the slot, or its wait in the queue; with the lock held. Return those who get one now."""
        limit, lender = self.limit, self.lender
        if self in limit.holders:  # not `held`: a signal handler may have raised between the two
            limit.take_away(self)
        self.held = False
        served: Sequence[Slot] = ()
        if limit.queue:
            limit.dequeue(self)
            served = limit.serve(lender)
        self.given_up = True  # not before, so that whoever is interrupted in the midst of this does it again
        self.limiter = None
        return served

    def same_limit_ancestors(self) -> Iterator[Slot]:
        """Iterate over the ancestors that hold a slot of the same limiter, nearest first."""
        ancestor = self.living_parent()
        while ancestor is not None:
            if ancestor.limit is self.limit:
                yield ancestor
            ancestor = ancestor.living_parent()


class Limit:
    """The accounts of one limiter.

    What counts is who is in `holders`, and there with which `lender`, `waits` and `extra`, and who is in `queue`. All
    else follows from that, and is kept at hand: `repair` works it out.
    """

    __slots__ = ("_limiter", "adopted", "extras", "holders", "occupied", "queue", "running", "stalled_since", "watched")

    def __init__(self, limiter: CapacityLimiter) -> None:
        self._limiter = weakref.ref(limiter, partial(_limits.pop, id(limiter)))
        self.holders: set[Slot] = set()  # calls that hold a slot, lent ones included
        self.queue: OrderedDict[Slot, None] = OrderedDict()  # oldest first
        self.occupied = 0  # slots held that are nobody else's: free is what is left of the total
        self.running = 0  # holders that do not wait in our calls
        self.extras = 0  # unnested calls let in by rule 3 that have not ended yet
        self.adopted = 0  # workers that others started
        self.stalled_since: float | None = None  # time.monotonic() seconds; None: somebody runs or nobody queues
        self.watched = False  # whether the watcher looks after it

    @property
    def limiter(self) -> CapacityLimiter:
        limiter = self._limiter()
        assert limiter is not None, "every slot that is held or queued keeps it"
        return limiter

    def free(self) -> float:
        """Return how many slots are free: fewer than none, where more are taken than there are."""
        limiter = self._limiter()
        assert limiter is not None, "as in `limiter`, which would take longer"
        borrowed = limiter.borrowed_tokens  # by anyio's own means, as our calls do not; workers that we adopted have
        others = borrowed - self.adopted if borrowed > self.adopted else 0
        return limiter.total_tokens - self.occupied - others

    def enqueue(self, slot: Slot) -> None:
        self.queue[slot] = None
        slot.ancestors = tuple(slot.same_limit_ancestors())
        for ancestor in slot.ancestors:
            if ancestor.queued_descendants is None:
                ancestor.queued_descendants = OrderedDict()
            ancestor.queued_descendants[slot] = None

    def dequeue(self, slot: Slot) -> None:
        for ancestor in slot.ancestors:
            if ancestor.queued_descendants is not None:  # pragma: no branch  unless a signal handler raised just before
                ancestor.queued_descendants.pop(slot, None)
        slot.ancestors = ()
        self.queue.pop(slot, None)

    def grant(self, slot: Slot, lender: Slot | None = None) -> None:
        """Let *slot* run: on *lender*'s slot, or on one of its own."""
        slot.lender = lender
        self.holders.add(slot)
        slot.held = True
        if lender is None:
            self.occupied += 1
        else:
            lender.borrower = slot
        self.running += 1
        self.stalled_since = None

    def grant_queued(self, slot: Slot, lender: Slot | None = None) -> Slot:
        """Take *slot* out of the queue, let it run, and return it for its caller to be woken without the lock."""
        _unwoken[slot] = False
        self.grant(slot, lender)
        self.dequeue(slot)
        return slot

    def take_away(self, slot: Slot) -> None:
        """End *slot*, without giving it to the next one yet."""
        self.holders.discard(slot)
        if slot.parent is not None:
            slot.living_parent()
        if not slot.waits:
            self.running -= 1
        if slot.extra:
            self.extras -= 1
        if slot.adopted:
            self.adopted -= 1
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
        if lender is not None and lender.queued_descendants and lender.waits and lender.borrower is None:
            served.append(self.grant_queued(next(iter(lender.queued_descendants)), lender))
        if self.queue:
            free = self.free()
            while self.queue and free > 0:
                served.append(self.grant_queued(next(iter(self.queue))))
                free -= 1
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
                return [self.grant_queued(slot)]
        if self.extras >= self.limiter.total_tokens:
            return []
        slot = next(iter(self.queue))
        slot.extra = True
        self.extras += 1
        return [self.grant_queued(slot)]

    def repair(self) -> None:
        """Work out again what follows from `holders` and `queue`: something has raised while that was changing."""
        for slot in tuple(self.queue):
            slot.held = slot in self.holders
            if slot.held:
                _unwoken[slot] = False
                self.dequeue(slot)
        for slot in self.holders:
            slot.held = True
            slot.borrower = None
            while slot.lender is not None and slot.lender not in self.holders:
                slot.lender = slot.lender.lender
        for slot in self.holders:
            if slot.lender is not None:
                slot.lender.borrower = slot
        self.occupied = sum(slot.lender is None for slot in self.holders)
        self.running = sum(not slot.waits for slot in self.holders)
        self.extras = sum(slot.extra for slot in self.holders)
        self.adopted = sum(slot.adopted for slot in self.holders)
        self.stalled_since = None


# Guards every Slot and Limit, and the names below. One that knows its owner: a thread that a signal handler has thrown
# out of here, at whichever bytecode, can find out whether it still has it.
_lock = threading.RLock()
_inside = 0  # the thread that holds the lock, and does not only begin or cease to
_sound = True  # whether the accounts are in order: not while they change, nor if something has raised then
_notes: deque[Callable[[], Sequence[Slot]]] = deque()  # what is to be done, by whoever comes next
_limits: dict[int, Limit] = {}  # by the id of the limiter, while it lives
_watched: set[Limit] = set()
# Granted from the queue, until the watcher has seen that their callers were woken; and whether it has seen them before.
_unwoken: dict[Slot, bool] = {}
_watcher: threading.Thread | None = None


def _locked(step: Callable[..., Sequence[Slot]], *args: Any) -> None:
    """Do *step*, then what has been noted, while holding the lock. Wake those who were granted a slot after that.

    The second `finally` is there for a signal handler that raises just after the lock was taken, or in the first one.
    """
    global _inside, _sound
    me = get_ident()
    if _inside == me:  # we are in a finalizer, and what we have interrupted will do what is noted
        if step is _do_noted:
            return
        raise LoopStateError("a finalizer made a call in the midst of another call of this thread")
    while True:
        left = False
        try:
            try:
                _lock.acquire()
                _inside = me
                if not _sound:
                    _repair()
                _sound = False
                served = step(*args)
                if _notes:
                    served = [*served, *_do_noted()]
                _sound = True
            finally:
                if _inside == me:  # pragma: no branch  if not, something has raised before we could say so
                    _inside = 0
                    _lock.release()
                    left = True
        finally:
            if not left:
                _leave()
        if served:
            _wake(served)
        if not _notes:
            return
        step, args = _do_noted, ()  # of a finalizer that ran just before we left, or of those who could not be woken


def _leave() -> None:
    """Give the lock back, unless that has been done."""
    global _inside
    if _inside == get_ident():  # pragma: no cover  in the first step of a `finally`, where tracing can lead alone
        _inside = 0
    with suppress(RuntimeError):  # it is not ours
        _lock.release()


def _nothing() -> Sequence[Slot]:
    return ()


def _do_noted() -> Sequence[Slot]:
    """Carry out what has been noted, oldest first. What is interrupted will be carried out once more."""
    served: Sequence[Slot] = ()
    while _notes:
        more = _notes[0]()
        if more:
            served = [*served, *more]
        _notes.popleft()
    return served


def _repair() -> None:
    for limit in list(_limits.values()):
        limit.repair()


def _wake(served: Sequence[Slot]) -> None:
    """Wake the callers of those who were granted a slot. If nobody is left to be woken, it goes to the next one."""
    for slot in served:
        if slot.wake is not None and not slot.wake():
            _notes.append(slot.give_back)
        slot.woken = True


def take(slot: Slot) -> bool:
    """Take a slot for *slot*, if there is one for it now. Return whether there was."""
    _locked(_take, slot)
    return slot.held


def _take(slot: Slot) -> Sequence[Slot]:
    limit, parent = slot.limit, slot.parent
    if parent is not None:
        parent.living_parent()  # so that a call that begins the next one for ever does not remember them all
        for ancestor in slot.same_limit_ancestors():
            if ancestor.waits and ancestor.borrower is None:
                limit.grant(slot, ancestor)
                return ()
    if not limit.queue and limit.free() > 0:
        limit.grant(slot)
    return ()


def queue(slot: Slot, wake: Callable[[], bool]) -> bool:
    """Take a slot for *slot*, or queue for it. Return whether it has one now.

    If not, *wake* is called when it does, from any thread, perhaps more than once. It must return at once, and say
    whether anybody is left to be woken. `release` ends the wait.
    """
    _locked(_queue, slot, wake)
    if _watched:
        _have_a_watcher()
    return slot.held


def _queue(slot: Slot, wake: Callable[[], bool]) -> Sequence[Slot]:
    _take(slot)
    if slot.held:
        return ()
    limit = slot.limit
    slot.wake = wake
    limit.enqueue(slot)
    if not limit.watched:
        _watched.add(limit)
        limit.watched = True
    return limit.serve()


def acquire(limiter: CapacityLimiter, wake: Callable[[], bool] | None = None) -> Slot:
    """Ask for a slot of *limiter*, for a call that the current context makes; queue for it where *wake* is given.

    For threads in which no signal handler runs. Others make the slot first, to give it back whatever happens.
    """
    slot = Slot(limiter)
    if not take(slot) and wake is not None:
        queue(slot, wake)
    return slot


def pass_through() -> None:
    """Take the lock and give it back: what this thread did before is seen by whoever takes it after us."""
    _locked(_nothing)


def seems_free(limiter: CapacityLimiter) -> bool:
    """Return whether there was a slot of *limiter* just now."""
    limit = _limits.get(id(limiter))
    return limit is None or not (limit.queue or limit.free() <= 0)


def is_interrupted() -> bool:
    """Return whether this thread is in here already: the garbage collector has come in between, with a finalizer."""
    return _inside == get_ident()


def release(slot: Slot) -> None:
    """Give *slot* back, or leave the queue. From any thread, finalizers included. Doing so twice is harmless."""
    if not slot.given_up:
        _notes.append(slot.give_back)  # in one step: from here on it will be done, whoever interrupts us
        _locked(_do_noted)


def lend(slot: Slot, wait: object = None) -> None:
    """Say that the thread which runs on *slot* waits in one of our calls from now on, which *wait* stands for."""
    _locked(_lend, slot, wait)


def _lend(slot: Slot, wait: object) -> Sequence[Slot]:
    waited, slot.waits = slot.waits, slot.waits | {wait}
    if waited or not slot.held:
        return ()
    slot.limit.running -= 1
    return slot.limit.serve(slot) if slot.limit.queue else ()


def take_back(slot: Slot, wait: object = None) -> None:
    """Say that the thread which runs on *slot* goes on after *wait*. From any thread, finalizers included."""
    _notes.append(partial(_take_back, slot, wait))
    _locked(_do_noted)


def _take_back(slot: Slot, wait: object) -> Sequence[Slot]:
    waited, slot.waits = slot.waits, slot.waits - {wait}
    if waited and not slot.waits and slot.held:
        limit = slot.limit
        limit.running += 1
        limit.stalled_since = None
        if slot.borrower is not None:  # it outlives our wait: from now on it counts for itself
            slot.borrower.lender = None
            slot.borrower = None
            limit.occupied += 1
    return ()


def acquire_now(limiter: CapacityLimiter) -> Slot:
    """Take a slot of *limiter* without waiting for it, though it may be one more than the limit."""
    slot = Slot(limiter)
    _locked(_take_now, slot)
    return slot


def _take_now(slot: Slot) -> Sequence[Slot]:
    parent = slot.living_parent()
    if parent is not None:
        parent.living_parent()  # as in `_take`
    slot.limit.grant(slot)
    return ()


def adopt(slot: Slot) -> None:
    """Count a worker that others started as holding *slot*, which it lends from the start.

    Nobody asked us before it ran, so it may be one more than the limit.
    """
    _locked(_adopt, slot)


def _adopt(slot: Slot) -> Sequence[Slot]:
    slot.adopted = True
    slot.limit.adopted += 1
    _take_now(slot)
    return _lend(slot, slot)


def _open_accounts(limiter: CapacityLimiter) -> Limit:
    return _limits.setdefault(id(limiter), Limit(limiter))


def _have_a_watcher() -> None:
    """Start the watcher, unless there is one."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        with suppress(RuntimeError):  # no thread can be started, as the interpreter is ending: nobody is let in early
            _watcher = start_thread(_watch, "unfazed-slots")


def _watch() -> None:
    """Look after the limits with a queue until there is none: rule 3, and totals that were raised meanwhile."""
    done: list[bool] = []
    while not done:
        time.sleep(STALL_SECONDS / 2)
        try:
            _locked(_look_around, done)
        except BaseException as exc:  # of a limiter's own method, for one: others are still to be looked after
            threading.excepthook(
                threading.ExceptHookArgs((type(exc), exc, exc.__traceback__, threading.current_thread()))
            )


def _look_around(done: list[bool]) -> Sequence[Slot]:
    global _watcher
    served: list[Slot] = []
    for slot, seen in list(_unwoken.items()):
        if slot.woken or not slot.held:  # or it was not granted after all, or has been given back by now
            del _unwoken[slot]
        elif seen:  # a signal handler has kept whoever granted it from that
            served.append(slot)
        else:
            _unwoken[slot] = True
    for limit in list(_watched):
        served += limit.serve()
        served += limit.relieve(time.monotonic())
        if not limit.queue:
            limit.watched = False
            _watched.discard(limit)
    if not _watched and not _unwoken:
        _watcher = None
        done.append(True)
    return served


def _reset_after_fork() -> None:
    """After a fork: no thread that held a slot has come along, and the lock may have been taken by one of them."""
    global _lock, _inside, _sound, _watcher
    _lock = threading.RLock()
    _inside, _sound = 0, True
    _notes.clear()
    _limits.clear()
    _watched.clear()
    _unwoken.clear()
    _watcher = None
    current_slot.set(None)


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_reset_after_fork)
