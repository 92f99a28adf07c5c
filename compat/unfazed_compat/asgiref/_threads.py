"""The threads of this adapter, and the rules by which threads meet in it.

    `start_thread`   starts every thread of this adapter
    `ThreadRunner`   a thread that runs one queued call after another; it starts when there is one
    `QueuedCall`     what a `ThreadRunner` or a `CurrentThreadExecutor` can be sent

Between any two bytecodes, three things can happen: another thread runs (without a GIL, at the same time); the garbage
collector runs a finalizer on this very thread; on the main thread a signal handler runs, which may raise.

Rules, for all files of this folder:

1. No lock is held while Python code runs. So a finalizer or a signal handler that calls us never meets a taken lock.
2. Each decision is one atomic step: `list.pop` (who runs the function), `dict.setdefault` (who starts the task, what
   the outcome is, which thread runs a queue), `deque.append`, `SimpleQueue.put`. Telling others comes after the step,
   and may happen twice.
3. In some places one thread writes A and then reads B, and another writes B and then reads A. One of A and B is then a
   queue, deque, list or dictionary, so at least one of the two threads sees what the other wrote. A comment names it.
4. A collection that other threads change is never iterated over. Its `copy()`, which is one step, is.
5. The main thread leaves a call in its queue until the call has ended: an exception between `popleft` and the
   assignment would lose it. Other threads need not do that, as signal handlers run in the main thread only.
6. Cleanup can be repeated from its beginning. Whoever sees an exception in it repeats it.
7. A thread that waits for a loop of the main thread asks that loop from time to time to repeat what it may have lost:
   asyncio goes on after a signal handler has raised in a callback, and the callback is gone.

Assumption: the operations in rule 2 are atomic, and in one order for all threads, with and without a GIL (Python's
documentation, "Thread Safety Guarantees").

Workaround: until Python 3.12 the garbage collector may run inside of `ContextVar.set`. A finalizer that sets a variable
of the same context then frees the map that `set` is reading, and Python crashes. So whoever sets a variable here holds
a copy of the context meanwhile, which keeps that map alive. It can go with Python 3.11.

Limits. The rules hold for one exception at a time: a second one during the cleanup, microseconds later, may cut that
short. And nothing here can mend what happens inside of Python itself:

- A signal handler raises after a function has returned an object and before the object is assigned. The object is lost;
  a coroutine then warns that it was never awaited.
- `threading.Thread.start` is interrupted, after the thread has started or before. So a runner's thread finds out itself
  whether it is needed. A `Thread` that never started stays in `threading.enumerate()`.
- `with lock` is interrupted between the `acquire` and the block (Python 3.14). We use it in `install` only, which most
  programs call when they start. But `submit` returns a future of `concurrent.futures`, which has a lock.
- asyncio's and trio's own code is interrupted. On asyncio, a loop that runs again after that may lack a callback.
- A signal handler raises in C code that swallows exceptions: finalizers, callbacks of weak references.
- Until Python 3.12, the crash above, in a `ContextVar.set` of others whose context a finalizer changes.
- `asyncio.run` is interrupted during its own cleanup. Its loop is neither closed nor run again, and a thread that waits
  for it cannot tell that from a loop that somebody will run again.
- PyPy's `SimpleQueue` is written in Python. It may lose an item if the main thread is interrupted in it.
"""

from __future__ import annotations

import itertools
import sys
import threading
import weakref
from contextlib import suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol, final

from unfazed.concurrency import LoopEndedError

if TYPE_CHECKING:
    from collections.abc import Callable


class QueuedCall(Protocol):
    """A call that waits for a thread to make it."""

    def run(self) -> None:
        """Make the call, in the thread, unless it was failed before."""

    def fail_unless_begun(self, error: BaseException) -> None:
        """Fail the call with *error* if it has not begun. Then it never does."""

    def fail(self, error: BaseException) -> None:
        """Fail the call with *error* if it has no outcome, because its thread does not go on with it."""


_numbers = itertools.count(1)
_names: dict[str, threading.Thread] = {}  # of running threads; without a GIL, `count` may give one number twice


def new_thread(target: Callable[[], object], name: str, *, daemon: bool = True) -> threading.Thread:
    """Return a thread of ours, not started yet. It gets an empty context, and a number at the end of its name."""
    options: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}  # empty before 3.14 anyway
    return threading.Thread(target=_run, args=(target, name), name=name, daemon=daemon, **options)


def start_thread(target: Callable[[], object], name: str, *, daemon: bool = True) -> threading.Thread:
    """Start a thread of ours."""
    thread = new_thread(target, name, daemon=daemon)
    thread.start()
    return thread


def _run(target: Callable[[], object], prefix: str) -> None:
    """Number the thread and call *target*. What that raises goes to `threading.excepthook`."""
    me = threading.current_thread()
    name = f"{prefix}-{next(_numbers)}"
    while _names.setdefault(name, me) is not me:
        name = f"{prefix}-{next(_numbers)}"
    me.name = name
    try:
        target()
    finally:
        _names.pop(name, None)  # missing if this thread has forked


