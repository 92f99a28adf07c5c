"""The options of dual callables for limits and cancellation."""

from __future__ import annotations

import asyncio
import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, Blocking, let_others_run, wait_until
from processes import children_of, is_dead
from waiting import occupied, queued, wait_for

from unfazed.concurrency import (
    count_abandoned_threads,
    in_processpool,
    in_threadpool,
    run_in_eventloop_sync,
    run_in_processpool,
    run_in_threadpool,
)
from unfazed.concurrency._core import _limits
from unfazed.concurrency._threads import _threadcall

if TYPE_CHECKING:
    from pathlib import Path

Backend = tuple[str, "dict[str, Any]"]
only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


# The limiter


def test_a_limiter_bounds_all_wrappers_that_share_it_from_two_loops_and_plain_threads(background: Backend) -> None:
    limiter = anyio.CapacityLimiter(2)
    lock, may_end = threading.Lock(), threading.Event()
    running, most, ended = 0, 0, 0

    def work() -> None:
        nonlocal running, most, ended
        with lock:
            running += 1
            most = max(most, running)
        assert may_end.wait(GRACE_SECONDS)
        with lock:
            running -= 1
            ended += 1

    first, second = in_threadpool(work, limiter=limiter), in_threadpool(lambda: work(), limiter=limiter)

    async def call_both() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(first)
            tasks.start_soon(second)

    in_a_loop = partial(anyio.run, call_both, backend=background[0], backend_options=background[1])
    threads = [threading.Thread(target=target) for target in (in_a_loop, in_a_loop, first.sync, second.sync)]
    for thread in threads:
        thread.start()
    wait_until(lambda: id(limiter) in _limits.limits and queued(limiter) == 4, "four of six calls queue")
    wait_until(lambda: running == 2, "two calls run")
    may_end.set()
    for thread in threads:
        thread.join(GRACE_SECONDS)

    assert (most, ended) == (2, 6)


def test_a_limiter_bounds_processes_too(background: Backend, tmp_path: Path) -> None:
    limiter = anyio.CapacityLimiter(1)
    started, may_end, next_started = tmp_path / "started", tmp_path / "may end", tmp_path / "next"
    first = in_processpool(functions.touch_then_wait_for, limiter=limiter)
    second = in_processpool(functions.touch_then_wait_for, limiter=limiter)

    one = threading.Thread(target=first.sync, args=(started, may_end))
    other = threading.Thread(target=second.sync, args=(next_started, may_end))
    one.start()
    wait_until(started.exists, "the first one runs")
    other.start()
    wait_until(lambda: queued(limiter) == 1, "the second one queues")
    early = next_started.exists()
    may_end.touch()
    one.join(GRACE_SECONDS)
    other.join(GRACE_SECONDS)

    assert not early
    assert next_started.exists()


@pytest.mark.anyio
async def test_calls_without_a_limiter_of_their_own_take_the_loops_default() -> None:
    default = anyio.to_thread.current_default_thread_limiter()

    assert await in_threadpool(lambda: occupied(default))() == 1
    assert await in_threadpool(lambda: occupied(default), limiter=anyio.CapacityLimiter(1))() == 0


# Abandoned threads


@pytest.mark.anyio
async def test_a_cancelled_call_abandons_its_thread_which_keeps_its_slot_until_it_ends() -> None:
    blocking, limiter = Blocking(), anyio.CapacityLimiter(1)
    dual = in_threadpool(blocking, limiter=limiter, abandon_on_cancel=True)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dual)
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()

    assert (count_abandoned_threads(), occupied(limiter), blocking.ended) == (1, 1, False)
    blocking.may_end.set()
    assert await in_threadpool(functions.echo, limiter=limiter)(1) == ((1,), {})
    wait_until(lambda: count_abandoned_threads() == 0, "the thread ends")
    assert blocking.ended


@pytest.mark.anyio
async def test_a_thread_that_ends_as_it_is_abandoned_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    class EndsFirst(set[_threadcall.ThreadCall[Any]]):
        def add(self, thread_call: _threadcall.ThreadCall[Any], /) -> None:
            blocking.may_end.set()
            wait_until(lambda: removed, "the thread ends")
            super().add(thread_call)

        def discard(self, thread_call: Any, /) -> None:
            super().discard(thread_call)
            removed.append(thread_call)

    removed: list[Any] = []
    blocking = Blocking()
    monkeypatch.setattr(_threadcall, "_abandoned", EndsFirst())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_threadpool(blocking, abandon_on_cancel=True))
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()

    assert count_abandoned_threads() == 0


