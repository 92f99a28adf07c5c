"""A queue for one thread that takes what others put there.

Guarantees, on every Python: `put` may be interrupted by a signal handler that raises, or by a finalizer that puts
something itself, and leaves the queue in order; what was put is taken at the next `put` at the latest. No lost wake-up:
an item is there before the lock is released. (`queue.SimpleQueue` promises that for CPython alone.)
Assumption: one thread at a time calls `get`.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from queue import Empty
from threading import Lock
from typing import Generic, TypeVar, final

T = TypeVar("T")


@final
class Inbox(Generic[T]):
    """Items, and a lock that is free where there may be some."""

    def __init__(self) -> None:
        self._items: deque[T] = deque()
        self._may_look = Lock()

    def put(self, item: T) -> None:
        self._items.append(item)
        with suppress(RuntimeError):  # it is free already
            self._may_look.release()

    def get(self, timeout: float = -1) -> T:
        """Return the oldest item. Raises `queue.Empty` if there is none within *timeout* seconds; -1 waits for ever."""
        while True:
            try:
                return self._items.popleft()
            except IndexError:
                if not self._may_look.acquire(timeout=timeout):
                    raise Empty from None
