"""Rare moments of calls in worker processes, and of their callers: each is forced."""

from __future__ import annotations

import multiprocessing.spawn
import os
import pickle
import signal
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import anyio
import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, captured, captured_async, wait_until
from forcing import ModuleWith, once_before, raising
from interrupting import Alarm, raise_alarm
from running import run_program, write

from unfazed._worker import channel
from unfazed.concurrency import (
    LoopEndedError,
    NotSendableError,
    WorkerProcessError,
    in_processpool,
    run_in_processpool,
    run_in_processpool_sync,
    warm_up_processpool_sync,
)
from unfazed.concurrency._core import _threadstart
from unfazed.concurrency._eventloops._loops import current_loop
from unfazed.concurrency._processes import _call, _child, _packing, _pool, _waiting, _worker

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Backend = tuple[str, dict[str, Any]]


def assert_no_worker_is_lost() -> None:
    wait_until(lambda: len(_pool.pool._idle) == len(_pool.pool.workers) == 1, "a worker is lost")
    assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})


@pytest.mark.parametrize("thread", ["unfazed-worker", "unfazed-output"])
def test_a_worker_without_a_thread_does_not_start(
    background: Backend, monkeypatch: pytest.MonkeyPatch, thread: str
) -> None:
    start_thread = _threadstart.start_thread

    def start(target: Any, name: str, *args: object) -> object:
        if name.startswith(thread):
            raise RuntimeError("can't start new thread")
        return start_thread(target, name, *args)

    monkeypatch.setattr(_threadstart, "start_thread", start)
    with pytest.raises(WorkerProcessError, match=r"could not start \(can't start new thread\)"):
        run_in_processpool_sync(int)
    with pytest.raises(WorkerProcessError, match=r"could not start \(can't start new thread\)"):
        warm_up_processpool_sync(1)

    wait_until(lambda: not _child.children, "a process is left behind")


def test_a_worker_that_fails_before_its_call_comes_is_tried_again(
    background: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing.spawn, "_python_exe", "/nowhere/python")
        _pool.pool.start_first_worker(_call.ProcessCall("run_in_processpool_sync", int, (), {}))
        wait_until(lambda: _pool.pool._thread is not None and not _pool.pool.workers, "it does not fail")

    assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})


def test_a_worker_that_is_not_there_yet_cannot_be_killed() -> None:
    _worker.WorkerProcess(_pool.pool).kill()


@pytest.mark.skipif(not hasattr(signal, "SIGRTMIN"), reason="all signals have names here")
def test_a_signal_without_a_name_has_a_number(background: Backend) -> None:
    with pytest.raises(WorkerProcessError, match=f"killed by signal {signal.SIGRTMIN + 5}"):
        run_in_processpool_sync(misbehaving.kill_by, signal.SIGRTMIN + 5)


PROGRAMS = {
    "exiting": """
        import atexit
        def late():
            try: run_in_processpool_sync(int)
            except LoopEndedError as exc: print(exc)
        if __name__ == "__main__":
            atexit.register(late)  # before ours, so it comes after that
        from unfazed.concurrency import *
        if __name__ == "__main__":
            run_in_processpool_sync(int)
    """,
    "the start method": """
        import multiprocessing
        from unfazed.concurrency import *
        if __name__ == "__main__":
            multiprocessing.set_start_method("spawn")
            print(run_in_processpool_sync(multiprocessing.get_start_method))
    """,
    "frozen": """
        import sys
        from unfazed.concurrency import *
        sys.frozen = True
        sys.argv[1:] = ["--multiprocessing-fork", "x"]
        if __name__ == "__main__":
            try: run_in_processpool_sync(int)
            except WorkerProcessError as exc: print(exc)
    """,
}


@pytest.mark.parametrize(
    ("program", "says"),
    [
        ("exiting", "the interpreter is exiting"),
        ("the start method", "spawn\n"),
        ("frozen", "`multiprocessing.freeze_support()` behind its `if __name__"),
    ],
)
def test_a_program(tmp_path: Path, program: str, says: str) -> None:
    out, err = run_program(tmp_path, write(tmp_path / "program.py", PROGRAMS[program]))

    assert says in out
    assert err == ""


@pytest.mark.parametrize("error", [BlockingIOError(), BrokenPipeError(32, "broken")], ids=repr)
def test_what_a_pipe_says_is_not_the_callers_affair(
    background: Backend, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    """1: libuv has left the pipe in non-blocking mode. 2: the worker seems to have died; its thread finds out."""
    name = "read_once" if isinstance(error, BlockingIOError) else "write_once"
    run_in_processpool_sync(int)
    with monkeypatch.context() as patch:
        patch.setattr(channel, name, once_before(getattr(channel, name), raising(error)))
        assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})

    assert_no_worker_is_lost()


@pytest.mark.parametrize("name", ["read_once", "write_once"])
@pytest.mark.parametrize("kind", ["sync", "async"])
def test_what_a_signal_handler_raises_comes_out_and_loses_no_worker(
    background: Backend, monkeypatch: pytest.MonkeyPatch, name: str, kind: str
) -> None:
    backend, options = background
    calls: dict[str, Callable[[], object]] = {
        "sync": lambda: run_in_processpool_sync(functions.echo, 1),
        "async": lambda: anyio.run(run_in_processpool, functions.echo, 1, backend=backend, backend_options=options),
    }
    call = calls[kind]
    run_in_processpool_sync(int)
    with monkeypatch.context() as patch:
        patch.setattr(channel, name, once_before(getattr(channel, name), raising(TimeoutError("of a handler"))))
        with pytest.raises(TimeoutError, match="of a handler"):
            call()

    assert_no_worker_is_lost()


