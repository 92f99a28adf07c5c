"""Async functions called from sync code: how it finds a loop, and the loops that we run for it in threads.

    a worker thread that we started        the loop that awaits it          `Worker`
    a worker thread that others started    the loop that awaits it          `_call_from_others_worker`
    any other thread                       the background event loop        `_background`
    a thread whose own loop is running     `LoopThreadError`

`_lock` guards the background event loop and its settings. A forked child starts with a new lock and without any
loop; at exit, after the ordinary threads have ended and before the daemon threads are stopped, all loops end.
"""

from __future__ import annotations

import atexit
import itertools
import os
import sys
import threading
import time
from concurrent.futures import CancelledError
from contextlib import suppress
from contextvars import Context, copy_context
from functools import partial
from inspect import isawaitable
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, final

import anyio
from anyio import Event, RunFinishedError, from_thread, to_thread

from . import _slots
from ._checks import is_async, name_of, require_callable
from ._errors import LoopEndedError, LoopStartError, LoopStateError, LoopThreadError, WrongFunctionError
from ._loops import NO_LIMIT, Answer, Call, SyncAnswer, call_in, current_loop, running_loop

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType

    from ._loops import Loop

    Submit = Callable[[Call[Any], Context], None]

P = ParamSpec("P")
T = TypeVar("T")

BACKENDS: Final = ("asyncio", "trio")
EXIT_SECONDS = 3.0  # at exit, how long all loops together may take to end; arbitrary, as short as cleanup allows
GONE_CHECK_SECONDS = 1.0  # how often a worker looks whether the loop that is to answer it is still there


class Worker:
    """What a worker thread of ours goes by: its loop, its slot, and the call that it waits for."""

    __slots__ = ("_cancelled", "_told", "call", "loop", "slot")

    def __init__(self) -> None:
        self.loop: Loop | None = None
        self.slot: _slots.Slot | None = None
        self.call: Call[Any] | None = None  # the one that the thread waits for
        self._cancelled = False
        self._told = False  # whether the thread has seen the cancellation, in a call that it waited for

    def cancel(self) -> None:
        """Cancel what the thread waits for, or else what it will wait for next, as asyncio does with a task."""
        self._cancelled = True
        call = self.call  # once: the thread may leave it meanwhile
        if call is not None:
            call.cancel()

    def way_back(self) -> Loop:
        assert self.loop is not None, "set before the worker starts"
        return self.loop

    def enter(self, call: Call[Any]) -> Call[Any] | None:
        """Lend the slot, for the thread is going to wait for *call*. Return the one that it waits for already.

        There is one where the garbage collector, or a signal handler, makes a call in the midst of another.
        """
        assert self.slot is not None, "set before the worker starts"
        outer, self.call = self.call, call
        _slots.lend(self.slot)
        if self._cancelled and not self._told:
            call.cancel()
        return outer

    def leave(self, call: Call[Any], outer: Call[Any] | None) -> None:
        assert self.slot is not None, "set before the worker starts"
        _slots.take_back(self.slot)
        self.call = outer
        self._told = self._told or call.aborted  # a cancellation that came after the end of the call is still to come


class _Thread(threading.local):
    worker: Worker | None = None  # while the thread runs a call of ours
    forked = False  # whether this thread has come through a fork: what it knew of loops is no longer true
    lost_loop: object = None  # the native loop that was running in it then


thread = _Thread()


def call_from_sync(
    work: Callable[[], Awaitable[T]],
    name: str,
    helper: str,
    instead: str,
    submit: Submit | None = None,
    offer: Callable[[Answer[T]], None] | None = None,
) -> T:
    """Run *work* in the loop that this thread belongs to, or where *submit* puts it, and wait for its end.

    Where that is possible, the answer is offered to whoever may write it before *work* has ended. *instead* is what
    to write where this is refused. Who wakes us: whoever writes the answer; the end of the loop, which does too.
    """
    here = running_loop()
    if here is not None and here.native is not thread.lost_loop:
        raise LoopThreadError(helper, instead)
    answer: SyncAnswer[T] = SyncAnswer()
    call = Call(work, answer)
    worker = thread.worker
    if worker is not None:
        outer = worker.enter(call)
        try:
            if worker.way_back().calls_back_in_the_task:
                # Only to wait: what ran there would pile up on the one task, level by level.
                _call_in_waiting_task(Call(_elsewhere(submit or worker.way_back().submit, work, name), answer))
            else:
                if offer is not None:
                    offer(answer)
                _call_and_wait(call, answer, submit or worker.way_back().submit)
        finally:
            worker.leave(call, outer)
    elif not _call_from_others_worker(call if submit is None else Call(_elsewhere(submit, work, name), answer)):
        if offer is not None:
            offer(answer)
        _call_and_wait(call, answer, submit or _background()._submit)
    return answer.read()


