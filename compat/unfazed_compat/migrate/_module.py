"""A parsed file: its nodes, scopes, parents and lines. This module only reads; other modules plan changes."""

from __future__ import annotations

import dataclasses
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any, TypeVar, cast

import libcst as cst
import libcst.matchers as m
from libcst.helpers import get_full_name_for_node
from libcst.metadata import (
    Assignment,
    BuiltinAssignment,
    ClassScope,
    GlobalScope,
    MetadataWrapper,
    PositionProvider,
    Scope,
    ScopeProvider,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from libcst.metadata import BaseAssignment

Node = TypeVar("Node", bound=cst.CSTNode)

# An `except StopIteration` that raises `StopAsyncIteration`.
_ENDS = m.ExceptHandler(
    type=m.Name("StopIteration"),
    body=m.IndentedBlock(
        [m.SimpleStatementLine([m.Raise(exc=m.Name("StopAsyncIteration") | m.Call(m.Name("StopAsyncIteration")))])]
    ),
)


# Fields that `walk` skips: punctuation and empty lines.
_TRIVIA = frozenset(
    {
        "comma",
        "dot",
        "equal",
        "footer",
        "header",
        "leading_lines",
        "lines_after_decorators",
        "lpar",
        "rpar",
        "semicolon",
    }
)


@cache
def _fields(kind: type[cst.CSTNode]) -> tuple[str, ...]:
    names = (field.name for field in dataclasses.fields(kind))
    return tuple(name for name in names if name not in _TRIVIA and "whitespace" not in name)


def walk(node: cst.CSTNode) -> Iterator[tuple[cst.CSTNode, cst.CSTNode]]:
    """Yield all nodes below *node*, except whitespace and punctuation, each with its parent.

    libcst's visitors take ten times as long: they visit all whitespace and call two methods for each node.
    """
    waiting = [node]
    while waiting:
        parent = waiting.pop()
        for name in _fields(type(parent)):
            value: Any = getattr(parent, name)
            for child in cast("Iterable[object]", value) if isinstance(value, (list, tuple)) else (value,):
                if isinstance(child, cst.CSTNode):
                    yield child, parent
                    waiting.append(child)


class Module:
    """A parsed file with libcst's metadata."""

    def __init__(self, tree: cst.Module) -> None:
        self.tree = tree
        self._wrapper = MetadataWrapper(tree, unsafe_skip_copy=True)
        self._parents = dict(walk(tree))
        self._by_kind: dict[type[cst.CSTNode], list[Any]] = {}
        for node in self._parents:
            self._by_kind.setdefault(type(node), []).append(node)
        self.imports: list[cst.Import | cst.ImportFrom] = [*self.all_of(cst.Import), *self.all_of(cst.ImportFrom)]
        self.end_handlers = [each for each in self.all_of(cst.ExceptHandler) if m.matches(each, _ENDS)]
        self.async_defs = [each for each in self.all_of(cst.FunctionDef) if each.asynchronous]
        # libcst's scopes do not know names that `match` binds
        captures = [
            *(each.name for each in self.all_of(cst.MatchAs)),
            *(each.name for each in self.all_of(cst.MatchStar)),
            *(each.rest for each in self.all_of(cst.MatchMapping)),
        ]
        self.captured = {name.value for name in captures if name is not None}
        self.has_star_import = any(isinstance(each.names, cst.ImportStar) for each in self.all_of(cst.ImportFrom))

    def all_of(self, kind: type[Node]) -> list[Node]:
        """Return all nodes of one kind."""
        return self._by_kind.get(kind, [])

    @cached_property
    def _scopes(self) -> Mapping[cst.CSTNode, Scope | None]:
        return self._wrapper.resolve(ScopeProvider)

    def line(self, node: cst.CSTNode) -> int:
        positions = self._wrapper.resolve(PositionProvider)
        return positions[node].start.line

    def scope(self, node: cst.CSTNode) -> Scope:
        scope = self._scopes[node]
        assert scope is not None, "it is code"
        return scope

    def is_code(self, node: cst.CSTNode) -> bool:
        """Return whether *node* is code of this file, and not part of a string annotation."""
        return isinstance(node, (cst.Name, cst.Attribute)) and node in self._parents

    def parent(self, node: cst.CSTNode) -> cst.CSTNode:
        return self._parents[node]

    def ancestors(self, node: cst.CSTNode) -> Iterator[cst.CSTNode]:
        while node in self._parents:
            node = self._parents[node]
            yield node

    def enclosing_function(self, node: cst.CSTNode) -> cst.FunctionDef | cst.Lambda | None:
        """Return the function that has *node* in its body. Decorators and defaults are not in the body."""
        below = node
        for each in self.ancestors(node):
            if isinstance(each, (cst.FunctionDef, cst.Lambda)) and below is each.body:
                return each
            below = each
        return None

    def runs_in_loop(self, node: cst.CSTNode) -> bool:
        """Return whether *node* is in the body of an async function."""
        function = self.enclosing_function(node)
        return isinstance(function, cst.FunctionDef) and function.asynchronous is not None

    def assignments(self, scope: Scope, name: str) -> list[BaseAssignment]:
        """Return the assignments to *name* in *scope* itself."""
        return [each for each in scope.assignments[name] if each.scope is scope and isinstance(each, Assignment)]

    def scopes_up(self, scope: Scope) -> Iterator[Scope]:
        """Yield *scope* and the scopes around it, up to the module's."""
        while not isinstance(scope, GlobalScope):
            yield scope
            scope = scope.parent
        yield scope

    def definition(self, node: cst.CSTNode, name: str) -> cst.CSTNode | None:
        """Return the only node that binds *name* as *node* sees it, or `None` if there is not exactly one."""
        if name in self.captured:
            return None
        start = self.scope(node)
        for scope in self.scopes_up(start):
            if scope is not start and isinstance(scope, ClassScope):
                continue  # methods do not see class variables
            found = self.assignments(scope, name)
            if found:
                (first, *others) = found
                return None if others or not isinstance(first, Assignment) else first.node
        return None

    def is_builtin(self, node: cst.CSTNode, names: frozenset[str]) -> bool:
        """Return whether *node* is one of the builtins *names*."""
        return (
            isinstance(node, cst.Name)
            and node.value in names
            and all(isinstance(each, BuiltinAssignment) for each in self.scope(node)[node.value])
        )

    def code(self, node: cst.CSTNode) -> str:
        return self.tree.code_for_node(node)


def full_name(node: cst.CSTNode | None) -> str:
    """Return a dotted name as it is written; an empty text if *node* is not one."""
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
