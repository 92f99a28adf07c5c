"""One call in a `concurrent.futures.Executor`: how it is submitted, waited for, cancelled, and what its errors become.

The executor decides where the function runs and how many run at once. So a call takes no slot here; but a worker that
waits for one lends its slot, as always.

The life of an `ExecutorCall`. "future" is what the executor has returned for it.

    state      how to tell         caller is cancelled  its timeout is over  goes on as
    ---------  ------------------  -------------------  -------------------  -----------------------------------------
    made       there is no future  never submitted      never submitted      submitted; ended if the executor refuses
    submitted  future is pending   never begins         never begins         running; ended if the executor breaks
    running    `future.running()`  waits for the end    waits no longer      ended
    ended      `future.done()`     -                    -                    -

Whoever comes first decides: the executor begins the future, or `future.cancel()` prevents that. A call that has a
handle is submitted, or its handle prevents that: `Start` decides.
"""

from __future__ import annotations

import sys
from concurrent.futures import BrokenExecutor, CancelledError, Executor, Future
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from traceback import walk_tb
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, TypeVar, cast

from .._core._calls import SlotlessCall, totals
from .._core._checks import async_function_error, close_coroutine, explain, name_of
from .._core._errors import CallTimeoutError, ExecutorError
from .._core._futures import BlockingFuture, OneShotFuture, Start
from .._core._lifetime import in_forked_child
from .._core._references import to_send
from .._eventloops._background import submit_to_background
from .._eventloops._handle import start_call
from .._eventloops._loops import current_loop, forget_library
from .._eventloops._synccalls import say_that_we_wait
from .._eventloops._timeouts import Timeout, seconds_to_wait, within
from .._eventloops._waiting import raise_if_cancelled, set_from_anywhere, wait_for_end
from .._eventloops._workers import lending

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from anyio import CancelScope

    from .._core._observing import CallOutcome
    from .._eventloops._handle import Handle, Join

P = ParamSpec("P")
T = TypeVar("T")

returned: Final = totals["executor"]["returned"]


def _runs_in_our_threads(executor: Executor) -> bool:
    """Return whether a call can have a context: not in another process or interpreter."""
    loaded: Any = sys.modules.get("concurrent.futures.thread")
    return (
        loaded is not None
        and isinstance(executor, loaded.ThreadPoolExecutor)
        and "Interpreter" not in type(executor).__name__
    )


