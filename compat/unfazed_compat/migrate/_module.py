"""A parsed file: scopes, parents, lines. What nodes are is asked here, what becomes of them elsewhere."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import libcst as cst
import libcst.matchers as m
from libcst.helpers import get_full_name_for_node
from libcst.metadata import (
    Assignment,
    BuiltinAssignment,
    ClassScope,
    GlobalScope,
    MetadataWrapper,
    ParentNodeProvider,
    PositionProvider,
    Scope,
    ScopeProvider,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from libcst.metadata import BaseAssignment

# Where the end of an iterator becomes the end of an async one.
_ENDS = m.ExceptHandler(
    type=m.Name("StopIteration"),
    body=m.IndentedBlock(
        [m.SimpleStatementLine([m.Raise(exc=m.Name("StopAsyncIteration") | m.Call(m.Name("StopAsyncIteration")))])]
    ),
)


class _Collector(cst.CSTVisitor):
    """Finds what has no place in libcst's scopes."""

    def __init__(self) -> None:
        self.imports: list[cst.Import | cst.ImportFrom] = []
        self.strings: list[cst.SimpleString] = []
        self.end_handlers: list[cst.ExceptHandler] = []
        self.async_defs: list[cst.FunctionDef] = []
        self.captured: set[str] = set()

    def visit_Import(self, node: cst.Import) -> None:
        self.imports.append(node)

    def visit_ImportFrom(self, node: cst.ImportFrom) -> None:
        self.imports.append(node)

    def visit_SimpleString(self, node: cst.SimpleString) -> None:
        self.strings.append(node)

    def visit_ExceptHandler(self, node: cst.ExceptHandler) -> None:
        if m.matches(node, _ENDS):
            self.end_handlers.append(node)

    def visit_FunctionDef(self, node: cst.FunctionDef) -> None:
        if node.asynchronous:
            self.async_defs.append(node)

    def _capture(self, name: cst.Name | None) -> None:
        if name is not None:
            self.captured.add(name.value)

    def visit_MatchAs(self, node: cst.MatchAs) -> None:
        self._capture(node.name)

    def visit_MatchStar(self, node: cst.MatchStar) -> None:
        self._capture(node.name)

    def visit_MatchMapping(self, node: cst.MatchMapping) -> None:
        self._capture(node.rest)


class Module:
    """A parsed file, and what libcst knows of it."""

    def __init__(self, tree: cst.Module) -> None:
        self.tree = tree
        self._wrapper = MetadataWrapper(tree, unsafe_skip_copy=True)
        found = _Collector()
        tree.visit(found)
        self.imports = found.imports
        self.strings = found.strings
        self.end_handlers = found.end_handlers
        self.async_defs = found.async_defs
        self.captured = found.captured  # by `match`, which libcst's scopes do not know
        self.has_star_import = any(
            isinstance(node, cst.ImportFrom) and isinstance(node.names, cst.ImportStar) for node in found.imports
        )

    @cached_property
    def _scopes(self) -> Mapping[cst.CSTNode, Scope | None]:
        return self._wrapper.resolve(ScopeProvider)

    @cached_property
    def _parents(self) -> Mapping[cst.CSTNode, cst.CSTNode]:
        return self._wrapper.resolve(ParentNodeProvider)

    def line(self, node: cst.CSTNode) -> int:
        positions = self._wrapper.resolve(PositionProvider)
        return positions[node].start.line

    def scope(self, node: cst.CSTNode) -> Scope:
        scope = self._scopes[node]
        assert scope is not None, "it is code"
        return scope

    def is_here(self, node: cst.CSTNode) -> bool:
        """Return whether *node* is of this file, and not of what a string says."""
        return node in self._parents

    def parent(self, node: cst.CSTNode) -> cst.CSTNode:
        return self._parents[node]

    def ancestors(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        while node in self._parents:
            node = self._parents[node]
            yield node

    def enclosing_function(self, node: cst.CSTNode) -> cst.FunctionDef | cst.Lambda | None:
        """Return the function whose body *node* is in: decorators and defaults are outside of theirs."""
        below = node
        for each in self.ancestors(node):
            if isinstance(each, (cst.FunctionDef, cst.Lambda)) and below is each.body:
                return each
            below = each
        return None

    def runs_in_loop(self, node: cst.CSTNode) -> bool:
        """Return whether *node* is run by an async function."""
        function = self.enclosing_function(node)
        return isinstance(function, cst.FunctionDef) and function.asynchronous is not None

    def assignments(self, scope: Scope, name: str) -> list[BaseAssignment]:
        """Return what binds *name* in *scope* itself."""
        return [each for each in scope.assignments[name] if each.scope is scope and isinstance(each, Assignment)]

    def scopes_up(self, scope: Scope) -> Iterator[Scope]:
        """Return *scope* and those around it, up to the module's."""
        while not isinstance(scope, GlobalScope):
            yield scope
            scope = scope.parent
        yield scope

    def definition(self, node: cst.CSTNode, name: str) -> cst.CSTNode | None:
        """Return what alone binds *name*, as *node* sees it, or nothing if several do or none."""
        if name in self.captured:
            return None
        start = self.scope(node)
        for scope in self.scopes_up(start):
            if scope is not start and isinstance(scope, ClassScope):
                continue  # not seen from its methods
            found = self.assignments(scope, name)
            if found:
                (first, *others) = found
                return None if others or not isinstance(first, Assignment) else first.node
        return None

    def is_builtin(self, node: cst.CSTNode, names: frozenset[str]) -> bool:
        """Return whether *node* is one of these builtins."""
        return (
            isinstance(node, cst.Name)
            and node.value in names
            and all(isinstance(each, BuiltinAssignment) for each in self.scope(node)[node.value])
        )

    def code(self, node: cst.CSTNode) -> str:
        return self.tree.code_for_node(node)


def full_name(node: cst.CSTNode | None) -> str:
    """Return a dotted name as it is written, or nothing."""
    return "" if node is None else get_full_name_for_node(node) or ""


def dotted(name: str) -> cst.Name | cst.Attribute:
    """Return a dotted name as an expression."""
    first, *others = name.split(".")
    node: cst.Name | cst.Attribute = cst.Name(first)
    for each in others:
        node = cst.Attribute(node, cst.Name(each))
    return node


def has_comment(*nodes: cst.CSTNode) -> bool:
    """Return whether there is a comment in any of *nodes*."""
    found = False

    class Visitor(cst.CSTVisitor):
        def visit_Comment(self, node: cst.Comment) -> None:
            nonlocal found
            found = True

    for node in nodes:
        node.visit(Visitor())
    return found
