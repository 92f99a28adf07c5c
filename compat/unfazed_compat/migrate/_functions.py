"""What a file shows of a wrapped function that it defines."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import libcst as cst

from ._module import Module, full_name, walk

if TYPE_CHECKING:
    from collections.abc import Iterator

Function = cst.FunctionDef | cst.Lambda


def function_of(module: Module, node: cst.BaseExpression) -> Function | None:
    """Return the function that *node* surely refers to, if this file defines it."""
    if isinstance(node, cst.Lambda):
        return node
    found: cst.CSTNode | None = None
    if isinstance(node, cst.Name):
        found = module.definition(node, node.value)
    elif isinstance(node, cst.Attribute) and isinstance(node.value, cst.Name):
        found = _method(module, node, node.value.value, node.attr.value)
    # a decorator may return anything
    return found if isinstance(found, cst.FunctionDef) and not found.decorators else None


def _method(module: Module, node: cst.CSTNode, owner: str, name: str) -> cst.CSTNode | None:
    """Return the method *name* of the enclosing class, if *owner* is its `self`."""
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


def is_generator(module: Module, function: Function | None) -> bool:
    return function is not None and any(
        module.enclosing_function(each) is function for each in module.all_of(cst.Yield)
    )


class _Reached(NamedTuple):
    """The nodes inside one function."""

    nodes: set[cst.CSTNode]
    calls: list[cst.Call]
    targets: list[cst.Attribute]


def _inside(function: Function) -> _Reached:
    nodes = {child for child, _ in walk(function)}
    targets = [each.target for each in nodes if isinstance(each, cst.AssignTarget)]
    return _Reached(
        nodes,
        [each for each in nodes if isinstance(each, cst.Call)],
        [each for each in targets if isinstance(each, cst.Attribute)],
    )


def _reached(module: Module, function: Function) -> Iterator[_Reached]:
    """Yield the nodes inside *function*, and inside each function of this file that it calls or passes on."""
    seen: set[cst.CSTNode] = set()
    waiting: list[Function] = [function]
    while waiting:
        function = waiting.pop()
        seen.add(function)
        inside = _inside(function)
        yield inside
        for call in inside.calls:
            for each in (call.func, *(argument.value for argument in call.args)):
                called = function_of(module, each)
                if called is not None and called not in seen:
                    waiting.append(called)


def uses_any(module: Module, function: Function, nodes: set[cst.CSTNode]) -> bool:
    """Return whether *function*, or a function of this file that it calls, contains any of *nodes*."""
    return any(inside.nodes & nodes for inside in _reached(module, function))


def sets_context(module: Module, function: Function) -> bool:
    """Return whether this file shows that *function*, or a function that it calls, sets context variables."""
    for inside in _reached(module, function):
        for call in inside.calls:
            func = call.func
            if not isinstance(func, cst.Attribute) or func.attr.value not in ("set", "reset") or not call.args:
                continue
            if _is_made_by(module, func.value, ("ContextVar",), imported=True):
                return True
        if any(_is_made_by(module, target.value, ("Local",), imported=False) for target in inside.targets):
            return True
    return False


def _is_made_by(module: Module, node: cst.BaseExpression, makers: tuple[str, ...], *, imported: bool) -> bool:
    """Return whether *node* is an instance of one of *makers*. With *imported*, imported names count too."""
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
    return isinstance(value, cst.Call) and _maker(value).endswith(makers)


def _maker(call: cst.Call) -> str:
    func = call.func
    while isinstance(func, cst.Subscript):
        func = func.value
    return full_name(func).rpartition(".")[2]
