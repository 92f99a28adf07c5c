"""A queue that any thread may write to and one thread reads.

Guarantees, on every Python (`queue.SimpleQueue` gives them on CPython only):

- A signal handler may raise inside `put`, and a finalizer may call `put` inside `put`. The queue stays intact. If such
  an interruption delays an item, the next `put` delivers it.
- No wake-up is lost: `put` adds the item before it releases the lock.

Assumption: only one thread at a time calls `get`.
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
    """Items, and a lock that is free if there may be some."""

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
