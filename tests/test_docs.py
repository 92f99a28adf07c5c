"""The documentation: links lead somewhere, every public name is there, and figures are those that were measured."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import re
from typing import TYPE_CHECKING, Any

import pytest
from pages import DOCS, PAGES, README, ROOT, name_of, read

import unfazed.concurrency

if TYPE_CHECKING:
    from pathlib import Path

TEXTS = (*PAGES, *(ROOT / name for name in ("CHANGELOG.md", "CODE_OF_CONDUCT.md", "CONTRIBUTING.md", "SECURITY.md")))
ADAPTERS = ("asgiref", "asyncer", "django", "starlette", "stdlib")


# Links


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", without_code(read(page))):
        if "://" in link:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$|`[^`\n]+`", "code", text, flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Return what can follow the # of a link."""
    text = without_code_blocks(read(page))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    documented = set(re.findall(r"^::: (\S+)$", text, re.MULTILINE))
    return documented | {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def without_code_blocks(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)


def test_every_page_is_in_the_navigation() -> None:
    navigation = set(re.findall(r'"([\w/-]+\.md)"', read(ROOT / "zensical.toml")))

    assert {page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md")} - navigation == set()


@pytest.mark.parametrize("page", TEXTS, ids=name_of)
def test_helpers_that_a_page_names_exist(page: Path) -> None:
    named = re.findall(r"\b(?<![._])(?:run|start|map|iterate|contextmanager)_in_[a-z]+(?:_sync)?\b(?!_)", read(page))

    assert set(named) - {*unfazed.concurrency.__all__} == set()


# The reference


def test_the_reference_shows_every_function_with_its_signature() -> None:
    text = read(DOCS / "reference" / "index.md")
    for name in unfazed.concurrency.__all__:
        value = getattr(unfazed.concurrency, name)
        if inspect.isfunction(value):
            assert f"`{name}({signature(value)})`" in text
        elif not issubclass(value, Exception):
            assert f"`{name}`" in text or f"`{name}({signature(value)})`" in text, name


def signature(function: object) -> str:
    """Return the parameters with their defaults, without their types."""
    parameters = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
    bare = [each for each in bare if each.name != "others"]  # which are refused
    return str(inspect.Signature(bare))[1:-1].replace("'", '"')


def test_the_reference_has_the_docstring_of_every_public_name() -> None:
    text = "\n".join(read(page) for page in (DOCS / "reference").glob("*.md"))
    documented = re.findall(r"^::: (\S+)$", text, re.MULTILINE)
    names = [f"unfazed.concurrency.{name}" for name in unfazed.concurrency.__all__]
    for adapter in ADAPTERS:
        module = f"unfazed_compat.{adapter}"
        names += [module, *(f"{module}.{name}" for name in importlib.import_module(module).__all__)]

    expected = [*names, "unfazed.twins.SyncTwin", "unfazed_compat.migrate"]

    assert set(expected) ^ set(documented) == set()
    assert len(expected) == len(documented)


def test_the_reference_has_the_names_that_generated_modules_use() -> None:
    text = read(DOCS / "reference" / "twins.md")
    for name in importlib.import_module("unfazed.twins").__all__:
        assert f"`{name}`" in text


def test_the_exceptions_are_what_the_table_says() -> None:
    rows = re.findall(r"^\| \[`(\w+Error)`\]\(\S+\) \| (.*?) \|", read(DOCS / "reference" / "errors.md"), re.MULTILINE)

    assert len(rows) == 13
    for name, bases in rows:
        error = getattr(unfazed.concurrency, name)
        assert [f"`{base.__name__}`" for base in error.__bases__[1:]] == bases.split(", ")


# Figures and versions


def report() -> Any:
    """Return what writes the figures: the benchmarks are no part of the package."""
    spec = importlib.util.spec_from_file_location("_report", ROOT / "benchmarks" / "_report.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_figures_are_those_of_the_last_measurement() -> None:
    """If this fails, run `python -m benchmarks --pages`."""
    writer = report()
    results = json.loads(read(writer.RESULTS / "results.json"))

    assert read(writer.FIGURES) == writer.figures_page(results)
    for page in writer.PAGES:
        assert read(page) == writer.fill(read(page), results)
        assert "<!-- figures: " in read(page)


def test_the_version_is_the_same_everywhere() -> None:
    version = unfazed.__version__

    assert re.findall(r"^## (\d\S+)", read(ROOT / "CHANGELOG.md"), re.MULTILINE)[0] == version
    assert read(DOCS / "new.md").startswith(f"# What is new in {version}\n")
    assert f"[What is new in {version}](docs/new.md)" in read(README)
