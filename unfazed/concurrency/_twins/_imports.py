"""The imports of a generated module, and the names that they give: no two things get the same."""

from __future__ import annotations

from typing import NamedTuple

from ._sources import Origin


class _Import(NamedTuple):
    module: str
    name: str | None


class Imports:
    """What a generated module imports.

    Args:
        taken: The names of the module's own classes.
        own_package: The outermost package that the module is in, whose modules may import each other only as they are.
    """

    def __init__(self, taken: set[str], own_package: str) -> None:
        self._own_package = own_package
        self._locals: dict[str, _Import | None] = dict.fromkeys(taken)
        self._modules: set[_Import] = set()  # those that are imported themselves
        self._at_run_time: set[_Import] = set()

    def name_of(self, origin: Origin, avoid: frozenset[str] = frozenset()) -> str:
        """Return what to write for what comes from *origin*, and see to its import. No name of *avoid* will do."""
        outer, dot, rest = (origin.name or "").partition(".")
        is_own = origin.is_exact or origin.module.partition(".")[0] == self._own_package
        wanted = _Import(origin.module if is_own else _public_module(origin.module, outer), outer or None)
        if not origin.is_for_types and origin.find() is not None:  # else only type checkers find it, here at least
            self._at_run_time.add(wanted)
        if wanted.name is None:
            self._modules.add(wanted)
            return wanted.module
        known = next((local for local, each in self._locals.items() if each == wanted and local not in avoid), None)
        local = known or outer
        while local in avoid or self._locals.get(local, wanted) != wanted:
            local += "_"
        self._locals[local] = wanted
        return local + dot + rest

    def lines(self) -> tuple[list[str], list[str]]:
        """Return the lines for run time, and those for type checkers alone."""
        at_run_time: list[str] = []
        for_types: list[str] = []
        named = [(local, wanted) for local, wanted in self._locals.items() if wanted is not None]
        for local, wanted in sorted([*named, *((each.module, each) for each in self._modules)]):
            where = at_run_time if wanted in self._at_run_time else for_types
            if wanted.name is None:
                where.append(f"import {wanted.module}")
            else:
                renamed = f" as {local}" if local != wanted.name else ""
                where.append(f"from {wanted.module} import {wanted.name}{renamed}")
        return at_run_time, for_types


def _public_module(module: str, name: str) -> str:
    """Return the outermost package that offers the same under the same name, or else *module* itself."""
    parts = module.split(".")
    itself = Origin(module, name).find()
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        offered = Origin(package, "__all__").find() or ()
        if name in offered and itself is not None and Origin(package, name).find() is itself:
            return package
    return module