def _call_and_wait(call: Call[T], answer: SyncAnswer[T], submit: Submit) -> None:
    """Submit *call* and wait for its *answer*."""
    try:
        submit(call, copy_context())
        while not answer.done.acquire(timeout=GONE_CHECK_SECONDS):
            if call.loop is not None and call.loop.is_gone():
                answer.write(None, LoopEndedError("the event loop of this call has ended"))
    except LoopEndedError:
        raise
    except BaseException:  # Ctrl-C, or what another signal handler raised; a second one goes through
        # It may have come before the call was submitted, and after the answer was given: wait for nothing then.
        if call.cancel() and not answer.stands:
            answer.done.acquire()
        raise


def _elsewhere(submit: Submit, work: Callable[[], Awaitable[T]], name: str) -> Callable[[], Awaitable[T]]:
    """Return what waits for *work* in the current loop, and is cancelled with it, while *submit* runs it elsewhere."""

    async def run_elsewhere() -> T:
        return await call_in(submit, work, name, current_loop(), pass_on=True)

    return run_elsewhere


def _call_in_waiting_task(call: Call[Any]) -> None:
    """Have the task that waits for this worker run *call*."""
    try:
        from_thread.run(call.run, _cancelled_by_others)
    except RunFinishedError:
        raise LoopEndedError("the event loop of this worker thread has ended") from None


def _call_from_others_worker(call: Call[Any]) -> bool:
    """Run *call* in the loop whose worker this is, though we did not start it. Return whether there is one."""
    if thread.forked or threading.current_thread() is threading.main_thread():
        return False
    entered = False

    async def enter() -> None:
        nonlocal entered
        entered = True
        slot = _slots.adopt(to_thread.current_default_thread_limiter())
        _slots.current_slot.set(slot)
        try:
            await call.run(_cancelled_by_others)
        finally:
            _slots.release(slot)

    ways: list[Callable[[Callable[[], Coroutine[Any, Any, None]]], None]] = [from_thread.run]
    if "trio" in sys.modules:
        import trio

        ways.append(trio.from_thread.run)
    for run in ways:
        try:
            run(enter)
        except RuntimeError:  # not a worker of this library, or its loop has ended
            assert not entered, "what the call raises is in its answer"
        except CancelledError:  # the loop ended before the call could start
            call.answer.write(None, LoopEndedError("the event loop of this worker thread has ended"))
            return True
        else:
            return True
    return False


