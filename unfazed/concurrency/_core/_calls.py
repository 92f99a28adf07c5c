"""What is known of every call, wherever it runs: who made it, since when, how it ended; the totals.

A `UserCall` is one call of the user's: a `ThreadCall`, a `ProcessCall`, an `ExecutorCall`, or a `TaskCall` or
`StepCall` for an async function.

    step                    who takes it                                 what follows
    ----------------------  -------------------------------------------  -----------------------------------------------
    `introduce`             whoever makes the call                       observers: `queued`
    `note_begin`            the task, or the executor's thread, that     observers: `begun`; it is the parent of the
                            runs it, in its context, just before         calls that are made there
    `note_begin_elsewhere`  whoever sends it to another process          observers: `begun`
    `note_end`              whoever waits for it, before they get the    it is counted; observers: `ended`
                            result; or its handle, when that is settled

A `ThreadCall` does what `note_begin` does in its own `work`.
Where nobody observes, a call takes a look at `observers`, reads the clock once or twice, and counts. All else is found
out when somebody asks: statistics and dumps find the calls where the slots, the loops and the executors have them
(`_inside/_lists.py`), and which of them made which (`_inside/_parents.py`).

Guarantees:

- Whoever has the result of a call finds it in the totals.
- Contexts keep neither a call that has ended nor its function: they keep a `Slot` or a `Mark`, which forget the call.

Assumptions: `next(itertools.count())` is atomic, with and without a GIL; so is `dict.setdefault` (Python's
documentation, "Thread Safety Guarantees"). So nothing here needs a lock. A forked child counts from zero.
"""

from __future__ import annotations

from contextvars import copy_context
from itertools import count
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, final

from ._checks import name_of
from ._errors import CallCancelledError, CallTimeoutError, LoopEndedError
from ._lifetime import in_forked_child
from ._limits import Mark, current_slot, innermost_call
from ._observing import observe_call, observers

if TYPE_CHECKING:
    from ._limits import Ancestor, Slot
    from ._observing import CallOutcome, CallPlace, CallWaiter, ObservedCall

PLACES: Final[tuple[CallPlace, ...]] = ("threadpool", "processpool", "executor", "eventloop")
OUTCOMES: Final[tuple[CallOutcome, ...]] = (
    "returned", "raised", "cancelled", "timed out", "abandoned", "worker died",
)  # fmt: skip
HANDLE: Final = 0  # stands for a handle where the identifier of a thread would be

_numbers = count(1)
totals: Final = {place: {outcome: count() for outcome in OUTCOMES} for place in PLACES}
_of_the_parent: dict[tuple[CallPlace, CallOutcome], int] = {}  # in a forked child: what was counted before the fork


class UserCall:
    """One call of the user's."""

    place: CallPlace
    helper: str = ""  # the name of our function that the user called, perhaps with `{}` for the name of *func*
    func: Any = None  # what runs, or a text for it
    waiter: int | None = None  # None: async code awaits it; `HANDLE`; or the identifier of the thread that waits for it
    slot: Slot | None = None  # its own
    since: float | None = None  # time.monotonic() when it began to wait, if it has to
    began: float | None = None  # time.monotonic() when its function began
    thread: int | None = None  # the identifier of the thread that runs it, once that is known
    observed: ObservedCall | None = None

    @property
    def name(self) -> str:
        """The name of what runs."""
        return self.func if isinstance(self.func, str) else name_of(self.func)

    @property
    def caller(self) -> CallWaiter:
        """Who waits for it."""
        if self.waiter == HANDLE:
            return "handle"
        return "async" if self.waiter is None and not self.helper.endswith("sync") else "sync"

    @property
    def has_timeout(self) -> bool:
        """Whether it may have a timeout of its own."""
        return True

    @property
    def number(self) -> int:
        """Its number, which it gets when somebody asks."""
        number: int = self.__dict__.get("_number") or self.__dict__.setdefault("_number", next(_numbers))
        return number

    @property
    def parent(self) -> UserCall | None:
        """The call that made it, if that has not ended."""
        return None if self.slot is None else innermost_call(self.slot.parent)

    def introduce(self) -> None:
        """Note that its caller begins to wait for it. `waiter` has been set, unless async code awaits it."""
        if observers and self.observed is None:
            self.tell_queued()

    def tell_queued(self) -> None:
        parent = innermost_call(current_slot.get())
        number = None if parent is None else parent.number
        self.observed = observe_call(self.number, number, self.place, self.name, self.helper, self.caller)

    def note_begin_elsewhere(self) -> None:
        """Note that its function is about to begin in another process. We are not told when it really does."""
        self.began = monotonic()
        if self.observed is not None:
            copy_context().run(self.observed.tell_begun)  # the context is that of the caller, who must not see changes

    def note_end(self, exc: BaseException | None) -> None:
        """Note that it has ended, and count it. *exc* is what the wait for it raised; `None`: its function returned.

        Where a call that has returned is not observed, its total is counted without this, for speed.
        """
        outcome: CallOutcome = "returned" if exc is None else self.outcome_of(exc)
        next(totals[self.place][outcome])
        if self.observed is not None:
            self.observed.tell_ended(outcome, exc)

    def outcome_of(self, exc: BaseException) -> CallOutcome:
        """Return how the call has ended if the wait for it raised *exc*."""
        if isinstance(exc, CallTimeoutError):  # ours, or that of a call that the function has made
            return "timed out" if self.has_timeout and exc.name == self.name else "raised"
        if isinstance(exc, LoopEndedError) or (isinstance(exc, CallCancelledError) and exc.name == self.name):
            return "cancelled"
        return "raised" if isinstance(exc, (Exception, SystemExit)) else "cancelled"


