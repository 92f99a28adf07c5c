"""Iterators and context managers across the border between sync and async code.

    _contextmanagers.py   context managers
    _iterators.py         iterators
    _runners.py           the thread, or the task, that each keeps for its whole life

A call that ends at once is not here, but in `_threads` and `_eventloops`. A file imports from those below it.
"""
