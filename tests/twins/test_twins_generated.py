"""Generated sync twins: what is written, that it works, and the command."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("libcst")
pytest.importorskip("ruff")

import twins_library as library

from unfazed.concurrency._twins import _command

CLASSES = [
    *(f"twins_library:{name}" for name in ("AsyncRows", "AsyncRepository", "AsyncReads", "AsyncClient", "AsyncBase")),
    "twins_library:AsyncRow=Line",
    "twins_library:AsyncSettings",
    "twins_library:AsyncIndex",
]
GOLDEN = Path(__file__).parent / "twins_library_sync.py"
HANG_SECONDS = 50


def generate(output: Path, *arguments: str) -> int:
    return _command.main([*arguments, "--output", str(output)])


def load(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def twins() -> Any:
    return load(GOLDEN)


def test_what_is_written_is_what_stands_there() -> None:
    assert generate(GOLDEN, *CLASSES, "--check") == 0


@pytest.mark.usefixtures("background")
def test_it_does_the_work(twins: Any) -> None:
    client = twins.Client("c", path=None)

    assert client.fetch("x", 2, 3, 4, size=5, more="6") == "x 2 (3, 4) 5 {'more': '6'}"
    assert client.fetch_again("y") == "y 1 () 1 {}"
    assert client.untyped(0, 4) == 4
    assert type(client.one_of("row")) is twins.Line
    assert client.one_of() == "text"
    assert [row.read() for rows in client.pages(5) for row in rows] == [5]
    assert list(client.generate()) == [1]
    with client.session() as row, client.lock():
        assert row.client is client
    assert client.later().read() == client.later_or_now() == client.wait().count("b") == 1
    assert client.coroutine()["row"].number == 1
    assert client.many(row) == client.many([row]) == 1
    row.number = 5
    assert row.read() == client.handler(row) == 5
    del row.number
    assert not hasattr(row.async_object, "number")
    numbers: list[int] = []
    client.on_row(lambda row: numbers.append(row.read()), abs, int)
    assert numbers == [7]
    assert client.upload(iter([b"a", b"b"])) == b"ab"
    assert (client.cached, client.title, len(client), client.limit, client.kind_class) == (
        "cached",
        "C",
        3,
        3,
        library.Kind,
    )
    client.cached = "other"
    assert client.cached == client.async_object.cached == "other"
    del client.cached
    assert client.cached == "cached"
    client.title = "new"
    assert client.name == client.async_object.name == "new"
    assert type(twins.Client.connect()) is twins.Client
    assert twins.Client.parse("4")[0].number == 4
    with pytest.warns(DeprecationWarning, match="use fetch"):
        client.old()
    with client as entered:
        assert entered is client
    assert client.name == "closed"


def test_its_classes_are_related_as_the_async_ones_are(twins: Any) -> None:
    assert issubclass(twins.Client, twins.Base)
    assert issubclass(twins.Rows, twins.Repository)
    assert twins.Client().base() == "base"
    assert twins.Repository[int]().all() == []
    assert [row.read() for row in twins.Rows()] == [1]
    assert twins.Rows().mixed(3) == {"value": 3}


def test_protocols_and_dataclasses_stay_what_they_are(twins: Any) -> None:
    settings = twins.Settings("name", tags=["a"])

    assert settings.save() == "name 3 ['a']"
    assert twins.Settings("name", more=2).size == 5
    assert twins.Settings("name").tags == []
    assert settings == twins.Settings("name", tags=["a"]) != twins.Settings("name")
    assert twins.Settings.__match_args__ == ("name", "size", "tags", "more")

    class Reader:
        size = 1
        name = "reader"

        def read(self) -> bytes:
            return b""

    assert isinstance(Reader(), twins.Reads)
    assert not isinstance(3, twins.Reads)


def test_decorators_see_what_was_passed(twins: Any) -> None:
    library.passed.clear()

    index = twins.Index("planets")
    twins.Index("moons", 3)
    assert index.find("earth") == "planets earth 10 False {}"
    assert index.find("earth", 5, exact=True, sort="size") == "planets earth 5 True {'sort': 'size'}"
    assert index.search("earth") == "planets earth 10 () False"
    assert library.passed == [
        ["name", "self"],
        ["name", "self", "size"],
        ["self", "text"],
        ["exact", "limit", "options", "self", "text"],
        ["exact", "limit", "self", "text"],  # not for functions that take any number of positional arguments
    ]


def test_an_abstract_class_cannot_be_made(twins: Any) -> None:
    with pytest.raises(TypeError, match="abstract"):
        twins.Base()


def test_the_same_bytes_are_written_each_time_and_nothing_if_they_are_there(tmp_path: Path) -> None:
    first, second = tmp_path / "twins.py", tmp_path / "other" / "twins.py"
    second.parent.mkdir()

    for output in (first, second, first):
        assert generate(output, "twins_library:AsyncRow", "twins_library:AsyncClient") == 0
        os.utime(first, (1, 1))

    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_mtime == 1
    assert sorted(tmp_path.iterdir()) == sorted([first, second.parent])


def test_check_tells_what_is_different(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "twins.py"

    assert generate(output, "twins_library:AsyncRow", "--check") == 1
    assert "is not there" in capsys.readouterr().err
    generate(output, "twins_library:AsyncRow")
    output.write_text(output.read_text("utf-8").replace('attribute("number")', "attribute('number')"), "utf-8")
    assert generate(output, "twins_library:AsyncRow", "--check") == 0, "formatted otherwise"
    output.write_text(output.read_text("utf-8").replace("def read", "def write"), "utf-8")
    assert generate(output, "twins_library:AsyncRow", "--check") == 1
    assert "-    def write(self) -> int:\n+    def read(self) -> int:" in capsys.readouterr().err


def test_the_file_is_as_it_was_if_it_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "twins.py"
    output.write_text("before", "utf-8")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    assert generate(output, "twins_library:AsyncRow") == 2
    assert "No space left on device" in capsys.readouterr().err
    assert [path.read_text("utf-8") for path in tmp_path.iterdir()] == ["before"]


def test_ctrl_c_leaves_the_file_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupt)
    assert generate(tmp_path / "twins.py", "twins_library:AsyncRow") == 130
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["twins_library"], "write package.module:AsyncClass"),
        (["twins_library:Missing"], "has no attribute 'Missing'"),
        (["missing_module:Missing"], "No module named 'missing_module'"),
        (["twins_library:UNSET"], "UNSET is no class"),
        (["builtins:LookupError"], "it is an exception"),
        (["twins_library:AsyncRow", "twins_library:AsyncClient=Row"], "two twins would be called Row"),
        (["twins_library:AsyncRow", "twins_library:AsyncRow=Other"], "twins_library:AsyncRow is named twice"),
        (["test_twins_broken_module:AsyncRow"], "cannot be imported: LookupError: broken"),
        (["twins_odd_library:AsyncTaken"], "AsyncTaken.async_object has the name of a member"),
        (["_thread:RLock"], "_thread has no source code; make it at run time"),
        (["twins_library:AsyncRow=not a name"], "ruff does not take what is generated: error"),
    ],
)
def test_mistakes_are_told(
    arguments: list[str],
    problem: str,
    tmp_path: Path,
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    modules = tmp_path_factory.mktemp("modules")
    (modules / "test_twins_broken_module.py").write_text("raise LookupError('broken')", "utf-8")
    monkeypatch.syspath_prepend(str(modules))
    assert generate(tmp_path / "twins.py", *arguments) == 2
    assert problem in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_command_shows_its_progress_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)

    assert generate(tmp_path / "twins.py", "twins_library:AsyncClient", "twins_library:AsyncBase") == 0
    assert capsys.readouterr().err.splitlines()[:2] == [
        "[1/2] twins_library:AsyncBase",
        "[2/2] twins_library:AsyncClient",
    ]


def test_it_warns_of_async_classes_that_have_no_twin(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert generate(tmp_path / "twins.py", "twins_library:AsyncRow") == 0

    assert (
        "warning: AsyncRow mentions twins_library:AsyncClient, which is async: name it as well"
        in capsys.readouterr().err
    )


def test_the_command_runs_as_a_module(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "unfazed.twins", "twins_library:AsyncRow", "--output", str(tmp_path / "twins.py")]
    folder = Path(__file__).parent
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)

    assert done.returncode == 0, done.stderr
    assert "class Row(SyncTwin, twin_of=AsyncRow):" in (tmp_path / "twins.py").read_text("utf-8")


def test_the_command_says_what_is_missing() -> None:
    program = (
        "import importlib.util, runpy\n"
        "find = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *rest: None if name == 'ruff' else find(name, *rest)\n"
        "runpy.run_module('unfazed.twins', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=False)

    assert importlib.import_module("unfazed.twins.__main__"), "imported, it does nothing"
    assert done.returncode == 2
    assert "pip install 'unfazed-concurrency[twins]'" in done.stderr
