"""Programs of all kinds that use worker processes."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING, Any

import pytest
from conftest import wait_until
from mishaps import assert_ten_calls_work, in_time, run_program
from processes import exists

from unfazed.concurrency import in_processpool, run_in_processpool_sync

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers elsewhere are silent")

Backend = tuple[str, dict[str, Any]]

USES_A_MODULE = """
{imports}
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    try:
        print([run_in_processpool_sync(triple, number) for number in range(10)])
    except WorkerProcessError as exc:
        print("error:", exc)
"""


@pytest.mark.parametrize("how", ["script", "-c", "stdin", "package"])
def test_programs_of_all_kinds_use_workers(tmp_path: Path, background: Backend, how: str) -> None:
    out, err = run_program(
        tmp_path, USES_A_MODULE.format(imports="from package.sibling import triple"), background, how
    )

    assert out == f"{[3 * number for number in range(10)]}\n"
    assert err == "in the worker\n" * 10


def test_a_script_without_a_guard_is_told_what_to_write(tmp_path: Path, background: Backend) -> None:
    out, _ = run_program(
        tmp_path,
        """
from unfazed.concurrency import *
try:
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    print(run_in_processpool_sync(int))
except WorkerProcessError as exc:
    print("error:", exc)
    raise
""",
        background,
    )

    assert out.startswith("error: ")
    assert "`if __name__ == '__main__':`" in out


def test_a_timeout_ends_a_call_to_a_worker_that_has_been_stopped(
    background: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = run_in_processpool_sync(os.getpid)
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(TimeoutError):
        in_time(in_processpool(os.getpid, timeout=0.05).sync)

    assert_ten_calls_work()
    wait_until(lambda: not exists(pid), "the worker is left")


def test_workers_that_end_before_they_are_ready_are_an_error(tmp_path: Path, background: Backend) -> None:
    out, _ = run_program(
        tmp_path,
        """
import multiprocessing, shutil, sys
from functools import partial
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    multiprocessing.set_executable(shutil.which("true"))
    for call in (partial(run_in_processpool_sync, abs, -1), partial(warm_up_processpool_sync, 2)):
        try:
            print(call())
        except WorkerProcessError as exc:
            print("error:", exc)
    multiprocessing.set_executable(sys.executable)
    print(run_in_processpool_sync(abs, -1))
""",
        background,
    )

    *errors, value = out.splitlines()
    assert len(errors) == 2
    assert all("true' ended with exit code 0 before it was ready" in each for each in errors)
    assert value == "1"


def test_a_main_module_that_cannot_be_imported_is_told_from_one_without_a_guard(
    tmp_path: Path, background: Backend
) -> None:
    out, _ = run_program(
        tmp_path,
        """
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    try:
        run_in_processpool_sync(abs, -1)
    except WorkerProcessError as exc:
        print(exc)
else:
    raise ValueError("no configuration")
""",
        background,
    )

    assert "could not import the main module (ValueError: no configuration)" in out
    assert "guard" not in out
    assert "__name__" not in out


def test_classes_of_the_main_module_come_back_and_so_do_its_errors(tmp_path: Path, background: Backend) -> None:
    out, err = run_program(
        tmp_path,
        """
from unfazed.concurrency import *

class OwnError(Exception):
    pass

class Point:
    def __init__(self, x):
        self.x = x

def make(point):
    return Point(point.x + 1)

def fail():
    raise OwnError("own")

if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    for number in range(10):
        point = run_in_processpool_sync(make, Point(number))
        assert type(point) is Point and point.x == number + 1
        try:
            run_in_processpool_sync(fail)
        except OwnError as exc:
            assert str(exc) == "own"
    print("done")
""",
        background,
    )

    assert (out, err) == ("done\n", "")


HANDLERS = """
import logging, sys
{here}
import tasks
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    for number in range(3):
        run_in_processpool_sync(tasks.log, number)
"""


@pytest.mark.parametrize("place", ["main", "other"])
def test_handlers_made_on_import_do_not_handle_twice(tmp_path: Path, background: Backend, place: str) -> None:
    make = (
        "import logging\n"
        "handler = logging.FileHandler('log.txt')\n"
        "logging.getLogger('tasks').addHandler(handler)\n"
        "logging.getLogger('tasks').setLevel(logging.INFO)\n"
    )
    log = "import logging\ndef log(number):\n    logging.getLogger('tasks').info('record %d', number)\n"
    run_program(
        tmp_path,
        HANDLERS.format(here=make if place == "main" else ""),
        background,
        tasks=log if place == "main" else make + log,
    )

    assert (tmp_path / "log.txt").read_text() == "record 0\nrecord 1\nrecord 2\n"


def test_the_last_output_is_not_lost_at_the_end_of_the_program(tmp_path: Path, background: Backend) -> None:
    _, err = run_program(
        tmp_path,
        """
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    run_in_processpool_sync(print, "x" * 60000, end="")
    run_in_processpool_sync(print, "the end", end="")
""",
        background,
    )

    assert err == "x" * 60000 + "the end\n"


def test_a_forked_child_uses_the_pool_and_so_does_its_parent(tmp_path: Path, background: Backend) -> None:
    out, err = run_program(
        tmp_path,
        """
import os, signal, sys
from unfazed.concurrency import *

def ten_calls():
    return [run_in_processpool_sync(abs, -number) for number in range(10)] == list(range(10))

if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    assert ten_calls()
    workers = {run_in_processpool_sync(os.getpid)}
    pid = os.fork()
    if not pid:
        fine = ten_calls() and run_in_processpool_sync(os.getpid) not in workers
        try:
            run_in_processpool_sync(signal.raise_signal, signal.SIGKILL)
        except WorkerProcessError:
            fine = fine and ten_calls()
        sys.exit(7 if fine else 1)
    assert ten_calls()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ten_calls()
    assert run_in_processpool_sync(os.getpid) in workers
    print(code)
""",
        background,
    )

    assert (out, err) == ("7\n", "")


def test_a_program_that_is_killed_leaves_no_worker(tmp_path: Path, background: Backend) -> None:
    out, _ = run_program(
        tmp_path,
        """
import os, signal
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    print(run_in_processpool_sync(os.getpid), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""",
        background,
    )

    wait_until(lambda: not exists(int(out)), "the worker lives on")
