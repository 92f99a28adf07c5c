"""Calls in worker threads.

    _threadpool.py    the public functions, and the place of `in_threadpool`
    _standby.py       threads that sync callers reach without waking the loop
    _cancellation.py  `check_cancelled`
    _threadcall.py    one call in a worker thread: how it gets its slot, begins and ends

A thread that is kept for several steps, as for an iterator, is in `_scoped`. A file imports from those below it.
"""
