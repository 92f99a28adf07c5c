"""Checks the site that `tox run -e docs` has built: the inventory, the search, links, and that nothing is loaded."""

from __future__ import annotations

import json
import re
import sys
import zlib
from html import unescape
from pathlib import Path
from urllib.parse import unquote, urldefrag

ROOT = Path(__file__).parents[2]
SITE = ROOT / "site"
EXTERNAL = ("http://", "https://", "//", "data:", "mailto:")


def public_names(module: Path) -> list[str]:
    """Return what `__all__` lists, without importing the module."""
    found = re.search(r"^__all__ = \((.*?)\)", module.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert found, module
    return re.findall(r'"(\w+)"', found[1])


def inventory() -> set[str]:
    """Return the names in `objects.inv`, by which other projects link to ours."""
    packed = (SITE / "objects.inv").read_bytes().split(b"\n", 4)[4]
    return {line.split(" ")[0] for line in zlib.decompress(packed).decode().splitlines()}


def problems() -> list[str]:
    """Return everything that is wrong."""
    names = {f"unfazed.concurrency.{name}" for name in public_names(ROOT / "unfazed" / "concurrency" / "__init__.py")}
    found = [f"objects.inv has no {name}" for name in sorted(names - inventory())]
    pages = {page: page.read_text(encoding="utf-8") for page in SITE.rglob("*.html")}
    searched = json.loads((SITE / "search.json").read_text(encoding="utf-8"))
    places = {item["location"].partition("#")[0] for item in searched["items"]}
    for page, text in pages.items():
        name = page.relative_to(SITE).as_posix()
        if name != "404.html" and name.removesuffix("index.html") not in places:
            found.append(f"the search does not know {name}")
        for tag in re.findall(r"<(?:link|script|img|iframe)[^>]*>", text):
            where = re.search(r'\b(?:href|src)="?([^"\s>]+)', tag)
            if where and where[1].startswith(EXTERNAL) and 'rel="canonical"' not in tag:
                found.append(f"{name} loads {where[1]}")
        if name != "404.html":
            links = re.findall(r'<(?:a|img|link|script)\b[^>]*?\b(?:href|src)="?([^"\s>]+)', text)
            found += [f"{name} links to {link}" for link in links if not leads_somewhere(page, unescape(link), pages)]
    return found


def leads_somewhere(page: Path, link: str, pages: dict[Path, str]) -> bool:
    if link.startswith(EXTERNAL):
        return True
    path, anchor = urldefrag(link)
    target = (page.parent / unquote(path)).resolve() if path else page
    target = target / "index.html" if target.is_dir() else target
    if not anchor or target.suffix != ".html" or anchor.startswith("__"):
        return target.exists()
    return re.search(rf'\b(?:id|name)="?{re.escape(unquote(anchor))}["\s>]', pages.get(target, "")) is not None


if __name__ == "__main__":
    sys.exit("\n".join(problems()) or None)
