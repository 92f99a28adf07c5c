"""The tasks of the async calls that a function in a thread makes: who cancels them, and who sees the cancellation.

Two sides meet here: the task that waits for the thread *cancels*, and the function's async calls *begin* and *end*.
Usually both are in one loop. With `force_new_loop` the calls are in a loop of another thread.

    event                                   with an async call under way            without one
    --------------------------------------  --------------------------------------  -------------------------------
    cancel                                  its task is cancelled                   the next one is, when it begins
    its task ends, but not as cancelled     the cancellation is handled             -
    … as cancelled, or the loop is trio's   not handled: the waiting task raises    -

Race: `cancel` writes `_cancel_counts`, then reads the list. `begin` changes the list, then reads `_cancel_counts`. The
list orders the two, because both change it, and `dict.pop` on `_cancel_counts` decides which side cancels the task.
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

    requested = 0  # how many cancellations there were; for the thread of the waiting task only
    handled = 0  # how many of them a task has handled; for the threads of the calls, which run one at a time
    last_has_ended = False  # whether the last call has ended since then, so that nobody needs to wait any more
    on_end: Callable[[], object] | None = None  # called when a task has ended
    # How often each task was cancelled. The key `None`: the next task will be.
    _cancel_counts: dict[Cancellable | None, int] | None = None

    @property
    def unhandled(self) -> int:
        """How many cancellations no task has handled."""
        return self.requested - self.handled

    def cancel(self) -> None:
        """Cancel the call that is under way, or else the next one."""
        counts = self._cancel_counts
        if counts is None:
            counts = self._cancel_counts = {}
        self.requested += 1
        counts[None] = 1
        self._cancel_innermost(counts)

    def begin(self, task: Cancellable) -> bool:
        """Add *task*, which is beginning. Return whether it was cancelled at once."""
        self.append(task)
        if self._cancel_counts is not None:
            self._cancel_innermost(self._cancel_counts)
            return task in self._cancel_counts
        return False

    def _cancel_innermost(self, counts: dict[Cancellable | None, int]) -> None:
        self.extend(())  # changes nothing: see "Race". Not `copy`: others' finalizers crash it before Python 3.12
        try:
            task = self[-1]
        except IndexError:
            return
        if counts.pop(None, None) is None:
            return
        get_loop: Callable[[], asyncio.AbstractEventLoop] | None = getattr(task, "get_loop", None)  # asyncio's tasks
        if get_loop is None or get_loop() is running_asyncio_loop():
            self._cancel(task, counts)
        else:  # it runs in the loop of another thread (`force_new_loop`)
            with suppress(RuntimeError):  # it has ended
                get_loop().call_soon_threadsafe(self._cancel, task, counts)

    def _cancel(self, task: Cancellable, counts: dict[Cancellable | None, int]) -> None:
        if task in self:
            counts[task] = counts.get(task, 0) + 1
            task.cancel()

    def end(self, task: Cancellable, error: BaseException | None) -> None:
        """Remove *task*, which is ending, before it waits again. Doing so twice is harmless.

        On asyncio, a task that was cancelled and ends otherwise has handled the cancellation, as if it had been
        awaited. On trio a cancellation stays.
        """
        if task not in self:
            return
        on_asyncio = hasattr(task, "get_loop")
        if self._cancel_counts is not None and on_asyncio and not isinstance(error, asyncio.CancelledError):
            self.handled += self._cancel_counts.pop(task, 0)
        self.remove(task)
        # Noted now, because the thread may make its next call before anybody looks.
        self.last_has_ended = bool(self.unhandled) and not self
        if self.on_end is not None:
            self.on_end()
