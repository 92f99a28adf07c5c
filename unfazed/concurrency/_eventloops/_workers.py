"""What a worker thread of ours knows: its loop, its slot, the call that it waits for.

`thread.worker` is read by the thread itself alone. Other threads cancel a `Worker`: `cancel` and `enter` both pass
through the lock of the slots in between, so that one of them sees what the other did.

A forked child forgets what the thread that forked knew of loops.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from .._core import _limits, _slots
from .._core._lifetime import in_forked_child
from ._loops import running_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable
    from contextvars import Context

    from .._core._loop import Loop
    from .._core._taskcall import TaskCall

T = TypeVar("T")


class Worker:
    """A worker thread, while it runs a call of ours."""

    loop: Loop | None = None
    slot: _limits.Slot | None = None
    called_back_in_the_task = False  # whether the task that waits for the thread runs its calls (trio)
    call: TaskCall[Any] | None = None  # the call that the thread waits for
    _cancelled = False
    _seen = False  # whether the thread has seen the cancellation, in a call that it waited for or by `check_cancelled`

    def cancel(self) -> None:
        """Cancel the call that the thread waits for, or else its next one, as `task.cancel()` does with a task.

        On trio, which cancels every wait, also all calls after that.
        """
        self._cancelled = True
        _slots.pass_through()  # `enter` does the same: either it sees the cancellation, or we see its call
        call = self.call  # read once: the thread may leave it meanwhile
        if call is not None:
            call.cancel()

    def is_cancelled(self) -> bool:
        """Return whether the task that waits for the worker has been cancelled."""
        return self._cancelled

    def raise_cancellation(self) -> NoReturn:
        """Raise the cancellation in the worker thread. On asyncio, the calls that it makes after that go on."""
        self._seen = self.own_loop().cancels_once
        raise self.own_loop().cancellation()

    def own_loop(self) -> Loop:
        assert self.loop is not None, "set before the worker starts"
        return self.loop

    def submit(self, call: TaskCall[Any], context: Context) -> None:
        """Have the worker's own loop run *call*."""
        self.own_loop().submit(call, context)

    def enter(self, call: TaskCall[Any]) -> TaskCall[Any] | None:
        """Lend the slot, because the thread is about to wait for *call*. Return the call that it waits for already.

        There is one if a finalizer or a signal handler makes a call while the thread waits.
        """
        assert self.slot is not None, "set before the worker starts"
        outer, self.call = self.call, call
        _slots.lend(self.slot, call)
        if self._cancelled and not self._seen:
            call.cancel()
        return outer

    def leave(self, call: TaskCall[Any], outer: TaskCall[Any] | None) -> None:
        assert self.slot is not None, "set before the worker starts"
        _slots.take_back(self.slot, call)
        self.call = outer
        if call.aborted and not call.missed and self.own_loop().cancels_once:
            self._seen = True  # not if the cancellation came after the end of the call: then the next call gets it


class _ThreadState(threading.local):
    worker: Worker | None = None  # while the thread runs a call of ours
    forked = False  # whether the process was forked by this thread: then it knows nothing of loops
    is_loop_thread = False  # whether it is the thread of an `EventLoopThread`
    lost_loop: object = None  # the native loop that ran in it when the process forked, and is lost


thread = _ThreadState()


def lending(waiting: Awaitable[T]) -> Awaitable[T]:
    """Have a worker of ours that runs its own event loop lend its slot while it awaits *waiting*."""
    return waiting if thread.worker is None else _lend_while(thread.worker, waiting)


async def _lend_while(worker: Worker, waiting: Awaitable[T]) -> T:
    assert worker.slot is not None, "set before the worker starts"
    wait = object()
    _slots.lend(worker.slot, wait)
    try:
        return await waiting
    finally:
        _slots.take_back(worker.slot, wait)


def _reset_after_fork() -> None:
    """In a forked child: the loops' threads do not exist here."""
    thread.worker = None
    thread.forked = True
    thread.is_loop_thread = False
    loop = running_loop()
    thread.lost_loop = loop and loop.native


in_forked_child(_reset_after_fork)
