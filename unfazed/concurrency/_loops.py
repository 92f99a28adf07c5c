"""Running event loops as other threads see them, calls on their way into one, and how async code waits.

All that differs between asyncio and trio is in `AsyncioLoop` and `TrioLoop`; neither library is imported before
one of its loops runs. No thread starts here, and no loop: `_loopthread.py` does that.

Every wait in async code goes through `hold_slot`, `wait_for_end`, `outlast` or `call_in`; each says who wakes it.
"""

from __future__ import annotations

import sys
from contextvars import Context, copy_context
from threading import Lock, main_thread
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, final

from anyio import CancelScope, CapacityLimiter, Event, get_cancelled_exc_class

from . import _slots
from ._errors import CallCancelledError, LoopEndedError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable

    import trio

T = TypeVar("T")


class Answer(Generic[T]):
    """What a call came to. The first to claim it writes it, and *announce* is called once when it stands."""

    __slots__ = ("_claim", "_error", "_value", "announce", "stands")

    def __init__(self, announce: Callable[[], object]) -> None:
        self._claim = Lock()  # a flag that is tested and set in one step; never released
        self._value: Any = None  # a T where there is no error
        self._error: BaseException | None = None
        self.announce = announce
        self.stands = False

    def write(self, value: T | None, error: BaseException | None) -> bool:
        """Write the answer, unless somebody was first."""
        if not self._claim.acquire(blocking=False):
            return False
        self._value = value
        self._error = error
        self.stands = True
        self.announce()
        return True

    def read(self) -> T:
        """Return the value or raise the error. Only once: an error kept here would be a reference cycle."""
        error, self._error = self._error, None
        if error is None:
            value: T = self._value
            return value
        try:
            raise error
        finally:
            del error, self


def without_our_frame(exc: BaseException) -> BaseException:
    """Take the frame that caught *exc* off its traceback: it tells the user nothing, and refers back to *exc*."""
    return exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)


class Call(Generic[T]):
    """An async function that one thread has another thread's loop run, in a task of its own."""

    __slots__ = ("_abort", "_cancelled", "_reason", "_work", "aborted", "accepted", "answer", "loop", "on_end")

    def __init__(self, work: Callable[[], Awaitable[T]], answer: Answer[T]) -> None:
        self._work = work
        self._abort: Callable[[], object] | None = None  # while the task runs: cancels it; for the loop's thread only
        self._cancelled = False
        self._reason: LoopEndedError | None = None  # what to raise instead of the cancellation
        self.aborted = False  # whether its task was cancelled while it ran
        self.accepted = False  # whether the loop has taken it in, or given it up; for the loop's thread only
        self.answer = answer
        self.on_end: Callable[[Call[Any]], None] | None = None  # is told when the call has ended, in the loop's thread
        self.loop: Loop | None = None  # where it is submitted, or about to be

    async def run(self, abort: Callable[[], object]) -> None:
        """Run the call in the current task, which *abort* cancels. Whatever is raised goes to the caller alone."""
        self._abort = abort
        if self._cancelled:
            self._cancel()
        try:
            value = await self._work()
        except BaseException as exc:  # SystemExit and the like as well: it must not end the loop
            error = without_our_frame(exc)
            if self._reason is not None and isinstance(exc, get_cancelled_exc_class()):
                self._reason.__cause__ = error
                error = self._reason
            self.answer.write(None, error)
            del error
        else:
            self.answer.write(value, None)
        finally:
            self._abort = None
            if self.on_end is not None:
                self.on_end(self)

    def cancel(self, reason: LoopEndedError | None = None) -> bool:
        """Cancel the task, now or when it starts, from any thread. Only the first time counts.

        Return whether there will be an answer: not where the call was never submitted, or its loop is gone.
        """
        if not self._cancelled:
            # The order matters. Either the loop is set, and we post; or the call is submitted after this, and `run`
            # sees that it is cancelled.
            self._reason = reason
            self._cancelled = True
        if self.loop is None:
            return False
        try:
            self.loop.post(self._cancel)
        except LoopEndedError:
            return False
        return True

    def _cancel(self) -> None:
        """Cancel the task. Where it was not even submitted, as Ctrl-C came in between, give it up."""
        if self._abort is not None:
            abort, self._abort = self._abort, None
            self.aborted = True
            abort()
        elif not self.accepted:
            self.accepted = True
            self.fail(self._reason)

    def fail(self, error: BaseException | None) -> None:
        """End the call, whose task could not even be started; in the loop's thread."""
        self.answer.write(None, error)
        if self.on_end is not None:
            self.on_end(self)


