"""A pool of one connection, and requests that wait for it."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import anyio
from conftest import GRACE_SECONDS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


async def until(condition: Callable[[], bool]) -> None:
    """Wait for something that a thread does, without a thread to wait in."""
    with anyio.fail_after(GRACE_SECONDS):
        while not condition():
            await anyio.sleep(0.001)


class Connections:
    """A pool of one connection, which blocks a second request until the first one gives it back."""

    def __init__(self) -> None:
        self.free = threading.Semaphore(1)
        self.wanted = threading.Event()  # by a second one
        self.broken = threading.Event()
        self.events: list[str] = []

    @contextmanager
    def connection(self, name: str) -> Iterator[str]:
        while not self.free.acquire(blocking=False):
            self.wanted.set()
            if self.broken.wait(0.01):
                raise TimeoutError("no connection")
        self.events.append(f"{name} has it")
        try:
            yield name
        finally:
            self.events.append(f"{name} gives it back")
            self.free.release()

    def query(self, name: str) -> None:
        self.events.append(f"{name} queries")


async def request(connections: Connections, library: Any, name: str, has_it: Callable[[], Any] | None) -> None:
    """Act as a request that depends on a connection: take it, and query it in a thread."""
    try:
        async with library.contextmanager_in_threadpool(connections.connection(name)):
            if has_it is not None:
                has_it()
                await until(connections.wanted.is_set)
            await library.run_in_threadpool(connections.query, name)
    except TimeoutError:
        connections.events.append(f"{name} has waited in vain")
