"""Move real projects from asgiref, and run their own tests before and after.

    python tests/programs/migrate_suite.py [project ...]

Each project is its source distribution, which pip fetches. Only imports change, so what has passed before must pass
after. Where a source distribution has no tests in it, all of its modules are imported, before and after.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple
from xml.etree import ElementTree as ET

HANGS_AFTER_SECONDS = 900


class Project(NamedTuple):
    """A source distribution, and how its tests are run."""

    name: str
    package: str  # the folder in which its code is
    tests: str = ""  # nothing: there are none in it
    settings: str = "settings_of_ours"
    options: tuple[str, ...] = ()


PROJECTS = (
    Project("channels", "channels"),
    Project("daphne", "daphne", "tests", options=("-p", "no:django")),
    Project("django-ninja", "ninja"),
    Project("strawberry-graphql-django", "strawberry_django"),
    Project("adrf", "adrf"),
    Project("pytest-django", "pytest_django", "tests", "pytest_django_test.settings_sqlite", ("-n", "2")),
    Project("flask", "src/flask", "tests", options=("-p", "no:django", "-p", "no:asyncio")),
)

# For modules that cannot be imported without a Django project.
SETTINGS = """
SECRET_KEY = "for tests"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes", "django.contrib.sessions"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
"""

IMPORT_ALL = """
import importlib, pkgutil, sys
import django
django.setup()
package = importlib.import_module(sys.argv[1])
assert package.__file__.startswith(sys.argv[2]), package.__file__
for each in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    try:
        importlib.import_module(each.name)
    except Exception as exc:
        print(f"{each.name}: {type(exc).__name__}: {exc}", file=sys.stderr)
    else:
        print(each.name)
"""


def fetch(name: str, folder: Path) -> Path:
    """Fetch the source distribution, and return the file."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", name, name]
    subprocess.run([*command, "--dest", str(folder)], check=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def unpack(archive: Path, folder: Path) -> Path:
    with tarfile.open(archive) as unpacked:
        unpacked.extraction_filter = getattr(tarfile, "data_filter", None)  # the first versions of 3.11 lack it
        unpacked.extractall(folder)
    (source,) = folder.iterdir()
    return source


def environment(project: Project, source: Path) -> dict[str, str]:
    """Return the environment in which the code in *source* is what is imported."""
    (source.parent / "settings_of_ours.py").write_text(SETTINGS, encoding="utf-8")
    paths = [source / Path(project.package).parent, source, source.parent]
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*map(str, paths), os.environ.get("PYTHONPATH", "")]),
        "DJANGO_SETTINGS_MODULE": project.settings,
    }


def outcomes(project: Project, source: Path) -> dict[str, str]:
    """Return what becomes of each test, or of each module where there are no tests."""
    package = Path(project.package).name
    if not project.tests:
        command = [sys.executable, "-c", IMPORT_ALL, package, str(source)]
        done = _run(command, project, source)
        return dict.fromkeys(done.stdout.split(), "imported")
    report = source.parent / "report.xml"
    options = ["-q", "-p", "no:cacheprovider", f"--junit-xml={report}", *project.options]
    _run([sys.executable, "-m", "pytest", *options, project.tests], project, source)
    found: dict[str, str] = {}
    for case in ET.parse(report).iter("testcase"):
        bad = [each.tag for each in case if each.tag in ("error", "failure", "skipped")]
        found[f"{case.get('classname')}.{case.get('name')}"] = bad[0] if bad else "passed"
    return found


def _run(command: list[str], project: Project, source: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=source,
        env=environment(project, source),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        timeout=HANGS_AFTER_SECONDS,
    )


def migrate(source: Path) -> str:
    """Migrate all imports in *source*, and return the summary."""
    command = [sys.executable, "-m", "unfazed_compat.migrate", "--write", str(source)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    (summary,) = re.findall(r"^\d+ files? of \d+ changed.*$", done.stdout, re.MULTILINE)
    again = subprocess.run([*command[:3], str(source)], stdout=subprocess.DEVNULL, check=False)
    return summary if again.returncode == 0 else f"{summary}; BUT A SECOND RUN CHANGES MORE"


def good(found: dict[str, str]) -> set[str]:
    return {name for name, outcome in found.items() if outcome in ("passed", "imported")}


def main() -> None:
    """Run all projects, or those that are named, and print one report."""
    failed: list[str] = []
    for project in PROJECTS:
        if sys.argv[1:] and project.name not in sys.argv[1:]:
            continue
        with TemporaryDirectory() as name:
            folder = Path(name).resolve()
            for each in ("fetched", "before", "after"):
                (folder / each).mkdir()
            archive = fetch(project.name, folder / "fetched")
            before, after = (unpack(archive, folder / each) for each in ("before", "after"))
            summary = migrate(after)
            was = outcomes(project, before)
            now = was if summary.startswith("0 files") else outcomes(project, after)  # the very same files
            what = "tests passed" if project.tests else "modules imported; no tests in the source distribution"
            print(f"{archive.name}: {summary}", flush=True)
            print(f"    before {len(good(was))} of {len(was)}, after {len(good(now))} of {len(now)} {what}", flush=True)
            lost = sorted(good(was) - good(now))
            if lost or not good(was) or "BUT" in summary:
                failed.append(project.name)
                print(*lost, sep="\n", flush=True)
    sys.exit(f"these have failed: {', '.join(failed)}" if failed else 0)


if __name__ == "__main__":
    main()
