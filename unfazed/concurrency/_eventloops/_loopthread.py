"""Event loops in threads of their own: how they start, take calls, and end.

Guarantees:

- Every call that a loop has accepted ends: with its result, or with `LoopEndedError` if the loop ends first. If one
  thread adds a call while another ends the loop, each takes its own step before it looks at the other's. So at least
  one of them sees the other.
- At exit, after the ordinary threads have ended and before Python stops the daemon threads, all loops are asked to end:
  their calls are cancelled and clean up. They have `EXIT_SECONDS` together.
- In a forked child the parent's loops do not run. Calls to them raise `LoopEndedError`. A child can start new loops.

Assumption: `set.add`, `set.discard`, `set.copy` and `list.append` are atomic, with and without a GIL.
"""

from __future__ import annotations

import itertools
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, TypeVar, final, overload

import anyio

from .._core import _blockedloops
from .._core._checks import explain, not_copied, require_timeout, visible_names
from .._core._errors import LoopEndedError, LoopStartError, LoopStateError
from .._core._lifetime import at_exit, in_forked_child
from .._core._taskcall import end_all
from .._core._threadstart import start_thread
from ._loopchecks import async_work, close_unless_begun, require_backend, require_backend_options, require_name
from ._loops import current_loop
from ._started import start_work
from ._synccalls import Interrupts, call_from_sync
from ._unseenerrors import log_all_unseen
from ._waiting import call_in
from ._workers import thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context
    from types import TracebackType

    from .._core._loop import Event, Loop
    from .._core._taskcall import TaskCall
    from ._handle import Handle

P = ParamSpec("P")
T = TypeVar("T")

EXIT_SECONDS = 3.0  # how long all loops together may take to end at exit; arbitrary, enough for ordinary cleanup