@pytest.mark.anyio
@only_asyncio
async def test_a_call_cancelled_by_asyncio_abandons_its_thread() -> None:
    blocking, limiter = Blocking(), anyio.CapacityLimiter(1)
    task = asyncio.create_task(in_threadpool(blocking, limiter=limiter, abandon_on_cancel=True)())
    await blocking.wait_until_started()

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert (count_abandoned_threads(), occupied(limiter)) == (1, 1)
    blocking.may_end.set()
    wait_until(lambda: (count_abandoned_threads(), occupied(limiter)) == (0, 0), "the thread ends")


@pytest.mark.anyio
async def test_what_an_abandoned_thread_raises_is_dropped() -> None:
    blocking = Blocking()

    def work() -> None:
        blocking()
        raise ValueError("nobody hears of it")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_threadpool(work, abandon_on_cancel=True))
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()
    blocking.may_end.set()

    wait_until(lambda: count_abandoned_threads() == 0, "the thread ends")


@pytest.mark.anyio
async def test_the_async_code_that_an_abandoned_thread_waits_for_is_cancelled() -> None:
    sleeping, ended = threading.Event(), threading.Event()
    seen: list[str] = []

    async def sleep() -> None:
        sleeping.set()
        await anyio.sleep_forever()

    def work() -> None:
        try:
            run_in_eventloop_sync(sleep)
        except BaseException as exc:
            seen.append(type(exc).__name__)
        ended.set()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_threadpool(work, abandon_on_cancel=True))
        while not sleeping.is_set():
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()

    assert await run_in_threadpool(ended.wait, GRACE_SECONDS)
    assert seen[0].startswith("Cancelled")
    wait_until(lambda: count_abandoned_threads() == 0, "the thread ends")


@pytest.mark.anyio
async def test_a_call_that_queues_and_is_cancelled_abandons_nothing() -> None:
    blocking, limiter = Blocking(), anyio.CapacityLimiter(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_threadpool(blocking, limiter=limiter))
        await blocking.wait_until_started()
        async with anyio.create_task_group() as cancelled:
            cancelled.start_soon(in_threadpool(pytest.fail, limiter=limiter, abandon_on_cancel=True), "must not run")
            await let_others_run()
            cancelled.cancel_scope.cancel()
        assert (queued(limiter), count_abandoned_threads()) == (0, 0)
        blocking.may_end.set()


# Killed processes


@pytest.mark.anyio
async def test_a_cancelled_call_kills_its_process_at_once_and_the_next_gets_another(tmp_path: Path) -> None:
    started, never = tmp_path / "started", tmp_path / "never"
    pid = await run_in_processpool(os.getpid)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_processpool(functions.touch_then_wait_for, kill_on_cancel=True), started, never)
        await wait_for(started)
        tasks.cancel_scope.cancel()

    wait_until(lambda: is_dead(pid), "the worker is killed")
    assert await run_in_processpool(os.getpid) != pid


@pytest.mark.anyio
@only_asyncio
async def test_a_call_cancelled_by_asyncio_kills_its_process(tmp_path: Path) -> None:
    started, never = tmp_path / "started", tmp_path / "never"
    pid = await run_in_processpool(os.getpid)
    dual = in_processpool(functions.touch_then_wait_for, kill_on_cancel=True)
    task = asyncio.create_task(dual(started, never))
    await wait_for(started)

    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert await run_in_processpool(os.getpid) != pid


@pytest.mark.anyio
@pytest.mark.parametrize("yields", [0, 2, 10, 50])
async def test_a_call_cancelled_while_its_process_starts_leaves_none_behind(yields: int, tmp_path: Path) -> None:
    never = tmp_path / "never"
    dual = in_processpool(functions.touch_then_wait_for, kill_on_cancel=True)
    before = children_of(os.getpid())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(dual, never, never)
        for _ in range(yields):
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()

    pid = await run_in_processpool(os.getpid)
    living = {child for child in children_of(os.getpid()) if not is_dead(child)}
    assert living - before == {pid}
    assert not never.exists()


def test_a_sync_call_in_a_worker_is_killed_with_its_task(background: Backend, tmp_path: Path) -> None:
    started, never = tmp_path / "started", tmp_path / "never"
    dual = in_processpool(functions.touch_then_wait_for, kill_on_cancel=True)

    async def main() -> tuple[int, int]:
        pid = await run_in_processpool(os.getpid)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_threadpool, dual.sync, started, never)
            await wait_for(started)
            tasks.cancel_scope.cancel()
        return pid, await run_in_processpool(os.getpid)

    before, after = anyio.run(main, backend=background[0], backend_options=background[1])

    assert before != after
