"""The house: a file imports from lower floors only, and stays short."""

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

FLOORS = {
    "_errors": 0,
    "_threadstart": 0,
    "_references": 0,
    "_slots": 1,
    "_calls": 1,
    "_checks": 1,
    "_contexts": 2,
    "_loops": 2,
    "_waits": 3,
    "_synccalls": 4,
    "_loopthread": 5,
    "_eventloop": 6,
    "_jobs": 6,
    "_standby": 7,
    "_executor": 8,
    "_lanes": 8,
    "_processes": 8,
    "_threadpool": 8,
    "_contextmanagers": 9,
    "_dual": 9,
    "_iteration": 9,
    "__init__": 10,
}


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
    floor = FLOORS[file.stem]

    for module in imported_modules(file):
        assert FLOORS[module] < floor, f"{file.name} on floor {floor} imports {module}"


@pytest.mark.parametrize("room", [room for room in FOLDER.iterdir() if (room / "__init__.py").exists()], ids=str)
def test_a_room_imports_from_lower_floors_only_and_its_files_from_each_other_downward(room: Path) -> None:
    docstring = ast.get_docstring(ast.parse((room / "__init__.py").read_text(encoding="utf-8"))) or ""
    order = ["__init__", *re.findall(r"^ +(\w+)\.py ", docstring, re.MULTILINE)]

    assert set(order) == {file.stem for file in room.glob("*.py")}
    for file in room.glob("*.py"):
        for module in imported_modules(file, level=2):
            assert FLOORS[module] < FLOORS[room.name], f"{file.name} imports {module}"
        for module in imported_modules(file, level=1):
            assert order.index(module) > order.index(file.stem) or is_for_types(file, module), f"{file.name}: {module}"


def is_for_types(file: Path, module: str) -> bool:
    """Return whether *file* imports *module* for type checkers alone."""
    source = file.read_text(encoding="utf-8")
    return f"\n    from .{module} import" in source and f"\nfrom .{module} import" not in source


def test_files_stay_short() -> None:
    for file in (FOLDER / "_processes").glob("*.py"):
        assert len(file.read_text(encoding="utf-8").splitlines()) <= 400, file.name


def test_the_map_in_the_front_door_shows_every_file_on_its_floor() -> None:
    docstring = (unfazed.concurrency.__doc__ or "").replace("/ ", " ")
    floor, seen = 10, {"__init__": 10}

    for line in docstring.splitlines():
        words = line.split()
        if words[:1] == ["floor"]:
            floor = int(words[1])
            words = words[2:]
        if words and words[0].startswith("_"):
            seen[words[0].removesuffix(".py")] = floor

    assert seen == FLOORS


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


ROOT = Path(__file__).parent.parent


def test_the_lowest_versions_are_the_bounds_of_the_project() -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    pins = re.findall(
        r"^([\w-]+)==([\d.]+)$", (ROOT / "tests" / "lowest.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    bounds = {name: set(re.findall(rf'"{name}(?:\[\w+\])?>=([\d.]+)"', project)) for name, _ in pins}

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
