"""Sync twins made at run time: every kind of member, and values on their way between the two sides."""

from __future__ import annotations

import inspect
import threading
import weakref
from contextlib import asynccontextmanager
from dataclasses import make_dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import anyio
import pytest
from conftest import wait_until_gone

from unfazed.concurrency import LoopThreadError, WrongFunctionError, run_in_eventloop_sync, sync_twin
from unfazed.twins import SyncTwin

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Awaitable

pytestmark = pytest.mark.usefixtures("background")


class AsyncRow:
    """One row."""

    def __init__(self, table: AsyncTable, number: int) -> None:
        self.table = table
        self.number = number

    async def read(self) -> int:
        await anyio.sleep(0)
        return self.number


class Pair(NamedTuple):
    first: AsyncRow
    second: AsyncRow


class AsyncTable:
    """A table of rows."""

    limit = 3
    default_row: AsyncRow | None = None
    row_class = AsyncRow

    def __init__(self, name: str = "rows", /, *, size: int = 3) -> None:
        self.name = name
        self.size = size
        self.made_in = threading.current_thread().name
        self.log: list[str] = []
        self._private = "hidden"

    async def first(self, number: int = 0, *, twin: str = "", name: str = "") -> AsyncRow:
        """Return a row."""
        self.log.append(twin + name)
        return AsyncRow(self, number)

    async def fail(self) -> None:
        raise LookupError(self.name)

    async def thread(self) -> str:
        return threading.current_thread().name

    def sync_thread(self) -> str:
        return threading.current_thread().name

    def later(self, number: int) -> Awaitable[int]:
        """Be a sync method that gives something to await."""
        return AsyncRow(self, number).read()

    async def later_still(self, number: int) -> Awaitable[int]:
        """Be an async method that gives something to await."""
        return self.later(number)

    def same(self, value: Any) -> Any:
        return value

    async def number_of(self, row: AsyncRow) -> int:
        assert type(row) is AsyncRow
        return row.number

    async def numbers_of(self, rows: list[AsyncRow], **more: dict[str, AsyncRow]) -> list[int]:
        rows = [*rows, *(row for by_name in more.values() for row in by_name.values())]
        return [await self.number_of(row) for row in rows]

    async def everything(self) -> dict[str, Any]:
        row = AsyncRow(self, 1)
        return {"list": [row], "pair": Pair(row, row), "set": {row}, "nested": ({"row": row},), "number": 1}

    def rows(self, start: int = 0) -> AsyncIterator[AsyncRow]:
        return self._rows(start)

    async def _rows(self, start: int) -> AsyncGenerator[AsyncRow, None]:
        try:
            for number in range(start, self.size):
                yield AsyncRow(self, number)
        finally:
            await anyio.sleep(0)
            self.log.append("closed")

    async def numbers(self) -> AsyncGenerator[int, None]:
        for number in range(self.size):
            yield number

    @asynccontextmanager
    async def transaction(self) -> AsyncGenerator[AsyncRow, None]:
        with anyio.CancelScope():  # which must be left in the task that entered it
            self.log.append("begun")
            try:
                yield AsyncRow(self, 9)
            except LookupError:
                self.log.append("rolled back")
            else:
                self.log.append("committed")

    async def __aenter__(self) -> AsyncTable:
        self.log.append("entered")
        return self

    async def __aexit__(self, *exc_info: object) -> bool:
        self.log.append("left")
        return exc_info[0] is LookupError

    def __aiter__(self) -> AsyncIterator[AsyncRow]:
        return self._rows(0)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, number: int) -> AsyncRow:
        return AsyncRow(self, number)

    def __contains__(self, row: AsyncRow) -> bool:
        return row.table is self

    def __call__(self, number: int) -> AsyncRow:
        return AsyncRow(self, number)

    @classmethod
    async def open(cls, name: str) -> AsyncTable:
        return cls(name)

    @staticmethod
    async def count(rows: list[AsyncRow]) -> int:
        return len(rows)

    @property
    def title(self) -> str:
        """The name, for people."""
        return self.name.title()

    @title.setter
    def title(self, title: str) -> None:
        self.name = title.lower()

    @title.deleter
    def title(self) -> None:
        self.name = ""

    @property
    async def row(self) -> AsyncRow:
        return AsyncRow(self, 5)


Row: Any = sync_twin(AsyncRow)
Table: Any = sync_twin(AsyncTable)


def test_it_has_the_names_the_docstrings_and_the_signatures() -> None:
    assert Table.__name__ == "Table"
    assert Table.__module__ == __name__
    assert Table.__doc__ == "A table of rows."
    assert Table.first.__doc__ == "Return a row."
    assert Table.title.__doc__ == "The name, for people."
    assert [*inspect.signature(Table).parameters] == ["name", "size"]
    assert [*inspect.signature(Table.first).parameters] == ["self", "number", "twin", "name"]
    assert not inspect.iscoroutinefunction(Table.first)
    assert {name for name in dir(AsyncTable) if name[0] != "_"} <= set(dir(Table))
    assert issubclass(Table, SyncTwin)
    assert not issubclass(Table, AsyncTable)


