"""Errors of started calls that nobody has asked for: each is logged once.

That is when the handle goes away, or at exit, after all loops have ended: later, logging may not work any more.

Assumptions: setting, `pop` and `copy` of a dict are atomic, with and without a GIL. A forked child starts with none.
"""

from __future__ import annotations

import logging
import weakref
from functools import partial
from typing import TYPE_CHECKING, Any

from .._core._lifetime import in_forked_child

if TYPE_CHECKING:
    from ._handle import Handle

_handles: dict[int, weakref.ref[Handle[Any]]] = {}  # by their ids: those whose call has raised


def note_unseen(handle: Handle[Any]) -> None:
    """Note that nobody has asked for the error of *handle* yet."""
    _handles[id(handle)] = weakref.ref(handle, partial(_handles.pop, id(handle)))


def log_unseen(name: str, error: BaseException) -> None:
    """Log the *error* of the function *name*."""
    logging.getLogger("unfazed.concurrency").error(
        "%s() was started, and nobody has asked for the error that it raised",
        name,
        exc_info=(type(error), error, error.__traceback__),
    )


def log_all_unseen() -> None:
    """At exit: log those whose handles are still there."""
    handles = [reference() for reference in _handles.copy().values()]
    for handle in filter(None, handles):
        handle._log_unseen()


in_forked_child(_handles.clear)
