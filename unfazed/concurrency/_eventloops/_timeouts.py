"""How long one call may take."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, TypeVar

from anyio import CancelScope, move_on_after

from .._core._errors import CallTimeoutError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

CHECK_SECONDS = 1.0  # how often who waits checks that somebody will wake it; arbitrary
INTERRUPT_CHECK_SECONDS = 1.0  # how soon Ctrl-C interrupts a sync wait on Windows; arbitrary


class Timeout:
    """The time that one call may take, from the moment when the call is made, on any thread.

    Args:
        seconds: How many; `math.inf` means no limit.
        name: The name of the function, for the error.
    """

    __slots__ = ("_end", "_name", "_seconds")

    def __init__(self, seconds: float, name: str) -> None:
        self._seconds = seconds
        self._name = name
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return how many seconds are left."""
        return max(0.0, self._end - time.monotonic())

    def error(self, waited_for: str = "") -> CallTimeoutError:
        """Return the error. *waited_for* says what a call waited for that never started."""
        return CallTimeoutError(self._name, self._seconds, waited_for)

    async def bound(
        self, run: Callable[[CancelScope], Awaitable[T]], what_it_waits_for: Callable[[], str] | None = None
    ) -> T:
        """Await *run*, which gets the scope that is cancelled when the time is up. Then raise the error."""
        with move_on_after(self.left()) as timer:
            return await run(timer)
        raise self.error("" if what_it_waits_for is None else what_it_waits_for())


def within(
    timeout: Timeout | None,
    run: Callable[[CancelScope | None], Awaitable[T]],
    what_it_waits_for: Callable[[], str] | None = None,
) -> Awaitable[T]:
    """Return the result of *run*, within *timeout* if there is one."""
    return run(None) if timeout is None else timeout.bound(run, what_it_waits_for)


def seconds_to_wait(timeout: Timeout | None, what_it_waits_for: Callable[[], str]) -> float:
    """Return how many seconds a thread may wait at once, or raise the error if the time is up.

    On Windows, Ctrl-C does not interrupt a wait.
    """
    if timeout is None:
        return INTERRUPT_CHECK_SECONDS
    left = timeout.left()
    if not left:
        raise timeout.error(what_it_waits_for())
    return min(left, INTERRUPT_CHECK_SECONDS)
