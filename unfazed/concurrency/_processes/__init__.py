"""Calls in worker processes: the pool, the workers' parent end, their output and log records.

    _api.py        the public functions, and the place of `in_processpool`
    _waiting.py    how async code and sync code wait for a call
    _call.py       one call: what is sent, how far it has come, what it comes to
    _pool.py       which workers there are, and who gets them; exit and fork
    _worker.py     a worker and its thread
    _starting.py   how a process starts, is killed, and has ended
    _packing.py    calls as bytes, and what they came to
    _handling.py   their log records
    _output.py     what they print
    _inbox.py      a queue for one thread

What runs inside a worker is in `unfazed._worker`. No event loop runs here, and none is kept. Nothing here knows threads
that run functions, executors, or the background event loop, but for who limits the calls of sync code.
"""

from ._api import (
    ProcessPlace,
    configure_processpool,
    run_in_processpool,
    run_in_processpool_sync,
    warm_up_processpool,
    warm_up_processpool_sync,
)

__all__ = (
    "ProcessPlace",
    "configure_processpool",
    "run_in_processpool",
    "run_in_processpool_sync",
    "warm_up_processpool",
    "warm_up_processpool_sync",
)