def _cancelled_by_others() -> None:
    """Stand in for the way to cancel a task, where anyio or trio does it with the task that waits for the thread."""


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
        LoopStateError: If there is no such backend.

    Example:
        `with EventLoopThread("trio") as loop: loop.run_sync(fetch, url)`
    """

    _numbers = itertools.count(1)

    def __init__(
        self, backend: str = "asyncio", backend_options: dict[str, Any] | None = None, name: str | None = None
    ) -> None:
        _require_backend(backend, "EventLoopThread(backend=...)")
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
        self._calls: set[Call[Any]] = set()  # those that have not ended
        self._closed: str | None = None  # why no calls are taken any more

    def __enter__(self) -> EventLoopThread:
        self.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def __repr__(self) -> str:
        state = "running" if self.is_running() else "ended" if self._started.is_set() else "not started"
        return f"<EventLoopThread {self._name!r} on {self._backend}, {state}>"

    def is_running(self) -> bool:
        """Return whether the loop takes calls."""
        return self._loop is not None and self._closed is None

    def start(self) -> None:
        """Start the thread and wait for its loop to run. `with` does it.

        Raises:
            LoopStateError: If it has been started before.
            LoopStartError: If the backend is not installed, or refuses its options.
            LoopEndedError: If the interpreter is exiting.
        """
        if self._thread is not None:
            raise LoopStateError(f"{self!r} can be started only once; make a new one")
        self._ensure_started()

    def _ensure_started(self) -> None:
        """Start the thread unless that has been done, and wait for its loop to run.

        A signal handler may interrupt this anywhere, and come here itself; other threads come at the same time.
        Should two threads be started so, the second one ends at once.
        """
        if _exiting:
            raise LoopEndedError("the interpreter is exiting")
        if self._thread is None:
            options: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
            # A daemon, as its worker threads are then too: the interpreter does not wait for them at exit.
            starting = threading.Thread(target=self._main, name=self._name, daemon=True, **options)
            try:
                starting.start()
            except RuntimeError as exc:  # threads can't be started any more
                self._closed = "the interpreter is exiting"
                raise LoopEndedError(self._closed) from exc
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
            LoopStateError: If it is called in the loop's own thread, or in one of its workers, for which it waits.
        """
        worker = thread.worker
        in_worker = worker is not None and self._loop is not None and worker.way_back().native is self._loop.native
        if in_worker or self._thread is threading.current_thread():
            raise LoopStateError("an event loop thread cannot wait for its own end; stop it from another thread")
        self._ask_to_stop("this event loop thread has been stopped")
        if self._thread is not None:
            self._thread.join(timeout)

    async def run(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an async function in this loop and await its result from the current one.

        `run_in_eventloop` documents the arguments, the cancellation and the errors.
        """
        work = _work(func, args, kwargs, "run")
        if self._closed is not None and self._thread is threading.current_thread():
            return await work()  # in the cleanup of what the end of the loop has cancelled
        return await call_in(self._submit, work, name_of(func), current_loop(), pass_on=True)

    def run_sync(self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Run an async function in this loop and wait for its result.

        `run_in_eventloop_sync` documents the arguments, the cancellation and the errors.
        """
        work = _work(func, args, kwargs, "run_sync")
        name = name_of(func)
        return call_from_sync(work, name, "run_sync", f"await loop.run({name}, ...)", self._submit)

    def _submit(self, call: Call[Any], context: Context) -> None:
        """Have the loop run *call*."""
        if self._loop is None or self._closed is not None:
            if self._closed is None:
                raise LoopStateError("this event loop thread has not been started; use it in a `with` block")
            raise LoopEndedError(self._closed)
        # Either the call is in the set when the loop ends, and `_main` fails it; or the loop has ended, and says so.
        # The call knows its loop before that, so that it can be given up where Ctrl-C comes in between.
        call.loop = self._loop
        call.on_end = self._forget
        self._calls.add(call)
        try:
            self._loop.submit(call, context)
        except LoopEndedError:
            self._calls.discard(call)
            raise
        if self._closed is not None:  # meanwhile: the loop, which waits for the last call, may not know of this one
            call.cancel(LoopEndedError(self._closed))

    def _forget(self, call: Call[Any]) -> None:
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
        try:
            anyio.run(self._serve, backend=self._backend, backend_options=self._options)
        except BaseException as exc:  # a task that raised SystemExit, say; those who wait for answers are told below
            self._error = exc
        finally:
            self._closed = self._closed or f"the event loop of {self._name!r} has ended: {self._error!r}"
            _running.discard(self)
            self._started.set()
            for call in self._calls.copy():  # at once: other threads add to it
                call.answer.write(None, LoopEndedError(self._closed))

    async def _serve(self) -> None:
        self._stop_event = Event()
        loop = self._loop = current_loop()
        self._started.set()
        if self._closed is None:
            await self._stop_event.wait()
        while self._calls:
            self._drained = Event()
            for call in self._calls.copy():  # at once: other threads add to it
                call.cancel(LoopEndedError(self._closed or "the event loop has ended"))
            await self._drained.wait()
        await loop.end_other_tasks()

    def _ask_to_stop(self, reason: str) -> None:
        self._closed = self._closed or reason
        if self._loop is not None and self._stop_event is not None:
            with suppress(LoopEndedError):
                self._loop.post(self._stop_event.set)


_lock = threading.RLock()  # reentrant: a signal handler may make a call of its own while one is being made
_background_thread: EventLoopThread | None = None
_successors: dict[EventLoopThread | None, EventLoopThread] = {}  # by the one that has ended; None: the first
_settings: tuple[str, dict[str, Any] | None] | None = None
_running: set[EventLoopThread] = set()
_exiting = False


def configure_background_eventloop(*, backend: str = "asyncio", backend_options: dict[str, Any] | None = None) -> None:
    """Choose the backend of the background event loop, before its first use.

    Without this, the environment variable `UNFAZED_BACKEND` decides ("asyncio" or "trio"), else it is asyncio.
    A forked child may choose anew until its own first use.

    Args:
        backend: "asyncio" or "trio".
        backend_options: What `anyio.run` takes under this name, such as `{"use_uvloop": True}`.

    Raises:
        LoopStateError: If there is no such backend, or if the background event loop is running already.
    """
    global _settings
    _require_backend(backend, "configure_background_eventloop(backend=...)")
    with _lock:
        if _background_thread is not None and _background_thread._closed is None:
            raise LoopStateError(
                "the background event loop is running already; call configure_background_eventloop() before the "
                "first call that needs it, at the start of the program"
            )
        _settings = backend, backend_options


def _background() -> EventLoopThread:
    """Return the background event loop, and start it where it does not run: at first use, or if it broke."""
    global _background_thread
    current = _background_thread
    if current is None or not current.is_running():
        with _lock:
            current = _background_thread
            if current is None or current._closed is not None:
                if _exiting:
                    raise LoopEndedError("the interpreter is exiting, and the background event loop has ended")
                backend, options = _settings or (os.environ.get("UNFAZED_BACKEND") or "asyncio", None)
                _require_backend(backend, "the environment variable UNFAZED_BACKEND")
                # Known before it is started, which Ctrl-C may interrupt: the next call goes on from there. And a
                # signal handler may have come here meanwhile, on this very thread: in one step, the first one counts.
                starting = EventLoopThread(backend, options, "unfazed-eventloop")
                current = _background_thread = _successors.setdefault(current, starting)
        current._ensure_started()
    return current


async def _background_from_async() -> EventLoopThread:
    """Do the same without holding up the current loop while the thread starts."""
    current = _background_thread
    if current is not None and current.is_running():
        return current
    return await to_thread.run_sync(_background, limiter=NO_LIMIT)


def _require_backend(backend: str, where: str) -> None:
    if backend not in BACKENDS:
        raise LoopStateError(f"{where} must be one of {', '.join(map(repr, BACKENDS))}, not {backend!r}")


def _work(
    func: Callable[..., Awaitable[T]], args: tuple[object, ...], kwargs: dict[str, Any], helper: str
) -> Callable[[], Awaitable[T]]:
    """Return what to run in the loop for a call of *func*."""
    require_callable(func, helper)
    call = partial(func, *args, **kwargs)
    if is_async(func):
        return call

    async def call_and_await() -> T:
        result = call()
        if not isawaitable(result):
            name = name_of(func)
            instead = helper.replace("eventloop", "threadpool") if "eventloop" in helper else "run_in_threadpool"
            raise WrongFunctionError(
                f"{helper}() runs async functions, and {name}() gave {short_repr(result)}, which cannot be awaited: "
                f"write `{instead}({name}, ...)` instead"
            )
        return await result

    return call_and_await


async def run_in_eventloop(func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an async function on the background event loop and await its result from the current one.

    An object that is bound to one loop, such as a connection pool, so serves sync threads, asyncio and trio alike.
    The function runs in a task of its own, in a copy of the caller's context.

    Args:
        func: An async function. Its positional and keyword arguments follow, whatever their names.

    Cancellation:
        The function is cancelled on the background event loop; its cleanup is awaited, however often the caller is
        cancelled meanwhile; then the cancellation is raised, and what the function returned is dropped.

    Returns:
        What *func* returned.

    Raises:
        WrongFunctionError: If *func* cannot be called, or gives nothing to await.
        CallCancelledError: If the function was cancelled there, but not by this call.
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the background event loop has ended because the interpreter is exiting.
        BaseException: Whatever *func* raised, with its traceback.

    Example:
        `rows = await run_in_eventloop(pool.fetch, "select 1")`
    """
    work = _work(func, args, kwargs, "run_in_eventloop")
    background = await _background_from_async()
    return await background.run(work)


def run_in_eventloop_sync(func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Run an async function from sync code and wait for its result.

    In a worker thread of an event loop (ours, anyio's, Starlette's, trio's) it runs in that loop, elsewhere on the
    background event loop: in a task of its own, in a copy of the caller's context.

    Args:
        func: An async function. Its positional and keyword arguments follow, whatever their names.

    Cancellation:
        In a worker thread the function is cancelled with the task that is waiting for the thread, and the backend's
        own cancellation class is raised here. Elsewhere Ctrl-C (or whatever a signal handler raises) cancels it,
        and is raised after the function's cleanup has run; a second Ctrl-C stops waiting.

    Returns:
        What *func* returned.

    Raises:
        LoopThreadError: If an event loop is running in this thread, which the call would block.
        WrongFunctionError: If *func* cannot be called, or gives nothing to await.
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the event loop has ended, at exit for one.
        BaseException: Whatever *func* raised, with its traceback.

    Example:
        `page = run_in_eventloop_sync(fetch, "https://example.org", timeout=5)`
    """
    work = _work(func, args, kwargs, "run_in_eventloop_sync")
    return call_from_sync(work, name_of(func), "run_in_eventloop_sync", f"await {name_of(func)}(...)")


def _end_all_loops() -> None:
    """At exit: end all loops, within `EXIT_SECONDS`."""
    global _exiting
    with _lock:
        _exiting = True
    deadline = time.monotonic() + EXIT_SECONDS
    ending = tuple(_running)
    for loop_thread in ending:
        loop_thread._ask_to_stop("the interpreter is exiting, and the event loop has ended")
    for loop_thread in ending:
        loop_thread.stop(max(0.0, deadline - time.monotonic()))


def _start_afresh() -> None:
    """After a fork: the loops' threads have not come along, and the lock may have been taken by one of them."""
    global _lock, _background_thread
    _lock = threading.RLock()
    _background_thread = None
    _successors.clear()
    for loop_thread in tuple(_running):
        loop_thread._closed = "the process has forked, and the event loop thread was left behind: start one here"
    _running.clear()
    thread.worker = None
    thread.forked = True
    loop = running_loop()
    thread.lost_loop = loop and loop.native


atexit.register(_end_all_loops)
if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_start_afresh)
