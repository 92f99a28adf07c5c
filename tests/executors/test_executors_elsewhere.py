"""Calls in the executors of other libraries, for real: loky, and Dask with a cluster on this machine.

Run by the tox environment `executors`, which demands these libraries; elsewhere skipped where they are missing.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from concurrent.futures import wait
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import decorated_functions as decorated
import process_functions as functions
import pytest
from conftest import BACKENDS, GRACE_SECONDS, Caller, _backends, wait_until
from map_helpers import collect

from unfazed.concurrency import CallTimeoutError, ExecutorError, in_executor, run_in_executor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor, Future

if "UNFAZED_TEST_EXECUTORS" not in os.environ:
    pytest.importorskip("loky")
    pytest.importorskip("distributed")

import distributed
import loky
from executors_program import SCENARIOS
from loky.backend import resource_tracker

WORKERS = 2
QUEUED = 20  # calls, more than any of these libraries hands to its workers beforehand


class Elsewhere(NamedTuple):
    """An executor with two worker processes."""

    executor: Executor
    await_calls: Callable[[int], object]  # waits until so many have not ended, where that can be known
    await_cancelled: Callable[[str], object]  # waits until no worker has calls of that name, where that can be known


@pytest.fixture(scope="module")
def loky_executor() -> Iterator[Elsewhere]:
    resource_tracker.ensure_running()  # one process for all of this one's life
    executor = loky.get_reusable_executor(max_workers=WORKERS, timeout=None)
    executor.submit(functions.echo).result(GRACE_SECONDS)

    yield Elsewhere(executor, int, str)

    executor.shutdown()


@pytest.fixture(scope="module")
def dask_executor() -> Iterator[Elsewhere]:
    with (
        distributed.LocalCluster(
            n_workers=WORKERS, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        executor = client.get_executor(pure=False)
        executor.submit(functions.echo).result(GRACE_SECONDS)

        def await_calls(count: int) -> None:
            def unfinished() -> int:
                return sum(task.state not in {"memory", "erred"} for task in cluster.scheduler.tasks.values())

            wait_until(lambda: unfinished() == count, "the scheduler has more calls, or fewer")

        def await_cancelled(name: str) -> None:
            def on_worker(dask_worker: Any) -> bool:
                return any(key.startswith(f"{name}-") for key in dask_worker.state.tasks)

            wait_until(lambda: not any(client.run(on_worker).values()), "a worker keeps what was cancelled")

        yield Elsewhere(executor, await_calls, await_cancelled)


@pytest.fixture(params=["loky", "dask"])
def elsewhere(request: pytest.FixtureRequest) -> Elsewhere:
    found: Elsewhere = request.getfixturevalue(f"{request.param}_executor")
    return found


# before what is checked for each test, so that it is there when that counts
pytestmark = pytest.mark.usefixtures("loky_executor", "dask_executor")


def call(caller: Caller, elsewhere: Elsewhere, func: object, /, *args: Any, **kwargs: Any) -> Any:
    return caller("executor", elsewhere.executor, func, *args, **kwargs)


def test_all_arguments_reach_the_function_whatever_their_names(caller: Caller, elsewhere: Elsewhere) -> None:
    # those that Dask's own `submit` takes for itself among them
    names = ("self", "executor", "func", "fn", "args", "kwargs", "timeout", "key", "pure", "workers", "retries")
    kwargs = dict.fromkeys(names, 1)

    assert call(caller, elsewhere, functions.echo, 1, 2, **kwargs) == ((1, 2), kwargs)


def test_the_function_runs_in_another_process(caller: Caller, elsewhere: Elsewhere) -> None:
    assert call(caller, elsewhere, os.getpid) != os.getpid()


def test_errors_come_back_as_themselves_and_the_next_call_works(caller: Caller, elsewhere: Elsewhere) -> None:
    with pytest.raises(ValueError, match=r"^no$"):
        call(caller, elsewhere, functions.fail, ValueError("no"))

    assert call(caller, elsewhere, functions.echo, 1) == ((1,), {})


def test_a_decorated_function_and_method_are_found_by_name(
    caller: Caller, elsewhere: Elsewhere, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decorated.elsewhere, "there", elsewhere.executor, raising=False)
    thing = decorated.Decorated(3)
    if caller.kind == "async":
        (pid, value), product = (
            caller.run(lambda: decorated.decorated(2, power=3)),
            caller.run(lambda: thing.times(7)),
        )
    else:
        (pid, value), product = decorated.decorated.sync(2, power=3), thing.times.sync(7)

    assert (value, product) == (8, 21)
    assert pid != os.getpid()


def test_a_function_is_wrapped_where_the_executor_is_known(caller: Caller, elsewhere: Elsewhere) -> None:
    echo = in_executor(elsewhere.executor, functions.echo)

    assert (caller.run(echo, 1) if caller.kind == "async" else echo.sync(1)) == ((1,), {})


def test_many_calls_at_once(caller: Caller, elsewhere: Elsewhere) -> None:
    for options in ({}, {"limit": 3, "ordered": False}):
        results = collect(
            caller,
            "executor",
            decorated.plain_add,
            range(QUEUED),
            range(QUEUED),
            executor=elsewhere.executor,
            **options,
        )
        assert sorted(total for total, _ in results) == [2 * number for number in range(QUEUED)]
        assert os.getpid() not in {pid for _, pid in results}
    with pytest.raises(TypeError, match="unsupported operand") as caught:
        collect(caller, "executor", decorated.plain_add, [1, None], [1, 1], executor=elsewhere.executor)
    assert "item 1, (None, 1), of map_in_executor" in caught.value.__notes__[0]


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_before_it_has_started_never_starts(
    elsewhere: Elsewhere, tmp_path: Path
) -> None:
    may_end, never = tmp_path / "may end", tmp_path / "never"
    started = [tmp_path / str(number) for number in range(WORKERS)]
    submit = elsewhere.executor.submit
    await anyio.to_thread.run_sync(elsewhere.await_calls, 0)
    futures: list[Future[Any]] = [submit(functions.touch_then_wait_for, path, may_end) for path in started]
    while not all(path.exists() for path in started):
        await anyio.sleep(0.001)
    futures += [submit(functions.echo, number) for number in range(QUEUED)]
    with anyio.fail_after(GRACE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_executor, elsewhere.executor, never.touch)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            # Dask's scheduler takes calls in beside its stream of messages: what is cancelled meanwhile, runs
            await anyio.to_thread.run_sync(elsewhere.await_calls, WORKERS + QUEUED + 1)
            tasks.cancel_scope.cancel()
    await anyio.to_thread.run_sync(elsewhere.await_calls, WORKERS + QUEUED)
    await anyio.to_thread.run_sync(elsewhere.await_cancelled, "touch")
    may_end.touch()

    assert not wait(futures, GRACE_SECONDS).not_done
    assert await run_in_executor(elsewhere.executor, functions.echo, 1) == ((1,), {})
    assert not never.exists()


@pytest.mark.anyio
async def test_a_cancelled_call_waits_for_its_function(loky_executor: Elsewhere, tmp_path: Path) -> None:
    started, may_end = tmp_path / "started", tmp_path / "may end"
    raised: list[bool] = []

    async def run() -> None:
        try:
            await run_in_executor(loky_executor.executor, functions.touch_then_wait_for, started, may_end)
        finally:
            raised.append(may_end.exists())

    with anyio.fail_after(GRACE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            while not started.exists():
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
            with anyio.CancelScope(shield=True):
                for _ in range(5):
                    await anyio.lowlevel.checkpoint()
            assert not raised
            may_end.touch()

    assert raised == [True]


@pytest.mark.anyio
async def test_a_call_in_dask_does_not_wait_as_nobody_can_tell_that_it_runs(
    dask_executor: Elsewhere, tmp_path: Path
) -> None:
    """Dask's futures never are `running()`, and `cancel()` says that they are cancelled."""
    started, may_end = tmp_path / "started", tmp_path / "may end"
    with anyio.fail_after(GRACE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_executor, dask_executor.executor, functions.touch_then_wait_for, started, may_end)
            while not started.exists():
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
    may_end.touch()

    assert await run_in_executor(dask_executor.executor, functions.echo, 1) == ((1,), {})


