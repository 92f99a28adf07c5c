"""Migrate one file. This code runs in worker processes."""

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
    """The result for one file: its old and new content, and what to report."""

    old: bytes
    new: bytes
    findings: tuple[Finding, ...] = ()
    counts: dict[str, int] = {}  # noqa: RUF012  never mutated
    error: str = ""


def migrate(source: bytes, options: Options) -> Result:
    """Return the result for *source*. The new content is *source* itself if nothing changes."""
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
    except Exception as exc:  # one file must not hide the results of others
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
            warnings.simplefilter("ignore")  # warnings about the user's code
            ast.parse(source)  # much faster than libcst
    except (SyntaxError, ValueError):
        cst.parse_module(source)  # it may be for a newer Python


def _exported(tree: cst.Module) -> frozenset[str]:
    """Return the names in the module's `__all__`, however it is built."""
    found: set[str] = set()
    for line in tree.body:
        if isinstance(line, cst.SimpleStatementLine) and "__all__" in tree.code_for_node(line):
            found.update(re.findall(r"""["'](\w+)["']""", tree.code_for_node(line)))
    return frozenset(found)


def _said(error: Exception) -> str:
    if isinstance(error, cst.ParserSyntaxError):
        return f"line {error.raw_line}: it cannot be parsed"
    return f"it cannot be parsed: {error or type(error).__name__}"
