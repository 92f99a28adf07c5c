"""Calls in worker threads.

    _threadpool.py    the public functions, and the place of `in_threadpool`
    _standby.py       threads that sync callers reach without waking a loop in between
    _threadcall.py    one call in a worker thread: its slot, its start, its end

Nothing here keeps a thread for several calls: that is in `_scoped`. A file imports from those below it.
"""
