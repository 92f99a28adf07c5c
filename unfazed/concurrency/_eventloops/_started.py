"""Calls of async functions that are started in an event loop, and not awaited."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, final

from .._core._checks import explain
from .._core._futures import Start
from ._handle import start_call
from ._loopchecks import close_unless_begun, require_its_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._core._futures import OneShotFuture
    from ._handle import Handle, Join
    from ._loopthread import EventLoopThread


@final
class LoopCall:
    """One call of an async function in an event loop, as its handle sees it."""

    stops_when_cancelled = True

    def __init__(self, work: Callable[[], Awaitable[Any]]) -> None:
        self._work = work
        self._start = Start()

    async def run(self) -> Any:
        """Run it, in the loop, unless it was prevented."""
        return await self._work() if self._start.begin() else None

    def prevent_start(self) -> bool:
        if not self._start.prevent():
            return False
        close_unless_begun(self._work)
        return True

    def is_prevented(self) -> bool:
        return self._start.is_prevented()

    def has_begun(self) -> bool:
        return self._start.has_begun()

    def tell_cancelled(self) -> None:
        """Do nothing: `cancel` does it all."""


def start_work(
    work: Callable[[], Awaitable[Any]],
    func: object,
    kwargs: dict[str, Any],
    helper: str,
    owner: Callable[[], EventLoopThread],
    join: Join | None = None,
) -> Handle[Any]:
    """Start *work*, a call of *func*, in the loop of what *owner* returns, and have its handle join a group first."""
    try:
        loop_thread = owner()
        require_its_loop(work, loop_thread._require_running())
        call = LoopCall(work)
        read = explained(helper, func, kwargs)
        return start_call(call, call.run, func, loop_thread._submit, read, join, helper=helper)
    except BaseException:
        close_unless_begun(work)
        raise


def explained(helper: str, func: object, kwargs: dict[str, Any]) -> Callable[[OneShotFuture[Any]], Any]:
    """Return what reads the future of a call of *func*, and explains a `TypeError` in it."""

    def read(future: OneShotFuture[Any]) -> Any:
        try:
            return future.read()
        except TypeError as exc:
            explain(exc, helper, func, kwargs)
            raise

    return read
