"""Which call has made which.

An observed call knows its parent, from its context. Otherwise contexts know only calls with slots, and these rules find
the rest. If several apply, the later one wins:

1. Its parent is the nearest call with a slot, or what the thread of that call waits in.
2. If a thread waits for it, its parent is the call that this thread runs.
3. If the coroutine of an async function is suspended in it, its parent is the call of that function.

So what remains unknown is the parent of a call that a child task has made, within a call of an async function.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from .._core._calls import HANDLE, AsyncCall, UserCall
from .._eventloops._waiting import call_in
from .._executors import ExecutorCall
from .._processes import _waiting
from .._threads._threadcall import ThreadCall

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from types import FrameType

HAS_GIL = getattr(sys, "_is_gil_enabled", lambda: True)()

_WHERE = {  # the coroutines of ours that wait for a call, and the variable that has it
    ThreadCall[Any]._run.__code__: "self",
    ExecutorCall[Any]._run.__code__: "self",
    _waiting._run.__code__: "call",
    call_in.__code__: "call",
}


def parents_of(calls: Collection[UserCall]) -> dict[UserCall, UserCall]:
    """Return the parents of *calls*, as far as they are known and have not ended."""
    found = {call: parent for call in calls if (parent := _by_slot(call)) is not None}
    runs = _running_by_thread(calls)
    for call in calls:
        if call.observed is None and call.waiter in runs and runs[call.waiter] is not call:
            found[call] = runs[call.waiter]
    for call in calls:
        for frame in suspended_frames(call):
            child = frame.f_locals.get(_WHERE.get(frame.f_code, ""))
            if isinstance(child, UserCall) and child is not call:
                found[child] = call
    return found


def _by_slot(call: UserCall) -> UserCall | None:
    parent = call.parent
    if parent is None or parent.slot is None or call.observed is not None or call.waiter == HANDLE:
        return parent
    for wait in parent.slot.waits:
        if isinstance(wait, AsyncCall) and wait.func is not None and wait is not call:
            return wait
    return parent


def _running_by_thread(calls: Collection[UserCall]) -> dict[int | None, UserCall]:
    """Return the call that each thread runs. In the thread of an event loop, it is the one that blocks that loop."""
    began = [call for call in calls if call.thread is not None]
    began.sort(key=lambda call: call.began or 0.0)
    return {call.thread: call for call in began if call.place != "eventloop" or _is_running(call)}


def _is_running(call: UserCall) -> bool:
    awaited = getattr(call, "awaited", None)
    return bool(getattr(awaited, "cr_running", False))


def suspended_frames(call: UserCall) -> Iterator[FrameType]:
    """Iterate over the frames of the coroutines in which *call* is suspended, the outermost first.

    There are none without a GIL: the task may go on at any moment, and its frames with it.
    """
    awaited: Any = getattr(call, "awaited", None) if HAS_GIL else None
    while awaited is not None and not getattr(awaited, "cr_running", getattr(awaited, "gi_running", True)):
        frame = getattr(awaited, "cr_frame", None) or getattr(awaited, "gi_frame", None)
        if frame is not None:
            yield frame
        awaited = getattr(awaited, "cr_await", None) or getattr(awaited, "gi_yieldfrom", None)
