"""Whatever is ours has a name that says what it does: threads, tasks and processes, also in Python's own tools."""

from __future__ import annotations

import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import GRACE_SECONDS

from unfazed.concurrency import (
    EventLoopThread,
    contextmanager_in_eventloop_sync,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
    run_in_eventloop_sync,
    run_in_processpool_sync,
    run_in_threadpool_sync,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def task_name() -> str:
    """Return the name of the current task, on asyncio or trio."""
    name: str | None = anyio.get_current_task().name
    return name or ""


async def fetch() -> str:
    return task_name()


def test_a_task_has_the_name_of_its_function(background: Any) -> None:
    assert run_in_eventloop_sync(fetch) == "fetch"
    with EventLoopThread(*background) as loop:
        assert loop.run_sync(fetch) == "fetch"


def test_a_task_that_does_one_step_after_another_has_the_name_of_its_helper(background: Any) -> None:
    async def names() -> AsyncIterator[str]:
        yield task_name()

    class Manager:
        async def __aenter__(self) -> str:
            return task_name()

        async def __aexit__(self, *exc_info: object) -> None: ...

    assert list(iterate_in_eventloop_sync(names())) == ["iterate_in_eventloop_sync"]
    with contextmanager_in_eventloop_sync(Manager()) as name:
        assert name == "contextmanager_in_eventloop_sync"


@pytest.mark.anyio
async def test_tasks_that_hold_threads_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    names: set[str] = set()
    items = iterate_in_threadpool(range(3), prefetch=2)
    async for _ in items:
        runner = items._feed._runner
        assert runner is not None
        names.add(runner._hold.task_name)
        if items._feed._fetching is not None:
            names.add(items._feed._fetching.task_name)

    assert names <= {"iterate_in_threadpool: holds its thread", "iterate_in_threadpool: fetches ahead"}
    assert "iterate_in_threadpool: holds its thread" in names


def test_our_threads_and_processes_have_names(background: Any) -> None:
    before = set(threading.enumerate())
    source = "__import__('multiprocessing').current_process().name, __import__('os').getpid()"

    name, pid = run_in_processpool_sync(eval, source)
    run_in_threadpool_sync(int)

    assert name == f"unfazed-worker-{pid}"
    names = {thread.name for thread in threading.enumerate() if thread not in before}
    ours = {name for name in names if name.startswith("unfazed-")}
    assert {"unfazed-eventloop", "unfazed-processpool"} <= ours
    # the worker threads are anyio's and trio's
    assert all(name.startswith(("AnyIO worker thread", "Trio ")) or "from" in name for name in names - ours)


STUCK = """
import anyio
from unfazed.concurrency import run_in_eventloop_sync, run_in_threadpool

async def fetch_for_ever():
    print("begun", flush=True)
    await anyio.sleep_forever()

anyio.run(run_in_threadpool, run_in_eventloop_sync, fetch_for_ever)
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="since Python 3.14, asyncio looks into other processes")
@pytest.mark.parametrize("command", ["ps", "pstree"])
def test_asyncios_own_tools_name_our_tasks(command: str) -> None:
    """In the main thread: they show no task of another thread, whosever it is."""
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "begun\n"
        tool = [sys.executable, "-m", "asyncio", command, str(program.pid)]
        done = subprocess.run(tool, capture_output=True, text=True, timeout=GRACE_SECONDS * 3, check=False)
        program.kill()
    if "ermission" in done.stderr or "not supported" in done.stderr:
        pytest.skip(f"this system does not let us look: {done.stderr.splitlines()[-1]}")

    assert "fetch_for_ever" in done.stdout, done
