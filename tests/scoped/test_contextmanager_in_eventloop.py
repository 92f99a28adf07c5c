"""Async context managers in sync code: each has one task and one context."""

from __future__ import annotations

import contextvars
import subprocess
import sys
import threading
import traceback
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import GRACE_SECONDS, Caller, Gate, captured, end_background_eventloop, wait_until
from managers import AsyncManager, is_cancellation, task_group

from unfazed.concurrency import (
    EventLoopThread,
    InUseError,
    LoopEndedError,
    LoopThreadError,
    contextmanager_in_eventloop_sync,
    run_in_eventloop_sync,
    run_in_threadpool,
)
from unfazed.concurrency._scoped import _contextmanagers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def test_entered_and_left_in_one_task_and_one_context(sync_caller: Caller) -> None:
    tasks: set[int] = set()
    events: list[str] = []

    @asynccontextmanager
    async def manager() -> AsyncIterator[str]:
        token = variable.set("inside")
        with anyio.CancelScope():
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                tasks.add(anyio.get_current_task().id)
                yield variable.get()
                tasks.add(anyio.get_current_task().id)
                group.cancel_scope.cancel()
        variable.reset(token)
        events.append(variable.get())

    def use() -> str:
        variable.set("the caller's")
        with contextmanager_in_eventloop_sync(manager()) as value:
            variable.set("changed in the body")
        return value

    assert sync_caller.make(use) == "inside"
    assert events == ["the caller's"]
    assert len(tasks) == 1


def test_a_task_group_that_is_held_across_runs_what_the_body_gives_it(sync_caller: Caller) -> None:
    results: list[str] = []

    async def child() -> None:
        results.append("child")

    def use() -> None:
        with contextmanager_in_eventloop_sync(task_group()) as group:

            async def start() -> None:
                group.start_soon(child)

            run_in_eventloop_sync(start)

    sync_caller.make(use)

    assert results == ["child"]


def test_in_a_worker_it_is_entered_in_the_loop_of_that_worker(background: tuple[str, dict[str, Any]]) -> None:
    manager = AsyncManager()

    def use() -> None:
        with contextmanager_in_eventloop_sync(manager):
            pass

    for kind in ("our worker", "anyio's worker"):
        Caller(kind, background).make(use)

    assert set(manager.threads) == {threading.get_ident()}


def use_and_raise(manager: Any, error: BaseException) -> None:
    with contextmanager_in_eventloop_sync(manager):
        raise error


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(3), KeyboardInterrupt(), StopIteration(), StopAsyncIteration(), GeneratorExit()],
    ids=repr,
)
def test_exceptions_are_passed_in_and_go_on_in_sync_code(sync_caller: Caller, error: BaseException) -> None:
    manager = AsyncManager()

    outcome = sync_caller.make(partial(captured, partial(use_and_raise, manager, error)))

    assert outcome == (None, error)
    assert manager.left_with == [error]
    assert len(set(manager.tasks)) == 1


def test_exceptions_can_be_suppressed_in_sync_code(sync_caller: Caller) -> None:
    sync_caller.make(partial(use_and_raise, AsyncManager(suppress=True), ValueError("no")))


def test_what_entering_raised_is_raised_in_sync_code_and_nothing_is_left(sync_caller: Caller) -> None:
    class Failing(AsyncManager):
        async def __aenter__(self) -> AsyncManager:
            raise ValueError("entering")

    manager = Failing()

    with pytest.raises(ValueError, match="entering") as caught:
        sync_caller.make(partial(use_and_raise, manager, KeyError()))

    assert traceback.extract_tb(caught.tb)[-1].line == 'raise ValueError("entering")'
    assert manager.left_with == []


def test_what_leaving_raised_is_raised_in_sync_code(sync_caller: Caller) -> None:
    class Failing(AsyncManager):
        async def __aexit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
            raise ValueError("leaving")

    with pytest.raises(ValueError, match="leaving"):
        sync_caller.make(partial(use_and_raise, Failing(), KeyError()))


def test_entering_it_twice_at_once_is_refused_in_sync_code(sync_caller: Caller) -> None:
    inner = AsyncManager()

    def use() -> None:
        manager = contextmanager_in_eventloop_sync(inner)
        with manager, pytest.raises(InUseError, match="contextmanager_in_eventloop_sync"):
            manager.__enter__()

    sync_caller.make(use)

    assert (inner.times_entered, inner.left_with) == (1, [None])


