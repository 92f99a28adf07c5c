"""How many calls run at once: said once, for all loops, by a call or by the environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_process
import anyio.to_thread
import pytest

from unfazed.concurrency import (
    WrongOptionError,
    configure_processpool,
    configure_threadpool,
    contextmanager_in_threadpool,
    run_in_eventloop_sync,
    run_in_processpool,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._eventloops._limiters import DefaultLimiter, thread_limiter
from unfazed.concurrency._processes._limiter import default_limiter

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Forget what a test has chosen."""
    limiters = (thread_limiter, default_limiter)
    before = [(each._chosen, each._default, set(each._ours)) for each in limiters]
    yield
    for each, (chosen, default, ours) in zip(limiters, before, strict=True):
        each._chosen, each._default, each._ours, each._known = chosen, default, ours, {}


def threads() -> float:
    return anyio.to_thread.current_default_thread_limiter().total_tokens


async def threads_of_loop() -> float:
    await run_in_threadpool(int)
    return threads()


def run(anyio_backend: Any, func: Any, *args: Any) -> Any:
    name, options = anyio_backend
    return anyio.run(func, *args, backend=name, backend_options=options)


def test_the_total_holds_in_every_loop_from_then_on(anyio_backend: Any, background: object) -> None:
    assert run(anyio_backend, threads_of_loop) == 40
    assert run_in_eventloop_sync(threads_of_loop) == 40
    configure_threadpool(limit=7)
    assert run(anyio_backend, threads_of_loop) == 7
    assert run_in_eventloop_sync(threads_of_loop) == 7
    configure_threadpool(limit=8)
    run_in_threadpool_sync(int)
    assert run_in_eventloop_sync(threads_of_loop) == 8


def test_a_total_that_was_set_by_anyios_means_stays(anyio_backend: Any) -> None:
    async def use() -> list[float]:
        anyio.to_thread.current_default_thread_limiter().total_tokens = 5
        totals = [await threads_of_loop()]
        configure_threadpool(limit=7)
        return [*totals, await threads_of_loop()]

    assert run(anyio_backend, use) == [5, 5]


def test_iterators_and_others_workers_use_it_too(anyio_backend: Any) -> None:
    configure_threadpool(limit=6)

    async def enter() -> float:
        async with contextmanager_in_threadpool(Path(os.devnull).open()):
            return threads()

    async def from_anyios_worker() -> float:
        await anyio.to_thread.run_sync(run_in_eventloop_sync, anyio.sleep, 0)
        return threads()

    assert run(anyio_backend, enter) == 6
    assert run(anyio_backend, from_anyios_worker) == 6


def test_the_total_of_processes(anyio_backend: Any) -> None:
    async def processes_of_loop() -> float:
        await run_in_processpool(int)
        return anyio.to_process.current_default_process_limiter().total_tokens

    configure_processpool(limit=3)
    assert run(anyio_backend, processes_of_loop) == 3
    configure_processpool()  # which leaves it as it is
    assert run(anyio_backend, processes_of_loop) == 3


def test_nonsense_is_refused() -> None:
    configure: Any
    for configure, value in ((configure_threadpool, 0), (configure_threadpool, None), (configure_processpool, "2")):
        with pytest.raises(WrongOptionError, match=r"\(limit=...\) must be a whole number, 1 or more"):
            configure(limit=value)


PROGRAM = """
import anyio.to_process, anyio.to_thread
from unfazed.concurrency import *

async def totals():
    await run_in_threadpool(int)
    await run_in_processpool(int)
    thread_limiter = anyio.to_thread.current_default_thread_limiter()
    return thread_limiter.total_tokens, anyio.to_process.current_default_process_limiter().total_tokens

if __name__ == "__main__":
    print(run_in_eventloop_sync(totals))
    configure_threadpool(limit=9)
    print(run_in_eventloop_sync(totals))
"""


def test_the_environment_says_it_where_the_program_does_not() -> None:
    environment = {**os.environ, "UNFAZED_THREADS": "11", "UNFAZED_PROCESSES": "3"}

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, timeout=60, check=False
    )

    assert (done.stdout, done.stderr) == ("(11, 3)\n(9, 3)\n", "")


@pytest.mark.anyio
async def test_nonsense_in_the_environment_is_refused_with_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    from unfazed.concurrency._eventloops._loops import current_loop

    for value in ("many", "0", "-1", "1.5"):
        monkeypatch.setenv("UNFAZED_THREADS", value)
        limiter = DefaultLimiter(anyio.to_thread.current_default_thread_limiter, "UNFAZED_THREADS", 40, lambda: 40)
        with pytest.raises(WrongOptionError, match=f"UNFAZED_THREADS must be a whole number, 1 or more, not '{value}'"):
            limiter.of(current_loop())
    monkeypatch.setenv("UNFAZED_THREADS", "")
    assert limiter.of(current_loop()).total_tokens == 40
