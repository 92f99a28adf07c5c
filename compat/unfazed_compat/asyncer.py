"""asyncer's names: `asyncify`, `syncify`, `runnify`.

| promise of asyncer 0.0.18 (https://asyncer.tiangolo.com) | kept |
|---|---|
| the functions that they return take what the original takes, and are typed so | yes |
| … and have its name and docstring | yes |
| … and are real functions, `async def` ones from `asyncify`, which frameworks ask for (Starlette's `Route`) | yes |
| `asyncify` runs a function in a worker thread, in a copy of the caller's context | yes |
| … at most as many at once as `limiter`, or else anyio's default one, says | yes, from all loops and threads together |
| `abandon_on_cancel`: a cancelled call leaves its thread behind | yes; it keeps its slot until it ends |
| … otherwise it waits for it | yes; after asyncio's own `task.cancel()` as well |
| `cancellable` is the same, and deprecated | yes |
| `asyncify` of an async function gives its coroutine | no: that is a `TypeError` |
| `syncify` runs an async function in the loop of the worker thread that calls | yes; in workers of plain trio as well |
| … which it holds up meanwhile: nested calls can use up all threads and wait for ever | no: it lends its slot |
| … and is cancelled with the task that waits for the thread | yes; on asyncio, too, where that came first |
| … elsewhere it is an error | yes, `anyio.NoEventLoopError` |
| … elsewhere it starts a loop there for each call, with `raise_sync_error=False` | yes |
| `runnify` starts a loop for each call, with `backend` and `backend_options` | yes |
| a thread whose own loop is running is a `RuntimeError` | yes, one that says what to write instead |
| in a forked child `syncify` waits for a loop that is gone | no: it uses the background event loop |
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
    """Make an async function of a sync one, which it calls in a worker thread.

    `in_threadpool` documents the cancellation and the errors; what that returns has a `.sync` twin as well.

    Args:
        function: A sync function.
        abandon_on_cancel: Whether a call that is cancelled leaves its thread behind, which runs on unseen.
        cancellable: The old name of `abandon_on_cancel`.
        limiter: Bounds how many calls run at once; `None` is anyio's default thread limiter.

    Example:
        `await asyncify(read_file)(path)`
    """
    if cancellable is not None:
        abandon_on_cancel = cancellable
        # asyncer's own tests look for these words
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

    call.__name__, call.__qualname__ = dual.__name__, dual.__qualname__  # which a `partial` has not
    return call


def syncify(async_function: Callable[P, Coroutine[Any, Any, T]], raise_sync_error: bool = True) -> Callable[P, T]:
    """Make a sync function of an async one, which it runs in the loop of the worker thread that calls it.

    `run_in_eventloop_sync` documents the cancellation and the errors.

    Args:
        async_function: An async function.
        raise_sync_error: Whether a call from elsewhere is an error; with `False` it starts a loop of its own.

    Raises:
        NoEventLoopError: When it is called, if this thread is no worker, unless with `raise_sync_error=False`.
        LoopThreadError: When it is called, if an event loop is running in this thread, which it would block.

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
    """Make a sync function of an async one, which it runs in a new event loop for each call.

    `run_in_eventloop_sync` makes all calls in the same one.

    Args:
        async_function: An async function.
        backend: "asyncio" or "trio".
        backend_options: What `anyio.run` takes under this name.

    Raises:
        LoopThreadError: When it is called, if an event loop is running in this thread, which it would block.

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
    # not there yet while another thread is importing trio
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
