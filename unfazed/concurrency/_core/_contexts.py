"""Which call is in which of the contexts that users give to calls.

Only one thread at a time can enter a `contextvars.Context`. Of two calls in one context, the second would sometimes get
Python's "cannot enter context". So a call takes a lease of its context, from its beginning to its end.

Guarantee: at most one call has the lease of a context.

Assumptions: `dict.setdefault`, `get` and `pop` are atomic. So `_leases` needs no lock. A call removes only its own
lease. A forked child starts without leases.
"""

from __future__ import annotations

from types import coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from ._blockedloops import current_blocked_loop
from ._errors import InUseError
from ._lifetime import in_forked_child
from ._limits import current_slot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from contextvars import Context

    from ._blockedloops import BlockedLoop
    from ._limits import Ancestor

T = TypeVar("T")


class ContextLease:
    """A call's right to a context, from `take` to `release`.

    It is made before it is taken, so that a call that is interrupted can release it.

    Args:
        context: The context.
        name: The name of the function that is to run in it.
    """

    __slots__ = ("context", "name")

    def __init__(self, context: Context, name: str) -> None:
        self.context = context
        self.name = name

    def take(self) -> None:
        """Take the lease.

        Raises:
            InUseError: If another call has it, or if some thread has entered the context, perhaps this one.
        """
        holder = _leases.setdefault(id(self.context), self)  # keeps the context, so that no other one gets its id
        if holder is not self:
            raise self._in_use(f"{holder.name}() has not ended in it yet")
        try:
            self.context.run(int)
        except RuntimeError:
            self.release()
            raise self._in_use("it has been entered already, and by the caller itself perhaps") from None

    def _in_use(self, reason: str) -> InUseError:
        return InUseError(
            f"{self.name}() cannot run in the context that it was given: {reason}; make one call after another in it, "
            f"or give each one a copy (`context.copy()`)"
        )

    def release(self) -> None:
        """End the lease. It may be called twice."""
        if _leases.get(id(self.context)) is self:
            _leases.pop(id(self.context), None)

    def run(self, func: Callable[[], T], mark_context: Callable[[], None]) -> T:
        """Run *func* in the context, on behalf of the current call."""
        result: T = self._enter(_on_behalf, current_slot.get(), current_blocked_loop.get(), func, mark_context)
        return result

    async def run_async(self, func: Callable[[], Awaitable[T]], mark_context: Callable[[], None]) -> T:
        """Run *func* in the context, on behalf of the current call.

        The context is entered for each step: before Python 3.11, a task takes no context to run in.
        """
        running = _on_behalf_async(current_slot.get(), current_blocked_loop.get(), func, mark_context)
        result: T = await self._run_steps(running)
        return result

    def _enter(self, func: Callable[..., Any], *args: Any) -> Any:
        try:
            return self.context.run(func, *args)
        except RuntimeError as exc:
            # With no frame but ours in its traceback, it was raised by `Context.run`, and not by *func*.
            if exc.__traceback__ is not None and exc.__traceback__.tb_next is None:
                raise self._in_use("it was entered meanwhile") from None
            raise
        finally:
            del args  # one may be a cancellation, whose traceback refers to this frame

    @coroutine
    def _run_steps(self, running: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Run *running* in the current task, and enter the context for each step."""
        step, sent = running.send, None
        try:
            while True:
                try:
                    yielded = self._enter(step, sent)
                except StopIteration as end:
                    result: T = end.value
                    return result
                try:
                    sent, step = (yield yielded), running.send
                except GeneratorExit:
                    self._enter(running.close)
                    raise
                except BaseException as exc:
                    sent, step = exc, running.throw
        finally:
            running.close()  # if the context was entered by others meanwhile; otherwise it has ended
            del sent


def _on_behalf(
    slot: Ancestor | None, blocked_loop: BlockedLoop | None, func: Callable[[], T], mark_context: Callable[[], None]
) -> T:
    """Run *func* on behalf of a call with this *slot*. After that, the context has what it had before."""
    mark_context()
    tokens = current_slot.set(slot), current_blocked_loop.set(blocked_loop)
    try:
        return func()
    finally:
        current_slot.reset(tokens[0])
        current_blocked_loop.reset(tokens[1])


async def _on_behalf_async(
    slot: Ancestor | None,
    blocked_loop: BlockedLoop | None,
    func: Callable[[], Awaitable[T]],
    mark_context: Callable[[], None],
) -> T:
    mark_context()
    tokens = current_slot.set(slot), current_blocked_loop.set(blocked_loop)
    try:
        return await func()
    finally:
        current_slot.reset(tokens[0])
        current_blocked_loop.reset(tokens[1])


_leases: dict[int, ContextLease] = {}

in_forked_child(_leases.clear)
