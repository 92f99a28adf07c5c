"""Families: which twin class belongs to which async class, and which twin to which object.

`sync_twin` has one family for each loop, a generated module has one of its own. A family is as safe for threads as
Python's dictionaries are: each step on one is atomic, and whoever comes second takes what is there. Two threads that
turn the same object at the same time may get two twins of it, which are equal. A forked child has a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from .._eventloops._background import _background
from ._state import TwinBase, TwinState, set_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._eventloops._loopthread import EventLoopThread

    Turn = Callable[["Site", Any], Any]

TwinT = TypeVar("TwinT", bound=TwinBase)


class Site(NamedTuple):
    """Where a value has come from."""

    family: Family
    loop: EventLoopThread
    timeout: float | None = None  # of each step, where the value is an iterator


make_twin: Callable[[type, Family], type[Any]]  # `_building.py` says it


class Family:
    """Twin classes that know each other.

    Args:
        loop: Where their calls run; `None` for the background event loop.
    """

    def __init__(self, loop: EventLoopThread | None) -> None:
        self._loop = loop
        self._twins: dict[type, type[Any]] = {}
        self.named: set[type] = set()  # those whose twins were asked for, and not made along with others
        self._objects: WeakValueDictionary[int, TwinBase] = WeakValueDictionary()  # by the `id` of the async object
        # How to turn an object of a class that is not a builtin one; `None` for those that come as they are. Weak, for
        # programs make classes while they run.
        self.turns: WeakKeyDictionary[type, Turn | None] = WeakKeyDictionary()

    def event_loop(self) -> EventLoopThread:
        """Return the loop where calls run, and start it if it has not been started."""
        if self._loop is None:
            return _background()
        if not self._loop.is_running() and self._loop._closed is None:
            self._loop._ensure_started()
        return self._loop

    def add(self, cls: type, twin: type[Any]) -> type[Any]:
        """Have *twin* be the twin class of *cls*, unless it has one. Return that which counts."""
        added = self._twins.setdefault(cls, twin)
        self.turns.clear()  # what has been looked up before did not know of it
        return added

    def exact_twin_of(self, cls: type) -> type[Any] | None:
        """Return the twin class of *cls* itself."""
        return self._twins.get(cls)

    def nearest_twin_of(self, cls: type) -> type[TwinBase] | None:
        """Return the twin class of *cls*, or of the first of its bases that has one."""
        twins = (self._twins.get(base) for base in cls.__mro__)
        return next(
            (twin for twin in twins if twin is not None and issubclass(twin, TwinBase)), None
        )  # and no protocol

    def twin_of(self, target: Any, kind: type[TwinT], loop: EventLoopThread | None) -> TwinT:
        """Return the twin of an async object: the one that there is already, or a new one of the class *kind*."""
        known = self._objects.get(id(target))
        if known is not None and known._unfazed_state.target is target and isinstance(known, kind):
            return known
        twin: TwinT = object.__new__(kind)
        self.remember(twin, target, loop)
        return twin

    def remember(self, twin: TwinBase, target: Any, loop: EventLoopThread | None) -> None:
        """Have *twin* be the twin of *target*."""
        set_state(twin, TwinState(target, loop))
        self._objects[id(target)] = twin
