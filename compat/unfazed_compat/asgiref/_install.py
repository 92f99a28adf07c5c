"""Putting this behaviour behind asgiref's own classes, and taking it away again.

What is replaced is the methods of the classes in `asgiref.sync`, so that everyone who has imported, subclassed or
instantiated them moves too. Their state stays where it is, for it is shared anyway; calls that are running end as they
began, and each method gets on with both kinds of the others. `_lock` guards what has been replaced; it is held only
here, where no thread is waited for, and a finalizer or signal handler on the same thread may take it again.
"""

from __future__ import annotations

import threading
from types import FunctionType
from typing import TYPE_CHECKING, Any, final

from unfazed.concurrency import UnfazedError

from . import _shared
from ._async_to_sync import AsyncSingleThreadContext, AsyncToSync
from ._sync_to_async import SyncToAsync, ThreadSensitiveContext

if TYPE_CHECKING:
    from types import TracebackType

OLDEST = (3, 8, 1)  # that Django 5.2 takes
NEWEST = (3, 13)

_CLASSES = (SyncToAsync, AsyncToSync, ThreadSensitiveContext, AsyncSingleThreadContext)
_METHODS = (
    *("__init__", "thread_handler", "main_wrap", "__get__", "__call__"),  # the last one first calls the others
    *("__enter__", "__exit__", "__aenter__", "__aexit__"),
)
_ATTRIBUTES = (
    *_METHODS,
    "executors",  # which keeps contexts apart, where asgiref's does not
    *("__code__", "__defaults__", "__kwdefaults__"),  # as what `inspect` takes a wrapper for, before Python 3.12
)
_MISSING = object()

_lock = threading.RLock()
_replaced: list[tuple[type, str, Any, Any]] = []  # of which class, what, by what, what it was


@final
class Installed:
    """What `install` returns: a context manager that uninstalls at its end what it has installed."""

    def __init__(self, did_it: bool) -> None:
        self._did_it = did_it

    @property
    def out_of_use(self) -> tuple[str, ...]:
        """What others had patched before it was installed, and is out of use meanwhile: the names of the methods."""
        with _lock:
            return tuple(
                f"{theirs.__name__}.{name}"
                for theirs, name, _, before in _replaced
                if name in _METHODS and before is not _MISSING and not _is_asgirefs(before)
            )

    def __enter__(self) -> Installed:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._did_it:
            uninstall()


def install() -> Installed:
    """Put the behaviour of this module behind the classes of `asgiref.sync`, for everyone who uses them.

    To be called once, where the program starts; before a monitoring agent patches them, for what was patched before is
    out of use meanwhile. Doing so twice is harmless, and safe while calls are running.

    Returns:
        A context manager: leaving it calls `uninstall`, if it was this call that installed. Its `out_of_use` names what
        others had patched before.

    Raises:
        UnfazedError: If asgiref is not installed, or is not one of the versions that this is known to work with.

    Example:
        `unfazed_compat.asgiref.install()` at the top of a Django project's `settings.py`.
    """
    original: Any = _shared.original
    if original is None:
        raise UnfazedError(
            "install() needs asgiref, which is not installed; import the names from unfazed_compat.asgiref instead"
        )
    version = _version()
    if not (version >= OLDEST and version[:2] <= NEWEST):
        raise UnfazedError(
            f"install() knows asgiref {_text(OLDEST)} to {_text(NEWEST)}, and not {_text(version)}; import the names "
            f"from unfazed_compat.asgiref instead, or use a version that it knows"
        )
    with _lock:
        if _replaced:
            return Installed(False)
        try:
            _replace(original)
        except BaseException:  # of a signal handler: all or nothing
            uninstall()
            raise
    return Installed(True)


def _replace(original: Any) -> None:
    for ours in _CLASSES:
        theirs = getattr(original, ours.__name__, None)  # older ones have no AsyncSingleThreadContext
        for name in _ATTRIBUTES:
            value = ours.__dict__.get(name, _MISSING)
            if theirs is not None and value is not _MISSING:
                _replaced.append((theirs, name, value, theirs.__dict__.get(name, _MISSING)))
                setattr(theirs, name, value)


def uninstall() -> None:
    """Take back what `install` has done. What others have patched since stays. Doing so twice is harmless."""
    with _lock:
        while _replaced:
            theirs, name, value, before = _replaced[-1]
            if theirs.__dict__.get(name) is value:
                if before is _MISSING:
                    delattr(theirs, name)
                else:
                    setattr(theirs, name, before)
            _replaced.pop()  # last: a signal handler may raise before that, and this can be done again


def _is_asgirefs(method: object) -> bool:
    return isinstance(method, FunctionType) and method.__globals__ is vars(_shared.original)


def _version() -> tuple[int, ...]:
    import asgiref

    return tuple(int(part) for part in asgiref.__version__.split(".")[:3] if part.isdecimal())


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
