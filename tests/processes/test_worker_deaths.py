"""Functions that raise, end or kill their worker process: the next ten calls give the right answers."""

from __future__ import annotations

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, children, wait_until
from mishaps import assert_ten_calls_work, call, in_time
from processes import is_dead

from unfazed.concurrency import (
    NotSendableError,
    RemoteError,
    RemoteTraceback,
    WorkerProcessError,
    run_in_eventloop_sync,
    run_in_processpool,
    run_in_processpool_sync,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

assert call  # a fixture

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers elsewhere are silent")

Backend = tuple[str, dict[str, Any]]


# What a function raises or returns


def test_errors_that_do_not_pickle_come_back_as_text(call: Callable[..., Any]) -> None:
    for mishap, text in (
        (functions.fail_with_two_arguments, "TwoArgumentError: 1 and 2"),
        (functions.fail_with_local_class, "LocalError: of a class"),
    ):
        with pytest.raises(RemoteError, match=text) as caught:
            call(mishap)
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert_ten_calls_work(call)


def test_tracebacks_have_their_notes_and_groups(call: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="noted") as caught:
        call(misbehaving.fail_with_note)
    with pytest.raises(Exception, match="group") as group:
        call(functions.fail_in_group)

    assert caught.value.__notes__ == ["a note from the worker"]
    assert "in fail_with_note" in str(caught.value.__cause__)
    if sys.version_info >= (3, 11):
        assert "a note from the worker" in str(caught.value.__cause__)
        assert "KeyError: 2" in str(group.value.__cause__)
    assert_ten_calls_work(call)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("raised")], ids=repr)
def test_what_ends_programs_does_not_end_the_worker(call: Callable[..., Any], error: BaseException) -> None:
    pid = call(os.getpid)

    with pytest.raises(type(error)) as caught:
        call(functions.fail, error)

    assert caught.value.args == error.args
    assert_ten_calls_work(call)
    assert call(os.getpid) == pid


@pytest.mark.parametrize(
    "mishap",
    [misbehaving.return_what_ends_the_pickler, misbehaving.return_what_fails_without_text],
    ids=lambda mishap: mishap.__name__,
)
def test_results_that_fail_as_they_are_pickled_are_an_error(call: Callable[..., Any], mishap: Any) -> None:
    with pytest.raises(NotSendableError, match=mishap.__name__):
        call(mishap)
    assert_ten_calls_work(call)


# Workers that die


def assert_died(error: WorkerProcessError, name: str, status: str) -> None:
    """Fail unless the error says how the worker has ended."""
    assert error.name == name
    assert f"{name}()" in str(error)
    assert error.reason == f"ended {status} before it answered"


@pytest.mark.parametrize("code", [0, 255])
def test_an_exit_code_is_told(call: Callable[..., Any], background: Backend, code: int) -> None:
    with pytest.raises(WorkerProcessError) as caught:
        call(misbehaving.die, code)

    assert_died(caught.value, "die", f"with exit code {code}")
    assert_ten_calls_work(call)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_a_signal_is_told(call: Callable[..., Any], background: Backend, number: signal.Signals) -> None:
    with pytest.raises(WorkerProcessError) as caught:
        call(misbehaving.kill_by, number)

    assert_died(caught.value, "kill_by", f"killed by {number.name}")
    assert_ten_calls_work(call)


def test_a_death_is_noticed_though_a_child_lives_on(
    call: Callable[..., Any], background: Backend, tmp_path: Path
) -> None:
    awaited = tmp_path / "awaited"
    try:
        with pytest.raises(WorkerProcessError) as caught:
            in_time(call, misbehaving.fork_and_die, awaited, 9)
        assert_died(caught.value, "fork_and_die", "with exit code 9")
        assert_ten_calls_work(call)
    finally:
        awaited.touch()


def test_an_idle_worker_that_dies_is_replaced_though_a_child_lives_on(
    call: Callable[..., Any], background: Backend, tmp_path: Path
) -> None:
    awaited = tmp_path / "awaited"
    try:
        call(misbehaving.fork, awaited)
        os.kill(call(os.getpid), signal.SIGKILL)

        assert in_time(call, functions.echo, 1) == ((1,), {})
        assert_ten_calls_work(call)
    finally:
        awaited.touch()


def test_a_call_at_once_after_an_idle_worker_was_killed_works(call: Callable[..., Any]) -> None:
    for _ in range(3):
        os.kill(call(os.getpid), signal.SIGKILL)
        assert in_time(call, functions.echo, 1) == ((1,), {})
    assert_ten_calls_work(call)


