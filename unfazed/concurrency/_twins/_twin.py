"""`SyncTwin`, the base of all twin classes."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from .._core._checks import require_timeout
from .._core._errors import WrongFunctionError
from ._calls import get_attribute, make
from ._family import Family, TwinT
from ._members import COPIED
from ._state import TwinBase, set_state
from ._values import to_async

if TYPE_CHECKING:
    from typing_extensions import Self

    from .._eventloops._loopthread import EventLoopThread


_families: dict[tuple[str, EventLoopThread | None], Family] = {}  # of generated modules


class SyncTwin(TwinBase):
    """The base class of all sync twins: those that `sync_twin` makes, and those in generated modules.

    The public attributes of a twin are those of its async object. Private attributes are the twin's own. Two twins are
    equal if they have the same async object. Threads can share a twin. It can be pickled and copied if its async object
    can. A forked child can use it if it has made no call before the fork. Otherwise its loop runs only in the parent.

    Example:
        `class Client(SyncTwin, twin_of=AsyncClient): ...`, as `python -m unfazed.twins` writes it
    """

    __slots__ = ()

    def __init_subclass__(
        cls, *, twin_of: type | None = None, loop: EventLoopThread | None = None, **kwargs: Any
    ) -> None:
        super().__init_subclass__(**kwargs)
        if twin_of is not None:
            family = _families.setdefault((cls.__module__, loop), Family(loop))
            cls._unfazed_class = twin_of
            cls._unfazed_family = family
            for name in COPIED:
                if name in vars(twin_of):
                    setattr(cls, name, vars(twin_of)[name])
            family.add(twin_of, cls)

    def __init__(self, /, *args: Any, **kwargs: Any) -> None:
        make(self, *args, **kwargs)

    @classmethod
    def from_async(cls, async_object: object, /) -> Self:
        """Return the twin of an existing async object. Each object has one.

        Args:
            async_object: An object of the async class. It belongs to the loop of its twins, or to no loop yet.

        Raises:
            WrongFunctionError: If it is an object of another class.

        Example:
            `Connection.from_async(aiosqlite.connect(path))`
        """
        if cls._unfazed_class is None or not isinstance(async_object, cls._unfazed_class):
            name = getattr(cls._unfazed_class, "__qualname__", "its async class")
            raise WrongFunctionError(f"{cls.__name__}.from_async() expected an object of {name}, got {async_object!r}")
        return cls._unfazed_family.twin_of(async_object, cls, None)

    @property
    def async_object(self) -> object:
        """The async object behind this twin, for async code that runs on the same loop."""
        return self._unfazed_state.target

    def with_timeout(self, seconds: float | None, /) -> Self:
        """Return a twin of the same async object with a timeout for each call.

        A call, or a step of an iterator, that takes longer is cancelled. It waits for the cleanup of the async method.
        The timeout does not apply to entering and leaving a `with` block.

        Args:
            seconds: The timeout in seconds, 0 or more; `None` for no limit.

        Returns:
            A twin that is equal to this one.

        Raises:
            WrongOptionError: If *seconds* is not a number of seconds.
            CallTimeoutError: From a call of the new twin, if it has not ended in time.

        Example:
            `client.with_timeout(5).get(url)`
        """
        require_timeout(seconds, "with_timeout")
        view = object.__new__(type(self))
        object.__setattr__(view, "__dict__", self.__dict__)
        set_state(view, self._unfazed_state, seconds)
        return view

    if not TYPE_CHECKING:  # pragma: no branch  type checkers must not think that every name exists

        def __getattr__(self, name: str) -> Any:
            if name == "_unfazed_state":
                raise AttributeError(
                    f"{type(self).__name__}.__init__() has not been called: begin with super().__init__()"
                )
            if name.startswith("_"):
                raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}", name=name, obj=self)
            return get_attribute(self, name)

        def __setattr__(self, name: str, value: object) -> None:
            if name.startswith("_") or hasattr(getattr(type(self), name, None), "__set__"):
                object.__setattr__(self, name, value)
            elif getattr(value, "__self__", None) is self and value == getattr(self, name, None):
                # Our own method again: older versions of pytest undo a patch of an object in this way.
                self._unfazed_state.target.__dict__.pop(name, None)
            else:
                setattr(self._unfazed_state.target, name, to_async(value))

        def __delattr__(self, name: str) -> None:
            if name.startswith("_") or hasattr(getattr(type(self), name, None), "__delete__"):
                object.__delattr__(self, name)
            else:
                delattr(self._unfazed_state.target, name)

    def __dir__(self) -> list[str]:
        names = {*super().__dir__(), *dir(self._unfazed_state.target)}
        return sorted(name for name in names if not name.startswith("_") or hasattr(type(self), name))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SyncTwin) and self._unfazed_state.target is other._unfazed_state.target

    def __hash__(self) -> int:
        return hash((SyncTwin, id(self._unfazed_state.target)))

    def __repr__(self) -> str:
        return f"<{type(self).__qualname__}, the sync twin of {self._unfazed_state.target!r}>"

    def __copy__(self) -> Self:
        twin = _twin_of(type(self), copy.copy(self._unfazed_state.target))
        twin.__dict__.update(self.__dict__)
        return twin

    def __reduce__(self) -> tuple[Any, ...]:
        return _twin_of, (type(self), self._unfazed_state.target), self.__dict__ or None


def _twin_of(cls: type[TwinT], target: object) -> TwinT:
    return cls._unfazed_family.twin_of(target, cls, None)
