"""Contexts that users hand to several calls in a row: who is in which. Runs nothing of its own accord.

A `contextvars.Context` can be entered by one thread at a time. Two calls at once in one would get Python's "cannot
enter context", sometimes, and by whoever comes second; so a call claims its context from its beginning to its end.

`_leases` needs no lock: `dict.setdefault`, `get` and `pop` are atomic, and a call removes its own claim alone. A forked
child starts without claims.
"""

from __future__ import annotations

import os
from types import coroutine
from typing import TYPE_CHECKING, Any, TypeVar

from ._errors import InUseError
from ._limits import current_slot

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator
    from contextvars import Context

T = TypeVar("T")


class ContextLease:
    """A call's right to a context, from `take` until it is released. Made first, to be given back whatever happens.

    Args:
        context: The context.
        name: The name of the function that is to run in it.
    """

    __slots__ = ("context", "name")

    def __init__(self, context: Context, name: str) -> None:
        self.context = context
        self.name = name

    def take(self) -> None:
        """Claim the context.

        Raises:
            InUseError: If another call has it, or some thread is in it: this one, for instance.
        """
        holder = _leases.setdefault(id(self.context), self)  # keeps the context, so the number is not used again
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
        """End the claim. Doing so twice is harmless."""
        if _leases.get(id(self.context)) is self:
            _leases.pop(id(self.context), None)

    def run(self, func: Callable[[], T], mark_context: Callable[[], None]) -> T:
        """Run *func* in the context, on behalf of the same call as the current code."""
        result: T = self._enter(_on_behalf_of, current_slot.get(), func, mark_context)
        return result

    async def run_async(self, func: Callable[[], Awaitable[T]], mark_context: Callable[[], None]) -> T:
        """Run *func* in the context, step by step: tasks take a context to run in only since Python 3.11."""
        result: T = await self._run_steps(_on_behalf_of_async(current_slot.get(), func, mark_context))
        return result

    def _enter(self, func: Callable[..., Any], *args: Any) -> Any:
        try:
            return self.context.run(func, *args)
        except RuntimeError as exc:
            if exc.__traceback__ is not None and exc.__traceback__.tb_next is None:  # raised here, not by the function
                raise self._in_use("it was entered meanwhile") from None
            raise
        finally:
            del args  # a cancellation perhaps, whose traceback leads here

    @coroutine
    def _run_steps(self, running: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
        """Pass on what the loop and *running* have to say to each other, with the context entered for each step."""
        step, said = running.send, None
        try:
            while True:
                try:
                    asked = self._enter(step, said)
                except StopIteration as end:
                    result: T = end.value
                    return result
                try:
                    said, step = (yield asked), running.send
                except GeneratorExit:
                    self._enter(running.close)
                    raise
                except BaseException as exc:
                    said, step = exc, running.throw
        finally:
            running.close()  # where the context was entered meanwhile; otherwise it has ended
            del said


def _on_behalf_of(slot: Any, func: Callable[[], T], mark_context: Callable[[], None]) -> T:
    """Run *func* as *slot*'s, in a context that knows others, and leave no trace of it there."""
    mark_context()
    token = current_slot.set(slot)
    try:
        return func()
    finally:
        current_slot.reset(token)


async def _on_behalf_of_async(slot: Any, func: Callable[[], Awaitable[T]], mark_context: Callable[[], None]) -> T:
    mark_context()
    token = current_slot.set(slot)
    try:
        return await func()
    finally:
        current_slot.reset(token)


_leases: dict[int, ContextLease] = {}

if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_leases.clear)
