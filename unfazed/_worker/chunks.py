"""Several items in one call: what `map_in_processpool` sends to a worker process, and what comes back.

Guarantee: the items before one that fails have their results, and those after it have not been begun.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, final

from . import call

if TYPE_CHECKING:
    from collections.abc import Callable

LOOKS = 64  # how often to look at the clock during a chunk; arbitrary


@final
class ChunkResults(call.Results):
    """The results of the first items of a chunk, those that failed, and how many seconds the function ran.

    A pickled outcome, as `call.run` sends it, says how an item failed. Its value is `None`.
    """

    def __init__(self, keep_going: bool) -> None:
        self.values: list[Any] = []
        self.failures: dict[int, bytes] = {}
        self.seconds = 0.0
        self._keep_going = keep_going

    def fail(self, outcome: bytes) -> None:
        """Say that the next item failed."""
        self.failures[len(self.values)] = outcome
        self.values.append(None)

    def without_unsendable(self) -> ChunkResults:
        """Return the same with failures instead of values that cannot be pickled."""
        sendable = ChunkResults(self._keep_going)
        sendable.seconds = self.seconds
        for number, value in enumerate(self.values):
            problem = call.unsendable(value)
            outcome = self.failures.get(number, problem)
            if outcome is None:
                sendable.values.append(value)
                continue
            sendable.fail(outcome)
            if problem is not None and not self._keep_going:
                break
        return sendable


@final
class Chunk:
    """Calls *func* for each item of a list, in a worker process.

    Args:
        func: The function.
        name: Its name, for messages.
        star: Whether each item is a tuple of arguments.
        keep_going: Whether to go on after an item that fails with an `Exception`.
        seconds: After how many seconds not to begin another item; `None` for no limit.
    """

    def __init__(
        self, func: Callable[..., Any], name: str, star: bool, keep_going: bool, seconds: float | None
    ) -> None:
        self.__qualname__ = name
        self._func = func
        self._star = star
        self._keep_going = keep_going
        self._seconds = seconds

    def __call__(self, items: list[Any]) -> ChunkResults:
        """Call the function for *items*, in the worker."""
        results = ChunkResults(self._keep_going)
        values = results.values
        begin = time.perf_counter()
        stride = len(items) if self._seconds is None else max(1, len(items) // LOOKS)
        while len(values) < len(items):
            raised = self._run_and_catch(items[len(values) : len(values) + stride], values)
            if raised is not None:
                results.fail(call.packed_error(raised))
                if not (self._keep_going and isinstance(raised, Exception)):
                    break
            if self._seconds is not None and time.perf_counter() - begin > self._seconds:
                break
        results.seconds = time.perf_counter() - begin
        return results

    def _run_and_catch(self, items: list[Any], values: list[Any]) -> BaseException | None:
        raised: BaseException | None = None
        try:
            self._run(items, values)
        except BaseException as exc:
            raised = _without_our_frames(exc)
        try:
            return raised  # not in the `except`: there, PyPy may put the old traceback back
        finally:
            del raised  # its traceback leads here

    def _run(self, items: list[Any], values: list[Any]) -> None:
        func, append = self._func, values.append
        if self._star:
            for item in items:
                append(func(*item))
        else:
            for item in items:
                append(func(item))


def _without_our_frames(exc: BaseException) -> BaseException:
    frames = exc.__traceback__
    for _ in range(2):
        frames = frames and frames.tb_next
    return exc.with_traceback(frames)