def test_it_can_be_entered_again_in_sync_code_when_it_has_been_left(sync_caller: Caller) -> None:
    inner = AsyncManager()

    def use() -> None:
        manager = contextmanager_in_eventloop_sync(inner)
        for _ in range(3):
            with manager as value:
                assert value is inner

    sync_caller.make(use)

    assert (inner.times_entered, inner.left_with) == (3, [None] * 3)


@pytest.mark.anyio
async def test_a_thread_with_a_running_loop_is_refused() -> None:
    manager = AsyncManager()

    with pytest.raises(LoopThreadError, match="async with"):
        contextmanager_in_eventloop_sync(manager).__enter__()
    assert manager.times_entered == 0


def test_when_the_background_loop_has_ended_it_has_been_left_and_says_so(background: Any) -> None:
    inner = AsyncManager()
    manager = contextmanager_in_eventloop_sync(inner)
    manager.__enter__()
    end_background_eventloop()

    with pytest.raises(LoopEndedError):
        manager.__exit__(None, None, None)
    assert [type(error) for error in inner.left_with] == [LoopEndedError]
    assert len(set(inner.tasks)) == 1


def test_when_its_event_loop_thread_is_stopped_meanwhile_it_is_left_with_an_error(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    inner = AsyncManager()
    manager = contextmanager_in_eventloop_sync(inner)
    entered = threading.Event()
    gate = Gate()
    errors: list[BaseException | None] = []

    def use() -> None:
        manager.__enter__()
        entered.set()
        gate.wait()
        errors.append(captured(partial(manager.__exit__, None, None, None))[1])

    async def work() -> None:
        await run_in_threadpool(use)

    backend, options = anyio_backend
    loop = EventLoopThread(backend, options)
    with loop:
        caller = threading.Thread(target=lambda: captured(partial(loop.run_sync, work)))
        caller.start()
        assert entered.wait(GRACE_SECONDS)
        stopping = threading.Thread(target=loop.stop)
        stopping.start()
        wait_until(lambda: inner.left_with, "it is left")
        gate.opened.set()
        stopping.join(GRACE_SECONDS)
        caller.join(GRACE_SECONDS)

    assert [type(error) for error in inner.left_with] == [LoopEndedError]
    if backend == "asyncio":  # where only the first wait of a cancelled worker is cancelled
        assert [type(error) for error in errors] == [LoopEndedError]
    else:
        assert is_cancellation(errors[0])


def test_a_loop_that_ends_with_it_entered_leaves_it(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    inner = AsyncManager()
    backend, options = anyio_backend
    kept: list[Any] = []

    def enter() -> None:
        manager = contextmanager_in_eventloop_sync(inner)
        kept.append(manager)
        manager.__enter__()

    anyio.run(run_in_threadpool, enter, backend=backend, backend_options=options)

    assert len(inner.left_with) == 1
    assert len(set(inner.tasks)) == 1


PROGRAM = """
import anyio, sys
from unfazed.concurrency import contextmanager_in_eventloop_sync, contextmanager_in_threadpool
from unfazed.concurrency import iterate_in_eventloop_sync, iterate_in_threadpool, run_in_threadpool
from contextlib import asynccontextmanager, contextmanager

@asynccontextmanager
async def async_manager():
    try:
        yield
    finally:
        print("async left", flush=True)

@contextmanager
def sync_manager():
    try:
        yield
    finally:
        print("sync left", flush=True)

kept = []

def enter():
    kept.append(contextmanager_in_eventloop_sync(async_manager()))
    kept[-1].__enter__()

async def main():
    kept.append(contextmanager_in_threadpool(sync_manager()))
    await kept[-1].__aenter__()
    await run_in_threadpool(enter)

enter()
anyio.run(main, backend=sys.argv[1])
print("end", flush=True)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_program_ends_though_some_are_still_entered(backend: str) -> None:
    pytest.importorskip(backend)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, backend], capture_output=True, text=True, timeout=30, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n").count("async left") == 2, done.stdout + done.stderr


def test_abandoned_is_an_error_that_says_so() -> None:
    kind, error, _ = _contextmanagers._loop_ended()

    assert kind is LoopEndedError
    assert "has ended" in str(error)
