"""What type checkers see of the public names. Checked by mypy and pyright, never run.

Every `type: ignore` and `pyright: ignore` here is an error that users must get: both checkers complain of those
that are not needed.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from typing_extensions import assert_type

from unfazed import concurrecy
from unfazed.concurrency import (
    EventLoopThread,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_executor,
    run_in_executor_sync,
    run_in_processpool,
    run_in_processpool_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)

if TYPE_CHECKING:
    from collections.abc import Awaitable


def read(path: str, *, encoding: str = "utf-8") -> bytes:
    raise NotImplementedError


async def fetch(url: str, *, timeout: float = 1) -> list[int]:
    raise NotImplementedError


def returns_awaitable(url: str) -> Awaitable[str]:
    raise NotImplementedError


async def from_async_code() -> None:
    assert_type(await run_in_threadpool(read, "a", encoding="b"), bytes)
    assert_type(await run_in_processpool(read, "a", encoding="b"), bytes)
    assert_type(await run_in_eventloop(fetch, "a", timeout=2), list[int])
    assert_type(await run_in_eventloop(returns_awaitable, "a"), str)
    assert_type(await run_in_executor(ThreadPoolExecutor(), read, "a", encoding="b"), bytes)
    assert_type(await concurrecy.run_in_threadpool(read, "a"), bytes)
    with EventLoopThread("trio", {"restrict_keyboard_interrupt_to_checkpoints": True}, name="loop") as loop:
        assert_type(await loop.run(fetch, "a"), list[int])
        assert_type(loop.run_sync(fetch, "a", timeout=2), list[int])

    await run_in_threadpool(read, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await run_in_threadpool(read, "a", decoding="b")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await run_in_processpool(read)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await run_in_eventloop(read, "a")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def from_sync_code() -> None:
    assert_type(run_in_threadpool_sync(read, "a", encoding="b"), bytes)
    assert_type(run_in_processpool_sync(read, "a", encoding="b"), bytes)
    assert_type(run_in_eventloop_sync(fetch, "a", timeout=2), list[int])
    assert_type(run_in_executor_sync(ThreadPoolExecutor(), read, "a", encoding="b"), bytes)

    run_in_threadpool_sync(read, 1)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    run_in_processpool_sync(read, "a", decoding="b")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    run_in_eventloop_sync(fetch)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
