"""Interrupt the package before one exact bytecode, as a signal handler that raises or a finalizer would.

A test cannot send a signal at one exact moment. But it can trace: `Steps` counts the bytecodes that the main thread
runs in one folder, and calls *act* before bytecode number *when*. It counts only bytecodes where Python itself could
run a signal handler. `numbers` yields the numbers to try: by default a sample. This command tries all:
`UNFAZED_TEST_EVERY_STEP=1 pytest tests/core/test_interrupted.py tests/compat/test_asgiref_interrupted.py`.
"""

from __future__ import annotations

import dis
import functools
import itertools
import os
import random
import signal
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import CodeType, FrameType

EVERY_STEP = bool(os.environ.get("UNFAZED_TEST_EVERY_STEP"))
# for modules that trace bytecodes
TRACES = (
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals"),
    pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs the bytecodes of CPython"),
    pytest.mark.timeout(3600 if EVERY_STEP else 120),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),  # lost before its assignment
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),  # raised in `__del__`
)
TOOL = 4  # an id without a predefined use


class Alarm(Exception):  # noqa: N818
    """What a signal handler raises."""


def raise_alarm() -> None:
    raise Alarm


class Steps:
    """Call *act* before the bytecode number *when* that runs in files of *folder*."""

    def __init__(self, act: Callable[[], object], when: int, folder: str, *, everywhere: bool = False) -> None:
        self._act = act
        self._when = when
        self._folder = folder
        self._everywhere = everywhere  # whether other threads count too
        self._count = itertools.count(1)
        self.where = ""
        self.reached = False

    def __enter__(self) -> Steps:
        self._thread = threading.get_ident()
        if sys.version_info >= (3, 12):  # `settrace` misses bytecodes of first calls
            monitoring = sys.monitoring
            monitoring.use_tool_id(TOOL, "steps")
            monitoring.register_callback(TOOL, monitoring.events.INSTRUCTION, self._monitor)
            monitoring.register_callback(TOOL, monitoring.events.PY_START, self._monitor_start)
            monitoring.set_events(TOOL, monitoring.events.INSTRUCTION | monitoring.events.PY_START)
        else:
            self._before = sys.gettrace()
            self._before_of_threads = threading.gettrace()  # coverage's
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
                threading.settrace(self._before_of_threads)

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
            return self._monitor_frame(code, sys._getframe(1))

        def _monitor_start(self, code: CodeType, _: int) -> object:
            """Step at the start of a finalizer. That of another function is as good as the call, in its caller."""
            return self._monitor_frame(code, sys._getframe(1)) if code.co_name == "__del__" else sys.monitoring.DISABLE

        def _monitor_frame(self, code: CodeType, frame: FrameType) -> object:
            if not code.co_filename.startswith(self._folder):
                return sys.monitoring.DISABLE
            if self._everywhere or threading.get_ident() == self._thread:
                self._step(frame)
            return None

    def _step(self, frame: FrameType) -> None:
        if self.reached or not is_interruptible(frame) or next(self._count) != self._when:
            return
        self.reached = True
        code = frame.f_code
        self.where = f"{Path(code.co_filename).name}:{frame.f_lineno} in {code.co_name} at {frame.f_lasti}"
        self._act()


# No Python version handles signals at these bytecodes: they begin or end a block or an `except`, or resume a waiting
# coroutine. At a return, no `try` of the function could catch the exception any more.
UNINTERRUPTIBLE = {
    "COPY",
    "END_SEND",
    "GET_AWAITABLE",
    "JUMP_BACKWARD_NO_INTERRUPT",
    "NOP",
    "NOT_TAKEN",
    "POP_EXCEPT",
    "PUSH_EXC_INFO",
    "RERAISE",
    "RETURN_CONST",
    "RETURN_VALUE",
    "SEND",
    "SWAP",
    "WITH_EXCEPT_START",
    "YIELD_FROM",
    "YIELD_VALUE",
}


def is_interruptible(frame: FrameType) -> bool:
    """Return whether Python could run a signal handler here. Some versions crash before a function's first step.

    Not in the first step of `__aexit__` either: no `try` covers that, and nobody can do its work.
    """
    code, at = frame.f_code.co_code, frame.f_lasti
    name = dis.opname[code[at]]
    if frame.f_code.co_name == "__aexit__" and (at == 0 or name == "RESUME"):
        return False
    if at == 2 and dis.opname[code[0]] == "GEN_START":  # 3.10, where nothing is checked between these two
        return False
    if name in UNINTERRUPTIBLE or (name == "RESUME" and code[at + 1] & 3 >= 2):  # after an `await`
        return False
    if at in ends_of_blocks(frame.f_code):
        return False
    if sys.version_info[:2] == (3, 11) and (not is_checked(frame.f_code, at) or is_in_finalizer(frame)):
        return False
    return sys.version_info < (3, 11) or any(dis.opname[opcode] == "RESUME" for opcode in code[: at + 2 : 2])


def is_in_finalizer(frame: FrameType | None) -> bool:
    """Return whether a finalizer runs *frame*. If a trace function raises there, Python 3.11 crashes now and then."""
    while frame is not None and frame.f_code.co_name != "__del__":
        frame = frame.f_back
    return frame is not None


@functools.cache
def is_checked(code: CodeType, at: int) -> bool:
    """Return whether Python 3.11 looks for signals just before the bytecode *at*, or in it.

    It does so after calls and in jumps back. What raises at others while bytecodes are traced takes one reference too
    many from some object of Python 3.11, which then crashes now and then.
    """
    names = [dis.opname[opcode] for opcode in code.co_code[: at + 2 : 2]]
    if names.pop().startswith(("JUMP_BACKWARD", "POP_JUMP_BACKWARD")):
        return True
    while names and names[-1] == "CACHE":
        names.pop()
    return bool(names) and names[-1].startswith(("CALL", "RESUME"))


@functools.cache
def ends_of_blocks(code: CodeType) -> frozenset[int]:
    """Return where the bytecodes are that call `__exit__` where a `with` block ends without an exception.

    No `try` covers these bytecodes, and no Python version handles signals between the end of the block and that call.
    """
    names = [dis.opname[opcode] for opcode in code.co_code[::2]]
    found: set[int] = set()
    for end, name in enumerate(names):
        if name in ("CALL", "CALL_FUNCTION"):
            start = end
            while names[start - 1] in ("LOAD_CONST", "DUP_TOP", "POP_BLOCK", "PRECALL", "CACHE"):
                start -= 1
            if sum(each in ("LOAD_CONST", "DUP_TOP") for each in names[start:end]) == 3:  # `None` three times
                found.update(range(2 * start, 2 * end + 1, 2))
    return frozenset(found)


def numbers(operation: Callable[[], object], folder: str, steps: int, *, everywhere: bool = False) -> Iterator[int]:
    """Yield the numbers of about *steps* bytecodes that *operation* runs, or of all with `EVERY_STEP`."""
    counting = Steps(int, 0, folder, everywhere=everywhere)
    with counting:
        operation()
    total = next(counting._count)
    seed = random.randrange(10**6)
    print(f"{total} bytecodes, seed {seed}")  # noqa: T201
    every = 1 if EVERY_STEP else max(1, total // steps)
    yield from range(1 + random.Random(seed).randrange(every), total, every)
