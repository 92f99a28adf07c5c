"""Calls from sync code into an event loop: how a thread finds its loop, and how it waits.

    a worker thread that we started        the loop that awaits it          `thread.worker`
    a worker thread that others started    the loop that awaits it          `_call_from_others_worker`
    any other thread                       the loop that *submit* names: for most calls the background event loop
    a thread whose own loop is running     `LoopThreadError`, unless the user has allowed to block that loop: then as
                                           any other thread

No thread and no loop starts here.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import CancelledError
from contextvars import Context, copy_context
from functools import partial
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, TypeVar

from anyio import RunFinishedError, from_thread

from .._core import _limits, _slots
from .._core._blockedloops import BlockedLoop, current_blocked_loop, refuse_if_blocked
from .._core._calls import totals
from .._core._checks import name_of
from .._core._errors import LoopEndedError, LoopStateError, LoopThreadError
from .._core._futures import BlockingFuture, OneShotFuture
from .._core._observing import observers
from .._core._taskcall import TaskCall
from ._blocking import may_be_allowed, may_be_blocked
from ._limiters import thread_limiter
from ._loops import current_loop, running_loop
from ._timeouts import CHECK_SECONDS
from ._waiting import call_in
from ._workers import thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._core._calls import UserCall

    Submit = Callable[[TaskCall[Any], Context], None]

T = TypeVar("T")

returned: Final = totals["eventloop"]["returned"]


class Interrupts:
    """How often a sync caller was interrupted by signal handlers. The second time it stops waiting.

    Several calls that are one for the user share it, and the loop that they block one after the other.
    """

    times = 0
    _blocked_loop: BlockedLoop | None = None

    def share(self, blocked_loop: BlockedLoop) -> BlockedLoop:
        """Return the one for all these calls, which now stands for the same loop as *blocked_loop*."""
        self._blocked_loop = blocked_loop.as_part_of(self._blocked_loop)
        return self._blocked_loop

    @property
    def is_over(self) -> bool:
        return self.times > 1


def say_that_we_wait(exc: BaseException, name: str) -> None:
    """Tell who pressed Ctrl-C on a terminal that the call of *name* is waited for, and how to stop that."""
    if isinstance(exc, KeyboardInterrupt) and sys.stderr is not None and sys.stderr.isatty():
        print(f"\nCtrl-C: waiting for {name}() to end; press it again to stop waiting", file=sys.stderr, flush=True)  # noqa: T201


def refuse_in_loop(func: object, helper: str, instead: str) -> BlockedLoop | None:
    """Refuse a call on a thread whose own loop is running. What to write instead is said as in `call_from_sync`.

    If the user has allowed to block that loop, return it: it is about to be blocked.
    """
    here = running_loop()
    if here is None or here.native is thread.lost_loop:
        return None
    name = name_of(func)
    helper, instead = helper.format(name), instead.format(name)
    if not may_be_blocked(here):
        raise LoopThreadError(helper, instead)
    return BlockedLoop(here.native, helper, instead)


def blocked_later(context: Context, helper: str, instead: str) -> BlockedLoop | None:
    """If the loop of this thread may be blocked until what is started in *context* has ended, note that there.

    Return what stands for that loop. It gets its `native` when the loop is blocked: contexts must not keep that.
    """
    here = running_loop() if may_be_allowed() else None
    if here is None or not may_be_blocked(here):
        return None
    blocked_loop = BlockedLoop(None, helper, instead)
    context.run(current_blocked_loop.set, blocked_loop)
    return blocked_loop


def call_from_sync(
    work: Callable[[], Awaitable[T]],
    func: object,
    helper: str,
    instead: str,
    submit: Submit,
    *,
    always: bool = False,
    offer: Callable[[OneShotFuture[T]], None] | None = None,
    interrupts: Interrupts | None = None,
    blocks: BlockedLoop | None = None,
    carried: UserCall | None = None,
    counted: bool = True,
) -> T:
    """Run *work* in the loop that this thread belongs to, or where *submit* puts it, and wait for its end.

    Who wakes us: whoever writes the future; the end of the loop writes it, too.

    Args:
        work: The async function.
        func: What the user passed, for error messages.
        helper: What the user called, with `{}` for the name of *func*.
        instead: What to write instead in a thread whose own loop is running, with `{}` as well.
        submit: Used if the thread belongs to no loop.
        always: Use *submit* in any case.
        offer: If given, gets the future, so that somebody else may write it before *work* has ended.
        interrupts: Shared by several calls that are one for the user.
        blocks: The loop of this thread, which is blocked. Then *submit* is always used.
        carried: The user's call that *work* does something for, and whose end the caller of this notes; `None` if
            *work* is the user's call itself.
        counted: Whether a call of the user's begins here, and not a wait or a preparation of ours.
    """
    if blocks is None:
        blocks = refuse_in_loop(func, helper, instead)
        if blocks is not None:
            options: dict[str, Any] = {"always": always, "offer": offer, "interrupts": interrupts, "blocks": blocks}
            options |= {"carried": carried, "counted": counted}
            if interrupts is not None:
                blocks = interrupts.share(blocks)
            result: T = block(blocks, partial(call_from_sync, work, func, helper, instead, submit, **options))
            return result
    if _slots.holds_lock():  # this thread holds the lock of the slots, which whoever runs *work* needs
        raise LoopStateError(
            f"{helper.format(name_of(func))}() was called by a finalizer in the midst of another call of this thread, "
            "which cannot wait then; have finalizers leave the work to somebody else"
        )
    future: BlockingFuture[T] = BlockingFuture()
    call = TaskCall(work, future, made_elsewhere=True)
    call.carried = carried
    is_users = counted and carried is None
    if is_users:
        call.func, call.helper, call.waiter = func, helper, get_ident()
        call.introduce()
    elif counted and carried is not None:
        carried.waiter = get_ident()
        if observers:
            carried.introduce()
    worker = thread.worker
    try:
        if worker is not None:
            blocked_loop = current_blocked_loop.get()
            if blocked_loop is not None and blocks is None and not always:
                refuse_if_blocked(worker.own_loop().native, call, blocked_loop)
            outer = worker.enter(call)
            try:
                if worker.called_back_in_the_task and blocks is None:
                    # That task only waits. If it ran the call itself, nested calls would pile up on its stack.
                    submit = submit if always else worker.submit
                    elsewhere = _elsewhere(submit, work, func, call, may_be_interrupted=always)
                    _call_in_waiting_task(TaskCall(elsewhere, future))
                else:
                    if offer is not None:
                        offer(future)
                    into = submit if always or blocks is not None else worker.submit
                    _call_and_wait(call, future, func, into, interrupts, in_worker=blocks is None)
            finally:
                worker.leave(call, outer)
        elif blocks is not None or not _call_from_others_worker(
            TaskCall(_elsewhere(submit, work, func, call, may_be_interrupted=True), future) if always else call, call
        ):
            if offer is not None:
                offer(future)
            _call_and_wait(call, future, func, submit, interrupts)
        value = future.read()
    except BaseException as exc:
        if is_users:
            call.note_end(exc)
        raise
    if is_users:
        if call.observed is None:
            next(returned)
        else:
            call.note_end(None)
    return value


def block(blocked_loop: BlockedLoop, call: Callable[[], T]) -> T:
    """Make *call* while the loop of this thread is blocked."""
    try:
        try:
            blocked_loop.begin()
            return call()
        finally:
            blocked_loop.end()
    finally:
        blocked_loop.end()  # again: a signal handler may have raised in the first `finally`


def _call_and_wait(
    call: TaskCall[T],
    future: BlockingFuture[T],
    func: object,
    submit: Submit,
    interrupts: Interrupts | None,
    *,
    in_worker: bool = False,
) -> None:
    """Submit *call* and wait for its *future*.

    The loop of a worker may run in the main thread, where signal handlers raise: what they interrupt is done again.
    """
    submit_it = partial(submit, call, copy_context())
    again = submit_it if in_worker else None
    try:
        submit_it()
        _wait(call, future, again)
    except (LoopEndedError, LoopThreadError):
        raise
    except BaseException as exc:  # Ctrl-C, or another signal handler, raised here. The second time we do not wait
        interrupts = interrupts or Interrupts()
        try:
            interrupts.times += 1
            # Wait for nothing if it came before the call was submitted, or after it ended.
            if call.cancel() and not future.done and not interrupts.is_over:
                say_that_we_wait(exc, name_of(func))
                _wait(call, future, again)
        except BaseException:
            interrupts.times = 2
            raise
        raise


def _wait(call: TaskCall[T], future: BlockingFuture[T], again: Callable[[], object] | None) -> None:
    """Wait for *future*. Check now and then that it will be written: the loop may have ended or been interrupted."""
    looks, next_try = 0, 1
    while not future.ready.acquire(timeout=CHECK_SECONDS) and not future.done:
        if call.fail_if_gone():
            continue
        looks += 1
        if looks == next_try:  # less and less often: a loop that is only busy would collect these
            next_try *= 2
            if call.go_on() and again is not None:
                again()


def _elsewhere(
    submit: Submit, work: Callable[[], Awaitable[T]], func: object, call: TaskCall[T], *, may_be_interrupted: bool
) -> Callable[[], Awaitable[T]]:
    """Return an async function that has *submit* run *work* in another loop, for *call*, and waits for it."""
    context = copy_context()  # of this thread, not of the task that waits for it
    carried = call if call.func is not None else call.carried

    async def run_elsewhere() -> T:
        options: dict[str, Any] = {"context": context, "may_be_interrupted": may_be_interrupted, "carried": carried}
        return await call_in(submit, work, func, current_loop(), **options)

    return run_elsewhere


def _call_in_waiting_task(call: TaskCall[Any]) -> None:
    """Have the task that waits for this worker thread run *call*."""
    try:
        from_thread.run(call.run, _do_not_abort)
    except RunFinishedError:
        raise LoopEndedError("the event loop of this worker thread has ended") from None


def belongs_to_loop() -> bool:
    """Return whether this is a worker thread of an event loop: ours, anyio's or trio's.

    If the task that waits for anyio's or trio's thread is cancelled, raise the cancellation. On asyncio, anyio does not
    deliver it to what this thread runs in the loop.
    """
    return thread.worker is not None or belongs_to_others_loop()


def must_use_loop() -> bool:
    """Return whether a sync call of this thread needs a loop: to be cancelled with a task, or to be refused."""
    return _slots.holds_lock() or running_loop() is not None or belongs_to_loop()


def _from_thread_modules() -> list[Any]:
    """Return anyio's and trio's `from_thread`, as far as this may be a worker thread of theirs."""
    if thread.forked or threading.current_thread() is threading.main_thread():
        return []
    modules: list[Any] = [from_thread]
    if "trio" in sys.modules:
        import trio

        modules.append(trio.from_thread)
    return modules


def belongs_to_others_loop() -> bool:
    """Return whether this is a worker thread that others started: anyio or trio.

    If the task that waits for the thread is cancelled, raise the cancellation.
    """
    for module in _from_thread_modules():
        try:
            module.check_cancelled()
        except RuntimeError:
            continue
        return True
    return False


def _call_from_others_worker(call: TaskCall[Any], wait: object) -> bool:
    """Run *call* in the loop that awaits this worker thread, which others started. Return whether there is one.

    Its slot is lent while it is in *wait*.
    """
    modules = _from_thread_modules()
    if not modules:
        return False
    entered = False

    async def enter() -> None:
        nonlocal entered
        entered = True
        slot = _limits.Slot(thread_limiter.of(current_loop()))
        try:
            try:
                _slots.adopt(slot, wait)
                _limits.current_slot.set(slot)
                await call.run(_do_not_abort)
            finally:
                _slots.release(slot)
        finally:  # once more: a signal handler may have raised just before the first one
            _slots.release(slot)

    for module in modules:
        try:
            module.run(enter)
        except RuntimeError:  # not a worker of this library, or its loop has ended
            assert not entered, "what the call raises is in its future"
        except CancelledError:  # the loop ended before the call could start
            call.future.write(None, LoopEndedError("the event loop of this worker thread has ended"))
            return True
        else:
            return True
    return False


def _do_not_abort() -> None:
    """Do nothing: anyio or trio cancels the call together with the task that waits for the thread."""
