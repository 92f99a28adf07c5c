"""Threads with an event loop: where `async_to_sync` runs its call if the calling thread is no worker of a loop.

Each calling thread has a `LoopThread` of its own, which starts with its first call. `_looprunner.py` has what runs in
that thread: the loop, and the cleanup after each call.

Guarantees:

- A `LoopThread` ends with the thread that it belongs to, or when nobody holds it any more; at exit, all of them end.
- A forked child makes new ones.
- A call that waits for a thread that has died, or that stayed in the parent process, fails.
- A signal handler or a finalizer can make a call while its thread waits for another one. It gets another `LoopThread`.

The threads are daemons, because the interpreter waits for others before it calls us at exit. `_threads.py` has the
rules by which threads meet.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
from typing import TYPE_CHECKING, final

from unfazed.concurrency import LoopEndedError

from ._executorcall import CallExecutor
from ._looprunner import LoopRunner, loops, runners, threads
from ._singlethreadexecutor import end_single_thread_executors

if TYPE_CHECKING:
    from contextvars import Context

    from ._currentthreadexecutor import CurrentThreadExecutor
    from ._taskcall import TaskCall
    from ._threads import QueuedCall

EXIT_SECONDS = 3.0  # at exit, how long all loop threads together may take to end; arbitrary

_EXITING = "the interpreter is exiting"

_thread = threading.local()
_left_in_parent: list[object] = []  # after a fork: closing a loop that is shared with the parent would disturb it
_exiting = False


@final
class LoopThread(CallExecutor):
    """A thread with an event loop, which runs one call after another. It starts with the first one.

    This is what others hold. The thread holds the `LoopRunner`, so that it ends when nobody holds this.
    """

    def __init__(self) -> None:
        if _exiting:
            raise LoopEndedError(_EXITING)
        self._runner = LoopRunner(self)
        self._calls_by_thread: dict[int, _LoopThreadCall] = {}  # what the thread with this id waits for

    def takes_no_more_calls(self) -> bool:
        """Return whether it was shut down, or its thread stayed in the parent process at a fork."""
        thread_runner = self._runner.thread_runner
        return thread_runner.closed or thread_runner.is_of_the_parent_process()

    def waits_for_this_thread(self) -> bool:
        """Return whether a call from this thread would wait for itself.

        So it is if the thread waits here already and a signal handler calls, or if it is the loop's own and a finalizer
        calls.
        """
        call = self._calls_by_thread.get(threading.get_ident())
        return (call is not None and not call.ended) or self._runner.thread_runner.is_this_thread()

    def send(self, call: QueuedCall) -> None:
        """Have the thread make *call* between the async calls, while the loop is stopped."""
        if self.takes_no_more_calls():
            raise RuntimeError("cannot schedule new futures after shutdown")
        self._runner.thread_runner.send(call)

    def run(self, call: TaskCall, caller: CurrentThreadExecutor, context: Context) -> None:
        """Have the loop run *call* in *context*, and wait until all that it leaves there has ended."""
        me = threading.get_ident()
        sent = _LoopThreadCall(self._runner, call, caller, context)

        def send() -> bool:
            self._calls_by_thread[me] = sent  # before it is sent: a signal handler's call must not wait behind it
            try:
                self._runner.thread_runner.send(sent)
            except RuntimeError as exc:  # too many threads, or the interpreter is exiting
                raise LoopEndedError(f"the thread of an event loop could not be started: {exc}") from exc
            return True

        try:
            call.wait(send, caller, sent.is_gone)
            self._leave(me, sent)
        except BaseException:
            self._leave(me, sent)
            raise
        sent.raise_error()

    def _leave(self, me: int, sent: _LoopThreadCall) -> None:
        self._calls_by_thread.pop(me, None)
        if not sent.ended and not sent.task_call.is_given_up():  # nobody waits for it: the next call must not either
            self.shutdown(wait=False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread after the calls that it has been sent so far."""
        self._runner.thread_runner.close()
        if wait:
            self._runner.thread_runner.join()


@final
class _LoopThreadCall:
    """A `TaskCall` on its way to a loop thread. A `concurrent.futures.Future` would take longer than all the rest."""

    __slots__ = ("_caller", "_context", "_error", "_runner", "_thread", "ended", "task_call")

    def __init__(self, runner: LoopRunner, call: TaskCall, caller: CurrentThreadExecutor, context: Context) -> None:
        self._runner = runner
        self.task_call = call
        self._caller = caller
        self._context = context
        self._thread: threading.Thread | None = None  # the one that has begun it
        self._error: BaseException | None = None
        self.ended = False

    def run(self) -> None:
        self._thread = threading.current_thread()
        try:
            self._runner.run(self.task_call, self._context, self._caller)
        except BaseException as exc:
            self._error = exc
        self._end()

    def fail_unless_begun(self, error: BaseException) -> None:
        if self.task_call.give_up():
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        self._error = error
        self._end()

    def _end(self) -> None:
        self.ended = True
        self._caller.finish()

    def is_gone(self) -> bool:
        """Return whether no thread will ever end the call. If none has begun it, make sure that there is one."""
        if self._thread is not None:
            return not self._thread.is_alive()
        thread_runner = self._runner.thread_runner
        if thread_runner.is_of_the_parent_process():
            return True
        thread_runner.ensure_thread()
        return False

    def raise_error(self) -> None:
        """Raise what another task has ended the loop with, for example `SystemExit`."""
        error, self._error = self._error, None
        if error is not None:
            try:
                raise error
            finally:
                del error


def loop_thread_of_this_thread() -> LoopThread | None:
    """Return the `LoopThread` of this thread; `None` if a call to it would wait for itself."""
    own: LoopThread | None = getattr(_thread, "own", None)  # goes when the thread goes
    if own is None or own.takes_no_more_calls():
        own = _thread.own = LoopThread()
    return None if own.waits_for_this_thread() else own


def is_stopped(loop: object) -> bool:
    """Return whether *loop* will never run what it was sent: it is closed, or one of ours between two calls."""
    if not isinstance(loop, asyncio.AbstractEventLoop):
        return False
    return loop.is_closed() or (not loop.is_running() and loop in loops)


def end_loop_threads(seconds: float = EXIT_SECONDS) -> None:
    """End all loop threads, and wait for that, at most *seconds*."""
    deadline = time.monotonic() + seconds
    for runner in runners.copy():
        runner.end_at_exit()
    ending = threads.copy()
    for thread_runner in ending:
        thread_runner.close()
    for thread_runner in ending:
        thread_runner.join(max(0.0, deadline - time.monotonic()))


def _end_at_exit() -> None:
    global _exiting
    end_single_thread_executors()  # first: their threads may wait for loop threads
    _exiting = True
    end_loop_threads()


def _reset_after_fork() -> None:
    _left_in_parent.extend(runners)
    runners.clear()
    threads.clear()
    loops.clear()


atexit.register(_end_at_exit)
if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_reset_after_fork)
