"""A call in a worker thread, from async and from sync code.

One call is one `Job`: it takes a slot, hands itself to anyio's worker threads, and its answer is written in the
worker, from where it goes straight to a sync caller while the loop does its accounts behind.
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from anyio import Event, to_thread
from anyio.lowlevel import checkpoint_if_cancelled

from . import _slots
from ._checks import async_function_error, close_coroutine, name_of, require_sync
from ._eventloop import submit_to_background
from ._loops import NO_LIMIT, Answer, current_loop, hold_slot, outlast, set_from_anywhere, without_our_frame
from ._synccalls import Worker, call_from_sync, thread

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


class Job(Worker, Generic[T]):
    """One call in a worker thread. *helper* is the name to use in error messages."""

    __slots__ = ("_args", "_ended", "_func", "_helper", "_kwargs", "_settled", "_started", "_waiting", "outcome")

    def __init__(self, helper: str, func: Callable[..., T], args: tuple[object, ...], kwargs: dict[str, Any]) -> None:
        super().__init__()
        self._helper = helper
        self._func = func
        self._args = args
        self._kwargs = kwargs
        self._started = Lock()  # taken by the worker when it starts, or by the loop so that it never does
        self._settled = Lock()  # taken by the worker when it ends, or by the loop so that what it comes to is dropped
        self._ended: Event | None = None  # set where the loop waits for the worker after all
        self._waiting: Answer[Answer[T]] | None = None  # of a sync caller, to be told by the worker
        self.outcome: Answer[T] = Answer(_nobody_listens)

    def answer_directly(self, waiting: Answer[Answer[T]]) -> None:
        """Have the worker hand the outcome to a sync caller, ahead of the loop."""
        self._waiting = waiting

    async def run(self) -> Answer[T]:
        """Run the call, from the loop whose worker thread is to do it, and return its outcome.

        Only its reader may raise what the function raised: Python lets no `StopIteration` out of async code.

        Cancelled before the worker has started, it never starts. Cancelled later, the async calls that the worker
        waits for are cancelled as well, and the worker is waited for: it wakes us when it has ended, as there is
        no way to end a thread. What it comes to is dropped then.
        """
        loop = self.loop = current_loop()
        slot = self.slot = await hold_slot(loop, to_thread.current_default_thread_limiter())
        try:
            if loop.calls_back_in_the_task:
                await to_thread.run_sync(self._work, limiter=NO_LIMIT)
                await checkpoint_if_cancelled()
            else:
                await self._run_whatever_cancels_us()
        finally:
            _slots.release(slot)
        return self.outcome

    async def _run_whatever_cancels_us(self) -> None:
        """Do on asyncio what anyio's shield does on trio."""
        try:
            await to_thread.run_sync(self._work, abandon_on_cancel=True, limiter=NO_LIMIT)
            return
        except BaseException as exc:
            if self._started.acquire(blocking=False):
                raise
            cancellation = exc
        self._ended = Event()  # before the lock: a worker that comes second sets it
        try:
            if self._settled.acquire(blocking=False):
                self.cancel()
                cancellation = await outlast(self._ended, cancellation)
            raise cancellation
        finally:
            del cancellation

    def _work(self) -> None:
        """Run the call, in the worker thread."""
        if not self._started.acquire(blocking=False):
            return
        assert self.slot is not None, "taken before the worker starts"
        _slots.current_slot.set(self.slot)
        thread.worker = self
        value: T | None = None
        error: BaseException | None = None
        try:
            value = self._func(*self._args, **self._kwargs)
            if close_coroutine(value):
                raise async_function_error(self._func, self._helper)
        except BaseException as exc:
            error = without_our_frame(exc)
        thread.worker = None
        if self._waiting is not None:
            _slots.release(self.slot)  # before its caller goes on; otherwise the loop does it, which costs it less
        if not self._settled.acquire(blocking=False):
            assert self._ended is not None, "the loop took the lock to wait for us"
            set_from_anywhere(self.way_back(), self._ended)
        else:
            self.outcome.write(value, error)
            if self._waiting is not None:
                self._waiting.write(self.outcome, None)
        del value, error  # the traceback of the error leads to the function's frame, and that one back to this


def _nobody_listens() -> None:
    """Stand in for a listener where anyio does the waking."""


async def run_in_threadpool(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in a worker thread and await its result.

    The same as `anyio.to_thread.run_sync`, but for keyword arguments, for slots that cannot deadlock however calls
    are nested, and for cancellation that waits for the thread on asyncio as well. The function runs in a copy of the
    caller's context. Limited by anyio's default thread limiter: 40 threads for each event loop.

    Args:
        func: A sync function. Its positional and keyword arguments follow, whatever their names.

    Cancellation:
        Before the function has started, it never starts. While it runs, the async code that it waits for (in
        `run_in_eventloop_sync` and the like) is cancelled too; then this call waits for the thread to end, drops
        what it returned or raised, and raises the cancellation: a thread cannot be cancelled. The same holds for
        asyncio's own `task.cancel()`, however often. The slot is given back when the thread ends.

    Returns:
        What *func* returned.

    Raises:
        WrongFunctionError: If *func* is async, or returns a coroutine, or cannot be called.
        BaseException: Whatever *func* raised, with its traceback; Python turns `StopIteration` into a
            `RuntimeError` where it leaves async code.

    Example:
        `text = await run_in_threadpool(path.read_text, encoding="utf-8")`
    """
    require_sync(func, "run_in_threadpool")
    outcome = await Job("run_in_threadpool", func, args, kwargs).run()
    return outcome.read()


def run_in_threadpool_sync(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in a worker thread and wait for its result: `run_in_threadpool` for sync code.

    In a worker thread of an event loop the worker belongs to that loop, elsewhere to the background event loop.

    Args:
        func: A sync function. Its positional and keyword arguments follow, whatever their names.

    Cancellation:
        Interrupted by Ctrl-C (or whatever a signal handler raises): a function that has not started never starts,
        one that runs is waited for, and then the exception is raised. A second Ctrl-C stops waiting.

    Returns:
        What *func* returned.

    Raises:
        LoopThreadError: If an event loop is running in this thread, which the call would block.
        LoopEndedError: If the interpreter is exiting.
        WrongFunctionError: If *func* is async, or returns a coroutine, or cannot be called.
        BaseException: Whatever *func* raised, with its traceback.

    Example:
        `text = run_in_threadpool_sync(path.read_text, encoding="utf-8")`
    """
    require_sync(func, "run_in_threadpool_sync")
    job = Job("run_in_threadpool_sync", func, args, kwargs)
    name = name_of(func)
    instead = f"await run_in_threadpool({name}, ...)"
    helper = "run_in_threadpool_sync"
    return call_from_sync(job.run, name, helper, instead, submit_to_background, offer=job.answer_directly).read()