def test_asked_for_again_it_is_the_same() -> None:
    assert sync_twin(AsyncTable) is Table
    assert sync_twin(AsyncTable, name="Other") is Table
    assert Table.__name__ == "Table"


def test_it_can_be_given_a_name() -> None:
    class Client:
        pass

    class AsyncThing:
        pass

    class lower:  # noqa: N801
        pass

    assert sync_twin(AsyncThing, name="Stuff").__name__ == "Stuff"
    assert sync_twin(Client).__name__ == "SyncClient"
    assert sync_twin(lower).__name__ == "sync_lower"


def test_methods_run_on_the_loop_and_so_does_the_constructor() -> None:
    table = Table("seas")

    assert table.made_in == table.thread() == table.sync_thread() == "unfazed-eventloop"


def test_results_are_what_the_methods_return_and_raise() -> None:
    table = Table("seas", size=2)

    assert table.first(4).read() == 4
    assert table.later(5) == table.later_still(5) == 5
    assert table.row.read() == 5
    with pytest.raises(LookupError, match="seas"):
        table.fail()


def test_arguments_are_the_methods_own_whatever_their_names() -> None:
    table = Table()

    assert table.first(twin="t", name="n").read() == 0
    assert table.log == ["tn"]


def test_objects_of_twinned_classes_come_and_go_as_twins() -> None:
    table = Table()
    row = table.first(7)

    assert type(row) is Row
    assert row.table is table
    assert table.number_of(row) == 7
    assert table.numbers_of([row], more={"row": row}) == [7, 7]
    assert table.same(row) is row
    assert type(row.async_object) is AsyncRow


def test_so_they_do_in_containers() -> None:
    everything = Table().everything()

    assert [type(row) for row in everything["list"]] == [Row]
    assert type(everything["pair"]) is Pair
    assert type(everything["pair"].second) is Row
    assert {type(row) for row in everything["set"]} == {Row}
    assert type(everything["nested"][0]["row"]) is Row
    assert everything["number"] == 1


def test_containers_that_have_none_are_the_very_same_objects() -> None:
    table = Table()
    endless: list[Any] = []
    endless.append(endless)

    for value in (
        [1, "a"],
        {"a": (1, object())},
        (None,),
        {1},
        [[object()]],
        object(),
        int,
        endless,
        Pair,
    ):
        assert table.same(value) is value


def test_classes_come_and_go_as_their_twins() -> None:
    table = Table()

    assert Table.row_class is table.row_class is Row
    assert table.same(Row) is Row
    assert table.same(SyncTwin) is SyncTwin
    assert table.same(int) is int


def test_async_generators_are_generators() -> None:
    table = Table()

    assert list(table.numbers()) == [0, 1, 2]
    assert [row.read() for row in table.rows(1)] == [1, 2]
    assert [row.read() for row in table] == [0, 1, 2]


def test_a_generator_that_is_left_early_is_closed() -> None:
    table = Table()

    for row in table.rows():
        assert row.read() == 0
        break

    rows = table.rows()
    next(rows)
    rows.close()
    assert table.log.count("closed") >= 1


def test_the_object_is_a_context_manager_and_keeps_its_exceptions() -> None:
    table = Table()

    with table as entered, table:
        assert entered is table
        raise LookupError
    assert table.log == ["entered", "entered", "left", "left"]


def test_managers_of_asynccontextmanager_are_context_managers() -> None:
    table = Table()

    with table.transaction() as row:
        assert row.read() == 9
    with table.transaction():
        raise LookupError

    assert table.log == ["begun", "committed", "begun", "rolled back"]


def test_operators_act_on_the_async_object() -> None:
    table = Table(size=2)

    assert len(table) == 2
    assert table[1].read() == 1
    assert table[1] in table
    assert table[1] not in Table()
    assert table(4).read() == 4


def test_classmethods_and_staticmethods_stay() -> None:
    table = Table.open("seas")

    assert type(table) is Table
    assert table.name == "seas"
    assert Table.count([table[0], table[1]]) == table.count([1, 2]) == 2


def test_properties_and_attributes_are_read_written_and_deleted() -> None:
    table = Table()

    table.title = "Seas"
    assert (table.name, table.title) == ("seas", "Seas")
    del table.title
    assert table.name == ""
    table.anything = row = table[0]
    assert table.anything is row
    assert table.async_object.anything is row.async_object
    del table.anything
    with pytest.raises(AttributeError, match="anything"):
        table.anything  # noqa: B018
    assert (Table.limit, table.limit, table.default_row) == (3, 3, None)
    table.default_row = row
    assert table.default_row is row
    del table.default_row
    assert Table.default_row is None


