"""Checks the wheel and the source distribution in a folder: `python package_check.py FOLDER`. Then takes the tour.

The wheel is installed into an empty environment, with nothing but what it asks for.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tempfile
import venv
from pathlib import Path
from zipfile import ZipFile

ROOT = Path(__file__).parents[2]
PACKAGES = {"unfazed": ROOT / "unfazed", "unfazed_compat": ROOT / "compat" / "unfazed_compat"}
NEEDED = ("unfazed/py.typed", "unfazed_compat/py.typed", "unfazed/.agents/skills/unfazed-concurrency/SKILL.md")
DISTRIBUTED = ("README.md", "LICENSE", "pyproject.toml", "tox.ini", "zensical.toml", "CHANGELOG.md", "CONTRIBUTING.md")
FOLDERS = ("benchmarks", "compat", "docs", "examples", "tests", "unfazed")


def sources() -> set[str]:
    """Return every file of the two packages, as it is named in a wheel."""
    return {
        f"{name}/{file.relative_to(folder).as_posix()}"
        for name, folder in PACKAGES.items()
        for file in folder.rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }


def check_wheel(wheel: Path) -> None:
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}

    assert names == sources(), names ^ sources()
    assert names.issuperset(NEEDED), names


def check_source(archive: Path) -> None:
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}

    assert names.issuperset(DISTRIBUTED), names
    assert {name.partition("/")[0] for name in names if "/" in name} == set(FOLDERS), names
    assert {f"compat/{name}" if name.startswith("unfazed_compat/") else name for name in sources()} <= names
    assert not [name for name in names if "__pycache__" in name or name.startswith("site/")]


def take_the_tour(wheel: Path) -> None:
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder, "Scripts" if sys.platform == "win32" else "bin", "python")
        subprocess.run([python, "-m", "pip", "install", "-q", f"{wheel}[examples]"], check=True, cwd=folder)
        version = "import unfazed.concurrency as u, unfazed_compat; print(u.__version__)"
        done = subprocess.run([python, "-c", version], check=True, cwd=folder, capture_output=True, text=True)
        assert f"-{done.stdout.strip()}-" in wheel.name, done.stdout
        subprocess.run([python, ROOT / "examples" / "tour.py", ROOT / "docs"], check=True, cwd=folder)


def main(folder: Path) -> None:
    (wheel,) = folder.glob("*.whl")
    (archive,) = folder.glob("*.tar.gz")
    check_wheel(wheel)
    check_source(archive)
    take_the_tour(wheel)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
