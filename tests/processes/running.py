"""What the tests of workers run: programs with workers of their own, and requests as a worker gets them."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

from unfazed._worker import call, channel

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM_SECONDS = 60


def outcome_of(request: bytes, initializer: bytes | None = None) -> tuple[bytes, Any]:
    """Return the kind and the payload of what a request comes to."""
    reader = channel.Reader(-1, request)
    reader.left = len(request)
    future = channel.Reader(-1, b"".join(call.run(reader, initializer)))
    kind, _ = future.next()
    return kind, pickle.loads(future.take())


def run_program(folder: Path, *arguments: str, source: str = "", **options: Any) -> tuple[str, str]:
    """Run Python in *folder*. Return what it prints, on both streams."""
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(os.path.abspath(each) for each in sys.path))  # noqa: PTH100
    options = {"env": environment, **options}
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input=source,
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
        **options,
    )
    return done.stdout, done.stderr


def write(path: Path, source: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(source))
    return path.name
