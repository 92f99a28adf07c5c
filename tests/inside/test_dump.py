"""`dump_calls`: what each call does and waits for, also when the program hangs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import anyio
import process_functions
import pytest
from conftest import GRACE_SECONDS, Blocking, Gate, wait_until
from counting import dumped, lines_of

from unfazed.concurrency import (
    WrongOptionError,
    dump_calls,
    in_threadpool,
    run_in_eventloop_sync,
    run_in_executor,
    run_in_processpool,
    run_in_threadpool,
    statistics,
)
from unfazed.concurrency._core import _limits, _slots
from unfazed.concurrency._core._calls import SlotlessCall, UserCall
from unfazed.concurrency._inside import _dump, _parents
from unfazed.concurrency._inside._waits import Waits

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(GRACE_SECONDS):
        while not condition():
            await anyio.sleep(0.001)


@pytest.mark.anyio
async def test_nested_calls_are_shown_below_their_callers_with_stacks_and_chains() -> None:
    gate = Gate()

    def innermost() -> None:
        gate.wait()  # here

    async def middle() -> None:
        await run_in_threadpool(innermost)

    def outermost() -> None:
        run_in_eventloop_sync(middle)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, outermost)
        await gate.wait_until_reached()
        text = dumped()
        gate.opened.set()

    lines_of(
        text,
        rf"^Calls of process {os.getpid()}: 3$",
        r"^  \d+: run_in_threadpool\(outermost\) for async code: has run .+ \(\d+\), waits in a call of its own$",
        r"^    \d+: run_in_eventloop_sync\(middle\) for sync code in .+ \(\d+\): has run \d+\.\d s in .+ \(\d+\)$",
        r"^      \d+: run_in_threadpool\(innermost\) for async code: has run \d+\.\d s in .+ \(\d+\)$",
        r"^Chain: \d+ outermost\(\) waits for \d+ middle\(\) waits for \d+ innermost\(\), which runs$",
        r"^Thread .+, which runs \d+ innermost\(\), innermost call last:$",
        r"gate.wait\(\)  # here",
        r"^Limiter 0x\w+, anyio's default for threads in .+: total 40, 1 run, 1 lent$",
    )
    assert text.count("# here") == 1
    assert "_bootstrap_inner" not in text.partition("which runs")[2].partition("innermost()")[2].partition("Thread")[0]


@pytest.mark.anyio
@pytest.mark.skipif(not _parents.HAS_GIL, reason="without a GIL, the frames of tasks are left alone")
async def test_where_an_async_function_awaits_is_shown() -> None:
    begun, may_end = anyio.Event(), anyio.Event()

    async def inner() -> None:
        begun.set()
        await may_end.wait()  # in here

    async def outer() -> None:
        await inner()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, partial(run_in_eventloop_sync, outer))
        await begun.wait()
        text = dumped()
        may_end.set()

    lines_of(
        text, r"^\d+ outer\(\) awaits, innermost call last:", r"await inner\(\)", r"await may_end.wait\(\)  # in here"
    )


def test_a_function_that_is_no_coroutine_has_no_frames() -> None:
    call = SlotlessCall()
    call.awaited = SimpleNamespace(cr_running=False, cr_await=None)

    assert [*_parents.suspended_frames(call)] == []


@pytest.mark.anyio
async def test_calls_that_queue_say_for_what_and_alike_ones_are_counted() -> None:
    limiter, gate = anyio.CapacityLimiter(1), Gate()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_threadpool(gate.wait, limiter=limiter))
        await gate.wait_until_reached()
        for _ in range(_dump.MOST_ALIKE + 5):
            tasks.start_soon(in_threadpool(int, limiter=limiter))
        await until(lambda: statistics().calls.threadpool.waiting == _dump.MOST_ALIKE + 5)
        async with anyio.CapacityLimiter(1):
            text = dumped()
        gate.opened.set()

    queued = r"^  \d+: in_threadpool\(int\) for async code: has waited \d\.\d s for a slot, but 1 of 1 are taken, by"
    assert len(re.findall(queued, text, re.MULTILINE)) == _dump.MOST_ALIKE
    lines_of(
        text,
        r"^  and 5 more of in_threadpool\(int\) that wait$",
        r"^Chain, like 14 more: \d+ int\(\) waits for a slot that is held by \d+ Gate.wait\(\), which runs$",
        r"^Limiter 0x\w+, of yours: total 1, 1 run, 15 wait$",
    )


@pytest.mark.anyio
async def test_calls_that_wait_for_each_other_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two limiters, taken in opposite orders. The rule that resolves it is put off until we have seen it."""
    monkeypatch.setattr(_limits, "STALL_SECONDS", 1000)
    left, right = anyio.CapacityLimiter(1), anyio.CapacityLimiter(1)
    both = threading.Barrier(2)

    def hold_left() -> None:
        both.wait(GRACE_SECONDS)
        in_threadpool(int, limiter=right).sync()

    def hold_right() -> None:
        both.wait(GRACE_SECONDS)
        in_threadpool(float, limiter=left).sync()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_threadpool(hold_left, limiter=left))
        tasks.start_soon(in_threadpool(hold_right, limiter=right))
        await until(lambda: sum(each.waiting for each in statistics().limiters) == 2)
        text = dumped()
        monkeypatch.setattr(_limits, "STALL_SECONDS", 0)

    lines_of(text, r"^Calls that wait for each other: (\d+) \w+\(\) waits.* \1 \w+\(\)$")
    for name in ("hold_left", "hold_right", "int", "float"):
        assert re.search(rf"^Calls that wait for each other: .*{name}\(\)", text, re.MULTILINE)


