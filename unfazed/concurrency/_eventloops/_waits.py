"""How async code waits, for a slot and for what runs elsewhere, whatever cancels it; each says who wakes it."""

from __future__ import annotations

import math
import sys
import time
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, TypeVar, final
from weakref import ref

from anyio import CancelScope, CapacityLimiter, Event, current_time, get_cancelled_exc_class, move_on_after

from .._core import _slots
from .._core._calls import OneShotFuture, TaskCall
from .._core._checks import name_of
from .._core._errors import CallCancelledError, CallTimeoutError, LoopEndedError
from ._loops import running_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._core._calls import Loop
    from .._core._slots import Slot

T = TypeVar("T")


def set_from_anywhere(loop: Loop, event: Event) -> bool:
    """Set *event* from any thread. Return whether its *loop* is there to see it."""
    try:
        here = running_loop()
        if here is not None and here.native is loop.native:
            event.set()
        else:
            loop.post(event.set)
    except LoopEndedError:
        return False
    return True


@final
class NoLimit(CapacityLimiter):
    """What anyio is given to count with: nothing. We count, and what is not done takes no time."""

    def __new__(cls) -> NoLimit:
        return object.__new__(cls)

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def acquire_on_behalf_of(self, borrower: object) -> None: ...  # trio's way

    def release_on_behalf_of(self, borrower: object) -> None: ...


NO_LIMIT = NoLimit()


@final
class DefaultLimiter:
    """The limiter that anyio keeps for each loop, which it takes longer to find than all else that we do."""

    def __init__(self, ask: Callable[[], CapacityLimiter]) -> None:
        self._ask = ask
        self._known: dict[int, tuple[CapacityLimiter, ref[object]]] = {}  # by the id of the loop, while it lives

    def known(self, loop: Loop) -> CapacityLimiter | None:
        """Return that of *loop*, if a call there has asked for it before."""
        known = self._known.get(id(loop.native))
        return known and known[0]

    def of(self, loop: Loop) -> CapacityLimiter:
        """Return that of the current *loop*."""
        native = loop.native
        known = self._known.get(id(native))
        if known is not None:
            return known[0]
        limiter = self._ask()
        self._known[id(native)] = limiter, ref(native, partial(self._known.pop, id(native)))
        return limiter


async def wait_for_slot(slot: Slot, loop: Loop) -> None:
    """Queue for *slot*, and wait in the current *loop* until it has been granted; whoever made it releases it.

    Who wakes us: whoever gives one back, on any thread, or the watcher.
    """
    event = Event()
    if not _slots.queue(slot, lambda: set_from_anywhere(loop, event)):
        await event.wait()


async def wait_shielded(event: Event, cancellation: BaseException, timer: CancelScope | None = None) -> BaseException:
    """Wait for *event*, whatever else cancels us: asyncio's own cancellation goes straight through a shield.

    Not past the end of *timer*, a scope that we are in. Return what to raise then, outside of any `except`: of several
    cancellations the last, without its context. That of a scope, which the scope takes for its own and ends, must not
    hide one that is meant for the whole task.
    """
    if isinstance(cancellation, GeneratorExit):  # the loop is gone, and nobody is there to wait
        return cancellation
    cancelled = get_cancelled_exc_class()
    deadline = math.inf if timer is None else timer.deadline
    try:
        while not event.is_set() and current_time() < deadline:
            try:
                with CancelScope(shield=True, deadline=deadline):
                    await event.wait()
            except cancelled as exc:
                cancellation = exc
                cancellation.__context__ = None
        return cancellation
    finally:
        del cancellation  # its traceback leads here


async def wait_for_end(
    event: Event,
    on_cancel: Callable[[], object],
    timer: CancelScope | None = None,
    on_timeout: Callable[[], object] | None = None,
    begin: Callable[[], object] | None = None,
) -> None:
    """Wait for *event*, which comes of what *begin* begins.

    Cancelled meanwhile, or interrupted by a signal handler that raises, do *on_cancel*, wait all the same, and raise
    the cancellation. If *timer*, a scope that we are in, runs out, do *on_timeout*, and wait for what comes of that;
    without it, wait no longer.
    """
    try:
        if begin is not None:
            begin()
        await event.wait()
        return
    except BaseException as exc:
        cancellation = exc
    on_cancel()
    try:
        cancellation = await wait_shielded(event, cancellation, timer)
        if on_timeout is not None and not event.is_set() and not isinstance(cancellation, GeneratorExit):
            on_timeout()
            cancellation = await wait_shielded(event, cancellation)
        raise cancellation
    finally:
        del cancellation


async def call_in(
    submit: Callable[[TaskCall[T], Context], None],
    work: Callable[[], Awaitable[T]],
    func: object,
    here: Loop,
    *,
    context: Context | None = None,
) -> T:
    """Run *work* in a task of its own, which *submit* starts in any loop, and wait for its end in the loop *here*.

    It runs in *context*, or else in a copy of the current one; errors name *func*. Where the caller is cancelled, so is
    the task; the caller's cancellation is raised when the task has ended. Who wakes us: whoever writes the answer, the
    task or the end of its loop.
    """
    event = Event()
    future: OneShotFuture[T] = OneShotFuture(lambda: set_from_anywhere(here, event))
    call = TaskCall(work, future)
    begin = partial(submit, call, copy_context() if context is None else context)

    def cancel() -> None:
        if not call.cancel():  # it has not even been submitted, or its loop is gone: there is nothing to wait for
            event.set()

    await wait_for_end(event, cancel, begin=begin)
    try:
        return future.read()
    except cancelled_classes() as exc:
        raise CallCancelledError(name_of(func)) from exc


class Timeout:
    """How long one call may take: counted from the call, on whichever thread that is made.

    Args:
        seconds: How many; `math.inf` is as good as none.
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

    def error(self) -> CallTimeoutError:
        return CallTimeoutError(self._name, self._seconds)

    async def bound(self, run: Callable[[CancelScope], Awaitable[T]]) -> T:
        """Await *run*, which is told the scope that is cancelled when the time is up; then raise the error."""
        with move_on_after(self.left()) as timer:
            return await run(timer)
        raise self.error()


def within(timeout: Timeout | None, run: Callable[[CancelScope | None], Awaitable[T]]) -> Awaitable[T]:
    """Return what *run* does, within *timeout* if there is one."""
    return run(None) if timeout is None else timeout.bound(run)


def cancelled_classes() -> tuple[type[BaseException], ...]:
    """Return the cancellation classes of the libraries that are loaded."""
    found: list[type[BaseException]] = []
    for name, attribute in (("asyncio", "CancelledError"), ("trio", "Cancelled")):
        cancelled = getattr(sys.modules.get(name), attribute, None)  # not there yet while another thread imports it
        if cancelled is not None:
            found.append(cancelled)
    return tuple(found)
