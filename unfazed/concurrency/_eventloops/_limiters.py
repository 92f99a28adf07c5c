"""The limiters that we give to anyio, and those that anyio has."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, final
from weakref import ref

from anyio import CapacityLimiter

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core._loop import Loop


@final
class NoLimit(CapacityLimiter):
    """A limiter that counts nothing, for anyio: we count, and this takes no time."""

    def __new__(cls) -> NoLimit:
        return object.__new__(cls)

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def acquire_on_behalf_of(self, borrower: object) -> None: ...  # trio's way

    def release_on_behalf_of(self, borrower: object) -> None: ...


NO_LIMIT = NoLimit()


@final
class DefaultLimiter:
    """anyio's default limiter of each loop, remembered: anyio takes longer to find it than all else that we do."""

    def __init__(self, ask: Callable[[], CapacityLimiter]) -> None:
        self._ask = ask
        self._known: dict[int, tuple[CapacityLimiter, ref[object]]] = {}  # by the id of the loop, while it lives

    def known(self, loop: Loop) -> CapacityLimiter | None:
        """Return the limiter of *loop*, if a call there has asked for it before."""
        known = self._known.get(id(loop.native))
        return known and known[0]

    def of(self, loop: Loop) -> CapacityLimiter:
        """Return the limiter of *loop*, which runs in this thread."""
        native = loop.native
        known = self._known.get(id(native))
        if known is not None:
            return known[0]
        limiter = self._ask()
        self._known[id(native)] = limiter, ref(native, partial(self._known.pop, id(native)))
        return limiter
