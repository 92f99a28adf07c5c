"""The imports of a generated module, and the names that they bind. No two objects get the same name."""

from __future__ import annotations

from typing import NamedTuple

from ._sources import Origin


class _Import(NamedTuple):
    module: str
    name: str | None


class Imports:
    """Collects the imports of a generated module.

    Args:
        taken: The names of the module's own classes.
        own_package: The outermost package that contains the module. Names of this package are imported from the module
            that defines them, because importing them from a package could be circular.
    """

    def __init__(self, taken: set[str], own_package: str) -> None:
        self._own_package = own_package
        self._locals: dict[str, _Import | None] = dict.fromkeys(taken)
        self.definitions: dict[str, str] = {}  # what the module defines itself, by name
        self._modules: set[_Import] = set()  # imported as `import module`
        self._at_run_time: set[_Import] = set()  # imported at run time too, not only for type checkers

    def name_of(self, origin: Origin, avoid: frozenset[str] = frozenset()) -> str:
        """Return the name of what *origin* points to, and import it. The name is none of *avoid*."""
        outer, dot, rest = (origin.name or "").partition(".")
        is_own = origin.is_exact or origin.module.partition(".")[0] == self._own_package
        wanted = _Import(origin.module if is_own else _public_module(origin.module, outer), outer or None)
        if not origin.is_for_types and origin.find() is not None:  # otherwise only type checkers can import it
            self._at_run_time.add(wanted)
        if wanted.name is None:
            self._modules.add(wanted)
            return wanted.module
        return self._local_for(wanted, outer, avoid) + dot + rest

    def own_name_of(self, origin: Origin, avoid: frozenset[str]) -> str:
        """Return the name of what the module defines itself in place of *origin*. The name is none of *avoid*."""
        return self._local_for(_Import("", f"{origin.module}.{origin.name}"), origin.name or "", avoid)

    def _local_for(self, wanted: _Import, name: str, avoid: frozenset[str]) -> str:
        known = next((local for local, each in self._locals.items() if each == wanted and local not in avoid), None)
        local = known or name
        while local in avoid or self._locals.get(local, wanted) != wanted:
            local += "_"
        self._locals[local] = wanted
        return local

    def lines(self) -> tuple[list[str], list[str]]:
        """Return the import lines for run time, and the import lines for type checkers only."""
        at_run_time: list[str] = []
        for_types: list[str] = []
        named = [(local, wanted) for local, wanted in self._locals.items() if wanted and local not in self.definitions]
        for local, wanted in sorted([*named, *((each.module, each) for each in self._modules)]):
            where = at_run_time if wanted in self._at_run_time else for_types
            if wanted.name is None:
                where.append(f"import {wanted.module}")
            else:
                renamed = f" as {local}" if local != wanted.name else ""
                where.append(f"from {wanted.module} import {wanted.name}{renamed}")
        return at_run_time, for_types


def _public_module(module: str, name: str) -> str:
    """Return the outermost package that exports the same object under the same name, or else *module*."""
    parts = module.split(".")
    itself = Origin(module, name).find()
    for length in range(1, len(parts)):
        package = ".".join(parts[:length])
        offered = Origin(package, "__all__").find() or ()
        if name in offered and itself is not None and Origin(package, name).find() is itself:
            return package
    return module
