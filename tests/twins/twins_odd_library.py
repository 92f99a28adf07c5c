"""An async library that is written in less usual ways, to be read by the generator of sync twins alone."""

# ruff: noqa
# mypy: ignore-errors

import collections.abc as cabc
import concurrent.futures
import contextlib
import dataclasses
import typing
from asyncio.events import *
from asyncio.futures import Future
from collections import OrderedDict
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from typing import Any, ClassVar, Final, Generic, Optional, Protocol, TypeVar, Union, overload

import twins_odd_aliases
import twins_odd_aliases as aliases
import typing_extensions
from concurrent import futures
from twins_odd_aliases import T
from typing_extensions import Literal, TypeVarTuple

try:
    from missing_library import missing
except ImportError:
    missing = None

if typing.TYPE_CHECKING:
    from _typeshed import StrPath
    from decimal import Decimal
elif missing:
    number = 1
else:
    number = 2

if typing.TYPE_CHECKING:
    from fractions import Fraction as Number
else:
    Number = object

K = TypeVar("K")
V = TypeVar("V")
Inner = Union["AsyncPart", Awaitable[Any]]
Outer = Optional[Inner]
Recursive = Union[AsyncIterator[int], "Recursive"]
S = TypeVar("S")
first = second = 3
PartT = TypeVar("PartT", "AsyncPart", int)
StreamT = TypeVar("StreamT", bound="AsyncStream", covariant=True)
Ts = TypeVarTuple("Ts")
Handler = Callable[[K], Awaitable[None]]
Several = Callable[[typing_extensions.Unpack[Ts]], Awaitable[None]]
Hook: typing_extensions.TypeAlias = "Callable[[AsyncPart], Awaitable[Any]]"


class AsyncOnly(Protocol):
    _is_async: Literal[True]


class SyncOnly(Protocol):
    _is_async: Literal[False]


class AsyncEmpty(Protocol):
    pass


class AsyncNamed(AsyncEmpty, Protocol):
    number: int
    label: str = "label"

    @property
    def name(self) -> str: ...


class Pair(Generic[K, V]):
    async def pair(self, key: K, value: V) -> dict[K, V]:
        return {key: value}

    async def plain(self) -> "tuple[K, ...]":
        return ()


class Half(Pair[str, V]):
    pass


class Wrong(Pair):
    pass


class AsyncPart(Half[int]):
    class Nested:
        """A class in a class."""

    def __new__(cls, *args: Any) -> "AsyncPart":
        return super().__new__(cls)

    async def nested(self) -> Nested:
        return self.Nested()

    async def from_star(self) -> "AbstractEventLoop | None":
        return None

    async def unknown(self, value: "Nowhere", shape: 'list["batch size"]' = None) -> int:
        return 1

    async def alias(self, value: Outer = None) -> Recursive:
        raise NotImplementedError

    async def expanded(self, value: "Inner | None" = None) -> Union[Awaitable[int], int]:
        return 1

    async def dotted(self, part: cabc.Sequence["AsyncPart"], *, sum: "Decimal" = None) -> typing.List["AsyncPart"]:
        return [*part]

    async def bare(self, ordered: OrderedDict, other: Pair, empty: tuple = ()) -> typing.Awaitable:
        raise NotImplementedError

    async def star(self, *args: "typing.Unpack[tuple[int, ...]]", default: Any = second.real) -> None: ...

    def future(self) -> "Future[AsyncPart]":
        raise NotImplementedError

    @contextlib.asynccontextmanager
    async def untyped_manager(self):
        yield 1

    @overload
    def both(self: SyncOnly, key: str) -> int: ...
    @overload
    def both(self: AsyncOnly, key: str) -> Awaitable[int]: ...
    def both(self, key: str = "") -> Union[Awaitable[int], int]:
        async def one() -> int:
            return 1

        return one()

    @overload
    def more(self: SyncOnly, key: str) -> int: ...
    @overload
    def more(self: AsyncOnly, key: str) -> Awaitable[int]: ...
    @overload
    def more(self: AsyncOnly, key: int) -> Awaitable[str]: ...
    def more(self, key: Union[int, str] = "") -> Any:
        return self.both()

    async def quoted(self) -> str:
        'Has """ in it, and ends with a "'
        return ""

    built_in = len
    static = staticmethod(dict)
    label = 3

    async def aliases(self, handler: Handler[int], bare: Handler, several: "Several[int, str]", hook: Hook) -> None: ...

    async def from_elsewhere(self, key: T, pool: "futures.Executor | None" = None) -> T:
        return key

    async def constrained(self, part: PartT, kind: type[StreamT]) -> "list[PartT | StreamT]":
        return [part]

    async def bound(
        self, key: Callable[[int], int] = lambda label: label + second, more: Any = [label for label in (1,)]
    ) -> int:
        return key(1)

    def __hash__(self) -> int:
        return 5


