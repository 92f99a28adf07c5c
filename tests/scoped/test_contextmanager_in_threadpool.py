"""Sync context managers in async code: each has one thread and one context."""

from __future__ import annotations

import contextvars
import threading
import traceback
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import GRACE_SECONDS, Gate, captured_async, let_others_run, limit_threads, wait_until
from managers import GatedManager, Manager

from unfazed.concurrency import (
    InUseError,
    LoopEndedError,
    WrongFunctionError,
    WrongOptionError,
    contextmanager_in_eventloop_sync,
    contextmanager_in_threadpool,
    run_in_eventloop_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._scoped import _threadrunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.mark.anyio
async def test_entered_and_left_in_one_thread_and_one_context() -> None:
    threads: set[int] = set()

    @contextmanager
    def manager() -> Iterator[str]:
        token = variable.set("inside")
        threads.add(threading.get_ident())
        try:
            yield variable.get()
        finally:
            threads.add(threading.get_ident())
            variable.reset(token)
            after.append(variable.get())

    after: list[str] = []
    variable.set("the caller's")
    async with contextmanager_in_threadpool(manager()) as value:
        variable.set("changed in the body")

    assert (value, after) == ("inside", ["the caller's"])
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.anyio
async def test_left_with_nothing_when_the_body_ends_well() -> None:
    manager = Manager()

    async with contextmanager_in_threadpool(manager) as value:
        assert value is manager

    assert manager.left_with == [None]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
async def test_exceptions_are_passed_in_and_go_on(error: BaseException) -> None:
    manager = Manager()

    async def body() -> None:
        async with contextmanager_in_threadpool(manager):
            raise error

    assert await captured_async(body) == (None, error)
    assert manager.left_with == [error]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [StopIteration(), StopAsyncIteration()], ids=repr)
async def test_stop_iterations_are_passed_in_and_do_not_hang(error: BaseException) -> None:
    manager = Manager(suppress=True)

    async with contextmanager_in_threadpool(manager):
        raise error

    assert manager.left_with == [error]


@pytest.mark.anyio
async def test_exceptions_can_be_suppressed() -> None:
    async with contextmanager_in_threadpool(Manager(suppress=True)):
        raise ValueError("no")


@pytest.mark.anyio
async def test_what_entering_raised_is_raised_with_its_traceback_and_nothing_is_left() -> None:
    class Failing(Manager):
        def __enter__(self) -> Manager:
            raise ValueError("entering")

    manager = Failing()

    with pytest.raises(ValueError, match="entering") as caught:
        async with contextmanager_in_threadpool(manager):
            pytest.fail("not entered")

    assert traceback.extract_tb(caught.tb)[-1].line == 'raise ValueError("entering")'
    assert manager.left_with == []


class FailsToLeave(Manager):
    def __exit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
        super().__exit__(exc_type, exc, tb)
        raise ValueError("leaving")


@pytest.mark.anyio
async def test_what_leaving_raised_is_raised() -> None:
    with pytest.raises(ValueError, match="leaving"):
        async with contextmanager_in_threadpool(FailsToLeave()):
            pass


@pytest.mark.anyio
async def test_what_leaving_raised_wins_over_what_the_body_raised() -> None:
    manager = FailsToLeave()
    error = KeyError("body")

    async def body() -> None:
        async with contextmanager_in_threadpool(manager):
            raise error

    with pytest.raises(ValueError, match="leaving"):
        await body()
    assert manager.left_with == [error]


