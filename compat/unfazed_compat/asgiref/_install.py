"""`install` and `uninstall`: put our behaviour into asgiref's own classes, and take it out again.

The methods of the classes in `asgiref.sync` are replaced. So this reaches everyone who has imported, subclassed or
instantiated them.

Guarantees:

- It is safe while calls are running. They end as they began, because the shared state stays where it is (`_shared.py`),
  and each of our methods works with asgiref's others as well as with ours.
- If a signal handler raises in `install`, nothing is installed.

`_lock` guards `_replaced`. Nobody waits for a thread while holding it. It is an `RLock`, because a finalizer or a
signal handler in the same thread may take it again.
"""

from __future__ import annotations

import threading
from types import FunctionType
from typing import TYPE_CHECKING, Any, final

from unfazed.concurrency import UnfazedError

from . import _shared
from ._async_to_sync import AsyncToSync
from ._contextmanagers import AsyncSingleThreadContext, ThreadSensitiveContext
from ._sync_to_async import SyncToAsync

if TYPE_CHECKING:
    from types import TracebackType

OLDEST = (3, 8, 1)  # the oldest that Django 5.2 accepts
NEWEST = (3, 13)

_CLASSES = (SyncToAsync, AsyncToSync, ThreadSensitiveContext, AsyncSingleThreadContext)
_METHODS = (
    *("__init__", "thread_handler", "main_wrap", "__get__", "__call__"),  # `__call__` last, as it calls the others
    *("__enter__", "__exit__", "__aenter__", "__aexit__"),
)
_ATTRIBUTES = (
    *_METHODS,
    "executors",  # `_shared.Executors` says why
    *("__code__", "__defaults__", "__kwdefaults__"),  # for `inspect` before Python 3.12: see `SyncToAsync`
)
_MISSING = object()

_lock = threading.RLock()
_replaced: list[tuple[type, str, Any, Any]] = []  # asgiref's class, attribute, our value, asgiref's value


@final
class Installed:
    """What `install` returns: a context manager that uninstalls at its end, if that call has installed."""

    def __init__(self, has_installed: bool) -> None:
        self._has_installed = has_installed

    @property
    def out_of_use(self) -> tuple[str, ...]:
        """The names of the methods that somebody had patched before. These patches have no effect until `uninstall`."""
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
        if self._has_installed:
            uninstall()


def install() -> Installed:
    """Put the behaviour of this module into the classes of `asgiref.sync`, for everyone who uses them.

    Call it once, where the program starts, and before a monitoring agent patches asgiref: earlier patches have no
    effect until `uninstall`. Doing so twice is harmless, and safe while calls are running.

    Returns:
        A context manager. Leaving it calls `uninstall`, if this call has installed. Its `out_of_use` names the methods
        that somebody had patched before.

    Raises:
        UnfazedError: If asgiref is not installed, or if its version is not one of those that this knows.

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
        except BaseException:  # a signal handler raised
            uninstall()
            raise
    return Installed(True)


def _replace(original: Any) -> None:
    for ours in _CLASSES:
        theirs = getattr(original, ours.__name__, None)  # asgiref 3.9 and older have no AsyncSingleThreadContext
        for name in _ATTRIBUTES:
            value = ours.__dict__.get(name, _MISSING)
            if theirs is not None and value is not _MISSING:
                _replaced.append((theirs, name, value, theirs.__dict__.get(name, _MISSING)))
                setattr(theirs, name, value)


def uninstall() -> None:
    """Undo `install`, except where somebody has patched since. Doing so twice is harmless."""
    with _lock:
        _put_back()  # a function of its own: what a signal handler raises in its loop must not leave the lock acquired


def _put_back() -> None:
    while _replaced:
        theirs, name, value, before = _replaced[-1]
        if theirs.__dict__.get(name) is value:
            if before is _MISSING:
                delattr(theirs, name)
            else:
                setattr(theirs, name, before)
        _replaced.pop()  # last: if a signal handler raises before this, the step is repeated


def _is_asgirefs(method: object) -> bool:
    return isinstance(method, FunctionType) and method.__globals__ is vars(_shared.original)


def _version() -> tuple[int, ...]:
    import asgiref

    return tuple(int(part) for part in asgiref.__version__.split(".")[:3] if part.isdecimal())


def _text(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))
