"""What each twin object has: the async object behind it, and the loop that this one belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._eventloops._loopthread import EventLoopThread
    from .._scoped._contextmanagers import InTask
    from ._family import Family


class TwinState:
    """What a twin shares with the views of it that have a timeout."""

    __slots__ = ("loop", "managers", "target")

    def __init__(self, target: Any, loop: EventLoopThread | None) -> None:
        self.target = target
        self.loop = loop  # from the first call that waits in it on: until then a forked child can use the twin
        # What each thread has entered with `with`, by its number. Each thread touches its own list only.
        self.managers: dict[int, list[InTask[Any]]] = {}


class TwinBase:
    """The root of all twins; `SyncTwin` is what users see of it.

    Names that start with `_unfazed` are ours: private names of the async class are not twinned, so none can clash.
    """

    __slots__ = ("__dict__", "__weakref__", "_unfazed_state", "_unfazed_timeout")

    _unfazed_class: type | None = None  # the async class
    _unfazed_family: Family

    _unfazed_state: TwinState
    _unfazed_timeout: float | None


def set_state(twin: TwinBase, state: TwinState, timeout: float | None = None) -> None:
    """Say what is behind *twin*, whose own `__setattr__` writes to the async object."""
    object.__setattr__(twin, "_unfazed_state", state)
    object.__setattr__(twin, "_unfazed_timeout", timeout)
