"""All that differs between asyncio and trio: running loops, their tasks, their cancellation, their worker threads.

asyncio's loops are used as they are. `TrioLoop` has the part of their interface that we need. Trio is not imported
before one of its loops runs.

`sys.modules.get("trio")` may return a module that another thread is still importing. So its attributes are read with a
default.
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
    """A task of asyncio, or the cancel scope of a task of trio."""

    def cancel(self) -> object:
        """Cancel the task, in its loop's thread."""


@final
class TrioLoop:
    """A running trio loop, with the method names of asyncio's."""

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
        """Have one of anyio's threads call *func*. If there is none, call *on_error*."""

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
    in_trio_run = getattr(lowlevel, "in_trio_run", None)
    if in_trio_run is not None and in_trio_run():
        return TrioLoop(lowlevel.current_trio_token())
    return asyncio.get_running_loop()


def running_asyncio_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def start_task(loop: Loop, work: Coroutine[Any, Any, None], on_end: Callable[[Any], object]) -> Cancellable:
    """Run *work* in a new task of the loop that runs in this thread. Call *on_end* when it has ended.

    On asyncio *on_end* gets the task; on trio the error, or `None`.
    """
    if isinstance(loop, TrioLoop):
        scope = CancelScope()
        sys.modules["trio.lowlevel"].spawn_system_task(_run_in_scope, work, scope, on_end, context=copy_context())
        return scope
    task = loop.create_task(work)
    task.add_done_callback(on_end)
    return task


# By trio task. Not a context variable, because contexts travel from a task to a thread to another task.
_scopes: WeakKeyDictionary[Any, CancelScope] = WeakKeyDictionary()


async def _run_in_scope(work: Awaitable[None], scope: CancelScope, on_end: Callable[[Any], object]) -> None:
    _scopes[sys.modules["trio.lowlevel"].current_task()] = scope
    try:
        with scope:
            await work
    except BaseException as exc:  # raised by an overridden `main_wrap`: it must not end the loop
        on_end(exc)
    else:
        on_end(None)


def current_task(loop: Loop) -> Any:
    """Return the current task, as `start_task` returned it."""
    if isinstance(loop, TrioLoop):
        return _scopes[sys.modules["trio.lowlevel"].current_task()]
    return asyncio.current_task()


def was_cancelled_by_the_end(loop: Loop, task: Any, error: BaseException) -> bool:
    """Return whether *error* is trio's cancellation at the end of its loop. On asyncio nothing tells that apart."""
    return isinstance(loop, TrioLoop) and isinstance(error, get_cancelled_exc_class()) and not task.cancel_called


def cancelled_classes() -> tuple[type[BaseException], ...]:
    """Return the cancellation classes of the libraries that are loaded."""
    found = getattr(sys.modules.get("trio"), "Cancelled", None)
    return (asyncio.CancelledError,) if found is None else (asyncio.CancelledError, found)


def loop_of_worker() -> Loop | None:
    """Return the loop whose worker thread this is, if anyio or trio has started it.

    Raise the cancellation if the task that waits for the worker is cancelled.
    """
    for module in _from_thread_modules():
        with suppress(RuntimeError):  # not a worker of this library, or its loop has ended
            module.check_cancelled()
            loop: Loop = module.run_sync(current_loop)
            return loop
    return None


def is_worker() -> bool:
    """Return whether anyio or trio has started this thread as a worker."""
    for module in _from_thread_modules():
        try:
            module.check_cancelled()
        except RuntimeError:
            continue
        except cancelled_classes():
            pass
        return True
    return False


def _from_thread_modules() -> tuple[Any, ...]:
    """Return the modules `from_thread` of anyio and trio, if this can be a worker thread."""
    if _thread.has_forked or threading.current_thread() is threading.main_thread():
        return ()
    trio_from_thread = getattr(sys.modules.get("trio"), "from_thread", None)
    return (from_thread,) if trio_from_thread is None else (from_thread, trio_from_thread)


class _Thread(threading.local):
    has_forked = False  # then what anyio has noted of this thread's loop is no longer true


_thread = _Thread()


def _reset_after_fork() -> None:
    _thread.has_forked = True


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_reset_after_fork)