@pytest.mark.anyio
async def test_of_two_equal_calls_in_dask_one_is_cancelled_alone(dask_executor: Elsewhere, tmp_path: Path) -> None:
    """With `pure=False`; without it Dask takes both for one."""
    started, may_end = tmp_path / "started", tmp_path / "may end"
    results: list[str] = []

    async def run(scope: anyio.CancelScope) -> None:
        with scope:
            results.append(
                await run_in_executor(dask_executor.executor, functions.touch_then_wait_for, started, may_end)
            )

    with anyio.fail_after(GRACE_SECONDS):
        async with anyio.create_task_group() as tasks:
            scopes = anyio.CancelScope(), anyio.CancelScope()
            for scope in scopes:
                tasks.start_soon(run, scope)
            while not started.exists():
                await anyio.sleep(0.001)
            scopes[0].cancel()
            may_end.touch()

    assert len(results) == 1


def test_a_timeout_ends_the_wait(caller: Caller, elsewhere: Elsewhere, tmp_path: Path) -> None:
    may_end = tmp_path / "may end"
    wait_for = in_executor(elsewhere.executor, functions.touch_then_wait_for, timeout=0.05)
    run = functools.partial(caller.run, wait_for) if caller.kind == "async" else wait_for.sync
    try:
        with pytest.raises(CallTimeoutError, match=r"touch_then_wait_for\(\)"):
            run(tmp_path / "started", may_end)
    finally:
        may_end.touch()

    assert call(caller, elsewhere, functions.echo, 1) == ((1,), {})


def test_an_error_of_the_library_that_the_function_raised_is_itself(caller: Caller, dask_executor: Elsewhere) -> None:
    with pytest.raises(distributed.client.ClosedClientError) as caught:
        call(caller, dask_executor, functions.fail, distributed.client.ClosedClientError("no"))

    assert not isinstance(caught.value, ExecutorError)


@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("backend", [name for name in _backends() if name in BACKENDS])
def test_what_goes_away_is_an_error_and_a_healthy_executor_works(scenario: str, backend: str) -> None:
    program = Path(__file__).with_name("executors_program.py")
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]  # for its helpers
    done = subprocess.run(
        [sys.executable, str(program), scenario, backend, "async,main thread"],
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
        env=dict(os.environ, PYTHONWARNINGS="default", PYTHONPATH=os.pathsep.join(paths)),
    )

    assert (done.stdout, done.returncode) == ("done\n", 0), done.stderr