class SyncAnswer(Answer[T]):
    """An answer that a thread waits for, by taking *done*."""

    __slots__ = ("done",)

    def __init__(self) -> None:
        self.done = Lock()
        self.done.acquire()
        super().__init__(self.done.release)


class Loop(Protocol):
    """A running event loop, to be used from any thread. All of it raises `LoopEndedError` once the loop is gone."""

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

    def post(self, func: Callable[..., object], *args: object) -> None:
        """Have the loop call *func* soon. Returns at once."""

    def submit(self, call: Call[Any], context: Context) -> None:
        """Have the loop run *call* in a task of its own, in a copy of *context* or in itself. Returns at once."""

    def is_gone(self) -> bool:
        """Return whether what was posted may have been dropped."""
        ...

    async def end_other_tasks(self) -> None:
        """End the tasks that would outlive the main task, from within it: what anyio keeps depends on it."""


class AsyncioLoop:
    """A running asyncio loop, uvloop's included."""

    __slots__ = ("native",)
    calls_back_in_the_task = False

    def __init__(self, native: asyncio.AbstractEventLoop) -> None:
        self.native = native

    def post(self, func: Callable[..., object], *args: object, context: Context | None = None) -> None:
        try:
            self.native.call_soon_threadsafe(func, *args, context=context)
        except RuntimeError:
            if self.native.is_closed():
                raise LoopEndedError("the event loop of this call has ended") from None
            raise

    def submit(self, call: Call[Any], context: Context) -> None:
        call.loop = self
        self.post(self._start, call, context=context)

    def _start(self, call: Call[Any]) -> None:
        if call.accepted:
            return
        call.accepted = True
        # A context that comes from a trio program says so; anyio would believe it.
        sniffio = sys.modules.get("sniffio")
        if sniffio is not None:  # pragma: no branch  it comes with trio
            sniffio.current_async_library_cvar.set("asyncio")
        # Nobody but us keeps the task alive: `call.run` is in it, and whoever waits for the call holds that.
        running = self._run(call)
        try:
            self.native.create_task(running)
        except BaseException as exc:  # of a task factory of the user's
            running.close()
            call.fail(exc)

    async def _run(self, call: Call[Any]) -> None:
        task = sys.modules["asyncio"].current_task()
        await call.run(task.cancel)

    def is_gone(self) -> bool:
        # A loop that stands still may be run again, but for the last hour of the interpreter.
        return self.native.is_closed() or not (self.native.is_running() or main_thread().is_alive())

    async def end_other_tasks(self) -> None:
        asyncio = sys.modules["asyncio"]
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class TrioLoop:
    """A running trio loop."""

    __slots__ = ("native",)
    calls_back_in_the_task = True

    def __init__(self, native: trio.lowlevel.TrioToken) -> None:
        self.native = native

    def post(self, func: Callable[..., object], *args: object) -> None:
        import trio

        try:
            self.native.run_sync_soon(func, *args)
        except trio.RunFinishedError:
            raise LoopEndedError("the event loop of this call has ended") from None

    def submit(self, call: Call[Any], context: Context) -> None:
        call.loop = self
        self.post(self._start, call, context)

    def _start(self, call: Call[Any], context: Context) -> None:
        import trio

        if call.accepted:
            return
        call.accepted = True
        try:
            trio.lowlevel.spawn_system_task(self._run, call, context=context)
        except RuntimeError:  # the main task has ended
            call.fail(LoopEndedError("the event loop of this call has ended"))

    async def _run(self, call: Call[Any]) -> None:
        with CancelScope() as scope:
            await call.run(scope.cancel)

    def is_gone(self) -> bool:
        return False  # trio drops nothing that it has accepted

    async def end_other_tasks(self) -> None:
        pass  # trio does it


