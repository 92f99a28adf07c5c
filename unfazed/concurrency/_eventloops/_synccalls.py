"""Calls from sync code into a loop: how a thread finds its loop, and how it waits.

    a worker thread that we started        the loop that awaits it          `Worker`
    a worker thread that others started    the loop that awaits it          `_call_from_others_worker`
    any other thread                       where the caller says: the background event loop, for most
    a thread whose own loop is running     `LoopThreadError`

No thread starts here, and no loop. A forked child forgets what the thread that forked knew of loops.
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import CancelledError
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from anyio import RunFinishedError, from_thread, to_thread

from .._core import _slots
from .._core._calls import OneShotFuture, TaskCall, BlockingFuture
from .._core._checks import name_of
from .._core._errors import LoopEndedError, LoopStateError, LoopThreadError
from ._loops import current_loop, running_loop
from ._waits import call_in

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from .._core._calls import Loop

    Submit = Callable[[TaskCall[Any], Context], None]

T = TypeVar("T")

GONE_CHECK_SECONDS = 1.0  # how often a thread looks whether the loop that is to answer it is still there


class Worker:
    """What a worker thread of ours goes by: its loop, its slot, and the call that it waits for."""

    loop: Loop | None = None
    slot: _slots.Slot | None = None
    called_back_in_the_task = False  # whether its calls are run by the task that waits for it (trio)
    call: TaskCall[Any] | None = None  # the one that the thread waits for
    _cancelled = False
    _told = False  # whether the thread has seen the cancellation, in a call that it waited for

    def cancel(self) -> None:
        """Cancel what the thread waits for, or else what it will wait for next, as asyncio does with a task.

        On trio, which cancels every wait, what comes after that as well.
        """
        self._cancelled = True
        _slots.pass_through()  # as `enter` does: either it sees the cancellation, or we see its call
        call = self.call  # once: the thread may leave it meanwhile
        if call is not None:
            call.cancel()

    def is_cancelled(self) -> bool:
        """Return whether the task that waits for the worker has been cancelled."""
        return self._cancelled

    def way_back(self) -> Loop:
        assert self.loop is not None, "set before the worker starts"
        return self.loop

    def submit(self, call: TaskCall[Any], context: Context) -> None:
        """Have the worker's own loop run *call*."""
        self.way_back().submit(call, context)

    def enter(self, call: TaskCall[Any]) -> TaskCall[Any] | None:
        """Lend the slot, for the thread is going to wait for *call*. Return the one that it waits for already.

        There is one where the garbage collector, or a signal handler, makes a call in the midst of another.
        """
        assert self.slot is not None, "set before the worker starts"
        outer, self.call = self.call, call
        _slots.lend(self.slot, call)
        if self._cancelled and not self._told:
            call.cancel()
        return outer

    def leave(self, call: TaskCall[Any], outer: TaskCall[Any] | None) -> None:
        assert self.slot is not None, "set before the worker starts"
        _slots.take_back(self.slot, call)
        self.call = outer
        if call.aborted and not call.missed and self.way_back().cancels_once:
            self._told = True  # a cancellation that came after the end of the call is still to come


class _Thread(threading.local):
    worker: Worker | None = None  # while the thread runs a call of ours
    forked = False  # whether this thread has come through a fork: what it knew of loops is no longer true
    lost_loop: object = None  # the native loop that was running in it then


thread = _Thread()


def lending(waiting: Awaitable[T]) -> Awaitable[T]:
    """Return *waiting* so that a worker of ours, in whose own event loop it is awaited, lends its slot meanwhile."""
    return waiting if thread.worker is None else _lend_while(thread.worker, waiting)


async def _lend_while(worker: Worker, waiting: Awaitable[T]) -> T:
    assert worker.slot is not None, "set before the worker starts"
    wait = object()
    _slots.lend(worker.slot, wait)
    try:
        return await waiting
    finally:
        _slots.take_back(worker.slot, wait)


