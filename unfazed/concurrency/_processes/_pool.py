"""The worker processes of this process: one pool for all event loops and all sync callers.

Guarantees: whoever gives a worker back gives it to the next one; the newest is taken first, so that the others have been
idle for longest. At exit all of them end within `STOP_SECONDS`, and what they have printed is passed on. A forked child
starts with none.

No lock: a worker goes from one owner to the next in one step, in which no signal handler can come, and no other thread
(`_worker.py` says who the owners are).
"""

from __future__ import annotations

import atexit
import os
import time
from collections import deque
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING, Final, final

from .._errors import LoopEndedError, WorkerProcessError
from . import _starting
from ._worker import KEPT, WorkerProcess

if TYPE_CHECKING:
    from .._calls import Answer
    from ._call import ProcessCall

STOP_SECONDS: Final = 1.0  # at exit, how long to wait for the workers; arbitrary
STOP_CHECK_SECONDS: Final = 0.002  # how often to look meanwhile; arbitrary


@final
class Pool:
    """All workers, and which of them are idle."""

    def __init__(self) -> None:
        self.workers: set[WorkerProcess] = set()  # all that have not ended
        self._idle: deque[WorkerProcess] = deque()  # the last one was busy last
        self.exiting = False

    def take_any(self, lease: list[WorkerProcess]) -> None:
        """Move an idle worker to *lease*, if there is one."""
        with suppress(IndexError):
            lease.extend(islice(iter(self._idle.pop, None), 1))  # one step: a builtin that calls another

    def return_from(self, lease: list[WorkerProcess]) -> None:
        """Move the worker in *lease*, which is idle again, to the others."""
        with suppress(IndexError):
            self._idle.extend(islice(iter(lease.pop, None), 1))

    def take(self, worker: WorkerProcess) -> bool:
        """Take *worker* if it is idle. Return whether it was."""
        try:
            self._idle.remove(worker)
        except (ValueError, IndexError):  # the latter where another thread takes one meanwhile
            return False
        return True

    def give_back(self, worker: WorkerProcess) -> None:
        """Have others take *worker*, which is idle."""
        self._idle.append(worker)
        if self.exiting and self.take(worker):  # either we see that, or `stop` sees the worker
            worker.retire()

    def has_others_than(self, worker: WorkerProcess) -> bool:
        """Return whether there are as many idle workers as are kept, without *worker*."""
        return len(self._idle) >= KEPT

    def submit(self, call: ProcessCall) -> None:
        """Have an idle worker run *call*, or a new one."""
        lease: list[WorkerProcess] = []
        try:
            self.take_any(lease)
            if lease:
                lease[0].hand_over(call)
            else:
                self._start_worker(call)
        except BaseException:  # of a signal handler, for one: the thread of the worker gives it back
            if lease:
                lease[0].hand_over(call)
            raise

    def start_ahead(self, ready: Answer[None]) -> None:
        """Start a worker that nobody has a call for yet; *ready* is told."""
        worker = WorkerProcess(self, ready)
        try:
            self._start(worker, "warm_up_processpool")
        except Exception as exc:
            ready.write(None, exc)

    def _start_worker(self, call: ProcessCall) -> None:
        worker = WorkerProcess(self)
        worker.hand_over(call)
        self._start(worker, call.name)

    def _start(self, worker: WorkerProcess, name: str) -> None:
        try:
            _starting.refuse_in_preparation()
            if self.exiting:
                raise LoopEndedError("the interpreter is exiting")
            self.workers.add(worker)
            worker.start()
        except _starting.NotStartedError as exc:
            raise WorkerProcessError(name, str(exc)) from None
        except LoopEndedError:
            raise
        except RuntimeError as exc:
            self.workers.discard(worker)
            raise WorkerProcessError(name, f"could not start ({type(exc).__qualname__}: {exc})") from exc

    def forget(self, worker: WorkerProcess) -> None:
        """Note that *worker* has ended."""
        self.workers.discard(worker)

    def stop(self, seconds: float) -> None:
        """End all workers: what is idle by itself, and what is busy at once. At exit."""
        self.exiting = True
        idle: list[WorkerProcess] = []
        with suppress(IndexError):
            while True:
                idle.append(self._idle.pop())
        for worker in idle:
            worker.retire()
        for worker in tuple(self.workers):
            if worker not in idle:
                worker.kill()
        deadline = time.monotonic() + seconds
        while (self.workers or _starting.children) and time.monotonic() < deadline:
            time.sleep(STOP_CHECK_SECONDS)
        for child in tuple(_starting.children):  # with a thread that does not end, or a child that has its output
            child.kill()

    def start_afresh(self) -> None:
        """After a fork: the workers are the parent's."""
        self.workers = set()
        self._idle = deque()
        self.exiting = False


pool = Pool()


def _stop_at_exit() -> None:
    pool.stop(STOP_SECONDS)


atexit.register(_stop_at_exit)
if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=pool.start_afresh)
