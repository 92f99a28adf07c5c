"""The layout of the project: a file imports from lower floors only, and stays short."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
from pathlib import Path

import pytest
import unfazed_compat

import unfazed.concurrency

FOLDER = Path(unfazed.concurrency.__file__).parent
COMPAT = Path(unfazed_compat.__file__).parent

ROOT = Path(__file__).parent.parent

FLOORS = {  # of the rooms, and of the files that are rooms of their own
    "_core": 0,
    "_eventloops": 1,
    "_executors": 2,
    "_processes": 2,
    "_threads": 2,
    "_inside": 3,
    "_scoped": 3,
    "_many": 4,
    "_twins": 4,
    "_dual": 5,
    "__init__": 6,
}
LINES = 400  # at most, in one file
TEST_LINES = 500  # at most, in one file of the tests
ROOMS = sorted(room for room in FOLDER.iterdir() if (room / "__init__.py").exists())


def imported_modules(file: Path, level: int = 1) -> set[str]:
    """Return the modules of this package that *file* imports, wherever in the file; *level* is that of the package."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level == level:
                found |= {module} if module else {alias.name for alias in node.names}
            elif module.startswith("unfazed"):
                found.add(module)
    return found


@pytest.mark.parametrize("file", sorted(FOLDER.glob("*.py")), ids=lambda file: file.stem)
def test_a_file_imports_from_lower_floors_only(file: Path) -> None:
    for module in imported_modules(file):
        room = module.partition(".")[0]
        assert FLOORS[room] < FLOORS[file.stem], f"{file.name} imports {module}"


@pytest.mark.parametrize("room", ROOMS, ids=lambda room: room.name)
def test_a_room_imports_from_lower_floors_only(room: Path) -> None:
    for file in room.glob("*.py"):
        for module in imported_modules(file, level=2):
            assert FLOORS[module.partition(".")[0]] < FLOORS[room.name], f"{file.name} imports {module}"


@pytest.mark.parametrize("room", [*ROOMS, COMPAT / "asgiref"], ids=lambda room: room.name)
def test_files_of_a_room_import_from_each_other_downward(room: Path) -> None:
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    listed = re.findall(r"^ +(\w+)\.py ", docstring, re.MULTILINE)
    order = ["__init__", *(name for name in listed if name != "__init__")]

    assert sorted(order) == sorted(file.stem for file in room.glob("*.py"))
    for file in room.glob("*.py"):
        for module in imported_modules(file, level=1) - {"*", "unfazed.concurrency"}:
            assert order.index(module) > order.index(file.stem) or is_for_types(file, module), f"{file.name}: {module}"


def is_for_types(file: Path, module: str) -> bool:
    """Return whether *file* imports *module* for type checkers alone."""
    source = file.read_text(encoding="utf-8")
    return f"\n    from .{module} import" in source and f"\nfrom .{module} import" not in source


def test_every_room_has_its_floor_and_its_line_in_the_map() -> None:
    inside = {path.stem for path in FOLDER.iterdir() if path.suffix == ".py" or path in ROOMS}
    its_map = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")

    assert inside == set(FLOORS)
    for name in inside - {"__init__"}:
        assert re.search(rf"^ *{name}(/|\.py) +\S.* floor {FLOORS[name]}$", its_map, re.MULTILINE), name


def test_files_stay_short() -> None:
    for file in (*FOLDER.rglob("*.py"), *COMPAT.rglob("*.py")):
        assert count_lines(file) <= LINES, file.name


def test_files_of_the_tests_stay_short_and_have_names_of_their_own() -> None:
    """No folder of the tests is a package: Python would take two files of one name for each other."""
    files = [*(ROOT / "tests").rglob("*.py")]

    assert {file.name: lines for file in files if (lines := count_lines(file)) > TEST_LINES} == {}
    assert sorted({file.name for file in files}) == sorted(file.name for file in files)


def count_lines(file: Path) -> int:
    return len(file.read_text(encoding="utf-8").splitlines())


def test_the_worker_needs_the_standard_library_alone() -> None:
    for file in (FOLDER.parent / "_worker").glob("*.py"):
        imports = re.findall(r"^\s*(?:import|from) ([\w.]+) ", file.read_text(encoding="utf-8"), re.MULTILINE)

        assert {name.partition(".")[0] for name in imports} - {"__future__", ""} <= sys.stdlib_module_names, file.name
        assert all(name in (".", ".channel") for name in imports if name.startswith(".")), file.name


def test_adapters_import_only_what_is_public() -> None:
    for file in COMPAT.rglob("*.py"):
        its_own = set[str]() if file.parent == COMPAT else {each.stem for each in file.parent.glob("_*.py")}
        assert imported_modules(file) - its_own <= {"unfazed.concurrency", "unfazed_compat.asgiref"}, file.name


def test_only_public_modules_of_anyio_are_imported() -> None:
    for file in (*FOLDER.rglob("*.py"), *COMPAT.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and not node.level:
                parts = node.module.split(".")
                assert parts[0] not in ("anyio", "trio", "asgiref") or not any(
                    part.startswith("_") for part in (*parts, *(alias.name for alias in node.names))
                ), f"{file.name} imports {node.module}"


def test_the_lowest_versions_are_the_bounds_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pins = re.findall(
        r"^([\w-]+)==([\d.]+)$", (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    bounds = {name: set(re.findall(rf'"{name}(?:\[\w+\])?>=([\d.]+)[",;]', project)) for name, _ in pins}

    for name, pin in pins:
        assert bounds[name], name
        for bound in bounds[name]:
            assert [int(part) for part in bound.split(".")] == trimmed(pin, len(bound.split("."))), name


def trimmed(version: str, length: int) -> list[int]:
    parts = [int(part) for part in version.split(".")]
    assert not any(parts[length:]), f"{version} is above its bound"
    return parts[:length]


def test_the_project_needs_anyio_alone() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    assert re.findall(r"^dependencies = (.*)$", project, re.MULTILINE) == ['["anyio>=4.16"]']


@pytest.mark.skipif(os.environ.get("UNFAZED_TEST_BACKENDS") != "asyncio", reason="only where trio must not be needed")
def test_trio_is_not_needed() -> None:
    assert importlib.util.find_spec("trio") is None


@pytest.mark.skipif("TOX_ENV_NAME" not in os.environ, reason="only tox tests the wheel")
def test_what_is_tested_is_the_wheel() -> None:
    assert FOLDER.parent.parent != ROOT
    for package in (FOLDER.parent, COMPAT):
        assert (package / "py.typed").exists()
