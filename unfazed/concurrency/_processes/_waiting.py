"""How async code and sync code wait for a call in a worker process.

Who wakes a caller: the worker, at its pipe; its thread, at the one-shot answer; the end of either. What a second
cancellation, or a second Ctrl-C, does is in `wait_shielded`, and with the `except` clauses here.
"""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any, Final

import anyio
from anyio import Event, from_thread

from .._core import _limits, _slots
from .._core._errors import CallTimeoutError, LoopStateError
from .._core._futures import BlockingFuture, OneShotFuture
from .._eventloops._background import running_background, submit_to_background
from .._eventloops._loops import current_loop, running_loop
from .._eventloops._synccalls import call_from_sync, say_that_we_wait
from .._eventloops._timeouts import within
from .._eventloops._waiting import raise_if_cancelled, set_from_anywhere, wait_for_end, wait_for_slot
from .._eventloops._workers import lending, thread
from ._call import OutOfTheOrdinaryError, ProcessCall, default_limiter
from ._handling import is_handling
from ._inbox import Inbox
from ._pool import pool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio import CancelScope, CapacityLimiter

    from .._core._loop import Loop
    from ._worker import WorkerProcess

LOOK_UP_SECONDS: Final = 1.0  # how often a thread that waits can be interrupted on Windows; arbitrary


def run(call: ProcessCall) -> Awaitable[Any]:
    """Make *call* from async code, and return its value."""
    return lending(within(call.timeout, lambda timer: _run(call, timer), call.what_it_waits_for))


async def _run(call: ProcessCall, timer: CancelScope | None) -> Any:
    loop = current_loop()
    await raise_if_cancelled(loop)
    # Made before it is taken, and given back in two `finally`, as `ThreadCall._run` explains.
    slot = call.slot = _limits.Slot(call.options.limiter or default_limiter.of(loop))
    slot.work = call.func
    try:
        try:
            if not _slots.take(slot):
                await wait_for_slot(slot, loop)
            return await _run_in_slot(call, loop, timer)
        finally:
            _slots.release(slot)
    finally:
        _slots.release(slot)


async def _run_in_slot(call: ProcessCall, loop: Loop, timer: CancelScope | None) -> Any:
    lease: list[WorkerProcess] = []
    cancellation: BaseException | None = None
    try:
        try:
            if call.send_directly(lease):
                frames = lease[0].out
                while True:
                    await anyio.wait_readable(frames)  # not imported from there: it is slow to import
                    received = call.receive(lease)
                    if received is not None:
                        return call.read(*received)
        except OutOfTheOrdinaryError:
            pass
        except BaseException as exc:
            if not lease:  # it is what the function has raised, or came before the call was sent
                raise
            cancellation = exc
        event = Event()
        future: OneShotFuture[Any] = OneShotFuture(lambda: set_from_anywhere(loop, event))
        call.expect(future)

        def begin() -> None:
            call.hand_over(lease)
            if cancellation is not None:
                raise cancellation

        await wait_for_end(event, call.cancel, timer, call.kill, begin)
        return future.read()
    finally:
        cancellation = None  # its traceback leads here
        if lease:  # a signal handler has raised before all that: the thread gives the worker back
            call.expect(OneShotFuture())
            call.hand_over(lease)


def wait_for(call: ProcessCall, helper: str, instead: str) -> Any:
    """Make *call* from sync code, and return its value.

    A thread that belongs to an event loop asks that loop, whose task may be cancelled; any other one calls itself.
    """
    if pool.is_interrupted():
        raise LoopStateError(
            f"{helper.format(call.name)}() was called by a finalizer in the midst of the start of a worker process, "
            "which cannot wait then; have finalizers leave the work to somebody else"
        )
    if _slots.is_interrupted() or running_loop() is not None or _belongs_to_loop():
        return call_from_sync(lambda: run(call), call.func, helper, instead, submit_to_background)
    limiter = call.options.limiter or _background_limiter()
    if limiter is None:
        pool.start_early(call)  # while the background event loop starts, which knows the limiter
        limiter = call_from_sync(_ask_for_limiter, call.func, helper, instead, submit_to_background)
    slot = call.slot = _limits.Slot(limiter)  # as in `_run`
    slot.work = call.func
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
    """Queue for *slot*, and wait until it has been granted. Who wakes us: whoever gives one back, or the watcher."""
    granted = BlockingFuture[None]()

    def wake() -> bool:
        granted.write(None, None)
        return True

    _slots.queue(slot, wake)
    while not slot.held:  # either it was granted before, or whoever grants it wakes us
        granted.ready.acquire(timeout=_seconds_left(call))


