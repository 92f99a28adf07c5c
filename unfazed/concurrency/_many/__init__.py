"""Many calls at once.

    _callgroup.py   `CallGroup`: started calls that end together

The code that starts and runs a call is in `_threads`, `_processes`, `_executors` and `_eventloops`; there is `Handle`,
too. A file imports only from the files below it in this list.
"""

from ._callgroup import CallGroup

__all__ = ("CallGroup",)
