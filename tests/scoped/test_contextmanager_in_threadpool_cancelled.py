"""Sync context managers in async code that is cancelled: it waits for each, and exits it."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from conftest import Gate, captured_async, let_others_run
from managers import GatedManager, Manager, is_cancellation

from unfazed.concurrency import contextmanager_in_threadpool


@pytest.mark.anyio
async def test_cancelled_before_it_could_be_entered_it_is_neither_entered_nor_left() -> None:
    manager = Manager()

    async with anyio.create_task_group() as tasks:
        tasks.cancel_scope.cancel()
        async with contextmanager_in_threadpool(manager):
            pytest.fail("not entered")

    assert (manager.times_entered, manager.left_with) == (0, [])


@pytest.mark.anyio
async def test_cancelled_while_it_is_entered_it_is_waited_for_and_left_with_the_cancellation() -> None:
    manager = GatedManager(on_enter=True)
    left_when_raised: list[bool] = []

    async def use() -> None:
        try:
            async with contextmanager_in_threadpool(manager):
                pytest.fail("cancelled before the body")
        except anyio.get_cancelled_exc_class():
            left_when_raised.append(manager.left.is_set())
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        await manager.on_enter.wait_until_reached()
        tasks.cancel_scope.cancel()
        await let_others_run()
        assert left_when_raised == []
        manager.on_enter.opened.set()

    assert left_when_raised == [True]
    assert [is_cancellation(error) for error in manager.left_with] == [True]
    assert len(set(manager.threads)) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_by_asyncio_while_it_is_entered_it_is_left_with_the_cancellation() -> None:
    manager = GatedManager(on_enter=True)

    async def use() -> None:
        async with contextmanager_in_threadpool(manager):
            pytest.fail("cancelled before the body")

    task = asyncio.create_task(use())
    await manager.on_enter.wait_until_reached()
    for _ in range(2):
        task.cancel()
        await let_others_run()
        assert not task.done()
    manager.on_enter.opened.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert [is_cancellation(error) for error in manager.left_with] == [True]


@pytest.mark.anyio
async def test_cancelled_in_the_body_it_is_left_with_the_cancellation() -> None:
    manager = Manager()

    with anyio.CancelScope() as scope:
        async with contextmanager_in_threadpool(manager):
            scope.cancel()
            await anyio.sleep_forever()

    assert [is_cancellation(error) for error in manager.left_with] == [True]


@pytest.mark.anyio
async def test_cancelled_while_it_is_left_it_is_waited_for_and_the_cancellation_raised() -> None:
    manager = GatedManager(on_exit=True)
    left_when_raised: list[bool] = []

    async def use() -> None:
        try:
            async with contextmanager_in_threadpool(manager):
                pass
        except anyio.get_cancelled_exc_class():
            left_when_raised.append(manager.left.is_set())
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        await manager.on_exit.wait_until_reached()
        tasks.cancel_scope.cancel()
        await let_others_run()
        manager.on_exit.opened.set()

    assert left_when_raised == [True]
    assert manager.left_with == [None]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_by_asyncio_while_it_is_left_it_is_waited_for_and_the_cancellation_raised() -> None:
    manager = GatedManager(on_exit=True)

    async def use() -> None:
        async with contextmanager_in_threadpool(manager):
            pass

    task = asyncio.create_task(use())
    await manager.on_exit.wait_until_reached()
    for _ in range(2):
        task.cancel()
        await let_others_run()
        assert not task.done()
    manager.on_exit.opened.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert manager.left_with == [None]


@pytest.mark.anyio
async def test_what_leaving_raised_wins_over_a_cancellation() -> None:
    gate = Gate()

    class Failing(Manager):
        def __exit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
            gate.wait()
            raise ValueError("leaving")

    outcomes: list[Any] = []

    async def use() -> None:
        async with contextmanager_in_threadpool(Failing()):
            pass

    async def capture() -> None:
        outcomes.append(await captured_async(use))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(capture)
        await gate.wait_until_reached()
        tasks.cancel_scope.cancel()
        await let_others_run()
        gate.opened.set()

    assert str(outcomes[0][1]) == "leaving"
