"""Find the files: those that the user names, and those in named folders, unless git ignores them."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from pathspec import GitIgnoreSpec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

_SUFFIXES = frozenset({".py", ".pyi", ".pyw"})
_LEFT_OUT = frozenset({"__pycache__", "node_modules"})


class _Rules(NamedTuple):
    """The ignore rules of one folder."""

    folder: Path
    spec: GitIgnoreSpec


def find_files(paths: Iterable[Path]) -> Iterator[Path]:
    """Yield the files in *paths*, each once. A path that the user names is never ignored."""
    seen: set[Path] = set()
    for path in paths:
        for file in _walk(path.resolve(), _rules_above(path.resolve())) if path.is_dir() else [path.resolve()]:
            if file not in seen:
                seen.add(file)
                yield file


def _walk(folder: Path, rules: list[_Rules]) -> Iterator[Path]:
    rules = [*rules, *_rules_of(folder)]
    folders: list[Path] = []
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda each: each.name):
            path = folder / entry.name
            if entry.is_dir(follow_symlinks=False):
                if not _is_left_out(path) and not _is_ignored(path, rules, is_folder=True):
                    folders.append(path)
            elif not entry.is_file(follow_symlinks=False) or path.suffix not in _SUFFIXES:
                continue
            elif not _is_ignored(path, rules, is_folder=False):
                yield path
    for each in folders:
        yield from _walk(each, rules)


def _is_left_out(folder: Path) -> bool:
    return folder.name.startswith(".") or folder.name in _LEFT_OUT or (folder / "pyvenv.cfg").exists()


def _rules_of(folder: Path) -> list[_Rules]:
    """Return the rules in *folder*: `.gitignore`, and `.git/info/exclude` if it is the root of a repository."""
    files = (folder / ".git" / "info" / "exclude", folder / ".gitignore")
    return [
        _Rules(folder, GitIgnoreSpec.from_lines(file.read_text(encoding="utf-8", errors="replace").splitlines()))
        for file in files
        if file.is_file()
    ]


def _rules_above(folder: Path) -> list[_Rules]:
    """Return the rules of the folders above, up to the root of the repository."""
    above: list[Path] = []
    for each in (folder, *folder.parents):
        if each != folder:
            above.append(each)
        if (each / ".git").exists():
            return [rules for each in reversed(above) for rules in _rules_of(each)]
    return []


def _is_ignored(path: Path, rules: list[_Rules], *, is_folder: bool) -> bool:
    """Return whether git ignores *path*. The nearest rule that matches decides."""
    for folder, spec in reversed(rules):
        name = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
        said = spec.check_file(name).include
        if said is not None:
            return said
    return False
