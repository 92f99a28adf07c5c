"""The tasks of the async calls that a function in a thread makes: who cancels them, and who sees the cancellation.

Two sides meet here: the task that waits for the thread *cancels*, and the function's async calls *begin* and *end*.
Usually both are in one loop. With `force_new_loop` the calls are in a loop of another thread.

    event                                   with an async call under way          without one
    --------------------------------------  ------------------------------------  ------------------------------------
    cancel                                  its task is cancelled                 the next one is, when it begins
    its task ends, but not as cancelled     the cancellation counts as heeded     -
    … as cancelled, or the loop is trio's   not heeded: the waiting task raises   -

Race: `cancel` writes `_told`, then reads a copy of the list. `begin` changes the list, then reads `_told`. The list
orders the two, and `dict.pop` on `_told` decides which side cancels the task.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING

from ._loops import Cancellable, running_asyncio_loop

if TYPE_CHECKING:
    from collections.abc import Callable


class NestedTasks(list[Cancellable]):
    """The tasks, innermost last. asgiref has a plain list of tasks in its place, which it calls `task_context`."""

    made = 0  # how many cancellations there were; for the thread of the waiting task only
    heeded = 0  # how many of them a task has handled; for the threads of the calls, which run one at a time
    released = False  # whether the last call has ended since then, so that nobody needs to wait any more
    on_end: Callable[[], object] | None = None  # called when a task has ended
    _told: dict[Cancellable | None, int] | None = (
        None  # how often each task was cancelled; `None`: the next one will be
    )

    @property
    def unheeded(self) -> int:
        """How many cancellations no task has handled."""
        return self.made - self.heeded

    def cancel(self) -> None:
        """Cancel the call that is under way, or else the next one."""
        told = self._told
        if told is None:
            told = self._told = {}
        self.made += 1
        told[None] = 1
        self._cancel_innermost(told)

    def begin(self, task: Cancellable) -> bool:
        """Add *task*, which is beginning. Return whether it was cancelled at once."""
        self.append(task)
        if self._told is not None:
            self._cancel_innermost(self._told)
            return task in self._told
        return False

    def _cancel_innermost(self, told: dict[Cancellable | None, int]) -> None:
        tasks = self.copy()
        if not tasks or told.pop(None, None) is None:
            return
        task = tasks[-1]
        get_loop: Callable[[], asyncio.AbstractEventLoop] | None = getattr(task, "get_loop", None)  # asyncio's tasks
        if get_loop is None or get_loop() is running_asyncio_loop():
            self._cancel(task, told)
        else:  # it runs in the loop of another thread (`force_new_loop`)
            with suppress(RuntimeError):  # it has ended
                get_loop().call_soon_threadsafe(self._cancel, task, told)

    def _cancel(self, task: Cancellable, told: dict[Cancellable | None, int]) -> None:
        if task in self:
            told[task] = told.get(task, 0) + 1
            task.cancel()

    def end(self, task: Cancellable, error: BaseException | None) -> None:
        """Remove *task*, which is ending, before it waits again. Doing so twice is harmless.

        On asyncio, a task that was cancelled and ends otherwise has handled the cancellation, as if it had been
        awaited. On trio a cancellation stays.
        """
        if task not in self:
            return
        on_asyncio = hasattr(task, "get_loop")
        if self._told is not None and on_asyncio and not isinstance(error, asyncio.CancelledError):
            self.heeded += self._told.pop(task, 0)
        self.remove(task)
        self.released = bool(self.unheeded) and not self  # now: the thread may make its next call before anybody looks
        if self.on_end is not None:
            self.on_end()
