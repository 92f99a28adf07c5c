"""Whether the garbage collector is at work in this thread.

It runs finalizers amid any code, even code that holds a lock. So a finalizer that it runs must not wait for another
thread, which may need that lock.

It says when it begins and ends, in its own thread. What notes that is written in C throughout: a signal handler that
raised in Python code would be lost there, and so would what it raised, `KeyboardInterrupt` for one.
"""

from __future__ import annotations

import gc
import threading
from functools import partial
from operator import methodcaller
from typing import Any, Final, final


@final
class _Collector(threading.local):
    is_at_work = False  # on PyPy always: nobody can tell there

    # read by the collector, and so done, when it begins and ends
    start: Any = property(methodcaller("__setattr__", "is_at_work", True))
    stop: Any = property(methodcaller("__setattr__", "is_at_work", False))


collector: Final = _Collector()
_callbacks: list[Any] = getattr(gc, "callbacks", [])
_callbacks.append(partial(getattr, collector))  # called with "start" or "stop"
