"""asgiref's names, on asyncio and on trio: `sync_to_async`, `async_to_sync`, and all that goes with them.

| promise of `asgiref.sync` 3.8.1 to 3.13 (https://github.com/django/asgiref) | kept |
|---|---|
| thread-sensitive: in the thread of the sync code around, or the context's, or one for all | yes, shared with asgiref |
| … of a task that has outlived that sync code: `RuntimeError` | no: it goes to the next of these threads |
| not thread-sensitive: in the loop's default executor, or `executor=` | yes; on trio in anyio's threads |
| `async_to_sync` in a worker of a loop runs there | yes; in workers of anyio, trio and ours as well |
| … elsewhere it starts a loop and a thread for each call | no: each thread keeps one; `force_new_loop=True` does |
| … and ends what the call leaves over: tasks, async generators, the default executor's work | yes |
| … and drops the loop's timers and open transports | no: they stay with the loop, for clients that last |
| contexts go in and come back, and what is in a `Local` | yes |
| exceptions come back as themselves | yes; `StopIteration` as a `RuntimeError`: asgiref hangs |
| `except` blocks of the caller are seen within | yes |
| cancelled: the async call that the thread makes is cancelled, and may see to it | yes; or else its next one |
| … and the thread runs on | yes; its errors are shown |
| what would wait for itself is a `RuntimeError` | if a loop runs in that very thread; never by mistake |
| forked children can call | yes, and thread-sensitive as well: asgiref hangs |
| `sync_to_async` gives coroutine functions with names and docstrings | yes, for `inspect` on every Python |
| `async_to_sync` gives nameless objects | no: they have names and docstrings as well |
| `thread_handler`, `main_wrap`, `__call__` can be overridden and patched | yes, with the same arguments |
| executors, context variables and thread-locals of the classes | yes; but `deadlock_context` is never set |
| `ThreadSensitiveContext`, `AsyncSingleThreadContext` | yes |
| `Local` | it is asgiref's own, and needs it |

`install` puts the same behind the classes of `asgiref.sync`, for everyone who uses them.

    _install.py         behind asgiref's own classes
    _sync_to_async.py   async code calls sync code          _async_to_sync.py   sync code calls async code
    _jobs.py            how a task waits for a thread       _calls.py           how a thread waits for a task
    _executors.py       the threads of sync code            _companions.py      the loops of sync code
    _loops.py           all that differs by library         _marks.py           what is a coroutine function
    _shared.py          what is asgiref's as well
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from . import _shared
from ._async_to_sync import AsyncSingleThreadContext, AsyncToSync, async_to_sync
from ._install import Installed, install, uninstall
from ._marks import iscoroutinefunction, markcoroutinefunction
from ._sync_to_async import SyncToAsync, ThreadSensitiveContext, sync_to_async

if TYPE_CHECKING:
    from asgiref.local import Local as Local

__all__ = (
    "AsyncSingleThreadContext",
    "AsyncToSync",
    "Installed",
    "SyncToAsync",
    "ThreadSensitiveContext",
    "async_to_sync",
    "install",
    "iscoroutinefunction",
    "markcoroutinefunction",
    "sync_to_async",
    "uninstall",
)

_restore_context = _shared.restore_context  # some who move contexts themselves use it


def __getattr__(name: str) -> object:
    if name != "Local":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module("asgiref.local").Local
    except ImportError as exc:
        raise ImportError("Local is asgiref's own, and asgiref is not installed: `pip install asgiref`") from exc
