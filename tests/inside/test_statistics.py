"""`statistics()`: exact at every moment that a test can force."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import threading
from dataclasses import FrozenInstanceError, asdict
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import process_functions
import pytest
from conftest import GRACE_SECONDS, Blocking, Gate, children, drop_garbage, wait_until
from counting import Counted, calls_in, identity, of

from unfazed.concurrency import (
    EventLoopThread,
    LimiterStatistics,
    in_processpool,
    in_threadpool,
    run_in_eventloop_sync,
    run_in_processpool,
    run_in_processpool_sync,
    run_in_threadpool,
    statistics,
)
from unfazed.concurrency._core import _slots

if TYPE_CHECKING:
    from pathlib import Path

# Limiters


@pytest.mark.anyio
async def test_who_runs_and_who_waits_is_known() -> None:
    limiter = anyio.CapacityLimiter(1)
    first, second = Gate(), Gate()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_threadpool(first.wait, limiter=limiter))
        await first.wait_until_reached()
        tasks.start_soon(in_threadpool(second.wait, limiter=limiter))
        wait_for = anyio.Event()
        while not of(limiter).waiting:
            with anyio.move_on_after(0.001):
                await wait_for.wait()

        seen = of(limiter)
        assert (seen.total, seen.running, seen.lent, seen.waiting, seen.extra, seen.borrowed) == (1, 1, 0, 1, 0, 0)
        assert seen.longest_wait > 0
        assert (seen.default_for, seen.loop) == (None, None)
        assert (calls_in("threadpool").running, calls_in("threadpool").waiting) == (1, 1)

        first.opened.set()
        await second.wait_until_reached()

        assert (of(limiter).running, of(limiter).waiting, of(limiter).longest_wait) == (1, 0, 0)
        second.opened.set()

    assert (of(limiter).running, of(limiter).waiting) == (0, 0)


@pytest.mark.anyio
async def test_a_slot_that_is_lent_and_a_call_that_is_let_in_are_known() -> None:
    limiter, go_on = anyio.CapacityLimiter(1), anyio.Event()
    seen: list[LimiterStatistics] = []

    def wait_for_other() -> None:
        run_in_eventloop_sync(go_on.wait)

    def other() -> None:
        seen.append(of(limiter))
        run_in_eventloop_sync(set_event)

    async def set_event() -> None:
        go_on.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_threadpool(wait_for_other, limiter=limiter))
        while not (any(each.limiter_id == id(limiter) for each in statistics().limiters) and of(limiter).lent):
            await anyio.sleep(0.001)
        tasks.start_soon(in_threadpool(other, limiter=limiter))

    assert [(each.running, each.lent, each.waiting, each.extra) for each in seen] == [(1, 1, 0, 1)]
    assert (of(limiter).running, of(limiter).lent, of(limiter).extra) == (0, 0, 0)


@pytest.mark.anyio
async def test_a_worker_that_awaits_a_call_in_a_loop_of_its_own_has_lent_its_slot() -> None:
    limiter = anyio.CapacityLimiter(1)
    seen: list[LimiterStatistics] = []

    async def call() -> None:
        await in_threadpool(lambda: seen.append(of(limiter)), limiter=limiter)()

    await in_threadpool(anyio.run, limiter=limiter)(call)

    assert [(each.running, each.lent, each.waiting) for each in seen] == [(1, 1, 0)]


@pytest.mark.anyio
async def test_a_limiter_without_a_limit_is_ready_for_json() -> None:
    limiter = anyio.CapacityLimiter(math.inf)
    await in_threadpool(int, limiter=limiter)()

    assert of(limiter).total is None
    json.dumps(asdict(statistics()), allow_nan=False)


@pytest.mark.anyio
async def test_tokens_that_others_have_borrowed_are_known() -> None:
    limiter = anyio.CapacityLimiter(2)
    await in_threadpool(int, limiter=limiter)()
    async with limiter:
        assert of(limiter).borrowed == 1

    assert of(limiter).borrowed == 0


@pytest.mark.anyio
async def test_a_default_limiter_has_the_name_of_its_loop() -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    with EventLoopThread("asyncio", name="mine") as loop:
        await run_in_threadpool(int)
        await run_in_processpool(int)
        await loop.run(run_in_threadpool, int)

        assert (of(limiter).default_for, of(limiter).loop) == ("threads", threading.current_thread().name)
        assert {(each.default_for, each.loop) for each in statistics().limiters} >= {
            ("threads", "mine"),
            ("processes", threading.current_thread().name),
        }


# Threads, processes, loops


@pytest.mark.anyio
async def test_abandoned_threads_are_known_with_their_functions() -> None:
    counted, blocking, limiter = Counted(), Blocking(), anyio.CapacityLimiter(1)

    def hold_on() -> None:
        blocking()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_threadpool(hold_on, abandon_on_cancel=True, limiter=limiter))
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()

    (abandoned,) = statistics().abandoned_threads
    assert abandoned.function == "hold_on"
    assert abandoned.thread in {thread.name for thread in threading.enumerate()}
    assert 0 <= abandoned.seconds <= abandoned.seconds_run
    assert (of(limiter).running, of(limiter).abandoned) == (1, 1)
    assert counted("threadpool") == {"running": 1, "abandoned": 1}

    blocking.may_end.set()
    wait_until(lambda: not statistics().abandoned_threads, "the thread does not end")
    wait_until(lambda: not of(limiter).running, "the slot is not given back")


@pytest.mark.anyio
async def test_worker_processes_are_known(tmp_path: Path) -> None:
    touched, awaited = tmp_path / "touched", tmp_path / "awaited"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_processpool, process_functions.touch_then_wait_for, touched, awaited)
        while not touched.exists():
            await anyio.sleep(0.001)

        (busy,) = statistics().workers
        assert (busy.pid, busy.state, busy.function, busy.calls) == (
            *children(), "busy", "touch_then_wait_for", 1,
        )  # fmt: skip
        assert busy.seconds > 0
        assert (busy.memory is None) is not sys.platform.startswith("linux")
        awaited.touch()

    (idle,) = statistics().workers
    assert (idle.pid, idle.state, idle.function, idle.seconds, idle.calls) == (busy.pid, "idle", None, 0, 1)


def test_a_worker_that_its_own_thread_serves_is_known_too(background: Any, tmp_path: Path) -> None:
    touched, awaited = tmp_path / "touched", tmp_path / "awaited"
    seen: list[Any] = []

    def look() -> None:
        wait_until(touched.exists, "the function does not begin")
        seen.extend(statistics().workers)
        awaited.touch()

    looking = threading.Thread(target=look)
    looking.start()
    call = in_processpool(process_functions.touch_then_wait_for, timeout=GRACE_SECONDS)  # not sent by its caller

    call.sync(touched, awaited)
    looking.join()

    assert [(each.state, each.function) for each in seen] == [("busy", "touch_then_wait_for")]


def test_a_worker_that_starts_and_one_that_ends_are_known(background: Any) -> None:
    assert run_in_processpool_sync(int) == 0
    (worker,) = _pool_workers()
    worker.is_ready = False
    assert statistics().workers[0].state == "starting"
    worker.is_ready = worker.retires = True
    assert statistics().workers[0].state == "ending"
    worker.retires = False


def _pool_workers() -> list[Any]:
    from unfazed.concurrency._inside._statistics import workers

    return list(workers())


def test_the_memory_of_a_process_that_has_gone_is_unknown() -> None:
    from unfazed.concurrency._inside import _statistics

    assert _statistics._memory_of(-1) is None


def test_the_background_loop_is_known(background: Any) -> None:
    assert statistics().background_loop is None
    running, may_end = threading.Event(), threading.Event()

    async def wait() -> None:
        running.set()
        await anyio.to_thread.run_sync(may_end.wait, GRACE_SECONDS)

    calling = threading.Thread(target=run_in_eventloop_sync, args=(wait,))
    calling.start()
    assert running.wait(GRACE_SECONDS)

    loop = statistics().background_loop
    assert loop is not None
    assert (loop.backend, loop.running, loop.calls) == (background[0], True, 1)
    assert calls_in("eventloop").running == 1

    may_end.set()
    calling.join()
    assert calls_in("eventloop").running == 0


# From everywhere


def test_it_is_frozen_and_ready_for_json() -> None:
    seen = statistics()

    with pytest.raises(FrozenInstanceError):
        seen.calls.threadpool.returned = 7  # type: ignore[misc]
    assert json.loads(json.dumps(asdict(seen)))["calls"]["threadpool"]["running"] == 0


@pytest.mark.anyio
async def test_it_waits_for_no_lock() -> None:
    """Not even where a signal handler interrupts whoever holds ours, and in another thread meanwhile."""
    seen: list[Any] = []

    def in_the_midst() -> tuple[()]:
        seen.append(statistics())
        other = threading.Thread(target=lambda: seen.append(statistics()))
        other.start()
        other.join(GRACE_SECONDS)
        return ()

    _slots._locked(in_the_midst)

    assert len(seen) == 2


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signal")
def test_a_signal_handler_may_ask(background: Any) -> None:
    seen: list[Any] = []
    before = signal.signal(signal.SIGUSR1, lambda *_: seen.append(statistics()))
    try:
        run_in_eventloop_sync(identity, 1)
        signal.raise_signal(signal.SIGUSR1)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert seen


def python(source: str) -> str:
    done = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_counts_from_zero() -> None:
    out = python("""
