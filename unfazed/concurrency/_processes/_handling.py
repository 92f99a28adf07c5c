"""Handles log records from workers, with the loggers of the same name here. Knows neither workers nor calls."""

from __future__ import annotations

import logging
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

from ..._worker import logs
from .._core._references import load

if TYPE_CHECKING:
    from collections.abc import Callable


class _Here(threading.local):
    depth = 0  # how many records this thread is handling, nested ones included


_here = _Here()


def is_handling() -> bool:
    """Return whether this thread is handling a record. If so, it may hold the lock of a handler."""
    return _here.depth > 0


def handle(packed: bytes, have_handled: Callable[[Callable[[], object]], object]) -> None:
    """Give *have_handled* a function that handles a record. *have_handled* decides which thread calls it."""
    have_handled(lambda: _handle(packed))


def _handle(packed: bytes) -> None:
    _here.depth += 1
    try:
        record = logs.read(packed, load)
        logging.getLogger(record.name).handle(record)
    except BaseException as exc:  # SystemExit too: a handler's error must not end this thread
        with suppress(BaseException):
            sys.excepthook(type(exc), exc, exc.__traceback__)
    finally:
        _here.depth -= 1
