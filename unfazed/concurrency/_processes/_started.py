"""A call in a worker process that was started: what its handle may do with it, from any thread.

Its caller never sends it. It begins when a worker claims it, unless its handle prevents that first.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, final

from .._eventloops._background import submit_to_background
from .._eventloops._handle import start_call
from .._eventloops._started import explained
from ._waiting import run

if TYPE_CHECKING:
    from .._eventloops._handle import Handle, Join
    from ._call import ProcessCall


@final
class StartedCall:
    """A `ProcessCall` as its handle sees it."""

    def __init__(self, call: ProcessCall) -> None:
        self._call = call
        call.expect_handle()

    @property
    def stops_when_cancelled(self) -> bool:
        """Whether a call that runs is killed when it is cancelled."""
        return self._call.options.kill_on_cancel

    def prevent_start(self) -> bool:
        """Keep the call from beginning. Return `False` if a worker has it."""
        return self._call.prevent_start()

    def is_prevented(self) -> bool:
        return self._call.is_prevented()

    def has_begun(self) -> bool:
        return self._call.has_begun()

    def tell_cancelled(self) -> None:
        """Do nothing: a function in a process can only be killed."""


def start(call: ProcessCall, kwargs: dict[str, Any], join: Join | None) -> Handle[Any]:
    """Start *call* on the background event loop, and have its handle join a group first."""
    read = explained(call.helper, call.func, kwargs)
    work = partial(run, call)
    return start_call(StartedCall(call), work, call.func, submit_to_background, read, join, user_call=call)