def test_in_one_task_a_call_at_once_after_an_idle_worker_was_killed_works(background: Backend, tmp_path: Path) -> None:
    """The loop has no time to see that the worker has died."""
    awaited = tmp_path / "awaited"

    async def main(with_child: bool) -> None:
        if with_child:
            await run_in_processpool(misbehaving.fork, awaited)
        os.kill(await run_in_processpool(os.getpid), signal.SIGKILL)
        with anyio.fail_after(GRACE_SECONDS):
            assert await run_in_processpool(functions.echo, 1) == ((1,), {})

    try:
        for with_child in (False, True):
            run_in_eventloop_sync(main, with_child)
        assert_ten_calls_work()
    finally:
        awaited.touch()


def test_the_death_of_one_of_two_idle_workers_is_noticed(background: Backend) -> None:
    async def pids() -> list[int]:
        found: list[int] = []

        async def ask() -> None:
            found.append(await run_in_processpool(os.getpid))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
        return found

    for victim in (0, 1):
        os.kill(run_in_eventloop_sync(pids)[victim], signal.SIGKILL)
        in_time(run_in_eventloop_sync, pids)
    assert_ten_calls_work()


def test_a_call_that_kills_one_of_two_workers_is_told(background: Backend, tmp_path: Path) -> None:
    awaited = tmp_path / "awaited"
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(run_in_processpool_sync, misbehaving.pid_after, tmp_path, awaited)
        wait_until(lambda: list(tmp_path.iterdir()), "no worker starts")
        try:
            for _ in range(2):
                with pytest.raises(WorkerProcessError) as caught:
                    in_time(run_in_processpool_sync, misbehaving.kill_by, signal.SIGKILL)
                assert_died(caught.value, "kill_by", "killed by SIGKILL")
        finally:
            awaited.touch()
        assert other.result(GRACE_SECONDS) != os.getpid()
    assert_ten_calls_work()


def test_a_forked_child_that_returns_answers_nothing(call: Callable[..., Any], tmp_path: Path) -> None:
    for _ in range(2):
        assert call(misbehaving.fork_and_return) > 0
        assert_ten_calls_work(call)


def test_a_call_that_ends_its_worker_runs_once(call: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(WorkerProcessError):
        call(misbehaving.note_then_die, tmp_path / "runs")
    assert (tmp_path / "runs").read_text() == "x"


@pytest.mark.parametrize("size", [10, 50_000_000])
def test_a_call_runs_once_though_its_worker_is_killed_as_it_answers(
    call: Callable[..., Any], tmp_path: Path, size: int
) -> None:
    with pytest.raises(WorkerProcessError) as caught:
        in_time(call, misbehaving.note_then_die_amid_the_answer, tmp_path / "runs", size)

    assert_died(caught.value, "note_then_die_amid_the_answer", "killed by SIGKILL")
    assert (tmp_path / "runs").read_text() == "x"
    assert_ten_calls_work(call)


def test_a_worker_that_dies_just_after_its_call_is_replaced(background: Backend, tmp_path: Path) -> None:
    pid = run_in_processpool_sync(os.getpid)
    run_in_processpool_sync(misbehaving.leave_thread_that_dies, tmp_path / "awaited")

    (tmp_path / "awaited").touch()
    wait_until(lambda: is_dead(pid), "it does not die")

    assert_ten_calls_work()


def test_many_deaths_leave_nothing_behind(background: Backend) -> None:
    def die() -> None:
        with pytest.raises(WorkerProcessError, match="before it answered"):
            run_in_processpool_sync(misbehaving.die, 3)

    die()
    run_in_processpool_sync(os.getpid)
    wait_until(lambda: len(children()) == 1, "the dead worker is left")
    before = misbehaving.descriptors()
    threads = threading.active_count()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(die) for _ in range(12)]:
            future.result()

    assert_ten_calls_work()
    wait_until(lambda: misbehaving.descriptors() <= before, "file descriptors are left")
    wait_until(lambda: len(children()) == 1, "processes are left")
    wait_until(lambda: threading.active_count() <= threads, "threads are left")


# Signals


def test_ctrl_c_in_an_idle_worker_does_nothing(call: Callable[..., Any]) -> None:
    pid = call(os.getpid)

    for _ in range(3):
        os.kill(pid, signal.SIGINT)
        assert_ten_calls_work(call)
    assert call(os.getpid) == pid
