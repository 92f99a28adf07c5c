"""How async code and sync code wait for a call in a worker process.

A caller that has sent the call itself waits for the pipe, and reads it. The worker wakes it, with an answer or because
it dies. Any other caller waits for the future, which the thread of a worker writes. If the call is prevented or killed,
whoever does that writes it.

`wait_shielded` says what a second cancellation does, the `except` clauses here what a second Ctrl-C does.
"""

from __future__ import annotations

import select
import threading
from contextlib import suppress
from queue import Empty
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio.lowlevel import checkpoint

from .._core import _limits, _slots
from .._core._errors import CallTimeoutError, LoopStateError
from .._core._futures import BlockingFuture, OneShotFuture
from .._core._observing import observers
from .._eventloops._background import running_background, submit_to_background
from .._eventloops._loops import current_loop
from .._eventloops._loopthread import loop_of
from .._eventloops._synccalls import call_from_sync, must_use_loop, say_that_we_wait
from .._eventloops._timeouts import INTERRUPT_CHECK_SECONDS, seconds_to_wait, within
from .._eventloops._waiting import raise_if_cancelled, set_from_anywhere, take_or_queue, wait_for_end
from .._eventloops._workers import lending
from ._call import OutOfTheOrdinaryError, ProcessCall, returned
from ._handling import is_handling
from ._inbox import Inbox
from ._limiter import default_limiter
from ._pool import pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio import CancelScope, CapacityLimiter

    from .._core._loop import Loop
    from ._call import Received
    from ._worker import WorkerProcess

QUICK_SECONDS: Final = 0.0002  # how soon a quick function has answered; arbitrary


def run(call: ProcessCall) -> Awaitable[Any]:
    """Make *call* from async code, and return its value."""
    return lending(within(call.timeout, lambda timer: _run(call, timer), call.what_it_waits_for))


async def _run(call: ProcessCall, timer: CancelScope | None) -> Any:
    loop = current_loop()
    # Made before it is taken, and given back in two `finally`, for the reasons that `_threadcall.py` gives.
    slot = call.slot = _limits.Slot(call.options.limiter or default_limiter.of(loop))
    slot.call = call
    slot.awaited_in = loop.native
    if observers and call.waiter is None:
        call.introduce()
    try:
        try:
            await raise_if_cancelled(loop)
            granted = take_or_queue(slot, loop)
            if granted is not None:
                await granted.wait()
                _slots.require(slot)
            value = await _run_in_slot(call, loop, timer)
        finally:
            _slots.release(slot)
    except BaseException as exc:
        call.is_late = timer is not None and timer.cancel_called
        if call.waiter is None:
            call.note_end(exc)
        raise
    finally:
        _slots.release(slot)
    if call.waiter is None:
        if call.observed is None:
            next(returned)
        else:
            call.note_end(None)
    return value


async def _run_in_slot(call: ProcessCall, loop: Loop, timer: CancelScope | None) -> Any:
    leased: list[WorkerProcess] = []
    cancellation: BaseException | None = None
    try:
        try:
            if call.send_directly(leased):
                return call.read(*await _receive(call, leased))
        except OutOfTheOrdinaryError:
            pass
        except BaseException as exc:
            if not leased:  # the function raised it, or there is no worker to hand over
                raise
            cancellation = exc
        event = loop.new_event()
        future: OneShotFuture[Any] = OneShotFuture(lambda: set_from_anywhere(loop, event))
        call.expect(future)

        def begin() -> None:
            call.hand_over(leased)
            if cancellation is not None:
                raise cancellation

        await wait_for_end(event, call.cancel, timer, call.kill, begin)
        return future.read()
    finally:
        cancellation = None  # its traceback refers to this frame
        if leased:  # a signal handler raised before `begin`: the thread gives the worker back
            call.expect(OneShotFuture())
            call.hand_over(leased)


async def _receive(call: ProcessCall, leased: list[WorkerProcess]) -> Received:
    """Wait for the answer to *call*. A function of its own for the same reason as `_receive_blocking`."""
    worker = leased[0]
    received = await _receive_soon(call, leased) if worker.quick else None
    sent = perf_counter()
    while received is None:
        await anyio.wait_readable(worker.out)  # not imported at the top: it is slow to import
        received = call.receive(leased)
        worker.quick = perf_counter() - sent < QUICK_SECONDS
    return received


async def _receive_soon(call: ProcessCall, leased: list[WorkerProcess]) -> Received | None:
    """Look for the answer to *call* for a short time, and let other tasks run in between.

    An event loop takes longer to watch a pipe than a quick function takes to run.
    """
    frames = select.poll()
    frames.register(leased[0].out, select.POLLIN)
    end = perf_counter() + QUICK_SECONDS
    while perf_counter() < end:
        await checkpoint()
        if frames.poll(0):
            received = call.receive(leased)
            if received is not None:
                return received
    return None


