"""The worker processes of this process: one pool for all event loops and all sync callers.

Guarantees:

- The worker that was busy last is taken first. So surplus workers stay idle, and end.
- No worker is started for a call while another one is starting whose call will never begin.
- At exit all workers end within `STOP_SECONDS`, and their output is still passed on.
- A forked child starts with no workers.

There is no lock. A worker changes its owner in one step, which no signal handler and no other thread can interrupt
(`_worker.py` lists the owners). Only the pool's own thread knows which calls wait for which workers. It takes one event
at a time from a queue.

Assumption: the functions in its queue do not raise. If one does, the error is shown and the thread goes on.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

from .._core._errors import LoopEndedError, WorkerProcessError
from .._core._lifetime import at_exit, in_forked_child
from . import _child
from ._inbox import Inbox
from ._worker import KEPT, TRIES, WorkerProcess

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core._futures import OneShotFuture
    from ._call import ProcessCall

STOP_SECONDS: Final = 1.0  # how long to wait for the workers at exit; arbitrary
LAST_OUTPUT_SECONDS: Final = 0.2  # how much of that to wait for the last output; arbitrary
STOP_CHECK_SECONDS: Final = 0.002  # how often to check at exit; arbitrary
_pop_idle: Final = deque[WorkerProcess].pop
_pop_leased: Final = list[WorkerProcess].pop


@final
class Pool:
    """All workers, the idle ones among them, and the calls that wait for one."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin with no workers. A forked child does so too, because the old ones belong to its parent."""
        self.exiting = False
        self.workers: set[WorkerProcess] = set()  # those that have not ended
        self._idle: deque[WorkerProcess] = deque()  # the last one was busy last
        self._events: Inbox[Callable[[], object]] = Inbox()
        self._main_claim = threading.Lock()  # acquired by the pool's thread; never released
        self._thread: int | None = None  # the identifier of the pool's thread, once that runs
        # Only the pool's thread changes these
        self._waiting: deque[ProcessCall] = deque()
        self._starting: dict[WorkerProcess, OneShotFuture[None] | None] = {}  # the future of `warm_up`, or None

    # From any thread

    def take_any(self, leased: list[WorkerProcess]) -> None:
        """Move an idle worker to *leased*, if there is one."""
        with suppress(IndexError):
            leased.extend(map(_pop_idle, (self._idle,)))  # one step: a builtin calls a builtin

    def return_from(self, leased: list[WorkerProcess]) -> None:
        """Move the worker in *leased*, which is idle again, back to the idle workers."""
        with suppress(IndexError):
            self._idle.extend(map(_pop_leased, (leased,)))

    def take(self, worker: WorkerProcess) -> bool:
        """Take *worker* if it is idle. Return whether it was."""
        try:
            self._idle.remove(worker)
        except (ValueError, IndexError):  # IndexError: another thread has taken one meanwhile
            return False
        return True

    def give_back(self, worker: WorkerProcess) -> None:
        """Make *worker*, which is idle or has just started, available to other calls."""
        if self._waiting or self._starting:  # if a call joins just after this look, its own new worker serves it
            self._events.put(lambda: self._serve(worker))
        else:
            self._idle.append(worker)

    def has_enough(self) -> bool:
        """Return whether as many workers are idle as are kept."""
        return len(self._idle) >= KEPT

    def submit(self, call: ProcessCall) -> None:
        """Have the next idle worker run *call*, or a new one."""
        self._tell(call.name, lambda: self._add(call))

    def resubmit(self, call: ProcessCall) -> None:
        """Have another worker run *call*. Its first worker was started by the pool's thread, so that thread runs."""
        self._events.put(lambda: self._add(call))

    def start_first_worker(self, call: ProcessCall) -> None:
        """Start a first worker, because *call* is about to come. Do nothing if there are workers."""
        if self.workers:
            return
        worker = WorkerProcess(self)
        self.workers.add(worker)  # before its thread runs, so that `stop` waits for it
        try:
            self._tell(call.name, lambda: self._start(None, worker))
        except BaseException as exc:
            self.workers.discard(worker)
            if not isinstance(exc, WorkerProcessError):  # such an error is left to the call itself
                raise

    def warm_up(self, ready: OneShotFuture[None]) -> None:
        """Start a worker before there is a call for it. *ready* is written when it has started, or could not."""
        self._tell("warm_up_processpool", lambda: self._start(ready, WorkerProcess(self)))

    def forget(self, worker: WorkerProcess, error: _child.NotStartedError | None = None) -> None:
        """Note that *worker* has ended, or could not start."""
        self.workers.discard(worker)
        if error is not None:
            self._events.put(lambda: self._fail(worker, error))

    def _tell(self, name: str, event: Callable[[], object]) -> None:
        if self.exiting:
            raise LoopEndedError("the interpreter is exiting")
        try:
            _child.refuse_in_preparation()
            if self._thread is None:
                _child.start_worker_thread(self._run, "unfazed-processpool", self._events)
        except _child.NotStartedError as exc:
            raise WorkerProcessError(name, str(exc)) from None
        self._events.put(event)

    def is_needed_here(self) -> bool:
        """Return whether this thread is needed to start workers: a finalizer in it must not wait for one."""
        return threading.get_ident() == self._thread or _child.holds_lock()

    # In the pool's own thread

    def _run(self, events: Inbox[Callable[[], object]]) -> None:
        if not self._main_claim.acquire(blocking=False):  # two callers have started such a thread at once
            return
        self._thread = threading.get_ident()
        while events is self._events:  # not after `reset`
            try:
                events.get()()
            except BaseException as exc:  # no memory left, say: this thread must go on
                sys.excepthook(type(exc), exc, exc.__traceback__)

    def _add(self, call: ProcessCall) -> None:
        leased: list[WorkerProcess] = []
        self.take_any(leased)
        if leased:
            leased[0].hand_over(call)
            return
        self._waiting.append(call)
        self._forget_decided()
        if len(self._waiting) > sum(ready is None for ready in self._starting.values()):
            self._start(None, WorkerProcess(self))

    def _forget_decided(self) -> None:
        self._waiting = deque(call for call in self._waiting if not call.is_decided())

    def _start(self, ready: OneShotFuture[None] | None, worker: WorkerProcess) -> None:
        self._starting[worker] = ready
        self.workers.add(worker)
        try:
            worker.start()
        except _child.NotStartedError as exc:
            self.forget(worker, exc)

    def _serve(self, worker: WorkerProcess) -> None:
        """Give *worker*, which is idle or has just started, to the call that has waited longest."""
        ready = self._starting.pop(worker, None)
        if ready is not None:
            ready.write(None, None)
        if self._waiting:
            worker.hand_over(self._waiting.popleft())
        else:
            self._idle.append(worker)

    def _fail(self, worker: WorkerProcess, error: _child.NotStartedError) -> None:
        """Fail, or try again, the call that waits for *worker*, which could not start."""
        ready = self._starting.pop(worker, None)
        if ready is not None:
            ready.write(None, WorkerProcessError("warm_up_processpool", str(error)))
            return
        self._forget_decided()
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
        """End all workers: let idle ones end by themselves, kill busy ones. Refuse calls from now on."""
        self.exiting = True
        deadline = time.monotonic() + seconds
        while (self.workers or _child.children) and time.monotonic() < deadline:
            leased: list[WorkerProcess] = []
            self.take_any(leased)
            for worker in leased:
                worker.retire()
            if not leased:
                for worker in self.workers.copy():  # atomic, unlike `tuple`: ending threads change the set
                    if not worker.retires:
                        worker.kill()
                if not self.workers:  # a worker's child process may hold its output open
                    deadline = min(deadline, time.monotonic() + LAST_OUTPUT_SECONDS)
                time.sleep(STOP_CHECK_SECONDS)
        for child in _child.children.copy():  # atomic, as above
            child.disown()


pool = Pool()


def _stop_at_exit() -> None:
    pool.stop(STOP_SECONDS)


at_exit(_stop_at_exit)
in_forked_child(pool.reset)
