"""The names that move, and their new modules. No other file may list them."""

from __future__ import annotations

from typing import NamedTuple

ASGIREF = "unfazed_compat.asgiref"
DJANGO = "unfazed_compat.django"
NATIVE = "unfazed.concurrency"


class Origin(NamedTuple):
    """A module whose names move."""

    target: str
    names: frozenset[str]


_SYNC_NAMES = frozenset(
    {
        "AsyncSingleThreadContext",
        "AsyncToSync",
        "SyncToAsync",
        "ThreadSensitiveContext",
        "async_to_sync",
        "iscoroutinefunction",
        "markcoroutinefunction",
        "sync_to_async",
    }
)

ORIGINS = {
    "asgiref.sync": Origin(ASGIREF, _SYNC_NAMES),
    "asgiref.local": Origin(ASGIREF, frozenset({"Local"})),
    "channels.db": Origin(DJANGO, frozenset({"database_sync_to_async"})),
    # names that have moved already: their calls may still become native
    ASGIREF: Origin(ASGIREF, _SYNC_NAMES | {"Local"}),
    DJANGO: Origin(DJANGO, frozenset({"database_sync_to_async"})),
}

WRAPPERS = frozenset({"sync_to_async", "async_to_sync", "database_sync_to_async"})
CLASSES = frozenset({"SyncToAsync", "AsyncToSync"})
NAMED_IN_STRINGS = WRAPPERS | CLASSES | {"Local", "ThreadSensitiveContext"}


def is_package_of_origin(module: str) -> bool:
    """Return whether *module* is a package that contains a module whose names move."""
    return any(origin.startswith(f"{module}.") for origin in ORIGINS)
