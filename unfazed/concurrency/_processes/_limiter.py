"""How many calls may run in worker processes at once: anyio's default process limiter, with a total of our own."""

from __future__ import annotations

import os
import sys

from anyio import to_process

from .._eventloops._limiters import DefaultLimiter


def _usable_cpus() -> int:
    """Return how many CPUs this process may use. anyio counts all those of the machine."""
    if sys.version_info >= (3, 13):  # pragma: no cover  coverage is measured on an older Python
        return os.process_cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):  # pragma: no branch  elsewhere a process may use all CPUs
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1  # pragma: no cover  not on Linux


default_limiter = DefaultLimiter(
    to_process.current_default_process_limiter, "UNFAZED_PROCESSES", os.cpu_count() or 2, _usable_cpus
)
