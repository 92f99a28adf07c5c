"""Started calls that end together: what task groups are for tasks, for calls in all places, from sync and async code.

Guarantees:

- Nothing that was started in a group outlives it, except for threads that were abandoned as their options say, and
  for what a second Ctrl-C leaves behind. A group that is never left, because a signal handler raised in the first step
  of `__exit__`, cancels its calls when it goes away. So its members hold no reference to it.
- Whoever starts a call in the group adds it to `_members` before it looks at `_failed` and `_over`. Whoever sets these
  looks at the members after that. So a call is either seen, or never begins.

Assumption: `set.add`, `set.discard` and `set.copy` are atomic, with and without a GIL (Python's documentation, "Thread
Safety Guarantees").
"""

from __future__ import annotations

import sys
from concurrent.futures import CancelledError
from contextlib import ExitStack, suppress
from functools import partial
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, final, overload
from weakref import ref

from anyio import CancelScope

from .._core._blockedloops import current_blocked_loop
from .._core._checks import visible_names
from .._core._errors import LoopEndedError, LoopStateError, WrongFunctionError
from .._core._finalizers import finalizers
from .._eventloops._background import start_on_background, submit_to_background
from .._eventloops._handle import Handle
from .._eventloops._loops import current_loop
from .._eventloops._synccalls import Interrupts, call_from_sync, refuse_in_loop, say_that_we_wait
from .._eventloops._waiting import cancelled_classes, set_from_anywhere, wait_for_end

if sys.version_info < (3, 11):  # pragma: no cover  coverage is measured on a newer Python
    from exceptiongroup import BaseExceptionGroup  # which anyio needs there

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor
    from types import TracebackType

    from .._core._blockedloops import BlockedLoop
    from .._core._loop import Loop

P = ParamSpec("P")
T = TypeVar("T")

INSTEAD = "async with CallGroup() as group:"


def _note_end_in(group: ref[CallGroup], handle: Any) -> None:
    there = group()
    if there is not None:
        there._note_end(handle)


def _drop(members: set[Handle[Any]]) -> None:
    """Have the loops of the calls cancel them: their group has gone, and nobody has left it.

    For a finalizer, which may run amid any method of a handle.
    """
    for handle in members.copy():
        running = handle._running
        loop = None if running is None else running.task.loop
        if loop is not None:
            with suppress(LoopEndedError):
                loop.post(handle._stop)
        members.discard(handle)


def _is_handle(value: object) -> bool:
    return isinstance(value, Handle)


