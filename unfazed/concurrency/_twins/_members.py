"""The members of an async class that its twin gets: which ones, from which bases, under which names."""

from __future__ import annotations

import functools
import inspect
import re
import sys
from abc import ABC
from enum import Enum
from types import GetSetDescriptorType, MemberDescriptorType
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, Protocol, is_typeddict

from .._core._errors import WrongFunctionError
from ._state import TwinBase

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

RESERVED = ("async_object", "from_async", "with_timeout")  # public names of `SyncTwin` itself
# Attributes that mark a dataclass, and the order of the attributes that `match` compares.
COPIED = ("__dataclass_fields__", "__dataclass_params__", "__match_args__")
SYNC_NAMES = {
    "__aenter__": "__enter__",
    "__aexit__": "__exit__",
    "__aiter__": "__iter__",
    "__anext__": "__next__",
    "__await__": "wait",
}
# Operators that use the object. Not those that make, copy or show it, or look up its attributes: twins have their own.
_OPERATOR = re.compile(
    r"__(?:len|length_hint|getitem|setitem|delitem|contains|reversed|iter|next|enter|exit|call|eq|ne|lt|le|gt|ge|hash|"
    r"bool|str|format|bytes|int|float|complex|index|fspath|round|trunc|floor|ceil|abs|neg|pos|invert|"
    r"[ri]?(?:add|sub|mul|matmul|truediv|floordiv|mod|divmod|pow|lshift|rshift|and|xor|or))__"
)
_ROOTS: frozenset[Any] = frozenset((object, Generic, Protocol, ABC))


class Member(NamedTuple):
    """One member of a class."""

    name: str
    value: Any  # its value in the `__dict__` of *owner*
    owner: type
    kind: str  # "method", "maker", "classmethod", "staticmethod", "property", "attribute" or "operator"

    @property
    def sync_name(self) -> str:
        return SYNC_NAMES.get(self.name, self.name)


def require_twinnable(cls: type[Any], helper: str) -> None:
    """Refuse a class that cannot have a twin, or that has a member with one of the twin's own names."""
    if not inspect.isclass(cls):
        raise WrongFunctionError(f"{helper}() expected a class, got {cls!r}: write `{helper}(AsyncClient)`")
    problem = ""
    if issubclass(cls, TwinBase):
        problem = "is a sync twin already"
    elif issubclass(cls, BaseException):
        problem = "is an exception, which sync code raises and catches as it is"
    elif issubclass(cls, Enum):
        problem = "is an enumeration, whose members sync code uses as they are"
    elif issubclass(cls, type):
        problem = "is a metaclass"
    elif cls.__module__ in ("builtins", "typing") or is_typeddict(cls):
        problem = "has nothing async"
    if problem:
        raise WrongFunctionError(f"{helper}() cannot make a twin of {cls.__qualname__}: it {problem}")
    require_free_names(cls, [*dir(cls), *getattr(cls, "__dataclass_fields__", ())], helper)


def require_free_names(cls: type, names: Iterable[str], helper: str) -> None:
    """Refuse a class if one of its *names* is that of a member that every twin has of its own."""
    for name in names:
        if name in RESERVED:
            raise WrongFunctionError(
                f"{helper}() cannot make a twin of {cls.__qualname__}: {cls.__qualname__}.{name} has the name of "
                f"a member that every twin has of its own; rename it"
            )


def is_flattened(cls: type) -> bool:
    """Return whether a base is from the standard library. It gets no twin: derived twins get its members instead."""
    return cls.__module__.partition(".")[0] in sys.stdlib_module_names


def is_protocol(cls: type) -> bool:
    return bool(getattr(cls, "_is_protocol", False))


def parameters_of(cls: type) -> tuple[Any, ...]:
    """Return the type parameters of a class, also of one whose generic bases are those of `collections.abc`."""
    bases = vars(cls).get("__orig_bases__", ())
    of_bases = tuple(dict.fromkeys(each for base in bases for each in getattr(base, "__parameters__", ())))
    own: tuple[Any, ...] = vars(cls).get("__parameters__", of_bases)
    return own


def lost_parameters(cls: type, bases: Iterable[object]) -> tuple[Any, ...]:
    """Return the type parameters of *cls*, if its twin, with *bases*, would not have all of them."""
    parameters = parameters_of(cls)
    kept = {each for base in bases for each in getattr(base, "__parameters__", ())}
    return () if kept.issuperset(parameters) else parameters


def members_of(cls: type, covered: set[type]) -> Iterator[Member]:
    """Yield the members that the twin of *cls* defines. It inherits those of *covered*, the bases that have twins."""
    seen: set[str] = set()
    for owner in cls.__mro__:
        if owner in _ROOTS:
            continue
        for name, value in vars(owner).items():
            if name in seen:
                continue
            seen.add(name)
            if owner not in covered and _is_wanted(cls, name):
                yield Member(name, value, owner, _kind_of(cls, name, value))


def _is_wanted(cls: type, name: str) -> bool:
    if not name.startswith("_"):
        return True
    if name in SYNC_NAMES:  # if the class has a sync form as well, the async one counts
        return name != "__await__" or not hasattr(cls, "wait")
    is_sync_form = any(name == sync and hasattr(cls, origin) for origin, sync in SYNC_NAMES.items())
    return is_operator(name) and not is_sync_form


def is_operator(name: str) -> bool:
    return _OPERATOR.fullmatch(name) is not None


def _kind_of(cls: type, name: str, value: Any) -> str:
    if isinstance(value, (classmethod, staticmethod)):
        return "classmethod" if isinstance(value, classmethod) else "staticmethod"
    if is_operator(name) and name != "__call__":
        return "operator"
    if isinstance(value, (property, functools.cached_property, MemberDescriptorType, GetSetDescriptorType)):
        return "property"
    looked_up = getattr(cls, name, value)  # some descriptors exist on objects only
    if inspect.isclass(looked_up) or not callable(looked_up):
        return "attribute"
    return "maker" if is_maker(looked_up) else "method"


def is_maker(func: Any) -> bool:
    """Return whether calling *func* only makes an async generator or a context manager from one, and runs no code."""
    return not inspect.iscoroutinefunction(func) and inspect.isasyncgenfunction(inspect.unwrap(func))
