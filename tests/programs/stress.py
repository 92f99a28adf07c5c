"""Stress the package with threads, loops, small limits, garbage and signals: `python tests/programs/stress.py SECONDS`.

Each round runs an event loop in the main thread, and plain threads beside it; `stress_calls.py` has the calls.
Meanwhile a timer's signal handler raises in the main thread again and again, at random bytecodes. It raises in this
package only: elsewhere it would test anyio and Python's own loops. On PyPy it does not raise. After each round, every
call has ended, no slot is taken, and no new thread is left.

`test_stress.py` runs it for a few seconds; a soak test runs it for an hour. The last line of output counts the calls.
"""

from __future__ import annotations

import faulthandler
import gc
import logging
import os
import random
import signal
import sys
import threading
import time
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
from stress_calls import (
    ALARMS,
    BACKENDS,
    Alarm,
    async_call,
    counts,
    executor,
    limiters,
    only_expected,
    sync_call,
)

import unfazed.concurrency
from unfazed.concurrency import CallGroup, Handle, count_abandoned_threads, run_in_threadpool, run_in_threadpool_sync
from unfazed.concurrency._core import _contexts, _limits, _taskcall

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

PACKAGE = str(Path(unfazed.concurrency.__file__).parent)
HANG_SECONDS = 30.0  # for a round or its cleanup; far longer than any takes
TIMER_SECONDS = 0.003  # from the end of one handler to the next signal
SWITCH_SECONDS = 0.0005  # how long a thread keeps the GIL; a short time makes more orders of events
CALLS_PER_ROUND = 300
THREADS = 4

places: deque[str] = deque(maxlen=3)  # where the last alarms were raised
armed = False  # whether the handler raises
ticking = False  # whether the timer is set again


def handle(signum: int, frame: FrameType | None) -> None:
    # A one-shot timer, set again here. A periodic one could fire each time this thread gets the GIL back, and then only
    # handlers would run.
    if ticking:
        signal.setitimer(signal.ITIMER_REAL, TIMER_SECONDS)
    if sys.exc_info()[0] is not None:  # the last alarm may still propagate: only one at a time
        return
    if armed and frame is not None and frame.f_code.co_filename.startswith(PACKAGE) and not is_first_of_exit(frame):
        counts["alarms"] += 1
        places.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name} {frame.f_lasti}")
        raise Alarm


def is_first_of_exit(frame: FrameType) -> bool:
    """Return whether *frame* is at the first step of an `__aexit__`. No `try` covers that: a scope stays open."""
    return frame.f_code.co_name == "__aexit__" and frame.f_lineno == frame.f_code.co_firstlineno


