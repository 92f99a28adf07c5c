"""What files say about each other's names: tests patch them by strings, modules import them from where they are not.

A name that another file needs must not go when the calls in its own file become native.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from ._origins import NAMED_IN_STRINGS, ORIGINS

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

_NAMES = "|".join(sorted(NAMED_IN_STRINGS)).encode()
_STRING = re.compile(rb"""["']([\w.]+)\.(""" + _NAMES + rb""")["']""")
_IMPORT = re.compile(rb"from[ \t]+([\w.]+)[ \t]+import[ \t]*(\([^)]*\)|[^\n]*)")
_NAME = re.compile(rb"\b(?:" + _NAMES + rb")\b")


# What every file with something to do has in it, in an import or in a string: others are not parsed.
_WORDS = re.compile(rb"\b(?:asgiref|unfazed_compat|database_sync_to_async)\b|" + _STRING.pattern)


def has_words(source: bytes) -> bool:
    """Return whether there can be anything to do in *source*."""
    return _WORDS.search(source) is not None


def mentions_in(source: bytes) -> set[tuple[str, str]]:
    """Return the modules and names that *source* speaks of, without those that the names come from."""
    found = {(module, name) for module, name in _STRING.findall(source)}
    for module, names in _IMPORT.findall(source):
        found.update((module, name) for name in _NAME.findall(names))
    decoded = {(module.decode(errors="replace").lstrip("."), name.decode()) for module, name in found}
    return {(module, name) for module, name in decoded if module not in ORIGINS}


def names_of(path: Path, mentions: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Return the names that others need of the module in *path*."""
    parts = path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts
    dotted = "." + ".".join(parts)
    return frozenset(
        name for module, name in mentions if (dotted.endswith(f".{module}") if module else path.stem == "__init__")
    )
