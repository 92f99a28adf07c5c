"""Worker threads that stand by for sync callers, who reach them without waking a loop in between.

They are anyio's, held by the background event loop: what they run belongs to that loop, as in any other worker of it,
and is cancelled and waited for at its end. Who wakes a thread: a caller, with an errand. Who wakes the caller: the
thread; or the loop, where Ctrl-C or the loop's end has cancelled what had not begun. What no thread can do, the loop
does: where no slot is free, no thread can start, or the thread has just gone.

Guarantees and assumptions: putting into a `SimpleQueue`, taking from it, and each step on a deque or a set, are atomic.
So an errand that comes as the thread goes is seen by one of them: the thread says that it is gone before it empties
its queue, and the caller looks after it has put the errand there. A signal handler that raises in a caller leaves
behind an idle thread at worst, which ends by itself. A forked child starts with none.
"""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from contextvars import Context
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, final

from anyio import Event, to_thread

from .._core._errors import LoopEndedError
from .._core._futures import OneShotFuture
from .._core._taskcall import TaskCall
from .._eventloops._background import running_background, submit_to_background
from .._eventloops._limiters import NO_LIMIT
from .._eventloops._waiting import set_from_anywhere, wait_shielded

if TYPE_CHECKING:
    from .._core._loop import Loop
    from .._eventloops._loopthread import EventLoopThread
    from ._threadcall import ThreadCall

IDLE_SECONDS: Final = 10.0  # how long a thread waits for the next caller, as long as anyio's own wait


def submit(thread_call: ThreadCall[Any], call: TaskCall[Any], context: Context) -> None:
    """Have a thread that stands by run *job*, for the sync caller of *call*; or else the loop run *call*."""
    owner = running_background()
    loop = owner and owner._loop
    if owner is not None and loop is not None and thread_call.may_go_past(loop):
        thread = _thread_of(owner, loop, thread_call)
        if thread is not None:
            direct_call = _DirectCall(thread_call, call, context, owner, loop)
            owner._let_past(call, direct_call.abort)
            if owner.is_running():  # else its end may not have seen the call, which we added before we looked
                thread.take(direct_call)
            else:
                direct_call.pass_on()
            return
    submit_to_background(call, context)


def _thread_of(owner: EventLoopThread, loop: Loop, thread_call: ThreadCall[Any]) -> _Thread | None:
    """Return a thread of *owner* that does nothing else, unless there are too many."""
    with suppress(IndexError):
        thread = _idle.pop()
        return thread if thread.loop is loop else None  # that of a loop which has just ended goes with it
    if thread_call.limiter is None or len(_threads) >= thread_call.limiter.total_tokens:  # a crowd has come in at once
        return None
    thread = _Thread(loop)
    try:
        thread.start(owner)
    except LoopEndedError:
        return None
    return thread


@final
class _DirectCall:
    """One call, which a thread is to run past the loop."""

    __slots__ = ("_call", "_context", "_loop", "_owner", "_thread_call")

    def __init__(
        self, thread_call: ThreadCall[Any], call: TaskCall[Any], context: Context, owner: EventLoopThread, loop: Loop
    ) -> None:
        self._thread_call = thread_call
        self._call = call
        self._context = context
        self._owner = owner
        self._loop = loop

    def run(self) -> bool:
        """Run the call in this thread, if a slot is free. Return whether one was; if not, the loop waits for it."""
        try:
            done = self._context.run(self._thread_call.run_here, self._loop)
            if done:
                self._call.end_past(self._thread_call.outcome)
            else:
                self.pass_on()
            return done
        except BaseException as exc:  # which somebody raised in this thread from another one, and not in the function
            self._call.end(exc)
            raise
        finally:
            del self  # the traceback of an error, which the user may keep, leads here

    def abort(self) -> None:
        """Cancel what the thread waits for; or if it has not begun, have it never do so. In the loop's thread."""
        if self._thread_call.never_begin():
            self._call.give_up()
        elif not self._thread_call.is_cancelled():
            self._thread_call.cancel()

    def pass_on(self) -> None:
        """Have the loop run the call after all. From any thread."""
        try:
            self._loop.post(self._come_back)  # in one thread with what may cancel the call
        except LoopEndedError:
            self._come_back()

    def _come_back(self) -> None:
        if self._call.future.done:  # it has been cancelled
            return
        self._call.come_back()
        self._owner._forget_past(self._call)
        try:
            self._owner._submit(self._call, self._context)
        except Exception as exc:  # it has ended, for one
            self._call.end(exc)


@final
class _Thread:
    """A worker thread of the background event loop, which runs one errand after another."""

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._errands: SimpleQueue[_DirectCall | None] = SimpleQueue()
        self._current: _DirectCall | None = None  # the one that the thread runs
        self._free: Event | None = None  # set by the thread at the end of that, where the loop waits for it
        self._gone = False  # whether the thread is to take no more
        _threads.add(self)

    def start(self, owner: EventLoopThread) -> None:
        hold = TaskCall(self._stay, OneShotFuture(self._retire), made_elsewhere=True)
        try:
            owner._submit(hold, Context())
        except BaseException:  # Ctrl-C, for one
            hold.cancel()
            self.leave()
            raise

    def take(self, direct_call: _DirectCall) -> None:
        """Have the thread run *errand*. From any thread; returns at once."""
        self._errands.put(direct_call)
        if self._gone:
            self._pass_on()

    async def _stay(self) -> None:
        """Hold the thread, in a task of the loop. Cancelled with the loop, wait for the function that it runs.

        An ordered end of the loop waits for the call itself; this is for one that something in the loop has forced.
        """
        try:
            await to_thread.run_sync(self._serve, abandon_on_cancel=True, limiter=NO_LIMIT)
            return
        except BaseException as exc:
            cancellation = exc
        self._retire()
        self._free = Event()
        direct_call = self._current
        try:
            if direct_call is not None:  # or else the thread sees the event
                direct_call.abort()
                cancellation = await wait_shielded(self._free, cancellation)
            raise cancellation
        finally:
            del cancellation, direct_call

    def _serve(self) -> None:
        """Run one errand after another, in the thread, until none has come for a while."""
        with suppress(Empty):
            while self._run(self._errands.get(timeout=IDLE_SECONDS)):
                _idle.append(self)

    def _run(self, direct_call: _DirectCall | None) -> bool:
        """Run *errand*, and return whether to stay."""
        self._current = direct_call
        try:
            return direct_call is not None and direct_call.run() and not self._gone
        finally:
            self._current = None
            if self._free is not None:
                set_from_anywhere(self.loop, self._free)
            del direct_call  # as in `_DirectCall.run`

    def _retire(self) -> None:
        """Have the thread take no more: it was idle for long, has never started, or nothing holds it any more."""
        self.leave()
        with suppress(ValueError):
            _idle.remove(self)
        self._pass_on()

    def leave(self) -> None:
        """Have the thread end after what it does."""
        self._gone = True
        _threads.discard(self)

    def _pass_on(self) -> None:
        """Have the loop run what the thread has not begun, and the thread end."""
        with suppress(Empty):
            while True:
                direct_call = self._errands.get_nowait()
                if direct_call is not None:
                    direct_call.pass_on()
        self._errands.put(None)


_threads: set[_Thread] = set()  # all of them, until they go
_idle: deque[_Thread] = deque()  # the last one was busy last


def _reset_after_fork() -> None:
    """After a fork: no thread has come along, but perhaps the one that has forked."""
    for thread in _threads.copy():
        thread.leave()
    _idle.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_reset_after_fork)
