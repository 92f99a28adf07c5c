"""Write a call once, say where it runs, and make it from async code or from sync code, on asyncio or on trio.

    floor 10  this file             the public names
    floor 9   _dual.py              a function and where it runs, once and for all
              _scoped/_iterators.py         iterators across the border
              _scoped/_contextmanagers.py   context managers across the border
    floor 8   _threads/_threadpool.py        a call in a worker thread
              _processes/           a call in a worker process
              _executors.py          a call in any executor
              _scoped/_runners.py             one thread, or one task, for several calls
    floor 7   _threads/_standby.py           threads that sync callers reach without waking a loop in between
    floor 6   _eventloops/_background.py         a call in an event loop; the background event loop
              _threads/_threadcall.py              what becomes of one call in a worker thread
    floor 5   _eventloops/_loopthread.py        event loops in threads of their own
    floor 4   _eventloops/_synccalls.py         how sync code finds a loop, and waits for it
    floor 3   _eventloops/_waits.py             how async code waits, whatever cancels it
    floor 2   _eventloops/_loops.py             running loops as other threads see them; all that differs by library
              _core/_contexts.py          who is in which of the contexts that users share
    floor 1   _core/_slots.py             who may run, who lends while it waits
              _core/_calls.py             calls on their way into a loop
              _core/_checks.py            what may be called where, with which options
    floor 0   _core/_threadstart.py       how threads start, and what Python keeps us from making safe
              _core/_references.py        how decorated functions are sent to one
              _core/_errors.py            every exception class, with its text

A file imports from lower floors only. What runs inside a worker process is in `unfazed._worker`, below all floors.
"""

from ._core._errors import (
    CallCancelledError,
    CallTimeoutError,
    ExecutorError,
    InUseError,
    LoopEndedError,
    LoopStartError,
    LoopStateError,
    LoopThreadError,
    NotSendableError,
    RemoteError,
    RemoteTraceback,
    UnfazedError,
    WorkerProcessError,
    WrongFunctionError,
    WrongOptionError,
)
from ._dual import DualCallable, DualMethod, in_eventloop, in_executor, in_processpool, in_threadpool
from ._eventloops._background import configure_background_eventloop, run_in_eventloop, run_in_eventloop_sync
from ._eventloops._loopthread import EventLoopThread
from ._executors import run_in_executor, run_in_executor_sync
from ._processes import (
    configure_processpool,
    run_in_processpool,
    run_in_processpool_sync,
    warm_up_processpool,
    warm_up_processpool_sync,
)
from ._scoped._contextmanagers import contextmanager_in_eventloop_sync, contextmanager_in_threadpool
from ._scoped._iterators import ThreadpoolIterator, iterate_in_eventloop_sync, iterate_in_threadpool
from ._threads._threadcall import count_abandoned_threads
from ._threads._threadpool import run_in_threadpool, run_in_threadpool_sync

__all__ = (
    "CallCancelledError",
    "CallTimeoutError",
    "DualCallable",
    "DualMethod",
    "EventLoopThread",
    "ExecutorError",
    "InUseError",
    "LoopEndedError",
    "LoopStartError",
    "LoopStateError",
    "LoopThreadError",
    "NotSendableError",
    "RemoteError",
    "RemoteTraceback",
    "ThreadpoolIterator",
    "UnfazedError",
    "WorkerProcessError",
    "WrongFunctionError",
    "WrongOptionError",
    "configure_background_eventloop",
    "configure_processpool",
    "contextmanager_in_eventloop_sync",
    "contextmanager_in_threadpool",
    "count_abandoned_threads",
    "in_eventloop",
    "in_executor",
    "in_processpool",
    "in_threadpool",
    "iterate_in_eventloop_sync",
    "iterate_in_threadpool",
    "run_in_eventloop",
    "run_in_eventloop_sync",
    "run_in_executor",
    "run_in_executor_sync",
    "run_in_processpool",
    "run_in_processpool_sync",
    "run_in_threadpool",
    "run_in_threadpool_sync",
    "warm_up_processpool",
    "warm_up_processpool_sync",
)
