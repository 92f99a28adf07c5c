"""Event loops that are blocked: a sync call waits on the thread of each, and the user has allowed that.

The call must not need that loop, or both would wait for ever. So the context of the call says which loops are blocked
by it, and everything that is done on behalf of the call inherits that. Before a loop is given something to run,
`refuse_if_blocked` is asked.

A call that is started on the thread of a loop may be waited for later, on that thread. So its context has a
`BlockedLoop` from the start, which is not in `blocked_loops` until then.

    who needs the loop that is blocked                what happens
    ------------------------------------------------  -----------------------------------------
    a call made on behalf of the call that blocks it  `LoopThreadError`
    a call on behalf of another such loop             the same, if each would wait for the other
    any other call                                    it waits until the loop goes on

Guarantee: of two threads that are about to wait for each other's loop, at least one is refused. Each adds its call to
`_needs`, or itself to `blocked_loops`, before it looks at the other's.

Assumptions: `add`, `discard` and `copy` of sets, and setting, `pop` and `copy` of dicts, are atomic, with and without a
GIL (Python's documentation, "Thread Safety Guarantees"). No lists: a finalizer that empties a list while `copy` makes
room for it crashes CPython before 3.12. A forked child starts with none.
"""

from __future__ import annotations

import threading
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, final

from ._errors import LoopThreadError
from ._lifetime import in_forked_child

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._taskcall import TaskCall

current_blocked_loop: ContextVar[BlockedLoop | None] = ContextVar("unfazed_current_blocked_loop", default=None)
"""The blocked loop that waits for the current code, if any."""

blocked_loops: set[BlockedLoop] = set()  # all that are blocked now; other calls only look whether it is empty


@final
class BlockedLoop:
    """An event loop that is blocked, from `begin` to `end`, perhaps several times.

    Args:
        native: The library's own object for the loop.
        helper: What the user called, which blocks the loop.
        instead: What to write instead.
    """

    def __init__(self, native: object, helper: str, instead: str) -> None:
        self.native: object = native
        self._helper = helper
        self._instead = instead
        self._thread = threading.current_thread().name
        self._outer = current_blocked_loop.get()
        self._needs: dict[TaskCall[Any], object] = {}  # calls on its behalf, and the loop of each

    def as_part_of(self, other: BlockedLoop | None) -> BlockedLoop:
        """Return *other*, if there is one, for the loop of this; otherwise this."""
        if other is None:
            return self
        other.native = self.native
        return other

    def begin(self) -> None:
        """Begin it. Raise `LoopThreadError` if the loop is needed for what it would wait for."""
        current_blocked_loop.set(self)
        blocked_loops.add(self)
        for native in self.needs():
            if waits_for(native, [self]) is not None:
                raise self.error()

    def end(self) -> None:
        """End it. It may be called twice."""
        blocked_loops.discard(self)
        if current_blocked_loop.get() is self:
            current_blocked_loop.set(self._outer)
        self.native = None  # contexts may keep us, and must not keep the loop
        self._forget_done()

    def chain(self) -> Iterator[BlockedLoop]:
        """Iterate over this loop and those that wait for it, innermost first, also if they are not blocked now."""
        blocked_loop: BlockedLoop | None = self
        while blocked_loop is not None:
            yield blocked_loop
            blocked_loop = blocked_loop._outer

    def error(self, needed: str = "") -> LoopThreadError:
        """Return the error for a call that needs the loop, or what *needed* names: something in it."""
        return LoopThreadError(self._helper, self._instead, f"{needed}the event loop of the thread {self._thread!r}")

    def add(self, native: object, call: TaskCall[Any]) -> None:
        self._needs[call] = native
        self._forget_done()

    def _forget_done(self) -> None:
        for each in self._needs.copy():
            if each.future.done:
                self.forget(each)

    def forget(self, call: TaskCall[Any]) -> None:
        self._needs.pop(call, None)

    def needs(self) -> list[object]:
        """Return the loops that calls on our behalf wait for."""
        return [native for call, native in self._needs.copy().items() if not call.future.done]


def refuse_if_blocked(native: object, call: TaskCall[Any], blocked_loop: BlockedLoop | None) -> None:
    """Refuse *call*, made on behalf of *blocked_loop*, if its loop *native* is blocked until the call has ended."""
    chain = [] if blocked_loop is None else [*blocked_loop.chain()]
    for each in chain:
        each.add(native, call)
    blocked = waits_for(native, chain)
    if blocked is not None:
        for each in chain:
            each.forget(call)
        raise blocked.error()


def waits_for(native: object, chain: list[BlockedLoop]) -> BlockedLoop | None:
    """Return the member of *chain* that the loop *native* waits for, if it is blocked, directly or by others."""
    reached, loops = [native], blocked_loops.copy()
    for target in reached:  # which grows
        for blocked_loop in loops:
            if blocked_loop.native is target:
                if blocked_loop in chain:
                    return blocked_loop
                reached += [each for each in blocked_loop.needs() if each not in reached]
    return None


def refuse_to_wait_for(native: object) -> None:
    """Refuse to wait for the end of the loop *native*, if it is blocked and waits for the current code."""
    here = current_blocked_loop.get()
    blocked = None if here is None else waits_for(native, [*here.chain()])
    if blocked is not None:
        raise blocked.error()


def _reset_after_fork() -> None:
    """In a forked child: the loops that were blocked do not exist here."""
    blocked_loops.clear()
    current_blocked_loop.set(None)


in_forked_child(_reset_after_fork)
