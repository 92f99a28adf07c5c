"""What type checkers see of the decorators and of what they make: never used at run time.

Of a decorated method they see a class of its own, `...Method`, and of a `classmethod` or `staticmethod` a `...Member`:
looking one up gives the dual.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator
    from contextlib import (
        AbstractAsyncContextManager,
        AbstractContextManager,
        _AsyncGeneratorContextManager,
        _GeneratorContextManager,
    )
    from contextvars import Context
    from typing import Any, Concatenate, Generic, ParamSpec, Protocol, TypeAlias, TypeVar, overload

    from anyio import CapacityLimiter
    from typing_extensions import TypedDict

    from ._callable import DualCallable, DualMethod
    from ._decorators import _Method
    from ._generators import DualContextManager, DualIterator

    P = ParamSpec("P")
    T = TypeVar("T")
    T_co = TypeVar("T_co", covariant=True)
    Iterated = TypeVar("Iterated", bound=AsyncIterator[Any])

    # What type checkers see of a decorated method. They recognise it by the name of its first parameter, and see its
    # type without that parameter. Otherwise they would refuse to let a subclass override it or a protocol match it.

    class _TakesSelf(Protocol[P, T_co]):
        def __call__(
            _me,  # noqa: N805
            self: Any,
            *args: P.args,
            **kwargs: P.kwargs,
        ) -> T_co: ...

    class _TakesCls(Protocol[P, T_co]):
        def __call__(
            _me,  # noqa: N805
            cls: Any,
            *args: P.args,
            **kwargs: P.kwargs,
        ) -> T_co: ...

    TakesMember: TypeAlias = _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T]

    # The results of functions that become a `DualIterator` or a `DualContextManager`. Type checkers see sync ones as a
    # `DualCallable`, whose own overloads handle them: an overload in the decorators would match generic functions too.
    Items: TypeAlias = Generator[T, Any, Any]
    Manager: TypeAlias = _GeneratorContextManager[T]
    AsyncItems: TypeAlias = AsyncIterator[T]
    AsyncManager: TypeAlias = _AsyncGeneratorContextManager[T]

    class OnlyAny:
        """Only `Any` matches this. Its overload comes first, so that `Any` does not match those for what is above."""

    class IteratorMethod(Generic[P, T, Iterated]):
        @property
        def sync(self) -> Callable[P, Generator[T, None, None]]: ...
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Iterated: ...
        @overload
        def __get__(self, instance: None, owner: type, /) -> DualIterator[Concatenate[Any, P], T, Iterated]: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None, /) -> DualIterator[P, T, Iterated]: ...
        def __get__(self, instance: object, owner: type | None = None, /) -> Any: ...

    class IteratorMember(Generic[P, T, Iterated]):
        @property
        def sync(self) -> Callable[P, Generator[T, None, None]]: ...
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> Iterated: ...
        def __get__(self, instance: object, owner: type | None = None, /) -> DualIterator[P, T, Iterated]: ...

    class ManagerMethod(Generic[P, T]):
        @property
        def sync(self) -> Callable[P, AbstractContextManager[T, bool | None]]: ...
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T, bool | None]: ...
        @overload
        def __get__(self, instance: None, owner: type, /) -> DualContextManager[Concatenate[Any, P], T]: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None, /) -> DualContextManager[P, T]: ...
        def __get__(self, instance: object, owner: type | None = None, /) -> Any: ...

    class ManagerMember(Generic[P, T]):
        @property
        def sync(self) -> Callable[P, AbstractContextManager[T, bool | None]]: ...
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> AbstractAsyncContextManager[T, bool | None]: ...
        def __get__(self, instance: object, owner: type | None = None, /) -> DualContextManager[P, T]: ...

    class AsyncDecorator(Protocol):
        """What `in_eventloop` returns without a function."""

        @overload
        def __call__(self, func: Callable[P, OnlyAny], /) -> DualCallable[P, Any]: ...
        @overload
        def __call__(  # pyright: ignore[reportOverlappingOverload]
            self, func: _TakesSelf[P, AsyncItems[T]], /
        ) -> IteratorMethod[P, T, AsyncGenerator[T, None]]: ...
        @overload
        def __call__(self, func: TakesMember[P, AsyncItems[T]], /) -> IteratorMember[P, T, AsyncGenerator[T, None]]: ...
        @overload
        def __call__(self, func: Callable[P, AsyncItems[T]], /) -> DualIterator[P, T, AsyncGenerator[T, None]]: ...
        @overload
        def __call__(  # pyright: ignore[reportOverlappingOverload]
            self, func: _TakesSelf[P, AsyncManager[T]], /
        ) -> ManagerMethod[P, T]: ...
        @overload
        def __call__(self, func: TakesMember[P, AsyncManager[T]], /) -> ManagerMember[P, T]: ...
        @overload
        def __call__(self, func: Callable[P, AsyncManager[T]], /) -> DualContextManager[P, T]: ...
        @overload
        def __call__(  # pyright: ignore[reportOverlappingOverload]
            self, func: _TakesSelf[P, Awaitable[T]], /
        ) -> _Method[P, T]: ...
        @overload
        def __call__(self, func: TakesMember[P, Awaitable[T]], /) -> DualMethod[P, T]: ...
        @overload
        def __call__(self, func: Callable[P, Awaitable[T]], /) -> DualCallable[P, T]: ...

    class ThreadOptions(TypedDict, total=False):
        limiter: CapacityLimiter | None
        abandon_on_cancel: bool
        timeout: float | None
        context: Context | None

    class ProcessOptions(TypedDict, total=False):
        limiter: CapacityLimiter | None
        kill_on_cancel: bool
        timeout: float | None
        initializer: Callable[[], object] | None
        max_calls: int | None

    class ExecutorOptions(TypedDict, total=False):
        timeout: float | None

    class EventloopOptions(TypedDict, total=False):
        timeout: float | None
        context: Context | None
