"""Running event loops as worker threads see them, and how async code waits for a thread: all that differs by library.

asyncio's loops are used as they are; `TrioLoop` has as much of their interface as is needed. Trio is not imported
before one of its loops runs.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, final
from weakref import WeakKeyDictionary

from anyio import CancelScope, from_thread, get_cancelled_exc_class

from unfazed.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    import trio


class Cancellable(Protocol):
    """A task, as far as others see it."""

    def cancel(self) -> object:
        """Cancel it, in its loop's thread."""


@final
class TrioLoop:
    """A running trio loop, by the names of asyncio's."""

    __slots__ = ("token",)

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self.token: trio.lowlevel.TrioToken = token

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TrioLoop) and self.token is other.token

    def __hash__(self) -> int:
        return hash(self.token)

    def call_soon_threadsafe(self, func: Callable[..., object], *args: object) -> None:
        """Have the loop call *func* soon. Trio raises a `RuntimeError` if it has ended."""
        self.token.run_sync_soon(partial(copy_context().run, func, *args))

    def call_in_thread(self, func: Callable[[], object], on_error: Callable[[Exception], object]) -> None:
        """Have one of anyio's threads call *func*, or *on_error* be told that there is none."""

        async def call() -> None:
            try:
                await run_in_threadpool(func)
            except Exception as exc:  # it must not end the loop
                on_error(exc)

        sys.modules["trio.lowlevel"].spawn_system_task(call, context=copy_context())

    def is_running(self) -> bool:
        return not self.is_closed()

    def is_closed(self) -> bool:
        try:
            self.token.run_sync_soon(int)
        except RuntimeError:
            return True
        return False


Loop: TypeAlias = asyncio.AbstractEventLoop | TrioLoop


def current_loop() -> Loop:
    """Return the loop that runs in this thread, or raise a `RuntimeError`."""
    lowlevel: Any = sys.modules.get("trio.lowlevel")
    in_trio_run = getattr(lowlevel, "in_trio_run", None)  # not there yet while another thread is importing trio
    if in_trio_run is not None and in_trio_run():
        return TrioLoop(lowlevel.current_trio_token())
    return asyncio.get_running_loop()


def running_asyncio_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def start_task(loop: Loop, work: Coroutine[Any, Any, None], on_end: Callable[[Any], object]) -> Cancellable:
    """Run *work* in a task, in the loop that runs in this thread; *on_end* is told when that has ended."""
    if isinstance(loop, TrioLoop):
        scope = CancelScope()
        sys.modules["trio.lowlevel"].spawn_system_task(_run_in_scope, work, scope, on_end, context=copy_context())
        return scope
    task = loop.create_task(work)
    task.add_done_callback(on_end)
    return task


# Of trio's tasks. Not in a context variable: contexts go from task to thread to task.
_scopes: WeakKeyDictionary[Any, CancelScope] = WeakKeyDictionary()


async def _run_in_scope(work: Awaitable[None], scope: CancelScope, on_end: Callable[[Any], object]) -> None:
    _scopes[sys.modules["trio.lowlevel"].current_task()] = scope
    try:
        with scope:
            await work
    except BaseException as exc:  # of a method that somebody has overridden: it must not end the loop
        on_end(exc)
    else:
        on_end(None)


def current_task(loop: Loop) -> Any:
    """Return the task of `start_task` that runs here, or asyncio's own."""
    if isinstance(loop, TrioLoop):
        return _scopes[sys.modules["trio.lowlevel"].current_task()]
    return asyncio.current_task()


def was_cancelled_by_the_end(loop: Loop, task: Any, error: BaseException) -> bool:
    """Return whether *error* is a cancellation that nobody asked for; on asyncio, anybody may."""
    return isinstance(loop, TrioLoop) and isinstance(error, get_cancelled_exc_class()) and not task.cancel_called


def cancelled_classes() -> tuple[type[BaseException], ...]:
    """Return the cancellation classes of the libraries that are loaded."""
    found = getattr(sys.modules.get("trio"), "Cancelled", None)  # not there yet while another thread is importing trio
    return (asyncio.CancelledError,) if found is None else (asyncio.CancelledError, found)


def loop_of_worker() -> Loop | None:
    """Return the loop whose worker thread this is, where anyio or trio has started it.

    Cancelled with the task that waits for the worker.
    """
    for way in _ways_to_loop():
        with suppress(RuntimeError):  # not a worker of this library, or its loop has ended
            way.check_cancelled()
            loop: Loop = way.run_sync(current_loop)
            return loop
    return None


def is_worker() -> bool:
    """Return whether anyio or trio has started this thread as a worker."""
    for way in _ways_to_loop():
        try:
            way.check_cancelled()
        except RuntimeError:
            continue
        except cancelled_classes():
            pass
        return True
    return False


def _ways_to_loop() -> tuple[Any, ...]:
    if _thread.forked or threading.current_thread() is threading.main_thread():
        return ()
    trio: Any = sys.modules.get("trio")
    way_of_trio = getattr(trio, "from_thread", None)  # not there yet while another thread is importing trio
    return (from_thread,) if way_of_trio is None else (from_thread, way_of_trio)


class _Thread(threading.local):
    forked = False  # whether this thread has come through a fork: what anyio knows of its loop is no longer true


_thread = _Thread()


def _start_afresh() -> None:
    _thread.forked = True


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_start_afresh)
