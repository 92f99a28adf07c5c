"""Iterators and context managers whose tasks were lost: two signal handlers have raised in them, in a row."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import anyio
import pytest
from conftest import GRACE_SECONDS

from unfazed.concurrency import LoopEndedError, contextmanager_in_threadpool, iterate_in_threadpool
from unfazed.concurrency._eventloops import _loops, _waiting
from unfazed.concurrency._scoped import _feed, _threadrunner

if TYPE_CHECKING:
    from collections.abc import Iterator
    from contextvars import Context

    from unfazed.concurrency._core._taskcall import TaskCall

pytestmark = pytest.mark.anyio


def lose(call: TaskCall[None], _: Context) -> None:
    """Begin *call*, and leave it without a task and a result."""
    call.set_loop(_loops.current_loop())
    call.taken = True


@contextmanager
def never_entered() -> Iterator[None]:
    pytest.fail("must not run")
    yield


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
