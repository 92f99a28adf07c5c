"""An async library with everything that the generator of sync twins has to know."""

from __future__ import annotations

import abc
import functools
import inspect
import typing as t
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import InitVar, dataclass, field
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    ClassVar,
    Final,
    Generic,
    Literal,
    ParamSpec,
    Protocol,
    TypeVar,
    Union,
    overload,
)

from typing_extensions import Self, deprecated

if TYPE_CHECKING:
    from pathlib import Path

P = ParamSpec("P")
T = TypeVar("T")
ClientT = TypeVar("ClientT", bound="AsyncClient")
Rows = Union["AsyncRow", Sequence["AsyncRow"]]
Handler = Callable[["AsyncRow"], Awaitable[None]]
Plain = Union[str, bytes]  # noqa: UP007  written as many write it
UNSET: Final = object()
SIZES = {"small": 1}


class Kind:
    """A class that is not async."""

    default = 3


@t.runtime_checkable
class AsyncReads(Protocol):
    """What can be read."""

    size: int

    @property
    def name(self) -> str: ...

    @abc.abstractmethod
    async def read(self) -> bytes:
        """Read it."""


class AsyncRepository(Generic[T]):
    """Keeps things."""

    async def get(self, key: str) -> T | None:
        return None

    async def all(self) -> list[T]:
        return []


class Mixin(Generic[T]):
    """A base that is given no twin."""

    async def mixed(self, value: T) -> dict[str, T]:
        return {"value": value}

    async def raw(self) -> list:  # type: ignore[type-arg]
        return []


class AsyncRow:
    __slots__ = ("client", "number")

    client: AsyncClient
    number: int

    def __init__(self, client: AsyncClient, number: int = 1) -> None:
        self.client = client
        self.number = number

    async def read(self) -> int:
        r"""Read it, with a \ in its docstring."""
        return self.number


class AsyncRows(AsyncRepository["AsyncRow"], Mixin["AsyncRow"]):
    def __aiter__(self) -> Self:
        self.left = [AsyncRow(AsyncClient())]
        return self

    async def __anext__(self) -> AsyncRow:
        if not self.left:
            raise StopAsyncIteration
        return self.left.pop()


@dataclass
class AsyncSettings:
    """Settings."""

    name: str
    size: int = 3
    tags: list[str] = field(default_factory=list)
    more: InitVar[int] = 0

    def __post_init__(self, more: int) -> None:
        self.size += more

    async def save(self) -> str:
        return f"{self.name} {self.size} {self.tags}"


def notes_arguments(func: Callable[P, T]) -> Callable[P, T]:
    """Note the names of the arguments that were passed, as libraries do that warn of some of them."""

    @functools.wraps(func)
    def noting(*args: P.args, **kwargs: P.kwargs) -> T:
        passed.append(sorted(inspect.signature(func).bind(*args, **kwargs).arguments))
        return func(*args, **kwargs)

    return noting


passed: list[list[str]] = []


class AsyncIndex:
    """A class whose decorators ask what was passed."""

    @notes_arguments
    def __init__(self, name: str, size: float = 2.5) -> None:
        self.name = name

    @notes_arguments
    async def search(self, text: str, limit: int = 10, *more: str, exact: bool = False) -> str:
        return f"{self.name} {text} {limit} {more} {exact}"

    @notes_arguments
    async def find(self, text: str, limit: int = 10, *, exact: bool = False, **options: str) -> str:
        return f"{self.name} {text} {limit} {exact} {options}"


class AsyncBase(abc.ABC):
    """A base."""

    @abc.abstractmethod
    async def close(self, *, now: bool = False) -> None:
        """Close it."""

    async def base(self) -> str:
        return "base"


