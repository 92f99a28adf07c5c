"""What is measured in fresh processes: how long imports and first calls take, and how much memory things need.

python -m benchmarks._starts NAME   one of the functions of `MEMORY`, in this very process
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from contextlib import ExitStack, nullcontext
from statistics import median
from typing import TYPE_CHECKING

import anyio
import psutil
from anyio.to_thread import current_default_thread_limiter

from unfazed.concurrency import (
    EventLoopThread,
    contextmanager_in_threadpool,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
    run_in_threadpool,
    warm_up_processpool,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

IMPORTS = {
    "unfazed.concurrency": "import unfazed.concurrency",
    "unfazed.concurrency, run_in_threadpool": "from unfazed.concurrency import run_in_threadpool",
    "unfazed.concurrency, *": "from unfazed.concurrency import *",
    "anyio.to_thread": "import anyio.to_thread",
    "anyio": "import anyio.to_thread, anyio.to_process, anyio.from_thread",
    "asyncio": "import asyncio",
    "Starlette": "import starlette.concurrency",
    "unfazed_compat.asgiref": "import unfazed_compat.asgiref",
    "asgiref": "import asgiref.sync",
}
_PORTAL = """
from anyio import from_thread, {place}
with from_thread.start_blocking_portal() as portal:
    portal.call({place}.run_sync, int)
"""
_ASYNC_TO_SYNC = """
from {library} import async_to_sync
async def func(): pass
async_to_sync(func)()
"""
FIRST_CALLS = {
    "run_in_threadpool_sync": "from unfazed.concurrency import run_in_threadpool_sync as call; call(int)",
    "anyio portal, to_thread": _PORTAL.format(place="to_thread"),
    "run_in_processpool_sync": "from unfazed.concurrency import run_in_processpool_sync as call; call(int)",
    "anyio portal, to_process": _PORTAL.format(place="to_process"),
    "ProcessPoolExecutor": """
from concurrent.futures import ProcessPoolExecutor
with ProcessPoolExecutor(1) as executor:
    executor.submit(int).result()
""",
    "adapter's async_to_sync": _ASYNC_TO_SYNC.format(library="unfazed_compat.asgiref"),
    "asgiref's async_to_sync": _ASYNC_TO_SYNC.format(library="asgiref.sync"),
}
_TIMED = "import time\nstart = time.perf_counter()\n{source}\nprint(time.perf_counter() - start)"
MANY = 100


def import_seconds(rounds: int) -> dict[str, float]:
    """Return how long each import takes in an interpreter that has just started."""
    return _seconds(IMPORTS, rounds)


def first_call_seconds(rounds: int) -> dict[str, float]:
    """Return how long each import takes with one call, and the end of what that has started where it ends itself."""
    return _seconds(FIRST_CALLS, rounds)


def _seconds(sources: dict[str, str], rounds: int) -> dict[str, float]:
    seconds: dict[str, list[float]] = {name: [] for name in sources}
    for _ in range(rounds):
        for name, source in sources.items():
            seconds[name].append(float(_output_of("-c", _TIMED.format(source=source))))
    return {name: median(each) for name, each in seconds.items()}


def memory_bytes() -> dict[str, float]:
    """Return how many bytes one of each needs."""
    return {name: float(_output_of("-m", "benchmarks._starts", name)) for name in MEMORY}


def _output_of(*arguments: str) -> str:
    # As programs that are installed have it: compiled. The first one sees to that, and the median leaves it out.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, check=True, env=environment)
    return done.stdout


def _resident_bytes() -> int:
    gc.collect()
    resident: int = psutil.Process().memory_info().rss
    return resident


def event_loop_thread() -> float:
    with ExitStack() as stack:
        stack.enter_context(EventLoopThread())
        before = _resident_bytes()
        for _ in range(MANY):
            stack.enter_context(EventLoopThread())
        return (_resident_bytes() - before) / MANY


def bare_thread() -> float:
    """Return what a thread of Python's own needs, most of it for its stack."""
    end = threading.Event()
    before = _resident_bytes()
    for _ in range(MANY):
        threading.Thread(target=end.wait).start()
    used = (_resident_bytes() - before) / MANY
    end.set()
    return used


async def idle_thread() -> float:
    async def use(count: int) -> None:
        barrier = threading.Barrier(count)
        async with anyio.create_task_group() as tasks:
            for _ in range(count):
                tasks.start_soon(run_in_threadpool, barrier.wait)

    current_default_thread_limiter().total_tokens = MANY + 1
    await use(1)
    before = _resident_bytes()
    await use(MANY + 1)
    return (_resident_bytes() - before) / MANY


async def open_iterator() -> float:
    iterators = [iterate_in_threadpool(iter("ab")) for _ in range(MANY + 1)]
    await anext(iterators[0])
    before = _resident_bytes()
    for each in iterators[1:]:
        await anext(each)
    used = (_resident_bytes() - before) / MANY
    for each in iterators:
        await each.aclose()
    return used


async def open_manager() -> float:
    managers = [contextmanager_in_threadpool(nullcontext()) for _ in range(MANY + 1)]
    await managers[0].__aenter__()
    before = _resident_bytes()
    for each in managers[1:]:
        await each.__aenter__()
    used = (_resident_bytes() - before) / MANY
    for each in managers:
        await each.__aexit__(None, None, None)
    return used


def open_iterator_sync() -> float:
    async def letters() -> AsyncIterator[str]:
        for letter in "ab":
            yield letter

    iterators = [iterate_in_eventloop_sync(letters()) for _ in range(MANY + 1)]
    next(iterators[0])
    before = _resident_bytes()
    for each in iterators[1:]:
        next(each)
    used = (_resident_bytes() - before) / MANY
    for each in iterators:
        each.close()
    return used


async def idle_process() -> float:
    await warm_up_processpool(1)
    (worker,) = psutil.Process().children()
    used: int = worker.memory_full_info().uss
    return used


MEMORY: dict[str, Callable[[], float]] = {
    "an EventLoopThread": event_loop_thread,
    "an idle worker thread": lambda: anyio.run(idle_thread),
    "a thread of Python's own": bare_thread,
    "an open iterator in a thread": lambda: anyio.run(open_iterator),
    "an open context manager in a thread": lambda: anyio.run(open_manager),
    "an open iterator in the event loop": open_iterator_sync,
    "an idle worker process": lambda: anyio.run(idle_process),
}

if __name__ == "__main__":
    print(MEMORY[sys.argv[1]]())
