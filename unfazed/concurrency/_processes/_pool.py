"""The worker processes of this process: one pool for all event loops and all sync callers.

Guarantees: the worker that was busy last is taken first, so that the others have been idle for longest. No worker is
started for a call as long as one is starting that nobody waits for any more. At exit all of them end within
`STOP_SECONDS`, and what they have printed is passed on. A forked child starts with none.

No lock. A worker goes from one owner to the next in one step, in which no signal handler can come, and no other thread
(`_worker.py` says who the owners are). Which calls wait for which workers is known to one thread alone, which takes one
event after the other from a queue. Assumption: what it calls raises nothing.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

from .._core._errors import LoopEndedError, WorkerProcessError
from . import _starting
from ._inbox import Inbox
from ._worker import KEPT, TRIES, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core._futures import OneShotFuture
    from ._call import ProcessCall

STOP_SECONDS: Final = 1.0  # at exit, how long to wait for the workers; arbitrary
LAST_OUTPUT_SECONDS: Final = 0.2  # of that, when the workers have ended, for their output; arbitrary
STOP_CHECK_SECONDS: Final = 0.002  # how often to look meanwhile; arbitrary
_pop_idle: Final = deque[WorkerProcess].pop
_pop_leased: Final = list[WorkerProcess].pop


@final
class Pool:
    """All workers, which of them are idle, and who waits for one."""

    def __init__(self) -> None:
        self.start_afresh()

    def start_afresh(self) -> None:
        """Begin with nothing: also in a forked child, where all that there was is the parent's."""
        self.exiting = False
        self.workers: set[WorkerProcess] = set()  # all that have not ended
        self._idle: deque[WorkerProcess] = deque()  # the last one was busy last
        self._events: Inbox[Callable[[], object]] = Inbox()
        self._main_claim = threading.Lock()  # taken by the thread that takes the events; never released
        self._thread: int | None = None  # its number, once it runs
        # For that thread alone
        self._waiting: deque[ProcessCall] = deque()
        self._starting: dict[WorkerProcess, OneShotFuture[None] | None] = {}  # and who waits for nothing but its start

    # From any thread

    def take_any(self, lease: list[WorkerProcess]) -> None:
        """Move an idle worker to *lease*, if there is one."""
        with suppress(IndexError):
            lease.extend(map(_pop_idle, (self._idle,)))  # one step: a builtin that calls another

    def return_from(self, lease: list[WorkerProcess]) -> None:
        """Move the worker in *lease*, which is idle again, to the others."""
        with suppress(IndexError):
            self._idle.extend(map(_pop_leased, (lease,)))

    def take(self, worker: WorkerProcess) -> bool:
        """Take *worker* if it is idle. Return whether it was."""
        try:
            self._idle.remove(worker)
        except (ValueError, IndexError):  # the latter where another thread takes one meanwhile
            return False
        return True

    def give_back(self, worker: WorkerProcess) -> None:
        """Have others take *worker*, which is idle or has just started."""
        if self._waiting or self._starting:  # perhaps; who waits gets the one that starts for him otherwise
            self._events.put(lambda: self._serve(worker))
        else:
            self._idle.append(worker)

    def has_others_than(self, worker: WorkerProcess) -> bool:
        """Return whether there are as many idle workers as are kept, without *worker*."""
        return len(self._idle) >= KEPT

    def submit(self, call: ProcessCall) -> None:
        """Have the next idle worker run *call*, or a new one."""
        self._tell(call.name, lambda: self._add(call))

    def resubmit(self, call: ProcessCall) -> None:
        """Have another worker run *call*: one has ended, so the thread runs that takes events."""
        self._events.put(lambda: self._add(call))

    def start_early(self, call: ProcessCall) -> None:
        """Start the first worker for *call*, which is about to come."""
        if self.workers:
            return
        worker = WorkerProcess(self)
        self.workers.add(worker)  # now, so that `stop` waits for it
        try:
            self._tell(call.name, lambda: self._start(None, worker))
        except BaseException as exc:
            self.workers.discard(worker)
            if not isinstance(exc, WorkerProcessError):  # else the call itself says so, or that the program is exiting
                raise

    def start_ahead(self, ready: OneShotFuture[None]) -> None:
        """Start a worker that nobody has a call for yet; *ready* is told."""
        self._tell("warm_up_processpool", lambda: self._start(ready, WorkerProcess(self)))

    def forget(self, worker: WorkerProcess, error: _starting.NotStartedError | None = None) -> None:
        """Note that *worker* has ended, or could not start."""
        self.workers.discard(worker)
        if error is not None:
            self._events.put(lambda: self._fail(worker, error))

    def _tell(self, name: str, event: Callable[[], object]) -> None:
        if self.exiting:
            raise LoopEndedError("the interpreter is exiting")
        try:
            _starting.refuse_in_preparation()
            if self._thread is None:
                _starting.start_thread(self._run, "unfazed-processpool", self._events)
        except _starting.NotStartedError as exc:
            raise WorkerProcessError(name, str(exc)) from None
        self._events.put(event)

    def is_interrupted(self) -> bool:
        """Return whether a finalizer has come in between on a thread that workers need in order to start."""
        return threading.get_ident() == self._thread or _starting.is_interrupted()

    # In its own thread

    def _run(self, events: Inbox[Callable[[], object]]) -> None:
        if not self._main_claim.acquire(blocking=False):  # two have come at once
            return
        self._thread = threading.get_ident()
        while events is self._events:  # or else it has begun anew
            try:
                events.get()()
            except BaseException as exc:  # of memory, for one: this thread must go on
                sys.excepthook(type(exc), exc, exc.__traceback__)

    def _add(self, call: ProcessCall) -> None:
        lease: list[WorkerProcess] = []
        self.take_any(lease)
        if lease:
            lease[0].hand_over(call)
            return
        self._waiting.append(call)
        self._forget_withdrawn()
        if len(self._waiting) > sum(ready is None for ready in self._starting.values()):
            self._start(None, WorkerProcess(self))

    def _forget_withdrawn(self) -> None:
        self._waiting = deque(call for call in self._waiting if not call.is_claimed())

    def _start(self, ready: OneShotFuture[None] | None, worker: WorkerProcess) -> None:
        self._starting[worker] = ready
        self.workers.add(worker)
        try:
            worker.start()
        except _starting.NotStartedError as exc:
            self.forget(worker, exc)

    def _serve(self, worker: WorkerProcess) -> None:
        """Give *worker*, which is idle or has just started, to who has waited longest."""
        ready = self._starting.pop(worker, None)
        if ready is not None:
            ready.write(None, None)
        if self._waiting:
            worker.hand_over(self._waiting.popleft())
        else:
            self._idle.append(worker)

    def _fail(self, worker: WorkerProcess, error: _starting.NotStartedError) -> None:
        """Tell who has waited for *worker*, which could not start."""
        ready = self._starting.pop(worker, None)
        if ready is not None:
            ready.write(None, WorkerProcessError("warm_up_processpool", str(error)))
            return
        self._forget_withdrawn()
        if self._waiting:
            call = self._waiting[0]
            call.tries += 1
            if error.again and call.tries < TRIES and not self.exiting:
                self._start(None, WorkerProcess(self))
            else:
                self._waiting.popleft()
                call.fail(WorkerProcessError(call.name, str(error)))

    # At exit, and after a fork

    def stop(self, seconds: float) -> None:
        """End all workers: what is idle by itself, and what is busy at once. No call is taken from now on."""
        self.exiting = True
        deadline = time.monotonic() + seconds
        while (self.workers or _starting.children) and time.monotonic() < deadline:
            lease: list[WorkerProcess] = []
            self.take_any(lease)
            for worker in lease:
                worker.retire()
            if not lease:
                for worker in self.workers.copy():  # one step, unlike `tuple`: threads that end change it meanwhile
                    if not worker.retires:
                        worker.kill()
                if not self.workers:  # there is nothing but output left, which a child of a worker may hold open
                    deadline = min(deadline, time.monotonic() + LAST_OUTPUT_SECONDS)
                time.sleep(STOP_CHECK_SECONDS)
        for child in _starting.children.copy():  # as above
            child.disown()


pool = Pool()


def _stop_at_exit() -> None:
    pool.stop(STOP_SECONDS)


atexit.register(_stop_at_exit)
if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=pool.start_afresh)
