"""asyncer's names: `asyncify`, `syncify`, `runnify`.

| promise of asyncer 0.0.18 (https://asyncer.tiangolo.com) | kept |
|---|---|
| the returned functions have the parameters and the types of the original | yes |
| … its name and its docstring | yes |
| … and are real functions (`async def` for `asyncify`), as frameworks such as Starlette (`Route`) require | yes |
| `asyncify` runs a function in a worker thread, in a copy of the caller's context | yes |
| … `limiter`, or else anyio's default limiter, bounds how many run at once | yes, over all loops and threads |
| `abandon_on_cancel`: a cancelled call leaves its thread behind | yes; it keeps its slot until it ends |
| … otherwise a cancelled call waits for its thread | yes; also after asyncio's own `task.cancel()` |
| `cancellable` is a deprecated name of `abandon_on_cancel` | yes |
| `asyncify` of an async function returns its coroutine | no: it raises `TypeError` |
| `syncify` runs an async function in the loop of the calling worker thread | yes; also in workers of plain trio |
| … it keeps its worker thread: nested calls can use up all threads and deadlock | no: it lends its slot |
| … it is cancelled with the task that waits for the thread | yes; on asyncio also if that was cancelled before |
| … in other threads it is an error | yes, `anyio.NoEventLoopError` |
| … with `raise_sync_error=False`, it starts a loop in other threads for each call | yes |
| `runnify` starts a loop for each call, with `backend` and `backend_options` | yes |
| in a thread whose own loop is running, it raises `RuntimeError` | yes; the message says what to write instead |
| in a forked child, `syncify` waits for a loop that is gone | no: it uses the background event loop |
"""

from __future__ import annotations

import functools
import sys
import warnings
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import anyio
from anyio import from_thread
from anyio.lowlevel import current_token

from unfazed.concurrency import LoopThreadError, in_threadpool, run_in_eventloop_sync

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

__all__ = ("asyncify", "runnify", "syncify")

P = ParamSpec("P")
T = TypeVar("T")


def asyncify(
    function: Callable[P, T],
    *,
    abandon_on_cancel: bool = False,
    cancellable: bool | None = None,
    limiter: anyio.CapacityLimiter | None = None,
) -> Callable[P, Awaitable[T]]:
    """Return an async function that calls a sync one in a worker thread.

    `in_threadpool` documents the cancellation and the errors. What `in_threadpool` returns also has a `.sync` twin.

    Args:
        function: A sync function.
        abandon_on_cancel: Whether a cancelled call leaves its thread behind. That runs on; nobody gets its result.
        cancellable: The old name of `abandon_on_cancel`.
        limiter: Bounds how many calls run at once. `None` means anyio's default thread limiter.

    Example:
        `await asyncify(read_file)(path)`
    """
    if cancellable is not None:
        abandon_on_cancel = cancellable
        # asyncer's own tests check this text
        message = (
            "The `cancellable=` keyword argument to `asyncer.asyncify()` is deprecated since Asyncer 0.0.8: "
            "write `abandon_on_cancel=` instead"
        )
        warnings.warn(message, DeprecationWarning, stacklevel=2)
    dual: Any = in_threadpool(function, abandon_on_cancel=abandon_on_cancel, limiter=limiter)

    @functools.wraps(function)
    async def call(*args: P.args, **kwargs: P.kwargs) -> T:
        result: T = await dual(*args, **kwargs)
        return result

    call.__name__, call.__qualname__ = dual.__name__, dual.__qualname__  # a `partial` has none
    return call


def syncify(async_function: Callable[P, Coroutine[Any, Any, T]], raise_sync_error: bool = True) -> Callable[P, T]:
    """Return a sync function that runs an async one in the event loop of the calling worker thread.

    `run_in_eventloop_sync` documents the cancellation and the errors.

    Args:
        async_function: An async function.
        raise_sync_error: Whether a call from any other thread is an error. If not, each call starts a loop.

    Raises:
        NoEventLoopError: On a call, if the thread is not a worker and *raise_sync_error* is true.
        LoopThreadError: On a call, if an event loop is running in this thread. The call would block that loop.

    Example:
        `page = syncify(fetch)(url)`
    """

    @functools.wraps(async_function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if _is_worker():
            return run_in_eventloop_sync(async_function, *args, **kwargs)
        name = _name_of(async_function)
        _require_no_loop("syncify", name)
        if raise_sync_error:
            raise anyio.NoEventLoopError(
                f"syncify({name}) was called in a thread that is no worker of an event loop: write "
                f"`syncify({name}, raise_sync_error=False)`, or `run_in_eventloop_sync({name}, ...)`, which needs no "
                f"loop of its own for each call"
            )
        return anyio.run(functools.partial(async_function, *args, **kwargs))

    return call


def runnify(
    async_function: Callable[P, Coroutine[Any, Any, T]],
    backend: str = "asyncio",
    backend_options: dict[str, Any] | None = None,
) -> Callable[P, T]:
    """Return a sync function that runs an async one in a new event loop for each call.

    `run_in_eventloop_sync` runs all calls in the same loop.

    Args:
        async_function: An async function.
        backend: "asyncio" or "trio".
        backend_options: The argument of the same name of `anyio.run`.

    Raises:
        LoopThreadError: On a call, if an event loop is running in this thread. The call would block that loop.

    Example:
        `runnify(main, backend="trio")()`
    """

    @functools.wraps(async_function)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        _require_no_loop("runnify", _name_of(async_function))
        work = functools.partial(async_function, *args, **kwargs)
        return anyio.run(work, backend=backend, backend_options=backend_options)

    return call


def _is_worker() -> bool:
    """Return whether this thread is a worker of an event loop that anyio or trio runs."""
    trio: Any = sys.modules.get("trio")
    # missing while another thread is importing trio
    way_of_trio, cancelled_of_trio = getattr(trio, "from_thread", None), getattr(trio, "Cancelled", None)
    for way in filter(None, (from_thread, way_of_trio)):
        try:
            way.check_cancelled()
        except RuntimeError:
            continue
        except BaseException as exc:
            cancelled = (getattr(sys.modules.get("asyncio"), "CancelledError", None), cancelled_of_trio)
            if type(exc) not in cancelled:
                raise
        return True
    return False


def _require_no_loop(helper: str, name: str) -> None:
    try:
        current_token()
    except anyio.NoEventLoopError:
        return
    raise LoopThreadError(helper, f"await {name}(...)")


def _name_of(func: object) -> str:
    while isinstance(func, functools.partial):
        func = func.func
    return str(getattr(func, "__name__", type(func).__name__))
