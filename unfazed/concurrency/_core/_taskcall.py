"""One async function that another thread has an event loop run, in a task of its own.

The life of a `TaskCall`. "loop" and "caller" say which thread may take the step.

    state          how to tell                    caller cancels                         ends by
    -------------  -----------------------------  -------------------------------------  -------------------------------
    made           `loop` is None                 nothing to wait for                    -
    submitted      `loop` is set                  loop: never begins                     loop: `give_up`
    begun          `taken`                        loop: cancelled in its first step      loop: `begin`, `run`,
                                                                                         `fail_unless_run`
    running        `_abort` is set                loop: task is cancelled, `aborted`     loop: `run`
    bypassing      `bypassing`: a worker runs it  loop: worker's own calls cancelled     worker: `end_bypassing`
    handed back    not `bypassing`: as submitted  as submitted                           as submitted
    ended          `future.done`                  nothing                                -

A call ends in `end`, which writes the future and calls `on_end`. If its loop is gone, or it never begins, the future
may be written without `end`, and `on_end` is not called then. Only the first result counts.

Guarantees:

- What a signal handler raises in the loop's thread, while that begins or runs a call, becomes the call's error. If it
  raises again before that, whoever waits for the call finds out (`go_on`).
- A call that is cancelled while another thread submits it learns of it. Each side takes a step on `_steps` before it
  looks at what the other has done.

Assumption: `list.append` is atomic, with and without a GIL (Python's documentation, "Thread Safety Guarantees").
"""

from __future__ import annotations

from contextlib import suppress
from types import FunctionType
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from anyio import get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from ._calls import AsyncCall
from ._errors import LoopEndedError
from ._futures import without_our_frame
from ._threadstart import show

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Coroutine

    from ._calls import UserCall
    from ._futures import OneShotFuture
    from ._loop import Loop

T = TypeVar("T")


