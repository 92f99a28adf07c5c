"""The README, the documentation and the skill file: every example runs and prints what it says."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from pages import EXAMPLE, PAGES, README, name_of, read

if TYPE_CHECKING:
    from pathlib import Path

# The tox environments `executors` and `web` demand the examples that need their packages, and run no others.
DEMANDED = {"UNFAZED_TEST_EXECUTORS": "distributed", "UNFAZED_TEST_WEB": "fastapi"}
demanded = [package for variable, package in DEMANDED.items() if variable in os.environ]
# Without trio only those of the README: the same Python runs all of them where trio is.
without_trio = os.environ.get("UNFAZED_TEST_BACKENDS") == "asyncio" and not demanded
EXAMPLES = [
    pytest.param(source, output, id=f"{name_of(page)}-{number}")
    for page in ((README,) if without_trio else PAGES)
    for number, (source, output) in enumerate(EXAMPLE.findall(read(page)))
    if not demanded or any(package in source for package in demanded)
]


@pytest.mark.parametrize(("source", "output"), EXAMPLES)
def test_an_example_prints_what_it_says(source: str, output: str, tmp_path: Path) -> None:
    if re.search(r"trio|sniffio", source) and importlib.util.find_spec("trio") is None:
        pytest.skip("the example needs trio")
    for package in DEMANDED.values():
        if package in source and not demanded and importlib.util.find_spec(package) is None:
            pytest.skip(f"the example needs {package}")
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
    assert len(EXAMPLES) >= (1 if demanded or without_trio else 40)
    for page in PAGES:
        assert all(output for _, output in EXAMPLE.findall(read(page))), page


def test_the_readme_is_short() -> None:
    assert len(read(README).splitlines()) <= 250