def test_private_names_are_its_own() -> None:
    table = Table()

    with pytest.raises(AttributeError, match="_private"):
        table._private  # noqa: B018
    table._private = "its own"
    assert (table._private, table.async_object._private) == ("its own", "hidden")
    del table._private
    assert "_private" not in dir(table)
    assert "size" in dir(table)


def test_what_an_object_gives_only_when_it_is_asked_is_called_all_the_same() -> None:
    class Proxy:
        def __getattr__(self, name: str) -> Any:
            if name.startswith("_"):
                raise AttributeError(name)

            async def remote(*args: object, **kwargs: object) -> str:
                return f"{name}{args}{kwargs}"

            return remote

    assert sync_twin(Proxy)().add(1, b=2) == "add(1,){'b': 2}"


def test_a_test_can_put_something_else_in_the_place_of_a_method() -> None:
    table = Table()

    async def mocked() -> str:
        return "mocked"

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "thread", mocked)
        assert table.thread() == "mocked"
    assert table.thread() == "unfazed-eventloop"

    before = table.thread  # as older versions of pytest do it
    table.thread = mocked
    assert table.thread() == "mocked"
    table.thread = before
    assert table.thread() == "unfazed-eventloop"


def test_equality_and_hash_are_those_of_the_objects() -> None:
    table = Table()
    view = table.with_timeout(5)

    assert table == view != Table()
    assert table != 1
    assert len({table, view}) == 1
    assert repr(table) == f"<Table, the sync twin of {table.async_object!r}>"


def test_two_objects_of_the_same_class_do_not_mix() -> None:
    assert [table.name for table in (Table("a"), Table("b"))] == ["a", "b"]


@pytest.mark.parametrize(
    ("cls", "problem"),
    [
        (Table, "Table: it is a sync twin already"),
        (LookupError, "it is an exception"),
        (dict, "it has nothing async"),
        (type, "it is a metaclass"),
        (Protocol, "it has nothing async"),
        (len, "expected a class, got <built-in function len>"),
        (inspect._ParameterKind, "it is an enumeration"),
        (type("AsyncThing", (), {"with_timeout": None}), "AsyncThing.with_timeout has the name of a member"),
        (make_dataclass("AsyncField", ["from_async"]), "AsyncField.from_async has the name of a member"),
    ],
    ids=str,
)
def test_what_has_no_twin_is_refused_with_class_and_member(cls: Any, problem: str) -> None:
    with pytest.raises(WrongFunctionError, match=r"^sync_twin\(\) ") as caught:
        sync_twin(cls)

    assert problem in str(caught.value)


def test_the_base_of_all_cannot_be_made() -> None:
    with pytest.raises(WrongFunctionError, match=r"sync_twin\(AsyncClass\)"):
        SyncTwin()


def test_an_object_that_is_there_already_has_a_twin() -> None:
    table = AsyncTable("there")
    twin = Table.from_async(table)

    assert twin.async_object is table
    assert Table.from_async(table) is twin
    assert twin.thread() == "unfazed-eventloop"
    for cls, problem in ((Row, "AsyncRow, got"), (SyncTwin, "its async class, got")):
        with pytest.raises(WrongFunctionError, match=problem):
            cls.from_async(table)


def test_on_the_thread_of_a_loop_it_says_what_to_write() -> None:
    table = Table()

    async def main() -> None:
        with pytest.raises(LoopThreadError, match=r"`await AsyncTable.first\(\.\.\.\)`"):
            table.first()

    anyio.run(main)
    run_in_eventloop_sync(main)


def test_a_coroutine_that_is_refused_there_is_closed() -> None:
    async def main(table: Any) -> None:
        with pytest.raises(LoopThreadError, match=r"`await AsyncTable.row\(\.\.\.\)`"):
            table.row  # noqa: B018

    for table in (Table(), Table("moved")):
        anyio.run(main, table)


def test_before_it_is_refused_nothing_is_started() -> None:
    async def main() -> None:
        for use in (Table, Table.open):
            with pytest.raises(LoopThreadError, match=r"`await AsyncTable(\.open)?\(\.\.\.\)`"):
                use("seas")
        assert "unfazed-eventloop" not in {thread.name for thread in threading.enumerate()}

    anyio.run(main)


def test_a_twin_keeps_nothing_alive_and_nothing_keeps_it() -> None:
    table = Table()
    table.anything = table
    with table:
        assert table.anything.same(table) is table
    gone = [weakref.ref(table), weakref.ref(table.async_object)]
    del table

    wait_until_gone(*gone)
