"""Find the places that are reported and never rewritten, with `--native` or without."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import libcst as cst

from ._functions import function_of, is_async, is_generator
from ._module import full_name
from ._origins import CLASSES, NAMED_IN_STRINGS, ORIGINS, WRAPPERS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._bindings import Binding, Use
    from ._functions import Function
    from ._module import Module
    from ._plan import Plan

_IN_STRINGS = re.compile(rf"[\w.]+\.({'|'.join(sorted(NAMED_IN_STRINGS))})")
_MODULES_IN_STRINGS = ("asgiref.sync", "asgiref.local", "channels.db")
_ALL_AT_ONCE = frozenset({"dict", "list", "set", "sorted", "tuple"})
_STEPS = frozenset({"iter", "next"})


def find_in_imports(plan: Plan) -> None:
    """Report imports that cannot be rewritten."""
    for statement in plan.module.imports:
        if isinstance(statement, cst.Import) or statement.relative:
            continue
        source = full_name(statement.module)
        if source not in ("asgiref.sync", "asgiref.local"):
            continue
        if isinstance(statement.names, cst.ImportStar):
            plan.report(statement, f"`from {source} import *` hides which names are used: import them by name")
            continue
        for alias in statement.names:
            if alias.evaluated_name not in ORIGINS[source].names:
                plan.report(statement, f"`{source}.{alias.evaluated_name}` has no counterpart: it stays")


def find_in_strings(plan: Plan) -> None:
    """Report strings that contain a name that moves, such as the targets of `mock.patch`."""
    for string in plan.module.all_of(cst.SimpleString):
        if isinstance(plan.module.parent(string), cst.Expr):
            continue  # a docstring
        value = string.evaluated_value
        if isinstance(value, str) and (value in _MODULES_IN_STRINGS or _IN_STRINGS.fullmatch(value)):
            plan.report(string, f'"{value}" names it by a string: see that it still names what the code uses')


def looks_suspicious(module: Module, bindings: Sequence[Binding]) -> bool:
    """Return whether the uses may contain anything to report, judged by the spelling of names.

    Names are resolved only then, because resolving takes longer than everything else together.
    """
    bound = {binding.bound: binding.name for binding in bindings if binding.name in WRAPPERS | CLASSES}
    if module.end_handlers or any(not binding.name or binding.bound in module.captured for binding in bindings):
        return True
    special = {each.name.value for each in module.async_defs} | {
        function.name.value
        for each in module.all_of(cst.Yield)
        if isinstance(function := module.enclosing_function(each), cst.FunctionDef)
    }
    names = (name for name in module.all_of(cst.Name) if name.value in bound)
    return any(_is_suspicious(module, name, bound[name.value], special) for name in names)


def _is_suspicious(module: Module, name: cst.Name, wrapper: str, special: set[str]) -> bool:
    parent = module.parent(name)
    if isinstance(parent, cst.Call) and parent.func is name:
        wrapped = full_name(parent.args[0].value) if parent.args else ""
        above = module.parent(parent)
        return (
            (isinstance(above, cst.Call) and above.func is parent and module.runs_in_loop(above))
            if wrapper == "async_to_sync"
            else wrapped in _ALL_AT_ONCE | _STEPS
            or wrapped.rpartition(".")[2] in special
            or _decorates_special(above, module, special)
        )
    return isinstance(parent, (cst.Attribute, cst.Arg)) or _decorates_special(parent, module, special)


def _decorates_special(node: cst.CSTNode, module: Module, special: set[str]) -> bool:
    function = module.parent(node) if isinstance(node, cst.Decorator) else None
    return isinstance(function, cst.FunctionDef) and function.name.value in special


def find_in_bindings(plan: Plan, bindings: Sequence[Binding]) -> None:
    """Report code that uses internals of asgiref, or inherits from its classes or checks for them."""
    for binding in bindings:
        for use in binding.uses:
            reason = _made_of(plan, use)
            if reason:
                plan.report(use.node, reason)
                binding.problem = binding.problem or reason
        if binding.problem and (binding.uses or binding.origin):
            plan.report(binding.statement, f"the import of `{binding.bound}` stays as it is: {binding.problem}")


def _made_of(plan: Plan, use: Use) -> str:
    module = plan.module
    parent = module.parent(use.node)
    if isinstance(parent, cst.Attribute) and use.name != "Local":
        return f"`{full_name(parent)}` is an internal"
    if isinstance(parent, cst.Arg) and isinstance(module.parent(parent), cst.ClassDef):
        return f"a class inherits from `{use.name}`"
    if isinstance(parent, cst.Arg) and use.name in CLASSES:
        call = module.parent(parent)
        if isinstance(call, cst.Call) and full_name(call.func) in ("isinstance", "issubclass"):
            return f"`{full_name(call.func)}` asks for `{use.name}`"
    return ""


def wrong_for_thread(plan: Plan, use: Use, wrapped: cst.BaseExpression | Function) -> str:
    """Return what is wrong with running *wrapped* in a thread, or an empty text."""
    if plan.module.is_builtin(wrapped, _ALL_AT_ONCE):
        name = full_name(wrapped)
        return (
            f"`{use.name}({name})` fetches all at once: write `[item async for item in queryset]` for a queryset, "
            "with `iterate_in_threadpool(iterable)` for anything else"
        )
    if plan.module.is_builtin(wrapped, _STEPS):
        return f"`{use.name}({full_name(wrapped)})` is a step of an iterator: write `iterate_in_threadpool(iterable)`"
    if isinstance(wrapped, cst.FunctionDef):
        function: Function | None = wrapped
    else:
        function = function_of(plan.module, wrapped)
    if is_generator(plan.module, function):
        return f"`{use.name}` of a generator runs nothing in the thread: write `iterate_in_threadpool(...)`"
    if is_async(function):
        return f"`{use.name}` of an async function is an error: await it"
    return ""