class SlotlessCall(UserCall):
    """A call that needs no slot."""

    made_by: Ancestor | None = None  # on whose behalf it is made
    mark: Mark | None = None  # stands for it in its context, if it is observed
    awaited: object = None  # what its task awaits, if it runs in a task

    @property
    def parent(self) -> UserCall | None:
        return innermost_call(self.made_by)

    def introduce(self) -> None:
        self.since: float | None = monotonic()
        self.made_by = current_slot.get()
        if observers:
            self.tell_queued()

    def note_begin(self) -> None:
        """Note that its function is about to begin in this thread, in the current context."""
        self.thread: int | None = get_ident()
        self.began: float | None = monotonic()
        if self.observed is not None:
            self._mark_context()
            self.observed.tell_begun()

    def _mark_context(self) -> None:
        if self.made_by is not None:
            self.made_by.living_parent()  # a chain of calls that each begin the next one is not remembered for ever
        self.mark = mark = Mark()
        mark.call, mark.parent = self, self.made_by
        current_slot.set(mark)

    def note_end(self, exc: BaseException | None) -> None:
        if self.mark is not None:
            self.mark.call = None
        super().note_end(exc)


class AsyncCall(SlotlessCall):
    """A call of an async function."""

    place: CallPlace = "eventloop"


@final
class StepCall(AsyncCall):
    """A call without a task of its own: its caller awaits it in the current task, or a task does several."""

    def __init__(self, func: object, helper: str) -> None:
        self.func: Any = func
        self.helper: str = helper

    def begin_here(self) -> None:
        """Note that its caller is about to await it, in the current task and context."""
        self.introduce()
        copy_context().run(self.note_begin)  # what observers set there is not for the caller
        current_slot.set(self.mark)

    def end_here(self, exc: BaseException | None) -> None:
        """Note that its caller goes on."""
        if self.mark is not None:
            current_slot.set(self.made_by)
        self.note_end(exc)

    def never_begins(self, exc: BaseException) -> None:
        """Note that *exc* has kept its caller from awaiting it."""
        self.introduce()
        self.note_end(exc)


def total(place: CallPlace, outcome: CallOutcome) -> int:
    """Return how many calls in *place* have ended so."""
    counted = int(repr(totals[place][outcome])[len("count(") : -1])  # the only way to look at it without counting
    return counted - _of_the_parent.get((place, outcome), 0)


def _reset_after_fork() -> None:
    """In a forked child: the parent's calls do not run here. Who observes goes on."""
    _of_the_parent.clear()  # first, as `total` looks at it
    _of_the_parent.update({(place, outcome): total(place, outcome) for place in PLACES for outcome in OUTCOMES})


in_forked_child(_reset_after_fork)
