"""Makes one call of a map, in a worker thread, an executor or an event loop. For worker processes see `_chunks.py`.

`run` makes one call, and notes its results and errors. It raises only if it is cancelled.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final, Protocol

from .._eventloops._limiters import thread_limiter
from .._eventloops._loops import current_loop
from .._eventloops._loopthread import submit_here
from .._eventloops._waiting import call_in, cancelled_classes

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from .._eventloops._background import EventloopPlace
    from .._executors import ExecutorPlace
    from .._processes import ProcessPlace
    from .._threads._threadpool import ThreadPlace
    from ._mapcall import How, MapCall

    Place = ThreadPlace | ProcessPlace | ExecutorPlace | EventloopPlace

DEFAULT_LIMIT: Final = 100  # how many calls have begun and are not delivered where nothing else bounds them; arbitrary


class Calls(Protocol):
    """Makes the calls of a map."""

    size: int  # how many items may travel together
    least: int  # the fewest items that are worth a call

    async def run(self, call: MapCall) -> None: ...


class ThreadCalls:
    """Makes the calls of a map in worker threads."""

    size = least = 1

    def __init__(self, func: Callable[..., Any], options: ThreadPlace, how: How) -> None:
        from .._threads._threadcall import ThreadCall

        self._make = ThreadCall
        self._func = func
        self._options = options
        self._how = how

    async def run(self, call: MapCall) -> None:
        how = self._how
        thread_call = self._make(how.helper, self._func, how.arguments(call.items[0]), {}, self._options)
        outcome = await thread_call.run()
        call.settle(outcome.read, how)


class ExecutorCalls:
    """Makes the calls of a map in an executor."""

    size = least = 1

    def __init__(self, func: Callable[..., Any], place: ExecutorPlace, how: How) -> None:
        from .._executors import ExecutorCall

        self._make: type[ExecutorCall[Any]] = ExecutorCall
        self._func = func
        self._place = place
        self._how = how

    async def run(self, call: MapCall) -> None:
        how = self._how
        executor, timeout = self._place
        try:
            make, items = self._make, how.arguments(call.items[0])
            outcome = await make(how.helper, executor, self._func, items, {}, timeout).run()
        except cancelled_classes():
            raise
        except BaseException as exc:
            call.fail(exc, how)
        else:
            call.settle(outcome.read, how)


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
            value = await self._start(self._func, how.arguments(call.items[0]))
        except cancelled_classes():
            raise
        except BaseException as exc:
            call.fail(exc, how)
        else:
            call.values.append(value)


def calls_in(place: Any, func: Callable[..., Any], how: How, chunk: int | None, *, elsewhere: bool) -> Calls:
    """Return what makes the calls of *func* in *place*. *elsewhere*: on the background event loop."""
    if place.decorator == "in_processpool":
        from ._chunks import ProcessCalls

        return ProcessCalls(func, place, how, chunk)
    if place.decorator == "in_threadpool":
        return ThreadCalls(func, place, how)
    if place.decorator == "in_executor":
        return ExecutorCalls(func, place, how)

    def start(func: Callable[..., Any], args: tuple[Any, ...]) -> Awaitable[Any]:
        if elsewhere:
            from .._eventloops._background import run_on_background

            return run_on_background(func, args, {}, how.helper)
        return call_in(submit_here, place._work(func, args, {}), func, current_loop(), helper=how.helper)

    return EventloopCalls(func, start, how)


def default_limit(place: Any) -> int:
    """Return how many calls may have begun and not been delivered, in the current loop."""
    if getattr(place, "context", None) is not None:
        return 1  # one call at a time can use it
    if place.decorator == "in_threadpool":
        default = thread_limiter
    elif place.decorator == "in_processpool":
        from .._processes._limiter import default_limiter as default
    else:
        return DEFAULT_LIMIT
    total: float = (place.limiter or default.of(current_loop())).total_tokens
    return DEFAULT_LIMIT if total == math.inf else max(1, int(total))
