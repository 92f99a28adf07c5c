"""`install()` and `uninstall()`: what they put where, and what they refuse."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import sys
from functools import partial
from types import FunctionType
from typing import TYPE_CHECKING, Any

import anyio
import pytest
import starlette.concurrency
from conftest import Blocking
from installing import is_installed, responses_module, snapshot
from starlette_helpers import Recorded, recorded
from unfazed_compat.starlette import _install, install, uninstall

from unfazed.concurrency import UnfazedError
from unfazed.concurrency._core import _limits

if TYPE_CHECKING:
    from collections.abc import Callable

assert recorded  # a fixture


def test_installing_is_reversible_and_can_be_repeated() -> None:
    before, finders = snapshot(), list(sys.meta_path)
    with install():
        after = snapshot()
        assert is_installed()
        with install():
            assert snapshot() == after
        assert snapshot() == after
    assert (snapshot(), sys.meta_path) == (before, finders)
    install()
    uninstall()
    uninstall()
    assert (snapshot(), sys.meta_path) == (before, finders)


@pytest.mark.anyio
async def test_installing_is_safe_while_calls_are_running() -> None:
    async def run_while(change: Callable[[], object]) -> Any:
        blocking = Blocking()
        results: list[Any] = []

        async def call() -> None:
            results.append(await starlette.concurrency.run_in_threadpool(blocking))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await blocking.wait_until_started()
            change()
            blocking.may_end.set()
        return results

    try:
        assert await run_while(install) == ["a value that nobody waits for"]
        assert await run_while(uninstall) == ["a value that nobody waits for"]
    finally:
        uninstall()


@pytest.mark.anyio
async def test_what_was_made_and_not_begun_before_goes_on(recorded: Recorded) -> None:
    began_with_theirs = starlette.concurrency.run_in_threadpool(int, "1")
    with install():
        began_with_ours = starlette.concurrency.run_in_threadpool(int, "2")
        assert await began_with_theirs == 1
    assert await began_with_ours == 2


def test_what_others_have_patched_since_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    function: Any = starlette.concurrency.run_in_threadpool
    monkeypatch.setattr(responses_module, "anyio", anyio)  # so that they are put back
    monkeypatch.setattr(function, "__code__", function.__code__)
    others: Any = object()
    with install():
        setattr(responses_module, "anyio", others)  # noqa: B010  of which nothing is known
        function.__code__ = of_others.__code__

    assert responses_module.anyio is others
    assert function.__code__ is of_others.__code__


@pytest.mark.anyio
async def test_what_others_have_patched_before_stays_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """As monitoring agents do it."""
    original: Any = starlette.concurrency.run_in_threadpool
    seen: list[Any] = []

    @functools.wraps(original)
    async def agent(func: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(func)
        return await original(func, *args, **kwargs)

    monkeypatch.setattr(starlette.concurrency, "run_in_threadpool", agent)
    with install():
        assert await starlette.concurrency.run_in_threadpool(has_a_slot)
    assert seen == [has_a_slot]


def has_a_slot() -> bool:
    slot = _limits.current_slot.get()
    return slot is not None and slot.held


async def of_others(func: Any, more: Any) -> Any:
    """Take other parameters."""


def of_another_kind(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Take the same parameters."""


def in_starlette(function: Any) -> FunctionType:
    return FunctionType(function.__code__, vars(starlette.concurrency))


@pytest.mark.parametrize(
    "function",
    [in_starlette(of_others), in_starlette(of_another_kind), of_another_kind, partial(int), None],
    ids=["parameters", "kind", "somebody else's", "no function", "none"],
)
def test_functions_that_it_does_not_know_are_refused(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot()
    with monkeypatch.context() as patched:
        patched.setattr(starlette.concurrency, "run_in_threadpool", function)
        with pytest.raises(UnfazedError, match=r"does not find the run_in_threadpool\(\) .* in starlette.concurrency"):
            install()
    assert snapshot() == before
    assert _install._finder not in sys.meta_path


def test_a_second_install_that_fails_takes_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with install():
        with monkeypatch.context() as patched:
            patched.setattr(starlette.concurrency, "run_in_threadpool", None)
            with pytest.raises(UnfazedError, match="does not find"):
                install()
        assert is_installed()


@pytest.mark.parametrize(
    ("library", "version", "known"),
    [
        ("starlette", "0.39.2", "starlette 0.40 to 1.x, and not 0.39.2"),
        ("starlette", "2.0.0", "starlette 0.40 to 1.x, and not 2.0.0"),
        ("fastapi", "0.117.1", "fastapi 0.118 to 0.x, and not 0.117.1"),
        ("fastapi", "1.0", "fastapi 0.118 to 0.x, and not 1.0"),
    ],
)
def test_another_version_is_refused(library: str, version: str, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"starlette": "0.40.0", "fastapi": "0.118.0", library: version}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(UnfazedError, match=f"knows {known}"):
        install()
    assert not is_installed()


def not_there(library: str) -> str:
    raise importlib.metadata.PackageNotFoundError(library)


def test_it_needs_starlette(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", not_there)
    with pytest.raises(UnfazedError, match="needs Starlette, which is not installed"):
        install()


def test_it_does_without_fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: (not_there if name == "fastapi" else version)(name))
    with install():
        assert is_installed()
