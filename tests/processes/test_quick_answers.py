"""Async callers look for a quick answer themselves, before they have the event loop wait for the pipe."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import anyio
import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS

from unfazed.concurrency import CallTimeoutError, WorkerProcessError, in_processpool, run_in_processpool
from unfazed.concurrency._processes import _call, _pool, _waiting

if TYPE_CHECKING:
    from pathlib import Path

    from unfazed.concurrency._processes._worker import WorkerProcess

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(not _call.DIRECT, reason="callers never read from pipes here"),
]


async def idle_worker() -> WorkerProcess:
    """Return the only worker, which has just run a call."""
    await run_in_processpool(int)
    (worker,) = _pool.pool.workers
    return worker


async def touched(path: Path) -> None:
    while not path.exists():
        await anyio.sleep(0.001)


def refuse_to_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(pipe: object) -> None:
        raise AssertionError("the loop was asked to wait")

    monkeypatch.setattr(anyio, "wait_readable", refuse)


async def test_a_quick_answer_needs_no_wait_of_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await idle_worker()
    worker.quick = True
    monkeypatch.setattr(_waiting, "QUICK_SECONDS", math.inf)
    refuse_to_wait(monkeypatch)

    assert await run_in_processpool(functions.echo, 1) == ((1,), {})
    with pytest.raises(ZeroDivisionError):
        await run_in_processpool(divmod, 1, 0)
    assert worker.quick


async def test_other_tasks_run_while_a_call_looks_for_its_answer(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    started, awaited = tmp_path / "started", tmp_path / "awaited"
    (await idle_worker()).quick = True
    monkeypatch.setattr(_waiting, "QUICK_SECONDS", math.inf)
    refuse_to_wait(monkeypatch)
    with anyio.fail_after(GRACE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_processpool, functions.touch_then_wait_for, started, awaited)
            await touched(started)
            awaited.touch()


async def test_the_loop_waits_for_a_worker_that_was_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await idle_worker()
    monkeypatch.setattr(_waiting, "QUICK_SECONDS", 0)
    await run_in_processpool(int)
    assert not worker.quick

    monkeypatch.setattr(_waiting, "_receive_soon", None)  # is not called
    await run_in_processpool(int)
    assert not worker.quick


async def test_a_worker_that_was_slow_once_may_be_quick_again(monkeypatch: pytest.MonkeyPatch) -> None:
    worker = await idle_worker()
    worker.quick = False
    monkeypatch.setattr(_waiting, "QUICK_SECONDS", math.inf)
    await run_in_processpool(int)

    assert worker.quick


@pytest.mark.parametrize("kill", [False, True])
async def test_a_call_that_looks_for_its_answer_can_be_cancelled(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kill: bool
) -> None:
    started, awaited = tmp_path / "started", tmp_path / "awaited"
    (await idle_worker()).quick = True
    monkeypatch.setattr(_waiting, "QUICK_SECONDS", math.inf)
    call = in_processpool(functions.touch_then_wait_for, kill_on_cancel=kill)
    with anyio.fail_after(GRACE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, started, awaited)
            await touched(started)
            tasks.cancel_scope.cancel()
            if not kill:
                awaited.touch()  # the call is waited for
        assert await run_in_processpool(functions.echo, 1) == ((1,), {})


async def test_a_call_that_looks_for_its_answer_can_time_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (await idle_worker()).quick = True
    monkeypatch.setattr(_waiting, "QUICK_SECONDS", math.inf)
    call: Any = in_processpool(misbehaving.wait_for, timeout=0.05)

    with pytest.raises(CallTimeoutError):
        await call(tmp_path / "never")


async def test_a_worker_that_dies_while_a_call_looks_for_its_answer_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    (await idle_worker()).quick = True
    monkeypatch.setattr(_waiting, "QUICK_SECONDS", math.inf)

    with pytest.raises(WorkerProcessError, match="exit code 3"):
        await run_in_processpool(misbehaving.die, 3)
