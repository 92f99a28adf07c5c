"""How both runners end: the error of a step that comes too late, and an error that nobody waits for."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._core._errors import LoopEndedError, LoopStateError
from .._core._threadstart import show
from .._eventloops._loops import running_loop
from .._eventloops._waiting import cancelled_classes, is_only

if TYPE_CHECKING:
    from .._core._futures import OneShotFuture


def ended_error() -> LoopEndedError:
    """Return the error of a step that comes after the last one, or after the loop has ended."""
    return LoopEndedError("the event loop of this iterator or context manager has ended, or cancelled it")


def elsewhere_error() -> BaseException:
    """Return the error of whoever would wait for the end in the current loop, which is another one, or none."""
    if running_loop() is None:  # the coroutine is closed after its loop
        return GeneratorExit()
    return LoopStateError("this iterator or context manager belongs to another event loop, which alone can wait for it")


def show_error(outcome: OneShotFuture[Any]) -> None:
    """If *outcome* is an error, show it by `threading.excepthook`, unless it is the end of the loop."""
    try:
        outcome.read()
    except BaseException as exc:
        if is_only(exc, (LoopEndedError, *cancelled_classes())):
            return
        show(exc)
