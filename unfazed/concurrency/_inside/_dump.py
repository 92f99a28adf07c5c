"""`dump_calls`: what each call does, for how long, and which calls wait for which, as text.

Guarantee: it takes no lock of ours and wakes nobody. So it works when the program stands still, in a signal handler
that interrupts us, and in a finalizer.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import traceback
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING, Any, Protocol

from .._core._errors import WrongOptionError
from .._executors import ExecutorCall
from .._threads._threadcall import ThreadCall
from ._lists import live_calls
from ._parents import parents_of, suspended_frames
from ._statistics import LimiterStatistics, statistics
from ._waits import Waits

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import FrameType

    from .._core._calls import UserCall

MOST_ALIKE = 10  # calls that wait and are alike, and are shown one by one; arbitrary
MOST_FRAMES = 30  # of one stack that are shown, the innermost; arbitrary


class Writable(Protocol):
    """What `dump_calls` writes to: `sys.stderr`, an open file, an `io.StringIO`."""

    def write(self, text: str, /) -> object: ...


def dump_calls(file: Writable | None = None) -> None:
    """Write which calls run or wait, and for what, as text for people: for a program that hangs.

    For each call that runs or waits it says: the place, the function, who called it, for how long, for what it waits,
    and which call made it. It goes on with the chains of calls that wait for each other, the Python stack of each
    thread that runs a call, where each async function awaits, the worker processes, and the limiters.

    It waits for no lock of ours, and may be called from any thread, from a signal handler and in a finalizer. To have
    a signal write it:

        signal.signal(signal.SIGUSR1, lambda *_: dump_calls())

    Args:
        file: Where to write to: an object with `write`. By default `sys.stderr`.

    Raises:
        WrongOptionError: If *file* has no `write`.

    Example:
        `dump_calls()`
    """
    target: Any = sys.stderr if file is None else file
    if target is None:  # a program without a console
        return
    if not hasattr(target, "write"):
        raise WrongOptionError(
            f"dump_calls(file=...) must have a `write` method, not {target!r}: write `dump_calls(open(path, 'w'))`"
        )
    _write(target, "\n".join(_lines()) + "\n")


def _write(file: Any, text: str) -> None:
    try:
        file.write(text)
        if hasattr(file, "flush"):
            file.flush()
    except RuntimeError:  # we are in a signal handler that has interrupted a `write` to the same file
        data = text.encode("utf-8", "backslashreplace")
        while data:
            data = data[os.write(file.fileno(), data) :]


def _lines() -> Iterator[str]:
    calls = {call.number: call for call in live_calls()}
    now = time.monotonic()
    names = {each.ident or 0: f"{each.name} ({each.native_id})" for each in threading.enumerate()}
    yield f"Calls of process {os.getpid()}: {len(calls)}"
    parents = parents_of(calls.values())
    yield from _tree(calls, parents, now, names)
    yield from _chains(Waits(calls, parents))
    yield from _stacks(calls.values(), names)
    seen = statistics()
    for worker in seen.workers:
        runs = f", runs {worker.function}() for {worker.seconds:.1f} s" if worker.function else ""
        memory = f", {worker.memory / 1e6:.0f} MB" if worker.memory else ""
        yield f"Worker process {worker.pid}: {worker.state}{runs}, {worker.calls} calls{memory}"
    yield from map(_limiter, seen.limiters)


# Calls


def _tree(
    calls: dict[int, UserCall], parents: dict[UserCall, UserCall], now: float, names: dict[int, str]
) -> Iterator[str]:
    """Yield a line for each call, those that it has made below it."""
    below: dict[int, list[int]] = {}
    for number, call in calls.items():
        above = parents.get(call)
        below.setdefault(above.number if above is not None and above.number in calls else 0, []).append(number)
    alike: dict[tuple[str, str], int] = {}
    ahead = [(number, 1) for number in reversed(below.get(0, []))]
    while ahead:
        number, depth = ahead.pop()
        call = calls[number]
        if call.began is None and number not in below:
            key = (call.helper, call.name)
            alike[key] = alike.get(key, 0) + 1
            if alike[key] > MOST_ALIKE:
                continue
        yield f"{'  ' * depth}{_call(call, now, names)}"
        ahead.extend((child, depth + 1) for child in reversed(below.get(number, [])))
    for (helper, name), count in alike.items():
        if count > MOST_ALIKE:
            yield f"  and {count - MOST_ALIKE} more of {helper.format(name)}({name}) that wait"


def _call(call: UserCall, now: float, names: dict[int, str]) -> str:
    caller = f"for {call.caller}{'' if call.caller == 'handle' else ' code'}"
    if call.waiter:
        caller += f" in {names.get(call.waiter, 'a thread that has ended')}"
    return f"{call.number}: {call.helper.format(call.name)}({call.name}) {caller}: {_state(call, now, names)}"


def _state(call: UserCall, now: float, names: dict[int, str]) -> str:
    if call.began is None:
        seconds = "" if call.since is None else f" {now - call.since:.1f} s"
        return f"has waited{seconds} for {_what_it_waits_for(call)}"
    where = f" in {names[call.thread]}" if call.thread in names else ""
    state = f"has run {now - call.began:.1f} s{where}"
    abandoned = getattr(call, "abandoned", None)
    if abandoned is not None:
        state += f", abandoned {now - abandoned:.1f} s ago"
    if call.slot is not None and call.slot.waits:
        state += ", waits in a call of its own"
    return state


def _what_it_waits_for(call: UserCall) -> str:
    slot = call.slot
    if slot is not None and not slot.held and slot.limit._limiter() is not None:
        return slot.what_it_waits_for() or "a slot"
    return {
        "threadpool": "a thread",
        "processpool": "a worker process",
        "executor": "its turn in the executor",
        "eventloop": "its event loop",
    }[call.place]


def _chains(waits: Waits) -> Iterator[str]:
    for cycle in waits.cycles():
        yield f"Calls that wait for each other: {_chain(waits, [*cycle, cycle[0]])}"
    for chain, others in waits.chains():
        last = waits.calls.get(chain[-1])
        end = ", which runs" if last is not None and last.began is not None else ""
        yield f"Chain{f', like {others} more' if others else ''}: {_chain(waits, chain)}{end}"


def _chain(waits: Waits, chain: list[int]) -> str:
    text = _label(waits, chain[0])
    for number, following in pairwise(chain):
        text += f" {waits.arrow(number)} {_label(waits, following)}"
    return text


def _label(waits: Waits, number: int) -> str:
    call = waits.calls.get(number)
    return f"{number} {'which has ended' if call is None else f'{call.name}()'}"


# Stacks


def _stacks(calls: Iterable[UserCall], names: dict[int, str]) -> Iterator[str]:
    frames = sys._current_frames()
    by_thread: dict[int, list[UserCall]] = {}
    for call in calls:
        if call.thread is not None and call.began is not None:
            by_thread.setdefault(call.thread, []).append(call)
    for thread, theirs in by_thread.items():
        runs = ", ".join(f"{call.number} {call.name}()" for call in theirs[:MOST_ALIKE])
        yield f"Thread {names.get(thread, 'that has ended')}, which runs {runs}, innermost call last:"
        frame = frames.get(thread)
        if frame is not None:
            yield from _format(takewhile(_is_not_ours, traceback.walk_stack(frame)))
    for call in calls:
        awaiting = [(frame, frame.f_lineno) for frame in suspended_frames(call)][::-1]
        if awaiting:
            yield f"{call.number} {call.name}() awaits, innermost call last:"
            yield from _format(awaiting)


BEGINNINGS = (ThreadCall[Any].work.__code__, ExecutorCall[Any].work.__code__)


def _is_not_ours(step: tuple[FrameType, int]) -> bool:
    """Return whether a frame is not the one with which a thread begins a call: all below that is of no interest."""
    return step[0].f_code not in BEGINNINGS


def _format(stack: Iterable[tuple[FrameType, int]]) -> Iterator[str]:
    """Yield the lines of a stack that begins with the innermost frame."""
    innermost = [*stack][:MOST_FRAMES]
    summary = traceback.StackSummary.extract(reversed(innermost))
    for entry in traceback.format_list(summary):
        yield entry.rstrip("\n")


def _limiter(each: LimiterStatistics) -> str:
    name = f"anyio's default for {each.default_for} in {each.loop}" if each.default_for else "of yours"
    counts = {"run": each.running, "lent": each.lent, "wait": each.waiting, "let in": each.extra}
    shown = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    others = f", {each.borrowed} borrowed by anyio's own means" if each.borrowed else ""
    total = "infinite" if each.total is None else each.total
    return f"Limiter {each.limiter_id:#x}, {name}: total {total}, {shown or 'idle'}{others}"