@pytest.mark.anyio
async def test_what_leaving_raised_is_raised_however_fast_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: the runner is left. 2: its thread has ended. 3: only now does the loop get round to waiting for that."""
    leave = _threadrunner.ThreadRunner.leave

    def leave_and_let_it_end(runner: _threadrunner.ThreadRunner[Any]) -> None:
        leave(runner)
        wait_until(lambda: runner._outcome is not None, "the thread ends")

    monkeypatch.setattr(_threadrunner.ThreadRunner, "leave", leave_and_let_it_end)

    with pytest.raises(ValueError, match="leaving"):
        async with contextmanager_in_threadpool(FailsToLeave()):
            pass


@pytest.mark.anyio
async def test_an_entered_one_holds_no_slot_and_entering_takes_one() -> None:
    limit_threads(1)
    gate = Gate()

    async with contextmanager_in_threadpool(Manager()), contextmanager_in_threadpool(Manager()):
        assert await run_in_threadpool(int) == 0

    second = Manager()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, gate.wait)
        await gate.wait_until_reached()
        async with anyio.create_task_group() as entering:
            entering.start_soon(contextmanager_in_threadpool(second).__aenter__)
            await let_others_run()
            entering.cancel_scope.cancel()
        gate.opened.set()

    assert second.times_entered == 0


@pytest.mark.anyio
async def test_entering_takes_its_slot_of_the_limiter_that_is_given() -> None:
    limit_threads(1)
    own = anyio.CapacityLimiter(1)
    gate = Gate()
    first, second = GatedManager(on_enter=True), Manager()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, gate.wait)
        await gate.wait_until_reached()
        async with anyio.create_task_group() as entering:
            entering.start_soon(contextmanager_in_threadpool(first, limiter=own).__aenter__)
            await first.on_enter.wait_until_reached()  # though the pool is exhausted
            entering.start_soon(contextmanager_in_threadpool(second, limiter=own).__aenter__)
            await let_others_run()
            entering.cancel_scope.cancel()
            first.on_enter.opened.set()
        gate.opened.set()

    assert (first.times_entered, second.times_entered) == (1, 0)


def test_what_is_no_limiter_is_refused_at_once() -> None:
    with pytest.raises(WrongOptionError, match=r"contextmanager_in_threadpool\(limiter=...\) must be an anyio"):
        contextmanager_in_threadpool(Manager(), limiter=3)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_leaving_waits_for_no_slot_though_the_pool_is_exhausted() -> None:
    limit_threads(1)
    gate = Gate()
    manager = Manager()

    async with anyio.create_task_group() as tasks:
        async with contextmanager_in_threadpool(manager):
            tasks.start_soon(run_in_threadpool, gate.wait)
            await gate.wait_until_reached()
        assert manager.left_with == [None]
        gate.opened.set()


@pytest.mark.anyio
async def test_a_hundred_entered_at_once_with_a_single_slot() -> None:
    limit_threads(1)
    managers = [Manager() for _ in range(100)]
    inside = 0
    all_inside = anyio.Event()

    async def use(manager: Manager) -> None:
        nonlocal inside
        async with contextmanager_in_threadpool(manager):
            inside += 1
            if inside == 100:
                all_inside.set()
            await all_inside.wait()

    async with anyio.create_task_group() as tasks:
        for manager in managers:
            tasks.start_soon(use, manager)

    assert all(manager.left_with == [None] and len(set(manager.threads)) == 1 for manager in managers)


@pytest.mark.anyio
async def test_entering_it_twice_at_once_is_refused() -> None:
    inner = Manager()
    manager = contextmanager_in_threadpool(inner)

    async with manager:
        with pytest.raises(InUseError, match="contextmanager_in_threadpool"):
            await manager.__aenter__()

    assert (inner.times_entered, inner.left_with) == (1, [None])


@pytest.mark.anyio
async def test_it_can_be_entered_again_when_it_has_been_left() -> None:
    inner = Manager()
    manager = contextmanager_in_threadpool(inner)

    for _ in range(3):
        async with manager as value:
            assert value is inner

    assert (inner.times_entered, inner.left_with) == (3, [None] * 3)


@pytest.mark.anyio
async def test_it_can_be_entered_again_when_entering_failed_or_was_cancelled() -> None:
    inner = Manager()
    manager = contextmanager_in_threadpool(inner)

    with anyio.CancelScope() as scope:
        scope.cancel()
        await manager.__aenter__()
    async with manager:
        pass

    assert inner.left_with == [None]


@pytest.mark.anyio
async def test_threads_that_cannot_be_started_give_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_more_threads(*args: object, **kwargs: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("unfazed.concurrency._scoped._threadrunner.to_thread.run_sync", no_more_threads)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await contextmanager_in_threadpool(Manager()).__aenter__()

    assert await run_in_threadpool(int) == 0


@pytest.mark.anyio
async def test_entering_and_leaving_may_call_async_code_with_a_single_slot() -> None:
    limit_threads(1)

    async def add(number: int) -> int:
        return await run_in_threadpool(lambda: number + 1)

    @contextmanager
    def manager() -> Iterator[int]:
        yield run_in_eventloop_sync(add, 1)
        results.append(run_in_threadpool_sync(int, run_in_eventloop_sync(add, 2)))

    results: list[int] = []
    async with contextmanager_in_threadpool(manager()) as value:
        pass

    assert (value, results) == (2, [3])


def test_when_its_loop_ends_without_its_exit_it_is_left_in_its_thread_with_an_error(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_threadrunner, "CHECK_SECONDS", 0.01)
    inner = Manager()
    manager = contextmanager_in_threadpool(inner)
    backend, options = anyio_backend

    anyio.run(manager.__aenter__, backend=backend, backend_options=options)

    assert inner.left.wait(GRACE_SECONDS)
    assert isinstance(inner.left_with[0], LoopEndedError)
    assert len(set(inner.threads)) == 1


@asynccontextmanager
async def async_manager() -> AsyncIterator[int]:
    yield 1


@contextmanager
def sync_manager() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (async_manager(), "`async with` without contextmanager_in_threadpool"),
        (sync_manager, r"`contextmanager_in_threadpool\(sync_manager\(...\)\)`"),
        (3, "expected a context manager, got 3"),
    ],
    ids=["async", "function", "3"],
)
def test_what_is_no_context_manager_is_refused_at_once(source: Any, message: str) -> None:
    with pytest.raises(WrongFunctionError, match=message):
        contextmanager_in_threadpool(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (sync_manager(), "`with` without contextmanager_in_eventloop_sync"),
        (async_manager, r"`contextmanager_in_eventloop_sync\(async_manager\(...\)\)`"),
        (3, "expected an async context manager, got 3"),
    ],
    ids=["sync", "function", "3"],
)
def test_what_is_no_async_context_manager_is_refused_at_once(source: Any, message: str) -> None:
    with pytest.raises(WrongFunctionError, match=message):
        contextmanager_in_eventloop_sync(source)
