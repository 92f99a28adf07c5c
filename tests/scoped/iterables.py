"""Iterables that record how they are used."""

from __future__ import annotations

import threading

from conftest import Gate, drop_garbage, wait_for_event


class Counter:
    """Counts, and records its position, its threads, and how often it was used and closed."""

    def __init__(self, end: int = 1000) -> None:
        self.end = end
        self.given = 0
        self.threads: set[int] = set()
        self.times_closed = 0
        self.closed = threading.Event()

    def __iter__(self) -> Counter:
        return self

    def __next__(self) -> int:
        self.threads.add(threading.get_ident())
        if self.given == self.end:
            raise StopIteration
        self.given += 1
        return self.given - 1

    def close(self) -> None:
        self.threads.add(threading.get_ident())
        self.times_closed += 1
        self.closed.set()

    async def check_closed_in_its_thread(self) -> None:
        drop_garbage()
        await wait_for_event(self.closed)
        assert self.times_closed == 1
        assert len(self.threads) == 1
        assert threading.get_ident() not in self.threads


class BlockingCounter(Counter):
    """Blocks before one of its items."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self.at = at
        self.gate = Gate()

    def __next__(self) -> int:
        if self.given == self.at:
            self.gate.wait()
        return super().__next__()
