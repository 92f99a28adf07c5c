"""Iterators and context managers whose end comes in another event loop, or after their own has ended."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from conftest import GRACE_SECONDS
from iterables import Counter
from managers import Manager

from unfazed.concurrency import LoopStateError, contextmanager_in_threadpool, iterate_in_threadpool

Backend = tuple[str, dict[str, Any]]


@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_iterator_that_is_closed_after_its_loop_says_so_and_is_closed(anyio_backend: Backend, prefetch: int) -> None:
    async def begin() -> Any:
        iterator = iterate_in_threadpool(source, prefetch=prefetch)
        assert await iterator.__anext__() == 0
        return iterator

    async def close() -> None:
        with anyio.fail_after(GRACE_SECONDS), pytest.raises(LoopStateError, match="another event loop"):
            await iterator.aclose()

    source = Counter()
    iterator = anyio.run(begin, backend=anyio_backend[0], backend_options=anyio_backend[1])
    anyio.run(close, backend=anyio_backend[0], backend_options=anyio_backend[1])

    assert source.closed.wait(GRACE_SECONDS)


def test_an_iterator_that_has_ended_can_be_closed_again_anywhere(anyio_backend: Backend) -> None:
    async def iterate() -> Any:
        iterator = iterate_in_threadpool([1])
        assert [item async for item in iterator] == [1]
        await iterator.aclose()
        return iterator

    iterator = anyio.run(iterate, backend=anyio_backend[0], backend_options=anyio_backend[1])
    anyio.run(iterator.aclose, backend=anyio_backend[0], backend_options=anyio_backend[1])


def test_a_context_manager_that_is_left_after_its_loop_says_so_and_is_left(anyio_backend: Backend) -> None:
    async def leave() -> None:
        with anyio.fail_after(GRACE_SECONDS), pytest.raises(LoopStateError, match="another event loop"):
            await manager.__aexit__(None, None, None)

    inner = Manager()
    manager = contextmanager_in_threadpool(inner)
    anyio.run(manager.__aenter__, backend=anyio_backend[0], backend_options=anyio_backend[1])
    anyio.run(leave, backend=anyio_backend[0], backend_options=anyio_backend[1])

    assert inner.left.wait(GRACE_SECONDS)


def test_a_coroutine_that_is_closed_after_its_loop_leaves_its_context_manager() -> None:
    """On asyncio, whose loops may be closed with open tasks."""

    async def hold() -> None:
        async with contextmanager_in_threadpool(inner):
            entered.set()
            await asyncio.sleep(1000)

    async def begin() -> None:
        tasks.append(asyncio.ensure_future(hold()))
        while not entered.is_set():
            await asyncio.sleep(0.001)

    inner, entered, tasks = Manager(), threading.Event(), list[asyncio.Future[None]]()
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    tasks.pop().get_coro().close()  # type: ignore[attr-defined]

    assert inner.left.wait(GRACE_SECONDS)


@pytest.mark.anyio
async def test_closing_again_lets_other_tasks_run_and_be_cancelled() -> None:
    iterator = iterate_in_threadpool([1])
    assert [item async for item in iterator] == [1]
    await iterator.aclose()

    with anyio.CancelScope() as scope:
        scope.cancel()
        await iterator.aclose()

    assert scope.cancelled_caught
