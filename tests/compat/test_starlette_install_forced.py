"""`install()` and `uninstall()` that are interrupted anywhere, or come while requests are served."""

from __future__ import annotations

import importlib
import itertools
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from conftest import GRACE_SECONDS
from installing import (
    background_task,
    endpoint_function,
    fastapi,
    file_response,
    snapshot,
    streaming_response,
    upload_file,
)
from interrupting import Alarm, Steps, raise_alarm
from unfazed_compat.starlette import _install, install, uninstall

assert fastapi  # a fixture

FOLDER = str(Path(_install.__file__).parent)


def test_an_interrupted_install_can_be_undone(fastapi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a signal handler raises, and wherever: uninstalling puts all back."""
    names = ("fastapi.concurrency", "starlette.concurrency", "starlette.responses")
    few = {name: importlib.import_module(name) for name in names}  # or else it takes minutes
    monkeypatch.setattr(_install, "_loaded", lambda: few)
    before, finders = snapshot(), list(sys.meta_path)
    when, reached = 0, True
    while reached:
        when += 1 + when // 20  # each of the first ones, and samples of those that are repeated
        reached = False
        # Python looks for signals after calls and jumps, and so not between a `with` and its lock, as this does
        monkeypatch.setattr(_install, "_lock", threading.RLock())
        for change in (install, uninstall):
            with Steps(raise_alarm, when, FOLDER) as steps, suppress(Alarm):
                change()
            reached = reached or steps.reached
        uninstall()
        assert (snapshot(), sys.meta_path) == (before, finders), steps.where


@pytest.mark.anyio
async def test_requests_are_served_while_threads_install_and_uninstall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: sys.modules[name] for name in ("starlette.concurrency", "starlette.responses")}  # and so more often
    monkeypatch.setattr(_install, "_loaded", lambda: few)
    before = snapshot()

    def change() -> None:
        for _ in range(30):
            with install():
                pass
            install()
            uninstall()

    threads = [threading.Thread(target=change) for _ in range(2)]
    for thread in threads:
        thread.start()
    kinds: list[Any] = [endpoint_function, background_task, file_response, streaming_response, upload_file]
    try:
        for number in itertools.count():
            async with anyio.create_task_group() as tasks:
                for kind in kinds:
                    folder = tmp_path / f"{number}-{kind.__name__}"
                    folder.mkdir()
                    tasks.start_soon(kind, folder)
            if not any(thread.is_alive() for thread in threads):
                break
    finally:
        for thread in threads:
            thread.join(GRACE_SECONDS)
        uninstall()
    assert snapshot() == before
