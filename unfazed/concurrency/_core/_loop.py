"""What we ask of a running event loop, whichever library it is of. `_eventloops/_loops.py` has the two that do it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from ._taskcall import TaskCall

T = TypeVar("T")


class Event(Protocol):
    """An event of asyncio, trio or anyio. Only the thread of its loop may use it."""

    def set(self) -> None:
        """Wake all that wait for it."""

    def is_set(self) -> bool:
        """Return whether it was set."""
        ...

    def wait(self) -> Awaitable[object]:
        """Wait until it is set. If it is already, only anyio's and trio's let other tasks run meanwhile."""
        ...


class Loop(Protocol):
    """A running event loop, used from any thread.

    `post` and `submit` raise `LoopEndedError` once the loop is gone.
    """

    @property
    def native(self) -> object:
        """The library's own object for the loop."""
        ...

    @property
    def calls_back_in_the_task(self) -> bool:
        """Whether the task that waits for a worker thread also runs the worker's calls, and cancels them (trio).

        anyio's shield holds there. On asyncio, `task.cancel()` ignores shields, so we do both ourselves.
        """
        ...

    @property
    def cancels_once(self) -> bool:
        """Whether a cancellation ends one wait (asyncio), or every wait from then on (trio)."""
        ...

    def runs_here(self) -> bool:
        """Return whether the current thread runs it."""
        ...

    def new_event(self) -> Event:
        """Return a new event of the library: anyio's own is made in ten times the time."""
        ...

    def post(self, func: Callable[..., object], *args: object) -> None:
        """Have the loop call *func* soon. Returns at once."""

    def submit(self, call: TaskCall[Any], context: Context) -> None:
        """Have the loop run *call* in a new task, in *context* or a copy of it. Returns at once."""

    def checkpoint_if_cancelled(self) -> Awaitable[None]:
        """Raise the cancellation of the current task, if it has been cancelled."""
        ...

    def is_gone(self) -> bool:
        """Return whether what was posted may have been dropped."""
        ...

    def mark_context(self) -> None:
        """Say in the current context which library runs here: the context may come from another one's program."""

    def cancellation(self) -> BaseException:
        """Return a new exception of the library's cancellation class. Any thread may raise it, also without a loop."""
        ...

    def cancellations(self) -> int:
        """Return how many cancellations the current task has not handled yet; always 0 if the library counts none."""
        ...

    def forget_cancellation(self) -> None:
        """Say that the current task has handled a cancellation and goes on."""

    async def run_within(self, seconds: float, work: Callable[[], Awaitable[T]], late: Callable[[], Exception]) -> T:
        """Run *work* in the current task. After *seconds* cancel it, wait for its cleanup and raise *late*."""
        ...

    async def end_other_tasks(self) -> None:
        """End the other tasks, from within the main task: when it ends, anyio stops the threads that they may need."""
