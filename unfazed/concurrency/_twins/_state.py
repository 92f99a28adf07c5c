"""The state of each twin object: its async object, and the loop that the async object belongs to."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._eventloops._loopthread import EventLoopThread
    from .._scoped._contextmanagers import InTask
    from ._family import Family


class TwinState:
    """The state that a twin shares with the twins that `with_timeout` made of it."""

    __slots__ = ("loop", "managers", "target")

    def __init__(self, target: Any, loop: EventLoopThread | None) -> None:
        self.target = target
        self.loop = loop  # set by the first call that awaits something; until then a forked child can use the twin
        # The context managers that each thread has entered with `with`, by `get_ident()`. A thread touches the list of
        # another one only to leave a `with` block that the other one entered.
        self.managers: dict[int, list[InTask[Any]]] = {}


class TwinBase:
    """The root of all twins. Users see only `SyncTwin`.

    Our own names start with `_unfazed`. They cannot clash, because private names of the async class are not twinned.
    """

    __slots__ = ("__dict__", "__weakref__", "_unfazed_state", "_unfazed_timeout")

    _unfazed_class: type | None = None  # the async class
    _unfazed_family: Family

    _unfazed_state: TwinState
    _unfazed_timeout: float | None


def set_state(twin: TwinBase, state: TwinState, timeout: float | None = None) -> None:
    """Set the state of *twin*. Its own `__setattr__` would write to the async object."""
    object.__setattr__(twin, "_unfazed_state", state)
    object.__setattr__(twin, "_unfazed_timeout", timeout)