def test_every_way_is_followed_once() -> None:
    """Many calls that wait for the same holders do not make a dump slow."""
    calls = {number: UserCall() for number in range(1, 2001)}
    waits = Waits(calls, {})
    waits._for_slots = {number: [*range(1, 100)] for number in range(100, 2001)}
    waits._for_calls = {number: [number + 1] for number in range(1, 99)}

    assert waits.cycles() == []
    ((chain, others),) = waits.chains()
    assert (chain, others) == ([100, *range(1, 100)], 1900)
    waits._for_calls[99] = [1]
    assert waits.cycles() == [[*range(1, 100)]]


@pytest.mark.anyio
async def test_an_abandoned_call_says_so() -> None:
    blocking = Blocking()

    def left_behind() -> None:
        blocking()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_threadpool(left_behind, abandon_on_cancel=True))
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()
    text = dumped()
    blocking.may_end.set()

    lines_of(text, r"left_behind\) for async code: has run \d+\.\d s in .+, abandoned \d+\.\d s ago$")
    wait_until(lambda: not statistics().abandoned_threads, "the thread does not end")


@pytest.mark.anyio
async def test_worker_processes_say_what_they_run(tmp_path: Path) -> None:
    touched, awaited = tmp_path / "touched", tmp_path / "awaited"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_processpool, process_functions.touch_then_wait_for, touched, awaited)
        await until(touched.exists)
        text = dumped()
        awaited.touch()
    idle = dumped()

    memory = r", \d+ MB" if sys.platform.startswith("linux") else ""
    lines_of(
        text,
        r"run_in_processpool\(touch_then_wait_for\) for async code: has run \d+\.\d s$",
        rf"^Worker process \d+: busy, runs touch_then_wait_for\(\) for \d+\.\d s, 1 calls{memory}$",
        r"^Limiter 0x\w+, anyio's default for processes in .+, 1 run$",
    )
    lines_of(idle, rf"^Worker process \d+: idle, 1 calls{memory}$", r"default for processes.*, idle$")


@pytest.mark.anyio
async def test_tokens_that_others_have_borrowed_are_named() -> None:
    limiter = anyio.CapacityLimiter(3)
    await in_threadpool(int, limiter=limiter)()
    async with limiter:
        lines_of(dumped(), r"^Limiter 0x\w+, of yours: total 3, idle, 1 borrowed by anyio's own means$")


@pytest.mark.anyio
async def test_calls_that_have_not_begun_say_for_what_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    gate = Gate()
    with ThreadPoolExecutor(1) as executor:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_executor, executor, gate.wait)
            await gate.wait_until_reached()
            tasks.start_soon(run_in_executor, executor, int)
            await until(lambda: statistics().calls.executor.waiting)
            text = dumped()
            gate.opened.set()

    lines_of(text, r"run_in_executor\(Gate.wait\)", r"run_in_executor\(int\) .* for its turn in the executor$")


