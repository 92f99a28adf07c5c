"""Whether the garbage collector is at work in this thread.

It runs finalizers amid any code, even code that holds a lock. So a finalizer that it runs must not wait for another
thread, which may need that lock.

It says when it begins and ends, in its own thread. What notes that is written in C throughout: what a signal handler
raised in Python code there, such as `KeyboardInterrupt`, would be lost.
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
# Called with "start" or "stop". The first: if another callback removes itself, CPython leaves out the one after it.
_callbacks.insert(0, partial(getattr, collector))
