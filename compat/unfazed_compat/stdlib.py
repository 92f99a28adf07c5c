"""The standard library's names: `to_thread` and `run_coroutine_threadsafe`, on asyncio and on trio.

| promise of `asyncio.to_thread` (https://docs.python.org/3/library/asyncio-task.html) | kept |
|---|---|
| takes `*args` and `**kwargs`, all for the function | yes |
| the function runs in another thread, in a copy of the caller's context | yes |
| its result or error comes back unchanged | yes; an awaitable result is a `TypeError` |
| the threads are those of the loop's default executor | no: anyio's, as many as its default limiter allows |
| a cancelled call leaves its thread behind | no: it waits for the thread, then raises the cancellation |
| nested calls can use up all threads and wait for ever | no: a worker that waits lends its slot |

| promise of `asyncio.run_coroutine_threadsafe` (the same page) | kept |
|---|---|
| takes a coroutine and an asyncio loop | yes; a trio token, anyio's, or an `EventLoopThread` as well |
| can be called from any thread, and returns a `concurrent.futures.Future` at once | yes |
| the coroutine runs in a task of its own, in a copy of the caller's context | yes |
| the future gets its result or error unchanged | yes |
| cancelling the future cancels the task, and the future is done at once | yes |
| … and a task that has not begun never does, since Python 3.14 | yes; on trio with older versions too |
| if the task is cancelled in another way, or by the end of its loop, the future is cancelled | yes |
| anything that is not a coroutine is a `TypeError` | yes |
| a loop that has ended is a `RuntimeError` | yes, and Python does not warn of a coroutine that was never awaited |
| a loop that does not run yet accepts it, and runs it later | yes; an `EventLoopThread` must be running |
| `SystemExit` and `KeyboardInterrupt` also end the loop | yes on asyncio; on trio only the future gets them |
| waiting for the future in the loop's own thread never ends | the same: `await asyncio.wrap_future(...)` |
| called from trio, `sniffio` tells the coroutine that it runs on trio | no: it tells the right library |
"""

from __future__ import annotations

import sys
from collections.abc import Coroutine
from concurrent.futures import Future
from contextlib import suppress
from contextvars import copy_context
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, ParamSpec, Protocol, TypeVar

from anyio.lowlevel import EventLoopToken

from unfazed.concurrency import EventLoopThread, LoopEndedError, WrongFunctionError, WrongOptionError, run_in_threadpool

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop
    from collections.abc import Callable

__all__ = ("run_coroutine_threadsafe", "to_thread")

P = ParamSpec("P")
T = TypeVar("T")


class TrioToken(Protocol):
    """What `trio.lowlevel.current_trio_token` returns."""

    def run_sync_soon(self, sync_fn: Callable[[], object], /) -> None:
        """Have the loop call a function soon."""
        ...


async def to_thread(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in a worker thread and await its result, as `asyncio.to_thread` does.

    `run_in_threadpool` documents the arguments, the cancellation and the errors.
    """
    return await run_in_threadpool(func, *args, **kwargs)


def run_coroutine_threadsafe(
    coro: Coroutine[Any, Any, T], loop: AbstractEventLoop | TrioToken | EventLoopToken | EventLoopThread
) -> Future[T]:
    """Have a loop that runs in another thread run a coroutine, and return the future of its result.

    The same as `asyncio.run_coroutine_threadsafe`, also for trio. In a worker thread that waits for the result,
    `run_in_eventloop_sync` is better: it lends the worker's slot meanwhile, and is cancelled with the worker.

    Args:
        coro: A coroutine: what calling an async function returns.
        loop: An asyncio loop, a `trio.lowlevel.TrioToken`, what `anyio.lowlevel.current_token()` returns, or an
            `EventLoopThread`.

    Cancellation:
        Cancelling the future cancels the task, and does not wait for its cleanup. Cancelling whoever waits for the
        future does not cancel it.

    Returns:
        A future. It raises whatever the coroutine raised.

    Raises:
        WrongFunctionError: If *coro* is not a coroutine.
        WrongOptionError: If *loop* is none of these.
        LoopStateError: If *loop* is an `EventLoopThread` that has not been started.
        LoopEndedError: If the loop has ended.

    Example:
        `run_coroutine_threadsafe(fetch(url), loop).result(timeout=5)`
    """
    given: Any = coro  # the annotation may be wrong
    if not isinstance(given, Coroutine):
        name = getattr(given, "__name__", "fetch")
        raise WrongFunctionError(
            f"run_coroutine_threadsafe() expected a coroutine, got {short_repr(given)}: "
            f"write `run_coroutine_threadsafe({name}(...), loop)`"
        )
    try:
        native: Any = loop
        if isinstance(loop, EventLoopThread):
            native = loop.native
        elif isinstance(loop, EventLoopToken):
            native = loop.native_token
        if hasattr(native, "call_soon_threadsafe"):
            return _run_on_asyncio(coro, native)
        if hasattr(native, "run_sync_soon"):
            return _run_on_trio(coro, native)
        raise WrongOptionError(
            "run_coroutine_threadsafe(loop=...) must be an asyncio loop, a trio token, what "
            f"anyio.lowlevel.current_token() returns, or an EventLoopThread, not {short_repr(loop)}"
        )
    except BaseException:
        coro.close()  # so that Python does not warn that it was never awaited
        raise


def _run_on_asyncio(coro: Coroutine[Any, Any, T], loop: AbstractEventLoop) -> Future[T]:
    import asyncio

    context = copy_context()
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:  # pragma: no branch  it comes with trio
        context.run(sniffio.current_async_library_cvar.set, "asyncio")
    try:
        return context.run(asyncio.run_coroutine_threadsafe, coro, loop)
    except RuntimeError:
        if not loop.is_closed():
            raise
        raise _loop_ended() from None


def _run_on_trio(coro: Coroutine[Any, Any, T], token: TrioToken) -> Future[T]:
    import trio

    future: Future[T] = Future()
    context = copy_context()
    scope = trio.CancelScope()

    def start() -> None:
        try:
            trio.lowlevel.spawn_system_task(_run_in_scope, future, coro, scope, context=context)
        except RuntimeError:  # the main task has ended
            coro.close()
            future.cancel()
            future.set_running_or_notify_cancel()

    def cancel(_: object) -> None:
        if future.cancelled():
            with suppress(trio.RunFinishedError):
                token.run_sync_soon(scope.cancel)

    try:
        token.run_sync_soon(start)
    except trio.RunFinishedError:
        raise _loop_ended() from None
    future.add_done_callback(cancel)
    return future


async def _run_in_scope(future: Future[T], coro: Coroutine[Any, Any, T], scope: Any) -> None:
    """Run *coro* in *scope*, in a task of trio, and write its result or error to *future*."""
    import trio

    value: Any = None
    error: BaseException | None = None
    try:
        with scope:
            if future.cancelled():
                coro.close()
                return
            try:
                value = await coro
            except trio.Cancelled:
                future.cancel()
                raise
            except BaseException as exc:  # SystemExit and the like included: they must not end the loop
                error = exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)
    finally:
        # As on asyncio, a future can be cancelled until it has its result.
        if future.set_running_or_notify_cancel():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        del error, future  # the error's traceback refers to this frame


def _loop_ended() -> LoopEndedError:
    return LoopEndedError("the event loop has ended")