def test_a_call_says_that_it_waits_for_its_event_loop(background: Any) -> None:
    gate = Gate()

    async def block() -> None:
        gate.wait()

    callers = [
        threading.Thread(target=run_in_eventloop_sync, args=(func, *args))
        for func, *args in ((block,), (anyio.sleep, 0))
    ]
    callers[0].start()
    assert gate.reached.wait(GRACE_SECONDS)
    callers[1].start()
    wait_until(lambda: statistics().calls.eventloop.waiting, "the call is not made")
    text = dumped()
    gate.opened.set()
    for each in callers:
        each.join()

    lines_of(text, r"run_in_eventloop_sync\(sleep\) for sync code in .*: has waited .* for its event loop$")
    lines_of(text, r"^Thread unfazed-eventloop \(\d+\), which runs \d+ block\(\)", r"gate.wait\(\)")


def test_a_call_says_that_it_waits_for_a_thread_or_a_process() -> None:
    for place, what in (("threadpool", "a thread"), ("processpool", "a worker process")):
        call = UserCall()
        call.place = place  # type: ignore[assignment]
        assert _dump._what_it_waits_for(call) == what


def test_a_thread_that_has_ended_meanwhile_is_left_out() -> None:
    call = UserCall()
    call.func, call.helper, call.place = "f", "run_in_threadpool", "threadpool"
    call.thread, call.began, call.waiter = -1, 1.0, -1

    text = "\n".join((*_dump._tree({1: call}, {}, 2.0, {}), *_dump._stacks([call], {})))
    text = text.replace(str(call.number), "1")

    assert text.splitlines() == [
        "  1: run_in_threadpool(f) for sync code in a thread that has ended: has run 1.0 s",
        "Thread that has ended, which runs 1 f(), innermost call last:",
    ]


def test_a_call_that_ends_meanwhile_is_said_to_have_ended() -> None:
    waits = Waits({1: UserCall()}, {})
    waits.calls[1].func = "f"
    waits._for_slots = {1: [2]}

    assert list(_dump._chains(waits)) == ["Chain: 1 f() waits for a slot that is held by 2 which has ended"]


# Where it is written


def test_it_goes_to_stderr(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    dump_calls()
    assert capsys.readouterr().err.startswith(f"Calls of process {os.getpid()}: 0\n")

    monkeypatch.setattr(sys, "stderr", None)
    dump_calls()


def test_a_file_needs_no_flush() -> None:
    written: list[str] = []
    dump_calls(SimpleNamespace(write=written.append))

    assert written[0].startswith("Calls of process")


def test_what_cannot_be_written_to_is_refused() -> None:
    with pytest.raises(WrongOptionError, match=r"dump_calls\(file=...\) must have a `write` method, not 'path'"):
        dump_calls("path")  # type: ignore[arg-type]


def test_a_signal_handler_that_interrupts_a_write_to_the_same_file_gets_through() -> None:
    reading, writing = os.pipe()

    class Busy:
        def write(self, text: str) -> None:
            raise RuntimeError("reentrant call")

        def fileno(self) -> int:
            return writing

    dump_calls(Busy())
    os.close(writing)
    with os.fdopen(reading, encoding="utf-8") as file:
        assert file.read().startswith("Calls of process")


@pytest.mark.anyio
async def test_it_waits_for_no_lock() -> None:
    texts: list[str] = []

    def in_the_midst() -> tuple[()]:
        texts.append(dumped())
        other = threading.Thread(target=lambda: texts.append(dumped()))
        other.start()
        other.join(GRACE_SECONDS)
        return ()

    _slots._locked(in_the_midst)

    assert len(texts) == 2


STUCK = """
import signal, threading
from unfazed.concurrency import dump_calls, run_in_threadpool_sync

signal.signal(signal.SIGUSR1, lambda *_: dump_calls())

def stuck():
    print("stuck", flush=True)
    threading.Event().wait()

run_in_threadpool_sync(stuck)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signal")
def test_a_signal_has_a_program_that_is_stuck_say_where() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        assert program.stderr is not None
        assert program.stdout.readline() == "stuck\n"
        program.send_signal(signal.SIGUSR1)
        text = ""
        while "Limiter" not in text:
            line = program.stderr.readline()
            assert line, text
            text += line
        program.kill()

    lines_of(text, r"run_in_threadpool_sync\(stuck\) for sync code in MainThread", r"which runs \d+ stuck", "in stuck")
