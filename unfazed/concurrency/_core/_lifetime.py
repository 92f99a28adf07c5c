"""What we do when the interpreter exits, and in a forked child.

`import unfazed.concurrency` imports this file, but a room is imported when a name of it is first used. So exit handlers
and fork handlers of the program find ours registered before theirs, whatever the program has used by then: at exit
theirs can make calls, and so can theirs in a forked child.

Guarantee: a room that is imported after the exit has begun to end things is ended at once.
"""

from __future__ import annotations

import atexit
import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

_at_exit: list[Callable[[], object]] = []  # the last one comes first: its room may need those that came before
_in_child: list[Callable[[], object]] = []  # the first one comes first
_exiting = False


def at_exit(end: Callable[[], object]) -> None:
    """Have the interpreter call *end* when it exits."""
    _at_exit.append(end)
    if _exiting:
        end_all()


def in_forked_child(reset: Callable[[], object]) -> None:
    """Have each forked child call *reset* before it does anything else."""
    _in_child.append(reset)


def end_all() -> None:
    """At exit: end everything."""
    global _exiting
    _exiting = True  # before we look: `at_exit` adds, and then looks at this
    try:
        end = _at_exit.pop()
    except IndexError:  # none is left
        return
    try:
        end()
    finally:  # Ctrl-C may come meanwhile
        end_all()


def _reset(number: int = 0) -> None:
    """In a forked child: reset everything, beginning with that *number*."""
    if number < len(_in_child):
        try:
            _in_child[number]()
        finally:
            _reset(number + 1)


atexit.register(end_all)
if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_reset)
