"""Calls in worker processes."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_process
import process_functions as functions
import pytest
from conftest import NO_GIL

from unfazed._worker import channel
from unfazed.concurrency import (
    NotSendableError,
    RemoteError,
    RemoteTraceback,
    WorkerProcessError,
    WrongFunctionError,
    run_in_processpool,
    run_in_processpool_sync,
)

if TYPE_CHECKING:
    from pathlib import Path

    from conftest import Caller

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup


def test_all_arguments_reach_the_function_whatever_their_names(caller: Caller) -> None:
    kwargs = dict.fromkeys(("self", "func", "args", "kwargs", "timeout", "limiter", "request", "name"), 1)

    assert caller("processpool", functions.echo, 1, 2, **kwargs) == ((1, 2), kwargs)


def test_runs_in_another_process(caller: Caller) -> None:
    assert caller("processpool", os.getpid) != os.getpid()


@pytest.mark.skipif(not NO_GIL, reason="only where there must not be one")
def test_a_worker_has_no_gil_either(caller: Caller) -> None:
    imports = ["misbehaving_functions", "unfazed.concurrency", "unfazed_compat.asgiref", caller.backend[0]]

    assert caller("processpool", functions.has_gil_after, *imports) is False


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no"),
        functions.OwnBaseError("base"),
        SystemExit(3),
        KeyboardInterrupt("of the function"),
        StopAsyncIteration(1),
        ExceptionGroup("group", [ValueError(1)]),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_come_back_with_their_traceback_and_the_next_call_works(
    background: tuple[str, dict[str, Any]], error: BaseException
) -> None:
    async def call() -> BaseException:
        try:
            await run_in_processpool(functions.fail, error)
        except BaseException as exc:
            assert await run_in_processpool(functions.echo, 1) == ((1,), {})
            return exc
        pytest.fail("nothing was raised")

    with pytest.raises(type(error)) as caught_sync:
        run_in_processpool_sync(functions.fail, error)
    assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})
    backend, options = background
    caught_async = anyio.run(call, backend=backend, backend_options=options)

    for caught in (caught_sync.value, caught_async):
        assert type(caught) is type(error)
        assert [str(arg) for arg in caught.args] == [str(arg) for arg in error.args]
        assert isinstance(caught.__cause__, RemoteTraceback)
        assert "in fail\n" in str(caught.__cause__)


def test_stop_iteration_is_itself_in_sync_code_and_a_runtime_error_in_async_code(
    background: tuple[str, dict[str, Any]],
) -> None:
    backend, options = background

    with pytest.raises(StopIteration):
        run_in_processpool_sync(functions.fail, StopIteration(1))
    with pytest.raises(RuntimeError, match="StopIteration"):
        anyio.run(run_in_processpool, functions.fail, StopIteration(1), backend=backend, backend_options=options)
    assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})


def test_errors_that_cannot_be_pickled_come_back_as_text(background: Any) -> None:
    with pytest.raises(RemoteError, match=r"process_functions.TwoArgumentError: 1 and 2"):
        run_in_processpool_sync(functions.fail_with_two_arguments)
    with pytest.raises(RemoteError, match=r"LocalError: of a class that only the worker has") as caught:
        run_in_processpool_sync(functions.fail_with_local_class)
    assert "in fail_with_local_class" in str(caught.value.__cause__)
    assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})


def test_results_that_cannot_be_pickled_are_an_error(background: Any) -> None:
    with pytest.raises(NotSendableError, match=r"return_lambda.*function: .*lambda"):
        run_in_processpool_sync(functions.return_lambda)
    assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})


@pytest.mark.parametrize("local", [lambda: 1, partial(lambda: 1)], ids=["lambda", "partial"])
def test_what_cannot_be_found_by_name_is_refused_with_what_to_write(caller: Caller, local: Any) -> None:
    instead = "run_in_threadpool" if caller.kind == "async" else "run_in_threadpool_sync"

    with pytest.raises(NotSendableError) as caught:
        caller("processpool", local)

    text = str(caught.value)
    assert "<lambda>" in text
    assert "top level of a module" in text
    assert f"{instead}(" in text
    assert isinstance(caught.value, TypeError)


def test_arguments_that_cannot_be_pickled_are_refused(caller: Caller) -> None:
    with pytest.raises(NotSendableError, match=r"the arguments of echo\(\)"):
        caller("processpool", functions.echo, lambda: 1)


def test_async_functions_and_what_cannot_be_called_are_refused(caller: Caller) -> None:
    with pytest.raises(WrongFunctionError, match=r"async_function\(\) is async"):
        caller("processpool", functions.async_function)
    with pytest.raises(WrongFunctionError, match="got 3"):
        caller("processpool", 3)


def test_a_worker_that_ends_is_reported_and_replaced(caller: Caller) -> None:
    with pytest.raises(WorkerProcessError, match=r"end_at_once\(\) ended .+ before it answered"):
        caller("processpool", functions.end_at_once, 3)

    assert caller("processpool", functions.echo, 1) == ((1,), {})


def test_the_worker_is_used_again(background: Any) -> None:
    assert len({run_in_processpool_sync(os.getpid) for _ in range(3)}) == 1


@pytest.mark.anyio
async def test_no_more_than_the_limit_run_at_once(tmp_path: Path) -> None:
    """Two overlap; a third does not begin before one of them has ended."""
    anyio.to_process.current_default_process_limiter().total_tokens = 2
    started = [tmp_path / f"started {number}" for number in range(3)]
    may_end = [tmp_path / f"may end {number}" for number in range(3)]
    may_end[2].touch()

    async with anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(run_in_processpool, functions.touch_then_wait_for, started[number], may_end[number])
        await wait_for(started[0])
        await wait_for(started[1])
        tasks.start_soon(run_in_processpool, functions.touch_then_wait_for, started[2], may_end[2])
        await anyio.sleep(0.05)  # long enough to begin, if it could
        third_began_early = started[2].exists()
        may_end[0].touch()
        await wait_for(started[2])
        may_end[1].touch()

    assert not third_began_early


async def wait_for(path: Path) -> None:
    with anyio.fail_after(10):
        while not path.exists():
            await anyio.sleep(0.001)


@pytest.mark.anyio
async def test_a_cancelled_call_waits_for_its_worker_and_raises(tmp_path: Path) -> None:
    started, may_end = tmp_path / "started", tmp_path / "may end"
    pid = await run_in_processpool(os.getpid)

    async def call() -> None:
        with pytest.raises(anyio.get_cancelled_exc_class()):
            await run_in_processpool(functions.touch_then_wait_for, started, may_end)
        assert may_end.exists()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await wait_for(started)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            may_end.touch()

    assert await run_in_processpool(os.getpid) == pid


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_call_cancelled_by_asyncio_twice_waits_for_its_worker_and_raises(tmp_path: Path) -> None:
    started, may_end = tmp_path / "started", tmp_path / "may end"
    pid = await run_in_processpool(os.getpid)
    task = asyncio.create_task(run_in_processpool(functions.touch_then_wait_for, started, may_end))
    await wait_for(started)

    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
    may_end.touch()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert await run_in_processpool(os.getpid) == pid


@pytest.mark.anyio
async def test_a_call_cancelled_while_it_queues_is_never_sent(tmp_path: Path) -> None:
    anyio.to_process.current_default_process_limiter().total_tokens = 1
    started, may_end, never = tmp_path / "started", tmp_path / "may end", tmp_path / "never"

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_processpool, functions.touch_then_wait_for, started, may_end)
        await wait_for(started)
        async with anyio.create_task_group() as queued:
            queued.start_soon(run_in_processpool, functions.touch_then_wait_for, never, may_end)
            await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            queued.cancel_scope.cancel()
        may_end.touch()

    assert await run_in_processpool(functions.echo, 1) == ((1,), {})
    assert not never.exists()


def run_program(folder: Path, source: str) -> tuple[str, str]:
    file = folder / "program.py"
    file.write_text(source)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout, done.stderr


def test_classes_of_the_main_module_come_back(tmp_path: Path, background: tuple[str, dict[str, Any]]) -> None:
    out, err = run_program(
        tmp_path,
        f"""
