"""Raise in the main thread at a chosen bytecode of the package, as a signal handler may.

`raise_at(number)` counts the bytecodes that the main thread runs in files of the package, and raises `Alarm` before
that one. Tracing does what a signal cannot be made to do: to come at one exact moment, and at each of them in turn.
"""

from __future__ import annotations

import dis
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import unfazed.concurrency

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

PACKAGE = str(Path(unfazed.concurrency.__file__).parent)


class Alarm(Exception):  # noqa: N818  it is what a handler of SIGALRM raises
    """What the signal handler raises."""


class Count:
    """How many bytecodes have run, and where it was raised."""

    def __init__(self) -> None:
        self.bytecodes = 0
        self.where: str | None = None


@contextmanager
def at_bytecode(number: int, do: Callable[[], object]) -> Iterator[Count]:
    """Do something before the bytecode with this number, of those that this thread runs in the package."""
    count = Count()

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        frame.f_trace_opcodes = True
        frame.f_trace_lines = False
        if event == "opcode" and is_interruptible(frame):
            count.bytecodes += 1
            if count.bytecodes == number:
                count.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}"
                sys.settrace(None)
                do()
        return trace

    sys.settrace(trace)
    try:
        yield count
    finally:
        sys.settrace(None)


# Between these, no Python looks for signals: while it wakes a coroutine that waits, or enters or leaves a block.
UNINTERRUPTIBLE = {
    "COPY", "END_SEND", "JUMP_BACKWARD_NO_INTERRUPT", "NOP", "POP_EXCEPT", "PUSH_EXC_INFO", "RERAISE", "SEND", "SWAP",
    "YIELD_VALUE", "GET_AWAITABLE", "YIELD_FROM",
}


def is_interruptible(frame: FrameType) -> bool:
    code, at = frame.f_code.co_code, frame.f_lasti
    name = dis.opname[code[at]]
    return name not in UNINTERRUPTIBLE and not (name == "RESUME" and code[at + 1] & 3 >= 2)


def raise_alarm() -> None:
    raise Alarm
