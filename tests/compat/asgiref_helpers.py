"""What the tests of the adapter for asgiref share."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import GRACE_SECONDS, wait_until
from unfazed_compat.asgiref import _choose_thread, _loopthreads, _shared

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

COLLECTS_LATE = sys.implementation.name != "cpython"  # whether what nobody holds any more goes some time later

counts_references = pytest.mark.skipif(
    not hasattr(sys, "getrefcount"), reason="who cannot count references leaves asgiref's own executor in its place"
)


if not hasattr(sys, "getrefcount"):  # its thread is not ours to end after a test
    _shared.set_single_thread_executor(_choose_thread.fallback_executor)


def wait_for_the_end(thread: threading.Thread) -> None:
    """Wait for a thread that ends when nobody holds its owner any more."""
    wait_until(lambda: gc.collect() is None or not thread.is_alive(), f"{thread} goes on")


def end_fallback_executor() -> None:
    """End the thread of thread-sensitive calls, so that the next one starts a new one."""
    executor = _choose_thread.fallback_executor
    executor.shutdown()
    executor.forget_thread()


@pytest.fixture(autouse=True)
def end_threads() -> Iterator[None]:
    """Leave no thread to the next test."""
    yield

    if COLLECTS_LATE:  # what still has a thread, and nobody holds
        gc.collect()
    _loopthreads.end_loop_threads(GRACE_SECONDS)
    end_fallback_executor()


def run_program(source: str, *options: str, seconds: float = 30.0) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter, and fail if it hangs; its children end with it."""
    command = [sys.executable, *options, "-c", source]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as program:
        try:
            output, errors = program.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(program.pid, signal.SIGKILL)
            raise
        return subprocess.CompletedProcess(command, program.returncode, output, errors)


def run_async(backend: tuple[str, dict[str, Any]], func: Callable[..., Any], *args: Any) -> Any:
    return anyio.run(func, *args, backend=backend[0], backend_options=backend[1])


async def this_thread() -> threading.Thread:
    return threading.current_thread()


async def current_native_loop() -> object:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        import trio

        return trio.lowlevel.current_trio_token()
