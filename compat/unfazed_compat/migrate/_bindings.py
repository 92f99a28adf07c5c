"""The names that imports bind, and all uses of these names, as libcst's scopes resolve them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from itertools import takewhile
from typing import TYPE_CHECKING

import libcst as cst
from libcst.metadata import Assignment, Scope

from ._module import Module, full_name
from ._origins import ORIGINS, is_package_of_origin

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from libcst.metadata import Access


@dataclass(eq=False)
class Use:
    """One use of a name that moves."""

    name: str
    origin: str
    node: cst.Name | cst.Attribute
    binding: Binding

    @property
    def module_node(self) -> cst.BaseExpression:
        """The part of an attribute access that names the module."""
        return cst.ensure_type(self.node, cst.Attribute).value


@dataclass(eq=False)
class Binding:
    """One name that an import statement binds, if it moves or contains names that move."""

    statement: cst.Import | cst.ImportFrom
    alias: cst.ImportAlias
    bound: str
    module: Module
    name: str = ""  # empty: the whole module
    origin: str = ""
    uses: list[Use] = field(default_factory=list[Use])
    problem: str = ""  # why it is left alone

    @cached_property
    def scope(self) -> Scope:
        return self.module.scope(self.statement)

    @property
    def is_dotted(self) -> bool:
        """Whether the code uses the full dotted name, as after `import asgiref.sync`."""
        return isinstance(self.statement, cst.Import) and self.alias.asname is None

    @property
    def targets(self) -> list[str]:
        """The modules that replace the imported one."""
        origins = [self.origin] if self.origin else sorted({use.origin for use in self.uses})
        return list(dict.fromkeys(ORIGINS[origin].target for origin in origins))


def find_bindings(module: Module) -> Iterator[Binding]:
    """Yield the bindings of names that move."""
    for statement in module.imports:
        if isinstance(statement.names, cst.ImportStar):
            continue
        for alias in statement.names:
            binding = _binding(module, statement, alias)
            if binding is not None:
                yield binding


def _binding(module: Module, statement: cst.Import | cst.ImportFrom, alias: cst.ImportAlias) -> Binding | None:
    bound = alias.evaluated_alias or alias.evaluated_name
    if isinstance(statement, cst.Import):
        name = alias.evaluated_name
        if name not in ORIGINS and (alias.asname is not None or not is_package_of_origin(name)):
            return None
        binding = Binding(statement, alias, bound, module, origin=name if name in ORIGINS else "")
        (_collect_dotted if alias.asname is None else _collect_attributes)(module, binding)
        return binding
    if statement.relative:
        return None
    source = full_name(statement.module)
    if f"{source}.{alias.evaluated_name}" in ORIGINS:
        binding = Binding(statement, alias, bound, module, origin=f"{source}.{alias.evaluated_name}")
        _collect_attributes(module, binding)
        return binding
    if source in ORIGINS and alias.evaluated_name in ORIGINS[source].names:
        return Binding(statement, alias, bound, module, alias.evaluated_name, source)
    return None


def resolve(module: Module, bindings: Iterable[Binding]) -> None:
    """Collect the uses of imported names. This is the slowest step of all."""
    for binding in bindings:
        if binding.name:
            for access in _accesses(binding.scope, [binding.bound]):
                if module.is_code(access.node):
                    node = cst.ensure_type(access.node, cst.Name)
                    binding.uses.append(Use(binding.name, binding.origin, node, binding))


def _accesses(scope: Scope, names: Iterable[str]) -> list[Access]:
    """Return all uses of the *names* that *scope* binds."""
    found = {access: None for name in names for each in scope.assignments[name] for access in each.references}
    return list(found)


def _collect_attributes(module: Module, binding: Binding) -> None:
    """Collect the uses of a module that has a plain name: `sync.sync_to_async`."""
    for access in _accesses(binding.scope, [binding.bound]):
        parent = module.parent(access.node) if module.is_code(access.node) else None
        if isinstance(parent, cst.Attribute) and parent.attr.value in ORIGINS[binding.origin].names:
            _add(module, binding, binding.origin, parent)
        else:
            name = full_name(parent) if isinstance(parent, cst.Attribute) else binding.bound
            binding.problem = f"`{name}` is used, which has no counterpart"
    if not certain_name(module, binding.scope, binding.bound):
        binding.problem = f"`{binding.bound}` is bound more than once"


def _collect_dotted(module: Module, binding: Binding) -> None:
    """Collect the uses of a module that has a dotted name: `asgiref.sync.sync_to_async`."""
    root = binding.bound.partition(".")[0]
    group = [
        each
        for each in binding.scope.assignments
        if each.scope is binding.scope and (each.name == root or each.name.startswith(f"{root}."))
    ]
    imported = {each.name for each in group}
    others = [each for each in group if not isinstance(each, Assignment) or not isinstance(each.node, cst.Import)]
    if others or root in module.captured:
        binding.problem = f"`{root}` is bound more than once"
        return
    for access in _accesses(binding.scope, {each.name for each in group}):
        if not module.is_code(access.node):
            binding.problem = "a string annotation names it"
            continue
        chain = _chain(module, access.node)
        name = full_name(chain[-1])
        origin = next((each for each in ORIGINS if name.startswith(f"{each}.")), None)
        if origin is not None and (binding.origin == origin or origin not in imported):
            node = next(each for each in chain if full_name(each).count(".") == origin.count(".") + 1)
            if cst.ensure_type(node, cst.Attribute).attr.value in ORIGINS[origin].names:
                _add(module, binding, origin, cst.ensure_type(node, cst.Attribute))
            else:
                binding.problem = f"`{full_name(node)}` is used, which has no counterpart"
        elif origin is None and not any(name.startswith(f"{each}.") for each in imported - {root}):
            binding.problem = f"`{name}` is used, which has no counterpart"


def _chain(module: Module, node: cst.CSTNode) -> list[cst.CSTNode]:
    """Return *node* and the attribute accesses around it, innermost first: `a`, `a.b`, `a.b.c`."""
    chain = [node]
    parent = module.parent(node)
    while isinstance(parent, cst.Attribute) and parent.value is chain[-1]:
        chain.append(parent)
        parent = module.parent(parent)
    return chain


def _add(module: Module, binding: Binding, origin: str, node: cst.Attribute) -> None:
    if isinstance(module.parent(node), (cst.AssignTarget, cst.AugAssign, cst.AnnAssign, cst.Del)):
        binding.problem = f"`{full_name(node)}` is assigned to"
    binding.uses.append(Use(node.attr.value, origin, node, binding))


def certain_name(module: Module, scope: Scope, name: str) -> bool:
    """Return whether exactly one statement binds *name* in *scope*."""
    return len(module.assignments(scope, name)) == 1 and name not in module.captured


def certain(module: Module, use: Use) -> bool:
    """Return whether *use* surely refers to what its import binds.

    libcst knows the order of lines. It knows neither loops nor the order of calls. So any other binding of the same
    name makes the use uncertain.
    """
    binding = use.binding
    root = binding.bound.partition(".")[0]
    if module.has_star_import or root in module.captured:
        return False
    between = takewhile(lambda scope: scope is not binding.scope, module.scopes_up(module.scope(use.node)))
    if any(module.assignments(scope, root) for scope in between):
        return False
    return binding.is_dotted or certain_name(module, binding.scope, root)
