"""How a twin class is made at run time, member by member."""

from __future__ import annotations

import functools
import re
import types
from typing import TYPE_CHECKING, Any, Generic, Protocol, get_origin, runtime_checkable

from . import _family
from ._calls import (
    call_class,
    call_operator,
    delete_attribute,
    enter,
    get_attribute,
    iterate,
    leave,
    make,
    run,
    run_direct,
    set_attribute,
    step,
    wait,
)
from ._family import Family
from ._members import COPIED, SYNC_NAMES, is_flattened, is_protocol, lost_parameters, members_of, require_twinnable
from ._twin import SyncTwin

if TYPE_CHECKING:
    from collections.abc import Callable

    from .._eventloops._loopthread import EventLoopThread
    from ._members import Member
    from ._state import TwinBase

# Attributes that mark a function as async or abstract, or change its signature. The twin's functions must not get them.
_MARKS = ("_is_coroutine_marker", "_is_coroutine", "__isabstractmethod__", "__signature__")

_background_family = Family(None)


def family_of(loop: EventLoopThread | None) -> Family:
    """Return the family of the twins on *loop*. The loop keeps it, so both are freed together."""
    if loop is None:
        return _background_family
    family: Family = vars(loop).setdefault("_twins", Family(loop))
    return family


def make_twin(cls: type, family: Family, name: str | None = None, module: str | None = None) -> type[Any]:
    """Return the twin class of *cls*. Make it if there is none.

    *module* is the module of the user who asked for the twin, or `None` if another twin needs it. The first user that
    asks for the twin sets its name and module.
    """
    known = family.exact_twin_of(cls)
    if known is None:
        require_twinnable(cls, "sync_twin")
        known = family.add(cls, _make_protocol(cls, family) if is_protocol(cls) else _make_class(cls, family))
    if module is not None and cls not in family.named:
        family.named.add(cls)
        known.__module__ = module
        known.__name__ = known.__qualname__ = name or known.__name__
    return known


def sync_name_of(cls: type) -> str:
    """Return the default name of a twin: the name of *cls* without `Async`, or else with `Sync` in front."""
    name = re.sub(r"^(?:Async|Aio)(?=[A-Z])|(?<=[a-z0-9])Async$", "", cls.__name__)
    if name != cls.__name__:
        return name
    return f"Sync{name}" if name[:1].isupper() else f"sync_{name}"


def _make_class(cls: type, family: Family) -> type[Any]:
    bases = _bases_of(cls, family)
    covered: set[type] = set()
    for base in bases:
        twinned = getattr(get_origin(base) or base, "_unfazed_class", None)
        covered.update(twinned.__mro__ if twinned is not None else ())
    if not covered:
        bases.insert(0, SyncTwin)
    copied = {key: vars(cls)[key] for key in COPIED if key in vars(cls)}
    members = {member.sync_name: _made(member, cls, family) for member in members_of(cls, covered)}
    own = {
        "__doc__": cls.__doc__,
        "__init__": _made_init(cls),
        "__module__": cls.__module__,
        "__slots__": (),
        "_unfazed_class": cls,
        "_unfazed_family": family,
    }
    return types.new_class(sync_name_of(cls), tuple(bases), {}, lambda body: body.update(copied | members | own))


def _make_protocol(cls: type, family: Family) -> type[Any]:
    """Return the twin of the protocol *cls*. If a class implements *cls*, the twin of the class implements this one."""
    covered = {base for base in cls.__mro__[1:] if is_protocol(base)}
    body: dict[str, Any] = {member.sync_name: _made_stub(member) for member in members_of(cls, covered)}
    body.update(__doc__=cls.__doc__, __module__=cls.__module__)
    made = types.new_class(sync_name_of(cls), tuple(_bases_of(cls, family)), {}, lambda own: own.update(body))
    return runtime_checkable(made) if getattr(cls, "_is_runtime_protocol", False) else made


def _bases_of(cls: type, family: Family) -> list[Any]:
    """Return the twins of the bases of *cls*, with their type parameters. Protocols and `Generic` come last."""
    bases: list[Any] = []
    others: list[Any] = []
    for base in getattr(cls, "__dict__", {}).get("__orig_bases__", cls.__bases__):
        origin: Any = get_origin(base) or base
        if origin in (Generic, Protocol):
            others.append(base)
        elif origin is not object and not is_flattened(origin):
            twin: Any = make_twin(origin, family)
            arguments = getattr(base, "__args__", ()) if base is not origin else ()
            twin = twin[arguments] if arguments else twin
            (others if is_protocol(origin) else bases).append(twin)
    generic: Any = Generic
    lost = lost_parameters(cls, bases + others)
    return bases + others + ([generic[lost]] if lost else [])


