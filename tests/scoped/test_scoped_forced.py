"""Iterators and context managers whose tasks were lost: two signal handlers have raised in them, in a row."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from contextvars import copy_context
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import GRACE_SECONDS, in_plain_thread
from managers import Manager

from unfazed.concurrency import LoopEndedError, contextmanager_in_threadpool, iterate_in_threadpool
from unfazed.concurrency._core._futures import OneShotFuture
from unfazed.concurrency._core._taskcall import TaskCall
from unfazed.concurrency._eventloops import _loops, _waiting
from unfazed.concurrency._eventloops._loopthread import submit_here
from unfazed.concurrency._scoped import _feed, _threadrunner
from unfazed.concurrency._scoped._taskrunner import TaskRunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Context

pytestmark = pytest.mark.anyio


def lose(call: TaskCall[None], _: Context) -> None:
    """Begin *call*, and leave it without a task and a result."""
    call.set_loop(_loops.current_loop())
    call.taken = True


@contextmanager
def never_entered() -> Iterator[None]:
    pytest.fail("must not run")
    yield


async def test_a_thread_that_starts_quickly_enters_nothing_in_a_cancelled_scope(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Quick(SimpleQueue[Any]):
        def put(self, step: Any, block: bool = True, timeout: float | None = None) -> None:
            in_plain_thread(step) if step else super().put(step)

    monkeypatch.setattr(_threadrunner, "SimpleQueue", Quick)

    manager = Manager()
    with anyio.CancelScope() as scope:
        scope.cancel()
        await contextmanager_in_threadpool(manager).__aenter__()

    assert scope.cancelled_caught
    assert manager.times_entered == 0


async def test_the_task_that_is_to_start_the_thread_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(_threadrunner, "submit_here", lose)

    with anyio.fail_after(GRACE_SECONDS), pytest.raises(LoopEndedError):
        async with contextmanager_in_threadpool(never_entered()):
            pytest.fail("must not be entered")
    with anyio.fail_after(GRACE_SECONDS), pytest.raises(LoopEndedError):
        await iterate_in_threadpool([1]).__anext__()


async def test_the_task_that_fetches_ahead_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "CHECK_SECONDS", 0.01)
    iterator = iterate_in_threadpool([1], prefetch=1)

    with monkeypatch.context() as patch, anyio.fail_after(GRACE_SECONDS):
        patch.setattr(_feed, "submit_here", lose)
        with pytest.raises(LoopEndedError):
            await iterator.__anext__()
    with anyio.fail_after(GRACE_SECONDS):
        await iterator.aclose()


async def test_an_end_of_fetching_ahead_that_was_noted_by_half_is_noted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "CHECK_SECONDS", 0.01)
    fetched = _feed.Feed._fetched
    lost: list[TaskCall[None]] = []

    def lose_first(call: TaskCall[None], context: Context) -> None:
        if lost:
            submit_here(call, context)
        else:
            lost.append(call)
            lose(call, context)

    def note_by_half(self: _feed.Feed[int]) -> None:
        if len(lost) == 1:
            lost.append(lost[0])
            self._fetching = None
        else:
            fetched(self)

    monkeypatch.setattr(_feed, "submit_here", lose_first)
    monkeypatch.setattr(_feed.Feed, "_fetched", note_by_half)
    with anyio.fail_after(GRACE_SECONDS):
        assert [item async for item in iterate_in_threadpool([1], prefetch=1)] == [1]


@pytest.mark.skipif(sys.version_info < (3, 11), reason="before, asyncio counts no cancellations")
async def test_a_runner_whose_call_and_task_are_cancelled_together_ends(anyio_backend_name: str) -> None:
    """asyncio delivers two cancellations as one. The end of the loop is one of them."""
    if anyio_backend_name == "trio":
        pytest.skip("trio does not cancel single tasks")

    async def last(cancellation: BaseException | None) -> None:
        ended.set()

    started, ended = anyio.Event(), anyio.Event()

    async def work() -> None:
        started.set()
        await anyio.sleep_forever()

    runner = TaskRunner(last)
    await runner.start()
    call: TaskCall[None] = TaskCall(work, OneShotFuture())
    runner.take(call, copy_context())
    await started.wait()
    call.cancel()  # which the loop carries out before the task is woken
    abort: Any = runner._abort
    abort.__self__.cancel()
    with anyio.fail_after(GRACE_SECONDS):
        await ended.wait()
