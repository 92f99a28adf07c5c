"""`record_calls`: the calls of a block, for tests."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._core._observing import CallObserver, ObservedCall, observe

if TYPE_CHECKING:
    from collections.abc import Generator


class _Recorder(CallObserver):
    def __init__(self) -> None:
        self.calls: list[ObservedCall] = []

    def queued(self, call: ObservedCall) -> None:
        self.calls.append(call)


@contextmanager
def record_calls() -> Generator[list[ObservedCall], None, None]:
    """Record the calls that are made in a `with` block, by whatever thread: for tests.

    Returns:
        A context manager. It gives a list, to which each call is added when it is made. What is not known yet, such as
        its `outcome`, is set when it is known, and not after the block.

    Example:
        `with record_calls() as calls: client.get("/"); assert len(calls) <= 2`
    """
    recorder = _Recorder()
    with observe(recorder):
        yield recorder.calls
