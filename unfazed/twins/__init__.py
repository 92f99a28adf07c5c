"""The base class of all sync twins, and the functions that generated modules call.

`python -m unfazed.twins package.module:AsyncClient --output FILE` writes such a module. See its `--help`.
"""

from typing import TYPE_CHECKING, Protocol, TypeVar

from ..concurrency._twins import _building as _building  # it sets `_family.make_twin`
from ..concurrency._twins._calls import delete_attribute, make, make_without_defaults, set_attribute
from ..concurrency._twins._twin import SyncTwin

if TYPE_CHECKING:
    # Type checkers take the result type of each of these from the caller's annotation.
    T = TypeVar("T")

    class _Call(Protocol):
        def __call__(self, twin: SyncTwin, name: str, /, *args: object, **kwargs: object) -> T: ...  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeVarUse]

    class _ClassCall(Protocol):
        def __call__(self, cls: type[SyncTwin], name: str, /, *args: object, **kwargs: object) -> T: ...  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeVarUse]

    class _Leave(Protocol):
        def __call__(self, twin: SyncTwin, /, *exc_info: object) -> T: ...  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeVarUse]

    class _Use(Protocol):
        def __call__(self, twin: SyncTwin, /) -> T: ...  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeVarUse]

    class _Default(Protocol):
        def __call__(self) -> T: ...  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeVarUse]

    class _Attribute(Protocol):
        def __call__(self, name: str, /) -> T: ...  # type: ignore[type-var]  # pyright: ignore[reportInvalidTypeVarUse]

    attribute: _Attribute
    call: _Call
    call_class: _ClassCall
    call_maker: _Call
    call_operator: _Call
    call_without_defaults: _Call
    default: _Default
    enter: _Use
    get_attribute: _Call
    iterate: _Use
    leave: _Leave
    original: _Use
    step: _Use
    wait: _Use
else:
    from ..concurrency._twins._building import Attribute as attribute  # noqa: N813  it is called like a function
    from ..concurrency._twins._calls import (
        call,
        call_class,
        call_maker,
        call_operator,
        call_without_defaults,
        default,
        enter,
        get_attribute,
        iterate,
        leave,
        original,
        step,
        wait,
    )

__all__ = (
    "SyncTwin",
    "attribute",
    "call",
    "call_class",
    "call_maker",
    "call_operator",
    "call_without_defaults",
    "default",
    "delete_attribute",
    "enter",
    "get_attribute",
    "iterate",
    "leave",
    "make",
    "make_without_defaults",
    "original",
    "set_attribute",
    "step",
    "wait",
)
