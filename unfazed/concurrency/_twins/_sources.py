"""Reads the source code of async classes: where each name of a module comes from, and the body of a class."""

from __future__ import annotations

import builtins
import importlib
import inspect
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

import libcst as cst
from libcst.helpers import get_absolute_module_from_package_for_import

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import ModuleType


class Origin(NamedTuple):
    """Where a name comes from: `from module import name`, or `import module` if there is no name."""

    module: str
    name: str | None
    is_for_types: bool = False  # whether only type checkers can import it
    is_exact: bool = False  # whether to import it from there, even if an outer package exports it too

    def find(self) -> Any:
        """Return the object with this name, or `None` if it does not exist at run time."""
        return _find(self.module, self.name)


@cache
def _find(module: str, name: str | None) -> Any:
    try:
        found: Any = importlib.import_module(module)
        for part in name.split(".") if name else ():
            found = getattr(found, part)
    except (ImportError, AttributeError):
        return None
    return found


class ModuleSource:
    """The source code of a module, and where its names come from."""

    def __init__(self, module: ModuleType) -> None:
        self.module = module
        self.name = module.__name__
        self.tree = cst.parse_module(inspect.getsource(module))
        self._names: dict[str, list[Origin]] = {}
        self._values: dict[str, cst.BaseExpression | None] = {}  # the values assigned to names
        self._aliases: set[str] = set()  # names that are declared as type aliases, which may be written as strings
        self._parts: dict[type, list[Any]] = {}
        for statement, is_for_types in _statements(self.tree.body):
            for name, origin in self._bound_by(statement, is_for_types):
                self._names.setdefault(name, []).append(origin)
            if isinstance(statement, (cst.Assign, cst.AnnAssign, cst.TypeAlias)):
                self._values.update(dict.fromkeys(_defined_by(statement), statement.value))
            if isinstance(statement, cst.TypeAlias) or (
                isinstance(statement, cst.AnnAssign) and last_name(statement.annotation.annotation) == "TypeAlias"
            ):
                self._aliases.update(_defined_by(statement))

    def origin_of(self, name: str, is_for_types: bool = False) -> Origin | None:
        """Return where a name of the module comes from. If there are several places, the first that exists.

        If *is_for_types*, the first that type checkers see, such as one under `if TYPE_CHECKING` that has an `else`.
        """
        origins = self._names.get(name)
        if origins is None:
            return self._origin_of_unseen(name)
        seen = (each for each in origins if (is_for_types if each.is_for_types else each.find() is not None))
        return next(seen, origins[0])

    def _origin_of_unseen(self, name: str) -> Origin | None:
        """Return the origin of a name that no statement binds: from `import *`, or `None` for a builtin."""
        if not hasattr(self.module, name) or hasattr(builtins, name):
            return None
        origin = Origin(getattr(getattr(self.module, name), "__module__", self.name), name)
        return origin if origin.find() is not None else Origin(self.name, name)

    def _bound_by(self, statement: cst.CSTNode, is_for_types: bool) -> Iterator[tuple[str, Origin]]:
        package = self.name if hasattr(self.module, "__path__") else self.name.rpartition(".")[0]
        if isinstance(statement, cst.ImportFrom):
            source = get_absolute_module_from_package_for_import(package or None, statement)
            for alias in statement.names if not isinstance(statement.names, cst.ImportStar) else ():
                name = alias.evaluated_name
                yield alias.evaluated_alias or name, Origin(source or "", name, is_for_types)
        elif isinstance(statement, cst.Import):
            for alias in statement.names:
                path = alias.evaluated_name
                if alias.evaluated_alias:
                    yield alias.evaluated_alias, Origin(path, None, is_for_types)
                else:
                    yield path.partition(".")[0], Origin(path.partition(".")[0], None, is_for_types)
        else:
            for name in _defined_by(statement):
                yield name, Origin(self.name, name, is_for_types)

    def meaning_of(self, name: str) -> cst.BaseExpression | None:
        """Return the type behind a type alias of the module, if that has parameters or is a union."""
        value = self._values.get(name)
        if isinstance(value, cst.SimpleString) and name in self._aliases:
            value = cst.parse_expression(str(value.evaluated_value))
        return value if isinstance(value, (cst.Subscript, cst.BinaryOperation)) else None

    def value_of(self, name: str) -> cst.BaseExpression | None:
        """Return what is assigned to a name of the module."""
        return self._values.get(name)

    def parts_of(self, cls: type) -> list[cst.CSTNode]:
        """Return the statements in the body of a class: functions, classes, and simple statements."""
        if cls not in self._parts:
            node = self.class_node(cls)
            self._parts[cls] = [] if node is None else _flat(node.body.body)
        return self._parts[cls]

    def class_node(self, cls: type) -> cst.ClassDef | None:
        body: Any = self.tree.body
        node: cst.ClassDef | None = None
        for name in cls.__qualname__.split("."):
            classes = [part for part in _flat(body) if isinstance(part, cst.ClassDef) and part.name.value == name]
            if not classes:
                return None
            node = classes[-1]
            body = node.body.body
        return node


