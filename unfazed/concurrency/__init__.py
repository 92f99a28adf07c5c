"""Write a call once, say where it runs, and make it from async code or from sync code, on asyncio or on trio.

    floor 6   this file          the public names
    floor 5   _threadpool.py     a call in a worker thread
              _processpool.py    a call in a worker process
              _executor.py       a call in any executor
    floor 4   _eventloop.py      a call in an event loop; the background event loop
    floor 3   _loopthread.py     event loops in threads of their own
    floor 2   _synccalls.py      how sync code finds a loop, and waits for it
    floor 1   _loops.py          running loops as other threads see them; all that differs by library; all async waits
              _checks.py         what may be called where
    floor 0   _slots.py          who may run, who lends while it waits
              _worker.py         what runs inside a worker process
              _errors.py         every exception class, with its text

A file imports from lower floors only.
"""

from ._errors import (
    CallCancelledError,
    ExecutorError,
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
)
from ._eventloop import configure_background_eventloop, run_in_eventloop, run_in_eventloop_sync
from ._executor import run_in_executor, run_in_executor_sync
from ._loopthread import EventLoopThread
from ._processpool import run_in_processpool, run_in_processpool_sync
from ._threadpool import run_in_threadpool, run_in_threadpool_sync

__all__ = (
    "CallCancelledError",
    "EventLoopThread",
    "ExecutorError",
    "LoopEndedError",
    "LoopStartError",
    "LoopStateError",
    "LoopThreadError",
    "NotSendableError",
    "RemoteError",
    "RemoteTraceback",
    "UnfazedError",
    "WorkerProcessError",
    "WrongFunctionError",
    "configure_background_eventloop",
    "run_in_eventloop",
    "run_in_eventloop_sync",
    "run_in_executor",
    "run_in_executor_sync",
    "run_in_processpool",
    "run_in_processpool_sync",
    "run_in_threadpool",
    "run_in_threadpool_sync",
)