from unfazed.concurrency import configure_background_eventloop, run_in_processpool_sync

class Point:
    def __init__(self, x):
        self.x = x

def make(point):
    return Point(point.x + 1)

if __name__ == "__main__":
    configure_background_eventloop(backend={background[0]!r}, backend_options={background[1]!r})
    point = run_in_processpool_sync(make, Point(1))
    print(type(point) is Point, point.x)
""",
    )

    assert (out, err) == ("True 2\n", "")


def test_a_script_without_a_guard_is_told_what_to_write(tmp_path: Path, background: tuple[str, dict[str, Any]]) -> None:
    out, _ = run_program(
        tmp_path,
        f"""
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend={background[0]!r}, backend_options={background[1]!r})
try:
    print(run_in_processpool_sync(int))
except WorkerProcessError as exc:
    print(exc)
    raise
""",
    )

    assert "if __name__ == '__main__':" in out


def test_a_result_that_only_the_worker_can_read_is_an_error(background: Any) -> None:
    with pytest.raises(NotSendableError, match=r"what return_worker_only\(\) returned cannot be read"):
        run_in_processpool_sync(functions.return_worker_only)
    assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})


def test_a_function_that_turns_out_to_be_async_is_refused(caller: Caller) -> None:
    instead = "`await " if caller.kind == "async" else "`run_in_eventloop_sync"

    with pytest.raises(WrongFunctionError, match=instead):
        caller("processpool", functions.returns_coroutine)
    assert caller("processpool", functions.echo, 1) == ((1,), {})


def test_a_method_of_what_cannot_be_pickled_is_refused(background: Any) -> None:
    with pytest.raises(NotSendableError, match="what it belongs to cannot be pickled"):
        run_in_processpool_sync(threading.Lock().acquire)


def test_a_function_below_the_guard_of_a_script_is_said_not_to_be_found(
    tmp_path: Path, background: tuple[str, dict[str, Any]]
) -> None:
    out, err = run_program(
        tmp_path,
        f"""
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend={background[0]!r}, backend_options={background[1]!r})
    def below():
        pass
    try:
        run_in_processpool_sync(below)
    except NotSendableError as exc:
        print(exc)
""",
    )

    assert err == ""
    assert "below() or its arguments cannot be found in the worker process" in out


# Large payloads


@pytest.mark.parametrize("size", [channel.ATOMIC, channel.CHUNK_BYTES, 3_000_000])
@pytest.mark.parametrize("kind", [bytes, bytearray])
def test_arguments_and_results_of_all_sizes_go_there_and_back(
    caller: Caller, kind: type[bytes | bytearray], size: int
) -> None:
    data = kind(os.urandom(size))

    for _ in range(3):
        (there,), _ = caller("processpool", functions.echo, data)

        assert there == data
        assert type(there) is kind


def test_what_memory_does_not_suffice_for_is_a_memory_error(background: Any) -> None:
    calls: list[tuple[Any, object]] = [
        (functions.echo, functions.TooLarge()),  # to be packed here
        (functions.echo, functions.TooLarge(os.getpid())),  # to be read there
        (functions.return_too_large, False),  # to be packed there
        (functions.return_too_large, True),  # to be read here
    ]
    for func, argument in calls:
        with pytest.raises(MemoryError):
            run_in_processpool_sync(func, argument)

        assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})
