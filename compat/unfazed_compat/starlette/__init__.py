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

`install()` puts the same behind the thread calls that Starlette 0.40 to 1.x and FastAPI 0.118 to 0.x make themselves.
All but the last two then share one limit with ours. A sync endpoint that calls back with our `..._sync` calls lends its
slot meanwhile; one that does so with `anyio.from_thread` keeps it:

| thread call | made in | with `install()` |
|---|---|---|
| `run_in_threadpool`, `iterate_in_threadpool` | `starlette.concurrency` | as above, whoever has imported them |
| sync endpoints | `starlette.routing`, `starlette.endpoints`, `fastapi.routing` | a slot |
| sync dependencies; checks of what sync endpoints return | `fastapi.dependencies.utils`, `fastapi.routing` | a slot |
| background tasks | `starlette.background` | a slot |
| exception handlers | `starlette._exception_handler`, `starlette.middleware.errors` | a slot |
| `FileResponse`: stat, open, read, seek, close | `starlette.responses` | a slot for each |
| `StreamingResponse` and the like | `starlette.responses`, `fastapi.routing` | one thread, a slot for each step |
| `StaticFiles`, and those of `app.frontend` | `starlette.staticfiles`, `fastapi.routing` | a slot |
| `UploadFile` | `starlette.datastructures` | a slot for each call of a file on disk |
| `WSGIMiddleware` | `starlette.middleware.wsgi` | a slot |
| sending what telemetry has collected | `fastapi.telemetry._runtime` | a slot |
| `GZipMiddleware`, large bodies | `starlette.middleware.gzip` | its own limit, as without |
| dependencies with `yield` | `fastapi.concurrency` | one thread, no slot: they starve nobody |

What else differs from the first table: a coroutine that a sync function returns comes back, as it does without. What
others have patched around these functions, or in anyio's place, stays in use.

    _install.py   what is replaced where, and taken back
    _code.py      what functions of theirs get to run        _calls.py   the thread calls behind that
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ParamSpec, TypeVar

from unfazed.concurrency import contextmanager_in_threadpool as _contextmanager_in_threadpool
from unfazed.concurrency import iterate_in_threadpool as _iterate_in_threadpool
from unfazed.concurrency import run_in_threadpool as _run_in_threadpool

from ._calls import WITHOUT_SLOTS
from ._install import Installed, install, uninstall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractAsyncContextManager, AbstractContextManager

    from unfazed.concurrency import ThreadpoolIterator

__all__ = (
    "Installed",
    "contextmanager_in_threadpool",
    "install",
    "iterate_in_threadpool",
    "run_in_threadpool",
    "uninstall",
)

P = ParamSpec("P")
T = TypeVar("T")


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
    return _contextmanager_in_threadpool(cm, limiter=WITHOUT_SLOTS)
