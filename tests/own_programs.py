"""Run a program in an interpreter of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest

HANG_SECONDS = 30  # nothing here takes a tenth of it
MEASURED = {name: value for name, value in os.environ.items() if name.startswith("COV")}  # on all backends

PRELUDE = """
import anyio, asyncio, atexit, contextlib, os, signal, sys, threading, time
from unfazed.concurrency import *
from unfazed.concurrency._core import _lifetime
from unfazed.concurrency._eventloops import _background, _loops, _loopthread
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell is deaf to it
if {options!r}:
    configure_background_eventloop(backend={backend!r}, backend_options={options!r})

def say(text):
    os.write(1, (str(text) + "\\n").encode())  # at once and whole, from any thread and process

def children_of(pid):
    import processes
    return [str(child) for child in processes.children_of(pid)]

async def aid():
    await anyio.sleep(0)
    return threading.get_ident()

def call_all():
    for _ in range(3):  # the first goes by way of the loop; then a thread stands by
        assert run_in_threadpool_sync(int, "1") == 1
    assert run_in_eventloop_sync(aid)
    assert run_in_processpool_sync(int, "2") == 2
    return "all"

def run(afn, *args):
    return anyio.run(afn, *args, backend={backend!r}, backend_options={options!r})

def in_child(function):
    "Fork, call the function in the child, and say how that ended."
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(15)  # a child that hangs is killed
            function()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    say(f"child {{os.waitstatus_to_exitcode(status)}}")
"""


class Program:
    """A program on the backend under test."""

    def __init__(
        self, folder: Path, backend: tuple[str, dict[str, Any]], source: str, *, interrupted_anywhere: bool = False
    ) -> None:
        self._file = folder / "program.py"
        prelude = PRELUDE.format(backend=backend[0], options=backend[1])
        body = textwrap.indent(textwrap.dedent(source), "    ")
        self._file.write_text(f"{prelude}\nif __name__ == '__main__':\n{body}")
        self._environment = dict(os.environ, **MEASURED, UNFAZED_BACKEND=backend[0], PYTHONWARNINGS=WARNINGS)
        paths = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment["PYTHONPATH"] = os.pathsep.join(paths)  # for `processes`
        if interrupted_anywhere:  # in the measurement of coverage as well, which keeps its lock then
            for name in [name for name in self._environment if name.startswith("COV")]:
                del self._environment[name]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self._file)],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self) -> tuple[int, str, str]:
        """Run it to its end. Return its exit code, its output, and its complaints."""
        return finish(self.start())

    def interrupt(self, *times: str) -> tuple[int, str, str]:
        """Run it, and send Ctrl-C each time it has printed one of these words."""
        process = self.start()
        assert process.stdout is not None
        said = ""
        for word in times:
            while word not in said:
                line = process.stdout.readline()
                assert line, f"ended before it said {word!r}: {said}{process.stderr and process.stderr.read()}"
                said += line
            os.kill(process.pid, signal.SIGINT)
        code, rest, complaints = finish(process)
        return code, said + rest, complaints


# Forking with other threads alive is what these programs are about; Python warns of it.
WARNINGS = (
    "error,ignore:This process:DeprecationWarning,ignore::DeprecationWarning:asyncio,ignore::DeprecationWarning:anyio"
)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"the program hangs: {out}\n{err}")
    return process.returncode, out, err


@pytest.fixture
def program(tmp_path: Path, anyio_backend: tuple[str, dict[str, Any]]) -> Any:
    return lambda source, **options: Program(tmp_path, anyio_backend, source, **options)
