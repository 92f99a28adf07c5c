"""One file: what it is, and what becomes of it. What is here runs in worker processes."""

from __future__ import annotations

import ast
import re
import warnings
from reprlib import repr as short_repr
from typing import NamedTuple

import libcst as cst

from ._bindings import find_bindings, resolve
from ._bridges import plan_bridges
from ._calls import plan_calls
from ._findings import find_in_bindings, find_in_imports, find_in_strings, looks_suspicious
from ._imports import plan_imports
from ._mentions import has_words
from ._module import Module
from ._plan import Finding, Options, Plan


class Result(NamedTuple):
    """What becomes of one file."""

    old: bytes
    new: bytes
    findings: tuple[Finding, ...] = ()
    counts: dict[str, int] = {}  # noqa: RUF012  nobody changes it
    error: str = ""


def migrate(source: bytes, options: Options) -> Result:
    """Return what becomes of *source*: itself where there is nothing to do."""
    if not has_words(source):
        return Result(source, source)
    try:
        tree = cst.parse_module(source)
        plan = _plan(tree, options)
        new = source if plan.is_empty else plan.apply().bytes
        if new != source:
            _require_parses(new)
            if tree.bytes != source:
                return Result(source, source, error="libcst does not give it back as it is")
    except (cst.ParserSyntaxError, SyntaxError, UnicodeError, RecursionError) as exc:
        return Result(source, source, error=_said(exc))
    except Exception as exc:  # one file must not keep the user from seeing the others
        problem = f"{type(exc).__name__}: {short_repr(str(exc))}"
        return Result(source, source, error=f"an error of the migration itself, to be reported: {problem}")
    return Result(source, new, tuple(sorted(plan.findings)), dict(plan.counts))


def _plan(tree: cst.Module, options: Options) -> Plan:
    module = Module(tree)
    exported = options.exported | _exported(tree)
    plan = Plan(module, options._replace(exported=exported))
    bindings = list(find_bindings(module))
    find_in_imports(plan)
    find_in_strings(plan)
    if options.native or looks_suspicious(module, bindings):
        resolve(module, bindings)
        find_in_bindings(plan, bindings)
        plan_bridges(plan, bindings)
        plan_calls(plan, bindings)
    plan_imports(plan, bindings)
    return plan


def _require_parses(source: bytes) -> None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what is old in it is no matter of ours
            ast.parse(source)  # by far the faster
    except (SyntaxError, ValueError):
        cst.parse_module(source)  # it may be of a newer Python


def _exported(tree: cst.Module) -> frozenset[str]:
    """Return all that the module names in its `__all__`, however it is made."""
    found: set[str] = set()
    for line in tree.body:
        if isinstance(line, cst.SimpleStatementLine) and "__all__" in tree.code_for_node(line):
            found.update(re.findall(r"""["'](\w+)["']""", tree.code_for_node(line)))
    return frozenset(found)


def _said(error: Exception) -> str:
    if isinstance(error, cst.ParserSyntaxError):
        return f"line {error.raw_line}: it cannot be parsed"
    return f"it cannot be parsed: {error or type(error).__name__}"
