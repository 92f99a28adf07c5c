"""The standard library's names: `to_thread`, on asyncio and on trio.

| promise of `asyncio.to_thread` (https://docs.python.org/3/library/asyncio-task.html) | kept |
|---|---|
| takes `*args` and `**kwargs`, all for the function | yes |
| the function runs in a thread of its own, in a copy of the caller's context | yes |
| what it returns or raises comes back as itself | yes; what turns out to be async is a `TypeError` |
| the threads are those of the loop's default executor | no: anyio's, as many as its default limiter lets run |
| a cancelled call leaves its thread behind | no: it waits for the thread, then raises the cancellation |
| nested calls can use up all threads and wait for ever | no: a worker that waits lends its slot |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

from unfazed.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("to_thread",)

P = ParamSpec("P")
T = TypeVar("T")


async def to_thread(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in a worker thread and await its result, as `asyncio.to_thread` does.

    `run_in_threadpool` documents the arguments, the cancellation and the errors.
    """
    return await run_in_threadpool(func, *args, **kwargs)
