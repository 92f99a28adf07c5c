"""The names of `asgiref.sync`, on asyncio and on trio: `sync_to_async`, `async_to_sync`, and what belongs to them.

| promise of `asgiref.sync` 3.8.1 to 3.13 (https://github.com/django/asgiref) | kept |
|---|---|
| thread-sensitive: in the thread of the sync code around, or the context's, or one for all | yes, shared with asgiref |
| … from a task that has outlived that sync code: `RuntimeError` | no: it goes to the next of these threads |
| not thread-sensitive: in the loop's default executor, or `executor=` | yes; on trio in anyio's threads |
| `async_to_sync` in a worker thread of a loop runs in that loop | yes; in workers of anyio, trio and ours as well |
| … elsewhere it starts a loop and a thread for each call | no: each thread keeps one; `force_new_loop=True` does |
| … and ends what the call leaves behind: tasks, async generators, the default executor's work | yes |
| … and drops the loop's timers and open transports | no: they stay with the loop, for clients that live longer |
| the context goes in and its changes come back, also those in a `Local` | yes |
| exceptions come back as themselves | yes; `StopIteration` as a `RuntimeError`: asgiref hangs |
| the function sees the `except` block of its caller | yes |
| cancelled: the thread's current async call is cancelled, and may handle it | yes; without one, the next is |
| … and the thread runs on | yes; its errors are shown |
| a call that would wait for itself is a `RuntimeError` | if a loop runs in that very thread; never by mistake |
| forked children can make calls | yes, also thread-sensitive ones: asgiref hangs |
| `sync_to_async` returns coroutine functions with names and docstrings | yes, for `inspect` on every Python |
| `async_to_sync` returns objects without names | no: they have names and docstrings |
| `thread_handler`, `main_wrap`, `__call__` can be overridden and patched | yes, with the same arguments |
| executors, context variables and thread-locals of the classes | yes; but `deadlock_context` is never set |
| `ThreadSensitiveContext`, `AsyncSingleThreadContext` | yes |
| `Local` | it is asgiref's own, and needs asgiref |

`install` puts the same behaviour into the classes of `asgiref.sync`, for everyone who uses them.

The map. A file imports only from files below it.

    _install.py                 puts our methods into asgiref's classes
    _contextmanagers.py         `ThreadSensitiveContext`, `AsyncSingleThreadContext`
    _sync_to_async.py           async code calls sync code
    _choose_thread.py           … in which thread
    _async_to_sync.py           sync code calls async code
    _choose_loop.py             … in which loop
    _loopthreads.py             a thread with a loop, for each thread of sync code that calls async code
    _looprunner.py              … its loop, and the cleanup after each call
    _singlethreadexecutor.py    an executor with one thread of its own
    _currentthreadexecutor.py   the executor of a thread that waits for a loop
    _executorcall.py            how a call is sent to any executor
    _taskcall.py                a coroutine that a thread has a loop run: its states, cancellation, waiting
    _threadcall.py              a function that a task has a thread call: its states, cancellation, waiting
    _nestedtasks.py             the async calls that such a function makes, which are cancelled with it
    _threads.py                 how threads start, run calls, and meet: the rules for all files
    _futures.py                 one-shot futures
    _loops.py                   all that differs between asyncio and trio
    _shared.py                  what we share with asgiref's own wrappers
    _marks.py                   what is a coroutine function
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from . import _shared
from ._async_to_sync import AsyncToSync, async_to_sync
from ._contextmanagers import AsyncSingleThreadContext, ThreadSensitiveContext
from ._install import Installed, install, uninstall
from ._marks import iscoroutinefunction, markcoroutinefunction
from ._sync_to_async import SyncToAsync, sync_to_async

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

_restore_context = _shared.restore_context  # private in asgiref too, but others use it


def __getattr__(name: str) -> object:
    if name != "Local":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        return import_module("asgiref.local").Local
    except ImportError as exc:
        raise ImportError("Local is asgiref's own, and asgiref is not installed: `pip install asgiref`") from exc
