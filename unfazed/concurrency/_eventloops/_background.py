"""The background event loop, one for the whole process, and calls of async functions.

Guarantee: all threads get the same loop. If it has ended, they all get the same new one.

Assumption: `dict.setdefault` is atomic, so the first thread that names a successor wins. A lock would not do, because
Ctrl-C could interrupt the thread that holds it. A forked child has no loop until it needs one.
"""

from __future__ import annotations

import os
import threading
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar, overload

from anyio import to_thread

from .._core._calls import StepCall, totals
from .._core._checks import explain, name_of, require_async, require_context, require_flag, require_timeout
from .._core._contexts import ContextLease
from .._core._errors import LoopStateError
from .._core._lifetime import in_forked_child
from .._core._observing import observers
from ._blocking import settings
from ._limiters import NO_LIMIT
from ._loopchecks import async_work, close_unless_begun, require_backend, require_backend_options
from ._loops import current_loop
from ._loopthread import EventLoopThread, run_in
from ._started import start_work
from ._synccalls import call_from_sync
from ._timeouts import Timeout
from ._workers import lending, thread

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextvars import Context

    from .._core._taskcall import TaskCall
    from ._handle import Handle, Join

P = ParamSpec("P")
T = TypeVar("T")

_background_thread: EventLoopThread | None = None
_successors: dict[EventLoopThread | None, EventLoopThread] = {}  # keys: the loop that has ended, or None for the first
returned: Final = totals["eventloop"]["returned"]
_settings: tuple[str, dict[str, Any] | None] | None = None


def configure_background_eventloop(
    *,
    backend: str | None = None,
    backend_options: dict[str, Any] | None = None,
    allow_blocking_loop: bool | None = None,
) -> None:
    """Choose the backend of the background event loop, before its first use, and who may wait for it.

    Without this call, the environment variable `UNFAZED_BACKEND` decides ("asyncio" or "trio"). Without that, it is
    asyncio. A forked child may choose again, before its own first use.

    Args:
        backend: "asyncio" or "trio"; `None`, the default, is asyncio. If only *allow_blocking_loop* is given, the
            backend stays as it is.
        backend_options: The `backend_options` of `anyio.run`, such as `{"use_uvloop": True}`.
        allow_blocking_loop: Whether sync calls may wait on a thread whose own event loop runs, in the whole program:
            for notebooks, and for plugins of frameworks that own the loop. That loop is blocked meanwhile, as
            `allow_blocking_loop()` says, which is the same for a `with` block. It may be changed at any time. `None`
            leaves it as it is; at first it is `False`.

    Raises:
        WrongOptionError: If there is no such backend, it has no such option, or *allow_blocking_loop* is not True or
            False. The first call that needs the loop checks the environment variable.
        LoopStateError: If the background event loop is running already.
    """
    global _settings
    if allow_blocking_loop is not None:
        require_flag(allow_blocking_loop, "allow_blocking_loop", "configure_background_eventloop")
        settings.allow_blocking_loop = allow_blocking_loop
        if backend is None and backend_options is None:
            return
    backend = "asyncio" if backend is None else backend
    require_backend(backend, "configure_background_eventloop(backend=...)")
    require_backend_options(backend_options, backend, "configure_background_eventloop")
    if _background_thread is not None and not _background_thread._is_closed():
        raise LoopStateError(
            "the background event loop is running already; call configure_background_eventloop() before the "
            "first call that needs it, at the start of the program"
        )
    _settings = backend, backend_options


def _background() -> EventLoopThread:
    """Return the background event loop. Start it at first use, and start a new one if it has ended with an error."""
    global _background_thread
    current = _background_thread
    if current is None or not current.is_running():
        while current is None or current._is_closed():
            backend, options = _settings or (os.environ.get("UNFAZED_BACKEND") or "asyncio", None)
            require_backend(backend, "the environment variable UNFAZED_BACKEND")
            # Stored before it is started: if Ctrl-C interrupts the start, the next call completes it. Another thread,
            # or a signal handler in this one, may be here at the same time.
            starting = EventLoopThread(backend, options, "unfazed-eventloop")
            current = _background_thread = _successors.setdefault(current, starting)
        current._ensure_started()
    return current


def running_background() -> EventLoopThread | None:
    """Return the background event loop, or `None` if it does not run.

    What cleans up in one that something breaks gets that one, which has its connections.
    """
    if thread.is_loop_thread:
        for breaking in _successors.copy().values():
            if breaking._is_breaking and breaking._thread is threading.current_thread():
                return breaking
    current = _background_thread
    return current if current is not None and current.is_running() else None


