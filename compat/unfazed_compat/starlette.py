"""The names of Starlette and FastAPI: `run_in_threadpool`, `iterate_in_threadpool`, `contextmanager_in_threadpool`.

| promise of `starlette.concurrency` (https://www.starlette.io/threadpool/) and `fastapi.concurrency` | kept |
|---|---|
| functions run in worker threads, as many as anyio's default limiter lets run | yes; Starlette's own apart |
| … in a copy of the caller's context | yes |
| … and may call back with `anyio.from_thread` | yes; with our `..._sync` calls they lend their slot meanwhile |
| `*args` and `**kwargs` are the function's, but for a keyword `func` | yes |
| what it returns or raises comes back as itself | yes; what turns out to be async is a `TypeError` |
| a cancelled request waits for its thread | yes; after asyncio's own `task.cancel()` as well |
| nested calls can use up all threads and wait for ever | no: a worker that waits lends its slot |
| each step of an iterator waits for a thread, and may run in another one | no: one thread for all of them |
| … in a copy of the context as it is then | no: one context, a copy of that of the first step |
| an iterator that is left early is closed when nobody holds it any more | yes, in its thread; or by `aclose` |
| … which a `StreamingResponse` does for a while when its client has gone | as there: close it in a dependency |
| a context manager is entered in a thread of the pool | no: without a slot, so whoever waits there holds up no one |
| … and left without waiting for one, whatever cancels the request | yes |
| … in another thread and another context, perhaps | no: in those of its entry |
| … with the exception, which it can suppress | yes |
| asyncio and trio | yes |

Starlette's `Route` takes whatever is no function for an ASGI application, and so a dual callable (`in_threadpool(f)`).
Give it an `async def` that awaits that, or `unfazed_compat.asyncer.asyncify(f)`. FastAPI takes dual callables.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, ParamSpec, TypeVar

from anyio import CapacityLimiter

from unfazed.concurrency import contextmanager_in_threadpool as _contextmanager_in_threadpool
from unfazed.concurrency import iterate_in_threadpool as _iterate_in_threadpool
from unfazed.concurrency import run_in_threadpool as _run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from unfazed.concurrency import ThreadpoolIterator

__all__ = ("contextmanager_in_threadpool", "iterate_in_threadpool", "run_in_threadpool")

P = ParamSpec("P")
T = TypeVar("T")

# A dependency may wait, as it is entered, for what other requests hold: a connection. They need threads to go on and
# give it back. If it waited in one of those, they would wait for each other. Its thread is one of its own anyhow.
_WITHOUT_SLOTS: Final = CapacityLimiter(math.inf)


async def run_in_threadpool(func: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in a worker thread and await its result, as Starlette's does.

    `unfazed.concurrency.run_in_threadpool` documents the arguments, the cancellation and the errors.
    """
    return await _run_in_threadpool(func, *args, **kwargs)


def iterate_in_threadpool(iterator: Iterable[T]) -> ThreadpoolIterator[T]:
    """Iterate over a sync iterable that blocks, from async code, as Starlette's does.

    `unfazed.concurrency.iterate_in_threadpool` documents the cancellation and the errors, and can fetch ahead.
    """
    return _iterate_in_threadpool(iterator)


def contextmanager_in_threadpool(
    cm: AbstractContextManager[T, bool | None],
) -> AbstractAsyncContextManager[T, bool | None]:
    """Use a sync context manager that blocks from async code, as FastAPI's does.

    `unfazed.concurrency.contextmanager_in_threadpool` documents the cancellation and the errors. Neither entering nor
    leaving takes a slot.
    """
    return _contextmanager_in_threadpool(cm, limiter=_WITHOUT_SLOTS)
