"""Write all files, or none.

New files and copies of the old ones are written next to the originals before the first original is replaced. So errors
such as a full disk or a missing permission come before any change. Each file is replaced in one atomic step, so it is
complete at any moment.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import threading
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Generator, Mapping
    from types import FrameType


class NotWrittenError(Exception):
    """Raised when a file cannot be written. No file has been changed then."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason


class _Change(NamedTuple):
    path: Path
    new: Path
    old: Path


def write_all(files: Mapping[Path, tuple[bytes, bytes]]) -> None:
    """Replace the content of all files, or of none.

    Args:
        files: The old and the new content of each file.

    Raises:
        NotWrittenError: If a file cannot be written, or has changed since it was read. No file is changed then.
    """
    changes: list[_Change] = []
    with _cleanup(changes):
        for path, (old, new) in files.items():
            with _naming(path):
                changes.append(_prepare(path, old, new))
        with _interrupts_held():
            _replace_all(changes)


def _prepare(path: Path, old: bytes, new: bytes) -> _Change:
    if not os.access(path, os.W_OK):
        raise PermissionError("it is read-only")
    if path.read_bytes() != old:
        raise OSError("it has been changed meanwhile")
    made = _Change(path, _beside(path), _beside(path))
    try:
        made.new.write_bytes(new)
        shutil.copystat(path, made.new)
        os.utime(made.new)  # build tools look at the modification time
        _keep_owner(path, made.new)
        shutil.copy2(path, made.old)
        _keep_owner(path, made.old)
    except BaseException:
        _remove(made)
        raise
    return made


def _beside(path: Path) -> Path:
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".unfazed")
    os.close(handle)
    return Path(name)


def _keep_owner(path: Path, copy: Path) -> None:
    status = path.stat()
    # only root may give files to others, and only root needs to; Windows has no `chown`
    with suppress(PermissionError, AttributeError):
        os.chown(copy, status.st_uid, status.st_gid)


def _replace_all(changes: list[_Change]) -> None:
    done: list[_Change] = []
    try:
        for change in changes:
            with _naming(change.path):
                os.replace(change.new, change.path)  # noqa: PTH105  must be atomic
            done.append(change)
    except BaseException:
        for change in done:
            change.old.replace(change.path)
        raise


@contextmanager
def _cleanup(changes: list[_Change]) -> Generator[None, None, None]:
    try:
        yield
    finally:
        for change in changes:
            _remove(change)


def _remove(change: _Change) -> None:
    change.new.unlink(missing_ok=True)
    change.old.unlink(missing_ok=True)


@contextmanager
def _naming(path: Path) -> Generator[None, None, None]:
    try:
        yield
    except OSError as exc:
        raise NotWrittenError(path, exc.strerror or exc) from exc


@contextmanager
def _interrupts_held() -> Generator[None, None, None]:
    """Delay Ctrl-C until all files are replaced, if this is the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        pending.append(number)

    before = signal.signal(signal.SIGINT, hold)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pending:
            signal.raise_signal(signal.SIGINT)
