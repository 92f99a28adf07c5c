"""Finalizers that a signal handler cannot prevent.

Python runs signal handlers before the first bytecode of a function. If the signal comes while the garbage collector
looks for what it can free, that is the function of the first finalizer. What the handler raises there, such as
`KeyboardInterrupt`, no `try` can catch, and Python calls no finalizer a second time. So we have two.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from collections.abc import Callable


def finalizers(func: Callable[..., object], *args: object) -> object:
    """Return an object that calls *func* when it is garbage-collected: once, or twice, if need be in any thread.

    The object that keeps it must not be one of *args*, or known to *func*.
    """
    return [_Finalizer(func, *args), _Finalizer(func, *args)]


@final
class _Finalizer(partial[object]):
    # a `partial`, because it is made in one step
    def __del__(self) -> None:
        self()
