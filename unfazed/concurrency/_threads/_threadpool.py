"""A call in a worker thread, from async and from sync code."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from .._core._checks import require_context, require_count, require_flag, require_limiter, require_sync, require_timeout
from .._core._observing import observers
from .._eventloops._handle import start_call
from .._eventloops._limiters import thread_limiter
from .._eventloops._synccalls import call_from_sync
from . import _standby
from ._threadcall import ThreadCall, ThreadOptions, returned

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._core._futures import OneShotFuture
    from .._eventloops._handle import Handle, Join

P = ParamSpec("P")
T = TypeVar("T")


async def run_in_threadpool(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in a worker thread and await its result.

    The same as `anyio.to_thread.run_sync`, except that it takes keyword arguments, that nested calls cannot deadlock,
    and that cancellation waits for the thread on asyncio too. The function runs in a copy of the caller's context.
    anyio's default thread limiter bounds how many run at once: 40 for each event loop.

    Args:
        func: A sync function. Its positional and keyword arguments follow, whatever their names.

    Cancellation:
        A function that has not begun never begins. If it runs, the async code that it waits for (in
        `run_in_eventloop_sync` and the like) is cancelled too. Then this call waits for the function to end, because a
        thread cannot be cancelled, drops what it returned or raised, and raises the cancellation. The same holds for
        asyncio's own `task.cancel()`, however often. The slot is given back when the function has ended.

    Returns:
        What *func* returned.

    Raises:
        WrongFunctionError: If *func* is async, returns a coroutine, or cannot be called.
        BaseException: Whatever *func* raised, with its traceback. Python itself turns a `StopIteration` that leaves
            async code into a `RuntimeError`.

    Example:
        `text = await run_in_threadpool(path.read_text, encoding="utf-8")`
    """
    require_sync(func, "run_in_threadpool")
    outcome = await ThreadCall("run_in_threadpool", func, args, kwargs).run()
    return outcome.read()


def run_in_threadpool_sync(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in a worker thread and wait for its result: `run_in_threadpool` for sync code.

    If this thread is a worker of an event loop, the new worker belongs to that loop, otherwise to the background event
    loop.

    Args:
        func: A sync function. Its positional and keyword arguments follow, whatever their names.

    Cancellation:
        Interrupted by Ctrl-C (or whatever a signal handler raises): a function that has not begun never begins,
        one that runs is waited for, and then the exception is raised. A second Ctrl-C stops waiting.

    Returns:
        What *func* returned.

    Raises:
        LoopThreadError: If an event loop is running in this thread, which the call would block.
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the interpreter is exiting.
        WrongFunctionError: If *func* is async, returns a coroutine, or cannot be called.
        BaseException: Whatever *func* raised, with its traceback.

    Example:
        `text = run_in_threadpool_sync(path.read_text, encoding="utf-8")`
    """
    require_sync(func, "run_in_threadpool_sync")
    thread_call = ThreadCall("run_in_threadpool_sync", func, args, kwargs)
    return _wait_for(thread_call, func, "run_in_threadpool_sync", "await run_in_threadpool({}, ...)")


def start_in_threadpool(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Handle[T]:
    """Start a call of a sync function in a worker thread, and return its handle at once; from sync or async code.

    The call belongs to the background event loop, so it outlives the caller and the caller's loop. That loop's default
    thread limiter bounds how many run at once. The function runs in a copy of the caller's context.

    Args:
        func: A sync function. Its positional and keyword arguments follow, whatever their names.

    Cancellation:
        Nothing here waits. After `handle.cancel()`, a function that has not begun never begins; one that runs goes on,
        unless `in_threadpool(func, abandon_on_cancel=True).start(...)` has started it. Whoever waits for the handle and
        is cancelled stops waiting; the call goes on. At exit, a function that runs is waited for, 3 seconds at most.

    Returns:
        A `Handle`: a `concurrent.futures.Future` that can also be awaited.

    Raises:
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the interpreter is exiting.
        WrongFunctionError: If *func* is async or cannot be called. From the handle, if it returns a coroutine.
        BaseException: From the handle, whatever *func* raised, with its traceback.

    Example:
        `handle = start_in_threadpool(path.read_text, encoding="utf-8")`, later `handle.result()` or `await handle`
    """
    return start_in_thread(func, args, kwargs)


def start_in_thread(
    func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any], join: Join | None = None
) -> Handle[T]:
    """Do what `start_in_threadpool` does, and have the handle join a group first."""
    require_sync(func, "start_in_threadpool")
    return _start(ThreadCall("start_in_threadpool", func, args, kwargs), func, join)


def _start(thread_call: ThreadCall[T], func: Callable[..., T], join: Join | None) -> Handle[T]:
    thread_call.must_hand_over = True  # so that `tell_cancelled` reaches what it waits for
    submit = partial(_standby.submit, thread_call)
    return start_call(thread_call, thread_call.run, func, submit, _read, join, user_call=thread_call)


def _read(future: OneShotFuture[OneShotFuture[T]]) -> T:
    return future.read().read()


def _wait_for(thread_call: ThreadCall[T], func: Callable[..., T], helper: str, instead: str) -> T:
    submit = partial(_standby.submit, thread_call)
    try:
        value = call_from_sync(
            thread_call.run, func, helper, instead, submit, offer=thread_call.answer_directly, carried=thread_call
        ).read()
    except BaseException as exc:
        if thread_call.waiter is not None:  # otherwise it was refused
            thread_call.note_end(exc)
        raise
    if observers:
        thread_call.note_end(None)
    else:
        next(returned)
    return value


def configure_threadpool(*, limit: int) -> None:
    """Choose how many calls run in worker threads at once, in each event loop.

    Without this call, the environment variable `UNFAZED_THREADS` decides, or else it is 40. It may be called at any
    time.

    Args:
        limit: The total of anyio's default thread limiter, in each event loop from its next call of ours on. A total
            that was set by anyio's own means stays.

    Raises:
        WrongOptionError: If *limit* is not a number of calls. The first call that needs the environment variable checks
            that.

    Example:
        `configure_threadpool(limit=100)`
    """
    require_count(limit, "limit", "configure_threadpool", at_least=1)
    thread_limiter.choose(limit)


class ThreadPlace(ThreadOptions):
    """Where `in_threadpool` runs a function, and how."""

    __slots__ = ()

    @property
    def decorator(self) -> str:
        """The name of the decorator that makes it."""
        return "in_threadpool"

    def check(self) -> None:
        """Refuse wrong options."""
        require_limiter(self.limiter, "in_threadpool")
        require_flag(self.abandon_on_cancel, "abandon_on_cancel", "in_threadpool")
        require_timeout(self.timeout, "in_threadpool")
        require_context(self.context, "in_threadpool")

    def require(self, func: Callable[..., object]) -> None:
        """Refuse what cannot run here."""
        require_sync(func, "in_threadpool")

    async def run(self, func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any]) -> T:
        """Run a call for async code."""
        outcome = await ThreadCall("in_threadpool", func, args, kwargs, self).run()
        return outcome.read()

    def run_sync(self, func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any]) -> T:
        """Run a call for sync code."""
        return _wait_for(ThreadCall("in_threadpool", func, args, kwargs, self), func, "{}.sync", "await {}(...)")

    def start(
        self, func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any], join: Join | None = None
    ) -> Handle[T]:
        """Start a call, and have its handle join a group first."""
        return _start(ThreadCall("in_threadpool", func, args, kwargs, self), func, join)