class ExecutorCall(SlotlessCall, Generic[T]):
    """One call in an executor. Error messages name *helper*."""

    place = "executor"
    _is_late = False  # whether its time was up
    stops_when_cancelled = False
    _never_started = False  # as far as the executor can tell
    _start: Start | None = None  # of a call that has a handle: whether it was submitted, or kept from that
    _future: Future[T] | None = None  # what the executor has returned

    def __init__(
        self,
        helper: str,
        executor: Executor,
        func: Callable[..., T],
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        seconds: float | None = None,
    ) -> None:
        self._executor = executor
        self.helper = helper
        self.func: Callable[..., T] = func
        self._args = args
        self._kwargs = kwargs
        self._timeout = None if seconds is None else Timeout(seconds, name_of(func))

    def run(self) -> Awaitable[OneShotFuture[T]]:
        """Submit the call, wait for its end, and return its outcome. The error in it is not raised here.

        Who wakes us: the executor, which ends every future that it has accepted. Cancelled before the function has
        begun, it never begins. Cancelled later, we wait for its end, at most until the timeout.
        """
        return lending(within(self._timeout, self._run, self._what_it_waits_for))

    async def _run(self, timer: CancelScope | None) -> OneShotFuture[T]:
        loop = current_loop()
        event = loop.new_event()
        try:
            if self.waiter is None:
                self.introduce()
            await raise_if_cancelled(loop)
            if self._start is not None and not self._start.begin():
                return OneShotFuture()
            future = self._future = self._submit()
            wake = partial(set_from_anywhere, loop, event)
            future.add_done_callback(lambda _: wake())
            if future.done():  # again: the executor may call `wake` in the line above, and drops what it raises
                wake()
            await wait_for_end(event, partial(self._cancel, future, wake), timer)
        except BaseException as exc:
            self._is_late = timer is not None and timer.cancel_called
            if self.waiter is None:
                self.note_end(exc)
            raise
        value, error = self._result_of(future)
        outcome: OneShotFuture[T] = OneShotFuture()
        outcome.write(value, error)
        if self.waiter is None:
            self.note_end(error)
        del error
        return outcome

    def run_sync(self) -> T:
        """Make the call in a thread that belongs to no event loop, which needs none then. Return what it returned.

        Who wakes us: the executor, as in `run`. Interrupted by a signal handler, we do as when cancelled; the second
        time we stop waiting.
        """
        future: Future[T] | None = None
        ended: BlockingFuture[None] = BlockingFuture()
        try:
            future = self._submit()
            future.add_done_callback(lambda _: ended.write(None, None))
            self._wait(future, ended)
        except BaseException as exc:
            late = isinstance(exc, CallTimeoutError)
            if future is not None and not (late or future.cancel() or future.done()):
                say_that_we_wait(exc, self.name)
                with suppress(CallTimeoutError):
                    self._wait(future, ended)
            raise
        value, error = self._result_of(future)
        if error is None:
            return cast("T", value)
        try:
            raise error
        finally:
            del error, future, self  # the traceback of the error leads here

    def _submit(self) -> Future[T]:
        executor = self._executor
        try:
            if _runs_in_our_threads(executor):
                context = copy_context()
                context.run(forget_library)
                return executor.submit(context.run, self.work)
            self.note_begin_elsewhere()
            return executor.submit(partial(_to_send(executor, self.func), *self._args, **self._kwargs))
        except Exception as exc:
            # The executor was shut down or is broken. Some libraries have an exception class of their own for that.
            if not isinstance(exc, RuntimeError) and not _is_of_library(exc, executor):
                raise
            reason = f"was not accepted by its {type(executor).__name__}: {exc}"
            raise ExecutorError(self.name, reason) from exc

    def work(self) -> T:
        """Run the call, in a thread of the executor."""
        func, args, kwargs = self.func, self._args, self._kwargs
        self.note_begin()
        del self  # the traceback of an error refers to this frame
        return func(*args, **kwargs)

    def has_run(self) -> bool:
        """Return whether the executor has ended it."""
        return self._future is not None and self._future.done()

    def introduce(self) -> None:
        _live.add(self)
        super().introduce()

    def leave(self) -> None:
        """Take it off the list of calls that have not ended. It may be called twice."""
        _live.discard(self)

    def note_end(self, exc: BaseException | None) -> None:
        self.leave()
        if exc is None and self.observed is None:
            next(returned)
        else:
            super().note_end(exc)

    @property
    def has_timeout(self) -> bool:
        return self._timeout is not None

    def outcome_of(self, exc: BaseException) -> CallOutcome:
        return "timed out" if self._is_late else super().outcome_of(exc)

    def _wait(self, future: Future[T], ended: BlockingFuture[None]) -> None:
        def when_late() -> str:
            self._never_started = future.cancel()
            return self._what_it_waits_for()

        # `done`: a signal handler may have raised while `add_done_callback` called it, which drops that
        while not ended.ready.acquire(timeout=seconds_to_wait(self._timeout, when_late)) and not future.done():
            pass

    def _cancel(self, future: Future[T], wake: Callable[[], object]) -> None:
        self._never_started = future.cancel()
        if future.done():  # again: a signal handler may have raised in the thread that ended it
            wake()

    def start(self, join: Join | None) -> Handle[T]:
        """Start the call on the background event loop, and have its handle join a group first."""
        self._start = Start()
        return start_call(self, self.run, self.func, submit_to_background, _read, join, user_call=self)

    # For its handle

    def prevent_start(self) -> bool:
        """Keep the function from beginning, as far as the executor can. Return `False` if it has begun."""
        assert self._start is not None, "set before there is a handle"
        return self._start.prevent() or (self._future is not None and self._future.cancel())

    def is_prevented(self) -> bool:
        """Return whether the call was not submitted, or the executor has cancelled it."""
        assert self._start is not None, "set before there is a handle"
        return self._start.is_prevented() or (self._future is not None and self._future.cancelled())

    def has_begun(self) -> bool:
        """Return whether the executor says that the function runs."""
        return self._future is not None and self._future.running()

    def tell_cancelled(self) -> None:
        """Do nothing: an executor cannot tell a function anything."""

    def _what_it_waits_for(self) -> str:
        return f"its turn in the {type(self._executor).__name__}" if self._never_started else ""

    def _result_of(self, future: Future[T]) -> tuple[T | None, BaseException | None]:
        """Return the value of *future*, which is done, or else what to raise."""
        try:
            error = future.exception()
        except CancelledError as exc:
            error = ExecutorError(self.name, "was cancelled by its executor, not by its caller")
            error.__cause__ = exc
        if error is not None:
            return None, self._explained(error)
        value = future.result()
        return (None, async_function_error(self.func, self.helper)) if close_coroutine(value) else (value, None)

    def _explained(self, error: BaseException) -> BaseException:
        """Return *error*, or what says better what has happened."""
        executor, func = self._executor, self.func
        explained = error
        if isinstance(error, BrokenExecutor):
            explained = ExecutorError(name_of(func), f"was lost, as its executor broke: {error}")
        elif _is_its_own(error, executor, func):
            explained = ExecutorError(name_of(func), f"was lost by its {type(executor).__name__}: {error}")
        if explained is not error:
            explained.__cause__ = error
        explain(explained, "in_executor", func, self._kwargs)
        return explained


