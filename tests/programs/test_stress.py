"""A few seconds of `stress.py`: threads, loops, garbage, and a signal handler that raises, in a program of its own."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import NO_GIL

from unfazed.concurrency import run_in_eventloop_sync, run_in_threadpool_sync

SECONDS = 5
# Without a GIL, CPython itself dies where a signal reaches a main thread that waits for one of its own locks; it takes
# minutes on average. Until 3.13.14 and 3.14.5: https://github.com/python/cpython/issues/148820
FATAL = "The futex facility returned an unexpected error code."
TRIES = 3 if NO_GIL and sys.version_info < (3, 14, 5) else 1
HANG_SECONDS = 110  # the program looks after itself; this is for when it cannot


@pytest.mark.timeout(HANG_SECONDS + 10)
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals")
def test_every_call_is_answered_and_nothing_is_left_whatever_a_signal_handler_raises() -> None:
    program = Path(__file__).with_name("stress.py")
    for _ in range(TRIES):
        done = subprocess.run(
            [sys.executable, "-W", "ignore", str(program), str(SECONDS)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=HANG_SECONDS,
        )
        if done.returncode != -signal.SIGABRT or FATAL not in done.stdout:
            break

    assert done.returncode == 0, done.stdout
    assert done.stdout.rstrip().endswith("no failure"), done.stdout


def test_a_hang_is_reported_with_the_slots_and_calls_that_wait(capfd: pytest.CaptureFixture[str]) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    try:
        import stress
    finally:
        sys.path.pop(0)

    def work() -> None:
        run_in_eventloop_sync(look)

    async def look() -> None:
        stress.say_who_waits()

    run_in_threadpool_sync(work)

    reported = capfd.readouterr().err
    assert "slot: " in reported
    assert "call: " in reported
    assert "task: " in reported
    assert "most recent call first" in reported
