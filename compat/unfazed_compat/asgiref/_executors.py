"""Executors with one thread: where thread-sensitive calls go.

    `Pump`   a thread that waits for a loop, and meanwhile does what that sends back to it
    `Lane`   a thread of its own

With pumps thread-sensitive calls stay with the thread that has the database connections, however deeply they nest. What
an executor has taken in, it does. At exit the lanes do what they have been sent, and are waited for; in a forked child
each starts a new thread.

There is no lock (`_threads.py` says why). Each item is done once, since whoever takes the function out of it does it.
So an item may be in the queue of a pump that is closing and in that of the next one at the same time.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from concurrent.futures import Executor, Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, final

from anyio import Event

from unfazed.concurrency import ExecutorError, LoopEndedError, run_in_eventloop_sync

from ._loops import current_loop
from ._shared import PumpBase
from ._threads import Item, Worker, start_new_era, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._calls import Call

P = ParamSpec("P")
T = TypeVar("T")

_CALL = "sync_to_async"
GONE_CHECK_SECONDS = 1.0  # how often a thread looks whether the loop that is to answer it is still there


@final
class WorkItem(Generic[T]):
    """What an executor is sent by `submit`."""

    __slots__ = ("_func", "future")

    def __init__(self, func: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self._func: list[Callable[[], T]] = [func]  # empty: somebody has decided what happens to it

    def run(self) -> None:
        try:
            func = self._func.pop()
        except IndexError:
            return
        if self.future.set_running_or_notify_cancel():
            try:
                result = func()
            except BaseException as exc:
                self.future.set_exception(exc)
            else:
                self.future.set_result(result)

    def watch(self, future: Future[Any]) -> None:
        """Take note of an executor that drops it."""
        if future.cancelled():
            self.future.cancel()

    def drop(self, error: BaseException) -> None:
        try:
            self._func.pop()
        except IndexError:
            return
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def fail(self, error: BaseException) -> None:
        self._func.clear()
        with suppress(InvalidStateError):  # it has an outcome
            self.future.set_exception(error)


class Pump(PumpBase):
    """The executor of the thread in which it was made, while that waits.

    Only that thread takes items out, each when it is done: it may be the main thread, and interrupted.
    """

    def __init__(self, parent: Executor | None) -> None:
        self._thread = get_ident()
        self._process = os.getpid()
        self._items: deque[Item] = deque()
        self._current: Item | None = None  # the first one, while it is being done
        self._bell: SimpleQueue[None] = SimpleQueue()  # rung after each change that the thread is to see
        self._arrived: Callable[[], object] | None = None  # to be told, while the thread's place is lent
        self._finished = False
        self._closed = False
        self._parent = parent

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have the thread call *fn*; or, once it goes on, the nearest one above that still waits."""
        item = WorkItem(lambda: fn(*args, **kwargs))
        send(self, item)
        return item.future

    def send(self, item: Any) -> bool:
        """Have the thread do *item*, or the nearest one above that still waits. Return whether there is one."""
        pump: Executor | None = self
        while isinstance(pump, Pump):
            # Its own thread does not wait now, if it runs a loop; and a forked child has a copy that nobody serves.
            if pump._thread != get_ident() and pump._process == os.getpid() and pump._put(item):
                return True
            pump = pump._parent
        if pump is None:
            return False
        send(pump, item)  # asgiref's
        return True

    def _put(self, item: Item) -> bool:
        """Put *item* in, and return whether it is sure to be done.

        1. We put it into `_items`, then look whether the pump is closed.
        2. `close` says that it is closed, then looks into `_items` until there is nothing.

        If neither sees the other, it goes to the next pump as well, and whoever comes first does it.
        """
        if self._closed:
            return False
        self._items.append(item)
        self._ring()
        return not self._closed

    def _ring(self) -> None:
        """Wake the thread. We ring, then look for `_arrived`; `_arrival` sets that, then looks at the bell."""
        self._bell.put(None)
        arrived = self._arrived
        if arrived is not None:
            arrived()

    def finish(self, _: object = None) -> None:
        """Say that what the thread waits for has come. From any thread, and more than once."""
        self._finished = True
        self._ring()

    def serve(self, is_gone: Callable[[], bool], call: Call | None = None, *, lending: bool = False) -> bool:
        """Do what is sent here until it is finished. Return whether it was: not when the loop is gone.

        Meanwhile look after *call*. With *lending*, the thread is a worker, which lends its slot while it waits, and is
        cancelled with its task. Who wakes us: whoever sends something, or writes the result. Nobody, when the loop ends
        before it begins.
        """
        self._fail_what_was_interrupted()
        while True:
            while self._items:
                self._do_first()
            if self._finished:
                return True
            if lending and self._bell.empty():
                try:
                    run_in_eventloop_sync(self._arrival, call)
                except LoopEndedError:
                    return self._finished
            try:
                self._bell.get(timeout=GONE_CHECK_SECONDS)
            except Empty:
                if is_gone():
                    return self._finished
                if call is not None:
                    call.look_after()

    def _do_first(self) -> None:
        item = self._current = self._items[0]
        item.run()
        self._items.popleft()
        self._current = None  # its arguments and its result are nothing to us while we wait

    def _fail_what_was_interrupted(self) -> None:
        """See to the item that this thread was doing when a signal handler raised."""
        item = self._current
        if item is not None:
            item.fail(_interrupted())
            if self._items and self._items[0] is item:
                self._items.popleft()
            self._current = None

    async def _arrival(self, call: Call | None) -> None:
        """Wait for what is sent here, in the worker's loop."""
        loop, event = current_loop(), Event()

        def arrived() -> None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(event.set)

        self._arrived = arrived
        try:
            if call is not None:
                call.look_after_here()  # what was sent before us is lost if it has not come
            if self._bell.empty():
                await event.wait()
        finally:
            self._arrived = None

    def close(self, *, interrupted: bool) -> None:
        """Take in nothing any more. Do what came meanwhile; or, if *interrupted*, tell those who wait for it."""
        self._closed = True
        self._fail_what_was_interrupted()
        while True:
            try:
                item = self._items[0]
            except IndexError:
                break
            if interrupted:
                item.drop(_interrupted())
                self._items.popleft()
            else:
                self._do_first()