def _seconds_left(call: ProcessCall) -> float:
    """Return how long to wait before the next look: on Windows, Ctrl-C does not interrupt that."""
    if call.timeout is None:
        return LOOK_UP_SECONDS
    left = call.timeout.left()
    if not left:
        raise call.timeout.error(call.what_it_waits_for())
    return min(left, LOOK_UP_SECONDS)


def _wait_in_slot(call: ProcessCall) -> Any:
    lease: list[WorkerProcess] = []
    future = None
    try:
        try:
            if call.timeout is None and call.send_directly(lease):
                while True:
                    received = call.receive(lease)
                    if received is not None:
                        return call.read(*received)
        except OutOfTheOrdinaryError:
            pass
        future = _Answer()
        call.expect(future, future.do if is_handling() else None)
        call.hand_over(lease)
        future.wait(call)
    except BaseException as exc:  # Ctrl-C, or what another signal handler raised; a second one goes through
        if lease:
            future = _Answer()
            call.expect(future, future.do)
            call.hand_over(lease)
        if future is not None and call.future is future:
            say_that_we_wait(exc, call.name)
            _see_to_its_end(call, future, late=isinstance(exc, CallTimeoutError))
        raise
    return future.read()


def _see_to_its_end(call: ProcessCall, future: _Answer, late: bool) -> None:
    """Wait for what has begun, or kill it; keep from beginning what has not."""
    try:
        if not late:
            call.cancel()
            with suppress(CallTimeoutError):
                future.wait(call)
                return
        call.kill()
    finally:
        future.try_claim()  # nobody takes what is still to be done here


class _Answer(OneShotFuture[Any]):
    """An answer that a thread waits for, and does meanwhile what it is told.

    That is to handle log records where the thread is handling one itself: it has the lock of the handler.
    """

    def __init__(self) -> None:
        self._told: Inbox[Callable[[], object] | None] = Inbox()
        super().__init__(lambda: self._told.put(None))

    def do(self, func: Callable[[], object]) -> None:
        """Have the thread call *func*, and wait for that. Who wakes us: the thread; it may have gone away."""
        done = threading.Lock()
        done.acquire()

        def call_and_tell() -> None:
            try:
                func()
            finally:
                done.release()

        self._told.put(call_and_tell)
        while not done.acquire(timeout=LOOK_UP_SECONDS) and not self.done:
            pass

    def wait(self, call: ProcessCall) -> None:
        while not self.done:
            try:
                told = self._told.get(timeout=_seconds_left(call))
            except Empty:
                continue
            if told is not None:
                told()


def _background_limiter() -> CapacityLimiter | None:
    """Return the limiter of the background event loop, if a call there has asked for it before."""
    owner = running_background()
    loop = None if owner is None else owner._loop
    return None if loop is None else default_limiter.known(loop)


async def _ask_for_limiter() -> CapacityLimiter:
    return default_limiter.of(current_loop())


def _belongs_to_loop() -> bool:
    """Return whether this is the worker thread of an event loop: ours, anyio's or trio's.

    Raises the cancellation of the task that waits for it: anyio does not deliver that to what is run there on asyncio.
    """
    if thread.worker is not None:
        return True
    if thread.forked or threading.current_thread() is threading.main_thread():
        return False
    checks: list[Callable[[], object]] = [from_thread.check_cancelled]
    if "trio" in sys.modules:
        import trio

        checks.append(trio.from_thread.check_cancelled)
    for check in checks:
        try:
            check()
        except RuntimeError:
            continue
        return True
    return False
