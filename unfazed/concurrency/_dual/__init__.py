"""Dual callables: functions that know where they run. Async code and sync code can both call them.

    _decorators.py   `in_threadpool`, `in_processpool`, `in_executor`, `in_eventloop`
    _generators.py   `DualIterator` and `DualContextManager`: the same for generator and context manager functions
    _callable.py     `DualCallable`, which they make: a coroutine function with a `.sync` twin
    _typing.py       what type checkers see of them
    _binding.py      what all of them have in common: they bind, copy and pickle as their function does
    _metadata.py     its name, docstring, annotations and options

The code that runs a call is in `_threads`, `_processes`, `_executors` and `_eventloops`. A file imports only from the
files below it in this list.
"""

from ._callable import DualCallable, DualMethod
from ._decorators import in_eventloop, in_executor, in_processpool, in_threadpool
from ._generators import DualContextManager, DualIterator

__all__ = (
    "DualCallable",
    "DualContextManager",
    "DualIterator",
    "DualMethod",
    "in_eventloop",
    "in_executor",
    "in_processpool",
    "in_threadpool",
)
