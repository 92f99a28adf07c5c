"""The metadata of dual callables: name, docstring, annotations, options."""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, cast

from anyio import CapacityLimiter

from .._core._checks import name_of

if TYPE_CHECKING:
    from ._binding import BoundDual


def copy_metadata(dual: BoundDual, func: Any) -> None:
    """Give *dual* the name, the docstring and the attributes of *func*."""
    inner = func
    while isinstance(inner, functools.partial):
        inner = inner.func
    if hasattr(inner, "__name__"):
        functools.update_wrapper(cast("Any", dual), inner)
        dual.__annotations__ = _annotations_of(inner)
        dual.__dict__.setdefault("__qualname__", dual.__name__)
    else:  # a callable object: its attributes are not metadata
        dual.__annotations__ = _annotations_of(type(inner).__call__)
        dual.__doc__ = inner.__doc__
        dual.__module__ = type(inner).__module__
        dual.__dict__["__qualname__"] = dual.__dict__["__name__"] = name_of(inner)
    dual.__wrapped__ = func


def _annotations_of(func: object) -> dict[str, Any]:
    """Return the annotations of *func*. If a dual callable had none, a lookup would find those of its class.

    Python 3.14 evaluates annotations only when they are read. They may contain names that are not defined yet.
    """
    try:
        annotations: dict[str, Any] = getattr(func, "__annotations__", {})
    except NameError:  # pragma: no cover  only since Python 3.14
        library = importlib.import_module("annotationlib")
        annotations = library.get_annotations(func, format=library.Format.FORWARDREF)
    return annotations


def add_line(attributes: dict[str, Any], line: str) -> None:
    doc: str | None = attributes["__doc__"]
    if doc is None or line not in doc:
        attributes["__doc__"] = f"{inspect.cleandoc(doc)}\n\n{line}" if doc else line


def options_of(place: Any) -> dict[str, Any]:
    """Return the options of *place* that differ from their defaults."""
    defaults = place._field_defaults
    return {name: value for name, value in place._asdict().items() if value is not defaults.get(name, place)}


def described(place: Any) -> tuple[str, list[str], list[str]]:
    """Return the helper's name, its arguments before the function, and its options, as the user wrote them."""
    options = options_of(place)
    executor = options.pop("executor", None)
    said = [f"{name}={_said(value)}" for name, value in options.items()]
    return place.decorator, [] if executor is None else [type(executor).__name__], said


def _said(value: Any) -> str:
    if isinstance(value, CapacityLimiter):
        return f"CapacityLimiter({value.total_tokens:g})"
    return name_of(value) if callable(value) else short_repr(value)


def can_be_pickled(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True
