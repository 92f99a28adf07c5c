"""Calls in worker processes, as the parent process sees them.

    _api.py        the public functions, and the place of `in_processpool`
    _started.py    a call that has a handle
    _waiting.py    how async code and sync code wait for a call
    _limiter.py    the default limiter
    _call.py       one call: its states, what it sends and what comes back
    _pool.py       the pool: which workers there are, and which call gets which; exit and fork
    _worker.py     a worker process and the thread that belongs to it
    _child.py      how a process starts, is killed and ends
    _packing.py    pickling calls, unpickling results and errors
    _handling.py   log records from workers
    _output.py     what workers print
    _inbox.py      a queue that one thread reads

The code that runs inside a worker is in `unfazed._worker`. No event loop runs here, and none is kept. Nothing here
knows worker threads or executors. The background event loop has the limiter for the calls of sync code, and runs the
calls that are started.
"""

from ._api import (
    ProcessPlace,
    configure_processpool,
    run_in_processpool,
    run_in_processpool_sync,
    start_in_process,
    start_in_processpool,
    warm_up_processpool,
    warm_up_processpool_sync,
)

__all__ = (
    "ProcessPlace",
    "configure_processpool",
    "run_in_processpool",
    "run_in_processpool_sync",
    "start_in_process",
    "start_in_processpool",
    "warm_up_processpool",
    "warm_up_processpool_sync",
)
