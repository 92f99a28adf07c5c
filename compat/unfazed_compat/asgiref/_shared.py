"""The state that our wrappers share with asgiref's own. The only file that knows asgiref's private parts.

A program may use our wrappers while others, for example Django's, are asgiref's own. A thread-sensitive call must reach
the same thread through either. So both find it in the same places: those of asgiref, if that is installed.

Who may change what: `threadlocal` belongs to each thread, a context variable to each context, and the dictionaries
change in one step each. A forked child forgets the executors, as their threads are in the parent process.
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


process = os.getpid()  # the one that has imported this

# Before 3.12, asgiref bound a wrapper to the loop in which it was made. A program with an older version may rely on it.
binds_to_loop = original is not None and "main_event_loop" in original.AsyncToSync.__init__.__code__.co_names


def _shared(owner: str, name: str, make: Callable[[], T]) -> T:
    """Return asgiref's attribute, or one of our own if it has none."""
    found = getattr(getattr(original, owner, None), name, None)
    return make() if found is None else cast("T", found)


asgirefs_current_thread_executor: tuple[type[Executor], ...]  # for `isinstance`
asgirefs_current_thread_executor = () if original is None else (original.CurrentThreadExecutor,)

if TYPE_CHECKING:
    CurrentThreadExecutorBase = Executor
else:  # programs check the class of `executors.current` to see whether a thread waits for a loop
    CurrentThreadExecutorBase = Executor if original is None else original.CurrentThreadExecutor


class Executors:
    """Has the executor of the waiting sync code in `current`. It replaces asgiref's `Local`.

    Workaround: a change in the `Local` of asgiref 3.8 is seen in all contexts that were copied from the same one. Here
    each context has a value of its own. *theirs* counts only if asgiref's own wrapper has set it, or if nothing was set
    here yet. It can go when asgiref 3.9 is the oldest version that `install` accepts.
    """

    def __init__(self, theirs: Any = None) -> None:
        self._theirs = theirs
        self._own: ContextVar[Executor | None] = ContextVar("unfazed_current_executor")

    @property
    def current(self) -> Executor | None:
        theirs: Executor | None = getattr(self._theirs, "current", None)
        if theirs is not None and type(theirs) is CurrentThreadExecutorBase:
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
    """Return *theirs*, or an `Executors` around it if a copied context changes what others see."""
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
    """Return the executor to which asgiref sends thread-sensitive calls that have no other thread."""
    return None if original is None else cast("Executor", original.SyncToAsync.single_thread_executor)


def set_single_thread_executor(executor: Executor) -> None:
    original.SyncToAsync.single_thread_executor = executor


def replace_unused_executor(executor: Executor) -> None:
    """Put *executor* in the place of asgiref's, if that has no thread yet and nobody else holds a reference to it.

    PyPy does not count references. There asgiref's own executor stays, with its behaviour at exit.
    """
    if original is None or getattr(single_thread_executor(), "_threads", True):
        return
    owner = cast("dict[str, Any]", vars(original.SyncToAsync))
    count_references: Callable[[object], int] = getattr(sys, "getrefcount", id)  # an id is a large number
    if count_references(owner["single_thread_executor"]) <= 2:
        set_single_thread_executor(executor)


_WORKER_STATE = ("main_event_loop", "main_event_loop_pid", "task_context")


def worker_state() -> tuple[object, object, object]:
    """Return what the current thread has noted of the call that it makes as a worker: loop, process, async calls."""
    state = threadlocal.__dict__
    return state.get("main_event_loop"), state.get("main_event_loop_pid"), state.get("task_context")


def set_worker_state(values: tuple[object, object, object]) -> None:
    state = threadlocal.__dict__
    if values[0] is None:  # programs ask whether there is an attribute
        for name in _WORKER_STATE:
            state.pop(name, None)
    else:
        state.update(zip(_WORKER_STATE, values, strict=True))


# asgiref 3.12 and later mark the content of a `Local` with its thread, so that a thread which only inherits a context
# does not see it. Whoever moves a context to another thread on purpose must mark the content anew.
_storage: Any = getattr(sys.modules.get("asgiref.local"), "_Storage", None)
_rehome: Any = getattr(sys.modules.get("asgiref.local"), "_rehome", None)

_UNSET = object()


def set_library(library: str | None) -> None:
    """Tell sniffio which library runs here: the current context may come from a loop of another one."""
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:  # pragma: no branch  it comes with trio
        sniffio.current_async_library_cvar.set(library)


def restore_context(context: Context) -> None:
    """Set all variables in the current context as in *context*, except the name of the library that runs here."""
    before = copy_context()  # a workaround: see `_threads.py`
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
    """Run *child* in *context*, which comes from another thread."""
    return context.run(_adapt_context, context, child)


def _adapt_context(context: Context, child: Callable[[], T]) -> T:
    before = copy_context()  # a workaround: see `_threads.py`
    set_library(None)
    if _storage is not None:
        for variable, value in context.items():
            if type(value) is _storage:
                variable.set(_rehome(value))
    del before
    return child()


def _reset_after_fork() -> None:
    _left_in_parent.extend((*scope_executors.values(), *loop_thread_executors.values()))
    scope_executors.clear()
    single_thread_contexts.clear()
    loop_thread_executors.clear()


_left_in_parent: list[object] = []  # after a fork: not to be ended, as what they hold belongs to the parent

if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_reset_after_fork)
