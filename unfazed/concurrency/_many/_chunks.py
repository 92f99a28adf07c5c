"""Several items in one call in a worker process: how many, and what comes back.

The rule for how many, unless the caller says it. The first calls have one item each. Each call tells how long its items
took, and how large they and their results were as pickles. From that follows how many items make a call of
`CALL_SECONDS`, and not more than `CALL_BYTES`. A call has at most `GROWTH` times as many items as the one before. A
worker that has been busy for `MOST_SECONDS` begins no further item: the rest comes back, and goes to other workers. So
it does no harm if later items take much longer. Towards the end calls get fewer items, so that all workers have
something to do (`MapRun._size`). If the items of a call cannot be sent together, each gets its own (`MapCall.most`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Final

from ..._worker.chunks import Chunk, ChunkResults
from .._core._errors import NotSendableError
from .._core._references import to_send
from .._eventloops._waiting import cancelled_classes
from .._processes._call import ProcessCall
from .._processes._packing import OFF_LOOP_BYTES, read_payload, to_error
from .._processes._waiting import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._processes._call import CallOptions
    from ._mapcall import How, MapCall

CALL_SECONDS: Final = 0.1  # a call itself takes about a thousandth of that; otherwise arbitrary
MOST_SECONDS: Final = 2 * CALL_SECONDS
# about twice as much as a call itself takes; if it is much more, one worker makes the last call alone; else arbitrary
LEAST_SECONDS: Final = 0.0004
CALL_BYTES: Final = OFF_LOOP_BYTES  # up to this size the event loop itself makes and reads pickles
GROWTH: Final = 1024  # one round less than with 64; otherwise arbitrary


class ProcessCalls:
    """Makes the calls of a map in worker processes."""

    def __init__(self, func: Callable[..., Any], options: CallOptions, how: How, chunk: int | None) -> None:
        self._func = func
        self._options = options
        self._how = how
        if chunk is None and (options.timeout is not None or options.max_calls is not None):
            chunk = 1  # these count calls, and the user means items
        self._adapts = chunk is None
        self.size = self.least = chunk or 1
        innermost: Any = func
        while isinstance(innermost, partial):
            innermost = innermost.func
        name = getattr(innermost, "__qualname__", type(innermost).__qualname__)
        seconds = MOST_SECONDS if self._adapts else None
        self._chunk = Chunk(to_send(func), name, how.star, how.keep_going, seconds)

    async def run(self, call: MapCall) -> None:
        """Make *call*. Note its results, its error, and what has not begun."""
        if self.size == 1 and not self._adapts:
            await self._run_one(call)
        else:
            await self._run_chunk(call)

    async def _run_one(self, call: MapCall) -> None:
        how = self._how
        try:
            arguments = how.arguments(call.items[0])
            value = await run(ProcessCall(how.helper, self._func, arguments, {}, self._options, at_once=True))
        except cancelled_classes():
            raise
        except BaseException as exc:
            call.fail(exc, how)
        else:
            call.values.append(value)

    async def _run_chunk(self, call: MapCall) -> None:
        try:
            process_call = ProcessCall(self._how.helper, self._chunk, (call.items,), {}, self._options, at_once=True)
            results = await run(process_call)
        except cancelled_classes():
            raise
        except BaseException as exc:
            self._fail(call, exc)
            return
        self._note(call, results)
        if self._adapts:
            self._learn(len(results.values), results.seconds, process_call.transferred())

    def _note(self, call: MapCall, results: ChunkResults) -> None:
        done = len(results.values)
        if not results.failures:
            call.values = results.values
        for number in sorted(results.failures):
            call.values += results.values[len(call.values) : number]
            payload = read_payload(results.failures[number], self._func)
            call.fail(to_error(payload, self._func, self._how.helper), self._how)
            if call.error is not None:
                return
        call.values += results.values[len(call.values) :]
        if done < len(call.items):
            call.rest = call.split(done)

    def _fail(self, call: MapCall, error: BaseException) -> None:
        """Note that the call as a whole has failed."""
        if len(call.items) > 1 and isinstance(error, NotSendableError) and error.has_not_begun:
            call.rest = call.split(0)  # one after the other, to see which of them it is
            call.rest.most = 1
            return
        call.fail(error, self._how)
        while call.error is None and len(call.values) < len(call.items):  # they are lost as well
            call.values.append(error)

    def _learn(self, items: int, seconds: float, size: int) -> None:
        most = min(items * GROWTH, items * CALL_BYTES // max(size, 1))
        rate = items / max(seconds, 1e-9)
        self.size = max(1, min(most, int(rate * CALL_SECONDS)))
        self.least = max(1, min(self.size, int(rate * LEAST_SECONDS)))