import os, warnings
warnings.simplefilter("ignore")
from unfazed.concurrency import run_in_threadpool_sync, statistics
run_in_threadpool_sync(int)
if os.fork() == 0:
    print(statistics().calls.threadpool.returned, statistics().background_loop, flush=True)
    run_in_threadpool_sync(int)
    print(statistics().calls.threadpool.returned, flush=True)
    os._exit(0)
os.wait()
print(statistics().calls.threadpool.returned)
""")

    assert out.split() == ["0", "None", "1", "1"]


AT_EXIT = {
    "atexit": "atexit.register(show)",
    "threading": "threading._register_atexit(show)",
}


@pytest.mark.parametrize("moment", AT_EXIT)
def test_it_can_be_asked_while_the_interpreter_ends(moment: str) -> None:
    out = python(f"""
import atexit, os, threading
from unfazed.concurrency import run_in_threadpool_sync, statistics
run_in_threadpool_sync(int)

def show(statistics=statistics, write=os.write):
    write(1, b"%d " % statistics().calls.threadpool.returned)

{AT_EXIT[moment]}
""")

    assert out.split() == ["1"]


def test_limiters_that_have_gone_are_left_out() -> None:
    from unfazed.concurrency._core._limits import Limit
    from unfazed.concurrency._inside._lists import accounts_of

    async def make() -> Any:
        return Limit(anyio.CapacityLimiter(1))

    limit = anyio.run(make)
    drop_garbage()
    assert accounts_of(limit) is None
