"""Workers that are warmed up, initialized, and replaced after so many calls."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, children, wait_until
from mishaps import LOGGER, assert_ten_calls_work, in_time, wait_for_children

from unfazed.concurrency import (
    CallTimeoutError,
    NotSendableError,
    WorkerProcessError,
    WrongFunctionError,
    WrongOptionError,
    in_processpool,
    run_in_eventloop_sync,
    run_in_processpool_sync,
    warm_up_processpool,
    warm_up_processpool_sync,
)

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers elsewhere are silent")

Backend = tuple[str, dict[str, Any]]


# Warming up


def test_warm_workers_are_distinct_and_used_by_later_calls(background: Backend, tmp_path: Path) -> None:
    warm_up_processpool_sync(3)
    workers = children()
    warm_up_processpool_sync(3)
    run_in_eventloop_sync(warm_up_processpool, 2)

    assert len(workers) == 3
    assert children() == workers
    with ThreadPoolExecutor(2) as threads:
        calls = [
            threads.submit(run_in_processpool_sync, misbehaving.pid_after, tmp_path, tmp_path / "go") for _ in "ab"
        ]
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "the workers are not used")
        (tmp_path / "go").touch()
        used = {each.result(GRACE_SECONDS) for each in calls}
    assert len(used) == 2
    assert used < workers
    assert_ten_calls_work()


@pytest.mark.parametrize("count", [-1, 1.5, True, "2", None])
def test_wrong_counts_are_refused(count: Any, background: Backend) -> None:
    with pytest.raises(WrongOptionError, match="count"):
        warm_up_processpool_sync(count)
    with pytest.raises(WrongOptionError, match="count"):
        run_in_eventloop_sync(warm_up_processpool, count)


def test_no_workers_are_not_started(background: Backend) -> None:
    warm_up_processpool_sync(0)

    assert children() == set()


def test_warming_up_cancelled_waits_for_the_workers(background: Backend) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(warm_up_processpool, 2)
            await wait_for_children(1)
            tasks.cancel_scope.cancel()
        assert len(children()) == 2

    anyio.run(main, backend=background[0], backend_options=background[1])
    assert_ten_calls_work()
    assert len(children()) == 2


# Workers that are replaced


def test_a_worker_is_replaced_after_so_many_calls(background: Backend) -> None:
    two = in_processpool(os.getpid, max_calls=2)

    pids = [two.sync() for _ in range(6)]

    assert pids[0::2] == pids[1::2]
    assert len(set(pids)) == 3
    assert_ten_calls_work()
    wait_until(lambda: len(children()) == 1, "a retired worker is left")


def test_workers_are_replaced_by_calls_in_parallel(background: Backend) -> None:
    once = in_processpool(misbehaving.log, max_calls=1)
    with ThreadPoolExecutor(3) as threads:
        pids = [each.result() for each in [threads.submit(once.sync, LOGGER, (40, "x")) for _ in range(9)]]

    assert len(set(pids)) == 9
    assert_ten_calls_work()


def test_replacing_goes_with_crashes_timeouts_and_cancellation(background: Backend, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_calls": 2, "kill_on_cancel": True, "timeout": 60}
    once = in_processpool(misbehaving.apply, **options)
    assert once.sync(functions.echo, 1) == ((1,), {})
    with pytest.raises(WorkerProcessError):
        once.sync(misbehaving.die, 1)
    with pytest.raises(SystemExit):
        once.sync(sys.exit, 1)
    with pytest.raises(CallTimeoutError):
        in_processpool(misbehaving.apply, max_calls=1, timeout=0.3).sync(misbehaving.wait_for, tmp_path / "never")

    async def cancel() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(once, misbehaving.pid_after, tmp_path, tmp_path / "never")
            while not list(tmp_path.iterdir()):
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()

    run_in_eventloop_sync(cancel)
    assert [once.sync(functions.echo, number) for number in range(4)] == [((number,), {}) for number in range(4)]
    assert_ten_calls_work()


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_wrong_numbers_of_calls_are_refused(wrong: Any) -> None:
    with pytest.raises(WrongOptionError, match="max_calls"):
        in_processpool(os.getpid, max_calls=wrong)


# Initializers


def test_an_initializer_runs_once_in_each_worker(background: Backend, tmp_path: Path) -> None:
    initialized = in_processpool(misbehaving.apply, initializer=partial(misbehaving.initialize, tmp_path))

    with ThreadPoolExecutor(2) as threads:
        for each in [threads.submit(initialized.sync, misbehaving.times_initialized) for _ in range(6)]:
            assert each.result() == 1

    workers = {str(child) for child in children()}
    assert {path.name for path in tmp_path.iterdir()} <= {f"{pid} 1" for pid in workers}
    assert_ten_calls_work()


def test_an_initializer_is_the_same_whatever_becomes_of_its_arguments(background: Backend, tmp_path: Path) -> None:
    settings = [1]
    initializer = partial(misbehaving.initialize_with, tmp_path, settings)
    initialized = in_processpool(misbehaving.times_initialized, initializer=initializer)

    assert initialized.sync() == 1
    settings.append(2)
    assert initialized.sync() == 1


def test_an_initializer_may_be_any_object(background: Backend, tmp_path: Path) -> None:
    initialized = in_processpool(misbehaving.times_initialized, initializer=misbehaving.Initializer(tmp_path))

    assert [initialized.sync(), initialized.sync()] == [1, 1]


def test_an_initializer_that_raises_is_tried_again(background: Backend, tmp_path: Path) -> None:
    fails = tmp_path / "fails"
    initialized = in_processpool(
        misbehaving.times_initialized,
        initializer=partial(misbehaving.initialize_unless, fails),
        timeout=60,
        kill_on_cancel=True,
    )

    fails.touch()
    for _ in range(2):
        with pytest.raises(LookupError, match="cannot initialize") as caught:
            initialized.sync()
        assert "in initialize_unless" in str(caught.value.__cause__)
    fails.unlink()

    assert [initialized.sync() for _ in range(3)] == [1, 1, 1]
    assert_ten_calls_work()


def test_an_initializer_that_hangs_is_killed_in_time(background: Backend, tmp_path: Path) -> None:
    hangs = in_processpool(os.getpid, initializer=partial(misbehaving.wait_for, tmp_path / "never"), timeout=0.3)

    with pytest.raises(CallTimeoutError):
        in_time(hangs.sync)
    assert_ten_calls_work()


def test_wrong_initializers_are_refused_at_once() -> None:
    with pytest.raises(NotSendableError, match="initializer"):
        in_processpool(os.getpid, initializer=lambda: None)
    with pytest.raises(WrongFunctionError, match="initializer"):
        in_processpool(os.getpid, initializer=functions.async_function)
    with pytest.raises(WrongFunctionError, match="initializer"):
        in_processpool(os.getpid, initializer=3)  # type: ignore[call-overload]
