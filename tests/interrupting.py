"""Have something happen before one bytecode of the package: a signal handler raises, or a finalizer runs.

A signal cannot be made to come at one exact moment. Tracing can: `Steps` counts the bytecodes that the main thread runs
in a folder of ours, and calls *act* before the one with the number *when*, if Python itself would look for signals
there. A test tries each number in turn, or every so-manieth: `numbers` says which. All are tried with
`UNFAZED_TEST_EVERY_STEP=1 pytest tests/test_interrupted.py tests/test_compat_asgiref_interrupted.py`.
"""

from __future__ import annotations

import dis
import itertools
import os
import random
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

EVERY_STEP = bool(os.environ.get("UNFAZED_TEST_EVERY_STEP"))
TOOL = 4  # one of those that Python leaves to programs


class Alarm(Exception):  # noqa: N818
    """What a signal handler raises."""


def raise_alarm() -> None:
    raise Alarm


class Steps:
    """Have *act* be called before the bytecode number *when* that is executed in files of *folder*."""

    def __init__(self, act: Callable[[], object], when: int, folder: str, *, everywhere: bool = False) -> None:
        self._act = act
        self._when = when
        self._folder = folder
        self._everywhere = everywhere  # whether threads that start meanwhile count as well
        self._count = itertools.count(1)
        self.where = ""
        self.reached = False

    def __enter__(self) -> Steps:
        self._thread = threading.get_ident()
        if sys.version_info >= (3, 12):  # where `settrace` misses the bytecodes of what is called for the first time
            monitoring = sys.monitoring
            monitoring.use_tool_id(TOOL, "steps")
            monitoring.register_callback(TOOL, monitoring.events.INSTRUCTION, self._monitor)
            monitoring.set_events(TOOL, monitoring.events.INSTRUCTION)
        else:
            self._before = sys.gettrace()
            if self._everywhere:
                threading.settrace(self._trace)
            sys.settrace(self._trace)
        return self

    def __exit__(self, *_: object) -> None:
        if sys.version_info >= (3, 12):
            sys.monitoring.set_events(TOOL, 0)
            sys.monitoring.free_tool_id(TOOL)
        else:
            sys.settrace(self._before)
            if self._everywhere:
                threading.settrace(self._before)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(self._folder):
            return None
        if event == "call":
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode":
            self._step(frame)
        return self._trace

    if sys.version_info >= (3, 12):

        def _monitor(self, code: CodeType, _: int) -> object:
            if not code.co_filename.startswith(self._folder):
                return sys.monitoring.DISABLE
            if self._everywhere or threading.get_ident() == self._thread:
                self._step(sys._getframe(1))
            return None

    def _step(self, frame: FrameType) -> None:
        if self.reached or not is_interruptible(frame) or next(self._count) != self._when:
            return
        self.reached = True
        code = frame.f_code
        self.where = f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name} at {frame.f_lasti}"
        self._act()


# Amid these no Python looks for signals: a block or an `except` begins or ends, a coroutine that waits is woken. Where
# a function returns, no `try` of its own can catch anything any more.
UNINTERRUPTIBLE = {
    "COPY",
    "END_SEND",
    "GET_AWAITABLE",
    "JUMP_BACKWARD_NO_INTERRUPT",
    "NOP",
    "POP_EXCEPT",
    "PUSH_EXC_INFO",
    "RERAISE",
    "RETURN_CONST",
    "RETURN_VALUE",
    "SEND",
    "SWAP",
    "YIELD_FROM",
    "YIELD_VALUE",
}


def is_interruptible(frame: FrameType) -> bool:
    """Return whether Python itself can be interrupted here. Before the first step of a function some versions crash."""
    code, at = frame.f_code.co_code, frame.f_lasti
    name = dis.opname[code[at]]
    if name in UNINTERRUPTIBLE or (name == "RESUME" and code[at + 1] & 3 >= 2):  # after an `await`
        return False
    return sys.version_info < (3, 11) or any(dis.opname[opcode] == "RESUME" for opcode in code[: at + 2 : 2])


def numbers(operation: Callable[[], object], folder: str, steps: int, *, everywhere: bool = False) -> Iterator[int]:
    """Yield the numbers of about *steps* of the bytecodes that *operation* runs, or of all, if it is asked for that."""
    counting = Steps(int, 0, folder, everywhere=everywhere)
    with counting:
        operation()
    total = next(counting._count)
    seed = random.randrange(10**6)
    print(f"{total} bytecodes, seed {seed}")  # noqa: T201
    every = 1 if EVERY_STEP else max(1, total // steps)
    yield from range(1 + random.Random(seed).randrange(every), total, every)