def call_from_sync(
    work: Callable[[], Awaitable[T]],
    func: object,
    helper: str,
    instead: str,
    submit: Submit,
    *,
    always: bool = False,
    offer: Callable[[OneShotFuture[T]], None] | None = None,
) -> T:
    """Run *work* in the loop that this thread belongs to, or where *submit* puts it, and wait for its end.

    *submit* is asked where the thread belongs to no loop, or *always*.
    Where that is possible, the answer is offered to whoever may write it before *work* has ended. *instead* is what
    to write where *helper* is refused, with `{}` in both for the name of *func*. Who wakes us: whoever writes the
    answer; the end of the loop, which does too.
    """
    here = running_loop()
    if here is not None and here.native is not thread.lost_loop:
        name = name_of(func)
        raise LoopThreadError(helper.format(name), instead.format(name))
    if _slots.is_interrupted():  # others could not take a slot while we wait, the one who is to answer included
        raise LoopStateError(
            f"{helper.format(name_of(func))}() was called by a finalizer in the midst of another call of this thread, "
            "which cannot wait then; have finalizers leave the work to somebody else"
        )
    future: BlockingFuture[T] = BlockingFuture()
    call = TaskCall(work, future, made_elsewhere=True)
    worker = thread.worker
    if worker is not None:
        outer = worker.enter(call)
        try:
            if worker.called_back_in_the_task:
                # Only to wait: what ran there would pile up on the one task, level by level.
                _call_in_waiting_task(TaskCall(_elsewhere(submit if always else worker.submit, work, func), future))
            else:
                if offer is not None:
                    offer(future)
                _call_and_wait(call, future, submit if always else worker.submit, its_loop_may_be_interrupted=True)
        finally:
            worker.leave(call, outer)
    elif not _call_from_others_worker(TaskCall(_elsewhere(submit, work, func), future) if always else call):
        if offer is not None:
            offer(future)
        _call_and_wait(call, future, submit)
    return future.read()


def _call_and_wait(
    call: TaskCall[T], future: BlockingFuture[T], submit: Submit, *, its_loop_may_be_interrupted: bool = False
) -> None:
    """Submit *call* and wait for its *answer*. The loop may be in the main thread, where signal handlers raise."""
    submit_it = partial(submit, call, copy_context())
    again = submit_it if its_loop_may_be_interrupted else None
    try:
        submit_it()
        _wait(call, future, again)
    except LoopEndedError:
        raise
    except BaseException:  # Ctrl-C, or what another signal handler raised; a second one goes through
        # It may have come before the call was submitted, and after the answer was given: wait for nothing then.
        if call.cancel() and not future.done:
            _wait(call, future, again)
        raise


def _wait(call: TaskCall[T], future: BlockingFuture[T], again: Callable[[], object] | None) -> None:
    """Wait for *answer*. Now and then look whether it will come: the loop may have ended, or been interrupted."""
    looks, next_try = 0, 1
    while not future.ready.acquire(timeout=GONE_CHECK_SECONDS) and not future.done:
        if call.loop is not None and call.loop.is_gone():
            future.write(None, LoopEndedError("the event loop of this call has ended"))
            continue
        looks += 1
        if looks == next_try:  # ever less often: a loop that is merely busy would remember each of them
            next_try *= 2
            if call.go_on() and again is not None:
                again()


def _elsewhere(submit: Submit, work: Callable[[], Awaitable[T]], func: object) -> Callable[[], Awaitable[T]]:
    """Return what waits for *work* in the current loop, and is cancelled with it, while *submit* runs it elsewhere."""
    context = copy_context()  # this thread's: that of the task which waits for it need not be a copy

    async def run_elsewhere() -> T:
        return await call_in(submit, work, func, current_loop(), context=context)

    return run_elsewhere


def _call_in_waiting_task(call: TaskCall[Any]) -> None:
    """Have the task that waits for this worker run *call*."""
    try:
        from_thread.run(call.run, _cancelled_by_others)
    except RunFinishedError:
        raise LoopEndedError("the event loop of this worker thread has ended") from None


def _call_from_others_worker(call: TaskCall[Any]) -> bool:
    """Run *call* in the loop whose worker this is, though we did not start it. Return whether there is one."""
    if thread.forked or threading.current_thread() is threading.main_thread():
        return False
    entered = False

    async def enter() -> None:
        nonlocal entered
        entered = True
        slot = _slots.Slot(to_thread.current_default_thread_limiter())
        try:
            try:
                _slots.adopt(slot)
                _slots.current_slot.set(slot)
                await call.run(_cancelled_by_others)
            finally:
                _slots.release(slot)
        finally:  # once more, as a signal handler may have raised just before the first one
            _slots.release(slot)

    ways: list[Callable[[Callable[[], Coroutine[Any, Any, None]]], None]] = [from_thread.run]
    if "trio" in sys.modules:
        import trio

        ways.append(trio.from_thread.run)
    for run in ways:
        try:
            run(enter)
        except RuntimeError:  # not a worker of this library, or its loop has ended
            assert not entered, "what the call raises is in its answer"
        except CancelledError:  # the loop ended before the call could start
            call.future.write(None, LoopEndedError("the event loop of this worker thread has ended"))
            return True
        else:
            return True
    return False


def _cancelled_by_others() -> None:
    """Stand in for the way to cancel a task, where anyio or trio does it with the task that waits for the thread."""


def _reset_after_fork() -> None:
    """After a fork: the loops' threads have not come along."""
    thread.worker = None
    thread.forked = True
    loop = running_loop()
    thread.lost_loop = loop and loop.native


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_reset_after_fork)