def _interrupted() -> ExecutorError:
    return ExecutorError(_CALL, "was not made: its thread was interrupted")


_lanes: weakref.WeakSet[Lane] = weakref.WeakSet()


@final
class Lane(ThreadPoolExecutor):
    """An executor with a thread of its own, which starts with the first call and ends with the executor."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self.begin()
        _lanes.add(self)

    def begin(self) -> None:
        """Start, or start afresh in a forked child: the thread has not come along."""
        self._worker = Worker(self, "unfazed-thread-sensitive", _serving)
        self._threads = self._worker.threads  # others look at it

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have the thread call *fn*."""
        item = WorkItem(lambda: fn(*args, **kwargs))
        self.send(item)
        return item.future

    def send(self, item: Item) -> None:
        """Have the thread do *item*."""
        if self._worker.closed or _exiting:
            raise RuntimeError("cannot schedule new futures after shutdown")
        self._worker.send(item)
        if _forked:
            _watch_the_end()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread when it has done what it has been sent."""
        self._worker.close()
        if cancel_futures:
            self._worker.drop_all(
                ExecutorError("a call of sync_to_async()", "was cancelled: its executor was shut down")
            )
            self._worker.tell()  # once more: that may have been dropped as well
        if wait:
            self._worker.join()


_serving: dict[Worker, None] = {}  # of the lanes, those that have a thread
_exiting = False
_forked = False  # whether this process is a forked child, where nobody watches its end yet


def end_lanes() -> None:
    """At exit: have all lanes do what they have been sent, and wait for them, as for any executor's threads."""
    global _exiting
    _exiting = True
    serving = _serving.copy()
    for worker in serving:
        worker.close()
    for worker in serving:
        worker.join()


def _watch_the_end() -> None:
    """See to the lanes at the end of a forked child: those of multiprocessing and others end without `atexit`."""
    global _forked
    _forked = False
    try:
        start_thread(_end_lanes_last, "unfazed-end-of-child", daemon=False)
    except BaseException:
        _forked = True
        raise


def _end_lanes_last() -> None:
    """End the lanes when all ordinary threads have ended, in one for which the interpreter waits."""
    known = threading.main_thread(), threading.current_thread()
    known[0].join()
    while others := [each for each in threading.enumerate() if each not in known and not each.daemon]:
        others[0].join()
    end_lanes()


def _start_afresh() -> None:
    """After a fork, while there is one thread alone."""
    global _forked
    _forked = True
    _serving.clear()
    start_new_era()
    for lane in list(_lanes):
        lane.begin()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_start_afresh)


def send(executor: Executor, item: Any) -> None:
    """Have *executor*, which is anybody's, do *item*; raise a `RuntimeError` if it takes nothing any more."""
    if isinstance(executor, Lane):
        executor.send(item)
    elif isinstance(executor, Pump):
        if not executor.send(item):
            raise RuntimeError("the thread that was to make this call does not wait for it any more")
    else:
        executor.submit(item.run).add_done_callback(item.watch)
