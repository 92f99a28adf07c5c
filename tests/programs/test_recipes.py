"""The recipes of the documentation, each started as its users start it."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys
import zlib
from typing import TYPE_CHECKING, Any

import pytest
from pages import DOCS, read, recipes

from unfazed.concurrency import sync_twin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RECIPES = recipes()
HANG_SECONDS = 50
are_demanded = "UNFAZED_TEST_RECIPES" in os.environ  # by the tox environment `recipes`


def needs(name: str) -> None:
    if not are_demanded:
        pytest.importorskip(name)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, source in RECIPES.items():
        (tmp_path / name).write_text(source, encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*command: str) -> str:
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert (done.stderr, done.returncode) == ("", 0), done.stdout
    return done.stdout


def test_each_recipe_has_a_test() -> None:
    elsewhere = {"interpreters.py"}  # in `test_map_forms.py`
    elsewhere |= {"telemetry.py", "metrics.py", "slow_calls.py", "test_hops.py", "stuck.py"}  # of observing
    assert {*RECIPES} == {
        "tasks.py",
        "notebook",
        "first_cell",
        "test_shop.py",
        "count_words.py",
        "weather.py",
        *elsewhere,
    }


# ---- Celery

PROJECT = """
import anyio
import tasks
from unfazed.concurrency import run_in_eventloop_sync

app = tasks.app
app.conf.broker_transport_options = {folders}
run_in_eventloop_sync(anyio.sleep, 0)  # so that there is a background event loop before the fork
"""


@pytest.fixture
def celery(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Start a prefork worker with two processes; messages go through a folder. Yield the module of the tasks."""
    needs("celery")
    (folder / "messages").mkdir()
    (folder / "results").mkdir()
    monkeypatch.setenv("BROKER_URL", "filesystem://")
    monkeypatch.setenv("RESULT_BACKEND", f"file://{folder / 'results'}")
    folders = dict.fromkeys(["data_folder_in", "data_folder_out"], str(folder / "messages"))
    (folder / "project.py").write_text(
        f"import tasks\n\napp = tasks.app\napp.conf.broker_transport_options = {folders}\n"
    )
    monkeypatch.syspath_prepend(folder)
    tasks = importlib.import_module("project").tasks
    log = (folder / "log").open("w")
    worker = subprocess.Popen(
        [sys.executable, "-m", "celery", "-A", "project", "worker", "--pool=prefork", "--concurrency=2"],
        stdout=log,
        stderr=log,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), *sys.path])),
    )

    yield tasks

    worker.send_signal(signal.SIGTERM)
    try:
        assert worker.wait(HANG_SECONDS) == 0, (folder / "log").read_text()
    finally:
        worker.kill()
        log.close()
        for name in ("project", "tasks"):
            del sys.modules[name]


def test_celery(celery: Any) -> None:
    urls = [f"https://example.org/{number}" for number in range(50)]
    results = [celery.fetch_page.delay(url) for url in urls]

    assert [result.get(HANG_SECONDS) for result in results] == [f"page at {url}" for url in urls]


# ---- a notebook


def test_notebook(folder: Path) -> None:
    needs("nbclient")
    import nbclient
    import nbformat

    (folder / "data.bin").write_bytes(bytes(1000))
    sync = (
        "from unfazed.concurrency import run_in_threadpool_sync\n"
        "try:\n    run_in_threadpool_sync(int)\nexcept RuntimeError as exc:\n    print(exc)"
    )
    allowed = RECIPES["first_cell"] + (
        "from unfazed.concurrency import *\n"
        "async def twice(number):\n    return 2 * number\n"
        "print(run_in_threadpool_sync(int, '1'), run_in_eventloop_sync(twice, 1))"
    )
    cells = [nbformat.v4.new_code_cell(source) for source in (RECIPES["notebook"], sync, allowed)]
    notebook = nbformat.v4.new_notebook(cells=cells)

    nbclient.NotebookClient(notebook, timeout=HANG_SECONDS, resources={"metadata": {"path": str(folder)}}).execute()

    outputs = [output.text for cell in notebook.cells for output in cell.outputs]
    assert outputs[0] == f"1000 {zlib.crc32(bytes(1000))}\n"
    assert "await run_in_threadpool(int" in outputs[1]
    assert "configure_background_eventloop(allow_blocking_loop=True)" in outputs[1]
    assert outputs[2] == "1 2\n"


# ---- pytest


@pytest.mark.usefixtures("folder")
def test_pytest() -> None:
    pytest.importorskip("trio")

    assert re.search(
        r"^=+ 5 passed in .*$", run("-m", "pytest", "-p", "no:cacheprovider", "test_shop.py"), re.MULTILINE
    )


# ---- a command-line program


def test_command_line(folder: Path) -> None:
    for number in range(5):
        (folder / f"{number}.txt").write_text("word " * number, encoding="utf-8")

    assert run("count_words.py", *(f"{number}.txt" for number in range(5))) == "".join(
        f"{number:8} {number}.txt\n" for number in range(5)
    )


# ---- a library


@pytest.fixture
def weather(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (folder / "Oslo.txt").write_text("rain\n")
    (folder / "Rome.txt").write_text("sun\n")
    monkeypatch.syspath_prepend(folder)
    for name in ("weather", "weather_sync"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module("weather")


@pytest.mark.anyio
async def test_library_from_async_code(folder: Path, weather: Any) -> None:
    assert [report async for report in weather.AsyncWeather(folder).reports("Oslo", "Rome")] == ["rain", "sun"]


def test_library_from_sync_code(folder: Path, weather: Any) -> None:
    with sync_twin(weather.AsyncWeather)(folder) as twin:
        assert list(twin.reports("Oslo", "Rome")) == ["rain", "sun"]


def test_library_with_a_generated_module(folder: Path, weather: Any) -> None:
    needs("ruff")
    needs("libcst")
    (command,) = re.findall(
        r"^\$ python -m (unfazed.twins weather.*)$", read(DOCS / "how-to" / "both-apis.md"), re.MULTILINE
    )
    run("-m", *command.split())
    run("-m", *command.split(), "--check")

    assert importlib.import_module("weather_sync").Weather(folder).report("Oslo") == "rain"