class TaskCall(AsyncCall, Generic[T]):
    """An async function that one thread has another thread's loop run, in a new task.

    It is a call of the user's if it has a `func`. Otherwise it does something for one, or something of ours.

    Args:
        work: The function.
        future: Gets its result.
        made_elsewhere: Whether the caller is surely not in the loop that is to run it.
    """

    _abort: Callable[[], object] | None = None  # cancels the running task; for the loop's thread only
    _cancelled = False
    _reason: LoopEndedError | None = None  # what to raise instead of the cancellation
    aborted: bool = False  # whether we cancelled the task while it ran
    missed: bool = False  # whether the task never waited after that, and so never saw it
    cancelled_by_others: bool = False  # whether the task was cancelled, and not by us
    task_has_ended: Callable[[], bool] | None = None  # set when there is a task; for the loop's thread only
    coroutine: Coroutine[Any, Any, None] | None = None  # of the task, if a loop may end without ending it (asyncio)
    taken: bool = False  # whether the loop has begun it or given it up; for the loop's thread only
    bypassing: bool = False  # whether a worker thread runs it, bypassing the loop
    on_end: Callable[[TaskCall[Any]], None] | None = None  # called at the end, by the loop's thread or the worker
    loop: Loop | None = None  # where it is, or is about to be, submitted
    carried: UserCall | None = None  # the user's call that it does something for
    title: str = "unfazed"  # the name of its task, if it is for no such call

    def __init__(
        self, work: Callable[[], Awaitable[T]], future: OneShotFuture[T], made_elsewhere: bool = False
    ) -> None:
        self._work = work
        self.future = future
        self.made_elsewhere = made_elsewhere
        self._steps: list[str] = []  # `set_loop` and `cancel` each add one before they look at the other

    @property
    def task_name(self) -> str:
        """The name of its task."""
        named = self if self.func is not None else self.carried
        if named is None:
            return self.title
        func = named.func
        return func.__name__ if type(func) is FunctionType else named.name  # the first is the faster

    def user_calls(self) -> list[UserCall]:
        """Return the user's calls that this one is, carries or runs one after another. From any thread."""
        user_call = self if self.func is not None else self.carried
        return [] if user_call is None or self.future.done else [user_call]

    def set_loop(self, loop: Loop) -> None:
        """Say which loop is about to run the call."""
        self.loop = loop
        self._steps.append("set_loop")

    def expect_the_end(self, reason: LoopEndedError | None) -> None:
        """Say what to raise instead of the cancellation, whoever cancels the call: its loop is ending."""
        self._reason = reason

    def bypass(self, loop: Loop, abort: Callable[[], object], on_end: Callable[[TaskCall[Any]], None]) -> None:
        """Say that a worker thread of *loop* will run the call; *abort* cancels it, in the loop's thread."""
        self.bypassing = True
        self.on_end = on_end
        self._abort = abort
        self.set_loop(loop)

    def hand_back(self) -> None:
        """Say that the loop is to run the call after all; in the loop's thread."""
        self.bypassing = False
        self._abort = None

    def end_bypassing(self, value: T) -> None:
        """Finish a call that bypassed the loop: with *value*, or with `LoopEndedError` if the loop ended meanwhile."""
        self.end(self._reason, value)

    def give_up(self) -> None:
        """Finish a call that never begins; in the loop's thread, or in the worker that was to run it."""
        self.taken = True
        self._fail(self._reason)

    def begin(self, start: Callable[..., object], *args: object) -> None:
        """Have *start* make the task, at most once; in the loop's thread. What it raises is the call's error."""
        if self.taken:
            return
        try:
            self.taken = True
            start(*args)
        except BaseException as exc:  # raised by a user's task factory, or by a signal handler
            self.end(without_our_frame(exc))

    async def run(self, abort: Callable[[], object]) -> None:
        """Run the call in the current task, which *abort* cancels. All errors go to the caller."""
        try:
            value, error = (None, None) if self.future.done else await self._run(abort)
            self.end(error, value)
        except BaseException as exc:  # raised by a signal handler outside of the work
            over = self.future.done
            self.end(without_our_frame(exc))
            if over or self._is_dropped():  # nobody else would learn of it
                raise

    async def _run(self, abort: Callable[[], object]) -> tuple[T | None, BaseException | None]:
        """Await the work. Return its result, or what it raised."""
        self._abort = abort
        if self._cancelled:
            self._cancel()
        try:
            async_call = self if self.func is not None else self.carried
            if isinstance(async_call, AsyncCall):  # otherwise the function begins elsewhere
                async_call.note_begin()
                async_call.awaited = awaited = self._work()
                value = await awaited
            else:
                value = await self._work()
        except BaseException as exc:  # SystemExit and the like included: they must not end the loop
            if self._is_dropped():
                raise
            error = without_our_frame(exc)
            if not isinstance(exc, get_cancelled_exc_class()):
                if self.aborted:
                    await self._absorb_cancellation()
                return None, error
            self.cancelled_by_others = not self.aborted
            if self._reason is None:
                return None, error
            self._reason.__cause__ = error
            return None, self._reason
        if self.aborted:
            await self._absorb_cancellation()
        return value, None

    def _is_dropped(self) -> bool:
        """Return whether the task's coroutine is closed after its loop, when nothing can be awaited any more."""
        return self.loop is not None and not self.loop.runs_here()

    async def _absorb_cancellation(self) -> None:
        """Take off the task a cancellation that the work never saw. It must not hit what the task does next."""
        if self.loop is not None and self.loop.cancels_once:
            try:
                await checkpoint()
            except get_cancelled_exc_class():
                self.missed = True

    def cancel(self, reason: LoopEndedError | None = None) -> bool:
        """Cancel the task, now or when it starts, from any thread. Only the first time counts.

        Return whether the future will be written. It is not if the call was never submitted, or its loop is gone.
        """
        if not self._cancelled:
            self._reason = reason
            self._cancelled = True
        self._steps.append("cancel")  # either we see the loop that `set_loop` set before its step, or `run` sees us
        if self.loop is None:
            return False
        try:
            self.loop.post(self._cancel)
        except LoopEndedError:
            return False
        return True

    def _cancel(self) -> None:
        """Cancel the task. If Ctrl-C kept it from being submitted, give the call up."""
        abort = self._abort
        if abort is not None:
            abort()
            self.aborted = True  # after `abort`: if a signal handler raises in between, `go_on` does it again
            self._abort = None
        elif not self.taken:
            self.give_up()
        else:
            self.fail_if_lost()

    def go_on(self) -> bool:
        """Repeat what a signal handler may have kept the loop from doing. Return whether to submit the call again.

        For whoever waits for the future. Nothing that was done, or just takes long, is done twice.
        """
        if self._cancelled and not self.aborted:
            self.cancel()
        elif self.loop is not None:
            with suppress(LoopEndedError):
                self.loop.post(self.fail_if_lost)
        return not (self.taken or self.bypassing)

    def fail_if_gone(self) -> bool:
        """Finish the call if its loop is gone. Return whether it is. For whoever waits for the future."""
        if self.loop is None or not self.loop.is_gone():
            return False
        self.future.write(None, LoopEndedError("the event loop of this call has ended"))
        return True

    def fail_if_lost(self) -> None:
        """Finish the call if it has no result, and nobody is left who would write one; in the loop's thread."""
        if self.has_no_task():
            self.fail_unless_run(self._reason)

    def has_no_task(self) -> bool:
        """Return whether it was begun, but there is no task, or no more; in the loop's thread.

        If there is no result either, signal handlers have raised twice: once in the call, and once while what they
        raised was to become its error.
        """
        return self.taken and (self.task_has_ended is None or self.task_has_ended())

    def fail_unless_run(self, error: BaseException | None) -> None:
        """Finish the call if its task has ended without a result: with *error*, or as cancelled before it began.

        asyncio cancels tasks before they begin when a loop ends.
        """
        if not self.future.done:
            self._fail(error)

    def _fail(self, error: BaseException | None) -> None:
        self.end(error or LoopEndedError("the event loop of this call has ended, or cancelled it before it began"))

    def end(self, error: BaseException | None, value: T | None = None) -> None:
        """Finish the call, unless it has a result; in the loop's thread, if it was to run there."""
        self._abort = None
        try:
            self.future.write(value, error)
        finally:
            if self.on_end is not None:
                self.on_end(self)


def end_all(calls: Collection[TaskCall[Any]], reason: str) -> None:
    """Finish *calls*, whose loop has ended; in its thread. *reason* says why.

    What asyncio has left open is closed, as the garbage collector would do later. It may take long, or need another of
    the calls: so all have their results before.
    """
    for call in calls:
        call.future.write(None, LoopEndedError(reason))
    for call in calls:
        try:
            if call.coroutine is not None:
                call.coroutine.close()
        except BaseException as exc:  # raised by the function, or by Python if it awaits something
            with suppress(Exception):  # raised by a user's hook
                show(exc)
