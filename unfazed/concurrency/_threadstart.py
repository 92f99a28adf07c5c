"""How every thread of ours starts: a daemon with a searchable name, in an empty context. Nothing else.

Guarantee: the thread inherits no context of whoever happens to start it, which Python 3.14's free-threaded build would
do. Assumption: *target* raises nothing.
"""

from __future__ import annotations

import sys
import threading
from contextvars import Context
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def start_thread(target: Callable[..., object], name: str, *args: object) -> threading.Thread:
    """Start a thread that calls *target* with *args*.

    Raises:
        RuntimeError: If no thread can be started: there are too many, or the interpreter is exiting.
    """
    options: dict[str, Any] = {"context": Context()} if sys.version_info >= (3, 14) else {}
    thread = threading.Thread(target=target, name=name, args=args, daemon=True, **options)
    thread.start()
    return thread
