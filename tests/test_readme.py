"""The README: every example runs and prints what it says, and every name exists."""

from __future__ import annotations

import importlib.util
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import unfazed.concurrency

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", TEXT, re.MULTILINE | re.DOTALL)
executors_are_demanded = "UNFAZED_TEST_EXECUTORS" in os.environ  # by the tox environment `executors`
web_is_demanded = "UNFAZED_TEST_WEB" in os.environ  # by the tox environment `web`


@pytest.mark.parametrize(("source", "output"), EXAMPLES, ids=range(len(EXAMPLES)))
def test_an_example_prints_what_it_says(source: str, output: str, tmp_path: Path) -> None:
    if re.search(r"trio|sniffio", source) and importlib.util.find_spec("trio") is None:
        pytest.skip("the example needs trio")
    if "distributed" in source and not executors_are_demanded and importlib.util.find_spec("distributed") is None:
        pytest.skip("the example needs distributed")
    if "fastapi" in source and not web_is_demanded and importlib.util.find_spec("fastapi") is None:
        pytest.skip("the example needs fastapi")
    program = tmp_path / "example.py"
    program.write_text(source, encoding="utf-8")

    done = subprocess.run(
        [sys.executable, "-W", "error", str(program)], capture_output=True, text=True, timeout=50, check=False
    )

    # asyncio's, at the end of a loop of the example's own: anyio ends its workers twice, and the second time may read
    # the exit status before asyncio does. Our own loops end them first.
    complaints = re.sub(
        r"(child process pid \d+ exit status already read: |Unknown child process pid \d+,)"
        r" will report returncode 255\n",
        "",
        done.stderr,
    )
    assert (done.stdout, complaints, done.returncode) == (output, "", 0)


def test_every_example_says_what_it_prints() -> None:
    assert len(EXAMPLES) >= 10
    assert all(output for _, output in EXAMPLES)


def test_the_reference_shows_every_function_with_its_signature() -> None:
    for name in unfazed.concurrency.__all__:
        value = getattr(unfazed.concurrency, name)
        if inspect.isfunction(value):
            assert f"`{name}({signature(value)})`" in TEXT
        elif not issubclass(value, unfazed.concurrency.RemoteTraceback):
            assert f"`{name}`" in TEXT or f"`{name}({signature(value)})`" in TEXT, name


def signature(function: object) -> str:
    """Return the parameters with their defaults, without their types."""
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    bare = [each for each in bare if each.name != "others"]  # which are refused
    return str(inspect.Signature(bare))[1:-1].replace("'", '"')


def test_the_exceptions_are_what_the_table_says() -> None:
    rows = re.findall(r"^\| `(\w+Error)` \| (.*?) \|", TEXT, re.MULTILINE)

    assert len(rows) == 13
    for name, bases in rows:
        error = getattr(unfazed.concurrency, name)
        assert [f"`{base.__name__}`" for base in error.__bases__[1:]] == bases.split(", ")