def _made(member: Member, cls: type, family: Family) -> Any:
    """Return the member of the twin for a member of the async class."""
    name: str = member.name
    value: Any = member.value
    if name in SYNC_NAMES:
        special: Any = _special(name)
        special.__name__, special.__qualname__ = member.sync_name, f"{sync_name_of(cls)}.{member.sync_name}"
        return special
    if value is None and member.kind == "operator":  # such as `__hash__ = None`
        return None
    if member.kind == "property":
        return _made_property(name, value)
    if member.kind == "attribute":
        return Attribute(name)
    func: Any = getattr(value, "__func__", None)
    if member.kind == "staticmethod":
        return staticmethod(_like(_static_caller(name, cls, family), func, cls))
    if member.kind == "classmethod":
        return classmethod(_like(_class_caller(name), func, cls))
    return _like(_operator(name) if member.kind == "operator" else _caller(name, member.kind), value, cls)


def _special(name: str) -> Callable[..., Any]:
    """Return the method that `with`, `for` or `wait` calls: a new function, because each class sets its own name."""
    funcs: dict[str, Any] = {
        "__aenter__": enter,
        "__aexit__": leave,
        "__aiter__": iterate,
        "__anext__": step,
        "__await__": wait,
    }

    def special(self: TwinBase, /, *args: Any) -> Any:
        return funcs[name](self, *args)

    return special


def _caller(name: str, kind: str) -> Callable[..., Any]:
    start = run_direct if kind == "maker" else run

    def method(self: TwinBase, /, *args: Any, **kwargs: Any) -> Any:
        return start(self, getattr(self._unfazed_state.target, name), args, kwargs)

    return method


def _class_caller(name: str) -> Callable[..., Any]:
    def class_method(twin: type[TwinBase], /, *args: Any, **kwargs: Any) -> Any:
        return call_class(twin, name, *args, **kwargs)

    return class_method


def _static_caller(name: str, cls: type, family: Family) -> Callable[..., Any]:
    def static_method(*args: Any, **kwargs: Any) -> Any:
        return call_class(make_twin(cls, family), name, *args, **kwargs)

    return static_method


def _operator(name: str) -> Callable[..., Any]:
    def operator(self: TwinBase, /, *args: Any) -> Any:
        return call_operator(self, name, *args)

    return operator


def _made_property(name: str, value: Any) -> property:
    def read(self: TwinBase) -> Any:
        return get_attribute(self, name)

    def write(self: TwinBase, new: object) -> None:
        set_attribute(self, name, new)

    def delete(self: TwinBase) -> None:
        delete_attribute(self, name)

    can_be_set = getattr(value, "fset", value) is not None
    can_be_deleted = getattr(value, "fdel", value) is not None
    return property(read, write if can_be_set else None, delete if can_be_deleted else None, value.__doc__)


def _made_init(cls: type) -> Any:
    def __init__(self: SyncTwin, /, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        make(self, *args, **kwargs)

    if cls.__init__ is not object.__init__:  # type: ignore[misc]
        return _like(__init__, cls.__init__, cls)  # type: ignore[misc]
    return __init__


def _made_stub(member: Member) -> Any:
    """Return the twin's member for a member of a protocol."""
    if member.kind in ("property", "attribute"):
        return member.value

    def method(self: object, /, *args: Any, **kwargs: Any) -> Any:
        raise NotImplementedError

    return _like(method, member.value, member.owner, member.sync_name)


def _like(func: Callable[..., Any], original: Any, cls: type, name: str | None = None) -> Any:
    """Give *func* the docstring and the signature of *original*, and its name in the twin of *cls*."""
    functools.update_wrapper(func, original)
    for mark in _MARKS:
        vars(func).pop(mark, None)
    func.__name__ = name or func.__name__
    func.__qualname__ = f"{sync_name_of(cls)}.{func.__name__}"
    return func


class Attribute:
    """A plain attribute of an async class, read from the object or the class.

    `SyncTwin.__setattr__` writes it, or asks us to if the async class has a descriptor for it, as for `__slots__`.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, twin: TwinBase | None, owner: type[TwinBase]) -> Any:
        if twin is not None:
            return get_attribute(twin, self._name)
        value = getattr(owner._unfazed_class, self._name)
        family = owner._unfazed_family
        return family.exact_twin_of(value) or value if isinstance(value, type) else value

    def __set__(self, twin: TwinBase, value: object) -> None:
        set_attribute(twin, self._name, value)

    def __delete__(self, twin: TwinBase) -> None:
        delete_attribute(twin, self._name)


_family.make_twin = make_twin