@final
class EventLoopThread:
    """An event loop in a thread of its own, for as long as a `with` block lasts.

    The background event loop is one of these. All methods can be called from any thread, except that `stop` refuses
    the loop's own threads. In a forked child the loop does not run, and calls raise `LoopEndedError`.

    Args:
        backend: "asyncio" or "trio".
        backend_options: The `backend_options` of `anyio.run`, such as `{"use_uvloop": True}`.
        name: The name of the thread; `None` for a name with a number.

    Raises:
        WrongOptionError: If there is no such backend, if it has no such option, or if *name* is not a string.

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
        self._main_claim = threading.Lock()  # the thread that runs the loop acquires it and never releases it
        self._thread: threading.Thread | None = None  # the thread that runs the loop
        self._loop: Loop | None = None  # set when the loop starts
        self._stop_event: Event | None = None
        self._drained: Event | None = None  # while the loop is ending: set when no calls are left
        self._started = threading.Event()  # also set if the loop could not start
        self._error: BaseException | None = None  # why the loop ended or could not start
        self._calls: set[TaskCall[Any]] = set()  # accepted calls that have not ended
        self._has_abandoned_call = False  # whether a caller has stopped waiting for its call
        self._closed: str | None = None  # why the loop accepts no more calls
        self._is_breaking = False  # whether it ends though nobody has asked for that
        self._steps: list[str] = []  # `_serve` and `_ask_to_stop` each add one before they look at the other

    def __enter__(self) -> EventLoopThread:
        self._require_new()
        try:
            self._ensure_started()
            return self
        except BaseException:  # raised by a signal handler: `with` does not call `__exit__` then
            self._ask_to_stop("the start of this event loop thread was interrupted")
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._has_abandoned_call and exc is not None:  # after a second Ctrl-C nothing is waited for
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
        """Return whether the loop accepts calls."""
        return self._loop is not None and not self._is_closed()

    def _is_closed(self) -> bool:
        return self._is_breaking or self._closed is not None

    @property
    def native(self) -> object:
        """The asyncio loop, or the `trio.lowlevel.TrioToken` of the trio loop.

        Raises:
            LoopStateError: If the thread has not been started.
            LoopEndedError: If the loop has ended.
        """
        return self._require_running().native

    @overload
    def start(self, /) -> None: ...
    @overload
    def start(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...
    @overload
    def start(self, func: Awaitable[T], /) -> Handle[T]: ...
    def start(self, func: Any = None, /, *args: Any, **kwargs: Any) -> Handle[Any] | None:
        """Without arguments: start the thread and wait until its loop runs, as `with` does. Otherwise start a call.

        `start_in_eventloop` documents the arguments, the cancellation and the handle. The call runs in this loop.

        Raises:
            LoopStateError: If the thread has been started before; if a call is started before the thread.
            LoopStartError: If the backend is not installed, or does not accept its options.
            LoopEndedError: If the loop has ended, or the interpreter is exiting.
            WrongFunctionError: As for `start_in_eventloop`.
        """
        if func is not None:
            return start_work(async_work(func, args, kwargs, "start"), func, kwargs, "start", lambda: self)
        self._require_new()
        self._ensure_started()
        return None

    def _require_new(self) -> None:
        if self._thread is not None:
            raise LoopStateError(f"{self!r} can be started only once; make a new one")

    def _ensure_started(self) -> None:
        """Start the thread unless it was started before, and wait until its loop runs.

        Other threads may call this at the same time, and so may a signal handler that interrupts it. If two threads
        are started then, the second one ends at once.
        """
        if _exiting:
            raise LoopEndedError("the interpreter is exiting")
        if self._thread is None:
            try:
                start_thread(self._main, self._name)
            except RuntimeError as exc:
                if self._thread is None:  # otherwise another thread or a signal handler has started it
                    raise _no_thread(self, exc) from exc
        self._started.wait()
        if self._loop is None:
            if not threading.main_thread().is_alive():  # nothing can be imported, and no thread started, any more
                raise LoopEndedError("the interpreter is exiting") from self._error
            raise LoopStartError(self._backend, str(self._error)) from self._error

    def stop(self, timeout: float | None = None) -> None:
        """Cancel everything that runs in the loop, wait for its cleanup, and end the thread. `with` calls this.

        Callers that wait for a cancelled call get a `LoopEndedError`.

        Args:
            timeout: How many seconds to wait for the thread to end; `None` for no limit.

        Raises:
            WrongOptionError: If *timeout* is not a number of seconds.
            LoopStateError: From the loop's own thread, or from one of its workers: it would wait for itself.
            LoopThreadError: If the loop is blocked until this call has ended.
        """
        require_timeout(timeout, "stop")
        worker = thread.worker
        in_worker = worker is not None and self._loop is not None and worker.own_loop().native is self._loop.native
        if in_worker or self._thread is threading.current_thread():
            raise LoopStateError("an event loop thread cannot wait for its own end; stop it from another thread")
        if _blockedloops.blocked_loops and self._loop is not None:
            _blockedloops.refuse_to_wait_for(self._loop.native)
        self._ask_to_stop("this event loop thread has been stopped")
        if self._thread is not None:
            self._thread.join(None if timeout is None else min(timeout, threading.TIMEOUT_MAX))

    @overload
    async def run(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    async def run(self, func: Awaitable[T], /) -> T: ...
    async def run(self, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run an async function in this loop and await its result in the current loop.

        `run_in_eventloop` documents the arguments, the cancellation and the errors.
        """
        work = async_work(func, args, kwargs, "run")
        try:
            return await run_in(self, work, func, "run")
        except TypeError as exc:
            explain(exc, "run", func, kwargs)
            raise
        finally:
            close_unless_begun(work)

    @overload
    def run_sync(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
    @overload
    def run_sync(self, func: Awaitable[T], /) -> T: ...
    def run_sync(self, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Run an async function in this loop and wait for its result.

        `run_in_eventloop_sync` documents the arguments, the cancellation and the errors.
        """
        work = async_work(func, args, kwargs, "run_sync")
        interrupts, instead = Interrupts(), "await loop.run({}, ...)"
        try:
            return call_from_sync(work, func, "run_sync", instead, self._submit, always=True, interrupts=interrupts)
        except BaseException as exc:
            self._has_abandoned_call = self._has_abandoned_call or interrupts.is_over
            explain(exc, "run_sync", func, kwargs)
            raise
        finally:
            close_unless_begun(work)

    def _require_running(self) -> Loop:
        """Return the loop, if it accepts calls."""
        if self._is_closed():
            raise LoopEndedError(self._closed or f"something has broken the event loop of {self._name!r}")
        if self._loop is None:
            raise LoopStateError("this event loop thread has not been started; use it in a `with` block")
        return self._loop

    def _submit(self, call: TaskCall[Any], context: Context) -> None:
        """Have the loop run *call*."""
        loop = self._require_running()
        blocked_loop = context.get(_blockedloops.current_blocked_loop)
        if blocked_loop is not None:
            _blockedloops.refuse_if_blocked(loop.native, call, blocked_loop)
        # Before the rest: if Ctrl-C comes in between, `cancel` needs the loop to give the call up.
        call.set_loop(loop)
        call.on_end = self._forget
        self._calls.add(call)
        try:
            loop.submit(call, context)
        except LoopEndedError:
            self._calls.discard(call)
            raise
        if self._closed is not None:  # otherwise `_serve` sees the call: `_closed` is set before it looks
            call.cancel(LoopEndedError(self._closed))

    def _forget_bypassing(self, call: TaskCall[Any]) -> None:
        """Forget *call*, which bypassed the loop and has ended. From any thread."""
        self._calls.discard(call)
        if self._drained is not None and self._loop is not None:  # otherwise `_serve` has yet to look at the calls
            with suppress(LoopEndedError):
                self._loop.post(self._forget, call)

    def _forget(self, call: TaskCall[Any]) -> None:
        """Forget *call*, which has ended. In the loop's thread."""
        self._calls.discard(call)
        if self._drained is not None and not self._calls:
            self._drained.set()

    def _main(self) -> None:
        """Run the loop, in its thread."""
        if not self._main_claim.acquire(blocking=False):
            return
        self._thread = threading.current_thread()
        thread.is_loop_thread = True
        _running.add(self)
        if _exiting:  # otherwise `_end_all_loops` sees us: it sets `_exiting` before it looks at `_running`
            self._closed = "the interpreter is exiting"
        try:
            anyio.run(self._serve, backend=self._backend, backend_options=self._options)
        except BaseException as exc:  # for example, a task raised SystemExit; waiting callers are told below
            self._error = exc
        finally:
            self._closed = self._closed or f"the event loop of {self._name!r} has ended: {self._error!r}"
            _running.discard(self)
            self._started.set()
            end_all(self._calls.copy(), self._closed)  # a copy: other threads may add to it

    async def _serve(self) -> None:
        loop = current_loop()
        self._stop_event = loop.new_event()
        self._loop = loop
        self._steps.append("started")
        self._started.set()
        try:
            if self._closed is None:
                await self._stop_event.wait()
        except BaseException:  # asyncio cancels us and what runs now, but not what begins from now on
            self._is_breaking = True
            raise
        while calls := self._calls.copy():
            self._drained = loop.new_event()
            for call in calls:
                call.cancel(LoopEndedError(self._closed or "the event loop has ended"))
            if self._calls.copy():
                await self._drained.wait()
        await loop.end_other_tasks()

    def _ask_to_stop(self, reason: str) -> None:
        self._closed = self._closed or reason
        self._steps.append("closed")  # either we see the loop that `_serve` set before its step, or it sees `_closed`
        if self._loop is not None and self._stop_event is not None:
            with suppress(LoopEndedError):
                self._loop.post(self._stop_event.set)


# No lock guards these two: see the assumption above. A forked child empties `_running`. `_exiting` is never reset.
_running: set[EventLoopThread] = set()
_exiting = False


def submit_here(call: TaskCall[Any], context: Context) -> None:
    """Have the loop that runs in this thread run *call*. If it is one of our loops, its end cancels the call too."""
    loop = current_loop()
    for loop_thread in _running.copy():
        if loop_thread._loop is not None and loop_thread._loop.native is loop.native:
            if not loop_thread._is_closed():
                loop_thread._submit(call, context)
                return
            call.expect_the_end(LoopEndedError(loop_thread._closed or "the event loop is ending"))
    loop.submit(call, context)


async def run_in(loop_thread: EventLoopThread, work: Callable[[], Awaitable[T]], func: object, helper: str) -> T:
    """Run *work*, a call of *func* by means of *helper*, in the loop of *loop_thread*, and await its result."""
    if loop_thread._is_closed() and loop_thread._thread is threading.current_thread():
        return await work()  # the loop is ending: cleanup calls this
    return await call_in(loop_thread._submit, work, func, current_loop(), helper=helper)


def loop_of(loop_thread: EventLoopThread) -> Loop | None:
    """Return the loop that runs or ran in *loop_thread*."""
    return loop_thread._loop


def submit_to(loop_thread: EventLoopThread, call: TaskCall[Any], context: Context) -> None:
    """Have the loop of *loop_thread* run *call*, in *context* or a copy. Return at once, or raise if it has ended."""
    loop_thread._submit(call, context)


def _no_thread(loop_thread: EventLoopThread, exc: RuntimeError) -> LoopEndedError | LoopStartError:
    """Return the error for a loop thread that Python cannot start because of *exc*."""
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
    log_all_unseen()


def _reset_after_fork() -> None:
    """In a forked child: the loops' threads do not exist here."""
    for loop_thread in _running.copy():
        loop_thread._closed = "the process has forked, and the event loop thread was left behind: start one here"
    _running.clear()


at_exit(_end_all_loops)
in_forked_child(_reset_after_fork)
