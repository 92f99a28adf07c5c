"""Calls in worker processes that are cancelled, lose their loop, or get no process, thread or file descriptor."""

from __future__ import annotations

import asyncio
import errno
import os
import resource
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, cast

import anyio
import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, children, let_others_run, wait_until, wait_until_gone
from mishaps import assert_ten_calls_work, in_time, wait_for_children

from unfazed.concurrency import (
    EventLoopThread,
    WorkerProcessError,
    in_processpool,
    run_in_eventloop_sync,
    run_in_processpool,
    run_in_processpool_sync,
    warm_up_processpool_sync,
)
from unfazed.concurrency._core import _threadstart
from unfazed.concurrency._processes import _child

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers elsewhere are silent")

Backend = tuple[str, dict[str, Any]]


@pytest.mark.parametrize("options", [{}, {"kill_on_cancel": True}, {"timeout": 60}], ids=str)
def test_cancelled_as_its_worker_starts_a_call_leaves_no_process(background: Backend, options: dict[str, Any]) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_processpool(os.getpid, **options))
            await wait_for_children(1)
            tasks.cancel_scope.cancel()
        assert [await run_in_processpool(functions.echo, n) for n in range(10)] == [((n,), {}) for n in range(10)]
        assert len(children()) == 1

    backend, backend_options = background
    anyio.run(main, backend=backend, backend_options=backend_options)


@pytest.mark.parametrize("begun", [False, True])
def test_a_loop_that_ends_amid_a_call_leaves_nothing(background: Backend, begun: bool, tmp_path: Path) -> None:
    """`asyncio.run` cancels the tasks that still run, and waits for them; a call that has begun is waited for."""
    if background[0] == "trio":
        pytest.skip("tasks do not outlive the main task there")
    awaited = tmp_path / "awaited"

    async def main() -> None:
        task = asyncio.create_task(run_in_processpool(misbehaving.pid_after, tmp_path, awaited))
        with anyio.fail_after(GRACE_SECONDS):
            while begun and not list(tmp_path.iterdir()):
                await anyio.sleep(0.001)
            await let_others_run()
        if begun:
            asyncio.get_running_loop().call_later(0.05, awaited.touch)
        tasks.append(task)  # kept, or it would be collected

    tasks: list[asyncio.Task[int]] = []
    anyio.run(main, backend=background[0], backend_options=background[1])
    tasks.clear()
    assert_ten_calls_work()
    assert len(children()) == 1
    assert begun == bool(list(tmp_path.glob("[0-9]*")))


def test_loops_share_the_workers_and_get_the_answers_to_their_own_calls(background: Backend) -> None:
    backend, options = background
    pid = run_in_processpool_sync(os.getpid)
    with (
        EventLoopThread(backend=backend, backend_options=options) as one,
        EventLoopThread(backend=backend, backend_options=options) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        for loop in (one, other):
            run_sync: Any = loop.run_sync
            assert run_sync(run_in_processpool, os.getpid) == pid
        for number in range(20):
            calls = [
                threads.submit(cast("Any", loop.run_sync), run_in_processpool, functions.echo, (name, number))
                for loop, name in ((one, "one"), (other, "other"))
            ]
            assert [each.result(GRACE_SECONDS) for each in calls] == [
                (((name, number),), {}) for name in ("one", "other")
            ]


def test_loops_that_have_ended_leave_nothing(background: Backend) -> None:
    """No loop, thread or descriptor; the workers stay."""
    loops: list[weakref.ref[Any]] = []

    async def main() -> int:
        if background[0] == "asyncio":
            loops.append(weakref.ref(asyncio.get_running_loop()))
        return await run_in_processpool(os.getpid)

    def run() -> int:
        return anyio.run(main, backend=background[0], backend_options=background[1])

    pid = run()
    before = misbehaving.descriptors(), threading.active_count()
    pids = {run() for _ in range(30)}

    assert pids == {pid}
    assert (misbehaving.descriptors(), threading.active_count()) <= before
    wait_until_gone(*loops)


def test_where_no_process_can_be_started_calls_fail(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", fail)
        with pytest.raises(WorkerProcessError, match=r"getpid\(\) could not start .*too many open files"):
            in_time(run_in_processpool_sync, os.getpid)
        with pytest.raises(WorkerProcessError, match=r"could not start .*too many open files"):
            in_time(warm_up_processpool_sync, 2)

    assert_ten_calls_work()


@pytest.mark.parametrize(("module", "name"), [(os, "urandom"), (_child, "_preparation")])
def test_whatever_keeps_a_worker_from_starting_fails_the_calls(
    background: Backend, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    """On PyPy, `os.urandom` opens a file, so it fails if too many are open."""

    def fail(*args: object) -> NoReturn:
        raise MemoryError("none is left")

    with monkeypatch.context() as patch:
        patch.setattr(module, name, fail)
        with pytest.raises(WorkerProcessError, match=r"getpid\(\) could not start \(MemoryError: none is left\)"):
            in_time(run_in_processpool_sync, os.getpid)
        with pytest.raises(WorkerProcessError, match=r"could not start \(MemoryError: none is left\)"):
            in_time(warm_up_processpool_sync, 1)
        wait_until(lambda: not children(), "a process is left")

    assert_ten_calls_work()


def test_where_no_thread_can_be_started_calls_fail(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> NoReturn:
        raise RuntimeError("can't start new thread")

    run_in_eventloop_sync(anyio.sleep, 0)
    with monkeypatch.context() as patch:
        patch.setattr(_threadstart, "start_thread", fail)
        with pytest.raises(WorkerProcessError, match=r"getpid\(\) could not start .*can't start new thread"):
            in_time(run_in_processpool_sync, os.getpid)
        with pytest.raises(WorkerProcessError, match=r"could not start .*can't start new thread"):
            in_time(warm_up_processpool_sync, 2)

    assert_ten_calls_work()


def test_a_lack_of_file_descriptors_passes(background: Backend) -> None:
    """Without free descriptors no worker starts, but the existing ones work."""
    run_in_processpool_sync(os.getpid)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (misbehaving.descriptors() + 64, hard))
    spare: list[int] = []
    try:
        with suppress(OSError):  # too many open files
            while True:
                spare.append(os.dup(0))
        assert in_time(run_in_processpool_sync, functions.echo, 1) == ((1,), {})
        with pytest.raises(WorkerProcessError, match="could not start"):
            in_time(warm_up_processpool_sync, 2)
    finally:
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_ten_calls_work()
