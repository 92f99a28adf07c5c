"""Calls on their way into a loop, and what they come to. Knows neither asyncio nor trio, but what it needs of them.

Guarantees:

- An `OneShotFuture` is written in one step, by the first who does so: nobody is ever between the claim and the writing.
  Whoever waits for it is told at least once, though a signal handler raises in the midst of that.
- What a signal handler raises in the loop's thread while it begins a call, or runs it, becomes the call's answer.
- A call that is cancelled while another thread submits it learns of it: each of the two takes a step on one list before
  it looks at what the other has done.

Assumptions: `list.append`, reading `list[0]` and trying to take a lock are atomic (Python's documentation, "Thread
Safety Guarantees" and `threading`).
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

from anyio import get_cancelled_exc_class
from anyio.lowlevel import checkpoint

from ._errors import LoopEndedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from contextvars import Context

T = TypeVar("T")


class Loop(Protocol):
    """A running event loop, to be used from any thread.

    `post` and `submit` raise `LoopEndedError` once the loop is gone.
    """

    @property
    def native(self) -> object:
        """What the library itself knows the loop by."""
        ...

    @property
    def calls_back_in_the_task(self) -> bool:
        """Whether a worker's calls are run by the very task that waits for the worker, and cancelled with it (trio).

        There anyio's shield holds. Not on asyncio, whose own cancellation goes through it: we see to both there.
        """
        ...

    @property
    def cancels_once(self) -> bool:
        """Whether a cancellation ends one wait (asyncio), or every wait from then on (trio)."""
        ...

    def post(self, func: Callable[..., object], *args: object) -> None:
        """Have the loop call *func* soon. Returns at once."""

    def submit(self, call: TaskCall[Any], context: Context) -> None:
        """Have the loop run *call* in a task of its own, in a copy of *context* or in itself. Returns at once."""

    def spawn(self, run: Callable[[], Coroutine[Any, Any, None]], on_end: Callable[[], object]) -> object:
        """Run what raises nothing in a task of its own, from within this loop. Only the end of the loop cancels it.

        Return what keeps the task alive. *on_end* is called at its end at the latest, even if it never began.
        """
        ...

    def checkpoint_if_cancelled(self) -> Awaitable[None]:
        """Raise the cancellation of the current task, if it has been cancelled."""
        ...

    def is_gone(self) -> bool:
        """Return whether what was posted may have been dropped."""
        ...

    def mark_context(self) -> None:
        """Say in the current context, which may come from a program on another library, which one runs here."""

    def forget_cancellation(self) -> None:
        """Say that the current task has seen to a cancellation, from which it goes on."""

    async def run_within(self, seconds: float, work: Callable[[], Awaitable[T]], late: Callable[[], Exception]) -> T:
        """Run *work* in the current task, cancelled after *seconds*; then wait for its cleanup and raise *late*."""
        ...

    async def end_other_tasks(self) -> None:
        """End the tasks that would outlive the main task, from within it: what anyio keeps depends on it."""


class OneShotFuture(Generic[T]):
    """What a call came to: the value and the error, one of them `None`. The first to write it counts.

    Args:
        announce: Is called when the answer stands, sometimes twice; `None` where nobody waits for it.
    """

    def __init__(self, on_done: Callable[[], object] | None = None) -> None:
        self._outcomes: list[list[Any]] = []  # the first one counts: value and error
        self.on_done = on_done

    @property
    def done(self) -> bool:
        """Whether it has been written."""
        return bool(self._outcomes)

    def try_claim(self) -> bool:
        """Keep others from writing the answer, unless somebody was first."""
        return self._write([None, None])

    def write(self, value: T | None, error: BaseException | None) -> bool:
        """Write the answer, and announce it, unless somebody was first. Return whether we are."""
        outcome = [value, error]  # a list, for constant tuples are one and the same
        try:
            first = self._write(outcome)
            if first and self.on_done is not None:
                self.on_done()
        except BaseException:  # of a signal handler: the one who waits must hear of it all the same
            ours = bool(self._outcomes) and self._outcomes[0] is outcome
            if ours and self.on_done is not None:  # pragma: no branch  else there is nothing to tell
                self.on_done()
            raise
        return first

    def _write(self, outcome: list[Any]) -> bool:
        self._outcomes.append(outcome)
        if self._outcomes[0] is outcome:
            return True
        del self._outcomes[1:]  # what came too late would be kept here
        return False

    def read(self) -> T:
        """Return the value or raise the error. Only once: an error kept here would be a reference cycle."""
        outcome = self._outcomes[0]
        value, error = outcome
        outcome[1] = None
        if error is None:
            result: T = value
            return result
        try:
            raise error
        finally:
            del value, error, self


def without_our_frame(exc: BaseException) -> BaseException:
    """Take the frame that caught *exc* off its traceback: it tells the user nothing, and refers back to *exc*."""
    return exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)


class TaskCall(Generic[T]):
    """An async function that one thread has another thread's loop run, in a task of its own."""

    _abort: Callable[[], object] | None = None  # while the task runs: cancels it; for the loop's thread only
    _cancelled = False
    _reason: LoopEndedError | None = None  # what to raise instead of the cancellation
    aborted = False  # whether its task was cancelled while it ran
    missed = False  # whether it never waited, and so never saw that
    cancelled_by_others = False  # and not by us
    task_has_ended: Callable[[], bool] | None = None  # where nobody tells us of that; for the loop's thread only
    accepted = False  # whether the loop has taken it in, or given it up; for the loop's thread only
    past = False  # whether a thread is to run it past the loop
    on_end: Callable[[TaskCall[Any]], None] | None = None  # is told when the call has ended, in the loop's thread
    loop: Loop | None = None  # where it is submitted, or about to be: `set_loop` says it

    def __init__(self, work: Callable[[], Awaitable[T]], future: OneShotFuture[T], made_elsewhere: bool = False) -> None:
        self._work = work
        self.future = future
        self.made_elsewhere = made_elsewhere  # for certain, and not in the loop that is to run it
        self._steps: list[str] = []  # on which `set_loop` and `cancel` take one before either looks at the other

    def set_loop(self, loop: Loop) -> None:
        """Say which loop is to run the call, before that is submitted."""
        self.loop = loop
        self._steps.append("set_loop")

    def go_past(self, loop: Loop, abort: Callable[[], object], on_end: Callable[[TaskCall[Any]], None]) -> None:
        """Say that a thread of *loop* is to run the call, past the loop; *abort* cancels it, in the loop's thread."""
        self.past = True
        self.on_end = on_end
        self._abort = abort
        self.set_loop(loop)

    def come_back(self) -> None:
        """Say that the loop is to run the call after all; in the loop's thread."""
        self.past = False
        self._abort = None

    def end_past(self, value: T) -> None:
        """End the call, which a thread has run past the loop; where the end of the loop has cancelled it, with that."""
        if self._reason is None:
            self.future.write(value, None)
        self.fail(self._reason)

    def give_up(self) -> None:
        """End the call, which nobody has begun to run; in the loop's thread."""
        self.accepted = True
        self.fail(self._reason)

    def begin(self, start: Callable[..., object], *args: object) -> None:
        """Have *start* begin the task, unless that has been tried; in the loop's thread. Its errors are the call's."""
        if self.accepted:
            return
        try:
            self.accepted = True
            start(*args)
        except BaseException as exc:  # of a task factory of the user's, or a signal handler
            self.fail(without_our_frame(exc))

    async def run(self, abort: Callable[[], object]) -> None:
        """Run the call in the current task, which *abort* cancels. Whatever is raised goes to the caller alone."""
        try:
            await self._run(abort)
        except BaseException as exc:  # of a signal handler, outside of the work
            if not self.future.write(None, without_our_frame(exc)):
                raise
        finally:
            self._abort = None
            if self.on_end is not None:
                self.on_end(self)

    async def _run(self, abort: Callable[[], object]) -> None:
        if self.future.done:  # its caller has been told that it could not begin
            return
        self._abort = abort
        if self._cancelled:
            self._cancel()
        try:
            value = await self._work()
        except BaseException as exc:  # SystemExit and the like as well: it must not end the loop
            error = without_our_frame(exc)
            if not isinstance(exc, get_cancelled_exc_class()):
                if self.aborted:
                    await self._take_in()
            else:
                self.cancelled_by_others = not self.aborted
                if self._reason is not None:
                    self._reason.__cause__ = error
                    error = self._reason
            self.future.write(None, error)
            del error
        else:
            if self.aborted:
                await self._take_in()
            self.future.write(value, None)

    async def _take_in(self) -> None:
        """Take a cancellation that the work did not wait for off the task: it is not for what comes next there."""
        if self.loop is not None and self.loop.cancels_once:
            try:
                await checkpoint()
            except get_cancelled_exc_class():
                self.missed = True

    def cancel(self, reason: LoopEndedError | None = None) -> bool:
        """Cancel the task, now or when it starts, from any thread. Only the first time counts.

        Return whether there will be an answer: not where the call was never submitted, or its loop is gone.
        """
        if not self._cancelled:
            self._reason = reason
            self._cancelled = True
        self._steps.append("cancel")  # if `set_loop` took its step first, we see the loop; or else `run` sees us
        if self.loop is None:
            return False
        try:
            self.loop.post(self._cancel)
        except LoopEndedError:
            return False
        return True

    def _cancel(self) -> None:
        """Cancel the task. Where it was not even submitted, as Ctrl-C came in between, give it up."""
        abort = self._abort
        if abort is not None:
            abort()
            self.aborted = True  # not before: a signal handler may have raised in between, and `go_on` looks here
            self._abort = None
        elif not self.accepted:
            self.give_up()
        else:
            self.fail_if_lost()

    def go_on(self) -> bool:
        """Have done again what a signal handler has kept the loop from doing. Return whether to submit it once more.

        Of use to a thread that waits for the answer. What was done, or only takes its time, is not done twice.
        """
        if self._cancelled and not self.aborted:
            self.cancel()
        return not (self.accepted or self.past)

    def fail_if_lost(self) -> None:
        """End the call if its task has ended without an answer, and nobody has told us; in the loop's thread."""
        if self.task_has_ended is not None and self.task_has_ended():
            self.fail_unless_run(self._reason)

    def fail_unless_run(self, error: BaseException | None) -> None:
        """End the call if its task has ended without an answer: with *error*, or if it was cancelled before it began.

        That is what asyncio does at the end of a loop.
        """
        if not self.future.done:
            ended = LoopEndedError("the event loop of this call has ended, or cancelled it before it began")
            self.fail(error or ended)

    def fail(self, error: BaseException | None) -> None:
        """End the call, with *error* if it has no answer yet; in the loop's thread, if it was to run there."""
        self._abort = None
        self.future.write(None, error)
        if self.on_end is not None:
            self.on_end(self)


class BlockingFuture(OneShotFuture[T]):
    """An answer that a thread waits for, by taking *ready*."""

    def __init__(self) -> None:
        self.ready = Lock()
        self.ready.acquire()
        super().__init__(self._say_so)

    def _say_so(self) -> None:
        if self.ready.locked():  # else it has been said
            self.ready.release()
