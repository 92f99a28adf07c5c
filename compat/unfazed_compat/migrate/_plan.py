"""Collect the changes to a file, then apply them all at once."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import libcst as cst
from libcst.metadata import Assignment

from ._module import full_name
from ._origins import NATIVE
from ._orm import uses_orm

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._bindings import Binding, Use
    from ._module import Module


class Finding(NamedTuple):
    """A place that was left alone, and why."""

    line: int
    reason: str


class Options(NamedTuple):
    """The options for one file."""

    native: bool = False
    no_affinity: bool = False
    patched: frozenset[str] = frozenset()  # names that other files use from this one
    exported: frozenset[str] = frozenset()


@dataclass
class Plan:
    """The changes to one file, and the reports about it."""

    module: Module
    options: Options
    findings: list[Finding] = field(default_factory=list[Finding])
    counts: Counter[str] = field(default_factory=Counter[str])
    helpers: dict[Binding, set[str]] = field(default_factory=lambda: defaultdict(set))
    gone: set[Use] = field(default_factory=set["Use"])
    left_out: set[cst.CSTNode] = field(default_factory=set[cst.CSTNode])  # nodes that a rewrite removes
    _replaced: dict[cst.CSTNode, Callable[[Any], cst.CSTNode]] = field(
        default_factory=dict[cst.CSTNode, "Callable[[Any], cst.CSTNode]"]
    )
    _statements: dict[cst.CSTNode, Sequence[cst.BaseSmallStatement]] = field(
        default_factory=dict[cst.CSTNode, "Sequence[cst.BaseSmallStatement]"]
    )

    @cached_property
    def uses_orm(self) -> bool:
        """Whether the file uses Django's ORM."""
        return uses_orm(self.module)

    def report(self, node: cst.CSTNode, reason: str) -> None:
        finding = Finding(self.module.line(node), reason)
        if finding not in self.findings:
            self.findings.append(finding)

    def replace(self, node: cst.CSTNode, make: Callable[[Any], cst.CSTNode]) -> None:
        """Replace *node* with the result of *make*, which gets it after the nodes inside it were replaced."""
        self._replaced[node] = make

    def replace_statement(self, node: cst.CSTNode, others: Sequence[cst.BaseSmallStatement]) -> None:
        """Replace the statement *node* with *others*, each in a line of its own if *node* has one."""
        self._statements[node] = others

    def is_free(self, helper: str, *uses: Use) -> bool:
        """Return whether *helper* has no other meaning in the scopes of *uses* and of their imports."""
        if helper in self.module.captured:
            return False
        starts = [scope for use in uses for scope in (self.module.scope(use.node), use.binding.scope)]
        return all(
            isinstance(each, Assignment)
            and isinstance(each.node, cst.ImportFrom)
            and full_name(each.node.module) == NATIVE
            for start in starts
            for scope in self.module.scopes_up(start)
            for each in self.module.assignments(scope, helper)
        )

    @property
    def is_empty(self) -> bool:
        return not self._replaced and not self._statements

    def apply(self) -> cst.Module:
        changed = (*self._replaced, *self._statements)
        touched = {each for node in changed for each in (node, *self.module.ancestors(node))}
        return self.module.tree.visit(_Transformer(self._replaced, self._statements, touched))


class _Transformer(cst.CSTTransformer):
    def __init__(
        self,
        replaced: dict[cst.CSTNode, Callable[[Any], cst.CSTNode]],
        statements: dict[cst.CSTNode, Sequence[cst.BaseSmallStatement]],
        touched: set[cst.CSTNode],
    ) -> None:
        self._replaced = replaced
        self._statements = statements
        self._touched = touched

    def on_visit(self, node: cst.CSTNode) -> bool:
        return node in self._touched  # skip nodes without changes

    def on_leave(self, original_node: Any, updated_node: Any) -> Any:
        updated_node = super().on_leave(original_node, updated_node)
        if original_node in self._statements:
            others = self._statements[original_node]
            return cst.FlattenSentinel(others) if others else cst.RemoveFromParent()
        make = self._replaced.get(original_node)
        return updated_node if make is None else make(updated_node)

    def leave_SimpleStatementLine(
        self, original_node: cst.SimpleStatementLine, updated_node: cst.SimpleStatementLine
    ) -> cst.SimpleStatementLine | cst.FlattenSentinel[cst.SimpleStatementLine]:
        """Give each replacing statement a line of its own."""
        if len(original_node.body) != 1 or len(updated_node.body) < 2:
            return updated_node
        first, *others = updated_node.body
        lines = [updated_node.with_changes(body=[first])]
        lines += [cst.SimpleStatementLine([each]) for each in others]
        return cst.FlattenSentinel(lines)
