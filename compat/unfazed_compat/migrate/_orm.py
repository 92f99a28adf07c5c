"""Guess from its names whether a file uses Django's ORM. If so, a thread that runs its code may be in a transaction.

A transaction belongs to the thread that opened it. `async_to_sync` runs thread-sensitive code in the calling thread,
and so in its transaction. The background event loop would run it in other threads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import libcst as cst

from ._module import full_name

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ._module import Module

# Modules, and packages with everything in them.
_MODULES = ("channels.db", "django.contrib", "django.db", "django.test", "unfazed_compat.django")
_FUNCTIONS = frozenset({"get_list_or_404", "get_model", "get_object_or_404", "get_user_model"})
_ATTRIBUTES = frozenset({"_base_manager", "_default_manager", "django_db", "get_model", "objects"})


def uses_orm(module: Module) -> bool:
    """Return whether the file imports models or Django's database modules, or asks for a manager (`objects`)."""
    if any(each.attr.value in _ATTRIBUTES for each in module.all_of(cst.Attribute)):
        return True
    return any(_is_of_orm(name) for statement in module.imports for name in _imported(statement))


def _imported(statement: cst.Import | cst.ImportFrom) -> Iterator[str]:
    """Yield the dotted names that *statement* imports."""
    source = full_name(statement.module) if isinstance(statement, cst.ImportFrom) else ""
    # with a star import, nothing is rewritten anyway
    for alias in () if isinstance(statement.names, cst.ImportStar) else statement.names:
        yield f"{source}.{alias.evaluated_name}".removeprefix(".")


def _is_of_orm(name: str) -> bool:
    parts = name.split(".")
    return (
        "models" in parts
        or any(name == module or name.startswith(f"{module}.") for module in _MODULES)
        or (parts[0] == "django" and parts[-1] in _FUNCTIONS)
    )
