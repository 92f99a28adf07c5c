"""The limiters that we give to anyio, and those that anyio has, with the totals that the program has chosen.

A default limiter gets the total that `configure_threadpool` or `configure_processpool` has chosen, or else an
environment variable: with the first call of ours in its loop, and with the first one after each change. That happens in
the loop's own thread, because anyio's limiters are not thread-safe. A total that somebody else has set stays.
"""

from __future__ import annotations

import os
from functools import partial
from reprlib import repr as short_repr
from threading import current_thread
from typing import TYPE_CHECKING, final
from weakref import ref

from anyio import CapacityLimiter, to_thread

from .._core._errors import WrongOptionError

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
    """anyio's default limiter of each loop, remembered: anyio takes longer to find it than all else that we do.

    Args:
        ask: Returns the limiter of the current loop.
        variable: The environment variable with its total. The first call that needs a limiter reads it.
        anyios_total: The total that anyio gives it.
        usual_total: Returns the total if nobody has chosen one.
    """

    def __init__(
        self, ask: Callable[[], CapacityLimiter], variable: str, anyios_total: int, usual_total: Callable[[], int]
    ) -> None:
        self._ask = ask
        self._variable = variable
        self._usual_total = usual_total
        # By the id of the loop, while that lives. The last one is the name of the loop's thread.
        self._known: dict[int, tuple[CapacityLimiter, ref[object], str]] = {}
        self._chosen: int | None = None
        self._default: int | None = None  # if none is chosen: of the variable, or the usual one
        self._ours: set[float] = {anyios_total}  # with another total, somebody else has set it

    def choose(self, total: int) -> None:
        """Have all loops use *total* from their next call on."""
        self._chosen = total
        self._known = {}  # not cleared: a thread that is in `of` may add to the old one what it found before

    def known(self, loop: Loop) -> CapacityLimiter | None:
        """Return the limiter of *loop*, if a call there has asked for it before."""
        known = self._known.get(id(loop.native))
        return known and known[0]

    def of(self, loop: Loop) -> CapacityLimiter:
        """Return the limiter of *loop*, which runs in this thread.

        Raises:
            WrongOptionError: If the environment variable is not a number of calls.
        """
        native, all_known = loop.native, self._known
        known = all_known.get(id(native))
        if known is not None:
            return known[0]
        total = self._chosen or self._default
        if total is None:
            total = self._default = self._read_variable() or self._usual_total()
        limiter = self._ask()
        if limiter.total_tokens in self._ours and limiter.total_tokens != total:
            self._ours.add(total)
            limiter.total_tokens = total
        all_known[id(native)] = limiter, ref(native, partial(all_known.pop, id(native))), current_thread().name
        return limiter

    def loop_names(self) -> dict[int, str]:
        """Return the names of the threads whose loops have these limiters, by the id of the limiter."""
        return {id(limiter): name for limiter, _, name in self._known.copy().values()}

    def _read_variable(self) -> int | None:
        value = os.environ.get(self._variable)
        if not value:
            return None
        try:
            total = int(value)
        except ValueError:
            total = 0
        if total < 1:
            raise WrongOptionError(
                f"the environment variable {self._variable} must be a whole number, 1 or more, not {short_repr(value)}"
            )
        return total


ANYIOS_THREADS = 40  # anyio documents it

thread_limiter = DefaultLimiter(
    to_thread.current_default_thread_limiter, "UNFAZED_THREADS", ANYIOS_THREADS, lambda: ANYIOS_THREADS
)
