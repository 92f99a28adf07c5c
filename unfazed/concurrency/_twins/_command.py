"""The command `python -m unfazed.twins`: its arguments and its exit codes.

It exits with 0 if the file was written or is up to date, with 1 if `--check` found a difference, with 2 after an error,
and with 130 after Ctrl-C.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import os
import shlex
import subprocess
import sys
import tempfile
from argparse import ArgumentParser, RawDescriptionHelpFormatter
from contextlib import suppress
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING

from ruff import find_ruff_bin  # pyright: ignore[reportMissingTypeStubs]

from .._core._errors import WrongFunctionError
from ._building import sync_name_of
from ._modules import ModuleWriter, Target
from ._sources import Origin

if TYPE_CHECKING:
    from collections.abc import Sequence

DONE, DIFFERENT, ERROR, INTERRUPTED = 0, 1, 2, 130
DIFF_LINES = 60  # how much of a difference to show; arbitrary, about a page

_DESCRIPTION = """Write the sync twins of async classes as a module that type checkers, editors and readers see.

Each class is named as `package.module:AsyncClient`, or `package.module:AsyncClient=Client` to give the twin a name;
otherwise it has the class's name without Async, or with Sync in front. Classes that refer to each other are named
together. ruff formats the file as its project says. It has the same bytes each time, and is written in one step."""


class _UsageError(Exception):
    """Raised when the command cannot do what its arguments say. Its text tells the user why."""


def main(arguments: Sequence[str]) -> int:
    """Run the command and return its exit code."""
    parser = ArgumentParser(
        prog="python -m unfazed.twins", description=_DESCRIPTION, formatter_class=RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "classes", nargs="+", metavar="MODULE:CLASS", help="an async class, and where to import it from"
    )
    parser.add_argument("--output", required=True, type=Path, metavar="FILE", help="the module to write")
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 if the file is not up to date")
    given = parser.parse_args(arguments)
    sys.path.insert(0, str(Path.cwd()))
    try:
        targets = [_target(text) for text in given.classes]
        source = _generate(targets, given.classes, given.output)
        return _check(given.output, source) if given.check else _write(given.output, source)
    except (_UsageError, WrongFunctionError) as exc:
        _say(f"error: {exc}")
    except OSError as exc:
        _say(f"error: {given.output}: {exc.strerror or exc}")
    except KeyboardInterrupt:
        _say("interrupted: the file is as it was")
        return INTERRUPTED
    return ERROR


def _say(text: str) -> None:
    print(text, file=sys.stderr)  # noqa: T201


def _target(text: str) -> Target:
    where, _, name = text.partition("=")
    module, colon, qualname = where.partition(":")
    if not (module and colon and qualname):
        raise _UsageError(f"{text}: write package.module:AsyncClass")
    try:
        imported = importlib.import_module(module)
        cls = reduce(getattr, qualname.split("."), imported)
    except (ImportError, AttributeError) as exc:
        raise _UsageError(f"{text}: {exc}") from exc
    except Exception as exc:  # the module raises it
        raise _UsageError(f"{text}: {module} cannot be imported: {type(exc).__name__}: {exc}") from exc
    if not isinstance(cls, type):
        raise _UsageError(f"{text}: {qualname} is no class")
    return Target(cls, Origin(module, qualname, is_exact=True), name or sync_name_of(cls))


def _generate(targets: list[Target], arguments: list[str], output: Path) -> str:
    names = [target.name for target in targets]
    for name in names:
        if names.count(name) > 1:
            raise _UsageError(f"two twins would be called {name}: write package.module:AsyncClass=OtherName")
    classes = [target.cls for target in targets]
    for target in targets:
        if classes.count(target.cls) > 1:
            raise _UsageError(f"{target.text} is named twice, and can have only one twin in a module")
    writer = ModuleWriter(targets, _package_of(output))
    shown = output.name if output.is_absolute() else output.as_posix()
    command = f"python -m unfazed.twins {shlex.join(arguments)} --output {shown}"
    source = ""
    for number, source in enumerate(writer.source(command), 1):  # noqa: B007
        if sys.stderr.isatty() and number <= len(targets):
            _say(f"[{number}/{len(targets)}] {writer.targets[number - 1].text}")
    for warning in writer.warnings:
        _say(f"warning: {warning}")
    return _formatted(source, output)


def _package_of(output: Path) -> str:
    """Return the name of the outermost package that contains the file, or an empty string."""
    packages = itertools.takewhile(lambda folder: (folder / "__init__.py").exists(), output.absolute().parents)
    return next(reversed([folder.name for folder in packages]), "")


def _formatted(source: str, output: Path) -> str:
    """Return *source* as ruff would format the file *output*, with sorted imports."""
    path = str(output.absolute())
    # `--ignore-noqa`: the generated file turns ruff off, but here it must sort the imports.
    for options in (
        ["check", "--select", "I", "--ignore-noqa", "--fix", "--exit-zero", "--quiet"],
        ["format"],
    ):
        done = subprocess.run(
            [find_ruff_bin(), *options, "--stdin-filename", path, "-"],
            input=source.encode(),
            capture_output=True,
            check=False,
        )
        if done.returncode:
            raise _UsageError(f"ruff does not take what is generated: {done.stderr.decode()}")
        source = done.stdout.decode()
    return source


def _check(output: Path, source: str) -> int:
    try:
        present = output.read_bytes().decode()
    except FileNotFoundError:
        _say(f"{output}: is not there; write it without --check")
        return DIFFERENT
    if present == source or _formatted(present, output) == source:  # another version of ruff may have formatted it
        return DONE
    lines = list(
        difflib.unified_diff(
            present.splitlines(), source.splitlines(), str(output), "what would be written", lineterm=""
        )
    )
    _say("\n".join(lines[:DIFF_LINES]))
    _say(f"{output}: is not what would be written; write it without --check")
    return DIFFERENT


def _write(output: Path, source: str) -> int:
    """Write the file in one step. Do not touch it if its content is right already."""
    output = output.resolve()  # a symbolic link must stay one
    content = source.encode()
    with suppress(FileNotFoundError):
        if output.read_bytes() == content:
            return DONE
    handle, name = tempfile.mkstemp(dir=output.parent, prefix=f".{output.name}.", suffix=".unfazed")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        mode = output.stat().st_mode & 0o777 if output.exists() else 0o666 & ~_umask()
        Path(name).chmod(mode)
        Path(name).replace(output)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    return DONE


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
