"""Families: which twin class belongs to which async class, and which twin to which object.

`sync_twin` has one family for each loop, and each generated module has a family of its own. A forked child has a copy.

Guarantee: all threads get the same twin class. Two threads that convert the same object at the same time may get two
twins of it, which are equal.

Assumption: each operation on a dictionary is atomic. The second thread to add an entry takes the first one's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary, WeakValueDictionary

from .._eventloops._background import _background
from ._state import TwinBase, TwinState, set_state

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._eventloops._loopthread import EventLoopThread

    Convert = Callable[["Site", Any], Any]

TwinT = TypeVar("TwinT", bound=TwinBase)


class Site(NamedTuple):
    """Where a value comes from: the family, loop and timeout for the twin that it gets."""

    family: Family
    loop: EventLoopThread
    timeout: float | None = None  # in seconds, for each step of an iterator


make_twin: Callable[[type, Family], type[Any]]  # `_building.py`, which imports us, sets it


class Family:
    """Twin classes that know each other.

    Args:
        loop: Where their calls run; `None` for the background event loop.
    """

    def __init__(self, loop: EventLoopThread | None) -> None:
        self._loop = loop
        self._twins: dict[type, type[Any]] = {}
        self.named: set[type] = set()  # classes with a twin that a user has asked for and named
        self._objects: WeakValueDictionary[int, TwinBase] = WeakValueDictionary()  # keys: `id` of the async object
        # How to convert the objects of each class; `None` if they stay as they are. Weak, because a program may make
        # classes at run time.
        self.converters: WeakKeyDictionary[type, Convert | None] = WeakKeyDictionary()

    def event_loop(self) -> EventLoopThread:
        """Return the loop where calls run. Start it if it was never started."""
        if self._loop is None:
            return _background()
        if not self._loop.is_running() and self._loop._closed is None:
            self._loop._ensure_started()
        return self._loop

    def add(self, cls: type, twin: type[Any]) -> type[Any]:
        """Make *twin* the twin class of *cls*, unless it has one already. Return the twin class that it has now."""
        added = self._twins.setdefault(cls, twin)
        self.converters.clear()  # they were looked up without the new twin
        return added

    def exact_twin_of(self, cls: type) -> type[Any] | None:
        """Return the twin class of *cls* itself, or `None`."""
        return self._twins.get(cls)

    def nearest_twin_of(self, cls: type) -> type[TwinBase] | None:
        """Return the twin class of *cls*, or of its first base that has one, or `None`."""
        twins = (self._twins.get(base) for base in cls.__mro__)
        return next((twin for twin in twins if twin is not None and issubclass(twin, TwinBase)), None)  # not a protocol

    def twin_of(self, target: Any, kind: type[TwinT], loop: EventLoopThread | None) -> TwinT:
        """Return the twin of an async object: an existing one, or else a new one of the class *kind*."""
        known = self._objects.get(id(target))
        if known is not None and known._unfazed_state.target is target and isinstance(known, kind):
            return known
        twin: TwinT = object.__new__(kind)
        self.remember(twin, target, loop)
        return twin

    def remember(self, twin: TwinBase, target: Any, loop: EventLoopThread | None) -> None:
        """Make *twin* the twin of *target*."""
        set_state(twin, TwinState(target, loop))
        self._objects[id(target)] = twin
