"""`install` and `uninstall`: replace the thread calls that Starlette and FastAPI make themselves, and restore them.

Two things are replaced. It does not matter who has imported them before.

    functions   A function that others import by name, or hold in a `partial`, keeps its identity. Its code is replaced.
    anyio       Some modules of Starlette and FastAPI call anyio's threads themselves. Their global name `anyio`, and
                names that they imported from anyio, are replaced: with our calls, or with a proxy. The proxy has our
                calls instead of anyio's, and passes on everything else.

Guarantees:

- A module that is imported later is changed as soon as it is loaded, by a finder in `sys.meta_path`.
- It is safe while calls are running. They end as they began.
- If `install` raises, nothing is installed.

`_lock` guards `_replaced`. Nobody waits for a thread or imports anything while holding it. It is an `RLock`, because a
finalizer or a signal handler in the same thread may take it again.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import sys
import threading
from contextlib import suppress
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any, Final, final

from unfazed.concurrency import UnfazedError

from . import _code
from ._calls import in_place_of

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.machinery import ModuleSpec
    from types import TracebackType

# The oldest supported version and the last supported major version. `_original` checks the functions of each version.
VERSIONS: Final = {"starlette": ((0, 40), 1), "fastapi": ((0, 118), 0)}

_FUNCTIONS: Final[dict[str, tuple[Any, ...]]] = {
    "starlette.concurrency": (_code.run_in_threadpool, _code.iterate_in_threadpool),
    "fastapi.concurrency": (_code.contextmanager_in_threadpool,),
}

_WAY_OUT: Final = "import the names from unfazed_compat.starlette instead, or use a version that it knows"

_KIND: Final = inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_GENERATOR

_lock = threading.RLock()
_replaced: list[tuple[Any, str, Any, Any]] = []  # owner, attribute, our value, value before


@final
class Installed:
    """What `install` returns: a context manager that uninstalls when it is left, if that call has installed."""

    def __init__(self, did_it: bool) -> None:
        self._did_it = did_it

    def __enter__(self) -> Installed:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._did_it:
            uninstall()


def install() -> Installed:
    """Replace the thread calls that Starlette and FastAPI make themselves with those of this module.

    Call it once, where the program starts. Starlette, FastAPI and the program's modules may be imported before or after
    it. Calling it twice is harmless, also while requests are running. It imports nothing.

    Returns:
        A context manager. Leaving it calls `uninstall`, if this call has installed.

    Raises:
        UnfazedError: If Starlette is not installed, or if the version of Starlette or FastAPI is not supported.

    Example:
        `unfazed_compat.starlette.install()` at the top of the module that makes the app.
    """
    for library in VERSIONS:
        _require_version(library)
    did_it = False
    try:
        with _lock:
            if _finder not in sys.meta_path:
                did_it = True
                sys.meta_path.insert(0, _finder)
        loaded = _loaded()  # modules loaded later have our loader
        for name in loaded:
            with suppress(Exception):  # the importer gets the error
                importlib.import_module(name)  # waits if another thread is importing it
        with _lock:
            for module in loaded.values():
                _replace_in(module)
    except BaseException:  # also raised by a signal handler: all or nothing
        if did_it:
            uninstall()
        raise
    return Installed(did_it)


def uninstall() -> None:
    """Undo `install`. Patches that others have made since stay. Calling it twice is harmless."""
    with _lock:
        _put_back()  # a function of its own: what a signal handler raises in its loops must not leave the lock acquired


def _put_back() -> None:
    while _finder in sys.meta_path:
        sys.meta_path.remove(_finder)
    while _replaced:
        owner, name, ours, before = _replaced[-1]
        if getattr(owner, name, None) is ours:
            setattr(owner, name, before)
        _replaced.pop()  # last, so that it can be repeated if a signal handler raises before


def _require_version(library: str) -> None:
    """Raise an error if the version of *library* is not supported, or if Starlette is missing."""
    oldest, last = VERSIONS[library]
    try:
        text = importlib.metadata.version(library)
    except importlib.metadata.PackageNotFoundError:
        if library == "fastapi":
            return
        raise UnfazedError("install() needs Starlette, which is not installed: `pip install starlette`") from None
    version = tuple(int(part) for part in text.split(".")[:2] if part.isdecimal())
    if not (version >= oldest and version[0] <= last):
        raise UnfazedError(f"install() knows {library} {oldest[0]}.{oldest[1]} to {last}.x, and not {text}; {_WAY_OUT}")


def _is_theirs(name: str) -> bool:
    return name.partition(".")[0] in VERSIONS


def _loaded() -> dict[str, ModuleType]:
    """Return the modules of Starlette and FastAPI that are imported or being imported."""
    modules: list[tuple[str, object]] = list(sys.modules.items())  # a program may put any object there
    return {name: each for name, each in modules if _is_theirs(name) and isinstance(each, ModuleType)}


def _replace_in(module: ModuleType) -> None:
    """If we are installed, replace in *module* what is not replaced yet. Call it with the lock held."""
    if _finder not in sys.meta_path:
        return
    for name, value in list(vars(module).items()):
        ours = in_place_of(value)
        if ours is not None:
            _replace(module, name, ours)
    for function in _FUNCTIONS.get(module.__name__, ()):
        original = _original(module, function)
        if original.__code__ is not function.__code__:
            _replace(original, "__code__", function.__code__)


def _replace(owner: Any, name: str, ours: object) -> None:
    _replaced.append((owner, name, ours, getattr(owner, name)))
    setattr(owner, name, ours)


def _original(module: ModuleType, ours: Any) -> FunctionType:
    """Return the function of the same name that *module* defines, without the wrappers that others have added."""
    found: Any = getattr(module, ours.__name__, None)
    while found is not None and not (isinstance(found, FunctionType) and found.__globals__ is vars(module)):
        found = getattr(found, "__wrapped__", None)
    if found is None or _signature(found) != _signature(ours):
        raise UnfazedError(
            f"install() does not find the {ours.__name__}() that it knows in {module.__name__}, but "
            f"{getattr(module, ours.__name__, None)!r}; {_WAY_OUT}"
        )
    return found


def _signature(function: Any) -> tuple[object, ...]:
    """Return what must be equal for one function to take the code of another."""
    code = function.__code__
    parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    return code.co_flags & _KIND, code.co_freevars, [(each.name, each.kind) for each in parameters]


@final
class _Loader:
    """Loads a module with *loader*, then replaces its thread calls."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        module: ModuleType | None = self._loader.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None, "it has been found by one"
        module.__spec__.loader = module.__loader__ = self._loader  # as it would be without us
        self._loader.exec_module(module)
        with _lock:
            _replace_in(module)


@final
class _Finder:
    """Finds the modules of Starlette and FastAPI through the finders after it, and gives them our loader."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not _is_theirs(name):
            return None
        finders: list[Any] = list(sys.meta_path)
        for finder in finders[finders.index(self) + 1 :] if self in finders else ():
            find = getattr(finder, "find_spec", None)
            spec: Any = find and find(name, path, target)
            if spec is not None:
                if hasattr(spec.loader, "exec_module"):
                    spec.loader = _Loader(spec.loader)
                found: ModuleSpec = spec
                return found
        return None


_finder = _Finder()
