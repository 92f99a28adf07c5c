"""Async context managers in sync code that are cancelled, or that hold a cancelled scope."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from conftest import GRACE_SECONDS, Caller, captured, wait_for_event
from managers import AsyncManager, is_cancellation, task_group

from unfazed.concurrency import contextmanager_in_eventloop_sync, run_in_eventloop_sync, run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class SleepyManager(AsyncManager):
    """Sleeps until it is cancelled, on entering or on leaving, and then cleans up."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.sleeping = threading.Event()
        self.cleaned_up = False

    async def sleep(self, where: str) -> None:
        if self.where != where:
            return
        try:
            self.sleeping.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.cleaned_up = True

    async def __aenter__(self) -> AsyncManager:
        await self.sleep("enter")
        return await super().__aenter__()

    async def __aexit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
        await super().__aexit__(exc_type, exc, tb)
        await self.sleep("exit")
        return False


def cancelled_in_a_worker(background: tuple[str, dict[str, Any]], manager: SleepyManager) -> list[str]:
    """Use *manager* in a worker, cancel the worker when the manager sleeps, and return what it raised."""
    raised: list[str] = []

    async def sleep_in_the_body() -> None:
        await manager.sleep("body")

    def use() -> None:
        try:
            with contextmanager_in_eventloop_sync(manager):
                run_in_eventloop_sync(sleep_in_the_body)
        except BaseException as exc:
            raised.append(type(exc).__name__)
            raise

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_threadpool, use)
            await wait_for_event(manager.sleeping)
            tasks.cancel_scope.cancel()

    Caller("", background).run(main)
    return raised


def test_cancelled_while_it_is_entered_in_a_worker_it_is_not_left(background: tuple[str, dict[str, Any]]) -> None:
    manager = SleepyManager("enter")

    raised = cancelled_in_a_worker(background, manager)

    assert raised == ["CancelledError" if background[0] == "asyncio" else "Cancelled"]
    assert manager.cleaned_up
    assert manager.left_with == []


def test_cancelled_in_the_body_in_a_worker_it_is_left_with_the_cancellation(
    background: tuple[str, dict[str, Any]],
) -> None:
    manager = SleepyManager("body")

    raised = cancelled_in_a_worker(background, manager)

    assert raised == ["CancelledError" if background[0] == "asyncio" else "Cancelled"]
    assert [is_cancellation(error) for error in manager.left_with] == [True]
    assert len(set(manager.tasks)) == 1


def test_cancelled_while_it_is_left_in_a_worker_its_cleanup_is_waited_for(
    background: tuple[str, dict[str, Any]],
) -> None:
    manager = SleepyManager("exit")

    raised = cancelled_in_a_worker(background, manager)

    assert raised == ["CancelledError" if background[0] == "asyncio" else "Cancelled"]
    assert manager.cleaned_up
    assert manager.left_with == [None]


class HeldScope:
    """Holds a cancel scope open. Another call cancels the scope; then the manager does what it was told to do."""

    def __init__(self, outcome: BaseException | None) -> None:
        self.outcome = outcome
        self.left = threading.Event()
        self.scope: anyio.CancelScope | None = None

    async def __aenter__(self) -> HeldScope:
        self.scope = anyio.CancelScope()
        self.scope.__enter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        assert self.scope is not None
        suppressed = self.scope.__exit__(exc_type, exc, traceback)
        self.left.set()
        if self.outcome is not None:
            raise self.outcome
        return bool(suppressed)

    def cancel_and_wait(self) -> None:
        async def cancel() -> None:
            assert self.scope is not None
            self.scope.cancel()

        run_in_eventloop_sync(cancel)
        assert self.left.wait(GRACE_SECONDS), "it is never left"


def test_a_held_scope_that_was_cancelled_raises_what_it_made_of_that(sync_caller: Caller) -> None:
    def use() -> None:
        manager = HeldScope(TimeoutError("of the scope"))
        with contextmanager_in_eventloop_sync(manager):
            manager.cancel_and_wait()

    value, error = sync_caller.make(partial(captured, use))

    assert value is None
    assert str(error) == "of the scope"


def test_a_held_scope_that_was_cancelled_and_is_content_raises_nothing(sync_caller: Caller) -> None:
    def use() -> str:
        manager = HeldScope(None)
        with contextmanager_in_eventloop_sync(manager):
            manager.cancel_and_wait()
        return "done"

    assert sync_caller.make(partial(captured, use)) == ("done", None)


def test_what_the_body_raised_goes_on_though_a_held_scope_was_cancelled(sync_caller: Caller) -> None:
    def use() -> None:
        manager = HeldScope(None)
        with contextmanager_in_eventloop_sync(manager):
            manager.cancel_and_wait()
            raise LookupError("of the body")

    assert str(sync_caller.make(partial(captured, use))[1]) == "of the body"


def test_a_task_that_fails_in_a_group_that_is_held_fails_the_group(sync_caller: Caller) -> None:
    failed = threading.Event()

    async def failing() -> None:
        failed.set()
        raise LookupError("of the child")

    def use() -> None:
        with contextmanager_in_eventloop_sync(task_group()) as tasks:
            call_in_the_loop(tasks.start_soon, failing)
            assert failed.wait(GRACE_SECONDS)

    error: Any = sync_caller.make(partial(captured, use))[1]

    assert [str(each) for each in error.exceptions] == ["of the child"]


def call_in_the_loop(func: Callable[..., object], *args: object) -> None:
    async def call() -> None:
        func(*args)

    run_in_eventloop_sync(call)
