"""A signal handler that raises during calls in worker processes loses no worker."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import process_functions as functions
import pytest
from conftest import captured, wait_until, wait_until_none
from interrupting import EVERY_STEP, Steps, numbers, raise_alarm
from running import run_program, write
from ways import in_loop, way

import unfazed.concurrency
from unfazed.concurrency import in_processpool, run_in_processpool, run_in_processpool_sync
from unfazed.concurrency._core import _limits
from unfazed.concurrency._processes import _pool

if TYPE_CHECKING:
    from collections.abc import Callable

assert way  # a fixture

Backend = tuple[str, dict[str, Any]]

FOLDER = str(Path(unfazed.concurrency.__file__).parent)
STEPS = 15  # about how many bytecodes of each operation are tried; arbitrary


def test_a_signal_handler_that_raises_anywhere_loses_no_worker(tmp_path: Path) -> None:
    source = """
        import os, signal, sys, time
        from unfazed.concurrency import *
        from unfazed.concurrency._core import _limits
        from unfazed.concurrency._processes import _pool
        class Now(Exception): pass
        interrupts = 0
        def raise_now(*args):
            global interrupts
            interrupts += 1
            raise Now
        call = in_processpool(int)
        def call_until_interrupted(number):
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + number % 100 * 0.00001)
            while interrupts == number:
                assert call.sync(str(number)) == number
        if __name__ == "__main__":
            signal.signal(signal.SIGALRM, raise_now)
            sys.unraisablehook = lambda _: None
            assert call.sync("1") == 1
            for number in range(500):
                try:
                    call_until_interrupted(number)
                except Now:
                    pass
            deadline = time.monotonic() + 10
            while len(_pool.pool._idle) < len(_pool.pool.workers) and time.monotonic() < deadline:
                time.sleep(0.001)
            taken = [limit for limit in _limits.limits.values() if limit.holders or limit.queue]
            print(interrupts, len(_pool.pool._idle) == len(_pool.pool.workers), taken)
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)

    out, err = run_program(tmp_path, write(tmp_path / "program.py", source), env=environment)

    assert (out, err) == ("500 True []\n", "")


def a_call_of_sync_code(_: Backend) -> None:
    run_in_processpool_sync(functions.echo, 1)


def calls_of_sync_code_with_options(_: Backend) -> None:
    in_processpool(functions.echo, timeout=30, limiter=anyio.CapacityLimiter(1)).sync(1)
    in_processpool(functions.echo, kill_on_cancel=True).sync(1)


def a_large_answer_to_sync_code(_: Backend) -> None:
    run_in_processpool_sync(bytes, 300_000)


def a_call_of_async_code(backend: Backend) -> None:
    in_loop(backend, run_in_processpool, functions.echo, 1)


def a_large_call_of_async_code(backend: Backend) -> None:
    in_loop(backend, in_processpool(functions.echo, timeout=30), [*range(200_000)])


OPERATIONS = (
    a_call_of_sync_code,
    calls_of_sync_code_with_options,
    a_large_answer_to_sync_code,
    a_call_of_async_code,
    a_large_call_of_async_code,
)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs the bytecodes of CPython")
@pytest.mark.timeout(3600 if EVERY_STEP else 120)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")  # lost before its assignment
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_signal_handler_that_raises_at_a_bytecode_loses_no_worker(
    background: Backend, way: bool, operation: Callable[[Backend], None]
) -> None:
    operation(background)
    for number in numbers(lambda: operation(background), FOLDER, STEPS):
        with Steps(raise_alarm, number, FOLDER) as steps:
            captured(lambda: operation(background))
        where = f"{steps.where}, number {number}"
        wait_until(lambda: len(_pool.pool._idle) == len(_pool.pool.workers), f"{where}: a worker is lost")
        wait_until_none(lambda: [limit for limit in list(_limits.limits.values()) if limit.holders or limit.queue])
        assert run_in_processpool_sync(functions.echo, 1) == ((1,), {}), where
        assert len(_pool.pool.workers) == 1, where