class AsyncClient(AsyncBase):
    """A client.

    Its docstring has "quotes" and two paragraphs.
    """

    limit = 3
    kind_class = Kind
    row_class = AsyncRow
    registry: ClassVar[dict[str, AsyncRow]] = {}
    name: Annotated[str, "metadata"]

    def __init__(self, name: str = "client", *, path: Path | None = None, kind: Kind = Kind()) -> None:  # noqa: B008
        self.name = name
        self.path = path
        self.rows_made: list[AsyncRow] = []
        self.handler: Callable[[AsyncRow], Awaitable[int]] = self._handle
        self._secret: Path | None = path

    async def fetch(self, call: str, /, make: int = 1, *args: int, size: int = SIZES["small"], **kwargs: str) -> str:
        """Fetch something; its parameters have the names of ours."""
        return f"{call} {make} {args} {size} {kwargs}"

    async def _handle(self, row: AsyncRow) -> int:
        return row.number

    async def untyped(self, value, default=None):  # type: ignore[no-untyped-def]
        return value or default

    @overload
    async def one_of(self, mode: Literal["row"]) -> AsyncRow: ...
    @overload
    async def one_of(self, mode: Literal["text"] = ...) -> str: ...
    async def one_of(self, mode: str = "text") -> AsyncRow | str:
        """Return one of two."""
        return AsyncRow(self) if mode == "row" else "text"

    def pages(self, start: int = 0) -> AsyncIterator[list[AsyncRow]]:
        return self._pages(start)

    async def _pages(self, start: int) -> AsyncGenerator[list[AsyncRow], None]:
        yield [AsyncRow(self, start)]

    async def generate(self) -> t.AsyncGenerator[int, None]:
        yield 1

    @asynccontextmanager
    async def session(self, timeout: float | None = None) -> AsyncIterator[AsyncRow]:
        yield AsyncRow(self)

    def lock(self) -> AbstractAsyncContextManager[None]:
        return self._lock()

    @asynccontextmanager
    async def _lock(self) -> AsyncIterator[None]:
        yield

    def later(self) -> Awaitable[AsyncRow]:
        return self._later()

    def later_or_now(self) -> int | Awaitable[int]:
        return self.number()

    async def number(self) -> int:
        return 1

    def coroutine(self) -> Coroutine[Any, Any, dict[str, AsyncRow]]:
        async def give() -> dict[str, AsyncRow]:
            return {"row": AsyncRow(self)}

        return give()

    async def _later(self) -> AsyncRow:
        return AsyncRow(self)

    async def many(self, rows: Rows, text: Plain = "") -> int:
        return 1 if isinstance(rows, AsyncRow) else len(rows)

    async def on_row(self, handler: Handler, *handlers: Callable[[int], Awaitable[int]]) -> None:
        await handler(AsyncRow(self, 7))
        for number, each in enumerate(handlers):
            assert await each(number) == number

    async def upload(self, chunks: t.AsyncIterable[bytes] | Iterable[bytes]) -> bytes:
        return b"".join([chunk async for chunk in chunks])  # type: ignore[union-attr]

    @cached_property
    def cached(self) -> str:
        """Something that is kept."""
        return "cached"

    @property
    def title(self) -> str:
        """Its title."""
        return self.name.title()

    @title.setter
    def title(self, value: str) -> None:
        self.name = value

    @classmethod
    async def connect(cls: type[ClientT], name: str = "connected") -> ClientT:  # noqa: PYI019
        return cls(name)

    @staticmethod
    async def parse(text: str) -> list[AsyncRow]:
        return [AsyncRow(AsyncClient(), int(text))]

    @deprecated("use fetch()")
    async def old(self) -> None:
        """Be old."""

    async def list(self) -> t.List[int]:  # noqa: UP006
        return [1]

    async def after_list(self, callback: Callable | None = None) -> tuple[int, ...]:  # type: ignore[type-arg]
        return (1,)

    fetch_again = fetch

    async def close(self, *, now: bool = False) -> None:
        self.name = "closed"

    async def __aenter__(self: ClientT) -> ClientT:  # noqa: PYI019
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    def __len__(self) -> int:
        return 3

    def __await__(self) -> t.Generator[Any, Any, str]:
        return self.base().__await__()
