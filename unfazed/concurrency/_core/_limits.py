"""Who holds a slot, who queues for one, and who gets the next: the accounts of each limiter.

A *slot* is one call's permission to run under a limiter. anyio's limiters belong to one loop and are not thread-safe,
so we count ourselves. A slot is free while ours, plus the tokens that others have borrowed from the limiter by anyio's
own means, are fewer than its `total_tokens`.

The rules, which let calls nest to any depth without a deadlock:

1. A call takes a free slot. If there is none it queues, first come first served.
2. A worker that waits in one of our sync calls *lends* its slot to the calls made on its behalf, and to no one else:
   a call that waits for a lock that this worker holds must not occupy its slot. A descendant takes a lent slot
   before a free one, and passes it on to its siblings. The worker takes its slot back at once when it goes on. A
   descendant that still runs then counts as having a slot of its own, even beyond the limit.
3. If every holder of a limiter has been waiting in our calls for `STALL_SECONDS` while somebody queues, one more call
   is let in: first those that are nested, or that a blocked event loop waits for. Nothing else resolves two limiters
   taken in opposite orders, or two calls that wait for each other. At most `total_tokens` other calls come in this way.
4. An event loop that is blocked on purpose (`_blockedloops.py`) gives no slots back. If its tasks hold slots on which
   nothing runs any more, these are given back for them. Suppose that a call queues which the loop waits for. If only
   its tasks can give a slot back, the call is refused. But it is let in, as by rule 3, if others hold slots and all of
   them wait in our calls, or if nothing runs yet on a slot that a task of the loop holds.

Nothing here takes a lock or wakes anybody. `_slots.py` holds the lock while it calls what changes the accounts.
`Slot()` itself, reading `held`, and what only error messages read, need no lock.
"""

from __future__ import annotations

import time
import weakref
from collections import OrderedDict
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Final, cast, final

from ._blockedloops import blocked_loops, waits_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anyio import CapacityLimiter

    from ._blockedloops import BlockedLoop
    from ._calls import UserCall

STALL_SECONDS: Final = 0.05  # long enough to be no ordinary wait, short enough not to be noticed; otherwise arbitrary

current_slot: ContextVar[Ancestor | None] = ContextVar("unfazed_current_slot", default=None)
"""The slot, or mark, of the call that the current code runs for: set where it runs, inherited by what it starts."""

limits: dict[int, Limit] = {}  # by the id of the limiter, while that lives
unwoken: dict[Slot, bool] = {}  # granted from the queue; whether the watcher has seen that they were not woken yet


class Ancestor:
    """A call as those that are made on its behalf see it. Contexts may keep it, so it forgets the call at its end."""

    held: bool = False  # whether it has a slot: granted, and not given back yet
    call: UserCall | None = None  # the call; None: it has ended, or is a thread that others started
    parent: Ancestor | None = None  # the call that has made it, whatever its place

    def living_parent(self) -> Slot | None:
        """Return the nearest ancestor with a slot. Forget those that have ended: the chain could grow for ever."""
        parent = self.parent
        while parent is not None and not parent.held and parent.call is None:
            parent = parent.parent
        self.parent = parent
        while parent is not None and not parent.held:
            parent = parent.parent
        return cast("Slot | None", parent)  # only slots are held


@final
class Mark(Ancestor):
    """Stands for a call that needs no slot."""


