"""How this package starts its threads, and what Python keeps us from making safe. Nothing else.

All threads start here: as daemons, because the interpreter would wait for others before it tells anybody that it exits,
and in an empty context. Otherwise a thread would inherit, and keep, the context of whoever happened to call first:
Python's free-threaded builds do that from 3.14 on, the others with `-X thread_inherit_context=1`.

What a signal handler that raises can still break, because it raises inside of Python itself:

- in `Thread.start`: the thread may have started, or not. Whoever needs one of our threads asks again, and gets one.
- in `Lock.__enter__` on 3.14 and later: the lock stays taken. So no lock of ours that others wait for is taken by
  `with` where a signal handler can run; `_slots.py` shows the way.
- by raising again while its first exception is still on its way through us.
- after a helper of ours has returned, before the caller has bound its result: `with` and `for` do not see the object.
- in the event loop's own code, or in anyio's: asyncio logs what was raised there, trio ends its run. Threads that wait
  for that loop get an answer or an error all the same: they look once a second.
"""

from __future__ import annotations

import sys
from contextvars import Context
from threading import Thread
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def start_thread(target: Callable[..., object], name: str, *args: object) -> Thread:
    """Start a daemon thread that calls *target*, in an empty context.

    Raises:
        RuntimeError: If no thread can be started: there are too many, the interpreter is exiting, or this is a
            subinterpreter without daemon threads.
    """
    thread = new_thread(target, name, *args)
    thread.start()
    return thread


def new_thread(target: Callable[..., object], name: str, *args: object) -> Thread:
    """Make such a thread, to be started by whoever must know it before."""
    options: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
    return Thread(target=target, name=name, args=args, daemon=True, **options)
