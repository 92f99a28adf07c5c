"""How async code waits for a slot, and for what runs elsewhere, despite cancellation. Each wait says who ends it."""

from __future__ import annotations

import math
import sys
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import CancelScope, current_effective_deadline, current_time, get_cancelled_exc_class, move_on_after
from anyio.lowlevel import checkpoint

from .._core import _slots
from .._core._checks import name_of
from .._core._errors import CallCancelledError, LoopEndedError
from .._core._futures import OneShotFuture
from .._core._taskcall import TaskCall
from ._loops import running_loop
from ._timeouts import CHECK_SECONDS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._core._calls import UserCall
    from .._core._limits import Slot
    from .._core._loop import Event, Loop

T = TypeVar("T")


def set_from_anywhere(loop: Loop, event: Event) -> bool:
    """Set *event* from any thread. Return whether its *loop* still runs."""
    try:
        if loop.runs_here():
            event.set()
        else:
            loop.post(event.set)
    except LoopEndedError:
        return False
    return True


async def raise_if_cancelled(loop: Loop) -> None:
    """Raise the cancellation of the current task, also one that asyncio has not delivered yet."""
    task: Any = sys.modules["asyncio"].current_task() if loop.cancels_once else None
    cancelling = getattr(task, "cancelling", int)  # since Python 3.11; before, that cannot be seen
    # Not anyio's `checkpoint_if_cancelled`: in a call from a worker thread that others started, anyio delivers no
    # cancellation on asyncio, and waits for it for ever.
    if cancelling() or current_effective_deadline() == -math.inf:
        await checkpoint()


class _Waiter:
    """Called from any thread, it wakes whoever waits for *event*, and says whether their *loop* still runs."""

    __slots__ = ("event", "loop")

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self.event = loop.new_event()

    def __call__(self) -> bool:
        return set_from_anywhere(self.loop, self.event)


def take_or_queue(slot: Slot, loop: Loop) -> Event | None:
    """Take *slot*, or queue for it in the current *loop*. Whoever made it releases it.

    Return `None` if it was taken. Otherwise wait for the event that is returned, then call `_slots.require`: it has
    been granted, or refused. Who sets the event: the thread that grants the slot, or the watcher, who also refuses it.

    Here and where it is called, as few objects as possible are made for each call: where thousands queue, the garbage
    collector visits them all, and that costs more than anything else.
    """
    if _slots.take(slot):
        return None
    waiter = _Waiter(loop)
    return None if _slots.queue(slot, waiter) else waiter.event


async def wait_shielded(
    event: Event,
    cancellation: BaseException,
    timer: CancelScope | None = None,
    check: Callable[[], object] | None = None,
) -> BaseException:
    """Wait for *event* despite cancellation, at most until *timer*, a scope around us, ends.

    Call *check*, if given, every `CHECK_SECONDS`.

    anyio's shield is not enough: asyncio's `task.cancel()` ignores it. Return the last cancellation, without its
    context, to be raised outside of any `except`. The first one may belong to a scope, which would swallow it, and a
    later `task.cancel()` with it.
    """
    if isinstance(cancellation, GeneratorExit):  # the loop is gone, and nothing can be awaited
        return cancellation
    cancelled = get_cancelled_exc_class()
    deadline = math.inf if timer is None else timer.deadline
    try:
        while not event.is_set() and current_time() < deadline:
            try:
                with CancelScope(shield=True, deadline=deadline if check is None else _next_check(deadline)):
                    await event.wait()
            except cancelled as exc:
                cancellation = exc
                cancellation.__context__ = None
            if check is not None:
                check()
        return cancellation
    finally:
        del cancellation  # its traceback leads here


async def wait(event: Event) -> None:
    """Wait for *event*. Let other tasks run in any case, and be cancelled: asyncio's own do not if they are set."""
    if event.is_set():
        await checkpoint()
    else:
        await event.wait()


def _next_check(deadline: float) -> float:
    return min(deadline, current_time() + CHECK_SECONDS)


async def wait_and_check(event: Event, check: Callable[[], object]) -> None:
    """Wait for *event*, and call *check* every `CHECK_SECONDS`."""
    while not event.is_set():
        try:
            with move_on_after(CHECK_SECONDS):
                await event.wait()
                return
        except RuntimeError as exc:  # anyio's: if the loop is gone, we are being closed, and it cannot leave the scope
            raise GeneratorExit() if running_loop() is None else exc from None
        check()