@final
class Slot(Ancestor):
    """One call's permission to run. Made before it is asked for, so that whoever is interrupted can give it back.

    Args:
        limiter: The limiter that bounds the call.
    """

    # the state of a new slot; class attributes cost less than assignments in `__init__`
    held: bool = False  # granted, and not given back yet
    call: UserCall | None = None
    given_up: bool = False  # its caller has given it back, or no longer wants it
    extra: bool = False  # let in by rule 3 though it is not nested
    adopted: bool = False  # held by a worker that others started; anyio may already count a token of the limiter for it
    woken: bool = False  # its caller has been told that it was granted
    relieved: bool = False  # let in by rule 3
    abandoned: bool = False  # nobody waits any more for what runs on it
    ended: bool = False  # what ran on it has ended, but its caller may not have given it back yet
    awaited_in: object = None  # the native loop whose task alone can begin what it is for, or give it back
    blocked_loop: BlockedLoop | None = None  # while queued: the loop that may be blocked until its caller goes on
    refused: BlockedLoop | None = None  # why it is never granted: this loop would wait for ever
    waits: frozenset[object] = frozenset()  # our calls that this slot's thread is waiting in
    wake: Callable[[], bool] | None = None  # wakes its caller, if that queues
    lender: Slot | None = None  # whose slot it runs on; None: its own
    borrower: Slot | None = None  # the descendant that runs on this slot while the owner waits
    ancestors: tuple[Slot, ...] = ()  # while queued: ancestors with a slot of the same limiter, nearest first
    queued_descendants: OrderedDict[Slot, None] | None = None  # queued descendants, oldest first

    def __init__(self, limiter: CapacityLimiter) -> None:
        self.limiter: CapacityLimiter | None = limiter  # keeps it, and so its accounts, alive until we end
        self.limit: Limit = limits.get(id(limiter)) or open_accounts(limiter)
        self.parent: Ancestor | None = current_slot.get()
        # What queueing sets. CPython gives an object a dict if an attribute is new to the class after some 30 objects.
        self.wake = self.blocked_loop = None
        self.ancestors = ()
        self.woken = False

    def give_back(self) -> Sequence[Slot]:
        """End the slot, or its wait in the queue. Return the slots that are granted by that."""
        limit, lender = self.limit, self.lender
        if self in limit.holders:  # not `if self.held`: a signal handler may have raised between the two updates
            limit.take_away(self)
        self.held = False
        self.call = None
        served: Sequence[Slot] = ()
        if limit.queue:
            if self in limit.queue:
                limit.dequeue(self)
            served = limit.serve(lender)
        self.awaited_in = self.lender = None  # not before: if this is interrupted, it is done again
        self.given_up = True  # last, so that `release` tries again if this was interrupted
        self.limiter = None
        return served

    def what_it_waits_for(self) -> str:
        """Return what a call waits for that has queued and was never let in; "" for any other call."""
        return "" if self.wake is None or self.woken else f"a slot, but {self.limit.describe()}"

    def blocked_chain(self) -> list[BlockedLoop]:
        """Return the loops that are blocked until its caller goes on."""
        chain = () if self.blocked_loop is None else self.blocked_loop.chain()
        return [each for each in chain if each in blocked_loops]

    def same_limit_ancestors(self) -> Iterator[Slot]:
        """Iterate over the ancestors that hold a slot of the same limiter, nearest first."""
        ancestor = self.living_parent()
        while ancestor is not None:
            if ancestor.limit is self.limit:
                yield ancestor
            ancestor = ancestor.living_parent()


