"""Worker threads that stand by for sync callers, who reach them without waking the loop.

They are anyio's threads, each held by a task of the background event loop. What they run belongs to that loop: it is
cancelled and waited for when the loop ends. The loop itself does what they cannot do: it runs the call if no slot is
free, if no thread can be started, or if the thread has just gone.

The life of a thread:

    state  how to tell         a caller takes it   its call ends  no slot is free   nobody takes it  its call is
                                                                  for its call      in time          cancelled, or its
                                                                                                     loop ends
    -----  ------------------  ------------------  -------------  ----------------  ---------------  -------------------
    idle   in `_idle`          busy                -              -                 gone             gone
    busy   in `_threads`, not  -                   idle           gone; the call    -                gone, after its
           in `_idle`                                             is handed back                     call
    gone   `_gone`             the call is handed  -              -                 -                -
                               back to the loop

Who wakes a thread: a caller, with a call, or the end of the loop, with `None`. Who wakes the caller: the thread, or the
loop if the call was handed back, or was cancelled before it began.

Guarantees:

- A call that comes when its thread goes is not lost. The thread sets `_gone` before it empties its queue, and the
  caller reads `_gone` after it has put the call there: one of the two hands the call back.
- The cancellation of a call hits no other one, though on trio it cancels the task that holds the thread.
  `ThreadCall.cancel` and giving back a slot both pass through the lock of the slots: either the thread sees the
  cancellation and takes no more calls, or `abort` sees that the call has ended.
- If a signal handler raises in a caller, at worst a thread stays idle that nobody knows. It ends by itself in time.

Assumptions: each method of `SimpleQueue`, `deque` and `set` that is called here is atomic. A forked child starts
without threads.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from contextvars import Context
from functools import partial
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Final, final

from anyio import create_task_group, sleep_forever, to_thread

from .._core._blockedloops import current_blocked_loop, refuse_if_blocked
from .._core._errors import LoopEndedError
from .._core._futures import OneShotFuture
from .._core._lifetime import in_forked_child
from .._core._taskcall import TaskCall
from .._eventloops._background import running_background, submit_to_background
from .._eventloops._bypassing import bypass, hand_back
from .._eventloops._limiters import NO_LIMIT
from .._eventloops._loopthread import loop_of, submit_to
from .._eventloops._waiting import set_from_anywhere, wait_shielded

if TYPE_CHECKING:
    from anyio import CancelScope

    from .._core._loop import Event, Loop
    from .._eventloops._loopthread import EventLoopThread
    from ._threadcall import ThreadCall

IDLE_SECONDS: Final = 10.0  # how long a thread waits for the next caller; as long as anyio's threads wait


def submit(thread_call: ThreadCall[Any], call: TaskCall[Any], context: Context) -> None:
    """Have a thread that stands by run *thread_call* for the sync caller of *call*, or else the loop run *call*."""
    owner = running_background()
    loop = None if owner is None else loop_of(owner)
    if owner is not None and loop is not None and thread_call.may_bypass(loop):
        blocked_loop = context.get(current_blocked_loop)
        if blocked_loop is not None:
            refuse_if_blocked(loop.native, call, blocked_loop)
        thread = _take_thread(owner, loop, thread_call)
        if thread is not None:
            direct_call = _DirectCall(thread_call, call, context)
            if bypass(owner, call, partial(thread.abort, direct_call)):
                thread.take(direct_call)
            else:
                hand_back(owner, call, context)
            return
    submit_to_background(call, context)


def _take_thread(owner: EventLoopThread, loop: Loop, thread_call: ThreadCall[Any]) -> _StandbyThread | None:
    """Return an idle thread of *owner*, or a new one unless there are as many as calls may run at once."""
    with suppress(IndexError):
        thread = _idle.pop()
        return thread if thread.owner is owner else None  # the loop of another owner has ended, and its threads go
    if thread_call.limiter is None or len(_threads) >= thread_call.limiter.total_tokens:
        return None
    thread = _StandbyThread(owner, loop)
    try:
        thread.start()
    except LoopEndedError:
        return None
    return thread


@final
class _DirectCall:
    """One call that a thread runs, bypassing the loop."""

    __slots__ = ("_thread_call", "call", "context")

    def __init__(self, thread_call: ThreadCall[Any], call: TaskCall[Any], context: Context) -> None:
        self._thread_call = thread_call
        self.call = call
        self.context = context

    def run(self, loop: Loop) -> bool:
        """Run the call in this thread, a worker of *loop*, if a slot is free. Return whether one was."""
        try:
            done = self.context.run(self._thread_call.run_bypassing, loop)
            if done and self._thread_call.is_prevented():  # then there is no outcome
                self.call.give_up()
            elif done:
                self.call.end_bypassing(self._thread_call.outcome)
            return done
        except BaseException as exc:  # raised in this thread by another one, and not in the function
            self.call.end(exc)
            raise
        finally:
            del self  # the traceback of an error refers to this frame, and the user may keep the error

    def is_cancelled(self) -> bool:
        """Return whether the call was cancelled while its function ran. Right only after the call has ended."""
        return self._thread_call.is_cancelled()

    def abort(self) -> bool:
        """Cancel the call, in the loop's thread: it never begins, or what it waits for is cancelled.

        Return whether its function still runs.
        """
        if self._thread_call.prevent_start():
            self.call.give_up()
            return False
        if not self._thread_call.is_cancelled():
            self._thread_call.cancel()
        assert self._thread_call.slot is not None, "taken before the function begins"
        return self._thread_call.slot.held


@final
class _StandbyThread:
    """A worker thread of the background event loop, which runs one call after another."""

    def __init__(self, owner: EventLoopThread, loop: Loop) -> None:
        self.owner = owner
        self._loop = loop
        self._calls: SimpleQueue[_DirectCall | None] = SimpleQueue()
        self._current: _DirectCall | None = None  # the one that the thread runs
        self._free: Event | None = None  # set by the thread when that has ended; made by the loop, which waits for it
        self._gone = False  # whether the thread takes no more calls
        self._scope: CancelScope | None = None  # of the task that holds the thread, on trio, once there is one
        _threads.add(self)

    def start(self) -> None:
        hold = TaskCall(self._stay, OneShotFuture(self._retire), made_elsewhere=True)
        hold.title = "unfazed: holds a thread that stands by"
        try:
            submit_to(self.owner, hold, Context())
        except BaseException:  # Ctrl-C, for one
            hold.cancel()
            self.leave()
            raise

    def take(self, direct_call: _DirectCall) -> None:
        """Have the thread run *direct_call*. From any thread; returns at once."""
        self._calls.put(direct_call)
        if self._gone:
            self._hand_back_all()

    def abort(self, direct_call: _DirectCall) -> None:
        """Cancel *direct_call*, in the loop's thread. If its function runs, the thread ends after it.

        On trio, what the function waits for in anyio's or trio's own `from_thread` is cancelled together with our task.
        Not on asyncio: anyio would no longer deliver a cancellation to what the function has it run after that, and
        would wait for it for ever.
        """
        if direct_call.abort() and self._scope is not None:
            self._scope.cancel()

    async def _stay(self) -> None:
        """Hold the thread, in a task of the loop, until the thread ends."""
        if self._loop.calls_back_in_the_task:
            async with create_task_group() as tasks:
                self._scope = tasks.cancel_scope
                tasks.start_soon(self._end_when_cancelled)
                await to_thread.run_sync(self._serve, limiter=NO_LIMIT)
                self._scope.cancel()
        else:
            await self._wait_for_thread()

    async def _end_when_cancelled(self) -> None:
        """End the thread when the task that holds it is cancelled. On trio, that task waits for it."""
        try:
            await sleep_forever()
        finally:
            self._retire()
            direct_call = self._current
            if direct_call is not None:
                direct_call.abort()

    async def _wait_for_thread(self) -> None:
        """Wait until the thread ends. If we are cancelled, wait for the function that it runs.

        A loop that ends in good order waits for the call itself. This wait is for a loop that something has broken.
        asyncio's own cancellation ignores anyio's shield.
        """
        try:
            await to_thread.run_sync(self._serve, abandon_on_cancel=True, limiter=NO_LIMIT)
            return
        except BaseException as exc:
            cancellation = exc
        self._retire()
        self._free = (
            self._loop.new_event()
        )  # before we read `_current`: if the thread ends the call after that, it sees the event
        direct_call = self._current
        try:
            if direct_call is not None:
                direct_call.abort()
                cancellation = await wait_shielded(self._free, cancellation)
            raise cancellation
        finally:
            del cancellation, direct_call

    def _serve(self) -> None:
        """Run one call after another, in the thread, until none has come for a while."""
        with suppress(Empty):
            while self._run(self._calls.get(timeout=IDLE_SECONDS)):
                _idle.append(self)

    def _run(self, direct_call: _DirectCall | None) -> bool:
        """Run *direct_call* or hand it back. Return whether to stay."""
        self._current = direct_call
        try:
            if direct_call is None:
                return False
            if not direct_call.run(self._loop):
                self._hand_back(direct_call)
                return False
            return not (self._gone or direct_call.is_cancelled())
        finally:
            self._current = None
            if self._free is not None:
                set_from_anywhere(self._loop, self._free)
            del direct_call  # as in `_DirectCall.run`

    def _retire(self) -> None:
        """Have the thread take no more calls: it was idle for long, never started, or its task has ended."""
        self.leave()
        with suppress(ValueError):
            _idle.remove(self)
        self._hand_back_all()

    def leave(self) -> None:
        """Have the thread end after its current call."""
        self._gone = True
        _threads.discard(self)

    def _hand_back_all(self) -> None:
        """Hand back what the thread has not begun, and have it end."""
        with suppress(Empty):
            while True:
                direct_call = self._calls.get_nowait()
                if direct_call is not None:
                    self._hand_back(direct_call)
        self._calls.put(None)

    def _hand_back(self, direct_call: _DirectCall) -> None:
        hand_back(self.owner, direct_call.call, direct_call.context)


_threads: set[_StandbyThread] = set()  # all that have not gone
_idle: deque[_StandbyThread] = deque()  # the one that was busy last is the last


def _reset_after_fork() -> None:
    """In a forked child: no thread is there, except perhaps the one that forked."""
    for thread in _threads.copy():
        thread.leave()
    _idle.clear()


in_forked_child(_reset_after_fork)
