"""Run Starlette's and FastAPI's own tests, without `install()` and with it, and report what differs.

    python tests/programs/web_suites.py [starlette] [fastapi] [-- options of pytest]

The tests come with the source distributions of the versions that are installed, which pip fetches, and are run as they
are. It is an error if one passes without `install()` and does not with it. What fails without it as well is listed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as ET
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

LIBRARIES = ("starlette", "fastapi")

# What pytest imports before the tests, as a plugin, and what proves which calls are tested.
PLUGINS = {
    "without": """
import starlette.concurrency
import unfazed_compat.starlette
assert "unfazed_compat" not in starlette.concurrency.run_in_threadpool.__code__.co_filename
""",
    "with": """
import starlette.concurrency
import unfazed_compat.starlette
unfazed_compat.starlette.install()
assert "unfazed_compat" in starlette.concurrency.run_in_threadpool.__code__.co_filename
""",
}

# What looks at the tokens of anyio's limiter, which ours do not borrow, and which entering a dependency with `yield`
# does not wait for: that is what `install()` is for. They would wait for ever, so they are left out.
LEFT_OUT = {
    "starlette": (),
    "fastapi": (
        "tests/test_concurrency.py::test_cancelled_wait_for_worker_does_not_enter_or_exit",
        "tests/test_dependency_concurrency.py::test_cancellation_waiting_for_entry_worker_releases_ownership",
        "tests/test_dependency_concurrency.py::test_shared_declaration_limits_both_routes_before_worker_entry",
    ),
}


def fetch(library: str, folder: Path) -> Path:
    """Fetch the source distribution, unpack it, and return where it is."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", library]
    subprocess.run([*command, f"{library}=={version(library)}", "--dest", str(folder)], check=True)
    (archive,) = folder.glob(f"{library}-*.tar.gz")
    with tarfile.open(archive) as unpacked:
        unpacked.extraction_filter = getattr(tarfile, "data_filter", None)  # the first versions of 3.11 lack it
        unpacked.extractall(folder)
    return folder / archive.name.removesuffix(".tar.gz")


def run_tests(source: Path, library: str, how: str, folder: Path, options: list[str]) -> dict[str, str]:
    """Run the tests, and return the outcome of each by its name."""
    site = folder / how
    site.mkdir()
    (site / "install_or_not.py").write_text(PLUGINS[how], encoding="utf-8")
    report = site / "report.xml"
    # the libraries themselves are those that are installed: their sources are left out
    paths = [str(site), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONDEVMODE": ""}
    plugins = ["-p", "install_or_not", "-p", "no:cacheprovider", "--timeout", "60", "--timeout-method", "thread"]
    command = [sys.executable, "-P", "-m", "pytest", "-q", "--tb", "short", "--junit-xml", str(report), *plugins]
    left_out = [f"--deselect={name}" for name in LEFT_OUT[library]]
    done = subprocess.run([*command, *left_out, *options, "tests"], cwd=source, env=environment, check=False)
    if done.returncode not in (0, 1):  # all pass, or some do not
        sys.exit(f"pytest could not run the tests of {source.name}: {done.returncode}")
    return dict(outcomes(ET.parse(report).iter("testcase")))


def outcomes(cases: Iterable[ET.Element]) -> Iterable[tuple[str, str]]:
    for case in cases:
        kinds = {child.tag for child in case} & {"failure", "error", "skipped"}
        name = f"{case.get('classname')}::{case.get('name')}"
        yield name, "passed" if not kinds else "skipped" if kinds == {"skipped"} else "failed"


def compare(title: str, before: dict[str, str], after: dict[str, str]) -> bool:
    """Report what has come of the tests, and return whether it is the same."""
    print(f"==== {title}, Python {sys.version.split()[0]}")
    for name in LEFT_OUT[title.partition("-")[0]]:
        print(f"left out, for it looks at the tokens of anyio's limiter: {name}")
    for how, found in (("without install()", before), ("with install()", after)):
        counts = Counter(found.values())
        print(f"{how:20}" + ", ".join(f"{counts[kind]} {kind}" for kind in ("passed", "failed", "skipped")))
    for name in sorted(name for name, outcome in before.items() if outcome == "failed" == after.get(name)):
        print(f"fails in both: {name}")
    different = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    for name in different:
        print(f"differs: {name}: {before.get(name)} without, {after.get(name)} with", flush=True)
    return not different


def main() -> None:
    """Run the tests of both."""
    arguments, _, options = " ".join(sys.argv[1:]).partition("--")
    same = []
    reports = []
    for library in arguments.split() or LIBRARIES:
        with TemporaryDirectory() as name:
            folder = Path(name)
            source = fetch(library, folder)
            found = {how: run_tests(source, library, how, folder, options.split()) for how in PLUGINS}
            reports.append((source.name, found["without"], found["with"]))
    for title, before, after in reports:
        same.append(compare(title, before, after))
    sys.exit(0 if all(same) else "these differ from one another: see above")


if __name__ == "__main__":
    main()
