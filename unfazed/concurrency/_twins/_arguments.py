"""The conversion of a call's arguments: sync code may pass twins, sync callbacks and sync iterators to async methods.

The annotations of a method say whether it expects an async callback or an async iterable. We look at them when somebody
passes a function or an iterable, once for each method.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from contextlib import suppress
from typing import TYPE_CHECKING, Any, get_args
from weakref import WeakKeyDictionary

from .._core._checks import is_async
from .._scoped._threaditerators import iterate_in_threadpool
from .._threads._threadpool import run_in_threadpool
from ._values import LEAVES, converted_items, to_async, to_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from ._family import Site

CALLBACK, ITERABLE, ITERATOR = "async callback", "async iterable", "async or sync iterable"

DEFAULT = object()  # stands for a default that only the async class knows; such an argument is not passed on

_wanted: WeakKeyDictionary[Any, Mapping[str, str]] = WeakKeyDictionary()  # keys: function, parameter name
_NO_DEFAULT = object()
_defaults: WeakKeyDictionary[Any, Mapping[str, object]] = WeakKeyDictionary()  # keys: function, parameter name


def converted_call(
    func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any], site: Callable[[], Site]
) -> Callable[[], Any]:
    """Return the call of *func*, with its arguments converted. *site* converts what its callbacks get."""
    is_plain = LEAVES.issuperset(map(type, args)) and LEAVES.issuperset(map(type, kwargs.values()))
    if is_plain:  # the common case, checked first for speed
        return functools.partial(func, *args, **kwargs)
    while args and args[-1] is DEFAULT:
        args = args[:-1]
    kwargs = {name: value for name, value in kwargs.items() if value is not DEFAULT}
    if any(map(_may_be_sync, args)) or any(map(_may_be_sync, kwargs.values())):
        args, kwargs = _with_async(func, args, kwargs, site)
    return functools.partial(func, *map(to_async, args), **{name: to_async(value) for name, value in kwargs.items()})


def without_defaults(func: Callable[..., Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return *kwargs* without those that are defaults of *func*: its decorators may ask what was passed."""
    key = getattr(func, "__func__", func)
    defaults = _defaults.get(key)
    if defaults is None:
        defaults = _defaults[key] = {name: each.default for name, each in _signature(func).parameters.items()}
    return {name: value for name, value in kwargs.items() if not _is_same(value, defaults.get(name, _NO_DEFAULT))}


def _is_same(value: object, default: object) -> bool:
    return value is default or (type(value) is type(default) and type(value) in LEAVES and value == default)


def _may_be_sync(value: object) -> bool:
    kind: type[Any] = type(value)
    if kind in LEAVES:
        return False
    return callable(value) or hasattr(kind, "__iter__")


def _with_async(
    func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any], site: Callable[[], Site]
) -> tuple[tuple[object, ...], dict[str, Any]]:
    """Make callbacks and iterables async if *func* expects async ones."""
    wanted = _wanted_by(func)
    if not wanted:
        return args, kwargs
    try:
        bound = _signature(func).bind(*args, **kwargs)
    except TypeError:  # the call itself raises it
        return args, kwargs
    for name, what in wanted.items():
        if name not in bound.arguments:
            continue
        value, kind = bound.arguments[name], bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            bound.arguments[name] = tuple(_turned(each, what, site) for each in value)
        elif kind is inspect.Parameter.VAR_KEYWORD:
            bound.arguments[name] = {key: _turned(each, what, site) for key, each in value.items()}
        else:
            bound.arguments[name] = _turned(value, what, site)
    return bound.args, bound.kwargs


def _turned(value: Any, what: str, site: Callable[[], Site]) -> Any:
    if what == CALLBACK:
        return _callback(value, site) if callable(value) and not is_async(value) else value
    kind = value.__class__
    if hasattr(kind, "__aiter__") or not hasattr(kind, "__iter__") or kind in (str, bytes, bytearray):
        return value
    if what == ITERATOR and not hasattr(kind, "__next__"):  # such as a list: the method accepts it
        return value
    return iterate_in_threadpool(converted_items(value, to_async))


def _callback(func: Callable[..., Any], site: Callable[[], Site]) -> Callable[..., Any]:
    """Return an async function that calls *func* in a worker thread, because *func* may block, for example on twins."""

    async def callback(*args: Any, **kwargs: Any) -> Any:
        here = site()
        args = tuple(to_sync(arg, here) for arg in args)
        kwargs = {name: to_sync(value, here) for name, value in kwargs.items()}
        return to_async(await run_in_threadpool(func, *args, **kwargs))

    return functools.wraps(func)(callback) if hasattr(func, "__name__") else callback


def _wanted_by(func: Any) -> Mapping[str, str]:
    """Return the parameters of *func* that expect something async, and what they expect."""
    key: Any = getattr(func, "__func__", func)
    with suppress(KeyError, TypeError):  # TypeError: no weak reference to it
        return _wanted[key]
    try:
        parameters = _signature(func).parameters.values()
    except (TypeError, ValueError):  # it is written in C
        return {}
    namespace: dict[str, Any] = getattr(inspect.unwrap(key), "__globals__", {})
    found = {
        parameter.name: what for parameter in parameters if (what := _what(parameter.annotation, namespace)) is not None
    }
    with suppress(TypeError):
        _wanted[key] = found
    return found


def _signature(func: Callable[..., Any]) -> inspect.Signature:
    """Return the signature of *func*. Its annotations may contain names that only type checkers know."""
    try:
        return inspect.signature(func)
    except NameError:  # pragma: no cover  only Python 3.14 evaluates annotations here
        library = importlib.import_module("annotationlib")
        options: dict[str, Any] = {"annotation_format": library.Format.FORWARDREF}
        return inspect.signature(func, **options)


def _what(annotation: Any, namespace: dict[str, Any]) -> str | None:
    """Return which kind of async argument an annotation expects, or `None`."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, namespace)
        except Exception:  # it contains names that only type checkers know
            return _what_text(annotation)
    if any(inspect.isclass(part) and is_async(vars(part).get("__call__")) for part in _parts(annotation)):
        return CALLBACK  # a protocol
    return _what_text(" ".join(str(part) for part in _parts(annotation)))


def _what_text(text: str) -> str | None:
    if "Callable" in text and re.search(r"Awaitable|Coroutine", text):
        return CALLBACK
    if re.search(r"Async(?:Iterable|Iterator|Generator)", text):
        return ITERATOR if re.search(r"\b(?:Iterable|Iterator|Sequence|list|List)\b", text) else ITERABLE
    return None


def _parts(annotation: Any) -> Iterator[Any]:
    """Yield an annotation, its arguments, their arguments, and so on."""
    yield annotation
    for argument in get_args(annotation):
        yield from _parts(argument)