def submit_to_background(call: TaskCall[Any], context: Context) -> None:
    """Have the background event loop run *call*."""
    _background()._submit(call, context)


async def _background_from_async(func: object, helper: str) -> EventLoopThread:
    """Return what `_background` returns, without blocking the current loop while the thread starts for a call."""
    try:
        return await to_thread.run_sync(_background, limiter=NO_LIMIT)
    except BaseException as exc:
        StepCall(func, helper).never_begins(exc)
        raise


@overload
async def run_in_eventloop(func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
@overload
async def run_in_eventloop(func: Awaitable[T], /) -> T: ...
async def run_in_eventloop(func: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Run an async function on the background event loop and await its result in the current loop.

    So sync threads, asyncio and trio can share an object that is bound to one loop, such as a connection pool. The
    function runs in a new task, in a copy of the caller's context.

    Args:
        func: An async function. Its positional and keyword arguments follow, whatever their names. Or an awaitable,
            such as `fetch(url)`, and nothing after it. If the call is refused or never begins, a coroutine is closed.

    Cancellation:
        The function is cancelled on the background event loop. The call waits for its cleanup, however often the caller
        is cancelled meanwhile. Then it drops what the function returned, and raises the cancellation.

    Returns:
        What *func* returned.

    Raises:
        WrongFunctionError: If *func* cannot be called and is no awaitable, or does not return one. If it is a coroutine
            that was awaited before, or an asyncio future of another loop, or has arguments after it.
        CallCancelledError: If the function was cancelled there, but not by this call.
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the background event loop has ended because the interpreter is exiting.
        BaseException: Whatever *func* raised, with its traceback.

    Example:
        `rows = await run_in_eventloop(pool.fetch, "select 1")`
    """
    return await run_on_background(func, args, kwargs, "run_in_eventloop")


async def run_on_background(func: Any, args: tuple[object, ...], kwargs: dict[str, Any], helper: str) -> Any:
    """Do what `run_in_eventloop` does, for *helper*."""
    work = async_work(func, args, kwargs, "run_in_eventloop")
    try:
        background = running_background() or await _background_from_async(func, helper)
        return await lending(run_in(background, work, func, helper))
    except TypeError as exc:
        explain(exc, "run_in_eventloop", func, kwargs)
        raise
    finally:
        close_unless_begun(work)


@overload
def run_in_eventloop_sync(func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> T: ...
@overload
def run_in_eventloop_sync(func: Awaitable[T], /) -> T: ...
def run_in_eventloop_sync(func: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Run an async function from sync code and wait for its result.

    In a worker thread of an event loop (ours, anyio's, Starlette's, trio's) the function runs in that loop, elsewhere
    on the background event loop. It runs in a new task, in a copy of the caller's context.

    Args:
        func: An async function. Its positional and keyword arguments follow, whatever their names. Or an awaitable,
            such as `fetch(url)`, and nothing after it. If the call is refused or never begins, a coroutine is closed.

    Cancellation:
        In a worker thread the function is cancelled with the task that waits for the thread, and this call raises the
        backend's own cancellation class. Elsewhere Ctrl-C (or whatever a signal handler raises) cancels the function.
        The call waits for its cleanup, and then raises the exception. A second Ctrl-C stops waiting.

    Returns:
        What *func* returned.

    Raises:
        LoopThreadError: If an event loop is running in this thread, which the call would block.
        WrongFunctionError: If *func* cannot be called and is no awaitable, or does not return one. If it is a coroutine
            that was awaited before, or an asyncio future of another loop, or has arguments after it.
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the event loop has ended, for example because the interpreter is exiting.
        BaseException: Whatever *func* raised, with its traceback.

    Example:
        `page = run_in_eventloop_sync(fetch, "https://example.org", timeout=5)`
    """
    work = async_work(func, args, kwargs, "run_in_eventloop_sync")
    try:
        return call_from_sync(work, func, "run_in_eventloop_sync", "await {}(...)", submit_to_background)
    except TypeError as exc:
        explain(exc, "run_in_eventloop_sync", func, kwargs)
        raise
    finally:
        close_unless_begun(work)


@overload
def start_in_eventloop(func: Callable[P, Awaitable[T]], /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]: ...
@overload
def start_in_eventloop(func: Awaitable[T], /) -> Handle[T]: ...
def start_in_eventloop(func: Any, /, *args: Any, **kwargs: Any) -> Handle[Any]:
    """Start an async function on the background event loop, and return its handle at once; from sync or async code.

    It runs in a new task, in a copy of the caller's context, and outlives the caller and the caller's loop.

    Args:
        func: An async function. Its positional and keyword arguments follow, whatever their names. Or an awaitable,
            such as `fetch(url)`, and nothing after it. If the call is refused or never begins, a coroutine is closed.

    Cancellation:
        Nothing here waits. After `handle.cancel()`, a function that has not begun never begins; one that runs is
        cancelled and cleans up, and the handle is done after that. Whoever waits for the handle and is cancelled stops
        waiting; the call goes on. At exit it is cancelled.

    Returns:
        A `Handle`: a `concurrent.futures.Future` that can also be awaited.

    Raises:
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the interpreter is exiting.
        WrongFunctionError: If *func* cannot be called and is no awaitable. If it is a coroutine that was awaited
            before, or an asyncio future of another loop, or has arguments after it. From the handle, if it does not
            return an awaitable.
        CallCancelledError: From the handle, if the function was cancelled there, but not by the handle.
        BaseException: From the handle, whatever *func* raised, with its traceback.

    Example:
        `handle = start_in_eventloop(fetch(url))`, later `handle.result()` or `await handle`
    """
    return start_on_background(func, args, kwargs)


def start_on_background(
    func: Callable[..., Awaitable[T]] | Awaitable[T],
    args: tuple[object, ...],
    kwargs: dict[str, Any],
    join: Join | None = None,
) -> Handle[T]:
    """Do what `start_in_eventloop` does, and have the handle join a group first."""
    work = async_work(func, args, kwargs, "start_in_eventloop")
    return start_work(work, func, kwargs, "start_in_eventloop", _background, join)


class EventloopPlace(NamedTuple):
    """Where `in_eventloop` runs a function, and how."""

    timeout: float | None = None
    context: Context | None = None

    @property
    def decorator(self) -> str:
        """The name of the decorator that makes it."""
        return "in_eventloop"

    def check(self) -> None:
        """Refuse wrong options."""
        require_timeout(self.timeout, "in_eventloop")
        require_context(self.context, "in_eventloop")

    def require(self, func: Callable[..., object]) -> None:
        """Refuse a function that cannot run here."""
        require_async(func, "in_eventloop")

    async def run(self, func: Callable[..., Awaitable[T]], args: tuple[object, ...], kwargs: dict[str, Any]) -> T:
        """Run a call from async code."""
        work = self._work(func, args, kwargs)
        call = StepCall(func, "in_eventloop") if observers else None  # otherwise it is only counted
        try:
            if call is not None:
                call.begin_here()
            value = await work()
        except BaseException as exc:
            (call or StepCall(func, "in_eventloop")).end_here(exc)
            explain(exc, "in_eventloop", func, kwargs)
            raise
        if call is None:
            next(returned)
        else:
            call.end_here(None)
        return value

    def run_sync(self, func: Callable[..., Awaitable[T]], args: tuple[object, ...], kwargs: dict[str, Any]) -> T:
        """Run a call from sync code."""
        work = self._work(func, args, kwargs)
        try:
            return call_from_sync(work, func, "{}.sync", "await {}(...)", submit_to_background)
        except TypeError as exc:
            explain(exc, "in_eventloop", func, kwargs)
            raise

    def start(
        self,
        func: Callable[..., Awaitable[T]],
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        join: Join | None = None,
    ) -> Handle[T]:
        """Start a call on the background event loop, and have its handle join a group first."""
        return start_work(self._work(func, args, kwargs), func, kwargs, "in_eventloop", _background, join)

    def _work(
        self, func: Callable[..., Awaitable[T]], args: tuple[object, ...], kwargs: dict[str, Any]
    ) -> Callable[[], Awaitable[T]]:
        """Return the async function that runs one call. Its timeout starts now."""
        work = async_work(func, args, kwargs, "in_eventloop")
        if self.context is not None:
            work = partial(_run_in_context, self.context, name_of(func), work)
        if self.timeout is not None:
            work = partial(_run_in_time, Timeout(self.timeout, name_of(func)), work)
        return work


async def _run_in_context(context: Context, name: str, work: Callable[[], Awaitable[T]]) -> T:
    lease = ContextLease(context, name)
    try:
        lease.take()
        return await lease.run_async(work, current_loop().mark_context)
    finally:
        lease.release()


async def _run_in_time(timeout: Timeout, work: Callable[[], Awaitable[T]]) -> T:
    left = timeout.left()
    if not left:
        raise timeout.error()
    return await current_loop().run_within(left, work, timeout.error)


def _reset_after_fork() -> None:
    """In a forked child: the loop's thread does not exist here."""
    global _background_thread
    _background_thread = None
    _successors.clear()


in_forked_child(_reset_after_fork)
