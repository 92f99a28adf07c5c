"""Iterators and context managers across the border between sync and async code.

    _contextmanagers.py   context managers
    _threaditerators.py   sync iterables for async code
    _feed.py              the items of a sync iterable, between its thread and its consumer
    _taskiterators.py     async iterables for sync code
    _threadrunner.py      the worker thread that each keeps for its whole life, for async code
    _taskrunner.py        the task that each keeps for its whole life, for sync code
    _endings.py           what both runners say at their end
    _collector.py         whether the garbage collector is at work in this thread

A call that keeps nothing is not here, but in `_threads` and `_eventloops`. A file imports from those below it.
"""
