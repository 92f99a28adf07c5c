"""The command's options and exit codes.

0 means that nothing had to change, or that the changes are written. 1 means that files would change. 2 means an error.
"""

from __future__ import annotations

import os
import sys
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ._files import find_files
from ._report import Report
from ._run import Request, migrate_all, read_all
from ._writing import NotWrittenError, write_all

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from ._source import Result

NOTHING_TO_DO, SOMETHING_TO_DO, ERROR, INTERRUPTED = 0, 1, 2, 130

_DESCRIPTION = """Move a code base from asgiref.

Shows what would change and changes nothing, and exits with 1 if there is something to change, with 0 if not, and
with 2 if a file cannot be parsed or written. By default only imports change, and the meaning does not."""


class _Arguments(NamedTuple):
    paths: list[Path]
    write: bool
    request: Request

    @property
    def is_stdin(self) -> bool:
        return self.paths == [Path("-")]


def _parse(arguments: Sequence[str]) -> _Arguments:
    parser = ArgumentParser(
        prog="python -m unfazed_compat.migrate", description=_DESCRIPTION, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="a file, a folder, or - for stdin")
    parser.add_argument("--write", action="store_true", help="write the files, all or none; of stdin, to stdout")
    parser.add_argument("--native", action="store_true", help="rewrite calls as well, where that is safe")
    parser.add_argument(
        "--no-affinity",
        action="append",
        default=[],
        type=Path,
        metavar="PATH",
        help="with --native: in this file or folder, no call needs a thread of its own; may be given several times",
    )
    given = parser.parse_args(arguments)
    if Path("-") in given.paths and len(given.paths) > 1:
        parser.error("- stands alone: give either files and folders, or stdin")
    if given.no_affinity and not given.native:
        parser.error("--no-affinity is about calls: give --native as well")
    return _Arguments(given.paths, given.write, Request(given.native, tuple(given.no_affinity)))


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    given = _parse(arguments)
    report = Report(results_on_stderr=given.is_stdin and given.write)
    try:
        return _migrate_stdin(given, report) if given.is_stdin else _migrate_files(given, report)
    except KeyboardInterrupt:
        report.error("interrupted", "every file is as it was, or as it is to be")
        return INTERRUPTED


def _migrate_stdin(given: _Arguments, report: Report) -> int:
    path = Path("-").resolve()
    ((_, result),) = migrate_all({path: sys.stdin.buffer.read()}, given.request)
    if result.error:
        report.error("-", result.error)
        return ERROR
    if given.write:
        sys.stdout.buffer.write(result.new)
        sys.stdout.buffer.flush()
    else:
        report.diff("-", result)
    report.findings("-", result)
    report.summary(1, [result], written=given.write)
    return _exit_code(given, [result])


def _migrate_files(given: _Arguments, report: Report) -> int:
    missing = [path for path in given.paths if not path.exists()]
    for path in missing:
        report.error(str(path), "there is no such file or folder")
    if missing:
        return ERROR
    files = list(find_files(given.paths))
    failed = False
    sources: dict[Path, bytes] = {}
    for path, source in read_all(files):
        if isinstance(source, bytes):
            sources[path] = source
        else:
            report.error(_shown(path), source.strerror)
            failed = True
    results: dict[Path, Result] = {}
    for path, result in report.progress(migrate_all(sources, given.request), len(sources)):
        results[path] = result
        if result.error:
            report.error(_shown(path), result.error)
            failed = True
    changed = {path: (result.old, result.new) for path, result in results.items() if result.old != result.new}
    for path, result in results.items():
        if not given.write:
            report.diff(_shown(path), result)
        report.findings(_shown(path), result)
    written = given.write and not failed
    if written:
        try:
            write_all(changed)
        except NotWrittenError as exc:
            report.error(_shown(exc.path), exc.reason)
            failed, written = True, False
    report.summary(len(files), results.values(), written=written)
    if failed and given.write:
        report.error("nothing is written", "see to these files, or name others")
    return ERROR if failed else _exit_code(given, results.values())


def _exit_code(given: _Arguments, results: Iterable[Result]) -> int:
    something = any(result.old != result.new for result in results)
    return SOMETHING_TO_DO if something and not given.write else NOTHING_TO_DO


def _shown(path: Path) -> str:
    """Return *path* relative to the working directory, if it is below that."""
    relative = os.path.relpath(path)
    return str(path) if relative.startswith("..") else relative
