"""Context managers that record how they are used."""

from __future__ import annotations

import threading
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.lowlevel
from conftest import Gate

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Manager(AbstractContextManager["Manager", "bool | None"]):
    """Records when it is entered and exited, where, and with what."""

    def __init__(self, *, suppress: bool = False) -> None:
        self.suppress = suppress
        self.threads: list[int] = []
        self.times_entered = 0
        self.left_with: list[BaseException | None] = []
        self.left = threading.Event()

    def __enter__(self) -> Manager:
        self.threads.append(threading.get_ident())
        self.times_entered += 1
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
        self.threads.append(threading.get_ident())
        self.left_with.append(exc)
        self.left.set()
        return self.suppress


class GatedManager(Manager):
    """Waits at a gate, on entering and on exiting."""

    def __init__(self, *, on_enter: bool = False, on_exit: bool = False) -> None:
        super().__init__()
        self.on_enter = Gate()
        self.on_exit = Gate()
        if not on_enter:
            self.on_enter.opened.set()
        if not on_exit:
            self.on_exit.opened.set()

    def __enter__(self) -> Manager:
        self.on_enter.wait()
        return super().__enter__()

    def __exit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
        self.on_exit.wait()
        return super().__exit__(exc_type, exc, tb)


def is_cancellation(error: object) -> bool:
    return type(error).__name__ in ("CancelledError", "Cancelled")


class AsyncManager(AbstractAsyncContextManager["AsyncManager", "bool | None"]):
    """Records when it is entered and exited, in which task and thread, and with what."""

    def __init__(self, *, suppress: bool = False) -> None:
        self.suppress = suppress
        self.tasks: list[int] = []
        self.threads: list[int] = []
        self.times_entered = 0
        self.left_with: list[BaseException | None] = []

    def note(self) -> None:
        self.tasks.append(anyio.get_current_task().id)
        self.threads.append(threading.get_ident())

    async def __aenter__(self) -> AsyncManager:
        self.note()
        await anyio.lowlevel.checkpoint()
        self.times_entered += 1
        return self

    async def __aexit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
        self.note()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        self.left_with.append(exc)
        return self.suppress


@asynccontextmanager
async def task_group() -> AsyncIterator[anyio.abc.TaskGroup]:
    async with anyio.create_task_group() as tasks:
        yield tasks
