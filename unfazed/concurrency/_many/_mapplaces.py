"""Makes one call of a map, in a worker thread, an executor or an event loop. For worker processes see `_chunks.py`.

`run` makes one call, and notes its results and errors. It raises only if it is cancelled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Protocol

from .._eventloops._background import EventloopPlace, run_in_eventloop
from .._eventloops._limiters import thread_limiter
from .._eventloops._loops import current_loop
from .._eventloops._loopthread import submit_here
from .._eventloops._waiting import call_in, cancelled_classes
from .._executors import ExecutorCall, ExecutorPlace, refuse_coroutine
from .._processes import ProcessPlace
from .._processes._limit import default_limiter
from .._threads._threadcall import ThreadCall
from .._threads._threadpool import ThreadPlace
from ._chunks import ProcessCalls

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from ._mapcall import How, MapCall

    Place = ThreadPlace | ProcessPlace | ExecutorPlace | EventloopPlace

DEFAULT_LIMIT: Final = 100  # how many calls have begun and are not delivered where nothing else bounds them; arbitrary


class Calls(Protocol):
    """Makes the calls of a map."""

    size: int  # how many items may travel together
    least: int  # from how few items on a call is worth it

    async def run(self, call: MapCall) -> None: ...


class ThreadCalls:
    """Makes the calls of a map in worker threads."""

    size = least = 1

    def __init__(self, func: Callable[..., Any], options: ThreadPlace, how: How) -> None:
        self._func = func
        self._options = options
        self._how = how

    async def run(self, call: MapCall) -> None:
        how = self._how
        thread_call = ThreadCall(how.helper, self._func, how.arguments(call.items[0]), {}, self._options)
        outcome = await thread_call.run()
        call.settle(outcome.read, how)


class ExecutorCalls:
    """Makes the calls of a map in an executor."""

    size = least = 1

    def __init__(self, func: Callable[..., Any], place: ExecutorPlace, how: How) -> None:
        self._func = func
        self._place = place
        self._how = how

    async def run(self, call: MapCall) -> None:
        how = self._how
        executor, timeout = self._place
        try:
            outcome = await ExecutorCall(executor, self._func, how.arguments(call.items[0]), {}, timeout).run()
        except cancelled_classes():
            raise
        except BaseException as exc:
            call.fail(exc, how)
        else:
            call.settle(lambda: refuse_coroutine(outcome.read(), self._func, how.helper), how)


class EventloopCalls:
    """Makes the calls of a map in an event loop: each in a task of its own, where *start* puts it."""

    size = least = 1

    def __init__(
        self, func: Callable[..., Any], start: Callable[[Callable[..., Any], tuple[Any, ...]], Awaitable[Any]], how: How
    ) -> None:
        self._func = func
        self._start = start
        self._how = how

    async def run(self, call: MapCall) -> None:
        how = self._how
        try:
            call.values.append(await self._start(self._func, how.arguments(call.items[0])))
        except cancelled_classes():
            raise
        except BaseException as exc:
            call.fail(exc, how)


def _in_background(func: Callable[..., Any], args: tuple[Any, ...]) -> Awaitable[Any]:
    return run_in_eventloop(func, *args)


def calls_in(place: Place, func: Callable[..., Any], how: How, chunk: int | None, *, elsewhere: bool) -> Calls:
    """Return what makes the calls of *func* in *place*. *elsewhere*: on the background event loop."""
    if isinstance(place, ProcessPlace):
        return ProcessCalls(func, place, how, chunk)
    if isinstance(place, ThreadPlace):
        return ThreadCalls(func, place, how)
    if isinstance(place, ExecutorPlace):
        return ExecutorCalls(func, place, how)
    if elsewhere:
        return EventloopCalls(func, _in_background, how)

    def start_here(func: Callable[..., Any], args: tuple[Any, ...]) -> Awaitable[Any]:
        return call_in(submit_here, place._work(func, args, {}), func, current_loop())

    return EventloopCalls(func, start_here, how)


def default_limit(place: Place) -> int:
    """Return how many calls may have begun and not been delivered, in the current loop."""
    if isinstance(place, (ThreadPlace, EventloopPlace)) and place.context is not None:
        return 1  # one call at a time can use it
    if isinstance(place, (ThreadPlace, ProcessPlace)):
        limiters = thread_limiter if isinstance(place, ThreadPlace) else default_limiter
        total = (place.limiter or limiters.of(current_loop())).total_tokens
        return DEFAULT_LIMIT if total == math.inf else max(1, int(total))
    return DEFAULT_LIMIT
