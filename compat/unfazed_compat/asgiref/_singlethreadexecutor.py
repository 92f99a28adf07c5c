"""Executors with one thread of their own. They make the thread-sensitive calls for which no thread waits.

Guarantees:

- The thread starts with the first call. It ends when nobody holds the executor any more, or after `shutdown`.
- At exit, each executor makes the calls that it has been sent, and the interpreter waits for it.
- In a forked child each executor starts a new thread. asgiref's own executors hang there.

`_threads.py` has the rules by which threads meet.
"""

from __future__ import annotations

import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, final

from unfazed.concurrency import ExecutorError

from ._executorcall import CallExecutor
from ._threads import ThreadRunner, forget_threads_after_fork, start_thread

if TYPE_CHECKING:
    from ._threads import QueuedCall

_executors: weakref.WeakSet[SingleThreadExecutor] = weakref.WeakSet()
_running: dict[ThreadRunner, None] = {}  # those of the executors that have a thread
_exiting = False
_end_is_unwatched = False  # whether this is a forked child, and no thread waits for its end yet


@final
class SingleThreadExecutor(CallExecutor, ThreadPoolExecutor):
    """An executor with one thread of its own. It is a `ThreadPoolExecutor` because asgiref's are."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self.forget_thread()
        _executors.add(self)

    def forget_thread(self) -> None:
        """Forget the thread, which has ended, or stayed in the parent process. The next call starts another one."""
        self._thread_runner = ThreadRunner(self, "unfazed-thread-sensitive", _running)
        self._threads = self._thread_runner.threads  # programs look at this attribute of `ThreadPoolExecutor`

    def send(self, call: QueuedCall) -> None:
        if self._thread_runner.closed or _exiting:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self._thread_runner.send(call)
        if _end_is_unwatched:
            _watch_the_end()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread after the calls that it has been sent."""
        self._thread_runner.close()
        if cancel_futures:
            self._thread_runner.fail_all(
                ExecutorError("a call of sync_to_async()", "was cancelled: its executor was shut down")
            )
            self._thread_runner.wake_to_end()  # again: `fail_all` may have taken the first wake-up out of the queue
        if wait:
            self._thread_runner.join()


def end_single_thread_executors() -> None:
    """At exit: have all executors make the calls that they have been sent, and wait for them."""
    global _exiting
    _exiting = True
    running = _running.copy()
    for runner in running:
        runner.close()
    for runner in running:
        runner.join()


def _watch_the_end() -> None:
    """Start the thread that ends the executors of a forked child.

    Workaround: a child of `multiprocessing` ends by `os._exit`, and so without `atexit`
    (https://docs.python.org/3/library/atexit.html). But before that it waits for all threads that are no daemons.
    """
    global _end_is_unwatched
    _end_is_unwatched = False
    try:
        start_thread(_end_after_other_threads, "unfazed-end-of-child", daemon=False)
    except BaseException:
        _end_is_unwatched = True
        raise


def _end_after_other_threads() -> None:
    """End the executors when all other threads have ended that the interpreter waits for."""
    known = threading.main_thread(), threading.current_thread()
    known[0].join()
    while others := [each for each in threading.enumerate() if each not in known and not each.daemon]:
        others[0].join()
    end_single_thread_executors()


def _reset_after_fork() -> None:
    """In a forked child, while it has one thread."""
    global _end_is_unwatched
    _end_is_unwatched = True
    _running.clear()
    forget_threads_after_fork()
    for executor in list(_executors):
        executor.forget_thread()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_reset_after_fork)
