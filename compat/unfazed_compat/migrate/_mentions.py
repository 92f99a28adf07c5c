"""Which names files use from each other.

Tests patch names by strings, and modules import names that another module has imported itself. If another file uses a
name, its import must stay when the calls in its own file become native.
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


# Every file that may change contains one of these words. Other files are not parsed.
_WORDS = re.compile(rb"\b(?:asgiref|unfazed_compat|database_sync_to_async)\b|" + _STRING.pattern)


def has_words(source: bytes) -> bool:
    """Return whether *source* may need changes or reports."""
    return _WORDS.search(source) is not None


def mentions_in(source: bytes) -> set[tuple[str, str]]:
    """Return the pairs of module and name that *source* mentions, except for asgiref's and our own modules."""
    found = {(module, name) for module, name in _STRING.findall(source)}
    for module, names in _IMPORT.findall(source):
        found.update((module, name) for name in _NAME.findall(names))
    decoded = {(module.decode(errors="replace").lstrip("."), name.decode()) for module, name in found}
    return {(module, name) for module, name in decoded if module not in ORIGINS}


def names_of(path: Path, mentions: Iterable[tuple[str, str]]) -> frozenset[str]:
    """Return the names that other files use from the module in *path*."""
    parts = path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts
    dotted = "." + ".".join(parts)
    return frozenset(
        name for module, name in mentions if (dotted.endswith(f".{module}") if module else path.stem == "__init__")
    )
