"""What the tests of the adapter for asgiref share."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import asgiref.sync
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
def end_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give each test an executor of asgiref's that has not been used, and no thread that another has left."""
    with ThreadPoolExecutor(max_workers=1) as executor:
        monkeypatch.setattr(asgiref.sync.SyncToAsync, "single_thread_executor", executor)
        monkeypatch.setattr(_sync_to_async, "unused_executor", executor)

        yield

    _companions.end_companions(GRACE_SECONDS)
    end_lane()


def run_program(source: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Run a program in a fresh interpreter, and fail if it hangs."""
    return subprocess.run(
        [sys.executable, *options, "-c", source], capture_output=True, text=True, timeout=30, check=False
    )


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