_generation = object()  # a new one in each forked child


@final
class ThreadRunner:
    """A thread that runs one queued call after another, until the runner is closed or *owner* is gone.

    The thread starts with the first call. It keeps the runner alive, but not the owner. If it dies, the call that it
    was running fails, and a new thread goes on with the rest.

    Args:
        owner: Its end ends the thread. Not by `__del__`, which can be interrupted before its first step: a weak
            reference calls `SimpleQueue.put`, which cannot.
        name: The thread's name, without its number.
        running: Contains the runner while it has a thread.
        on_end: Called by the thread when it ends.
    """

    __slots__ = (
        "_calls",
        "_generation",
        "_name",
        "_on_end",
        "_owner",
        "_running",
        "_serving",
        "_thread",
        "_woken_to_end",
        "closed",
        "threads",
    )

    def __init__(
        self, owner: object, name: str, running: dict[ThreadRunner, None], on_end: Callable[[], object] = int
    ) -> None:
        self._name = name
        self._running = running
        self._on_end = on_end
        # What is not a call tells the thread to check whether it should end.
        self._calls: SimpleQueue[QueuedCall | weakref.ref[Any] | None] = SimpleQueue()
        self._owner = weakref.ref(owner, self._calls.put)
        self._serving: dict[str, threading.Thread] = {}  # the thread, while it runs calls; changes in one step
        self._thread: threading.Thread | None = None  # the one started last; it may not run calls yet
        self.threads: set[threading.Thread] = set()  # for others to look at, and to join
        self.closed = False
        self._woken_to_end = False
        self._generation = _generation

    def is_of_the_parent_process(self) -> bool:
        """Return whether this process has forked since the runner was made. Its thread is in the parent then."""
        return self._generation is not _generation

    def is_this_thread(self) -> bool:
        return self._serving.get("thread") is threading.current_thread()

    def send(self, call: QueuedCall) -> None:
        """Have the thread run *call*. A closed runner still does, then ends.

        Raises a `RuntimeError` if no thread can be started. *call* has failed with it then.
        """
        self._calls.put(call)
        self.ensure_thread()

    def ensure_thread(self) -> None:
        """Start a thread if there is none.

        Race: we put a call into the queue, then look for a thread. A thread that ends says so, then looks into the
        queue. The queue orders the two.
        """
        thread = self._thread
        if self._serving or (thread is not None and thread.is_alive()):
            return
        thread = new_thread(self._serve, self._name)
        try:
            self.threads.add(thread)
            self._thread = thread  # before it is started: if that is interrupted, there is no need for a second one
            thread.start()
        except BaseException as exc:
            if not thread.is_alive():
                self.threads.discard(thread)
            if isinstance(exc, RuntimeError) and not self._serving:  # too many threads, or the interpreter is exiting
                self.fail_all(exc)
            raise

    def close(self) -> None:
        """Have the thread end after the calls that it has been sent so far."""
        if not self._woken_to_end:
            try:
                self.wake_to_end()
            except BaseException:
                self.wake_to_end()
                raise

    def wake_to_end(self) -> None:
        """Close the runner, and wake its thread to see that."""
        self.closed = True
        if not self.is_of_the_parent_process():
            self._calls.put(None)  # the thread gets this, or sees `closed` before it waits
        self._woken_to_end = True

    def fail_all(self, error: BaseException) -> None:
        """Fail all calls that have not begun."""
        while True:
            try:
                call = self._calls.get_nowait()
            except Empty:
                return
            if call is not None and not isinstance(call, weakref.ref):
                call.fail_unless_begun(error)

    def join(self, seconds: float | None = None) -> None:
        for thread in self.threads.copy():
            if thread.is_alive():  # one that another thread is about to start cannot be joined
                thread.join(seconds)

    def _serve(self) -> None:
        me = threading.current_thread()
        call: QueuedCall | None = None
        try:
            if self._serving.setdefault("thread", me) is not me:
                self.threads.discard(me)
                return  # another thread was faster
            self.threads.add(me)  # again: whoever started us may have been interrupted
            self._thread = me
            self._running[self] = None
            try:
                while True:
                    try:
                        got = self._calls.get(block=not (self.closed or self._owner() is None))
                    except Empty:
                        break
                    if got is not None and not isinstance(got, weakref.ref):
                        call = got
                        call.run()
                    got = call = None  # do not keep its arguments and its result while we wait
            finally:
                if call is not None:
                    call.fail(LoopEndedError(f"the thread that did this has died: {me.name}"))
                    del call
                self._on_end()
        finally:
            if self._serving.get("thread") is me:
                self._running.pop(self, None)
                del self._serving["thread"]
            if self._thread is me:
                self._thread = None
            if not self._calls.empty():  # its sender may have seen us alive
                with suppress(RuntimeError):  # no thread can be started; the waiting calls have failed with that
                    self.ensure_thread()


def forget_threads_after_fork() -> None:
    global _generation
    _generation = object()
    _names.clear()
