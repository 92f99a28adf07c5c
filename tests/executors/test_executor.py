"""Calls in any executor."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import multiprocessing
import os
import pickle
import sqlite3
import threading
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import anyio
import decorated_functions as decorated
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, Caller, captured

import unfazed.concurrency
from unfazed.concurrency import (
    ExecutorError,
    LoopThreadError,
    WrongFunctionError,
    run_in_executor,
    run_in_executor_sync,
    run_in_threadpool,
)
from unfazed.concurrency._core._references import to_send

if TYPE_CHECKING:
    from collections.abc import Iterator


# One process for all of this one's life, of Python's own: it is no leak of the first test that needs it.
resource_tracker.ensure_running()


@pytest.fixture
def one_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor


@pytest.fixture
def processes() -> Iterator[ProcessPoolExecutor]:
    # not forked: this process has threads
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as executor:
        yield executor


def call(caller: Caller, executor: object, func: object, /, *args: Any, **kwargs: Any) -> Any:
    """Make the call with the executor in front of the function, which `Caller` takes for an argument."""
    return caller("executor", executor, func, *args, **kwargs)


def test_all_arguments_reach_the_function_whatever_their_names(caller: Caller, one_thread: Executor) -> None:
    kwargs = dict.fromkeys(("self", "executor", "func", "fn", "args", "kwargs", "timeout", "context", "name"), 1)

    assert call(caller, one_thread, functions.echo, 1, 2, **kwargs) == ((1, 2), kwargs)


def test_a_single_thread_is_the_same_thread_every_time(caller: Caller, one_thread: Executor) -> None:
    connection = call(caller, one_thread, sqlite3.connect, ":memory:")
    call(caller, one_thread, connection.execute, "create table t (a)")
    call(caller, one_thread, connection.execute, "insert into t values (?)", [7])
    rows = call(caller, one_thread, lambda: connection.execute("select a from t").fetchall())
    call(caller, one_thread, connection.close)

    assert rows == [(7,)]


def test_a_process_pool_is_called_with_keyword_arguments(caller: Caller, processes: Executor) -> None:
    assert call(caller, processes, functions.echo, 1, func=2) == ((1,), {"func": 2})
    assert call(caller, processes, os.getpid) != os.getpid()


@pytest.mark.parametrize("error", [ValueError("no"), functions.OwnBaseError("base"), SystemExit(3)], ids=repr)
def test_errors_come_back_as_themselves_and_the_next_call_works(
    caller: Caller, one_thread: Executor, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        call(caller, one_thread, functions.fail, error)

    assert caught.value is error
    assert call(caller, one_thread, functions.echo, 1) == ((1,), {})


def test_stop_iteration_is_itself_in_sync_code_and_a_runtime_error_in_async_code(
    caller: Caller, one_thread: Executor
) -> None:
    with pytest.raises(RuntimeError if caller.kind == "async" else StopIteration):
        call(caller, one_thread, next, iter(()))


def test_the_context_goes_to_threads_of_this_process(background: Any, one_thread: Executor) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("set")

    assert run_in_executor_sync(one_thread, variable.get) == "set"


def test_bad_input_is_refused_before_anything_starts(caller: Caller, one_thread: Executor) -> None:
    with pytest.raises(WrongFunctionError, match=r"expected a concurrent.futures.Executor.*\(executor, func"):
        call(caller, functions.echo, 1)
    with pytest.raises(WrongFunctionError, match=r"async_function\(\) is async"):
        call(caller, one_thread, functions.async_function)
    with pytest.raises(WrongFunctionError, match=r"returns_coroutine\(\) is async"):
        call(caller, one_thread, functions.returns_coroutine)


@pytest.mark.anyio
async def test_a_thread_whose_own_loop_runs_is_refused(one_thread: Executor) -> None:
    with pytest.raises(LoopThreadError, match=r"`await run_in_executor\(executor, echo, ...\)`"):
        run_in_executor_sync(one_thread, functions.echo)


def test_an_executor_that_was_shut_down_is_named_and_a_healthy_one_works(caller: Caller, one_thread: Executor) -> None:
    with ThreadPoolExecutor(1) as ended:
        pass

    with pytest.raises(ExecutorError, match=r"echo\(\) was not accepted by its ThreadPoolExecutor: cannot"):
        call(caller, ended, functions.echo)
    assert call(caller, one_thread, functions.echo, 1) == ((1,), {})


def test_a_process_that_dies_is_an_error_and_a_healthy_executor_works(caller: Caller, one_thread: Executor) -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as broken:
        with pytest.raises(ExecutorError, match=r"end_at_once\(\) was lost, as its executor broke"):
            call(caller, broken, functions.end_at_once, 3)
        with pytest.raises(ExecutorError, match="was not accepted"):
            call(caller, broken, functions.echo)
    assert call(caller, one_thread, functions.echo, 1) == ((1,), {})


class NeverRuns(Executor):
    """Cancels every call."""

    def submit(self, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        future.cancel()
        return future


def test_a_call_that_the_executor_cancels_is_an_error(caller: Caller) -> None:
    with pytest.raises(ExecutorError, match="was cancelled by its executor"):
        call(caller, NeverRuns(), functions.echo)


def test_what_is_sent_on_by_another_process_is_still_the_function_and_not_what_decorates_it() -> None:
    for dual in (decorated.decorated, decorated.Decorated(3).times):
        sent = to_send(dual.__wrapped__)
        sent_on = pickle.loads(pickle.dumps(pickle.loads(pickle.dumps(sent))))
        assert sent_on(7) in {(os.getpid(), 7), 21}


class LibraryError(Exception):
    """A library's error for a call that is lost, or that is not accepted."""

    __module__ = "library.errors"


