"""Handles of calls that were started: who waits for one, who cancels one, and how it gets its result.

A handle stands for a `TaskCall` of the background event loop, or of an `EventLoopThread`. Whoever writes that call's
future settles the handle: the loop's thread, or the worker thread of a call that bypasses the loop.

    state     how to tell              `cancel()`                                          goes on as
    --------  -----------------------  --------------------------------------------------  -------------------------
    pending   nobody has begun         never begins: cancelled at once                     running, settled
    running   `prevent_start` refuses  a coroutine, or what the options say: it is asked   settled
                                       to stop, and the handle is done when it has ended;
                                       otherwise nothing, and it returns `False`
    settled   `_over`                  -                                                   -

Guarantees:

- Whoever waits is woken. Each waiter adds its waker to `_wakers` before it looks at `_over`. The settling thread sets
  `_over` before it copies `_wakers`.
- A thread that waits does not touch the lock of the `Future` before that is done. Otherwise a signal handler that
  raises in it could leave the lock taken, and the loop's thread would wait for it.

Assumption: `set.add`, `set.discard` and `set.copy` are atomic, with and without a GIL (Python's documentation, "Thread
Safety Guarantees"). In a forked child, the handles of the parent that were not done never will be.
"""

from __future__ import annotations

import concurrent.futures
import os
import time
from concurrent.futures import Future
from contextvars import Context, copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, Protocol, TypeVar, final

from anyio import move_on_after

from .._core._calls import HANDLE
from .._core._checks import name_of, not_copied, visible_names
from .._core._errors import CallCancelledError, LoopEndedError
from .._core._futures import BlockingFuture, OneShotFuture, without_our_frame
from .._core._taskcall import TaskCall
from .._core._threadstart import show
from ._loops import current_loop
from ._synccalls import belongs_to_loop, block, blocked_later, call_from_sync, refuse_in_loop
from ._timeouts import CHECK_SECONDS
from ._unseenerrors import log_unseen, note_unseen
from ._waiting import cancelled_classes, is_only, set_from_anywhere
from ._workers import lending

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator
    from typing import TypeAlias

    from .._core._blockedloops import BlockedLoop
    from .._core._calls import UserCall

    Join: TypeAlias = Callable[["Handle[Any]"], object]  # makes a handle a member of a group, before its call begins
    Submit: TypeAlias = Callable[[TaskCall[Any], Context], None]

T = TypeVar("T")


class Startable(Protocol):
    """A call as its handle sees it. All methods can be called from any thread."""

    @property
    def stops_when_cancelled(self) -> bool:
        """Whether the task of a call that runs ends soon if it is cancelled."""
        ...

    def prevent_start(self) -> bool:
        """Keep the function from beginning. Return `False` if it has begun."""
        ...

    def is_prevented(self) -> bool:
        """Return whether the function will never begin because `prevent_start` came first."""
        ...

    def has_begun(self) -> bool:
        """Return whether the function has begun; it may have ended."""
        ...

    def tell_cancelled(self) -> None:
        """Cancel what the running function waits for, if that is possible; it may go on."""


class _Running(NamedTuple):
    call: Startable
    task: TaskCall[Any]
    read: Callable[[OneShotFuture[Any]], Any]  # returns the result of the future of the task, or raises its error

    def user_call(self) -> UserCall:
        """Return the call as statistics and observers know it."""
        return self.task if self.task.carried is None else self.task.carried