class Limit:
    """The accounts of one limiter.

    The truth is who is in `holders` (with their `lender`, `waits` and `extra`) and who is in `queue`. All other
    attributes follow from that, and `repair` computes them again.
    """

    __slots__ = (
        "_limiter",
        "adopted",
        "extras",
        "holders",
        "occupied",
        "queue",
        "running",
        "stalled_since",
        "warned",
        "watched",
    )

    def __init__(self, limiter: CapacityLimiter) -> None:
        self._limiter = weakref.ref(limiter, partial(limits.pop, id(limiter)))
        self.holders: set[Slot] = set()  # calls that hold a slot, a lent one included
        self.queue: OrderedDict[Slot, None] = OrderedDict()  # oldest first
        self.occupied: int = 0  # holders with a slot of their own, not a lent one
        self.running: int = 0  # holders that do not wait in our calls
        self.extras: int = 0  # running calls that rule 3 let in though they are not nested
        self.adopted: int = 0  # holders that others started
        self.stalled_since: float | None = None  # time.monotonic() seconds; None: somebody runs or nobody queues
        self.watched: bool = False  # whether the watcher looks after it
        self.warned: bool = False  # whether a warning was logged that all its slots are abandoned

    @property
    def limiter(self) -> CapacityLimiter:
        limiter = self._limiter()
        assert limiter is not None, "slots that are held or queued keep it alive"
        return limiter

    def free(self) -> float:
        """Return how many slots are free. It is negative if more are taken than there are."""
        limiter = self._limiter()
        assert limiter is not None, "as in `limiter`; this is faster"
        borrowed = limiter.borrowed_tokens  # by anyio's own means, which our calls do not use, but adopted workers may
        others = borrowed - self.adopted if borrowed > self.adopted else 0
        return limiter.total_tokens - self.occupied - others

    def borrowed_by_others(self) -> int:
        """Return how many tokens others have borrowed from the limiter by anyio's own means."""
        return max(0, self.limiter.borrowed_tokens - self.adopted)

    def describe(self) -> str:
        """Return how many slots are taken, and by which functions, those that wait in our calls included."""
        abandoned: dict[str, list[bool]] = {}
        for slot in self.holders.copy():  # a copy is atomic, and other threads change the set
            call = slot.call
            name = "others' threads" if call is None else f"{call.name}()"
            abandoned.setdefault(name, []).append(slot.abandoned)
        total, free = self.limiter.total_tokens, self.free()
        others = self.borrowed_by_others()
        if others:
            abandoned["anyio's own calls"] = [False] * others
        by = ", ".join(
            f"{name} ({len(each)}{f', {sum(each)} of them abandoned' if any(each) else ''})"
            for name, each in abandoned.items()
        )
        return f"{total - free:g} of {total:g} are taken, by {by}"

    def is_abandoned(self) -> bool:
        """Return whether no slot is free, and nobody waits any more for any call that holds one."""
        holders = self.holders.copy()
        return self.free() <= 0 and bool(holders) and all(slot.abandoned for slot in holders)

    def enqueue(self, slot: Slot) -> None:
        self.queue[slot] = None
        if slot.parent is None:
            return
        slot.ancestors = tuple(slot.same_limit_ancestors())
        for ancestor in slot.ancestors:
            if ancestor.queued_descendants is None:
                ancestor.queued_descendants = OrderedDict()
            ancestor.queued_descendants[slot] = None

    def dequeue(self, slot: Slot) -> None:
        for ancestor in slot.ancestors:
            if ancestor.queued_descendants is not None:  # pragma: no branch  unless a signal handler raised
                ancestor.queued_descendants.pop(slot, None)
        slot.ancestors = ()
        self.queue.pop(slot, None)

    def grant(self, slot: Slot, lender: Slot | None = None) -> None:
        """Let *slot* run, on *lender*'s slot or on one of its own."""
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
        """Take *slot* out of the queue and let it run. Return it: its caller is woken after the lock is released."""
        unwoken[slot] = False
        self.grant(slot, lender)
        self.dequeue(slot)
        return slot

    def take_away(self, slot: Slot) -> None:
        """End *slot*, without granting it to the next one yet."""
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
        if borrower is not None:  # it runs on this slot, and inherits it
            borrower.lender = lender
        if lender is not None:
            lender.borrower = borrower
        elif borrower is None:
            self.occupied -= 1
        slot.borrower = None

    def serve(self, lender: Slot | None = None) -> list[Slot]:
        """Grant *lender*'s slot if it is idle, then free ones, to those who have queued longest. Return them."""
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
        """Let one more in if rule 3 says so. Return it."""
        if self.stalled_since is None or now - self.stalled_since < STALL_SECONDS:
            return []
        for slot in self.queue:
            if slot.living_parent() is not None or slot.blocked_chain():
                slot.relieved = True
                return [self.grant_queued(slot)]
        if self.extras >= self.limiter.total_tokens:
            return []
        slot = next(iter(self.queue))
        slot.extra = slot.relieved = True
        self.extras += 1
        return [self.grant_queued(slot)]

    def look_at_blocked_loops(self) -> list[Slot]:
        """Serve or refuse those who queue on behalf of a loop that is blocked. Return them, to be woken (rule 4)."""
        served: list[Slot] = []
        for slot in self.holders.copy():
            if slot.ended:
                served += slot.give_back()
        for slot in tuple(self.queue):
            chain = slot.blocked_chain()
            if chain:
                served += self._look_at(slot, chain)
        return served

    def _look_at(self, slot: Slot, chain: list[BlockedLoop]) -> list[Slot]:
        """Let *slot* in, or refuse it, if nobody can give one back before the loops in *chain* go on."""
        stuck = {
            holder
            for holder in self.holders
            if holder.awaited_in is not None and waits_for(holder.awaited_in, chain) is not None
        }
        others = self.holders - stuck
        if not all(holder.waits for holder in others):
            return []
        if any(holder.call is None or holder.call.began is None for holder in stuck) or (others and stuck):
            return [self.grant_queued(slot)]
        if not others and (stuck or self._is_borrowed_for(chain)):
            slot.refused = chain[0]
            return [slot]
        return []

    def _is_borrowed_for(self, chain: list[BlockedLoop]) -> bool:
        """Return whether a task of the loops in *chain* may have borrowed tokens by anyio's own means.

        anyio does not say which task waits for one of its threads.
        """
        borrowers = self.limiter.statistics().borrowers if self.limiter.borrowed_tokens else ()
        for borrower in borrowers:
            get_loop = getattr(borrower, "get_loop", None)  # an asyncio task has one
            if get_loop is None or waits_for(get_loop(), chain) is not None:
                return True
        return False

    def repair(self) -> None:
        """Compute again what follows from `holders` and `queue`: something raised while they changed."""
        for slot in tuple(self.queue):
            slot.held = slot in self.holders
            if slot.held:
                unwoken[slot] = False
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


def innermost_call(ancestor: Ancestor | None) -> UserCall | None:
    """Return the call of *ancestor*, or of its nearest ancestor whose call has not ended."""
    while ancestor is not None:
        call = ancestor.call  # read once: it is forgotten when the call ends
        if call is not None:
            return call
        ancestor = ancestor.parent
    return None


def open_accounts(limiter: CapacityLimiter) -> Limit:
    return limits.setdefault(id(limiter), Limit(limiter))
