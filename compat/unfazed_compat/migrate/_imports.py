"""Rewrite imports. Each keeps its position and its form."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import libcst as cst

from ._bindings import Binding, certain
from ._module import Module, dotted, full_name, has_comment
from ._origins import NATIVE, ORIGINS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._plan import Plan

_LINE_LENGTH = 88  # characters without the indent; Black's default


def plan_imports(plan: Plan, bindings: Sequence[Binding]) -> None:
    """Plan how to rewrite the imports that bind *bindings*."""
    by_statement: dict[cst.Import | cst.ImportFrom, dict[cst.ImportAlias, Binding]] = {}
    for binding in bindings:
        if binding.problem:
            continue
        if binding.is_dotted:
            _rename_uses(plan, binding)
        by_statement.setdefault(binding.statement, {})[binding.alias] = binding
    for statement, moving in by_statement.items():
        others = (_of_import if isinstance(statement, cst.Import) else _of_import_from)(plan, statement, moving)
        if others is not None:
            plan.replace_statement(statement, others)


def _rename_uses(plan: Plan, binding: Binding) -> None:
    """Rename the module in `asgiref.sync.sync_to_async`."""
    for use in binding.uses:
        target = ORIGINS[use.origin].target
        if use not in plan.gone and target != use.origin:
            plan.replace(use.module_node, partial(_dotted, target))


def _dotted(target: str, _: cst.CSTNode) -> cst.CSTNode:
    return dotted(target)


def _is_kept(plan: Plan, binding: Binding) -> bool:
    """Return whether something still needs *binding* once the calls are rewritten."""
    return (
        not any(use in plan.gone for use in binding.uses)
        or any(use not in plan.gone for use in binding.uses)
        or binding.bound in plan.options.exported
        or not all(certain(plan.module, use) for use in binding.uses)
    )


def _helper_imports(plan: Plan, bindings: Sequence[Binding], *, needed: bool) -> list[cst.BaseSmallStatement]:
    """Return the import of the helpers that replace *bindings*. Unless *needed*, leave out those that are imported."""
    helpers = sorted({helper for binding in bindings for helper in plan.helpers.get(binding, ())})
    if not needed:
        helpers = [each for each in helpers if not plan.module.assignments(bindings[0].scope, each)]
    if not helpers:
        return []
    statement = cst.ImportFrom(dotted(NATIVE), [cst.ImportAlias(cst.Name(each)) for each in helpers])
    if len(plan.module.code(statement)) <= _LINE_LENGTH or not _has_own_line(plan.module, bindings[0].statement):
        return [statement]
    return [_in_lines(statement)]


def _has_own_line(module: Module, statement: cst.CSTNode) -> bool:
    line = module.parent(statement)
    return isinstance(line, cst.SimpleStatementLine) and len(line.body) == 1


def _in_lines(statement: cst.ImportFrom) -> cst.ImportFrom:
    """Return *statement* with each name in a line of its own."""
    assert not isinstance(statement.names, cst.ImportStar), "we have made it"

    def line(last_line: str) -> cst.ParenthesizedWhitespace:
        return cst.ParenthesizedWhitespace(indent=True, last_line=cst.SimpleWhitespace(last_line))

    count = len(statement.names)
    names = [
        alias.with_changes(comma=cst.Comma(whitespace_after=line("    " if index < count else "")))
        for index, alias in enumerate(statement.names, 1)
    ]
    left = cst.LeftParen(whitespace_after=line("    "))
    return statement.with_changes(names=names, lpar=left, rpar=cst.RightParen())


def _of_import(
    plan: Plan, statement: cst.Import | cst.ImportFrom, moving: dict[cst.ImportAlias, Binding]
) -> list[cst.BaseSmallStatement] | None:
    """Return what replaces `import asgiref.sync as sync`, or `None` if it stays."""
    statement = cst.ensure_type(statement, cst.Import)
    names: list[cst.ImportAlias] = []
    changed = False
    for alias in statement.names:
        binding = moving.get(alias)
        targets = [] if binding is None else binding.targets
        if binding is None or (targets == [binding.origin] and _is_kept(plan, binding)):
            names.append(alias)
        elif binding.is_dotted and not binding.uses:
            names.append(alias)
            if binding.origin:
                plan.report(
                    statement, f"nothing here uses `{binding.origin}`: remove the import, or name what needs it"
                )
        else:
            changed = True
            if _is_kept(plan, binding):
                plan.counts["imports"] += 1
                names += [alias.with_changes(name=dotted(target)) for target in targets]
    helpers = _helper_imports(plan, list(moving.values()), needed=not names and _has_comment(plan.module, statement))
    if not changed and not helpers:
        return None
    return [*([statement.with_changes(names=_ended(names, statement.names))] if names else []), *helpers]


def _of_import_from(
    plan: Plan, statement: cst.Import | cst.ImportFrom, moving: dict[cst.ImportAlias, Binding]
) -> list[cst.BaseSmallStatement] | None:
    """Return what replaces `from asgiref.sync import sync_to_async`, or `None` if it stays."""
    statement = cst.ensure_type(statement, cst.ImportFrom)
    assert not isinstance(statement.names, cst.ImportStar), "it is reported"
    source = full_name(statement.module)
    by_module: dict[str, list[cst.ImportAlias]] = {}
    for alias in statement.names:
        binding = moving.get(alias)
        if binding is None:
            by_module.setdefault(source, []).append(alias)
        elif _is_kept(plan, binding) or _has_own_comment(alias):
            module, name = _target(binding)
            by_module.setdefault(module, []).append(name)
            if module != source:
                plan.counts["imports"] += 1
    helpers = _helper_imports(
        plan, list(moving.values()), needed=not by_module and _has_comment(plan.module, statement)
    )
    if list(by_module) == [source] and not helpers and len(by_module[source]) == len(statement.names):
        return None
    return [
        *(
            statement.with_changes(module=dotted(module), names=_ended(names, statement.names))
            for module, names in by_module.items()
        ),
        *helpers,
    ]


def _target(binding: Binding) -> tuple[str, cst.ImportAlias]:
    """Return the module and the alias that import the replacement of *binding*."""
    (target,) = binding.targets
    if binding.name:
        return target, binding.alias
    package, _, module = target.rpartition(".")
    asname = binding.alias.asname
    if binding.bound != module and asname is None:
        asname = cst.AsName(cst.Name(binding.bound))
    return package, binding.alias.with_changes(name=cst.Name(module), asname=asname)


def _has_comment(module: Module, statement: cst.CSTNode) -> bool:
    """Return whether the statement's line has a comment. Removing the line would remove it."""
    return has_comment(module.parent(statement))


def _ended(names: Sequence[cst.ImportAlias], originals: Sequence[cst.ImportAlias]) -> list[cst.ImportAlias]:
    """Return *names*; the last one gets the comma of the last original."""
    *others, last = names
    end = originals[-1].comma
    if isinstance(last.comma, cst.Comma) and has_comment(last.comma):
        return [*others, last.with_deep_changes(last.comma.whitespace_after, last_line=cst.SimpleWhitespace(""))]
    return [*others, last.with_changes(comma=end)]


def _has_own_comment(alias: cst.ImportAlias) -> bool:
    return isinstance(alias.comma, cst.Comma) and has_comment(alias.comma)