async def wait_for_end(
    event: Event,
    on_cancel: Callable[[], object],
    timer: CancelScope | None = None,
    on_timeout: Callable[[], object] | None = None,
    begin: Callable[[], object] | None = None,
    check: Callable[[], object] | None = None,
    check_at_once: bool = False,
) -> None:
    """Call *begin* and wait for *event*, which is set when what it began has ended.

    If we are cancelled, or a signal handler raises, call *on_cancel*, go on waiting, and raise that afterwards. If
    *timer*, a scope around us, runs out, call *on_timeout* and go on waiting; without *on_timeout*, stop waiting.
    Call *check* now and then: once we are cancelled, or from the start if *check_at_once* is true.
    """
    try:
        if begin is not None:
            begin()
        if check is not None and check_at_once:
            await wait_and_check(event, check)
        else:
            await wait(event)
        return
    except BaseException as exc:
        cancellation = exc
    on_cancel()
    try:
        cancellation = await wait_shielded(event, cancellation, timer, check)
        if on_timeout is not None and not event.is_set() and not isinstance(cancellation, GeneratorExit):
            on_timeout()
            cancellation = await wait_shielded(event, cancellation, check=check)
        raise cancellation
    finally:
        del cancellation


async def call_in(
    submit: Callable[[TaskCall[T], Context], None],
    work: Callable[[], Awaitable[T]],
    func: object,
    here: Loop,
    *,
    helper: str | None = None,
    carried: UserCall | None = None,
    context: Context | None = None,
    may_be_interrupted: bool = False,
) -> T:
    """Run *work* in a new task, which *submit* starts in any loop, and wait for its end in the loop *here*.

    It runs in *context*, or in a copy of the current one. Errors name *func*. If the caller is cancelled, so is the
    task; the caller's cancellation is raised when the task has ended. Who wakes us: whoever writes the future, the task
    or the end of its loop. Signal handlers may interrupt that loop. trio ends it then, and so cancels us; on asyncio
    it goes on, and if *may_be_interrupted* is true, we check it from the start.

    It is a call of *func* by the user, with *helper*, or does something for *carried*, which is such a call.
    """
    event = here.new_event()
    future: OneShotFuture[T] = OneShotFuture(lambda: set_from_anywhere(here, event))
    call = TaskCall(work, future)
    call.carried = carried
    if helper is not None:
        call.func, call.helper = func, helper
        call.introduce()
    begin = partial(submit, call, copy_context() if context is None else context)

    def cancel() -> None:
        if not call.cancel():  # it was not submitted, or its loop is gone: there is nothing to wait for
            event.set()

    def check() -> None:
        if future.done:
            event.set()
        elif not call.fail_if_gone():
            if call.loop is not None and call.loop.native is here.native:  # pragma: no branch  else that loop does it
                call.fail_if_lost()  # at once: a signal handler may have ended the task that runs what is posted
            if call.go_on() and may_be_interrupted:
                begin()

    try:
        await wait_for_end(event, cancel, begin=begin, check=check, check_at_once=may_be_interrupted)
        try:
            value = future.read()
        except cancelled_classes() as exc:
            raise CallCancelledError(name_of(func)) from exc
    except BaseException as exc:
        if helper is not None:
            call.note_end(exc)
        raise
    if helper is not None:
        call.note_end(None)
    return value


def cancelled_classes() -> tuple[type[BaseException], ...]:
    """Return the cancellation exceptions of asyncio and trio, as far as they are imported."""
    found: list[type[BaseException]] = []
    for name, attribute in (("asyncio", "CancelledError"), ("trio", "Cancelled")):
        cancelled = getattr(sys.modules.get(name), attribute, None)  # missing while another thread imports it
        if cancelled is not None:
            found.append(cancelled)
    return tuple(found)


def is_only(error: BaseException, kinds: tuple[type[BaseException], ...]) -> bool:
    """Return whether *error* is of these kinds, or a group that has only such members."""
    members: tuple[BaseException, ...] | None = getattr(error, "exceptions", None)
    return isinstance(error, kinds) if members is None else all(is_only(member, kinds) for member in members)
