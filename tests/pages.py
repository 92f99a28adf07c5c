"""The pages of the documentation, as tests read them."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
DOCS = ROOT / "docs"
SKILL = ROOT / "unfazed" / ".agents" / "skills" / "unfazed-concurrency" / "SKILL.md"
PAGES = (README, *sorted(DOCS.rglob("*.md")), SKILL)

EXAMPLE = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
RECIPE = re.compile(r'^```python title="(\S+)"\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def read(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def name_of(page: Path) -> str:
    """Return the name of a page in the ids of tests."""
    return page.relative_to(ROOT).with_suffix("").as_posix().removeprefix("docs/")


def recipes() -> dict[str, str]:
    """Return the examples that have a title: files, which tests of their own start as their users do."""
    return {title: source for page in PAGES for title, source in RECIPE.findall(read(page))}