@final
class Handle(Future[T]):
    """A call that was started, and its result when there is one. `start_in_threadpool` and its like return it.

    It is a `concurrent.futures.Future`, so `concurrent.futures.wait`, `as_completed` and `asyncio.wrap_future` take it.
    It can also be awaited: on asyncio and trio, in any loop, several times, and by several tasks. Who awaits it and is
    cancelled stops waiting; the call goes on. The same holds for Ctrl-C in `result()`.

    All methods can be called from any thread. Callbacks (`add_done_callback`) run in the thread in which the call ends,
    so they must not block. If the call raises and nobody ever asks for that, the error is logged when the handle goes
    away, or at exit (logger "unfazed.concurrency"). In a forked child, a handle of the parent that was not done has no
    result.

    Example:
        `handle = start_in_threadpool(read, path)`, then `handle.result()` or `await handle`
    """

    _over = False  # whether it is settled
    _asked = False  # whether somebody has called `cancel`
    _stopping = False  # whether the call was told to stop while it ran
    _future_written = False  # whether the `Future` has been told that the call has ended
    _blocks_later: BlockedLoop | None = None  # the loop of the thread that started it, if that may be blocked for it
    _unseen: BaseException | None = None  # the error, until somebody asks for it; never the end of its loop

    def __init__(self, name: str) -> None:
        super().__init__()
        self.__qualname__ = self._name = name  # error messages take it for the name of the function
        self._process = os.getpid()
        self._running: _Running | None = None  # until it is settled
        self._wakers: set[Callable[[], object]] = set()
        self.add_done_callback(_wake_all)

    def result(self, timeout: float | None = None) -> T:
        """Wait for the end of the call and return its result.

        In a worker thread the slot is lent meanwhile, and the wait is cancelled with the task that waits for the
        thread.

        Args:
            timeout: How many seconds to wait; `None` for no limit. After that the call goes on.

        Raises:
            LoopThreadError: If an event loop is running in this thread, and the result is not there yet.
            LoopEndedError: If the loop of the call has ended first, for example because the interpreter is exiting.
            BaseException: Whatever the call raised, `concurrent.futures.CancelledError` if it was cancelled, or
                `concurrent.futures.TimeoutError` if it is not done in time.
        """
        if not self._over:
            self._wait(timeout)
        self._unseen = None
        return super().result(0)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait for the end of the call and return the exception that it raised, or `None`. Otherwise as `result`."""
        if not self._over:
            self._wait(timeout)
        self._unseen = None
        return super().exception(0)

    def __await__(self) -> Generator[Any, Any, T]:
        """Wait for the end of the call in the current loop and return its result."""
        return self._result_here().__await__()

    async def _result_here(self) -> T:
        if not self._over:
            self._require_its_process()
            await lending(self._wait_in_loop())
        return self.result()

    def cancel(self) -> bool:
        """Cancel the call, as its options say.

        A call that has not begun never begins, and is cancelled at once. A coroutine that runs is cancelled and cleans
        up; the handle is done after that. A thread with `abandon_on_cancel` is abandoned, and a process with
        `kill_on_cancel` is killed. Any other call that runs is left alone.

        Returns:
            Whether the call never begins, or was told to stop. `False` if it goes on or is done.
        """
        running = self._running
        if running is None or self._process != os.getpid():
            return self.cancelled()
        self._asked = True
        if running.call.prevent_start():
            if not running.task.cancel():  # it was never submitted, because a signal handler raised before that
                running.task.future.write(None, None)
            super().cancel()
            return True
        if not running.call.stops_when_cancelled:
            return False
        self._stopping = True
        return running.task.cancel()

    def running(self) -> bool:
        """Return whether the function has begun and has not ended."""
        running = self._running
        return running is not None and running.call.has_begun()

    def _stop(self) -> None:
        """Cancel the call; if it goes on, cancel at least what it waits for. For groups."""
        running = self._running
        if not self.cancel() and running is not None:
            self._stopping = True
            running.call.tell_cancelled()

    def is_settled(self) -> bool:
        """Return whether the call has ended and its result is there. Unlike `done`, this takes no lock. For groups."""
        return self._over and self._running is None

    def __repr__(self) -> str:
        if not self._over:
            state = "running" if self.running() else "pending"
        elif self.cancelled():
            state = "cancelled"
        else:
            state = "done" if super().exception(0) is None else "failed"
        return f"<Handle of {self._name}(), {state}>"

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __reduce__(self) -> NoReturn:
        raise not_copied(self)

    def __del__(self) -> None:
        self._log_unseen()

    def _log_unseen(self) -> None:
        error, self._unseen = self._unseen, None
        if error is not None:
            log_unseen(self._name, error)

    def _get_snapshot(self) -> Any:  # pragma: no cover  coverage is measured on an older Python
        """Do what `exception` does for `asyncio.wrap_future`, which asks in this way since Python 3.15."""
        self._unseen = None
        ask: Any = super()
        return ask._get_snapshot()

    # How it waits

    def _require_its_process(self) -> None:
        if self._process != os.getpid():
            raise LoopEndedError(f"the process has forked, and {self._name}() was left behind in the parent")

    def _wait(self, timeout: float | None) -> None:
        """Wait in this thread until it is settled. A worker thread waits in its loop: so it is cancelled with its task.

        Who wakes us: whoever settles it. We check now and then that the loop of the call still runs.
        """
        self._require_its_process()
        blocks = refuse_in_loop(self, "result", "await handle")
        if belongs_to_loop():
            running, wait = self._running, partial(self._wait_in_loop, timeout)
            carried = running and running.user_call()
            call_from_sync(wait, self, "result", "await handle", _no_loop, carried=carried, counted=False)
        elif blocks is None:
            self._wait_here(timeout)
        else:
            block(blocks.as_part_of(self._blocks_later), partial(self._wait_here, timeout))
        if not self._over:
            raise concurrent.futures.TimeoutError(f"{self._name}() has not ended within {timeout} seconds")

    def _wait_here(self, timeout: float | None) -> None:
        settled: BlockingFuture[None] = BlockingFuture()
        wake = partial(settled.write, None, None)
        self._wakers.add(wake)
        try:
            self._wait_until(settled, None if timeout is None else time.monotonic() + timeout)
        finally:
            self._wakers.discard(wake)

    def _wait_until(self, settled: BlockingFuture[None], end: float | None) -> None:
        seconds = CHECK_SECONDS
        while not self._over:
            if end is not None:
                seconds = min(CHECK_SECONDS, end - time.monotonic())
                if seconds <= 0:
                    return
            running = self._running
            if not settled.ready.acquire(timeout=seconds) and running is not None:
                running.task.fail_if_gone()

    async def _wait_in_loop(self, timeout: float | None = None) -> None:
        """Wait in the current loop until it is settled, at most *timeout* seconds."""
        loop = current_loop()
        event = loop.new_event()
        wake = partial(set_from_anywhere, loop, event)
        self._wakers.add(wake)
        try:
            if not self._over:
                with move_on_after(timeout):
                    await event.wait()
        finally:
            self._wakers.discard(wake)

    # How it is settled

    def _begin(self, running: _Running, submit: Submit, join: Join | None) -> None:
        """Have *submit* start the call, unless the group that it joins is cancelled."""
        try:
            self._running = running
            user_call = running.user_call()
            user_call.waiter = HANDLE
            user_call.introduce()
            if join is not None:
                join(self)
            if not self._over:
                context = copy_context()
                self._blocks_later = blocked_later(context, "result", "await handle")
                submit(running.task, context)
        except BaseException:  # it cannot be started, or a signal handler raised: then it may have begun all the same
            self._asked = self._stopping = True
            if running.call.prevent_start():
                running.task.future.write(None, None)
            running.task.cancel()
            raise
        if self._asked and running.call.is_prevented():  # by the group, perhaps; otherwise the loop says why it ended
            running.task.future.write(None, None)

    def _settle(self) -> None:
        """Take the outcome of the call, which has ended. In the thread that has written it."""
        running = self._running
        if running is None:
            return
        call, task, read = running
        value: Any = None
        error: BaseException | None = None
        cancelled = call.is_prevented() and self._asked
        if not cancelled:
            try:
                value = read(task.future)
            except BaseException as exc:
                error = without_our_frame(exc)
                if is_only(exc, cancelled_classes()):
                    cancelled = self._stopping
                    error = CallCancelledError(self._name)
                    error.__cause__ = exc
        self._running = task.future.on_done = None  # each refers to the other
        call.prevent_start()  # what has never begun closes its coroutine
        try:
            running.user_call().note_end(error or (CallCancelledError(self._name) if cancelled else None))
            self._set(value, error, cancelled)
        except BaseException as exc:  # raised by a callback of the user's, `SystemExit` for one: the loop must go on
            show(exc)
            self._set(value, error, cancelled)  # again: a signal handler may have raised it
        finally:
            del self, running, call, task, read, value, error  # the traceback of the error leads to this frame

    def _set(self, value: Any, error: BaseException | None, cancelled: bool) -> None:
        if cancelled:
            super().cancel()
        if not self._future_written:
            self._future_written = True
            going_on = self.set_running_or_notify_cancel()  # `concurrent.futures.wait` waits for that after `cancel`
            if going_on and error is None:
                self.set_result(value)
            elif going_on:
                if not isinstance(error, LoopEndedError):
                    self._unseen = error
                    note_unseen(self)
                self.set_exception(error)
        _wake_all(self)  # again: a signal handler may have interrupted `cancel`


def _wake_all(handle: Any) -> None:
    """Wake all who wait for *handle*. It is the first callback, so those of the user find the handle settled."""
    handle._over = True
    for wake in handle._wakers.copy():
        wake()


def _no_loop(call: TaskCall[Any], context: Context) -> None:
    """Stand for the loop of a thread that has none: its loop has just ended."""
    raise LoopEndedError("the event loop of this worker thread has ended")


def start_call(
    call: Startable,
    work: Callable[[], Awaitable[Any]],
    func: object,
    submit: Submit,
    read: Callable[[OneShotFuture[Any]], Any],
    join: Join | None = None,
    *,
    user_call: UserCall | None = None,
    helper: str = "",
) -> Handle[Any]:
    """Have *submit* start *call*, whose task does *work*, and return its handle. With *join*, that joins a group first.

    *user_call* is what the user has started by means of *helper*; by default the task is that.
    """
    handle: Handle[Any] = Handle(name_of(func))
    task = TaskCall(work, OneShotFuture(handle._settle))
    if user_call is None:
        task.func, task.helper = func, helper
    task.carried = user_call
    handle._begin(_Running(call, task, read), submit, join)
    return handle
