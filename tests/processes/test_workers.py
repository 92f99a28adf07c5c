"""The pool of worker processes: who gets a worker, and when workers are released."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, captured_async, children, let_others_run, wait_until
from processes import exists
from running import run_program, write
from ways import in_loop, way

from unfazed.concurrency import (
    LoopStateError,
    WorkerProcessError,
    in_processpool,
    run_in_processpool,
    run_in_processpool_sync,
    warm_up_processpool_sync,
)
from unfazed.concurrency._core import _slots
from unfazed.concurrency._processes import _call, _pool, _waiting, _worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

assert way  # a fixture

Backend = tuple[str, dict[str, Any]]


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(GRACE_SECONDS), anyio.CancelScope(shield=True):
        while not condition():
            await anyio.sleep(0.001)


slow_touch = in_processpool(functions.touch_then_wait_for, timeout=5)


# Both ways


def test_calls_of_all_kinds_come_back(background: Backend, way: bool) -> None:
    async def main() -> list[object]:
        return [await captured_async(partial(run_in_processpool, *call)) for call in calls]

    calls: list[tuple[Any, ...]] = [
        (functions.echo, 1),
        (functions.echo, b"x" * 100_000),
        (len, b"x" * 3_000_000),
        (bytes, 3_000_000),
        (misbehaving.log, "workers", (30, "x")),
        (functions.fail, ValueError("no")),
        (misbehaving.die, 3),  # coverage puts another function in the place of `os._exit`
        (functions.echo, 2),
    ]
    for _ in range(2):
        there = in_loop(background, main)
        assert [repr(error) for _, error in there if error] == [
            "ValueError('no')",
            "WorkerProcessError('die', 'ended with exit code 3 before it answered')",
        ]
        assert there[0][0] == ((1,), {})
        assert there[2][0] == 3_000_000
        assert there[7][0] == ((2,), {})
    assert run_in_processpool_sync(functions.echo, 3) == ((3,), {})
    with pytest.raises(WorkerProcessError, match="exit code 4"):
        run_in_processpool_sync(misbehaving.die, 4)


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_with_its_worker_at_it_is_waited_for(way: bool, tmp_path: Path) -> None:
    pid = await run_in_processpool(os.getpid)
    may_end = tmp_path / "may end"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_processpool, functions.touch_then_wait_for, tmp_path / "started", may_end)
        await until((tmp_path / "started").exists)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await let_others_run()
            may_end.touch()
    assert may_end.exists()
    assert await run_in_processpool(os.getpid) == pid


@pytest.mark.anyio
async def test_a_call_in_a_task_that_is_cancelled_already_never_begins(way: bool, tmp_path: Path) -> None:
    await run_in_processpool(int)
    never = tmp_path / "never"
    ways: list[Any] = [lambda *args: run_in_processpool(functions.touch_then_wait_for, *args), slow_touch]
    for call in ways:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await call(tmp_path / "ran", never)

    assert not (tmp_path / "ran").exists()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.skipif(sys.version_info < (3, 11), reason="that cannot be seen there")
async def test_a_task_that_has_cancelled_itself_makes_no_call(tmp_path: Path) -> None:
    async def call() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await run_in_processpool(functions.touch_then_wait_for, tmp_path / "ran", tmp_path / "never")

    await run_in_processpool(int)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(call())

    assert not (tmp_path / "ran").exists()


# Who gets a worker


def test_who_no_longer_waits_for_a_worker_leaves_it_to_the_next(background: Backend, tmp_path: Path) -> None:
    """However often that happens while it starts, no second one does."""

    async def main() -> int:
        for _ in range(10):
            with anyio.move_on_after(0):
                await run_in_processpool(functions.touch_then_wait_for, tmp_path / "ran", tmp_path / "never")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    run_in_processpool, functions.touch_then_wait_for, tmp_path / "ran", tmp_path / "never"
                )
                await let_others_run()
                tasks.cancel_scope.cancel()
        return await run_in_processpool(os.getpid)

    pid = in_loop(background, main)

    assert children() == {pid}
    assert not (tmp_path / "ran").exists()


def test_idle_workers_beyond_the_first_few_end(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "IDLE_SECONDS", 0.05)
    warm_up_processpool_sync(4)

    wait_until(lambda: len(children()) == _worker.KEPT, "idle workers stay")
    assert run_in_processpool_sync(os.getpid) in children()


def test_an_idle_worker_that_is_killed_is_forgotten_at_once(background: Backend) -> None:
    pid = run_in_processpool_sync(os.getpid)

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: not _pool.pool.workers, "it is taken for a worker")
    assert not exists(pid), "nobody has read its status"


def test_a_worker_that_has_answered_is_not_killed_on_account_of_that_call(background: Backend) -> None:
    """1: the thread gives the worker back. 2: the caller, whose time is up, kills it, in another call."""
    run_in_processpool_sync(int)
    (worker,) = _pool.pool.workers
    call, future = _call.ProcessCall("in_processpool", os.getpid, (), {}), _waiting._HandlingFuture()
    call.slot = _slots.acquire(anyio.CapacityLimiter(1))
    call.expect(future)
    call.hand_over([])
    future.wait(call)
    assert not call.try_claim_end(), "the thread has ended it before it gave the worker back"

    call.kill()
    _slots.release(call.slot)

    assert run_in_processpool_sync(os.getpid) == worker.pid


def test_a_call_that_comes_when_its_worker_has_been_told_to_end_is_told(background: Backend) -> None:
    """A signal handler has come in between."""
    run_in_processpool_sync(int)
    (worker,) = _pool.pool.workers
    assert _pool.pool.take(worker)
    worker.retire()
    wait_until(lambda: not _pool.pool.workers, "it does not end")
    call, future = _call.ProcessCall("in_processpool", os.getpid, (), {}), _waiting._HandlingFuture()
    call.slot = _slots.acquire(anyio.CapacityLimiter(1))

    call.expect(future)
    call.hand_over([worker])

    with pytest.raises(WorkerProcessError, match="was about to end"):
        future.read()
    _slots.release(call.slot)


def test_a_finalizer_amid_the_start_of_a_worker_cannot_wait_for_one(background: Backend) -> None:
    errors: list[BaseException] = []

    def finalize() -> None:
        try:
            run_in_processpool_sync(int)
        except BaseException as exc:
            errors.append(exc)
        told.set()

    told = threading.Event()
    run_in_processpool_sync(int)
    _pool.pool._events.put(finalize)

    assert told.wait(GRACE_SECONDS)
    assert [type(error) for error in errors] == [LoopStateError]


def test_an_event_that_fails_does_not_end_the_thread_of_the_pool(
    background: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(sys, "excepthook", lambda *args: told.append(args[0]))
    run_in_processpool_sync(int)
    _pool.pool._events.put(fail)

    with ThreadPoolExecutor(2) as threads:
        assert [*threads.map(run_in_processpool_sync, [functions.echo] * 6, range(6))]
    wait_until(lambda: told == [MemoryError], "the pool's thread has not told of it")


def test_what_some_systems_lack_is_not_needed(tmp_path: Path) -> None:
    source = """
        import asyncio, fcntl, logging, os, sys  # asyncio itself needs the first one in order to be imported
        for module, name in (
            (os, "register_at_fork"), (os, "pidfd_open"), (os, "memfd_create"), (fcntl, "F_SETPIPE_SZ")
        ):
            if hasattr(module, name):
                delattr(module, name)
        import anyio
        from unfazed.concurrency import *
        def chatty(n):
            logging.getLogger("x").warning("%d", n)
            print("printed", n)
            return n
        def die():
            os._exit(3)
        async def main():
            return [await run_in_processpool(chatty, 2), await run_in_processpool(len, b"x" * 1_000_000)]
        if __name__ == "__main__":
            logging.basicConfig(stream=sys.stdout, format="%(message)s")
            print(run_in_processpool_sync(chatty, 1), anyio.run(main))
            try:
                run_in_processpool_sync(die)
            except WorkerProcessError as exc:
                print(exc.reason)
    """

    out, err = run_program(tmp_path, write(tmp_path / "program.py", source))

    assert out == "1\n2\n1 [2, 1000000]\nended with exit code 3 before it answered\n"
    assert err == "printed 1\nprinted 2\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_the_default_limit_counts_the_cpus_that_this_process_may_use(tmp_path: Path) -> None:
    source = """
        import os, anyio
        from anyio.to_process import current_default_process_limiter
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        from unfazed.concurrency import *
        async def main(total):
            if total:
                current_default_process_limiter().total_tokens = total
            await run_in_processpool(int)
            return current_default_process_limiter().total_tokens
        if __name__ == "__main__":
            print(anyio.run(main, 0), anyio.run(main, 7))
    """

    assert run_program(tmp_path, write(tmp_path / "program.py", source)) == ("1 7\n", "")