async def in_the_main_threads_loop() -> None:
    async with anyio.create_task_group() as tasks:
        for _ in range(CALLS_PER_ROUND // 10):
            for _ in range(10):
                tasks.start_soon(async_call)
            await anyio.sleep(0.001)


def main_thread(backend: str) -> None:
    """Make calls from an event loop in the main thread, then from sync code there."""
    try:
        anyio.run(in_the_main_threads_loop, backend=backend)
    except BaseException as exc:
        if not only_expected(exc):
            raise
        counts["interrupted loops"] += 1
    for _ in range(CALLS_PER_ROUND // 5):
        sync_call()


def plain_thread(stop: threading.Event) -> None:
    try:
        while not stop.is_set():
            sync_call()
            if random.random() < 0.01:
                gc.collect()
    except BaseException as exc:
        failures.append(exc)


failures: list[BaseException] = []


def left_behind(before: set[threading.Thread]) -> list[object]:
    # idle threads of anyio and trio, of the background event loop and of the process pool may stay
    threads = [each for each in threading.enumerate() if each not in before and not each.name.startswith(IDLE)]
    limits = [
        f"limit with {limit.occupied} slots taken, {len(limit.queue)} calls queued"
        for limit in list(_limits.limits.values())
        if limit.holders or limit.queue or limit.occupied or limit.running or limit.extras
    ]
    handles = [each for each in gc.get_objects() if type(each) is Handle and getattr(each, "_running", None)]
    abandoned = [count_abandoned_threads()] * bool(count_abandoned_threads())
    return [*threads, *limits, *handles, *_contexts._leases, *abandoned]


WORKERS = ("unfazed-processpool", "unfazed-worker", "unfazed-output")
IDLE = ("AnyIO worker", "Trio thread", "unfazed-eventloop", "ThreadPoolExecutor", *WORKERS)


def one_round(backend: str) -> None:
    global armed
    before = set(threading.enumerate())
    limiters[:] = [anyio.CapacityLimiter(1), anyio.CapacityLimiter(2), anyio.CapacityLimiter(3)]
    stop = threading.Event()
    threads = [threading.Thread(target=plain_thread, args=(stop,), name="stress") for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    try:
        armed = ALARMS
        main_thread(backend)
    except Alarm:  # raised just before `armed` was reset
        pass
    finally:
        armed = False
        stop.set()
    for thread in threads:
        thread.join(HANG_SECONDS)
        assert not thread.is_alive(), "a thread does not come back"
    assert not failures, failures
    deadline = time.monotonic() + HANG_SECONDS
    while left := left_behind(before):
        assert time.monotonic() < deadline, left
        gc.collect()
        time.sleep(0.005)
    assert run_in_threadpool_sync(int, "1") == 1, "the next call works"
    assert anyio.run(run_in_threadpool, int, "1", backend=backend) == 1


def say_who_waits() -> None:
    """Print where each task and each thread is. Call it from another thread while the program hangs.

    Not with `isinstance`: that asks some objects of other libraries for their class, and they make a setup then.
    """
    slots = [(limit.occupied, limit.running, len(limit.queue)) for limit in list(_limits.limits.values())]
    print(f"last alarms: {list(places)}; slots (taken, running, queued): {slots}", file=sys.stderr)
    for slot in gc.get_objects():
        if type(slot) is _limits.Slot and hasattr(slot, "limit") and (slot.held or slot in slot.limit.queue):
            state = {name: getattr(slot, name) for name in SLOT_STATE}
            print("slot:", [*_limits.limits].index(id(slot.limiter)), id(slot), state, file=sys.stderr)
    for call in gc.get_objects():
        if type(call) is _taskcall.TaskCall and not call.future.done:
            print("call:", {name: getattr(call, name) for name in CALL_STATE}, file=sys.stderr)
    for started in gc.get_objects():
        if type(started) in (Handle, CallGroup):
            print("started:", dict(vars(started)), file=sys.stderr)
    for task in gc.get_objects():
        if type(task).__name__ == "Task" and type(task).__module__.partition(".")[0] in ("_asyncio", "asyncio", "trio"):
            step: Any = getattr(task, "coro", None) or task.get_coro()
            stack: list[str] = []
            while step is not None:
                frame = getattr(step, "cr_frame", None) or getattr(step, "gi_frame", None)
                if frame is not None:
                    code = frame.f_code
                    stack.append(f"{Path(code.co_filename).name}:{frame.f_lineno} {code.co_name}")
                step = getattr(step, "cr_await", None) or getattr(step, "gi_yieldfrom", None)
            if stack:
                print("task:", " > ".join(stack), file=sys.stderr)
    faulthandler.dump_traceback(all_threads=True)


SLOT_STATE = (
    "held",
    "woken",
    "call",
    "waits",
    "wake",
    "lender",
    "borrower",
    "extra",
    "ended",
    "given_up",
    "awaited_in",
)
CALL_STATE = ("_work", "loop", "taken", "bypassing", "aborted", "missed", "_abort", "_cancelled", "_steps")


class Guard:
    """Ends the program with a report of who waits for whom, unless `all_is_well` is called in time."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._well = threading.Event()
        threading.Thread(target=self._watch, daemon=True, name="guard").start()

    def all_is_well(self) -> None:
        self._well.set()

    def _watch(self) -> None:
        while self._well.wait(self._seconds):
            self._well.clear()
        for _ in range(3):
            print(f"no round has ended for {self._seconds:.0f} seconds: {dict(counts)}", file=sys.stderr)
            time.sleep(5)
        say_who_waits()
        os._exit(1)


def main() -> None:
    global ticking
    seconds = float(sys.argv[1]) if len(sys.argv) > 1 else 60.0
    seed = int(os.environ.get("UNFAZED_STRESS_SEED") or random.randrange(2**32))
    random.seed(seed)
    print(f"seed {seed}", flush=True)
    for name in unfazed.concurrency.__all__:
        getattr(unfazed.concurrency, name)  # imports it: other threads may see a module whose import was interrupted
    logging.disable(logging.CRITICAL)  # asyncio logs exceptions in its callbacks
    sys.unraisablehook = lambda _: None  # the handler raises in finalizers too
    sys.excepthook_before, sys.excepthook = sys.excepthook, lambda *_: None  # type: ignore[attr-defined]
    gc.collect()
    if sys.implementation.name == "cpython":
        gc.freeze()  # collections visit only what the calls create
        if has_gil():  # without a GIL, each collection stops all threads
            gc.set_threshold(50)
    signal.signal(signal.SIGALRM, handle)
    sys.setswitchinterval(SWITCH_SECONDS)
    ticking = True
    signal.setitimer(signal.ITIMER_REAL, TIMER_SECONDS)
    # Without a GIL, CPython 3.13.5, for one, forgets an event that epoll has just reported, if a signal comes while the
    # garbage collector stops the threads. asyncio's epoll reports it again; trio's does not, and the loop sleeps on.
    backends = [each for each in BACKENDS if each != "trio" or has_gil()]
    guard = Guard(2 * HANG_SECONDS)
    deadline, rounds, said = time.monotonic() + seconds, 0, time.monotonic()
    try:
        while time.monotonic() < deadline:
            guard.all_is_well()
            one_round(backends[rounds % len(backends)])
            rounds += 1
            if time.monotonic() > said + 60:
                said = time.monotonic()
                print(f"{deadline - said:.0f} seconds left, {rounds} rounds, {dict(counts)}", flush=True)
    except BaseException:
        sys.excepthook = sys.excepthook_before  # type: ignore[attr-defined]
        say_who_waits()
        raise
    finally:
        ticking = False
        signal.setitimer(signal.ITIMER_REAL, 0)
    executor.shutdown()
    print(f"{rounds} rounds, {dict(counts)}, {'with' if has_gil() else 'without'} a GIL: no failure")


def has_gil() -> bool:
    is_enabled: Callable[[], bool] | None = getattr(sys, "_is_gil_enabled", None)  # since Python 3.13
    return is_enabled is None or is_enabled()


if __name__ == "__main__":
    main()
