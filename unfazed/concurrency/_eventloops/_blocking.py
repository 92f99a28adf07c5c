"""Who may block an event loop with a sync call: by default nobody.

A permission is for one loop: the one that runs where the block is entered. Entered where none runs, it is for the loops
that the block runs itself. It is kept in the context, so other tasks of the loop do not have it, and it ends with the
block, also for the tasks that the block has started.

The loops of `EventLoopThread`, and the background event loop, are for everybody. So only a block that is entered in
their own threads allows them to be blocked.
"""

from __future__ import annotations

from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, final

from ._loops import running_loop
from ._workers import thread

if TYPE_CHECKING:
    from collections.abc import Generator

    from .._core._loop import Loop

_permission: ContextVar[_Permission | None] = ContextVar("unfazed_allow_blocking_loop", default=None)


@final
class _Permission:
    """The right to block the loop *native*; `None` for each loop that is not ours."""

    over = False

    def __init__(self, native: object, outer: _Permission | None) -> None:
        self.native = native
        self.outer = outer


class _Settings:
    allow_blocking_loop = False  # for the whole program


settings = _Settings()


@contextmanager
def allow_blocking_loop() -> Generator[None, None, None]:
    """Let sync calls wait on this thread though an event loop runs in it.

    Within the `with` block, sync calls of this package (`run_in_..._sync`, `.sync`, maps, iterators, context managers,
    `CallGroup`, `handle.result()`, `EventLoopThread.run_sync`, sync twins) do not raise `LoopThreadError`. They run on
    the background event loop, or in the `EventLoopThread` that they name. The loop of this thread is blocked until they
    end: none of its tasks goes on. It is for code that cannot be made async: a plugin that a framework calls from its
    loop, for one. Where you can, `await` instead.

    It holds for the event loop of this thread, in this context: the current task, and the tasks that the block
    starts, until the block ends. Other tasks do not have it. Entered where no loop runs, it holds for loops that the
    block runs itself. `configure_background_eventloop(allow_blocking_loop=True)` does the same for the whole program.
    Blocks may be nested.

    Cancellation:
        A call that blocks the loop of its task does not notice that the task is cancelled: that comes when the loop
        goes on. Ctrl-C works as in any sync call. But under `asyncio.run`, since Python 3.11, the first Ctrl-C only
        cancels the main task.

    Raises:
        LoopThreadError: From a call that is part of what the loop waits for, and needs that loop itself: to run an
            async function there, or because its tasks hold the slots that it waits for. It would never end. For the
            same reason, from what would block the loop until a started call has ended that waits for it already.

    Example:
        `with allow_blocking_loop(): page = run_in_eventloop_sync(fetch, url)`
    """
    here, outer = running_loop(), _permission.get()
    permission = _Permission(here and here.native, outer)
    try:
        _permission.set(permission)
        yield
    finally:
        permission.over = True
        permission.native = None  # contexts may keep it
        if _permission.get() is permission:  # not in another context, where some test runners end their fixtures
            _permission.set(outer)


def may_be_allowed() -> bool:
    """Return whether there is any permission. It costs less than to find out which loop it is for."""
    return settings.allow_blocking_loop or _permission.get() is not None


def may_be_blocked(here: Loop) -> bool:
    """Return whether the current code may block *here*, the loop that runs in this thread."""
    if settings.allow_blocking_loop and not thread.is_loop_thread:
        return True
    permission = _permission.get()
    while permission is not None:
        if not permission.over and (permission.native is here.native or _is_for_others(permission)):
            return True
        permission = permission.outer
    return False


def _is_for_others(permission: _Permission) -> bool:
    return permission.native is None and not thread.is_loop_thread
