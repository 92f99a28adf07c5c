"""A program whose workers, executors and clusters go away: what they leave behind ends with it.

Its arguments: a scenario, a backend, and who calls. It ends with an assertion that fails, or prints `done`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import distributed
import loky
import process_functions as functions
import pytest
from conftest import BACKENDS, Caller, wait_until

import unfazed.concurrency
from unfazed.concurrency import ExecutorError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from concurrent.futures import Executor

CONNECT_SECONDS = 3  # how long Dask's clients look for a scheduler that is gone; theirs is 30

TaskCall = partial[Any]


@contextlib.contextmanager
def dask() -> Iterator[tuple[Any, Any, Executor]]:
    """Start a cluster of two worker processes, and connect."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield cluster, client, client.get_executor(pure=False)


def works(call: TaskCall, executor: Executor) -> None:
    assert call(executor, functions.echo, 1, key=2) == ((1,), {"key": 2})


def is_lost(call: TaskCall, executor: Executor, end: Callable[[], object]) -> None:
    """Have a call fail, as *end* is called while it runs, and each call after it."""
    with TemporaryDirectory() as folder:
        started, may_end = Path(folder, "started"), Path(folder, "may end")

        def end_when_started() -> None:
            wait_until(started.exists, "the function does not start")
            end()

        thread = threading.Thread(target=end_when_started)
        thread.start()
        with pytest.raises(ExecutorError, match=r"the call of touch_then_wait_for\(\) was cancelled by its executor"):
            call(executor, functions.touch_then_wait_for, started, may_end)
        may_end.touch()
        thread.join()
    with pytest.raises(ExecutorError, match=r"the call of echo\(\) was not accepted by its ClientExecutor: "):
        call(executor, functions.echo)


def healthy_loky_works(call: TaskCall) -> None:
    with loky.get_reusable_executor(max_workers=2) as executor:  # its workers would keep our output open for 40 seconds
        works(call, executor)


def loky_worker_dies(call: TaskCall) -> None:
    executor = loky.get_reusable_executor(max_workers=2)
    works(call, executor)
    with pytest.raises(ExecutorError, match=r"the call of end_at_once\(\) was lost, as its executor broke: .*"):
        call(executor, functions.end_at_once, 3)
    with pytest.raises(ExecutorError, match=r"the call of echo\(\) was not accepted by its "):
        call(executor, functions.echo)
    healthy_loky_works(call)


def loky_worker_is_killed(call: TaskCall) -> None:
    executor = loky.get_reusable_executor(max_workers=2)
    with pytest.raises(ExecutorError, match=r"the call of kill_own_process\(\) was lost, as its executor broke: "):
        call(executor, functions.kill_own_process)
    healthy_loky_works(call)


def loky_is_shut_down(call: TaskCall) -> None:
    executor = loky.get_reusable_executor(max_workers=2)
    executor.shutdown()
    with pytest.raises(ExecutorError, match=r"the call of echo\(\) was not accepted by its "):
        call(executor, functions.echo)
    healthy_loky_works(call)


def dask_worker_dies(call: TaskCall) -> None:
    with dask() as (_, _, executor):
        with pytest.raises(
            ExecutorError, match=r"the call of end_at_once\(\) was lost by its ClientExecutor: "
        ) as caught:
            call(executor, functions.end_at_once, 3)
        assert type(caught.value.__cause__).__name__ == "KilledWorker"
        works(call, executor)


def dask_worker_is_killed(call: TaskCall) -> None:
    with dask() as (_, _, executor):
        with pytest.raises(ExecutorError, match=r"the call of kill_own_process\(\) was lost by its ClientExecutor: "):
            call(executor, functions.kill_own_process)
        works(call, executor)


def dask_executor_is_shut_down(call: TaskCall) -> None:
    with dask() as (_, client, executor):
        is_lost(call, executor, partial(executor.shutdown, wait=False))
        works(call, client.get_executor(pure=False))


def dask_client_is_closed(call: TaskCall) -> None:
    with dask() as (cluster, client, executor):
        is_lost(call, executor, client.close)
        with distributed.Client(cluster) as another:
            works(call, another.get_executor(pure=False))


def dask_cluster_is_closed(call: TaskCall) -> None:
    with dask() as (cluster, _, executor):
        is_lost(call, executor, cluster.close)
    with dask() as (_, _, healthy):
        works(call, healthy)


def dask_scheduler_is_killed(call: TaskCall) -> None:
    """As real clusters are: separate processes, known by an address, that vanish without notice."""
    with TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        address = Path(folder, "address")
        cluster = subprocess.Popen([sys.executable, __file__, "cluster", str(address)])
        stack.callback(cluster.wait)
        stack.callback(cluster.kill)
        wait_until(address.exists, "the cluster does not start")
        client = stack.enter_context(distributed.Client(address.read_text(), timeout=CONNECT_SECONDS))
        executor = client.get_executor(pure=False)
        works(call, executor)

        started, may_end = Path(folder, "started"), Path(folder, "may end")

        def kill_when_started() -> None:
            wait_until(started.exists, "the function does not start")
            cluster.kill()

        thread = threading.Thread(target=kill_when_started)
        thread.start()
        with pytest.raises(ExecutorError, match=r"the call of touch_then_wait_for\(\) was cancelled by its executor"):
            call(executor, functions.touch_then_wait_for, started, may_end)
        thread.join()
        # the client looks for the scheduler, and takes calls meanwhile; then it closes
        with pytest.raises(ExecutorError, match=r"the call of echo\(\) was (cancelled|not accepted) by its "):
            call(executor, functions.echo)
    with dask() as (_, _, healthy):
        works(call, healthy)


async def run_cluster(address: Path) -> None:
    """Be a cluster in one process, until it is killed."""
    async with (
        distributed.Scheduler(host="127.0.0.1", port=0, dashboard_address="127.0.0.1:0") as scheduler,
        distributed.Worker(scheduler.address, nthreads=1) as _,
    ):
        written = address.with_suffix(".tmp")
        written.write_text(scheduler.address)
        written.rename(address)
        await scheduler.finished()


SCENARIOS: dict[str, Callable[[TaskCall], None]] = {
    scenario.__name__: scenario
    for scenario in (
        loky_worker_dies,
        loky_worker_is_killed,
        loky_is_shut_down,
        dask_worker_dies,
        dask_worker_is_killed,
        dask_executor_is_shut_down,
        dask_client_is_closed,
        dask_cluster_is_closed,
        dask_scheduler_is_killed,
    )
}


def main() -> None:
    if sys.argv[1] == "cluster":
        import asyncio

        asyncio.run(run_cluster(Path(sys.argv[2])))
    scenario, backend, kinds = sys.argv[1:]
    name, options = BACKENDS[backend]
    unfazed.concurrency.configure_background_eventloop(backend=name, backend_options=options)
    for kind in kinds.split(","):
        SCENARIOS[scenario](partial(Caller(kind, (name, options)), "executor"))
    sys.stdout.write("done\n")
    sys.stdout.flush()
    os._exit(0)  # what goes away in other libraries' exit handlers is not ours


if __name__ == "__main__":
    main()