def test_an_interrupted_handing_over_is_done_again(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    run_in_processpool_sync(int)
    call = in_processpool(functions.echo, timeout=GRACE_SECONDS)  # which goes by the worker's thread
    with monkeypatch.context() as patch:
        hand_over = once_before(_worker.WorkerProcess.hand_over, raise_alarm)
        patch.setattr(_worker.WorkerProcess, "hand_over", hand_over)
        assert isinstance(captured(partial(call.sync, 1))[1], Alarm)

    assert_no_worker_is_lost()


@pytest.mark.anyio
async def test_a_call_that_is_interrupted_before_it_is_handed_over_loses_no_worker(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await run_in_processpool(int)
    loop_type = type(current_loop())
    with monkeypatch.context() as patch:
        patch.setattr(loop_type, "new_event", once_before(loop_type.new_event, raise_alarm))
        _, error = await captured_async(partial(run_in_processpool, bytes, 2_000_000))
        assert isinstance(error, Alarm)

    with anyio.fail_after(GRACE_SECONDS):
        while len(_pool.pool._idle) != 1:
            await anyio.sleep(0.001)
    assert await run_in_processpool(functions.echo, 1) == ((1,), {})


def test_a_call_that_is_interrupted_as_it_asks_for_a_worker_never_begins(
    background: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(_pool.Pool, "submit", once_before(_pool.Pool.submit, raise_alarm))
        call = partial(run_in_processpool_sync, functions.touch_then_wait_for, tmp_path / "ran", tmp_path / "ran")
        assert isinstance(captured(call)[1], Alarm)

    assert_no_worker_is_lost()
    assert not (tmp_path / "ran").exists()


def test_a_call_may_get_another_answer_before_it_is_handed_over() -> None:
    call = _call.ProcessCall("run_in_processpool", int, (), {})
    call.expect(_waiting._HandlingFuture())
    claimed = call._start

    call.expect(_waiting._HandlingFuture())

    assert call._start is claimed


def test_no_worker_starts_at_exit(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_pool.pool, "exiting", True)

    with pytest.raises(LoopEndedError, match="the interpreter is exiting"):
        run_in_processpool_sync(int)


class Once:
    """Fails the first time that it is pickled or unpickled, and then works."""

    failed: ClassVar[set[str]] = set()

    def __init__(self, how: str) -> None:
        self.how = how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how == "pickled":
            fail_once(self.how)
        return fail_once, (self.how,)


def fail_once(how: str) -> None:
    if how not in Once.failed:
        Once.failed.add(how)
        raise Alarm


def test_what_a_signal_handler_raises_is_not_taken_for_something_that_cannot_be_sent() -> None:
    Once.failed.clear()
    with pytest.raises(Alarm):
        _packing.pack(int, (Once("pickled"),), {}, "helper")
    with pytest.raises(Alarm):
        _packing.read_payload(pickle.dumps(Once("read")), int)

    with pytest.raises(NotSendableError):
        _packing.read_payload(b"no pickle", int)


@pytest.mark.anyio
async def test_a_thread_of_others_whose_task_is_cancelled_makes_no_call(tmp_path: Path) -> None:
    outcomes: list[BaseException | None] = []
    cancelled = anyio.get_cancelled_exc_class()

    def call() -> None:
        anyio.from_thread.run_sync(scope.cancel)
        ran = tmp_path / "ran"
        outcomes.append(captured(partial(run_in_processpool_sync, functions.touch_then_wait_for, ran, ran))[1])

    with anyio.CancelScope() as scope:
        await anyio.to_thread.run_sync(call)

    assert isinstance(outcomes[0], cancelled)
    assert not (tmp_path / "ran").exists()


def test_of_two_threads_for_the_pool_the_second_ends_at_once() -> None:
    """1: two callers find no thread for the pool. 2: both start one. 3: the second one leaves the events alone."""
    assert run_in_processpool_sync(int, "1") == 1
    pool = _pool.pool
    thread = pool._thread

    pool._run(pool._events)

    assert pool._thread == thread
    assert run_in_processpool_sync(int, "2") == 2


@pytest.mark.parametrize("at_once", [True, False], ids=["at once", "one after the other"])
def test_a_worker_is_ready_however_its_first_messages_come(
    background: Backend, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    """It says hello, imports the main module, and says that it is ready."""

    def read(pipe: int, size: int) -> bytes:
        data = os.read(pipe, 1 if not at_once and channel.HELLO not in seen else size)
        seen.extend(data)
        while at_once and seen.endswith(channel.HELLO):
            data += os.read(pipe, size)
            seen.extend(data)
        return data

    seen = bytearray()
    monkeypatch.setattr(_child, "os", ModuleWith(os, read=read))

    assert run_in_processpool_sync(int, "5") == 5
    assert channel.HELLO in seen
