"""Calls in any `concurrent.futures.Executor`: a thread of one's own, another process pool, a cluster.

    _api.py     the public functions, and the place of `in_executor`
    _call.py    one call: how it is submitted, waited for, cancelled, and what its errors become

No executor is made here, and none is shut down: they belong to the user. The pool of worker processes that we start
ourselves is in `_processes`. A file imports from those below it.
"""

from ._api import (
    ExecutorPlace,
    require_executor,
    run_in_executor,
    run_in_executor_sync,
    start_in_any_executor,
    start_in_executor,
)
from ._call import ExecutorCall, calls_in_executors

__all__ = (
    "ExecutorCall",
    "ExecutorPlace",
    "calls_in_executors",
    "require_executor",
    "run_in_executor",
    "run_in_executor_sync",
    "start_in_any_executor",
    "start_in_executor",
)
