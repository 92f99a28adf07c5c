"""Event loops in threads of their own: how they start, take calls, and end.

At exit, after the ordinary threads have ended and before the daemon threads are stopped, all of them end. In a forked
child they are gone, and say so.

Guarantees and assumptions: `set.add`, `discard` and `copy`, and `list.append`, are atomic. Where one thread adds a call
and another one ends the loop, each does its own step before it looks at the other's: one of the two sees the other.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, final

import anyio
from anyio import Event

from .._core._checks import (
    explain,
    not_copied,
    require_timeout,
    visible_names,
)
from .._core._errors import LoopEndedError, LoopStartError, LoopStateError
from .._core._threadstart import start_thread
from ._loopchecks import async_work, require_backend, require_backend_options, require_name
from ._loops import current_loop
from ._synccalls import Patience, call_from_sync
from ._waiting import call_in
from ._workers import thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context
    from types import TracebackType

    from .._core._loop import Loop
    from .._core._taskcall import TaskCall

P = ParamSpec("P")
T = TypeVar("T")

EXIT_SECONDS = 3.0  # at exit, how long all loops together may take to end; arbitrary, as short as cleanup allows


@final
class EventLoopThread:
    """An event loop in a thread of its own, for as long as a `with` block lasts.

    The background event loop is one of these. All methods can be called from any thread. In a forked child the
    loop is gone, and says so.

    Args:
        backend: "asyncio" or "trio".
        backend_options: What `anyio.run` takes under this name, such as `{"use_uvloop": True}`.
        name: The name of the thread; `None` gives it one with a number.

    Raises:
        WrongOptionError: If there is no such backend, or no such option of it, or *name* is no string.

    Example:
        `with EventLoopThread("trio") as loop: loop.run_sync(fetch, url)`
    """

    _numbers = itertools.count(1)

    def __init__(
        self, backend: str = "asyncio", backend_options: dict[str, Any] | None = None, name: str | None = None
    ) -> None:
        require_backend(backend, "EventLoopThread(backend=...)")
        require_backend_options(backend_options, backend, "EventLoopThread")
        require_name(name)
        self._backend = backend
        self._options = backend_options
        self._name = name or f"unfazed-eventloop-{next(self._numbers)}"
        self._main_claim = threading.Lock()  # taken by the thread that runs the loop; never released
        self._thread: threading.Thread | None = None  # that thread
        self._loop: Loop | None = None  # from the start of the loop on
        self._stop_event: Event | None = None
        self._drained: Event | None = None  # while the loop is ending
        self._started = threading.Event()  # or could not start
        self._error: BaseException | None = None  # why the loop ended or could not start
        self._calls: set[TaskCall[Any]] = set()  # those that have not ended
        self._left_behind = False  # whether somebody has stopped waiting for a call
        self._closed: str | None = None  # why no calls are taken any more
        self._steps: list[str] = []  # on which the loop's start, and who closes it, take one before they look

    def __enter__(self) -> EventLoopThread:
        self._require_new()
        try:
            self._ensure_started()
            return self
        except BaseException:  # of a signal handler: `with` will not end it
            self._ask_to_stop("the start of this event loop thread was interrupted")
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._left_behind and exc is not None:  # by a second Ctrl-C, which waits for nothing
            self._ask_to_stop("this event loop thread has been stopped")
        else:
            self.stop()

    def __repr__(self) -> str:
        state = "running" if self.is_running() else "ended" if self._started.is_set() else "not started"
        return f"<EventLoopThread({self._backend!r}, name={self._name!r}), {state}>"

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __reduce__(self) -> NoReturn:
        raise not_copied(self)

    def is_running(self) -> bool:
        """Return whether the loop takes calls."""
        return self._loop is not None and self._closed is None

    @property
    def native(self) -> object:
        """What its library knows the loop by: an asyncio loop, or a `trio.lowlevel.TrioToken`.

        Raises:
            LoopStateError: If it has not been started.
            LoopEndedError: If it has ended.
        """
        return self._require_running().native

    def start(self) -> None:
        """Start the thread and wait for its loop to run. `with` does it.

        Raises:
            LoopStateError: If it has been started before.
            LoopStartError: If the backend is not installed, or refuses its options.
            LoopEndedError: If the interpreter is exiting.
        """
        self._require_new()
        self._ensure_started()

    def _require_new(self) -> None:
        if self._thread is not None:
            raise LoopStateError(f"{self!r} can be started only once; make a new one")

    def _ensure_started(self) -> None:
        """Start the thread unless that has been done, and wait for its loop to run.

        A signal handler may interrupt this anywhere, and come here itself; other threads come at the same time.
        Should two threads be started so, the second one ends at once.
        """
        if _exiting:
            raise LoopEndedError("the interpreter is exiting")
        if self._thread is None:
            try:
                start_thread(self._main, self._name)
            except RuntimeError as exc:
                if self._thread is None:  # else another thread or a signal handler has started it meanwhile
                    raise _no_thread(self, exc) from exc
        self._started.wait()
        if self._loop is None:
            if not threading.main_thread().is_alive():  # what it needs can't be imported or started any more
                raise LoopEndedError("the interpreter is exiting") from self._error
            raise LoopStartError(self._backend, str(self._error)) from self._error

    def stop(self, timeout: float | None = None) -> None:
        """Cancel what runs in the loop, wait for its cleanup, and end the thread. `with` does it.

        Whoever waits for what is cancelled so gets a `LoopEndedError`.

        Args:
            timeout: How many seconds to wait for the end; `None` waits for as long as it takes.

        Raises:
            WrongOptionError: If *timeout* is no number of seconds.
            LoopStateError: If it is called in the loop's own thread, or in one of its workers, for which it waits.
        """
        require_timeout(timeout, "stop")
        worker = thread.worker
        in_worker = worker is not None and self._loop is not None and worker.way_back().native is self._loop.native
        if in_worker or self._thread is threading.current_thread():
            raise LoopStateError("an event loop thread cannot wait for its own end; stop it from another thread")
        self._ask_to_stop("this event loop thread has been stopped")
        if self._thread is not None:
            self._thread.join(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    async def run(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an async function in this loop and await its result from the current one.

        `run_in_eventloop` documents the arguments, the cancellation and the errors.
        """
        work = async_work(func, args, kwargs, "run")
        try:
            if self._closed is not None and self._thread is threading.current_thread():
                return await work()  # in the cleanup of what the end of the loop has cancelled
            return await call_in(self._submit, work, func, current_loop())
        except TypeError as exc:
            explain(exc, "run", func, kwargs)
            raise

    def run_sync(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an async function in this loop and wait for its result.

        `run_in_eventloop_sync` documents the arguments, the cancellation and the errors.
        """
        work = async_work(func, args, kwargs, "run_sync")
        patience, instead = Patience(), "await loop.run({}, ...)"
        try:
            return call_from_sync(work, func, "run_sync", instead, self._submit, always=True, patience=patience)
        except BaseException as exc:
            self._left_behind = self._left_behind or patience.is_over
            explain(exc, "run_sync", func, kwargs)
            raise

    def _require_running(self) -> Loop:
        """Return the loop, which takes calls."""
        if self._loop is None or self._closed is not None:
            if self._closed is None:
                raise LoopStateError("this event loop thread has not been started; use it in a `with` block")
            raise LoopEndedError(self._closed)
        return self._loop

    def _submit(self, call: TaskCall[Any], context: Context) -> None:
        """Have the loop run *call*."""
        loop = self._require_running()
        # The call knows its loop first, so that it can be given up where Ctrl-C comes in between.
        call.set_loop(loop)
        call.on_end = self._forget
        self._calls.add(call)
        try:
            loop.submit(call, context)
        except LoopEndedError:
            self._calls.discard(call)
            raise
        if self._closed is not None:  # else the end of the loop, which says so before it looks, has seen this call
            call.cancel(LoopEndedError(self._closed))

    def _forget_bypassing(self, call: TaskCall[Any]) -> None:
        """Note that *call*, which bypassed the loop, has ended. From any thread."""
        self._calls.discard(call)
        if self._drained is not None and self._loop is not None:  # else `_serve`, which makes it first, sees no call
            with suppress(LoopEndedError):
                self._loop.post(self._forget, call)

    def _forget(self, call: TaskCall[Any]) -> None:
        """Note that *call* has ended, in the loop's thread."""
        self._calls.discard(call)
        if self._drained is not None and not self._calls:
            self._drained.set()

    def _main(self) -> None:
        """Run the loop, in its thread."""
        if not self._main_claim.acquire(blocking=False):
            return
        self._thread = threading.current_thread()
        _running.add(self)
        if _exiting:  # else `_end_all_loops`, which says so first, sees us
            self._closed = "the interpreter is exiting"
        try:
            anyio.run(self._serve, backend=self._backend, backend_options=self._options)
        except BaseException as exc:  # a task that raised SystemExit, say; those who wait for answers are told below
            self._error = exc
        finally:
            self._closed = self._closed or f"the event loop of {self._name!r} has ended: {self._error!r}"
            _running.discard(self)
            self._started.set()
            for call in self._calls.copy():  # at once: other threads add to it
                call.future.write(None, LoopEndedError(self._closed))

    async def _serve(self) -> None:
        self._stop_event = Event()
        loop = self._loop = current_loop()
        self._steps.append("started")
        self._started.set()
        if self._closed is None:
            await self._stop_event.wait()
        while calls := self._calls.copy():
            self._drained = Event()
            for call in calls:
                call.cancel(LoopEndedError(self._closed or "the event loop has ended"))
            if self._calls.copy():
                await self._drained.wait()
        await loop.end_other_tasks()

    def _ask_to_stop(self, reason: str) -> None:
        self._closed = self._closed or reason
        self._steps.append("closed")  # if the loop started before this, we see it; or else it sees that it is closed
        if self._loop is not None and self._stop_event is not None:
            with suppress(LoopEndedError):
                self._loop.post(self._stop_event.set)


_running: set[EventLoopThread] = set()
_exiting = False


def submit_here(call: TaskCall[Any], context: Context) -> None:
    """Have the loop that runs in this thread run *call*, and end it with the other calls if it is one of ours."""
    for loop_thread in _running.copy():
        if loop_thread._thread is threading.current_thread():
            if loop_thread._closed is None:
                loop_thread._submit(call, context)
                return
            call.expect_the_end(LoopEndedError(loop_thread._closed))
    current_loop().submit(call, context)


def loop_of(loop_thread: EventLoopThread) -> Loop | None:
    """Return the loop that runs, or ran, in *loop_thread*."""
    return loop_thread._loop


def submit_to(loop_thread: EventLoopThread, call: TaskCall[Any], context: Context) -> None:
    """Have the loop of *loop_thread* run *call*, in *context* or a copy of it. Returns at once; raises if it ended."""
    loop_thread._submit(call, context)


def bypass(loop_thread: EventLoopThread, call: TaskCall[Any], abort: Callable[[], object]) -> bool:
    """Count *call* among the calls of *loop_thread*, though a worker thread is to run it and its loop is not asked.

    The worker finishes the call, or `hand_back` gives it to the loop. The end of the loop waits for that. *abort* is
    called in the loop's thread if the call is cancelled, by the end of the loop for one.

    Return `False` if the end of the loop has begun, which may not have seen the call: hand it back then.
    """
    assert loop_thread._loop is not None, "it has been running"
    call.bypass(loop_thread._loop, abort, loop_thread._forget_bypassing)
    loop_thread._calls.add(call)
    return loop_thread.is_running()  # after we added the call: the end says so before it looks at the calls


def hand_back(loop_thread: EventLoopThread, call: TaskCall[Any], context: Context) -> None:
    """Have the loop of *loop_thread* run a call after all that was to bypass it. From any thread; returns at once."""
    assert loop_thread._loop is not None, "it has been running"

    def submit() -> None:
        if call.future.done:  # it has been cancelled
            return
        call.hand_back()
        try:
            loop_thread._submit(call, context)
        except Exception as exc:  # the loop has ended, for one
            call.end(exc)

    try:
        loop_thread._loop.post(
            submit
        )  # in the loop's thread, so that it comes before or after a cancellation, not amid it
    except LoopEndedError:
        submit()


def _no_thread(loop_thread: EventLoopThread, exc: RuntimeError) -> LoopEndedError | LoopStartError:
    """Return the error for a loop whose thread cannot be started, because of *exc*."""
    if _exiting or not threading.main_thread().is_alive():
        loop_thread._closed = "the interpreter is exiting"
        return LoopEndedError(loop_thread._closed)
    return LoopStartError(loop_thread._backend, f"its thread cannot be started: {exc}")


def _end_all_loops() -> None:
    """At exit: end all loops, within `EXIT_SECONDS`."""
    global _exiting
    _exiting = True
    deadline = time.monotonic() + EXIT_SECONDS
    ending = _running.copy()
    for loop_thread in ending:
        loop_thread._ask_to_stop("the interpreter is exiting, and the event loop has ended")
    for loop_thread in ending:
        loop_thread.stop(max(0.0, deadline - time.monotonic()))


def _reset_after_fork() -> None:
    """After a fork: the loops' threads have not come along."""
    for loop_thread in _running.copy():
        loop_thread._closed = "the process has forked, and the event loop thread was left behind: start one here"
    _running.clear()


atexit.register(_end_all_loops)
if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_reset_after_fork)
