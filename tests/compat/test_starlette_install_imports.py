"""`install()`, and modules that are imported before it or after it."""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
import threading
from contextlib import contextmanager, suppress
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from conftest import GRACE_SECONDS, limit_threads
from connections import Connections
from connections import request as connect_and_query
from installing import FASTAPI, fastapi, is_installed
from starlette_helpers import Recorded, recorded
from unfazed_compat.starlette import _calls, _install, install, uninstall

from unfazed.concurrency import UnfazedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

assert fastapi and recorded  # fixtures


when = pytest.mark.parametrize("when", ["before", "after"])


@when
@pytest.mark.anyio
async def test_a_context_manager_takes_no_slot_whenever_it_is_imported(
    when: str, fastapi: Path, recorded: Recorded
) -> None:
    """Requests that wait for a connection do not starve the one that has it, which needs the only slot."""
    limit_threads(1)
    connections = Connections()
    if when == "before":
        importlib.import_module("fastapi.concurrency")
    with install(), anyio.fail_after(GRACE_SECONDS):
        theirs = importlib.import_module("fastapi.concurrency")
        first_has_it = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connect_and_query, connections, theirs, "the first", first_has_it.set)
            await first_has_it.wait()
            tasks.start_soon(connect_and_query, connections, theirs, "the second", None)

        assert theirs.run_sync is _calls.run_sync
    assert theirs.run_sync is not _calls.run_sync
    assert recorded.theirs == []
    assert connections.events == [
        f"the {which} {does}" for which in ("first", "second") for does in ("has it", "queries", "gives it back")
    ]


@pytest.mark.anyio
async def test_a_context_manager_is_told_of_exceptions_and_can_suppress_them(fastapi: Path) -> None:
    @contextmanager
    def returning(value: Any) -> Iterator[Any]:
        with suppress(LookupError):
            yield value

    async def seven() -> int:
        return 7

    with install():
        theirs = importlib.import_module("fastapi.concurrency")
        async with theirs.contextmanager_in_threadpool(returning(seven())) as coroutine:
            assert await coroutine == 7
            raise LookupError
        with pytest.raises(ZeroDivisionError):
            async with theirs.contextmanager_in_threadpool(returning(0)):
                raise ZeroDivisionError


@pytest.mark.anyio
async def test_a_cancellation_that_is_pending_as_a_context_manager_is_left_does_not_interrupt_the_response(
    fastapi: Path,
) -> None:
    left: list[Any] = []

    @contextmanager
    def manager() -> Iterator[None]:
        yield
        left.append(threading.get_ident())

    with install(), anyio.CancelScope() as scope:
        theirs = importlib.import_module("fastapi.concurrency")
        async with theirs.contextmanager_in_threadpool(manager()):
            scope.cancel()
        left.append("goes on")
    assert left[1:] == ["goes on"]


def test_a_module_is_loaded_as_without_it(fastapi: Path) -> None:
    without: Any = importlib.import_module("fastapi.concurrency")
    del sys.modules["fastapi.concurrency"]
    with install():
        spec = importlib.util.find_spec("fastapi.concurrency")
        assert spec is not None
        loader: Any = spec.loader
        assert loader.get_source("fastapi.concurrency") == FASTAPI
        module: Any = importlib.import_module("fastapi.concurrency")
        assert type(module.__loader__) is type(module.__spec__.loader) is type(without.__loader__)
        assert importlib.reload(module).run_sync is _calls.run_sync
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("fastapi.missing")
    assert module.run_sync is not _calls.run_sync
    assert _install._finder.find_spec("fastapi.concurrency") is None


def test_other_finders_are_asked_as_without_it(fastapi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        """Finds one module, which has no loader of the kind that can be followed."""

        def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
            return ModuleSpec(name, None) if name == "fastapi.special" else None

    monkeypatch.setattr(sys, "meta_path", [object(), Finder(), *sys.meta_path])  # the first one is of an old kind
    with install():
        spec = importlib.util.find_spec("fastapi.special")
        assert spec is not None
        assert spec.loader is None
        assert importlib.import_module("fastapi.concurrency").run_sync is _calls.run_sync


def test_what_is_loaded_after_it_has_been_uninstalled_is_left_alone(fastapi: Path) -> None:
    with install():
        spec = importlib.util.find_spec("fastapi.concurrency")
        assert spec is not None
    module: Any = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)

    assert module.run_sync is anyio.to_thread.run_sync


def test_a_version_that_comes_later_and_does_not_fit_is_refused_as_it_is_imported(fastapi: Path) -> None:
    fastapi.write_text(FASTAPI.replace("threadpool(cm)", "threadpool(cm, more)"))
    with install(), pytest.raises(UnfazedError, match=r"contextmanager_in_threadpool\(\) .* in fastapi.concurrency"):
        importlib.import_module("fastapi.concurrency")


@pytest.mark.parametrize("fails", [False, True], ids=["loaded", "failed"])
def test_it_waits_for_what_another_thread_is_importing(
    fails: bool, fastapi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise `install` would miss the module: our loader does not load it, and its names do not exist yet."""
    begun, may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "begun", begun, raising=False)
    monkeypatch.setattr(sys, "may_end", may_end, raising=False)
    waiting = f"import sys\nsys.begun.set()\nassert sys.may_end.wait({GRACE_SECONDS})\n"
    fastapi.write_text(waiting + FASTAPI + ("raise LookupError\n" if fails else ""))
    results: list[Any] = []

    def import_it() -> None:
        try:
            results.append(importlib.import_module("fastapi.concurrency").run_sync)
        except LookupError as exc:
            results.append(exc)

    importing = threading.Thread(target=import_it)
    installing = threading.Thread(target=install)
    importing.start()
    assert begun.wait(GRACE_SECONDS)
    installing.start()
    try:
        while "import_module" not in names_of_frames(installing):
            assert installing.is_alive()
        may_end.set()
        installing.join(GRACE_SECONDS)
        importing.join(GRACE_SECONDS)
        assert not installing.is_alive()
        assert is_installed()
        if not fails:
            assert sys.modules["fastapi.concurrency"].run_sync is _calls.run_sync
    finally:
        may_end.set()
        uninstall()
    assert len(results) == 1


def names_of_frames(thread: threading.Thread) -> list[str]:
    names = []
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


PROGRAM = """
import sys
{0}
import anyio, threading
from starlette.concurrency import run_in_threadpool
import starlette.staticfiles
{1}
from unfazed.concurrency._core import _limits
print(anyio.run(run_in_threadpool, _limits.current_slot.get) is not None, starlette.staticfiles.anyio is not anyio)
"""
INSTALL = "import unfazed_compat.starlette as ours; ours.install(); "
IMPORTED_NOTHING = "assert not {'starlette', 'fastapi'} & set(sys.modules)"


@pytest.mark.parametrize("lines", [(INSTALL + IMPORTED_NOTHING, ""), ("", INSTALL)], ids=["first", "last"])
def test_it_may_come_first_or_last_in_a_program(lines: tuple[str, str]) -> None:
    program = [sys.executable, "-c", PROGRAM.format(*lines)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=GRACE_SECONDS * 3, check=False)

    assert (done.stdout, done.stderr) == ("True True\n", "")
