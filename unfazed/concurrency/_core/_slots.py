"""Slots: take, queue, release, lend. Thread-safe, for all loops at once. Knows no event loop.

`_limits.py` has the rules and the accounts; here are the lock that guards them, and the waking.

Guarantees:

- `_lock` guards every `Slot`, every `Limit` and the names beside it. Its holder waits for nothing else.
- A finalizer that the garbage collector runs on the thread that holds the lock changes nothing. What it releases is
  noted in `_notes`, and that thread carries it out before it goes on.
- A signal handler may raise at any bytecode. The lock is not left taken. The next thread that takes it puts the
  accounts in order (`Limit.repair`). A note is removed after it was carried out, and is safe to carry out twice.
- Whoever is granted a slot is woken by the granting thread. If something raises in that, the watcher wakes it.
- The watcher survives errors, and is started again if it has gone.

Assumptions: `deque.append` and reading an attribute that another thread sets are atomic, with and without a GIL.
Finalizers do not wait for locks. Whoever creates a `Slot` releases it in a `finally`, taken or not.

A forked child starts with a new lock and with all slots free.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from contextlib import suppress
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any

from ._blockedloops import blocked_loops, current_blocked_loop
from ._errors import LoopStateError
from ._lifetime import in_forked_child
from ._limits import STALL_SECONDS, Limit, Slot, current_slot, limits, unwoken
from ._threadstart import show, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from anyio import CapacityLimiter

# Guards every Slot and Limit, and the names below. An RLock, because it knows its owner: after a signal handler has
# raised at an unknown bytecode, a thread can find out whether it still holds it.
_lock = threading.RLock()
_owner = 0  # the thread that holds the lock and changes the accounts; 0: nobody
_sound = True  # whether the accounts are in order: false while they change, and after something raised meanwhile
_notes: deque[Callable[[], Sequence[Slot]]] = deque()  # what the next thread that takes the lock has to do
_watched: set[Limit] = set()
_watcher: threading.Thread | None = None


def _locked(step: Callable[..., Sequence[Slot]], *args: Any) -> None:
    """Do *step*, then what has been noted, while holding the lock. Then wake those who were granted a slot.

    The second `finally` is for a signal handler that raises just after the lock was taken, or in the first `finally`.
    """
    global _owner, _sound
    me = get_ident()
    if _owner == me:  # we are a finalizer; the code that it interrupted will carry out the notes
        if step is _do_noted:
            return
        raise LoopStateError("a finalizer made a call in the midst of another call of this thread")
    while True:
        left = False
        try:
            try:
                _lock.acquire()
                _owner = me
                if not _sound:
                    _repair()
                _sound = False
                served = step(*args)
                if _notes:
                    served = [*served, *_do_noted()]
                _sound = True
            finally:
                if _owner == me:  # pragma: no branch  otherwise something raised before the assignment
                    _owner = 0
                    _lock.release()
                    left = True
        finally:
            if not left:
                _leave()
        if served:
            _wake(served)
        if not _notes:
            return
        step, args = _do_noted, ()  # from a finalizer that ran just before we left, or from a wake-up that failed


def _leave() -> None:
    """Release the lock, unless that has been done."""
    global _owner
    if _owner == get_ident():  # pragma: no cover  only tracing can raise in the first step of a `finally`
        _owner = 0
    with suppress(RuntimeError):  # we do not hold it
        _lock.release()


def _nothing() -> Sequence[Slot]:
    return ()


def _do_noted() -> Sequence[Slot]:
    """Carry out the notes, oldest first. A note that is interrupted is carried out again."""
    served: Sequence[Slot] = ()
    while _notes:
        more = _notes[0]()
        if more:
            served = [*served, *more] if served else more
        _notes.popleft()
    return served


def _repair() -> None:
    for limit in list(limits.values()):
        limit.repair()


def _wake(served: Sequence[Slot]) -> None:
    """Wake the callers of the slots that were granted. If a caller has gone, its slot goes to the next one."""
    for slot in served:
        if slot.wake is not None and not slot.wake():
            _notes.append(slot.give_back)
        slot.woken = True


def take(slot: Slot) -> bool:
    """Let *slot* run now if the rules allow it. Return whether they do."""
    if slot.parent is None and slot.limit.queue:  # others queue, so it must
        return False
    _locked(_take, slot)
    return slot.held


def _take(slot: Slot) -> Sequence[Slot]:
    limit, parent = slot.limit, slot.parent
    if parent is not None:
        parent.living_parent()  # a chain of calls that each begin the next one must not be remembered for ever
        for ancestor in slot.same_limit_ancestors():
            if ancestor.waits and ancestor.borrower is None:
                limit.grant(slot, ancestor)
                return ()
    if not limit.queue and limit.free() > 0:
        limit.grant(slot)
    return ()


def queue(slot: Slot, wake: Callable[[], bool]) -> bool:
    """Let *slot* run now if the rules allow it, or queue it. Return whether it may run now.

    If it queues, *wake* is called when it is granted, from any thread, perhaps more than once. *wake* must return at
    once, and say whether its caller is still there. `release` ends the wait. If the slot is refused, *wake* is
    called as well, and `require` raises.
    """
    slot.blocked_loop = current_blocked_loop.get()
    _locked(_queue, slot, wake)
    if _watched:
        _have_a_watcher()
    return slot.held


def require(slot: Slot) -> None:
    """Raise `LoopThreadError` if *slot* was refused: whoever queues for it would wait for ever."""
    if slot.refused is not None and not slot.held:
        raise slot.refused.error("a slot that is taken in ")


def _queue(slot: Slot, wake: Callable[[], bool]) -> Sequence[Slot]:
    _take(slot)
    if slot.held:
        return ()
    limit = slot.limit
    slot.wake = wake
    if slot.call is not None:
        slot.call.since = time.monotonic()
    limit.enqueue(slot)
    if not limit.watched:
        _watched.add(limit)
        limit.watched = True
    return limit.serve()


def acquire(limiter: CapacityLimiter, wake: Callable[[], bool] | None = None) -> Slot:
    """Make a slot of *limiter* for the current context and take it; queue for it if *wake* is given.

    Only for threads in which no signal handler runs. Others make the `Slot` first, to release it whatever happens.
    """
    slot = Slot(limiter)
    if not take(slot) and wake is not None:
        queue(slot, wake)
    return slot


def pass_through() -> None:
    """Take and release the lock: whoever takes it after us sees what this thread did before."""
    _locked(_nothing)


def seems_free(limiter: CapacityLimiter) -> bool:
    """Return whether *limiter* had a free slot just now."""
    limit = limits.get(id(limiter))
    return limit is None or not (limit.queue or limit.free() <= 0)


def holds_lock() -> bool:
    """Return whether this is a finalizer that the garbage collector runs while this thread holds the lock."""
    return _owner == get_ident()


def release(slot: Slot) -> None:
    """Give *slot* back, or take it out of the queue. From any thread and any finalizer; twice is harmless."""
    if not slot.given_up:
        _notes.append(slot.give_back)  # atomic: from here on somebody will do it, even if we are interrupted
        _locked(_do_noted)


def lend(slot: Slot, wait: object = None) -> None:
    """Say that the thread of *slot* now waits in one of our calls, identified by *wait*."""
    _locked(_lend, slot, wait)


def _lend(slot: Slot, wait: object) -> Sequence[Slot]:
    waited, slot.waits = slot.waits, slot.waits | {wait}
    if waited or not slot.held:
        return ()
    slot.limit.running -= 1
    return slot.limit.serve(slot) if slot.limit.queue else ()


def take_back(slot: Slot, wait: object = None) -> None:
    """Say that the thread of *slot* goes on after *wait*. From any thread and any finalizer."""
    _notes.append(partial(_take_back, slot, wait))
    _locked(_do_noted)


def _take_back(slot: Slot, wait: object) -> Sequence[Slot]:
    waits = slot.waits - {wait}
    if slot.waits and not waits and slot.held:
        limit = slot.limit
        limit.running += 1
        limit.stalled_since = None
        if slot.borrower is not None:  # it outlives our wait, so it counts for itself from now on
            slot.borrower.lender = None
            slot.borrower = None
            limit.occupied += 1
    slot.waits = waits  # last: if this is interrupted, it is done again
    return ()


def acquire_now(limiter: CapacityLimiter) -> Slot:
    """Take a slot of *limiter* at once, even beyond the limit."""
    slot = Slot(limiter)
    _locked(_take_now, slot)
    return slot


def _take_now(slot: Slot) -> Sequence[Slot]:
    parent = slot.living_parent()
    if parent is not None:
        parent.living_parent()  # as in `_take`
    slot.limit.grant(slot)
    return ()


def adopt(slot: Slot, wait: object = None) -> None:
    """Count a worker that others started as the holder of *slot*, which it lends from the start, while in *wait*.

    Nobody asked us before it ran, so it may be beyond the limit.
    """
    _locked(_adopt, slot, wait)


def _adopt(slot: Slot, wait: object) -> Sequence[Slot]:
    slot.adopted = True
    slot.limit.adopted += 1
    _take_now(slot)
    return _lend(slot, wait)


def _have_a_watcher() -> None:
    """Start the watcher if it is not running."""
    global _watcher
    if _watcher is None or not _watcher.is_alive():
        with suppress(RuntimeError):  # the interpreter is exiting and starts no threads: rule 3 does not apply then
            _watcher = start_thread(_watch, "unfazed-slots")


def _watch() -> None:
    """Look after the limits that have a queue, until none has: rule 3, raised totals, lost wake-ups."""
    done: list[bool] = []
    while not done:
        time.sleep(STALL_SECONDS / 2)
        _look(_wake_unwoken)
        for limit in _watched.copy():
            _look(_look_after, limit)
        _look(_end_watching, done)


def _look(step: Callable[..., Sequence[Slot]], *args: Any) -> None:
    try:
        _locked(step, *args)
    except BaseException as exc:  # for example from a user's limiter: the others still need the watcher
        show(exc)


def _wake_unwoken() -> Sequence[Slot]:
    served: list[Slot] = []
    for slot, seen in list(unwoken.items()):
        if slot.woken or not slot.held:  # woken, or not granted after all, or given back by now
            del unwoken[slot]
        elif seen:  # a signal handler kept the granting thread from waking it
            served.append(slot)
        else:
            unwoken[slot] = True
    return served


def _look_after(limit: Limit) -> Sequence[Slot]:
    served = limit.serve()
    if blocked_loops:
        served += limit.look_at_blocked_loops()
    served += limit.relieve(time.monotonic())
    if not limit.queue:
        limit.watched = False
        _watched.discard(limit)
    return served


def _end_watching(done: list[bool]) -> Sequence[Slot]:
    global _watcher
    if not _watched and not unwoken:
        _watcher = None
        done.append(True)
    return ()


def _reset_after_fork() -> None:
    """In a forked child: the threads that held slots, and perhaps the lock, do not exist here."""
    global _lock, _owner, _sound, _watcher
    _lock = threading.RLock()
    _owner, _sound = 0, True
    _notes.clear()
    limits.clear()
    _watched.clear()
    unwoken.clear()
    _watcher = None
    current_slot.set(None)


in_forked_child(_reset_after_fork)
