"""The names of Starlette and FastAPI: `run_in_threadpool`, `iterate_in_threadpool`, `contextmanager_in_threadpool`.

| promise of `starlette.concurrency` (https://www.starlette.io/threadpool/) and `fastapi.concurrency` | kept |
|---|---|
| functions run in worker threads; anyio's default limiter limits how many | yes; Starlette's own count separately |
| … in a copy of the caller's context | yes |
| … and may call back with `anyio.from_thread` | yes; while they wait in our `..._sync` calls, they lend their slot |
| all arguments go to the function, except for a keyword `func` | yes |
| its result or exception comes back unchanged | yes; if the function turns out to be async: `TypeError` |
| a cancelled request waits for its thread | yes; also after asyncio's own `task.cancel()` |
| nested calls can use up all threads and deadlock | no: a worker that waits lends its slot |
| each step of an iterator waits for a thread, and may run in another one | no: one thread runs all steps |
| … in a copy of the current context | no: all steps share a copy of the context of the first |
| an iterator that is left early is closed when it is garbage-collected | yes, in its thread; `aclose` does it at once |
| … a `StreamingResponse` keeps it for a while after its client has gone | the same: close it in a dependency |
| a context manager is entered in a thread of the pool | no: in a thread without a slot; waiting there starves nobody |
| … and left without waiting for a thread, even if the request is cancelled | yes |
| … perhaps in another thread and another context | no: in the same thread and context |
| … it gets the exception and can suppress it | yes |
| asyncio and trio | yes |

Starlette's `Route` takes a dual callable (`in_threadpool(f)`) for an ASGI application, because it is no function. Give
`Route` an `async def` that awaits the dual callable, or `unfazed_compat.asyncer.asyncify(f)`. FastAPI accepts dual
callables.

`install()` replaces the thread calls that Starlette 0.40 to 1.x and FastAPI 0.118 to 0.x make themselves. All of them,
except for the last two rows, then share one limit with ours. A sync endpoint lends its slot while it waits in our
`..._sync` calls. It keeps its slot while it waits in `anyio.from_thread`.

| thread call | made in | with `install()` |
|---|---|---|
| `run_in_threadpool`, `iterate_in_threadpool` | `starlette.concurrency` | as above, also if imported before |
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
| `GZipMiddleware`, large bodies | `starlette.middleware.gzip` | its own limit, as without `install()` |
| dependencies with `yield` | `fastapi.concurrency` | one thread without a slot: they starve nobody |

One thing differs from the first table: if a sync function returns a coroutine, it comes back as the result, as it does
without `install()`. If others have wrapped these functions, or have replaced anyio's, their patches stay in use.

    _install.py   replaces the thread calls, and restores them
    _code.py      the code that their functions get
    _calls.py     our thread calls, with the parameters of anyio's
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
    """Iterate from async code over a sync iterable that blocks, as Starlette's does.

    `unfazed.concurrency.iterate_in_threadpool` documents the cancellation and the errors, and can fetch ahead.
    """
    return _iterate_in_threadpool(iterator)


def contextmanager_in_threadpool(
    cm: AbstractContextManager[T, bool | None],
) -> AbstractAsyncContextManager[T, bool | None]:
    """Enter and leave a blocking sync context manager from async code, as FastAPI's does.

    `unfazed.concurrency.contextmanager_in_threadpool` documents the cancellation and the errors. Entering and
    leaving take no slot.
    """
    return _contextmanager_in_threadpool(cm, limiter=WITHOUT_SLOTS)
