"""What can be known of a function that is wrapped, where it is defined in the same file."""

from __future__ import annotations

from typing import TYPE_CHECKING

import libcst as cst

from ._module import Module, full_name

if TYPE_CHECKING:
    from collections.abc import Iterator

Function = cst.FunctionDef | cst.Lambda


def function_of(module: Module, node: cst.BaseExpression) -> Function | None:
    """Return the function that *node* surely is, if this file has it."""
    if isinstance(node, cst.Lambda):
        return node
    found: cst.CSTNode | None = None
    if isinstance(node, cst.Name):
        found = module.definition(node, node.value)
    elif isinstance(node, cst.Attribute) and isinstance(node.value, cst.Name):
        found = _method(module, node, node.value.value, node.attr.value)
    # a decorator may make anything of it
    return found if isinstance(found, cst.FunctionDef) and not found.decorators else None


def _method(module: Module, node: cst.CSTNode, owner: str, name: str) -> cst.CSTNode | None:
    """Return the method *name* of the class around, where *owner* is `self`."""
    function: cst.CSTNode | None = module.enclosing_function(node)
    while function is not None:
        if isinstance(function, cst.FunctionDef) and function.params.params:
            _, holder, *_ = (*module.ancestors(function), None)
            if function.params.params[0].name.value == owner and isinstance(holder, cst.ClassDef):
                found = module.assignments(module.scope(function), name)
                return getattr(found[0], "node", None) if len(found) == 1 else None
        function = module.enclosing_function(function)
    return None


def is_async(function: Function | None) -> bool:
    return isinstance(function, cst.FunctionDef) and function.asynchronous is not None


class _Yields(cst.CSTVisitor):
    def __init__(self) -> None:
        self.found = False

    def visit_Yield(self, node: cst.Yield) -> None:
        self.found = True

    def visit_FunctionDef(self, node: cst.FunctionDef) -> bool:
        return False

    def visit_Lambda(self, node: cst.Lambda) -> bool:
        return False


def is_generator(function: Function | None) -> bool:
    if function is None:
        return False
    visitor = _Yields()
    function.body.visit(visitor)
    return visitor.found


class _Collector(cst.CSTVisitor):
    def __init__(self) -> None:
        self.calls: list[cst.Call] = []
        self.nodes: set[cst.CSTNode] = set()
        self.targets: list[cst.Attribute] = []

    def on_visit(self, node: cst.CSTNode) -> bool:
        self.nodes.add(node)
        return super().on_visit(node)

    def visit_Call(self, node: cst.Call) -> None:
        self.calls.append(node)

    def visit_AssignTarget(self, node: cst.AssignTarget) -> None:
        if isinstance(node.target, cst.Attribute):
            self.targets.append(node.target)


def _reached(module: Module, function: Function) -> Iterator[_Collector]:
    """Return what is in *function*, and in the functions of this file that it calls."""
    seen: set[cst.CSTNode] = set()
    waiting: list[Function] = [function]
    while waiting:
        function = waiting.pop()
        if function in seen:
            continue
        seen.add(function)
        collector = _Collector()
        function.visit(collector)
        yield collector
        for call in collector.calls:
            for each in (call.func, *(argument.value for argument in call.args)):
                called = function_of(module, each)
                if called is not None:
                    waiting.append(called)


def uses_any(module: Module, function: Function, nodes: set[cst.CSTNode]) -> bool:
    """Return whether *function*, or what it calls here, has any of *nodes* in it."""
    return any(collector.nodes & nodes for collector in _reached(module, function))


def sets_context(module: Module, function: Function) -> bool:
    """Return whether *function*, or what it calls here, sets context variables, as far as this file shows."""
    for collector in _reached(module, function):
        for call in collector.calls:
            func = call.func
            if isinstance(func, cst.Attribute) and func.attr.value in ("set", "reset") and call.args:
                if _is_made_by(module, func.value, ("ContextVar",), imported=True):
                    return True
        if any(_is_made_by(module, target.value, ("Local",), imported=False) for target in collector.targets):
            return True
    return False


def _is_made_by(module: Module, node: cst.BaseExpression, makers: tuple[str, ...], *, imported: bool) -> bool:
    """Return whether *node* is what a call of one of *makers* gave, or was imported and may be."""
    if not isinstance(node, cst.Name):
        return imported and isinstance(node, cst.Attribute) and not full_name(node).startswith("self.")
    definition = module.definition(node, node.value)
    if isinstance(definition, (cst.Import, cst.ImportFrom)):
        return imported
    if definition is None:
        return False
    statement = next(
        (each for each in (definition, *module.ancestors(definition)) if isinstance(each, (cst.Assign, cst.AnnAssign))),
        None,
    )
    value = None if statement is None else statement.value
    while isinstance(value, cst.Subscript):
        value = value.value
    return isinstance(value, cst.Call) and _maker(value).endswith(makers)


def _maker(call: cst.Call) -> str:
    func = call.func
    while isinstance(func, cst.Subscript):
        func = func.value
    return full_name(func).rpartition(".")[2]
