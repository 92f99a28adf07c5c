"""Dual callables: a function and where it runs, to be called from async code and from sync code.

    _decorators.py   `in_threadpool`, `in_processpool`, `in_executor`, `in_eventloop`
    _callable.py     what they make: a coroutine function with a `.sync` twin
    _metadata.py     what that says of itself: name, docstring, annotations, options

How a call is run is not here, but in the room of its place. A file imports from those below it.
"""

from ._callable import DualCallable, DualMethod
from ._decorators import in_eventloop, in_executor, in_processpool, in_threadpool

__all__ = ("DualCallable", "DualMethod", "in_eventloop", "in_executor", "in_processpool", "in_threadpool")