class LibraryExecutor(Executor):
    """Fails as a cluster does: `submit` raises *refuses*, and each call ends with *loses*."""

    __module__ = "library.executors"

    def __init__(self, *, refuses: Exception | None = None, loses: BaseException | None = None) -> None:
        self._refuses = refuses
        self._loses = loses

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        if self._refuses is not None:
            raise self._refuses
        future: Future[Any] = Future()
        future.set_exception(self._loses)
        return future


def test_what_its_library_says_of_a_call_is_an_executor_error(caller: Caller) -> None:
    with pytest.raises(ExecutorError, match=r"call of echo\(\) was lost by its LibraryExecutor: no worker") as lost:
        call(caller, LibraryExecutor(loses=LibraryError("no worker")), functions.echo)
    with pytest.raises(ExecutorError, match=r"echo\(\) was not accepted by its LibraryExecutor: closed") as refused:
        call(caller, LibraryExecutor(refuses=LibraryError("closed")), functions.echo)

    assert isinstance(lost.value.__cause__, LibraryError)
    assert isinstance(refused.value.__cause__, LibraryError)


def test_what_the_function_raised_is_itself_though_its_class_is_of_the_library(caller: Caller) -> None:
    def of_the_library() -> None: ...

    of_the_library.__module__ = "library.functions"
    raised = captured(lambda: functions.fail(LibraryError("has a frame of the function's")))[1] or LibraryError()
    remote = LibraryError("has the text of the frames as its cause")
    remote.__cause__ = ValueError("Traceback ...")
    for func, error in (
        (functions.echo, raised),
        (functions.echo, remote),
        (functools.partial(of_the_library), LibraryError("of a function of the same library")),
        (functions.echo, ValueError("of no library")),
    ):
        with pytest.raises(type(error)) as caught:
            call(caller, LibraryExecutor(loses=error), func)
        assert caught.value is error


def test_an_error_that_submit_has_of_its_arguments_is_itself(caller: Caller) -> None:
    with pytest.raises(TypeError, match="cannot pickle"):
        call(caller, LibraryExecutor(refuses=TypeError("cannot pickle")), functions.echo)


@pytest.mark.anyio
async def test_a_cancelled_call_waits_for_its_function_and_one_that_has_not_started_never_starts(
    one_thread: Executor,
) -> None:
    started, may_end = threading.Event(), threading.Event()
    raised: list[bool] = []

    def work() -> None:
        started.set()
        assert may_end.wait(GRACE_SECONDS)

    async def run() -> None:
        try:
            await run_in_executor(one_thread, work)
        finally:
            raised.append(may_end.is_set())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run)
        while not started.is_set():
            await anyio.sleep(0.001)
        tasks.start_soon(run_in_executor, one_thread, pytest.fail)
        await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            may_end.set()

    assert raised == [True]
    assert await run_in_executor(one_thread, functions.echo, 1) == ((1,), {})


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_call_cancelled_by_asyncio_twice_waits_for_its_function(one_thread: Executor) -> None:
    started, may_end = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        assert may_end.wait(GRACE_SECONDS)

    task = asyncio.create_task(run_in_executor(one_thread, work))
    while not started.is_set():
        await asyncio.sleep(0.001)
    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
    may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.anyio
async def test_a_worker_that_waits_for_an_executor_lends_its_slot(one_thread: Executor) -> None:
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1

    def below() -> int:
        return run_in_executor_sync(one_thread, int, "7")

    async def from_executor() -> int:
        return await run_in_threadpool(below)

    def outer() -> int:
        return unfazed.concurrency.run_in_eventloop_sync(from_executor)

    assert await run_in_threadpool(outer) == 7


@pytest.mark.anyio
async def test_a_thread_of_others_whose_task_is_cancelled_waits_for_no_executor() -> None:
    """anyio delivers no cancellation to the call of such a thread on asyncio: waiting for it would never end."""
    outcomes: list[tuple[object, BaseException | None]] = []

    def call() -> None:
        anyio.from_thread.run_sync(scope.cancel)
        with ThreadPoolExecutor(1) as executor:
            outcomes.append(captured(lambda: run_in_executor_sync(executor, int, "1")))

    with anyio.CancelScope() as scope:
        await anyio.to_thread.run_sync(call)

    value, error = outcomes[0]
    assert value == 1 or isinstance(error, anyio.get_cancelled_exc_class())
