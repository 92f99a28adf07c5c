"""The executor of a thread that waits for a loop: meanwhile the thread makes the calls that the loop sends back to it.

So thread-sensitive calls stay with the thread that has the database connections, however deeply they nest.

The life of a `CurrentThreadExecutor`. "thread" is the thread that made it, and waits in `serve`.

    state      how to tell           a call that is sent                             goes on to
    ---------  --------------------  ----------------------------------------------  ---------------------------------
    waiting    -                     is made by the thread                           finished, by `finish`
    finished   `_finished`           is made by the thread before it goes on         closed, by the thread's `close`
    closed     `_closed`             goes to the executor of the waiting code above  -

Guarantees:

- An executor makes, or fails, each call that it has accepted.
- A call that is sent while the executor closes is made once, by this executor or by the next one above.
- If a signal handler raises in the waiting thread, the call that the thread was making fails. No other call is lost.

`_threads.py` has the rules that this rests on.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import get_ident
from typing import TYPE_CHECKING

from anyio import Event

from unfazed.concurrency import ExecutorError, LoopEndedError, run_in_eventloop_sync

from ._executorcall import CallExecutor, send
from ._loops import current_loop
from ._shared import CurrentThreadExecutorBase

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import Executor

    from ._taskcall import TaskCall
    from ._threads import QueuedCall

CHECK_SECONDS = 1.0  # how often a waiting thread checks whether its loop is still there; arbitrary


class CurrentThreadExecutor(CallExecutor, CurrentThreadExecutorBase):
    """The executor of the thread in which it was made, while that waits.

    Only that thread takes calls out of the queue, each one after it has made it.

    Args:
        parent: The executor of the sync code around, which gets the calls that come too late for this one.
    """

    def __init__(self, parent: Executor | None) -> None:
        self._thread = get_ident()
        self._process = os.getpid()
        self._calls: deque[QueuedCall] = deque()
        self._current: QueuedCall | None = None  # the first of them, while the thread makes it
        self._wake_ups: SimpleQueue[None] = SimpleQueue()  # one for each change that the thread must see
        self._wake_loop: Callable[[], object] | None = None  # set while the thread waits inside of its own loop
        self._finished = False
        self._closed = False
        self._parent = parent

    def send(self, call: QueuedCall) -> None:
        """Have the thread make *call*; or, if it does not wait any more, the nearest one above that still does."""
        executor: Executor | None = self
        while isinstance(executor, CurrentThreadExecutor):
            # A thread that runs a loop does not wait here; and nobody serves the copy that a forked child has.
            if executor._thread != get_ident() and executor._process == os.getpid() and executor._put(call):
                return
            executor = executor._parent
        if executor is None:
            raise RuntimeError("the thread that was to make this call does not wait for it any more")
        send(executor, call)  # asgiref's own

    def _put(self, call: QueuedCall) -> bool:
        """Queue *call*. Return whether it is sure to be made here.

        Race: 1. We put it into `_calls`, then read `_closed`. 2. `close` sets `_closed`, then empties `_calls`. The
        deque orders the two. If `close` has just made the call and we return `False`, the next executor gets it too,
        and finds it made.
        """
        if self._closed:
            return False
        self._calls.append(call)
        self._wake()
        return not self._closed

    def _wake(self) -> None:
        """Wake the thread.

        Race: 1. We put into `_wake_ups`, then read `_wake_loop`. 2. `_wait_in_loop` sets `_wake_loop`, then looks into
        `_wake_ups`. The queue orders the two.
        """
        self._wake_ups.put(None)
        wake_loop = self._wake_loop
        if wake_loop is not None:
            wake_loop()

    def finish(self, _: object = None) -> None:
        """Say that what the thread waits for has ended. From any thread, and more than once."""
        self._finished = True
        self._wake()

    def serve(self, is_gone: Callable[[], bool], call: TaskCall | None = None, *, lending: bool = False) -> bool:
        """Make the calls that are sent here, until `finish`. Return `False` if the loop is gone before that.

        Woken by: whoever sends a call, and `finish`. If neither comes, a look every `CHECK_SECONDS`.

        Args:
            is_gone: Whether the loop that the thread waits for will never answer.
            call: What that loop runs for the thread.
            lending: Whether the thread is a worker. It lends its slot while it waits, and is cancelled with its task.
        """
        self._fail_what_was_interrupted()
        while True:
            while self._calls:
                self._make_first()
            if self._finished:
                return True
            if lending and self._wake_ups.empty():
                try:
                    run_in_eventloop_sync(self._wait_in_loop, call)
                except LoopEndedError:
                    return self._finished
            try:
                self._wake_ups.get(timeout=CHECK_SECONDS)
            except Empty:
                if is_gone():
                    return self._finished
                if call is not None:
                    call.repeat_lost_steps()

    def _make_first(self) -> None:
        call = self._current = self._calls[0]
        call.run()
        self._calls.popleft()
        self._current = None  # do not keep its arguments and its result while we wait

    def _fail_what_was_interrupted(self) -> None:
        """Fail the call that this thread was making when a signal handler raised."""
        call = self._current
        if call is not None:
            call.fail(_interrupted())
            if self._calls and self._calls[0] is call:
                self._calls.popleft()
            self._current = None

    async def _wait_in_loop(self, call: TaskCall | None) -> None:
        """Wait for a wake-up, in the worker's loop."""
        loop, event = current_loop(), Event()

        def wake_loop() -> None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(event.set)

        self._wake_loop = wake_loop
        try:
            if call is not None:
                call.repeat_lost_steps_here()  # it was sent before us: if it has not come, it is lost
            if self._wake_ups.empty():
                await event.wait()
        finally:
            self._wake_loop = None

    def close(self, *, interrupted: bool) -> None:
        """Accept no more calls. Make those that are left; or fail them, if *interrupted*."""
        self._closed = True
        self._fail_what_was_interrupted()
        while True:
            try:
                call = self._calls[0]
            except IndexError:
                break
            if interrupted:
                call.fail_unless_begun(_interrupted())
                self._calls.popleft()
            else:
                self._make_first()


def _interrupted() -> ExecutorError:
    return ExecutorError("sync_to_async", "was not made: its thread was interrupted")
