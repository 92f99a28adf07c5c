"""`database_sync_to_async` as channels has it, on both backends, and what moves a Django project."""

from __future__ import annotations

import inspect
from concurrent.futures import ThreadPoolExecutor
from threading import current_thread
from typing import TYPE_CHECKING, Any

import asgiref.sync
import pytest
from asgiref_helpers import counts_references, end_threads, run_async, run_program
from django.core import checks
from django.db import connection, connections, transaction
from django_helpers import model
from unfazed_compat.asgiref import ThreadSensitiveContext, async_to_sync, sync_to_async, uninstall
from unfazed_compat.django import DatabaseSyncToAsync, _setup, aclose_old_connections, database_sync_to_async, setup

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

assert end_threads  # a fixture

assert model  # another one

Backend = tuple[str, dict[str, Any]]


def is_connected() -> bool:
    return connection.connection is not None


# ---- database_sync_to_async


def test_stale_connections_are_closed_before_and_after(anyio_backend: Backend, model: Any) -> None:
    def use_it() -> tuple[bool, int]:
        was_connected = is_connected()
        return was_connected, model.objects.count()

    async def main() -> None:
        assert await sync_to_async(use_it)() == (False, 1)
        assert await sync_to_async(is_connected)()
        assert await database_sync_to_async(use_it)() == (False, 1)
        assert not await sync_to_async(is_connected)()

    run_async(anyio_backend, main)


def test_they_are_closed_after_an_error(anyio_backend: Backend, model: Any) -> None:
    def fail() -> None:
        model.objects.get(name="vulcan")

    async def main() -> None:
        with pytest.raises(model.DoesNotExist):
            await database_sync_to_async(fail)()
        assert not await sync_to_async(is_connected)()

    run_async(anyio_backend, main)


def test_others_are_kept(anyio_backend: Backend, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.settings["default"], "CONN_MAX_AGE", None)

    async def main() -> None:
        await database_sync_to_async(model.objects.count)()
        assert await sync_to_async(is_connected)()
        await sync_to_async(connections.close_all)()

    run_async(anyio_backend, main)


def test_connections_in_a_transaction_are_kept(model: Any) -> None:
    with transaction.atomic():
        model.objects.create(name="pluto")
        assert async_to_sync(database_sync_to_async(model.objects.count))() == 2
        transaction.set_rollback(True)
    connection.close()


def test_the_threads_are_those_of_sync_to_async(anyio_backend: Backend, model: Any) -> None:
    closed_in = []

    class Watching(DatabaseSyncToAsync[Any, Any]):
        def thread_handler(self, *args: Any, **kwargs: Any) -> Any:
            closed_in.append(current_thread())
            return super().thread_handler(*args, **kwargs)

    async def main() -> None:
        async with ThreadSensitiveContext():
            thread = await sync_to_async(current_thread)()
            assert await database_sync_to_async(current_thread)() is thread
            assert await Watching(current_thread, False)() is not thread
        with ThreadPoolExecutor(1) as executor:
            used = await Watching(current_thread, False, executor)()
            assert used in executor._threads
        assert len(set(closed_in)) == 2
        assert closed_in[1] is used

    run_async(anyio_backend, main)
    assert async_to_sync(database_sync_to_async(current_thread))() is current_thread()


class Consumer:
    @database_sync_to_async
    def add(self, first: int, *, second: int) -> tuple[object, int]:
        """Add."""
        return self, first + second

    @staticmethod
    @database_sync_to_async
    def double(number: int) -> int:
        return 2 * number


def test_it_decorates_functions_and_methods(anyio_backend: Backend, model: Any) -> None:
    @database_sync_to_async
    def triple(number: int) -> int:
        return 3 * number

    async def main() -> None:
        consumer = Consumer()
        assert await consumer.add(1, second=2) == (consumer, 3)
        assert await consumer.double(4) == 8
        assert await triple(3) == 9

    run_async(anyio_backend, main)
    assert all(inspect.iscoroutinefunction(each) for each in (Consumer.add, Consumer().double, triple))
    assert (Consumer.add.__name__, Consumer.add.__doc__) == ("add", "Add.")


def test_async_functions_are_refused() -> None:
    with pytest.raises(TypeError, match="can only be applied to sync functions"):
        database_sync_to_async(aclose_old_connections)


def test_connections_are_closed_from_async_code(anyio_backend: Backend, model: Any) -> None:
    async def main() -> None:
        await sync_to_async(model.objects.count)()
        await aclose_old_connections()
        assert not await sync_to_async(is_connected)()

    run_async(anyio_backend, main)


# ---- setup


@pytest.fixture
def _put_back() -> Iterator[None]:
    yield

    uninstall()
    checks.registry.registry.registered_checks.discard(_setup.check)
    _setup._findings = ()


