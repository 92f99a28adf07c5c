"""For Django projects: `database_sync_to_async` as channels has it, and one line that moves a project.

| promise of `channels.db` 4 (https://channels.readthedocs.io/en/stable/topics/databases.html) | kept |
|---|---|
| `database_sync_to_async` is a class that makes sync functions and methods async, also as a decorator | yes |
| it takes what `sync_to_async` takes, by position as well | yes |
| stale connections are closed before and after each call, in its thread, also if the call raises | yes |
| … also inside of a transaction, which is lost; so it cannot be called in a `TestCase` | no: these are kept |
| `thread_handler` can be overridden | yes, with the same arguments |
| it is a subclass of asgiref's `SyncToAsync` | no: of `unfazed_compat.asgiref`'s, also after `install` |
| `aclose_old_connections` closes them in the thread of thread-sensitive calls | yes |
| asyncio only | no: trio as well |
| needs channels | no |

Put `"unfazed_compat.django"` first in `INSTALLED_APPS`: it calls `setup` when the project starts. If that is too late,
for example because of a monitoring agent, call `setup` where the program starts. Django is imported when it is used.

    _setup.py   `setup`, and the system check          apps.py   the app, as Django looks for it
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from unfazed_compat.asgiref import SyncToAsync, sync_to_async

from ._setup import setup

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ("DatabaseSyncToAsync", "aclose_old_connections", "database_sync_to_async", "setup")

P = ParamSpec("P")
R = TypeVar("R")


class DatabaseSyncToAsync(SyncToAsync[P, R]):
    """A sync function that uses Django's database, as an async one. Each call closes stale connections around it."""

    def thread_handler(
        self, loop: Any, exc_info: Any, task_context: Any, func: Callable[..., R], *args: Any, **kwargs: Any
    ) -> R:
        """Close stale connections and call *func*, in the thread that the connections belong to."""
        _close_old_connections()
        try:
            return super().thread_handler(loop, exc_info, task_context, func, *args, **kwargs)
        finally:
            _close_old_connections()


database_sync_to_async = DatabaseSyncToAsync


async def aclose_old_connections() -> None:
    """Close connections that are too old or broken, in the thread of thread-sensitive calls."""
    await sync_to_async(_close_old_connections)()


def _close_old_connections() -> None:
    for connection in import_module("django.db").connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()