@final
class CallGroup:
    """Calls that are started and end together: leaving the `with` block waits for all of them.

    In sync code it is a context manager, in async code an async one (asyncio and trio). The four methods `start_in_...`
    do what the functions of these names do, and return a `Handle`. A handle that was made elsewhere is added:
    `group.add(read.start(path))` for a dual callable, `group.add(loop.start(fetch, url))` for an `EventLoopThread`. All
    methods can be called from any thread, by the calls of the group as well, until the block has been left.

    If one of the calls raises, or the body of the block does, the others are cancelled: what has not begun never
    begins, a coroutine is cancelled and cleans up, a thread or a process is waited for, or left or killed if its
    options say so. In async code the body is cancelled as well, as in the task groups of anyio. A body of sync code
    goes on until it ends, or asks for the result of a call that was cancelled (`concurrent.futures.CancelledError`).
    A call that somebody cancels by its handle is no error.

    Cancellation:
        Ctrl-C in the body or while the block is left cancels all calls and waits for them. A second Ctrl-C stops
        waiting. In a worker thread the group is cancelled with the task that waits for the thread, and its slot is lent
        while the group waits. In async code the group is cancelled with its task.

    Raises:
        ExceptionGroup: When the block is left: the errors of all calls and that of the body. `BaseExceptionGroup` if
            one of them is no `Exception`. But what is no `Exception` in the body (`KeyboardInterrupt`, `SystemExit`, a
            cancellation) leaves the block as itself, and has the errors of the calls as its cause.
        LoopThreadError: If `with` is used where `async with` is needed.
        LoopStateError: If it is entered twice, or a call is started outside of the block.

    Example:
        `with CallGroup() as group: handles = [group.start_in_threadpool(read, path) for path in paths]`
    """

    def __init__(self) -> None:
        self._members: set[Handle[Any]] = set()  # the calls that have not ended
        self._finalizers = finalizers(_drop, self._members)
        self._errors: list[BaseException] = []
        self._entered = False
        self._interrupts = Interrupts()  # with Ctrl-C, in sync code
        self._failed = False  # whether calls that join are cancelled
        self._over = False  # whether calls that join are refused
        self._blocks_later: BlockedLoop | None = None  # the loop of this thread, if that may be blocked at the end
        self._wake: Callable[[], object] | None = None  # wakes the loop that waits for the last member
        self._loop: Loop | None = None  # of async code
        self._scope: CancelScope | None = None  # around the body, in async code

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        state = "left" if self._over else "failed" if self._failed else "open" if self._entered else "not entered"
        return f"<CallGroup, {state}, {len(self._members)} calls>"

    # Starting

    def start_in_threadpool(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]:
        """Start a call of a sync function in a worker thread, as `start_in_threadpool` does."""
        from .._threads._threadpool import start_in_thread

        return start_in_thread(func, args, kwargs, self._join)

    def start_in_processpool(self, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]:
        """Start a call of a sync function in a worker process, as `start_in_processpool` does."""
        from .._processes import start_in_process

        return start_in_process(func, args, kwargs, self._join)

    def start_in_executor(
        self, executor: Executor, func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs
    ) -> Handle[T]:
        """Start a call of a sync function in any executor, as `start_in_executor` does."""
        from .._executors import start_in_any_executor

        return start_in_any_executor(executor, func, args, kwargs, self._join)

    @overload
    def start_in_eventloop(
        self, func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs
    ) -> Handle[T]: ...
    @overload
    def start_in_eventloop(self, func: Awaitable[T], /) -> Handle[T]: ...
    def start_in_eventloop(self, func: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
        """Start an async function on the background event loop, as `start_in_eventloop` does."""
        return start_on_background(func, args, kwargs, self._join)

    def add(self, handle: Handle[T], /) -> Handle[T]:
        """Make a call that was started elsewhere part of the group, and return its handle."""
        if not _is_handle(handle):
            raise WrongFunctionError(
                f"add() expected a handle, as `start_in_threadpool(...)` returns it, got {short_repr(handle)}"
            )
        self._join(handle)
        return handle

    def _join(self, handle: Handle[Any]) -> None:
        """Add *handle*, whose call need not have begun. Cancel it if the group is cancelled already."""
        if not self._entered:
            raise LoopStateError("this CallGroup has not been entered: start calls in `with CallGroup() as group:`")
        try:
            self._members.add(handle)
            if self._over:
                raise LoopStateError("this CallGroup has been left, and starts no more calls")
            handle.add_done_callback(partial(_note_end_in, ref(self)))
        except BaseException:  # raised here, or by a signal handler
            self._members.discard(handle)
            raise
        if self._failed:
            handle._stop()

    # Ending

    def _note_end(self, handle: Any) -> None:
        """Note that the call of *handle* has ended; in whatever thread it has ended."""
        if not handle.cancelled():
            error = handle.exception()
            if error is not None and all(error is not other for other in self._errors):
                self._errors.append(error)
                self._cancel_all()
                if self._loop is not None:
                    with suppress(LoopEndedError):
                        self._loop.post(self._cancel_body)
        self._members.discard(handle)
        wake = self._wake
        if wake is not None and not self._members.copy():
            wake()

    def _look_after(self) -> None:
        """Note the end of calls again: a signal handler may have kept a thread from noting it."""
        for handle in self._members.copy():
            if handle.is_settled():
                self._note_end(handle)

    def _cancel_all(self) -> None:
        self._failed = True
        for handle in self._members.copy():
            handle._stop()

    def _cancel_body(self) -> None:
        """Cancel the body of async code, in its loop."""
        if self._scope is not None and not self._over:
            self._scope.cancel()

    def _enter(self) -> None:
        if self._entered:
            raise LoopStateError("this CallGroup has been entered before; make a new one")
        self._entered = True

    def _close(self) -> bool:
        """Take no more calls, if all have ended. Return whether they have."""
        if self._members.copy():
            return False
        self._over = True
        return not self._members.copy()  # one may have joined before it could see `_over`

    async def _wait_for_all(self, cancellation: BaseException | None = None) -> None:
        """Wait for all calls. If we are cancelled, or were, cancel them and wait on, and raise the cancellation."""
        try:
            while not (isinstance(cancellation, GeneratorExit) or self._close()):
                try:
                    await self._wait(cancellation)
                except GeneratorExit:  # the loop is gone
                    raise
                except BaseException as exc:
                    cancellation = exc
            if cancellation is not None:
                raise cancellation
        finally:
            del cancellation  # its traceback leads here

    async def _wait(self, cancellation: BaseException | None) -> None:
        """Wait until all calls seem to have ended; despite *cancellation*, if there is one, which is raised then."""
        loop = current_loop()
        event = loop.new_event()
        self._wake = partial(set_from_anywhere, loop, event)

        def begin() -> None:
            if not self._members.copy():  # they have ended before `_wake` was set
                event.set()
            if cancellation is not None:
                raise cancellation

        def check() -> None:
            self._look_after()
            if not self._members.copy():
                event.set()

        await wait_for_end(event, self._cancel_all, begin=begin, check=check, check_at_once=True)

    def __enter__(self) -> CallGroup:
        blocks = refuse_in_loop(self, "CallGroup", INSTEAD)
        self._enter()
        if blocks is not None:  # at the end, for what the body starts
            self._blocks_later = self._interrupts.share(blocks)
            current_blocked_loop.set(self._blocks_later)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        error = exc
        try:
            error = self._of_the_body(exc)
            self._wait_in_thread(exc)
        except BaseException as interruption:
            error = interruption
        twice = error is not exc and isinstance(error, KeyboardInterrupt) and isinstance(exc, KeyboardInterrupt)
        if error is not None and not (twice or self._interrupts.is_over or self._over):
            try:  # Ctrl-C came just before the wait, for the first time
                self._wait_in_thread(error)
            except BaseException as interruption:
                error = interruption
        if self._blocks_later is not None:
            self._blocks_later.end()
        try:
            self._raise(error)
        finally:
            del error, exc

    def _wait_in_thread(self, error: BaseException | None) -> None:
        """Wait for all calls. Cancel them first if there is an *error*."""
        if error is not None:
            self._cancel_all()
        if self._close():
            return
        if isinstance(error, KeyboardInterrupt):
            self._interrupts.times = max(1, self._interrupts.times)
            say_that_we_wait(error, "CallGroup")
        options: dict[str, Any] = {"interrupts": self._interrupts, "counted": False}
        call_from_sync(self._wait_for_all, self, "CallGroup", INSTEAD, submit_to_background, **options)

    async def __aenter__(self) -> CallGroup:
        self._enter()
        self._loop = current_loop()
        self._scope = CancelScope()
        try:
            self._scope.__enter__()
            return self
        except BaseException:  # raised by a signal handler: `async with` does not call `__aexit__` then
            self._leave_scope()
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            await self._leave(exc)
        finally:
            self._leave_scope()
            del exc

    def _leave_scope(self) -> None:
        """Leave the scope around the body, if a signal handler has kept us from that."""
        scope, self._scope = self._scope, None
        if scope is not None:
            with suppress(RuntimeError):  # it has not been entered
                scope.__exit__(None, None, None)

    async def _leave(self, exc: BaseException | None) -> None:
        """Wait for all calls, in the scope around the body, which has raised *exc*. Then raise all errors."""
        assert self._scope is not None, "made when it was entered"
        error: BaseException | None = None
        cancellation: BaseException | None = None
        try:
            with ExitStack() as stack:
                stack.push(self._scope)
                stack.callback(setattr, self, "_scope", None)  # after it: until then, `__aexit__` leaves the scope
                if isinstance(exc, (GeneratorExit, *cancelled_classes())):
                    cancellation = exc
                elif exc is not None:
                    error = self._of_the_body(exc)
                if error is not None or cancellation is not None:
                    self._cancel_all()
                try:
                    await self._wait_for_all(cancellation)
                except GeneratorExit:  # the loop is gone, and so is the scope
                    stack.pop_all()
                    raise
        except cancelled_classes():  # from outside; as in anyio's task groups, an error takes precedence
            if error is None and not self._errors:
                raise
        try:
            self._raise(error)
        finally:
            del error, cancellation, exc

    def _of_the_body(self, error: BaseException | None) -> BaseException | None:
        """Return *error*, unless the body got it because it has asked for a call that the group has cancelled."""
        return None if self._failed and isinstance(error, CancelledError) else error

    def _raise(self, error: BaseException | None) -> None:
        """Raise the errors of the calls and the *error* of the body as a group, if there are any."""
        errors, self._errors = self._errors, []
        try:
            if error is not None and not isinstance(error, Exception):
                if errors:
                    error.__cause__ = BaseExceptionGroup("errors in a CallGroup", errors)
                raise error
            if error is not None and all(error is not other for other in errors):
                errors.insert(0, error)
            if errors:
                raise BaseExceptionGroup("errors in a CallGroup", errors) from None
        finally:
            del error, errors
