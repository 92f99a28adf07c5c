"""What the tests of the map functions share: all forms of a map, and functions to map."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import anyio
from conftest import GRACE_SECONDS, Caller, wait_for_event
from map_functions import double

import unfazed.concurrency

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from concurrent.futures import Executor

PLACES = ("threadpool", "executor", "eventloop")  # processes have tests of their own: they take time to start


def mapping(place: str, *, sync: bool) -> Callable[..., Any]:
    """Return the map function of *place*."""
    found: Callable[..., Any] = getattr(unfazed.concurrency, f"map_in_{place}{'_sync' if sync else ''}")
    return found


def collect(
    caller: Caller, place: str, func: Any, *iterables: Any, executor: Executor | None = None, **options: Any
) -> Any:
    """Return all results of a map that *caller* makes."""
    sync = caller.kind != "async"
    first = () if executor is None else (executor,)

    def call() -> Any:
        results = mapping(place, sync=sync)(*first, func, *iterables, **options)
        return list(results) if sync else all_of(results)

    return caller.make(call)


async def all_of(results: AsyncIterator[Any]) -> list[Any]:
    return [result async for result in results]


async def double_async(value: Any) -> Any:
    await anyio.sleep(0)
    return value * 2


def add(a: int, b: int, c: int = 0) -> int:
    return a + b + c


async def add_async(a: int, b: int, c: int = 0) -> int:
    return a + b + c


FUNCTIONS: dict[str, dict[str, Any]] = {
    place: ({"double": double_async, "add": add_async} if place == "eventloop" else {"double": double, "add": add})
    for place in PLACES
}


async def letters() -> AsyncIterator[str]:
    for letter in "abc":
        yield letter


class Gated:
    """A function whose calls block until their item is let go, and that says which have begun."""

    def __init__(self) -> None:
        self.begun: list[Any] = []
        self.ended: list[Any] = []
        self._changed = threading.Condition()
        self._may_end: set[Any] = set()
        self._all = False

    def __call__(self, item: Any) -> Any:
        with self._changed:
            self.begun.append(item)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self._all or item in self._may_end, GRACE_SECONDS)
            self.ended.append(item)
        return item

    def let_go(self, *items: Any) -> None:
        with self._changed:
            self._may_end |= set(items)
            self._changed.notify_all()

    def let_all_go(self) -> None:
        with self._changed:
            self._all = True
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Wait until so many calls have begun."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.begun) >= count, GRACE_SECONDS), self.begun


class BlockingInput:
    """An iterator that blocks before item number *at*, and says how many items were read, and that it was closed."""

    def __init__(self, at: int, end: int = 1000) -> None:
        self.at = at
        self.end = end
        self.read = 0
        self.reached = threading.Event()
        self.may_go_on = threading.Event()
        self.closed = threading.Event()
        self.threads: set[int] = set()

    def __iter__(self) -> Iterator[int]:
        return self

    def __next__(self) -> int:
        self.threads.add(threading.get_ident())
        if self.read == self.at:
            self.reached.set()
            assert self.may_go_on.wait(GRACE_SECONDS)
        if self.read == self.end:
            raise StopIteration
        self.read += 1
        return self.read - 1

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.closed.set()

    async def wait_until_closed(self) -> None:
        await wait_for_event(self.closed)