def found() -> list[Any]:
    """Return what the project's system check says."""
    return [each for each in checks.run_checks(tags=["unfazed"]) if each.id.startswith("unfazed.")]


@pytest.mark.usefixtures("_put_back", "model")
def test_all_is_well_when_it_comes_first() -> None:
    setup()
    setup()

    assert "unfazed_compat" in inspect.getfile(asgiref.sync.SyncToAsync.__call__)
    assert checks.registry.registry.tag_exists("unfazed")
    assert found() == []


@pytest.mark.usefixtures("_put_back", "model")
def test_a_version_that_does_not_fit_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("asgiref.__version__", "4.1.0")
    with pytest.warns(RuntimeWarning, match="has changed nothing: .* not 4.1.0"):
        setup()

    assert "unfazed_compat" not in inspect.getfile(asgiref.sync.SyncToAsync.__call__)
    (finding,) = found()
    assert finding.id == "unfazed.W001"
    assert "pip" in finding.hint


@pytest.mark.usefixtures("_put_back", "model")
def test_patches_of_others_that_are_out_of_use_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgiref.sync.SyncToAsync, "thread_handler", lambda *_: None)
    with pytest.warns(RuntimeWarning, match=r"patched asgiref\.sync \(SyncToAsync\.thread_handler\)") as warned:
        setup()

    (finding,) = found()
    assert finding.id == "unfazed.W002"
    assert "import unfazed_compat.django; unfazed_compat.django.setup()" in finding.hint
    assert warned[0].filename == __file__


@pytest.mark.usefixtures("_put_back", "model")
def test_calls_that_were_made_before_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(1) as executor:
        executor.submit(int).result()
        monkeypatch.setattr(asgiref.sync.SyncToAsync, "single_thread_executor", executor)
        with pytest.warns(RuntimeWarning, match="after thread-sensitive calls had been made"):
            setup()
        monkeypatch.undo()

    (finding,) = found()
    assert finding.id == "unfazed.W003"


LAST_CALL = """
import asyncio, sys, threading, warnings
from asgiref.sync import sync_to_async

def last():
    threading.main_thread().join()
    try:
        print(asyncio.run(sync_to_async(int)("12")))
    except RuntimeError as exc:
        print(exc)

def before():
    asyncio.run(sync_to_async(int)())

def setup():
    import unfazed_compat.django
    warnings.simplefilter("ignore")
    unfazed_compat.django.setup()

for each in sys.argv[1:]:
    globals()[each]()
threading.Thread(target=last).start()
"""


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        pytest.param("setup before", "12", marks=counts_references),
        ("before setup", "cannot schedule new futures after"),
    ],
)
def test_at_exit_the_calls_are_made_if_it_came_first(order: str, expected: str) -> None:
    """Which is what W003 says."""
    program = LAST_CALL.replace("sys.argv[1:]", repr(order.split()))

    done = run_program(program)

    assert done.stdout.startswith(expected)
    assert done.stderr == ""


SETTINGS = {
    "app": 'INSTALLED_APPS = ["unfazed_compat.django"]',
    "call": "import unfazed_compat.django; unfazed_compat.django.setup()",
}
PROJECT = """
import os, sys
from django.core.management import execute_from_command_line
sys.path.insert(0, {folder!r})
os.environ["DJANGO_SETTINGS_MODULE"] = "project_settings"
{before}
execute_from_command_line(["manage.py", "check"])
import asgiref.sync
print(asgiref.sync.async_to_sync.__module__, asgiref.sync.AsyncToSync.__call__.__module__)
"""
PATCH = """
import asgiref.sync
asgiref.sync.AsyncToSync.main_wrap = lambda *_: None
"""


@pytest.mark.parametrize("way", SETTINGS)
@pytest.mark.parametrize("is_late", [False, True])
def test_one_line_in_the_settings_moves_a_project(way: str, is_late: bool, tmp_path: Path) -> None:
    (tmp_path / "project_settings.py").write_text(SETTINGS[way], encoding="utf-8")

    done = run_program(PROJECT.format(folder=str(tmp_path), before=PATCH if is_late else ""))

    assert done.returncode == 0
    assert done.stdout.splitlines()[-1] == "asgiref.sync unfazed_compat.asgiref._async_to_sync"
    assert ("(unfazed.W002)" in done.stderr) == is_late
    assert ("RuntimeWarning" in done.stderr) == is_late
    assert is_late or done.stdout.startswith("System check identified no issues")


def test_django_is_not_imported_before_it_is_used() -> None:
    done = run_program("import sys, unfazed_compat.django; print([each for each in sys.modules if each == 'django'])")

    assert (done.stdout, done.stderr) == ("[]\n", "")