@cache
def source_of_class(cls: type) -> ModuleSource | None:
    """Return the source of the module that defines a class. Some classes set `__module__` to a more public module."""
    for value in vars(cls).values():
        module = getattr(inspect.unwrap(value), "__module__", None) if inspect.isfunction(value) else None
        if module not in (None, cls.__module__) and Origin(str(module), cls.__qualname__).find() is cls:
            return source_of(str(module))
    return source_of(cls.__module__)


@cache
def source_of(module: str) -> ModuleSource | None:
    """Return the source of a module, if it has one."""
    try:
        return ModuleSource(importlib.import_module(module))
    except (ImportError, OSError, TypeError):  # only type checkers know it, it is written in C, or made at run time
        return None


def dotted_name(node: cst.CSTNode) -> str | None:
    """Return a name, with or without dots, or `None` if *node* is anything else."""
    if isinstance(node, cst.Attribute):
        base = dotted_name(node.value)
        return None if base is None else f"{base}.{node.attr.value}"
    return node.value if isinstance(node, cst.Name) else None


def last_name(node: cst.CSTNode) -> str:
    """Return a name without what is before its last dot; an empty string if *node* is anything else."""
    return (dotted_name(node) or "").rpartition(".")[2]


def _statements(body: Iterable[Any], is_for_types: bool = False) -> Iterator[tuple[cst.CSTNode, bool]]:
    """Yield the statements of a module, also in `if` and `try`, each with whether only type checkers see it."""
    for part in body:
        if isinstance(part, cst.SimpleStatementLine):
            for statement in part.body:
                yield statement, is_for_types
        elif isinstance(part, cst.If):
            test = dotted_name(part.test) or ""
            for_types = is_for_types or test.rpartition(".")[2] == "TYPE_CHECKING"
            yield from _statements(part.body.body, for_types)
            if part.orelse is not None:
                orelse = [part.orelse] if isinstance(part.orelse, cst.If) else part.orelse.body.body
                yield from _statements(orelse, is_for_types)
        elif isinstance(part, cst.Try):
            yield from _statements(part.body.body, is_for_types)
            for handler in part.handlers:
                yield from _statements(handler.body.body, is_for_types)
        else:
            yield part, is_for_types


def _flat(body: Iterable[Any]) -> list[Any]:
    return [part for part, _ in _statements(body)]


def _defined_by(statement: cst.CSTNode) -> list[str]:
    if isinstance(statement, (cst.FunctionDef, cst.ClassDef, cst.TypeAlias)):
        return [statement.name.value]
    if isinstance(statement, cst.AnnAssign):
        targets: list[cst.BaseExpression] = [statement.target]
    elif isinstance(statement, cst.Assign):
        targets = [target.target for target in statement.targets]
    else:
        return []
    return [target.value for target in targets if isinstance(target, cst.Name)]
