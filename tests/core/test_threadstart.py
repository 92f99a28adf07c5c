"""How threads start: in an empty context, by one helper."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import unfazed.concurrency

INHERITANCE = """
import contextvars, logging, threading
import anyio
from unfazed.concurrency import (
    in_threadpool, iterate_in_threadpool, run_in_eventloop_sync, run_in_processpool_sync, run_in_threadpool_sync
)

request = contextvars.ContextVar("request", default=None)
inherited = {}
run = threading.Thread.run

def note(thread):
    inherited[thread.name] = request.get()
    run(thread)

def warn():
    logging.getLogger("worker").warning("heard")

async def nothing():
    pass

async def main():
    queued = in_threadpool(int, limiter=anyio.CapacityLimiter(1))
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(queued)
    async for _ in iterate_in_threadpool([1]):
        pass

if __name__ == "__main__":
    threading.Thread.run = note
    request.set("request 1")
    control = threading.Thread(target=int, name="control")
    control.start()
    control.join()
    run_in_threadpool_sync(int)
    run_in_eventloop_sync(nothing)
    run_in_processpool_sync(warn)
    anyio.run(main)
    assert inherited.pop("control") == "request 1"
    ours = {name: value for name, value in inherited.items() if name.startswith("unfazed")}
    assert {"unfazed-eventloop", "unfazed-slots"} <= set(ours), inherited
    assert not any(ours.values()), ours
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="before, no thread inherits a context")
def test_no_thread_of_ours_inherits_the_context_of_a_caller(tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(INHERITANCE, encoding="utf-8")
    command = [sys.executable, "-X", "thread_inherit_context=1", str(program)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=50, cwd=tmp_path)

    assert done.returncode == 0, done.stderr


def test_one_helper_makes_all_threads() -> None:
    folder = Path(unfazed.concurrency.__file__).parent
    makes_threads = re.compile(r"\b(threading\.)?Thread\(target")

    found = [file.name for file in folder.rglob("*.py") if makes_threads.search(file.read_text(encoding="utf-8"))]

    assert found == ["_threadstart.py"]
