"""The input of a map: it is read as needed, and never ahead of that.

    what it is                                    who reads it
    --------------------------------------------  -----------------------------------------------------
    lists, ranges and the like, which never wait  the event loop
    any other iterable, which may block           a thread of its own, which holds no slot of anybody's
    async iterables                               a task of its own

The last two add items to a deque and say so by `on_items`. All else is for the loop's thread, except `stop`.

Guarantees:

- One thread or task, and one context, serve the whole iteration. It is closed there, when it is left early.
- `stop` is safe in any thread and any finalizer. It waits for nothing. After it at most one more item is read.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator
from contextlib import AsyncExitStack, aclosing, suppress
from functools import partial
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, cast

from anyio import CapacityLimiter

from .._core._checks import called, close_coroutine, in_brief, name_of
from .._core._errors import LoopEndedError, WrongFunctionError
from .._core._futures import OneShotFuture
from .._core._taskcall import TaskCall
from .._eventloops._loopthread import submit_here
from .._scoped._taskiterators import Steps
from .._scoped._taskrunner import TaskRunner
from .._scoped._threaditerators import iterate_in_threadpool
from .._scoped._threadrunner import ThreadRunner
from ._mapcall import ended_if_cancelled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextvars import Context

_EMPTY: Final[dict[Any, Any]] = {}
_CONTAINERS: Final[list[Any]] = [
    *((), [], {}, set[Any](), frozenset[Any](), "", b"", bytearray(), range(0), deque[Any](), memoryview(b"")),
    *(_EMPTY.keys(), _EMPTY.values(), _EMPTY.items()),
]
_NEVER_BLOCK: Final[set[Any]] = {
    *map(type, _CONTAINERS),
    *(type(iter(container)) for container in _CONTAINERS),
    *(type(reversed(list[Any]())), type(iter(range(1 << 80))), itertools.count, itertools.repeat),
}


def _is_async(iterable: object) -> bool:
    return hasattr(type(iterable), "__aiter__")


def require_iterables(iterables: tuple[object, ...], helper: str, *, sync: bool) -> None:
    """Refuse what cannot be iterated over: in sync code, async iterables too."""
    if not iterables:
        raise WrongFunctionError(
            f"{called(helper)} expected a function and then iterables: write `{helper}(func, items)`"
        )
    for iterable in iterables:
        kind: Any = type(iterable)
        if hasattr(kind, "__iter__") or hasattr(kind, "__getitem__"):
            continue
        if not _is_async(iterable):
            problem = f"{called(helper)} expected an iterable, got <{kind.__qualname__} object>"
            if close_coroutine(iterable) or callable(iterable):
                problem += f": write `{name_of(iterable)}(...)`, and what it gives is to be an iterable"
            raise WrongFunctionError(problem)
        if sync:
            raise WrongFunctionError(
                f"{called(helper)} expected an iterable, got an async one: write `{helper}(func, "
                f"iterate_in_eventloop_sync({in_brief(iterable)}))`, or `{helper.removesuffix('_sync')}` in async code"
            )


class Items:
    """The items of iterables that never wait. The others derive from this."""

    over: bool = False  # whether no more are read; some may be there
    error: BaseException | None = None  # what the iterable raised

    def __init__(self, iterables: tuple[Any, ...], on_items: Callable[[], object]) -> None:
        self._iterables = iterables
        self.on_items = on_items
        self.context: Context | None = None  # set before the first items are taken

    def left(self) -> int | None:
        """Return how many items are to come, if that is known."""
        return None

    if TYPE_CHECKING:

        def take(self, most: int, wanted: int) -> list[Any]:
            """Return up to *most* items that are there. If there are none, up to *wanted* are being read."""
            ...

    def is_over(self) -> bool:
        """Return whether all items have been taken."""
        return self.over

    def stop(self) -> None:
        """Read no more."""
        self.over = True

    def do_again(self) -> None:
        """Do again what a signal handler may have kept the loop from doing."""

    def is_closed(self) -> bool:
        """Return whether nothing has to be waited for after `stop`."""
        return True

    async def closed(self) -> None:
        """Wait, after `stop`, until what only a thread can close is closed."""


class ItemsAtHand(Items):
    """The items of iterables that never wait."""

    _iterators: list[Iterator[Any]] | None = None
    _items: Iterator[Any]

    def left(self) -> int | None:
        least = min((length_hint(each, -1) for each in self._iterators or ()), default=-1)
        return least if least >= 0 else None

    def take(self, most: int, wanted: int) -> list[Any]:
        items: list[Any] = []
        if not self.over:
            try:
                if self._iterators is None:
                    self._iterators = [iter(each) for each in self._iterables]
                    self._items = (
                        zip(*self._iterators, strict=False) if len(self._iterators) > 1 else self._iterators[0]
                    )
                items.extend(itertools.islice(self._items, most))
            except Exception as exc:  # a set has changed its size, say
                self.error = exc
            self.over = self.over or len(items) < most
        return items


class _ItemsFromElsewhere(Items):
    """The items of iterables that wait. A thread or a task reads them."""

    def __init__(self, iterables: tuple[Any, ...], on_items: Callable[[], object]) -> None:
        super().__init__(iterables, on_items)
        self.items: deque[Any] = deque()
        self.wanted = 0  # how many items are to be there
        self.reading: TaskCall[None] | None = None

    def take(self, most: int, wanted: int) -> list[Any]:
        items = self.items
        taken = [items.popleft() for _ in range(min(most, len(items)))]
        if not items and not self.over:
            self.wanted = wanted - len(taken)
            if self.wanted > 0 and self.reading is None:
                self.reading = TaskCall(self.read, OneShotFuture(self._note_end_of_reading))
                self.submit(self.reading)
        return taken

    if TYPE_CHECKING:

        async def read(self) -> None:
            """Read up to `wanted` items."""

        def submit(self, call: TaskCall[None]) -> None:
            """Have *call*, which reads, run where the items are read."""

    def is_over(self) -> bool:
        return self.over and not self.items

    def enough(self) -> bool:
        return self.over or len(self.items) >= self.wanted

    def add(self, item: Any) -> None:
        self.items.append(item)
        self.on_items()

    def _note_end_of_reading(self) -> None:
        reading, self.reading = self.reading, None
        try:
            if reading is not None:  # pragma: no branch  unless a signal handler raised in here
                reading.future.read()
        except BaseException as exc:
            if not self.over:
                self.end(exc)
        self.on_items()

    def do_again(self) -> None:
        reading = self.reading
        if reading is None:
            return
        if reading.future.done:
            self._note_end_of_reading()
        elif reading.go_on():
            self.submit(reading)

    def end(self, error: BaseException | None) -> None:
        """Note that there are no more items."""
        self.error = ended_if_cancelled(error)
        self.over = True


class ItemsFromThread(_ItemsFromElsewhere):
    """The items of iterables that may block."""

    _iterator: Iterator[Any] | None = None
    _runner: ThreadRunner[None] | None = None

    def submit(self, call: TaskCall[None]) -> None:
        assert self.context is not None, "set before"
        if self._runner is None:
            # A limiter of its own: a blocked input must not keep the calls from running that it may be waiting for.
            self._runner = ThreadRunner("map", self._close, CapacityLimiter(1))
        submit_here(call, self.context.copy())

    async def read(self) -> None:
        assert self._runner is not None, "made before"
        await self._runner.run(self._read_some)

    def _read_some(self) -> None:
        """Read, in the thread."""
        try:
            iterator = self._iterator
            if iterator is None:
                iterators = [iter(each) for each in self._iterables]
                iterator = zip(*iterators, strict=False) if len(iterators) > 1 else iterators[0]
                self._iterator = iterator
            self._fetch(iterator)
        except StopIteration:
            self._iterator = None  # at its end an iterator is not closed
            self.end(None)
        except BaseException as exc:
            self.end(exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next))

    def _fetch(self, iterator: Iterator[Any]) -> None:
        while not self.enough():
            self.add(next(iterator))

    def stop(self) -> None:
        super().stop()
        if self.reading is not None:
            self.reading.cancel()
        if self._runner is not None:
            self._runner.leave()

    async def closed(self) -> None:
        if self._runner is not None:
            self._runner.announce_waiter()
            await self._runner.wait_until_ended()

    def _close(self) -> None:
        """Close what was iterated over, in the thread, if it was left early."""
        if self._iterator is not None:
            for iterable in self._iterables if len(self._iterables) > 1 else (self._iterator,):
                close = getattr(cast("object", iterable), "close", None) if isinstance(iterable, Iterator) else None
                if close is not None:
                    close()
        self._iterator = None


class ItemsFromTask(_ItemsFromElsewhere):
    """The items of async iterables, perhaps together with others."""

    _runner: TaskRunner | None = None

    def __init__(self, iterables: tuple[Any, ...], on_items: Callable[[], object]) -> None:
        super().__init__(iterables, on_items)
        self._steps: Steps[Any] = Steps(iterables[0] if len(iterables) == 1 else _zipped(iterables))

    def submit(self, call: TaskCall[None]) -> None:
        assert self.context is not None, "set before"
        if self._runner is None:
            self._runner = TaskRunner(self._steps.close)
            self._runner.future.on_done = self.on_items
            submit_here(self._runner, self.context.copy())
        self._runner.take(call, self.context)

    async def read(self) -> None:
        while not self.enough():
            item = await self._steps.next()
            if self._steps.over:
                self.end(None)
            else:
                self.add(item)

    def stop(self) -> None:
        super().stop()
        if self.reading is not None:
            self.reading.cancel()
        if self._runner is not None:
            with suppress(LoopEndedError):
                self._runner.leave()

    def is_closed(self) -> bool:
        runner = self._runner
        # The last two: a signal handler has kept it from beginning, or ended it.
        return runner is None or runner.future.done or not runner.taken or runner.has_no_task()


async def _zipped(iterables: tuple[Any, ...]) -> AsyncIterator[tuple[Any, ...]]:
    """Yield tuples of the items of iterables. Some of these are async."""
    async with AsyncExitStack() as stack:
        nexts: list[Callable[[], Any]] = []
        for iterable in iterables:
            iterator: Any
            if not _is_async(iterable):
                if type(iterable) in _NEVER_BLOCK:
                    nexts.append(partial(_next_at_hand, iter(iterable)))
                    continue
                iterable = iterate_in_threadpool(iterable)
            iterator = aiter(iterable)
            if hasattr(iterator, "aclose"):
                iterator = await stack.enter_async_context(aclosing(iterator))
            nexts.append(iterator.__anext__)
        while True:
            row: list[Any] = []
            for fetch in nexts:
                try:
                    row.append(await fetch())
                except StopAsyncIteration:
                    return
            yield tuple(row)


async def _next_at_hand(iterator: Iterator[Any]) -> Any:
    for item in iterator:
        return item
    raise StopAsyncIteration


def items_of(iterables: tuple[Any, ...], on_items: Callable[[], object], *, sync: bool) -> Items:
    """Return what reads *iterables*. It calls *on_items* when there are items, from any thread."""
    if not sync and any(map(_is_async, iterables)):
        return ItemsFromTask(iterables, on_items)
    if all(type(each) in _NEVER_BLOCK for each in iterables):
        return ItemsAtHand(iterables, on_items)
    return ItemsFromThread(iterables, on_items)