def running_loop() -> Loop | None:
    """Return the event loop that runs in this thread, if any."""
    lowlevel: Any = sys.modules.get("trio.lowlevel")
    in_trio_run = getattr(lowlevel, "in_trio_run", None)  # not there yet while another thread is importing trio
    if in_trio_run is not None and in_trio_run():
        return TrioLoop(lowlevel.current_trio_token())
    get_running_loop = getattr(sys.modules.get("asyncio.events"), "get_running_loop", None)
    if get_running_loop is not None:
        try:
            return AsyncioLoop(get_running_loop())
        except RuntimeError:  # none runs
            pass
    return None


def current_loop() -> Loop:
    """Return the event loop that runs in this thread."""
    loop = running_loop()
    assert loop is not None, "async code runs in a loop"
    return loop


def set_from_anywhere(loop: Loop, event: Event) -> bool:
    """Set *event* from any thread. Return whether its *loop* is there to see it."""
    try:
        here = running_loop()
        if here is not None and here.native is loop.native:
            event.set()
        else:
            loop.post(event.set)
    except LoopEndedError:
        return False
    return True


@final
class NoLimit(CapacityLimiter):
    """What anyio is given to count with: nothing. We count, and what is not done takes no time."""

    def __new__(cls) -> NoLimit:
        return object.__new__(cls)

    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def acquire_on_behalf_of(self, borrower: object) -> None: ...  # trio's way

    def release_on_behalf_of(self, borrower: object) -> None: ...


NO_LIMIT = NoLimit()


async def hold_slot(loop: Loop, limiter: CapacityLimiter) -> _slots.Slot:
    """Take a slot of *limiter* in the current *loop*, queueing for it if need be.

    Who wakes us: whoever gives one back, on any thread, or the watcher. Cancelled meanwhile, by whatever means, it
    leaves the queue and gives back what it was granted.
    """
    event: Event | None = None

    def wake() -> bool:
        # Either we come first, and the slot is seen to be held below; or the event is there to be set.
        return event is None or set_from_anywhere(loop, event)

    slot = _slots.acquire(limiter, wake)
    if not slot.held:
        event = Event()
        try:
            if not slot.held:
                await event.wait()
        except BaseException:
            _slots.release(slot)
            raise
    return slot


async def outlast(event: Event, cancellation: BaseException) -> BaseException:
    """Wait for *event*, whatever else cancels us: asyncio's own cancellation goes straight through a shield.

    Return what to raise then, outside of any `except`: of several cancellations the last, without its context. That of
    a scope, which the scope takes for its own and ends, must not hide one that is meant for the whole task.
    """
    cancelled = get_cancelled_exc_class()
    with CancelScope(shield=True):
        while not event.is_set():
            try:
                await event.wait()
            except cancelled as exc:
                cancellation = exc
                cancellation.__context__ = None
    return cancellation


async def wait_for_end(event: Event, on_cancel: Callable[[], object]) -> None:
    """Wait for *event*. Cancelled meanwhile, do *on_cancel*, wait for it all the same, and raise the cancellation."""
    try:
        await event.wait()
        return
    except BaseException as exc:
        cancellation = exc
    on_cancel()
    try:
        raise await outlast(event, cancellation)
    finally:
        del cancellation


async def call_in(
    submit: Callable[[Call[T], Context], None],
    work: Callable[[], Awaitable[T]],
    name: str,
    here: Loop,
    *,
    pass_on: bool,
) -> T:
    """Run *work* in a task of its own, which *submit* starts in any loop, and wait for its end in the loop *here*.

    Where the caller is cancelled, the task is too if *pass_on* is true, and the caller's cancellation is raised
    when the task has ended. Who wakes us: whoever writes the answer, the task or the end of its loop.
    """
    event = Event()
    answer: Answer[T] = Answer(lambda: set_from_anywhere(here, event))
    call = Call(work, answer)
    submit(call, copy_context())
    await wait_for_end(event, lambda: pass_on and call.cancel())
    try:
        return answer.read()
    except cancelled_classes() as exc:
        raise CallCancelledError(name) from exc


def cancelled_classes() -> tuple[type[BaseException], ...]:
    """Return the cancellation classes of the libraries that are loaded."""
    found: list[type[BaseException]] = []
    for name, attribute in (("asyncio", "CancelledError"), ("trio", "Cancelled")):
        module = sys.modules.get(name)
        if module is not None:
            found.append(getattr(module, attribute))
    return tuple(found)