_SENDING_BY_NAME = ("concurrent.futures.process", "concurrent.futures.interpreter")


def _to_send(executor: Executor, func: Callable[P, T]) -> Callable[P, T]:
    """Return what to submit in order to send *func*.

    Executors that send functions of a script by value must get the function itself: its name leads nowhere there.
    """
    by_name = any(kind.__module__ in _SENDING_BY_NAME for kind in type(executor).__mro__)
    return func if getattr(func, "__module__", None) == "__main__" and not by_name else to_send(func)


def _libraries(executor: Executor) -> set[str]:
    """Return the top-level packages of the classes of *executor*, without the standard library."""
    found = {kind.__module__.partition(".")[0] for kind in type(executor).__mro__}
    return found - sys.stdlib_module_names


def _is_of_library(error: BaseException, executor: Executor) -> bool:
    return type(error).__module__.partition(".")[0] in _libraries(executor)


def _is_its_own(error: BaseException, executor: Executor, func: object) -> bool:
    """Return whether the executor raised *error*, and not *func*.

    Libraries have exception classes for a lost call that we do not know, such as Dask's `KilledWorker`. It is one if
    its class is of the executor's library, *func* is not, and all frames of its traceback are of that library. An error
    that *func* raised in another process has the frames from there, or their text as its cause.
    """
    libraries = _libraries(executor)
    while isinstance(func, partial):
        func = func.func
    frames = (frame.f_globals.get("__name__", "") for frame, _ in walk_tb(error.__traceback__))
    return (
        _is_of_library(error, executor)
        and error.__cause__ is None
        and str(getattr(func, "__module__", "")).partition(".")[0] not in libraries
        and all(name.partition(".")[0] in libraries for name in frames)
    )


def _read(future: OneShotFuture[OneShotFuture[T]]) -> T:
    return future.read().read()


_live: set[ExecutorCall[Any]] = set()  # those that have been made and have not ended; `add`, `discard` are atomic


def calls_in_executors() -> set[ExecutorCall[Any]]:
    """Return the calls that have been made and have not ended. From any thread.

    A signal handler may have kept a call from leaving `_live`: what has run does not count, and leaves here.
    """
    for call in _live.copy():
        if call.has_run():
            _live.discard(call)
    return _live.copy()


in_forked_child(_live.clear)
