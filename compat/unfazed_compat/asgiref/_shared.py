"""What all wrappers share: with asgiref itself, where that is installed. The only file that knows asgiref's insides.

A program may have some wrappers from here and some from asgiref, whose own are in Django: a thread-sensitive call must
come to the same thread through either. So both look for it in the same places, and asgiref, which has no public name
for most of them, is imported where it is installed.

`threadlocal` belongs to each thread, the context variables to each context; the dictionaries change in one step each.
A forked child forgets the executors, whose threads have not come along.
"""

from __future__ import annotations

import os
import sys
import threading
import weakref
from concurrent.futures import Executor
from contextvars import Context, ContextVar, copy_context
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")

original: Any
try:
    import asgiref.sync
except ImportError:
    original = None
else:
    original = asgiref.sync


process = os.getpid()  # that has imported this

# Until 3.12, asgiref bound a wrapper to the loop that it was made in; who has an older one may count on that.
binds_to_loop = original is not None and "main_event_loop" in original.AsyncToSync.__init__.__code__.co_names


def _shared(owner: str, name: str, make: Callable[[], T]) -> T:
    """Return what asgiref has under this name, or one of our own."""
    found = getattr(getattr(original, owner, None), name, None)
    return make() if found is None else cast("T", found)


pumps: tuple[type[Executor], ...] = () if original is None else (original.CurrentThreadExecutor,)  # asgiref's own

if TYPE_CHECKING:
    PumpBase = Executor
else:  # some ask whether a thread waits for a loop by the class of `executors.current`
    PumpBase = Executor if original is None else original.CurrentThreadExecutor


class Executors:
    """Where the executor is that runs thread-sensitive calls, as its attribute `current`; asgiref has a `Local`.

    That of asgiref 3.8 changes what all contexts see that were copied from one. So each context has its own here, and
    *theirs* counts only where asgiref's own wrapper has put its own into it, or nothing was put here yet.
    """

    def __init__(self, theirs: Any = None) -> None:
        self._theirs = theirs
        self._own: ContextVar[Executor | None] = ContextVar("unfazed_current_executor")

    @property
    def current(self) -> Executor | None:
        theirs: Executor | None = getattr(self._theirs, "current", None)
        if theirs is not None and type(theirs) is PumpBase:
            return theirs
        return self._own.get(theirs)

    @current.setter
    def current(self, executor: Executor | None) -> None:
        self._own.set(executor)
        if self._theirs is not None:
            self._theirs.current = executor

    @current.deleter
    def current(self) -> None:
        self.current = None


def _isolated(theirs: Any) -> Any:
    """Return *theirs*, or what keeps contexts apart in its place."""
    theirs.current = None
    copy_context().run(setattr, theirs, "current", 1)
    leaks = theirs.current is not None
    del theirs.current
    return Executors(theirs) if leaks else theirs


threadlocal: threading.local = _shared("SyncToAsync", "threadlocal", threading.local)
thread_sensitive_context: ContextVar[Any] = _shared(
    "SyncToAsync", "thread_sensitive_context", lambda: ContextVar("thread_sensitive_context")
)
deadlock_context: ContextVar[bool] = _shared("SyncToAsync", "deadlock_context", lambda: ContextVar("deadlock_context"))
scope_executors: weakref.WeakKeyDictionary[Any, Executor] = _shared(
    "SyncToAsync", "context_to_thread_executor", weakref.WeakKeyDictionary[Any, Executor]
)
executors: Any = Context().run(_isolated, _shared("AsyncToSync", "executors", Executors))
loop_thread_executors: dict[Any, Executor] = _shared("AsyncToSync", "loop_thread_executors", dict[Any, Executor])
async_single_thread_context: ContextVar[Any] = _shared(
    "AsyncToSync", "async_single_thread_context", lambda: ContextVar("async_single_thread_context")
)
single_thread_contexts: weakref.WeakKeyDictionary[Any, Executor] = _shared(
    "AsyncToSync", "context_to_thread_executor", weakref.WeakKeyDictionary[Any, Executor]
)


def single_thread_executor() -> Executor | None:
    """Return where asgiref has thread-sensitive calls go that nothing else has a thread for."""
    return None if original is None else cast("Executor", original.SyncToAsync.single_thread_executor)


def set_single_thread_executor(executor: Executor) -> None:
    original.SyncToAsync.single_thread_executor = executor


def replace_unused_executor(executor: Executor) -> None:
    """Put *executor* in the place of asgiref's, if that has no thread, and nobody else holds it who would miss it.

    Where Python does not count references (PyPy), nobody knows the latter: asgiref's stays, with what it does at exit.
    """
    if original is None or getattr(single_thread_executor(), "_threads", True):
        return
    owner = cast("dict[str, Any]", vars(original.SyncToAsync))
    count_references: Callable[[object], int] = getattr(sys, "getrefcount", id)  # CPython's; a number is large
    if count_references(owner["single_thread_executor"]) <= 2:
        set_single_thread_executor(executor)


_WORKER_STATE = ("main_event_loop", "main_event_loop_pid", "task_context")


def worker_state() -> tuple[object, object, object]:
    """Return what the current thread knows of the call that it makes as a worker: its loop, process and calls."""
    state = threadlocal.__dict__
    return state.get("main_event_loop"), state.get("main_event_loop_pid"), state.get("task_context")


def set_worker_state(values: tuple[object, object, object]) -> None:
    state = threadlocal.__dict__
    if values[0] is None:  # some ask whether there is one
        for name in _WORKER_STATE:
            state.pop(name, None)
    else:
        state.update(zip(_WORKER_STATE, values, strict=True))


# asgiref 3.12 and later tag what is in a `Local` with the thread that it belongs to, so that a thread which merely
# inherits a context does not see it. Whoever moves a context from thread to thread on purpose has to tag it anew.
_storage: Any = getattr(sys.modules.get("asgiref.local"), "_Storage", None)
_rehome: Any = getattr(sys.modules.get("asgiref.local"), "_rehome", None)

_UNSET = object()


def mark_context(library: str | None) -> None:
    """Say in the current context, which may come from a loop on another library, which one runs here."""
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:  # pragma: no branch  it comes with trio
        sniffio.current_async_library_cvar.set(library)


def restore_context(context: Context) -> None:
    """Set in the current context what differs in *context*, but for the library that runs here."""
    before = copy_context()  # `_threads.py` says why
    library = getattr(sys.modules.get("sniffio"), "current_async_library_cvar", None)
    for variable, value in context.items():
        if variable is library:
            continue
        if _storage is not None and type(value) is _storage:
            value = _rehome(value)
        if variable.get(_UNSET) is not value:
            variable.set(value)
    del before


def run_in_context(context: Context, child: Callable[[], T]) -> T:
    """Run *child* in *context*, in the thread to which that has been moved."""
    return context.run(_settle, context, child)


def _settle(context: Context, child: Callable[[], T]) -> T:
    before = copy_context()  # as above
    mark_context(None)
    if _storage is not None:
        for variable, value in context.items():
            if type(value) is _storage:
                variable.set(_rehome(value))
    del before
    return child()


def _start_afresh() -> None:
    """After a fork: no executor's thread has come along, nor any loop."""
    for executor in (*scope_executors.values(), *loop_thread_executors.values()):
        _left_behind.append(executor)
    scope_executors.clear()
    single_thread_contexts.clear()
    loop_thread_executors.clear()


_left_behind: list[object] = []  # not to be ended: what they hold belongs to the parent

if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_start_afresh)
