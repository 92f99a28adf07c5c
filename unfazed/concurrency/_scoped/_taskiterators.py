"""Async iterables for sync code: each is iterated over in a task of its own."""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

from .._core._checks import in_brief, name_of, wrong_source
from .._core._errors import LoopEndedError, LoopThreadError
from .._eventloops._background import submit_to_background
from .._eventloops._synccalls import Interrupts, call_from_sync
from ._collector import collector
from ._taskrunner import TaskRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Generator

    from .._eventloops._synccalls import Submit

T = TypeVar("T")


class Steps(Generic[T]):
    """An async iterable in its task, step by step."""

    def __init__(self, aiterable: AsyncIterable[T]) -> None:
        self._aiterable = aiterable
        self._aiterator: AsyncIterator[T] | None = None
        self.over = False

    async def next(self) -> T:
        """Return the next item. At the end, set `over` instead."""
        if self._aiterator is None:
            self._aiterator = aiter(self._aiterable)
        try:
            return await anext(self._aiterator)
        except StopAsyncIteration:
            self._aiterator = None  # at its end an iterator is not closed
            self.over = True
            return cast("T", None)

    async def close(self, cancellation: BaseException | None = None) -> None:
        """Close the iterator, if it was left early or cancelled."""
        aclose = getattr(self._aiterator, "aclose", None)
        self._aiterator = None
        if aclose is not None:
            await aclose()


def iterate_in_eventloop_sync(aiterable: AsyncIterable[T], /) -> Generator[T, None, None]:
    """Iterate over an async iterable from sync code.

    The whole iteration runs in one task, and in one context: a copy of the one in which its first step is taken. If a
    worker thread takes the first step, it runs in the loop of that worker, otherwise on the background event loop.
    Later steps may come from other threads, one at a time.

    Args:
        aiterable: An async iterable, an async iterator, or what an async generator function returned.

    Cancellation:
        As for `run_in_eventloop_sync`: in a worker thread a step is cancelled with the task that is waiting for the
        thread, elsewhere by Ctrl-C. If the iteration is left early, by `break` or an exception, the iterator is closed
        at once (its `aclose()` is awaited, if there is one), in its task. That is waited for, unless the garbage
        collector ends the iteration, or an event loop is running in this thread.

    Returns:
        A generator, with `close`.

    Raises:
        WrongFunctionError: If *aiterable* is not an async iterable.
        LoopThreadError: From a step, if an event loop is running in this thread: the step would block it.
        LoopStartError: From a step, if the background event loop cannot start.
        LoopEndedError: From a step, if the event loop has ended, for example at exit.
        BaseException: From a step, whatever the iterable raised there; `StopIteration` as a `RuntimeError`.

    Example:
        `for row in iterate_in_eventloop_sync(connection.cursor("select 1")): ...`
    """
    if not hasattr(type(aiterable), "__aiter__"):
        helper = "iterate_in_eventloop_sync"
        raise wrong_source(aiterable, helper, "an async iterable", "for ... in", "__iter__")
    items: Any = iterate_steps(Steps(aiterable), aiterable)
    items.__name__ = "iterate_in_eventloop_sync"
    items.__qualname__ = f"{items.__name__}({in_brief(aiterable)})"
    return cast("Generator[T, None, None]", items)


def iterate_in_task(aiterable: AsyncIterable[T], func: object, helper: str, instead: str) -> Generator[T, None, None]:
    """Do the same for a dual: errors name its function *func*, as in `call_from_sync`."""
    if not hasattr(type(aiterable), "__aiter__"):
        raise wrong_source(aiterable, helper.format(name_of(func)), "an async iterable", "for ... in", "__iter__")
    items: Any = iterate_steps(Steps(aiterable), func, helper=helper, instead=instead)
    items.__name__ = helper.format(getattr(func, "__name__", ""))
    items.__qualname__ = f"{helper.format(name_of(func))}(...)"
    return cast("Generator[T, None, None]", items)


def iterate_steps(
    steps: Steps[T],
    source: object,
    submit: Submit = submit_to_background,
    *,
    always: bool = False,
    helper: str = "iterate_in_eventloop_sync",
    instead: str = "async for ... in {}(...)",
) -> Generator[T, None, None]:
    """Iterate in one task, which `call_from_sync` starts with *submit* and *always*."""
    runner = TaskRunner(steps.close, helper.format(name_of(source)))
    interrupts = Interrupts()
    try:
        try:
            options: dict[str, Any] = {"always": always, "interrupts": interrupts}
            call_from_sync(runner.start, source, helper, instead, submit, counted=False, **options)
            while True:
                try:
                    item = call_from_sync(
                        steps.next, source, helper, instead, runner.take, always=True, interrupts=interrupts
                    )
                except LoopEndedError:
                    if runner.outcome is not None:  # a scope was cancelled that the iterator had entered
                        runner.outcome.read()
                    raise
                if steps.over:
                    return
                yield item
        finally:
            if not runner.over:  # at the end of the interpreter it is over, and our imports may be gone
                with suppress(LoopEndedError):  # it has been closed, or was never started
                    try:
                        if interrupts.is_over or collector.is_at_work:
                            runner.leave()
                        else:
                            finish = partial(runner.finish, steps.close)
                            call_from_sync(
                                finish, source, helper, instead, runner.take, always=True, interrupts=interrupts
                            )
                    except LoopThreadError:  # we are dropped or closed in the thread of a loop
                        runner.leave()
    finally:
        if not runner.over:  # again: a signal handler may have raised in the first `finally`
            with suppress(LoopEndedError):
                runner.leave()
