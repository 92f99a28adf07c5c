"""`statistics`: what goes on inside, as numbers."""

from __future__ import annotations

import math
import os
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from .._core._calls import total
from .._eventloops import _background
from .._eventloops._limiters import thread_limiter
from .._processes._limiter import default_limiter as process_limiter
from .._processes._pool import pool
from .._threads._threadcall import abandoned_calls
from ._lists import Accounts, accounts, live_calls, made, since

if TYPE_CHECKING:
    from .._core._calls import UserCall
    from .._core._observing import CallPlace
    from .._processes._worker import WorkerProcess

WorkerState: TypeAlias = Literal["starting", "idle", "busy", "ending"]


@dataclass(frozen=True)
class LimiterStatistics:
    """Who holds and who wants slots of one limiter.

    Attributes:
        limiter_id: The `id()` of the limiter.
        default_for: "threads" or "processes" if it is anyio's default limiter of a loop; `None` for one of yours.
        loop: The name of the thread whose loop has this default limiter; `None` for one of yours.
        total: Its `total_tokens`; `None` if they are infinite, as JSON knows no such number.
        running: Calls that hold a slot and run.
        lent: Calls that hold a slot and wait in a call of ours, so that those they wait for may use it.
        waiting: Calls that queue for a slot.
        extra: Of those that run or have lent their slot, how many were let in because all others stood still.
        borrowed: Tokens that others have borrowed by anyio's own means.
        abandoned: Of those that run or have lent their slot, how many nobody waits for any more.
        longest_wait: How many seconds the oldest of those that queue has waited; 0 if none does.
    """

    limiter_id: int
    default_for: Literal["threads", "processes"] | None
    loop: str | None
    total: int | None
    running: int
    lent: int
    waiting: int
    extra: int
    borrowed: int
    abandoned: int
    longest_wait: float


@dataclass(frozen=True)
class AbandonedThread:
    """A worker thread that runs on though nobody waits for it.

    Attributes:
        function: The name of the function that it runs.
        thread: The name of the thread.
        seconds: For how long it has been abandoned.
        seconds_run: For how long it has run.
    """

    function: str
    thread: str
    seconds: float
    seconds_run: float


@dataclass(frozen=True)
class WorkerStatistics:
    """A worker process.

    Attributes:
        pid: Its process id; `None` before the process exists.
        state: "starting", "idle", "busy" or "ending".
        function: The name of the function that it runs; `None` if it runs none.
        seconds: For how long it has run that function; 0 if it runs none.
        calls: How many calls it was sent.
        memory: The bytes of memory that it occupies; `None` where that cannot be read without waiting: not on Linux.
    """

    pid: int | None
    state: WorkerState
    function: str | None
    seconds: float
    calls: int
    memory: int | None


@dataclass(frozen=True)
class BackgroundLoopStatistics:
    """The background event loop.

    Attributes:
        backend: "asyncio" or "trio".
        running: Whether it takes calls.
        calls: How many tasks of ours it runs: calls of async functions, and what other calls need of it.
    """

    backend: str
    running: bool
    calls: int


@dataclass(frozen=True)
class PlaceStatistics:
    """The calls in one place. All but the first two count since the process began.

    Attributes:
        waiting: Calls that have not begun.
        running: Calls that have begun, abandoned ones included.
        returned: Calls whose function has returned.
        raised: Calls that have raised something else than the following.
        cancelled: Calls that were cancelled, or interrupted.
        timed_out: Calls whose `timeout` is over.
        abandoned: Calls that were cancelled, and whose threads were abandoned.
        worker_died: Calls whose worker process has ended, or could not start.
    """

    waiting: int
    running: int
    returned: int
    raised: int
    cancelled: int
    timed_out: int
    abandoned: int
    worker_died: int


@dataclass(frozen=True)
class CallStatistics:
    """The calls in each place.

    Attributes:
        threadpool: Calls in worker threads, the steps of iterators and context managers included.
        processpool: Calls in worker processes.
        executor: Calls in executors.
        eventloop: Calls of async functions, the steps of iterators and context managers included.
    """

    threadpool: PlaceStatistics
    processpool: PlaceStatistics
    executor: PlaceStatistics
    eventloop: PlaceStatistics