def wait_for(call: ProcessCall, helper: str, instead: str) -> Any:
    """Make *call* from sync code, and return its value.

    In a worker thread of an event loop, the call runs in that loop, so that cancelling the loop's task cancels the call
    too. Any other thread makes the call itself.
    """
    if pool.is_needed_here():
        raise LoopStateError(
            f"{helper.format(call.name)}() was called by a finalizer in the midst of the start of a worker process, "
            "which cannot wait then; have finalizers leave the work to somebody else"
        )
    try:
        if must_use_loop():
            value = call_from_sync(lambda: run(call), call.func, helper, instead, submit_to_background, carried=call)
        else:
            call.waiter = threading.get_ident()
            if observers:
                call.introduce()
            value = _find_limiter_and_wait(call, helper, instead)
    except BaseException as exc:
        if call.waiter is not None:  # otherwise it was refused
            call.note_end(exc)
        raise
    if call.observed is None:
        next(returned)
    else:
        call.note_end(None)
    return value


def _find_limiter_and_wait(call: ProcessCall, helper: str, instead: str) -> Any:
    limiter = call.options.limiter or _background_limiter()
    if limiter is None:
        pool.start_first_worker(call)  # meanwhile the background event loop starts: it has the limiter
        limiter = call_from_sync(_ask_for_limiter, call.func, helper, instead, submit_to_background, counted=False)
    slot = call.slot = _limits.Slot(limiter)  # as in `_run`
    slot.call = call
    try:
        try:
            if not _slots.take(slot):
                _wait_for_slot(call, slot)
            return _wait_in_slot(call)
        finally:
            _slots.release(slot)
    finally:
        _slots.release(slot)


def _wait_for_slot(call: ProcessCall, slot: _limits.Slot) -> None:
    """Queue for *slot*, and wait until it is granted. Whoever gives one back wakes us, or the watcher does."""
    granted = BlockingFuture[None]()

    def wake() -> bool:
        granted.write(None, None)
        return True

    _slots.queue(slot, wake)
    while not slot.held:  # if it is granted after this look, we are woken
        _slots.require(slot)
        granted.ready.acquire(timeout=seconds_to_wait(call.timeout, call.what_it_waits_for))


def _wait_in_slot(call: ProcessCall) -> Any:
    leased: list[WorkerProcess] = []
    future = None
    try:
        try:
            if call.timeout is None and call.send_directly(leased):
                return call.read(*_receive_blocking(call, leased))
        except OutOfTheOrdinaryError:
            pass
        future = _HandlingFuture()
        call.expect(future, future.do if is_handling() else None)
        call.hand_over(leased)
        future.wait(call)
    except BaseException as exc:  # Ctrl-C, or from another signal handler; a second one leaves at once
        if leased:
            future = _HandlingFuture()
            call.expect(future, future.do)
            call.hand_over(leased)
        if future is not None and call.future is future:
            say_that_we_wait(exc, call.name)
            _see_to_its_end(call, future, late=isinstance(exc, CallTimeoutError))
        raise
    return future.read()


def _receive_blocking(call: ProcessCall, leased: list[WorkerProcess]) -> Received:
    """Wait for the answer to *call*.

    A function of its own, because Python does not always count the jump back to the start of a loop as part of the
    `try` around that loop. What a signal handler raises there would leave the `try` unseen.
    """
    while True:
        received = call.receive(leased)
        if received is not None:
            return received


def _see_to_its_end(call: ProcessCall, future: _HandlingFuture, late: bool) -> None:
    """Keep the call from beginning, or wait for its end. Kill it when its timeout is over: at once if *late*."""
    try:
        if not late:
            call.cancel()
            with suppress(CallTimeoutError):
                future.wait(call)
                return
        call.kill()
    finally:
        future.try_claim()  # the thread must not ask us to handle log records any more


class _HandlingFuture(OneShotFuture[Any]):
    """A future that a thread waits for. Meanwhile, the thread calls the functions that it is given.

    They handle log records. If the waiting thread holds the lock of a log handler, another thread could not do that.
    """

    def __init__(self) -> None:
        self._inbox: Inbox[Callable[[], object] | None] = Inbox()
        super().__init__(lambda: self._inbox.put(None))

    def do(self, func: Callable[[], object]) -> None:
        """Have the waiting thread call *func*, and wait for that. Stop waiting if that thread has left."""
        done = threading.Lock()
        done.acquire()

        def call_and_tell() -> None:
            try:
                func()
            finally:
                done.release()

        self._inbox.put(call_and_tell)
        while not done.acquire(timeout=INTERRUPT_CHECK_SECONDS) and not self.done:
            pass

    def wait(self, call: ProcessCall) -> None:
        while not self.done:
            try:
                told = self._inbox.get(timeout=seconds_to_wait(call.timeout, call.what_it_waits_for))
            except Empty:
                continue
            if told is not None:
                told()


def _background_limiter() -> CapacityLimiter | None:
    """Return the limiter of the background event loop, if it is known already."""
    owner = running_background()
    loop = None if owner is None else loop_of(owner)
    return None if loop is None else default_limiter.known(loop)


async def _ask_for_limiter() -> CapacityLimiter:
    return default_limiter.of(current_loop())