AsyncPart.pair_dynamically = lambda self: self.pair(1, 2)
AsyncPart.title = property(lambda self: "title")
AsyncPart.__lt__ = lambda self, other: True


class AsyncShelf(Generic[StreamT]):
    async def streams(self) -> list[StreamT]:
        return []


class Lazy:
    """Finishes its class as soon as somebody looks at it, as some libraries do."""

    @property
    def __class__(self):
        AsyncLazy.finished = True
        return Lazy


class AsyncLazy:
    lazy = Lazy()

    async def go(self) -> int:
        return 1


async def double(number: int) -> int:
    return 2 * number


class AsyncItems(AsyncIterator[V]):
    _Key: typing_extensions.TypeAlias = "Callable[[int], int]"
    Key: typing_extensions.TypeAlias = "Callable[[int], int]"

    def __init__(self, *items: V) -> None:
        self.left = [*items]

    async def __anext__(self) -> V:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop()

    async def stop(self) -> typing.NoReturn:
        raise LookupError

    async def keyed(self, key: _Key, path: "StrPath", lazy: AsyncLazy, number: Number = Number()) -> int:
        return key(1)


@dataclasses.dataclass
class AsyncRecord:
    key: int
    cb: Callable[[int], Awaitable[int]]
    parts: "list[AsyncPart]" = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class AsyncLongRecord(AsyncRecord):
    size: int = 3

    async def call(self, hook: "twins_odd_aliases.Hook", several: "aliases.Parts" = ()) -> int:
        return await self.cb(self.size)


class AsyncMaker:
    async def later(self, kind: type["AsyncStream"], double: Callable[[int], Awaitable[int]] = double) -> int:
        return await double(kind().left)

    async def make(self, kind: "type[AsyncItems[int]]" = AsyncItems, number: int = 1) -> AsyncItems[int]:
        return kind(number)

    async def star(self, kind: "type[AsyncItems[int]]" = AsyncItems, *numbers: int) -> AsyncItems[int]:
        return kind(*numbers)

    @staticmethod
    async def static(kind: "type[AsyncItems[int]]" = AsyncItems) -> AsyncItems[int]:
        return kind(1, 2)


class AsyncStream(AsyncIterator[int], contextlib.AbstractAsyncContextManager["AsyncStream"]):
    size: Final = 3
    _default = 5
    other: Final[int] = 4
    label: ClassVar = "label"

    def __init__(self, left: int = 1, untyped=None) -> None:
        if left:
            pass
        self.left, self.right = left, left
        self.untyped = untyped
        self.left = left
        self.total = 1
        self.many = {}
        self.many[1] = left
        print

    async def __anext__(self) -> int:
        self.left -= 1
        if self.left < 0:
            raise StopAsyncIteration
        return self.left

    async def __aexit__(self, *exc_info: object) -> None: ...

    async def take(
        self, items: AsyncIterable[int], call: "Callable[[int], Awaitable[None]] | None" = None, more: int = _default
    ) -> int:
        return sum([item async for item in items])

    property = 3


class Derived(AsyncStream):
    @property
    def title(self) -> str:
        return "title"

    title: str

    async def executor(
        self, either: "Either | None" = None, size: int = (1).real
    ) -> "concurrent.futures.Executor | None":
        return None

    async def called(self, name: str = str(1).title()) -> int:
        return 1

    async def itself(self: "S") -> "S":
        return self

    async def weird(self: "Derived | S") -> int:
        return 1

    @typing.no_type_check
    async def again(self, attribute: int = 0) -> int:
        return attribute


class AsyncTaken:
    def __init__(self, async_object: int) -> None:
        self.async_object = async_object


class DerivedTwice(Derived):
    @Derived.title.setter
    def title(self, value: str) -> None:
        self.left = len(value)


class AsyncBuiltin(OrderedDict[str, int]):
    async def load(self) -> int:
        return len(self)


class AsyncWrong(Pair):
    pass


PairAlias = Pair[int, int]


class AsyncAliased(PairAlias):
    pass


Either = AsyncPart | int
AsyncDynamic = type("AsyncDynamic", (), {"go": lambda self: AsyncPart().pair("a", 1), "__module__": __name__})


class AsyncPublic:
    async def go_public(self) -> int:
        return 1


AsyncPublic.__module__ = "twins_library"  # as if it had been written there
