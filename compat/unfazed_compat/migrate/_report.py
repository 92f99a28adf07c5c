"""Print what the user sees: a diff, the places left alone, and a summary."""

from __future__ import annotations

import difflib
import io
import tokenize
from collections import Counter
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

    from ._source import Result

_STYLES = {"+++": "bold", "---": "bold", "@@": "cyan", "+": "green", "-": "red"}
_KINDS = {
    "imports": "imported name",
    "calls": "call",
    "wrappers": "stored wrapper",
    "decorators": "decorator",
    "iterators": "iterator",
}

# Calls that are counted although they do not change, and their names in the summary.
_LEFT = {
    "stays": "thread-sensitive call",
    "in_orm": "call of `async_to_sync` in files that use Django's ORM",
}


class Report:
    """Prints results to stdout, or to stderr if it is told to. Prints progress and errors to stderr."""

    def __init__(self, *, results_on_stderr: bool = False) -> None:
        self._errors = Console(stderr=True)
        self._results = self._errors if results_on_stderr else Console()

    def _print(self, line: str, style: str = "") -> None:
        self._results.print(Text(line, style), soft_wrap=True)

    def error(self, path: str, reason: object) -> None:
        self._errors.print(Text(f"{path}: {reason}", "bold red"), soft_wrap=True)

    def diff(self, path: str, result: Result) -> None:
        """Print the changes to one file."""
        old, new = _lines(result.old), _lines(result.new)
        for line in difflib.unified_diff(old, new, path, path, lineterm=""):
            text = line.rstrip("\r\n")
            style = next((style for start, style in _STYLES.items() if text.startswith(start)), "")
            self._print(text, style)

    def findings(self, path: str, result: Result) -> None:
        """Print which places were left alone, and why."""
        for line, reason in result.findings:
            self._print(f"{path}:{line}: {reason}", "yellow")

    def summary(self, looked_at: int, results: Iterable[Result], *, written: bool) -> None:
        """Print how many files, names and calls change, and how many places were left alone."""
        counts: Counter[str] = Counter()
        changed = findings = 0
        for result in results:
            counts.update({kind: n for kind, n in result.counts.items() if result.old != result.new or kind in _LEFT})
            changed += result.old != result.new
            findings += len(result.findings)
        said = [_count(counts[kind], name) for kind, name in _KINDS.items() if counts[kind]]
        verb = "changed" if written else "to change"
        self._print(f"{_count(changed, 'file')} of {looked_at} {verb}{': ' if said else ''}{', '.join(said)}", "bold")
        for kind, name in _LEFT.items():
            if counts[kind]:
                calls = _count(counts[kind], name)
                self._print(f"{calls} left to the adapter: --no-affinity names paths that need no thread of their own")
        if findings:
            self._print(f"{_count(findings, 'place')} left alone, named above")

    def progress(self, results: Iterable[tuple[Path, Result]], total: int) -> Iterator[tuple[Path, Result]]:
        """Yield from *results*, and show a progress bar if stderr is a terminal."""
        if not self._errors.is_terminal:
            yield from results
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
        with Progress(*columns, console=self._errors, transient=True) as progress:
            yield from progress.track(results, total, description="migrating")


def _count(number: int, name: str) -> str:
    first, *others = name.split(" of ", 1)
    return " of ".join([f"{number} {first}{'' if number == 1 else 's'}", *others])


def _lines(source: bytes) -> list[str]:
    encoding, _ = tokenize.detect_encoding(io.BytesIO(source).readline)
    return source.decode(encoding).splitlines(keepends=True)