@dataclass(frozen=True)
class Statistics:
    """What goes on inside, at one moment.

    Attributes:
        limiters: Each limiter that a call of ours has used, as long as it lives.
        abandoned_threads: The threads that run on though nobody waits for them, the oldest first.
        workers: The worker processes.
        background_loop: The background event loop; `None` before its first use.
        calls: The calls in each place.
    """

    limiters: tuple[LimiterStatistics, ...]
    abandoned_threads: tuple[AbandonedThread, ...]
    workers: tuple[WorkerStatistics, ...]
    background_loop: BackgroundLoopStatistics | None
    calls: CallStatistics


def statistics() -> Statistics:
    """Return what goes on inside: who holds the slots, how long the queues are, how calls have ended.

    It waits for nothing and takes some ten microseconds, and as much again for each worker process. It may be called
    from any thread, from a signal handler, in a forked child, which counts from zero, and by exit functions.
    `dataclasses.asdict` makes it ready for JSON.

    Returns:
        Frozen dataclasses. They are exact if nothing changes at that moment.

    Example:
        `queue = max((each.waiting for each in statistics().limiters), default=0)`
    """
    now = time.monotonic()
    calls = live_calls()
    return Statistics(
        limiters=tuple(_limiter(each, now) for each in accounts()),
        abandoned_threads=_abandoned_threads(now),
        workers=tuple(worker_statistics(worker, now) for worker in workers()),
        background_loop=_background_loop(),
        calls=CallStatistics(
            threadpool=_place("threadpool", calls),
            processpool=_place("processpool", calls),
            executor=_place("executor", calls),
            eventloop=_place("eventloop", calls),
        ),
    )


def _limiter(each: Accounts, now: float) -> LimiterStatistics:
    limiter, limit, holders, queue = each
    threads, processes = thread_limiter.loop_names(), process_limiter.loop_names()
    key = id(limiter)
    lent = sum(bool(slot.waits) for slot in holders)
    return LimiterStatistics(
        limiter_id=key,
        default_for="threads" if key in threads else "processes" if key in processes else None,
        loop=threads.get(key, processes.get(key)),
        total=None if limiter.total_tokens == math.inf else int(limiter.total_tokens),
        running=len(holders) - lent,
        lent=lent,
        waiting=len(queue),
        extra=sum(slot.relieved for slot in holders),
        borrowed=limit.borrowed_by_others(),
        abandoned=sum(slot.abandoned for slot in holders),
        longest_wait=max((now - since(slot) for slot in queue if slot.call is not None), default=0.0),
    )


def _abandoned_threads(now: float) -> tuple[AbandonedThread, ...]:
    found = sorted(abandoned_calls(), key=made)
    names = thread_names()
    return tuple(
        AbandonedThread(
            call.name, names.get(call.thread or 0, ""), now - (call.abandoned or now), now - (call.began or now)
        )
        for call in found
    )


def thread_names() -> dict[int, str]:
    """Return the names of all threads, by identifier."""
    return {thread.ident or 0: thread.name for thread in threading.enumerate()}


def workers() -> list[WorkerProcess]:
    """Return the worker processes, the oldest first."""
    return sorted(pool.workers.copy(), key=lambda worker: worker._number)


def worker_statistics(worker: WorkerProcess, now: float) -> WorkerStatistics:
    """Return what *worker* does."""
    call, pid = worker.call, worker.pid
    state: WorkerState = "busy"
    if call is None:
        state = "ending" if worker.retires else "idle" if worker.is_ready else "starting"
    seconds = 0.0 if call is None or call.began is None else now - call.began
    return WorkerStatistics(pid, state, call and call.name, seconds, worker.calls, pid and _memory_of(pid))


def _memory_of(pid: int) -> int | None:
    """Return how many bytes of memory a process occupies, as far as that can be read at once."""
    try:
        with open(f"/proc/{pid}/statm", "rb") as file:  # noqa: PTH123  `pathlib` is slow to import
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, IndexError, ValueError):  # not on Linux, or the process has just gone
        return None


def _background_loop() -> BackgroundLoopStatistics | None:
    loop = _background._background_thread
    return loop and BackgroundLoopStatistics(loop._backend, loop.is_running(), len(loop._calls))


def _place(place: CallPlace, calls: list[UserCall]) -> PlaceStatistics:
    here = [call for call in calls if call.place == place]
    running = sum(call.began is not None for call in here)
    return PlaceStatistics(
        waiting=len(here) - running,
        running=running,
        returned=total(place, "returned"),
        raised=total(place, "raised"),
        cancelled=total(place, "cancelled"),
        timed_out=total(place, "timed out"),
        abandoned=total(place, "abandoned"),
        worker_died=total(place, "worker died"),
    )
