"""The library in `examples/weather`: its generated module is up to date, its tests pass, its documentation is made."""

from __future__ import annotations

import html
import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

LIBRARY = Path(__file__).parents[2] / "examples" / "weather"
HANG_SECONDS = 50
are_demanded = "UNFAZED_TEST_TWINS" in os.environ  # by the tox environment `twins`


def run(*command: str) -> str:
    paths = os.pathsep.join([str(LIBRARY), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", *command],
        cwd=LIBRARY,
        env={**os.environ, "PYTHONPATH": paths, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def needs(name: str) -> None:
    if not are_demanded and importlib.util.find_spec(name) is None:
        pytest.skip(f"{name} is not installed")


def test_the_generated_module_is_what_would_be_written() -> None:
    needs("libcst")
    needs("ruff")
    text = (LIBRARY / "README.md").read_text(encoding="utf-8")
    command = re.findall(r"^ +python -m (unfazed.twins .*)$", text, re.MULTILINE)[0].split()

    run(*command, "--check")


def test_its_tests_pass_on_both_faces(tmp_path: Path) -> None:
    output = run(
        "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(LIBRARY), "--basetemp", str(tmp_path), "tests"
    )

    assert "10 passed" in output


def test_sphinx_documents_both_faces(tmp_path: Path) -> None:
    needs("sphinx")
    run("sphinx", "-W", "-q", "docs", str(tmp_path))
    page = html.unescape(re.sub(r"<[^>]+>", "", (tmp_path / "index.html").read_text(encoding="utf-8")))

    assert re.search(r"^async report\(city: str\) → AsyncReport", page, re.MULTILINE)
    assert re.search(r"^report\(city: str\) → Report", page, re.MULTILINE)
    assert page.count("Return the reports of some cities.") == 2
