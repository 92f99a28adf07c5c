"""Sync twins of what is written in less usual ways, at run time and generated."""

from __future__ import annotations

import abc
import functools
import importlib
import inspect
import itertools
import operator
import sys
import types
from collections.abc import AsyncIterable
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar, runtime_checkable

import pytest

from unfazed.concurrency import sync_twin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
    from pathlib import Path

T = TypeVar("T")
ODD = (
    "AsyncPart",
    "AsyncNamed",
    "AsyncShelf",
    "AsyncMaker",
    "AsyncRecord",
    "AsyncLongRecord",
    "DerivedTwice",
    "AsyncItems",
    "AsyncEmpty",
    "AsyncStream",
    "Derived=Derivation",
    "AsyncBuiltin",
    "AsyncWrong",
    "AsyncAliased",
    "AsyncDynamic",
    "AsyncPublic",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    pytest.importorskip("libcst")
    pytest.importorskip("ruff")
    command = importlib.import_module("unfazed.concurrency._twins._command")
    output = tmp_path_factory.mktemp("odd") / "odd_twins.py"
    assert command.main([*(f"twins_odd_library:{name}" for name in ODD), "--output", str(output)]) == 0
    return output.read_text("utf-8")


@pytest.fixture(scope="module")
def twins(source: str) -> Any:
    module = types.ModuleType("odd_twins")
    sys.modules["odd_twins"] = module
    exec(compile(source, "odd_twins", "exec"), module.__dict__)
    return module


@pytest.mark.parametrize(
    "line",
    [
        "def nested(self) -> AsyncPart.Nested:",
        "def from_star(self) -> AbstractEventLoop | None:",
        "def unknown(self, value: Any, shape: list[Any] = None) -> int:",
        "def alias(self, value: Optional[Union[Part, Any]] = None) -> Union[Iterator[int], Recursive]:",
        "def expanded(self, value: Union[Part, Any] | None = None) -> int:",
        "def dotted(self, part: Sequence[Part], *, sum: Decimal = None) -> List[Part]:",
        "def bare(self, ordered: OrderedDict, other: Pair[Any, Any], empty: tuple[Any, ...] = ()) -> Any:",
        "def future(self) -> Part:",
        "def untyped_manager(self) -> AbstractContextManager[Any]:",
        'def both(self, key: str = "") -> int:',
        "def more(self, key: int) -> str: ...",
        "def pair(self, key: str, value: int) -> dict[str, int]:",
        "def built_in(self, *args: Any, **kwargs: Any) -> Any:",
        "def pair_dynamically(self, *args: Any, **kwargs: Any) -> Any:",
        'title: Any = attribute("title")',
        "def __lt__(self, *args: Any) -> Any:",
        "class Derivation(Stream, twin_of=Derived):",
        "def __enter__(self) -> Self:",
        "def __iter__(self) -> Self:",
        'left: int = attribute("left")',
        'size: int = attribute("size")',
        'label: str = attribute("label")',
        "from decimal import Decimal",
        "class Named(Empty, Protocol):",
        "def executor(self, either: Part | int | None = None, size: int = (1).real) -> Executor | None:",
        "def called(self, name: str = str(1).title()) -> int:",
        "def go_public(self) -> int:",
        "def itself(self) -> Self:",
        "def weird(self) -> int:",
        "def pair(self, key: Any, value: Any) -> dict[Any, Any]:",
        "def go(self, *args: Any, **kwargs: Any) -> Any:",
        (
            "def aliases(self, handler: Callable[[int], None], bare: Callable[[Any], None], several: Any, "
            "hook: Callable[[Part], Any],) -> None:"
        ),
        'PartT = TypeVar("PartT", "Part", "int")',
        'StreamT = TypeVar("StreamT", bound="Stream", covariant=True)',
        "def constrained(self, part: PartT, kind: type[StreamT]) -> list[PartT | StreamT]:",
        (
            "def bound(self, key: Callable[[int], int] = lambda label: label + second, "
            "more: Any = [label for label in (1,)],) -> int:"
        ),
        "def async_object(self) -> AsyncShelf[Any]:",
        "class Items(SyncTwin, Generic[V], twin_of=AsyncItems):",
        ("def keyed(self, key: AsyncItems._Key, path: StrPath, lazy: AsyncLazy, number: Fraction = Number(),) -> int:"),
        "def stop(self) -> NoReturn:",
        "def from_elsewhere(self, key: T, pool: Executor | None = None) -> T:",
        "def call(self, hook: Callable[[Part], int], several: Union[Part, int] = ()) -> int:",
        (
            "def __init__(self, key: int, cb: Callable[[int], int], parts: list[Part] = default(), "
            "size: int = 3,) -> None:"
        ),
        "def make(self, kind: type[Items[int]] = default(), number: int = 1) -> Items[int]:",
        'Key: str = attribute("Key")',
        "from _typeshed import StrPath",
        "@classmethod def static(cls, *args: Any, **kwargs: Any) -> Any:",
    ],
)
def test_what_is_generated(source: str, line: str) -> None:
    assert line in " ".join(source.split()).replace("( ", "(").replace(" )", ")")


def test_what_is_set_in_a_container_is_no_attribute(source: str) -> None:
    assert "many: int" not in source


@pytest.mark.usefixtures("background")
def test_what_is_generated_works(twins: Any) -> None:
    part = twins.Part()

    assert part.pair("a", 1) == {"a": 1}
    assert part.both() == part.more() == 1
    assert twins.Part.static(a=1) == part.static(a=1) == {"a": 1}
    assert part.bound() == 4
    assert part.pair_dynamically() == {1: 2}
    assert part.title == "title"
    assert part < 3
    assert hash(part) == 5
    with part.untyped_manager() as value:
        assert value == 1
    with twins.Stream(3) as stream:
        assert list(stream) == [2, 1, 0]
        assert stream.take(iter([1, 2])) == 3
        assert stream.property == 3
    assert twins.Derivation(1).again(4) == 4
    twice = twins.SyncDerivedTwice()
    twice.title = "four"
    assert (twice.left, twice.title) == (4, "title")
    maker = twins.Maker()
    assert (maker.later(twins.Stream), maker.later(twins.Stream, lambda number: number + 2)) == (2, 3)
    assert [list(items) for items in (maker.make(), maker.make(number=3), maker.make(twins.Items, 4))] == [
        [1],
        [3],
        [4],
    ]
    assert [list(items) for items in (maker.star(), maker.star(twins.Items, 3), maker.static())] == [[], [3], [2, 1]]
    with pytest.raises(LookupError):
        twins.Items[int]().stop()
    assert twins.Builtin([("a", 1)]).load() == 1
    assert twins.Dynamic().go() == {"a": 1}


def test_type_parameters_of_python_3_12_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("libcst")
    pytest.importorskip("ruff")
    command = importlib.import_module("unfazed.concurrency._twins._command")
    old = (
        "from typing import Generic, TypeVar\n"
        "T = TypeVar('T')\n"
        "class AsyncBox(Generic[T]):\n"
        "    async def put(self, item): return item\n"
        "    async def get(self): return 1\n"
        "    async def many(self): return 1\n"
        "    async def call(self): return 1\n"
    )
    new = (
        "type Items[K] = list[K]\n"
        "type Pages = list['AsyncBox[int]']\n"
        "class AsyncBox[T: (int, str)]:\n"
        "    async def put[K: AsyncBox = AsyncBox, **P, *Ts](self, item: K) -> Items[K]: return item\n"
        "    async def get(self) -> T | Pages: return 1\n"
        "    async def many[*Ts](self, *args: *Ts) -> tuple[*Ts]: return 1\n"
        "    async def call[**P](self, func: Callable[P, int], *args: P.args, **kwargs: P.kwargs) -> int: return 1\n"
    )
    module = types.ModuleType("new_library")
    exec(old, module.__dict__)
    monkeypatch.setitem(sys.modules, "new_library", module)
    getsource: Callable[[Any], str] = inspect.getsource
    monkeypatch.setattr(inspect, "getsource", lambda of: new if of is module else getsource(of))

    assert command.main(["new_library:AsyncBox", "--output", str(tmp_path / "box.py")]) == 0
    text = (tmp_path / "box.py").read_text("utf-8")
    assert "class Box[T: (int, str)](SyncTwin, twin_of=AsyncBox):" in text
    assert "def put[K: Box[Any] = Box[Any], **P, *Ts](self, item: K) -> Items[K]:" in text
    assert "def get(self) -> T | list[Box[int]]:" in text
    assert "def many[*Ts](self, *args: *Ts) -> tuple[*Ts]:" in text
    assert "*args: P.args, **kwargs: P.kwargs" in text
    assert "def async_object(self) -> AsyncBox[T]:" in text


@runtime_checkable
class AsyncReader(Protocol):
    size: int = 1

    async def read(self) -> str:
        """Read it."""
        ...


class AsyncFile(AsyncReader):
    size = 3

    def __init__(self) -> None:
        self.read_by: list[str] = []

    async def read(self) -> str:
        return "read"


class AsyncBase(abc.ABC, Generic[T]):
    @abc.abstractmethod
    async def get(self) -> T: ...

    async def twice(self) -> list[T]:
        return [await self.get(), await self.get()]


class AsyncNumber(AsyncBase[int]):
    __slots__ = ("value",)

    def __init__(self, value: int) -> None:
        self.value = value

    async def get(self) -> int:
        return self.value

    partial = functools.partialmethod(twice := AsyncBase.twice)
    builtin: Any = operator.itemgetter

    @functools.cached_property
    def cached(self) -> int:
        return 1

    def __add__(self, other: AsyncNumber) -> AsyncNumber:
        return AsyncNumber(self.value + other.value)


class Meta(type):
    made: int = 0

    def __call__(cls, *args: Any) -> Any:
        cls.made += 1
        return super().__call__(*args)


class AsyncMade(metaclass=Meta):
    async def stream(self) -> AsyncIterator[int]:
        yield 1

    def opened(self) -> Any:
        return Opened()

    async def call(self, func: Callable[[int], int], items: AsyncIterable[int] | None = None) -> int:
        return func(len([item async for item in items])) if items is not None else func(0)


class Opened:
    """Is both: what `async with` and `async for` take."""

    with_timeout = 3  # as every twin has

    async def __aenter__(self) -> Opened:
        return self

    async def __aexit__(self, *exc_info: object) -> None: ...


@pytest.mark.usefixtures("background")
def test_protocols_have_protocols_for_twins() -> None:
    Reader, File = sync_twin(AsyncReader), sync_twin(AsyncFile)  # noqa: N806

    file = File()
    assert isinstance(file, Reader)
    assert Reader in File.__mro__
    assert file.read() == "read"
    assert Reader.read.__doc__ == "Read it."
    assert not inspect.iscoroutinefunction(Reader.read)
    with pytest.raises(NotImplementedError):
        Reader.read(file)


@pytest.mark.usefixtures("background")
def test_generics_abstract_classes_and_their_heirs_are_related() -> None:
    Number = sync_twin(AsyncNumber)  # noqa: N806
    Base = sync_twin(AsyncBase)  # noqa: N806

    number = Number(4)
    assert issubclass(Number, Base)
    assert Base[int]
    assert (number.twice(), number.partial(), number.cached, number.value) == ([4, 4], [4, 4], 1, 4)
    assert (number + Number(2)).get() == 6
    with pytest.raises(TypeError, match="abstract"):
        Base()


class AsyncNumbers(AsyncIterable[T]):
    async def __aiter__(self) -> AsyncIterator[T]:
        yield 1  # type: ignore[misc]


@pytest.mark.usefixtures("background")
def test_a_class_that_is_generic_by_a_base_of_the_standard_library_stays_generic() -> None:
    assert list(sync_twin(AsyncNumbers)[int]()) == [1]


@pytest.mark.usefixtures("background")
def test_a_metaclass_makes_the_async_object() -> None:
    before = AsyncMade.made
    made = sync_twin(AsyncMade)()

    assert AsyncMade.made == before + 1
    assert list(made.stream()) == [1]


class AsyncShelf:
    def __init__(self) -> None:
        self.boxes = {"a": AsyncNumber(1), "b": AsyncNumber(2)}
        self.opened = self.open
        self.callable = AsyncCallable()
        self.seen: list[type] = []

    async def open(self, number: int = 0) -> int:
        return number

    def views(self) -> list[Any]:
        return [self.boxes.values(), self.boxes.items(), dict.fromkeys(self.boxes.values()).keys()]

    def iterators(self) -> list[Iterator[Any]]:
        return [iter([*self.boxes.values()]), (box for box in self.boxes.values()), itertools.chain(self.numbers())]

    def numbers(self) -> Iterator[AsyncNumber]:
        try:
            yield from self.boxes.values()
        finally:
            self.seen.append(int)

    async def see(self, items: Iterable[Any]) -> None:
        self.seen += [type(item) for item in items]

    async def call_all(self, *funcs: Callable[[int], Awaitable[int]], **more: Callable[[int], Awaitable[int]]) -> int:
        return sum([await func(1) for func in (*funcs, *more.values())])


class AsyncCallable:
    async def __call__(self, number: int) -> int:
        return number

    async def get(self) -> str:
        return "got"


@pytest.mark.usefixtures("background")
def test_iterators_and_views_come_and_go_with_twins_in_them() -> None:
    Number, shelf = sync_twin(AsyncNumber), sync_twin(AsyncShelf)()  # noqa: N806

    values, items, keys = shelf.views()
    assert [box.get() for box in values] == [box.get() for _, box in items] == [box.get() for box in keys] == [1, 2]
    assert (len(values), dict(items)["a"].value) == (2, 1)
    assert [[box.get() for box in iterator] for iterator in shelf.iterators()] == [[1, 2]] * 3
    assert shelf.seen == [int]
    numbers = shelf.numbers()
    assert type(next(numbers)) is Number
    numbers.close()
    assert shelf.seen == [int, int], "it has been closed"
    for given in (values, (box for box in values), map(dict(items).get, ["a"]), zip([3], values, strict=False)):
        shelf.see(given)
    assert shelf.async_object.seen[2:] == [*[AsyncNumber] * 5, tuple]


@pytest.mark.usefixtures("background")
def test_each_of_several_callbacks_may_be_sync() -> None:
    async def one(number: int) -> int:
        return number

    assert sync_twin(AsyncShelf)().call_all(one, int, lambda number: number + 1, more=abs, one=one) == 6


@pytest.mark.usefixtures("background")
def test_attributes_that_are_async_functions_are_called_as_methods() -> None:
    shelf = sync_twin(AsyncShelf)()

    assert shelf.opened(3) == 3
    assert shelf.callable(4) == 4, "has no twin yet"
    Callable_ = sync_twin(AsyncCallable)  # noqa: N806
    assert type(shelf.callable) is Callable_
    assert (shelf.callable(4), shelf.callable.get()) == (4, "got")


@pytest.mark.usefixtures("background")
def test_an_object_whose_class_can_have_no_twin_comes_as_it_is() -> None:
    assert type(sync_twin(AsyncMade)().opened()) is Opened


@pytest.mark.usefixtures("background")
def test_sync_functions_stay_what_they_are_where_sync_ones_are_expected() -> None:
    made = sync_twin(AsyncMade)()

    assert made.call(lambda number: number + 1) == 1
    assert made.call(len.__class__ and abs, items=[1, 2]) == 2


@pytest.mark.usefixtures("background")
def test_a_subclass_of_a_twin_comes_from_the_classmethods_of_its_own() -> None:
    class AsyncOpened:
        @classmethod
        async def make(cls) -> AsyncOpened:
            return cls()

        @classmethod
        async def number(cls) -> int:
            return 3

    class Mine(sync_twin(AsyncOpened)):  # type: ignore[misc]
        pass

    assert type(Mine.make()) is Mine
    assert Mine.number() == 3
