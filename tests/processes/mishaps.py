"""What the tests of misbehaving functions share."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, children, wait_until

from unfazed.concurrency import (
    configure_processpool,
    run_in_eventloop_sync,
    run_in_processpool,
    run_in_processpool_sync,
)
from unfazed.concurrency._processes import _output

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

PROGRAM_SECONDS = 60
LOGGER = "misbehaviour"

Backend = tuple[str, dict[str, Any]]


@pytest.fixture(params=["async", "sync"])
def call(request: pytest.FixtureRequest, background: Backend) -> Callable[..., Any]:
    """Make calls from async and from sync code, always on the same loop."""
    if request.param == "sync":
        return run_in_processpool_sync
    run_async: Any = run_in_eventloop_sync
    return partial(run_async, run_in_processpool)


@pytest.fixture
def configured() -> Iterator[None]:
    yield
    configure_processpool()


def assert_ten_calls_work(call: Callable[..., Any] = run_in_processpool_sync) -> None:
    assert [call(functions.echo, number) for number in range(10)] == [((number,), {}) for number in range(10)]


def in_time(call: Callable[..., Any], *args: Any) -> Any:
    """Make a call that may hang, in a thread of its own."""
    outcomes: list[Any] = []

    def make() -> None:
        try:
            outcomes.append((call(*args), None))
        except BaseException as exc:
            outcomes.append((None, exc))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(GRACE_SECONDS)
    assert outcomes, "the call hangs"
    value, error = outcomes.pop()
    if error is not None:
        raise error
    return value


class Output:
    """What the parent's stderr has received so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def text(self) -> str:
        with _output._writing:  # pytest loses what another thread writes while it reads
            self._text += self._capsys.readouterr().err
        return self._text

    def wait_for(self, *lines: str) -> None:
        wait_until(lambda: set(lines) <= set(self.text().splitlines()), f"of {lines} something does not appear")


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    return Output(capsys)


async def wait_for_children(count: int) -> None:
    with anyio.fail_after(GRACE_SECONDS), anyio.CancelScope(shield=True):
        while len(children()) < count:
            await anyio.sleep(0.001)


def run_program(folder: Path, source: str, background: Backend, how: str = "script", **modules: str) -> tuple[str, str]:
    """Run a program, given in several ways, and return its output."""
    source = source.replace("BACKEND", repr(background[0])).replace("OPTIONS", repr(background[1]))
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "program.py").write_text(source)
    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(source)
    (package / "sibling.py").write_text("def triple(number):\n    print('in the worker')\n    return 3 * number\n")
    ways = {
        "script": ["program.py"],
        "-c": ["-c", source],
        "stdin": ["-"],
        "package": ["-m", "package"],
    }
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", *ways[how]],
        cwd=folder,
        env=environment,
        input=source if how == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    return done.stdout, done.stderr
