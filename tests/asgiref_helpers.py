"""What the tests of the adapter for asgiref share."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import GRACE_SECONDS
from unfazed_compat.asgiref import _companions, _sync_to_async

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


def end_lane() -> None:
    """End the thread of thread-sensitive calls, so that the next one starts a new one."""
    lane = _sync_to_async.lane
    lane.shutdown()
    lane._ended = False
    lane.begin()


@pytest.fixture(autouse=True)
def end_threads() -> Iterator[None]:
    """Leave no thread to the next test."""
    yield

    _companions.end_companions(GRACE_SECONDS)
    end_lane()


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
