"""The threads of this adapter: how they start, and how they get what they are to do.

    `start_thread`   starts every thread of this adapter
    `Worker`         a thread that does one thing after another; it starts when there is something to do
    `Item`           what a worker or a pump can be sent

How threads meet, in all files of this folder
---------------------------------------------

Three things can happen between any two bytecodes: another thread runs (without a GIL: at the same time), the garbage
collector runs a finalizer on this very thread, and on the main thread a signal handler runs, which may raise. So:

1. No lock is held here while Python code runs. A finalizer or a handler that calls us finds nothing taken.
2. Whoever decides something does it in one step that Python documents as atomic: `list.pop` (who runs the function),
   `dict.setdefault` (who starts the task, what the outcome is, whose thread serves), `deque.append`,
   `SimpleQueue.put`. To tell others of it comes after that, and may be done twice.
3. Where one thread writes A and then looks at B, and the other writes B and then looks at A, one of the two is a queue,
   deque, list or dictionary. Each operation on it comes before or after each other one, and who comes second sees all
   that the first thread wrote before. A comment at each such place says which object it is.
4. Collections that other threads change are never iterated over: their `copy()`, which is one step, is.
5. The main thread leaves what it takes out of a queue there until it is done with it: an exception between the
   `popleft` and the assignment would lose it. Other threads need not: no signal handler runs there.
6. Cleaning up can be repeated from the beginning. It is, when something is raised amid it.
7. Until Python 3.12 the collector runs within `ContextVar.set` as well. A finalizer that sets a variable in the same
   context frees the map that `set` is just reading, and Python crashes. So whoever sets one here holds a copy of the
   context meanwhile, which keeps that map.
8. A thread that waits for the main thread's loop looks after its call there from time to time: asyncio goes on after an
   exception in a callback, so that the callback is lost.

All this is for one exception at a time: another one amid the cleanup, within microseconds, may cut that short.

What we can do nothing about, as it is inside Python
----------------------------------------------------

- An object that a call has just returned is lost when a handler raises before it is assigned. A coroutine then says
  that it was never awaited.
- `threading.Thread.start` can be interrupted after the thread has started, or before; so a worker's thread finds out
  by itself whether it is needed. A `Thread` that was interrupted before stays in `threading.enumerate()`.
- `with lock` can be interrupted between the `acquire` and the block (Python 3.14). We have none but that of `install`,
  while most programs are starting. But the futures of `submit`, and of executors of others, are `concurrent.futures`'.
- asyncio's and trio's own code. On asyncio a callback that was taken off the loop's list is lost; a loop that somebody
  runs again after such an exception may lack it. `asyncio.run` cancels everything instead.
- A handler that raises in C code that swallows exceptions: finalizers, weak references' callbacks.
- Until Python 3.12, the same crash in a `ContextVar.set` of others, when a finalizer calls `async_to_sync`, or sets a
  variable by itself.
- A loop whose `asyncio.run` was interrupted amid its own cleanup is neither closed nor run again. A thread that waits
  for it cannot tell it from one that somebody will run again.
- PyPy's `SimpleQueue` is written in Python, and may lose what it was sent while the main thread is interrupted in it.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, final

from unfazed.concurrency import LoopEndedError

if TYPE_CHECKING:
    from collections.abc import Callable


class Item(Protocol):
    """What a worker or a pump can be sent."""

    def run(self) -> None:
        """Do it, in the thread, unless it has been dropped."""

    def drop(self, error: BaseException) -> None:
        """Give it *error* as its outcome, if it has not begun. Then it never does."""

    def fail(self, error: BaseException) -> None:
        """Give it *error* as its outcome, if it has none: the thread that began it does not go on with it."""


_numbers = itertools.count(1)
_names: dict[str, threading.Thread] = {}  # of the threads that run; without a GIL, `count` may give a number twice


def new_thread(target: Callable[[], object], name: str, *, daemon: bool = True) -> threading.Thread:
    """Return a thread of ours, which is not started: it runs in an empty context, and its name gets a number."""
    options: dict[str, Any] = (
        {"context": Context()} if sys.version_info >= (3, 14) else {}
    )  # before, it is empty anyway
    return threading.Thread(target=_run, args=(target, name), name=name, daemon=daemon, **options)


def start_thread(target: Callable[[], object], name: str, *, daemon: bool = True) -> threading.Thread:
    """Start a thread of ours."""
    thread = new_thread(target, name, daemon=daemon)
    thread.start()
    return thread


def _run(target: Callable[[], object], prefix: str) -> None:
    """Do what a thread is for. What it raises goes to `threading.excepthook`."""
    me = threading.current_thread()
    name = f"{prefix}-{next(_numbers)}"
    while _names.setdefault(name, me) is not me:
        name = f"{prefix}-{next(_numbers)}"
    me.name = name
    try:
        target()
    finally:
        _names.pop(name, None)  # not there if this thread has forked


_era = object()  # another one in each forked child


@final
class Worker:
    """A thread that does one thing after another, until it is closed or *owner* is gone.

    It starts with the first thing. The thread keeps the worker alive, and not the owner. A `__del__` of the owner could
    be interrupted before its first step; so what the owner's end calls is `SimpleQueue.put`. While there is a thread,
    the worker is in *registry*; *on_end* is called at its end. If it dies, what it was doing fails, and another thread
    goes on with the rest.
    """

    __slots__ = (
        "_era",
        "_items",
        "_name",
        "_on_end",
        "_owner",
        "_registry",
        "_serving",
        "_thread",
        "_told",
        "closed",
        "threads",
    )

    def __init__(
        self, owner: object, name: str, registry: dict[Worker, None], on_end: Callable[[], object] = int
    ) -> None:
        self._name = name
        self._registry = registry
        self._on_end = on_end
        self._items: SimpleQueue[Item | weakref.ref[Any] | None] = SimpleQueue()  # no item: look whether it is to end
        self._owner = weakref.ref(owner, self._items.put)
        self._serving: dict[str, threading.Thread] = {}  # the thread, if there is one; changes in one step
        self._thread: threading.Thread | None = None  # that was started last, and may not serve yet
        self.threads: set[threading.Thread] = set()  # for others to look at, and to wait for
        self.closed = False
        self._told = False  # whether the thread has been told so
        self._era = _era

    def is_left_behind(self) -> bool:
        """Return whether this process has forked since, and the thread has not come along."""
        return self._era is not _era

    def is_this_thread(self) -> bool:
        return self._serving.get("thread") is threading.current_thread()

    def send(self, item: Item) -> None:
        """Have the thread do *item*. When it is closed, it still does, and ends.

        Raises a `RuntimeError` if no thread can be started; then *item* has been dropped.
        """
        self._items.put(item)
        self.look_after()

    def look_after(self) -> None:
        """See to it that there is a thread.

        A thread that ends says so and then looks at the queue; we put something into it and then look for a thread.
        """
        thread = self._thread
        if self._serving or (thread is not None and thread.is_alive()):
            return
        thread = new_thread(self._serve, self._name)
        try:
            self.threads.add(thread)
            thread.start()
            self._thread = thread
        except BaseException as exc:
            if not thread.is_alive():
                self.threads.discard(thread)
            if isinstance(exc, RuntimeError) and not self._serving:  # there are too many, or the interpreter is exiting
                self.drop_all(exc)
            raise

    def close(self) -> None:
        """Have the thread end after what it has been sent so far."""
        if not self._told:
            try:
                self.tell()
            except BaseException:
                self.tell()
                raise

    def tell(self) -> None:
        """Close it, and wake its thread for that."""
        self.closed = True
        if not self.is_left_behind():
            self._items.put(None)  # it reads this, or sees `closed` before it waits
        self._told = True

    def drop_all(self, error: BaseException) -> None:
        """Drop what the thread has not begun."""
        while True:
            try:
                item = self._items.get_nowait()
            except Empty:
                return
            if item is not None and not isinstance(item, weakref.ref):
                item.drop(error)

    def join(self, seconds: float | None = None) -> None:
        for thread in self.threads.copy():
            if thread.is_alive():  # not one that another thread is just starting
                thread.join(seconds)

    def _serve(self) -> None:
        me = threading.current_thread()
        item: Item | None = None
        try:
            if self._serving.setdefault("thread", me) is not me:
                self.threads.discard(me)
                return  # another one was faster
            self.threads.add(me)  # again: who has started us may have been interrupted
            self._thread = me
            self._registry[self] = None
            try:
                while True:
                    try:
                        got = self._items.get(block=not (self.closed or self._owner() is None))
                    except Empty:
                        break
                    if got is not None and not isinstance(got, weakref.ref):
                        item = got
                        item.run()
                    got = item = None  # its arguments and its result are nothing to us while we wait
            finally:
                if item is not None:
                    item.fail(LoopEndedError(f"the thread that did this has died: {me.name}"))
                    del item
                self._on_end()
        finally:
            if self._serving.get("thread") is me:
                self._registry.pop(self, None)
                del self._serving["thread"]
            if self._thread is me:
                self._thread = None
            if not self._items.empty():  # who sent it may have counted on us
                self.look_after()


def start_new_era() -> None:
    """Forget all threads, after a fork: they have not come along."""
    global _era
    _era = object()
    _names.clear()
