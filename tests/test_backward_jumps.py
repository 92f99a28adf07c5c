"""What a signal handler raises inside a `try` must not leave it unseen.

Python handles signals when a loop jumps back to its start. From 3.12 on, the compiler does not always count that jump
as part of the `try` around the loop. So where it matters a loop is in a function of its own, which the `try` calls.
"""

from __future__ import annotations

import ast
import dis
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import CodeType

pytestmark = pytest.mark.skipif(
    sys.implementation.name != "cpython" or sys.version_info < (3, 12), reason="needs the bytecodes of CPython 3.12"
)

ROOT = Path(__file__).parent.parent

# Functions in which it does not matter, because
HARMLESS = {
    # only a thread of ours runs them, and signal handlers run in the main thread
    "Child.close",
    "Child.prepare",
    "Feed._fetch",
    "Output.pass_on",
    "WorkerProcess._flush",
    "WorkerProcess._see_through",
    "_StandbyThread._hand_back_all",
    "_StandbyThread._serve",
    # the `try` only breaks a reference cycle, or suppresses another error
    "CallGroup._wait_for_all",
    "ThreadCall.wait",
    "WorkerProcess._fail_all",
    "wait_shielded",
}


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for const in code.co_consts:
        if hasattr(const, "co_code"):
            yield from _codes(const)


def _lines_of_protected_loops(node: ast.AST, *, protected: bool = False) -> Iterator[range]:
    """Yield the lines of each loop that is in the `try` or the `with` of its own function."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
        protected = False
    elif isinstance(node, (ast.While, ast.For, ast.AsyncFor)) and protected:
        assert node.end_lineno is not None
        yield range(node.lineno, node.end_lineno + 1)
    for field, value in ast.iter_fields(node):
        begins = (isinstance(node, (ast.Try, ast.With, ast.AsyncWith)) and field == "body") or (
            isinstance(node, ast.Try) and field in ("handlers", "orelse") and bool(node.finalbody)
        )
        for child in value if isinstance(value, list) else [value]:
            if isinstance(child, ast.AST):
                yield from _lines_of_protected_loops(child, protected=protected or begins)


def unprotected_jumps(source: str) -> Iterator[tuple[str, int]]:
    """Yield the function and the line of each jump to the start of such a loop that its `try` does not count."""
    loops = [*_lines_of_protected_loops(ast.parse(source))]
    for code in _codes(compile(source, "source", "exec")):
        bytecode: Any = dis.Bytecode(code)  # typeshed does not know `exception_entries`
        for step in bytecode:
            line = step.positions.lineno if step.positions else None
            if step.opname != "JUMP_BACKWARD" or not any(line in loop for loop in loops):
                continue
            if not any(entry.start <= step.offset < entry.end for entry in bytecode.exception_entries):
                yield code.co_qualname, line or 0


def test_no_try_loses_what_is_raised_at_a_jump_back() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{line} in {function}"
        for folder in ("unfazed", "compat")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if "migrate" not in path.parts
        for function, line in unprotected_jumps(path.read_text())
        if function not in HARMLESS
    }

    assert not found


def test_such_a_jump_is_found() -> None:
    loop = "while True:\n{0}got = get()\n{0}if got is not None:\n{0}    return got\n"
    inside = f"def f(get):\n    try:\n        {loop.format(' ' * 12)}    finally:\n        print()\n"

    found = {function for function, _ in unprotected_jumps(inside)}

    assert found <= {"f"}
    assert found or sys.version_info < (3, 14)  # the compilers differ
