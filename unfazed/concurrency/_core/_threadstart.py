"""How this package starts threads and shows their errors, and what a signal handler can break in spite of us.

All our threads start here. They are daemons: at exit, the interpreter would wait for others before it calls any exit
function. They run in an empty context: otherwise a thread would inherit, and keep alive, the context of its first
caller. Free-threaded builds do that since Python 3.14, the others with `-X thread_inherit_context=1`.

A signal handler can raise inside Python itself. There we cannot help:

- In `Thread.start`, the thread may have started or not. Whoever needs one of our threads asks again, and gets one.
- In `Lock.__enter__`, since Python 3.14, the lock stays taken. So we never use `with` for a lock that others wait for
  where a signal handler can run; `_slots.py` shows what we do instead.
- It may raise a second time while its first exception passes through our code.
- After a helper of ours has returned, and before the caller has its result, `with` and `for` do not see the object.
- In the code of the event loop or of anyio, asyncio logs the error, and trio ends its run. Threads that wait for that
  loop still get a result or an error: they check once a second.
"""

from __future__ import annotations

import sys
import threading
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
    """Make such a thread without starting it, for callers that must have the object first."""
    options: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
    return Thread(target=target, name=name, args=args, daemon=True, **options)


def show(exc: BaseException) -> None:
    """Show *exc* by `threading.excepthook`, as what a thread raises that nobody waits for."""
    threading.excepthook(threading.ExceptHookArgs((type(exc), exc, exc.__traceback__, threading.current_thread())))
