"""Calls of an event loop that a worker thread runs, bypassing the loop, which cancels and awaits them all the same.

The worker that runs them, and when, is in `_threads/_standby.py`; the states of such a call are in `_taskcall.py`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core._errors import LoopEndedError

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from .._core._taskcall import TaskCall
    from ._loopthread import EventLoopThread


def bypass(loop_thread: EventLoopThread, call: TaskCall[Any], abort: Callable[[], object]) -> bool:
    """Add *call* to the calls of *loop_thread*, though a worker thread will run it instead of the loop.

    The worker finishes the call, or `hand_back` gives it to the loop. A loop that ends waits for that. If the call is
    cancelled, for example because the loop ends, *abort* is called in the loop's thread.

    Return `False` if the loop has begun to end. It may not have seen the call, so hand the call back.
    """
    assert loop_thread._loop is not None, "it has been running"
    call.bypass(loop_thread._loop, abort, loop_thread._forget_bypassing)
    loop_thread._calls.add(call)
    return loop_thread.is_running()  # after we added the call: `_closed` is set before `_serve` looks at the calls


def hand_back(loop_thread: EventLoopThread, call: TaskCall[Any], context: Context) -> None:
    """Have the loop of *loop_thread* run a call that was to bypass it. From any thread. Return at once."""
    assert loop_thread._loop is not None, "it has been running"

    def submit() -> None:
        if call.future.done:  # it has been cancelled
            return
        call.hand_back()
        try:
            loop_thread._submit(call, context)
        except Exception as exc:  # for example, the loop has ended
            call.end(exc)

    try:
        loop_thread._loop.post(submit)  # not here: the loop's thread may be cancelling the call
    except LoopEndedError:
        submit()
