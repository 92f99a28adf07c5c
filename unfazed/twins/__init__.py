"""What generated modules are made of, and users need to name: the base of all sync twins, and calls of one line.

`python -m unfazed.twins package.module:AsyncClient --output FILE` writes such modules; `--help` says more.
"""

from typing import TYPE_CHECKING, Protocol, TypeVar

from ..concurrency._twins import _building as _building  # results may need twins that are made while it runs
from ..concurrency._twins._calls import delete_attribute, make, set_attribute
from ..concurrency._twins._twin import SyncTwin

if TYPE_CHECKING:
    # For type checkers, each of these gives what the one who calls it says that it gives.
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
    default: _Default
    enter: _Use
    get_attribute: _Call
    iterate: _Use
    leave: _Leave
    original: _Use
    step: _Use
    wait: _Use
else:
    from ..concurrency._twins._building import Attribute as attribute  # noqa: N813  what it does, not what it is
    from ..concurrency._twins._calls import (
        call,
        call_class,
        call_maker,
        call_operator,
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
    "default",
    "delete_attribute",
    "enter",
    "get_attribute",
    "iterate",
    "leave",
    "make",
    "original",
    "set_attribute",
    "step",
    "wait",
)
