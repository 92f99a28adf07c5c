"""Executors with one thread: where thread-sensitive calls go.

    `Pump`   a thread that waits for a loop, and meanwhile does what that sends back to it
    `Lane`   a thread of its own

With pumps thread-sensitive calls stay with the thread that has the database connections, however deeply they nest. The
`_lock` of each executor guards whether it is open: what it has taken in, it does. At exit the lanes do what they have
been sent, and are waited for; in a forked child each starts a new thread.
"""

from __future__ import annotations

import itertools
import os
import sys
import threading
import weakref
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from threading import Lock, get_ident
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, Protocol, TypeVar, final

from anyio import Event

from unfazed.concurrency import ExecutorError, LoopEndedError, run_in_eventloop_sync

from ._loops import current_loop
from ._shared import PumpBase

if TYPE_CHECKING:
    from collections.abc import Callable
    from collections.abc import Set as AbstractSet

P = ParamSpec("P")
T = TypeVar("T")

_CALL = "sync_to_async"
GONE_CHECK_SECONDS = 1.0  # how often a thread looks whether the loop that is to answer it is still there


class Item(Protocol):
    """What an executor of ours can be sent."""

    def run(self) -> None:
        """Do it, in the thread."""

    def drop(self, error: BaseException) -> None:
        """Say that it will never be done."""


@final
class WorkItem(Generic[T]):
    """What an executor is sent by `submit`."""

    __slots__ = ("_func", "future")

    def __init__(self, func: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self._func = func

    def run(self) -> None:
        if self.future.set_running_or_notify_cancel():
            try:
                result = self._func()
            except BaseException as exc:
                self.future.set_exception(exc)
            else:
                self.future.set_result(result)

    def watch(self, future: Future[Any]) -> None:
        """Take note of an executor that drops it."""
        if future.cancelled():
            self.future.cancel()

    def drop(self, error: BaseException) -> None:
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)


class Pump(PumpBase):
    """The executor of the thread in which it was made, while that waits."""

    def __init__(self, parent: Executor | None) -> None:
        self._thread = get_ident()
        self._process = os.getpid()
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        self._arrived: Callable[[], object] | None = None  # to be told, while the thread's place is lent
        self._lock = Lock()
        self._open = True
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
            # Its own thread does not wait now, if it runs a loop; and a forked child has a copy whose lock may be held.
            if pump._thread != get_ident() and pump._process == os.getpid():
                with pump._lock:
                    if pump._open:
                        pump._put(item)
                        return True
            pump = pump._parent
        if pump is None:
            return False
        send(pump, item)  # asgiref's
        return True

    def _put(self, item: Item | None) -> None:
        self._items.put(item)
        arrived = self._arrived  # either it is there, or `_arrival` sees the item
        if arrived is not None:
            arrived()

    def finish(self, _: object = None) -> None:
        """Say that what the thread waits for has come. From any thread."""
        self._put(None)

    def serve(self, is_gone: Callable[[], bool], *, lending: bool = False) -> bool:
        """Do what is sent here until it is finished. Return whether it was: not where the loop is gone.

        With *lending*, the thread is a worker, which lends its slot while it waits, and is cancelled with its task.
        Who wakes us: whoever sends something, or writes the result. Nobody, where the loop ends before it begins.
        """
        while True:
            if lending and self._items.empty():
                try:
                    run_in_eventloop_sync(self._arrival)
                except LoopEndedError:
                    return False
            try:
                item = self._items.get(timeout=GONE_CHECK_SECONDS)
            except Empty:
                if is_gone():
                    return False
                continue
            if item is None:
                return True
            item.run()
            del item  # its arguments and its result are nothing to us while we wait

    async def _arrival(self) -> None:
        """Wait for what is sent here, in the worker's loop."""
        loop, event = current_loop(), Event()

        def arrived() -> None:
            with suppress(RuntimeError):  # it has ended
                loop.call_soon_threadsafe(event.set)

        self._arrived = arrived
        try:
            if self._items.empty():
                await event.wait()
        finally:
            self._arrived = None

    def close(self, *, interrupted: bool) -> None:
        """Take in nothing any more. Do what came meanwhile; or, if *interrupted*, tell those who wait for it."""
        with self._lock:
            self._open = False
        while not self._items.empty():
            item = self._items.get()
            if item is not None and interrupted:
                item.drop(ExecutorError(_CALL, "was not made: its thread was interrupted"))
            elif item is not None:
                item.run()


_lanes: weakref.WeakSet[Lane] = weakref.WeakSet()


@final
class Lane(ThreadPoolExecutor):
    """An executor with a thread of its own, which starts with the first call and ends with the executor."""

    def __init__(self) -> None:
        super().__init__(max_workers=1)
        self._ended = False
        self.begin()
        _lanes.add(self)

    def begin(self) -> None:
        """Start, or start afresh in a forked child: the thread has not come along, and may have had the lock."""
        self._threads: AbstractSet[threading.Thread] = frozenset()  # others look at it
        self._lock = Lock()
        self._items: SimpleQueue[Item | None] = SimpleQueue()
        weakref.finalize(self, self._items.put, None).atexit = False

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have the thread call *fn*."""
        item = WorkItem(lambda: fn(*args, **kwargs))
        self.send(item)
        return item.future

    def send(self, item: Item) -> None:
        """Have the thread do *item*."""
        with self._lock:
            if self._ended or _exiting:
                raise RuntimeError("cannot schedule new futures after shutdown")
            if not self._threads:
                self._start()
            self._items.put(item)

    def _start(self) -> None:
        options: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
        name = f"unfazed-thread-sensitive-{next(_numbers)}"
        # A daemon, to be ended at exit: the interpreter waits for others before it tells anybody that it is exiting.
        thread = threading.Thread(target=_serve, args=(self._items,), name=name, daemon=True, **options)
        thread.start()
        self._threads = {thread}
        _watch_the_end()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the thread when it has done what it has been sent."""
        with self._lock:
            self._ended = True
            if cancel_futures:
                while not self._items.empty():
                    item = self._items.get()
                    if item is not None:  # pragma: no branch
                        item.drop(
                            ExecutorError("a call of sync_to_async()", "was cancelled: its executor was shut down")
                        )
            self._items.put(None)
        if wait:
            for thread in tuple(self._threads):
                thread.join()


def _serve(items: SimpleQueue[Item | None]) -> None:
    """Do what a lane is sent, in its thread, which must not keep the lane."""
    _serving[threading.current_thread()] = items
    while (item := items.get()) is not None:
        item.run()
        del item  # its arguments and its result are nothing to us while we wait
    del _serving[threading.current_thread()]


_numbers = itertools.count(1)
_serving: dict[threading.Thread, SimpleQueue[Item | None]] = {}
_exiting = False
_forked = False  # whether this process is a forked child, where nobody watches its end yet


def end_lanes() -> None:
    """At exit: have all lanes do what they have been sent, and wait for them, as for any executor's threads."""
    global _exiting
    _exiting = True
    serving = dict(_serving)
    for items in serving.values():
        items.put(None)
    for thread in serving:
        thread.join()


def _watch_the_end() -> None:
    """See to the lanes at the end of a forked child: those of multiprocessing and others end without `atexit`."""
    global _forked
    if _forked:
        _forked = False
        threading.Thread(target=_end_lanes_last, name="unfazed-end-of-child").start()


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
