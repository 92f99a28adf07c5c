"""asgiref's names: calls on their way to an executor, and executors that end or fail."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import inspect
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import anyio
import pytest
from asgiref.current_thread_executor import CurrentThreadExecutor as AsgirefsCurrentThreadExecutor
from asgiref_helpers import end_threads, this_thread, wait_for_the_end
from conftest import GRACE_SECONDS, Blocking, captured, in_plain_thread
from unfazed_compat.asgiref import (
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    _choose_loop,
    _currentthreadexecutor,
    _loopthreads,
    _threadcall,
    async_to_sync,
    sync_to_async,
)
from unfazed_compat.asgiref._currentthreadexecutor import CurrentThreadExecutor
from unfazed_compat.asgiref._executorcall import ExecutorCall
from unfazed_compat.asgiref._futures import OneShotFuture
from unfazed_compat.asgiref._nestedtasks import NestedTasks
from unfazed_compat.asgiref._singlethreadexecutor import SingleThreadExecutor
from unfazed_compat.asgiref._taskcall import TaskCall

from unfazed.concurrency import ExecutorError, LoopEndedError

assert end_threads  # a fixture

only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


def new_call() -> tuple[TaskCall, Any]:
    inner = this_thread()
    result: OneShotFuture[Any] = OneShotFuture()

    async def work() -> None:
        await asyncio.sleep(0)
        result.set_result(await inner)

    return TaskCall(work(), inner, result), inner


@pytest.mark.anyio
@only_asyncio
async def test_a_call_that_is_cancelled_before_it_starts_never_starts() -> None:
    call, _ = new_call()

    assert not call.cancel()
    assert call.start(asyncio.get_running_loop()) is None


def test_a_call_that_was_given_up_never_starts() -> None:
    for twice in (False, True):
        call, _ = new_call()
        call.give_up()
        if twice:
            call.give_up()
        loop_thread = _loopthreads.LoopThread()
        loop_thread.run(call, CurrentThreadExecutor(None), contextvars.copy_context())
        loop_thread.shutdown()
    call, _ = new_call()
    call.give_up()
    asyncio.run(_choose_loop._run_in_new_loop(call, CurrentThreadExecutor(None)))
    call, inner = new_call()
    call._inner = asyncio.Event()  # type: ignore[assignment]  # which cannot be closed
    call.give_up()
    inner.close()


@pytest.mark.anyio
@only_asyncio
async def test_a_coroutine_that_its_loop_forgets_says_so() -> None:
    result: Future[Any] = Future()
    inner = asyncio.get_running_loop().create_future()
    work = async_to_sync(this_thread).main_wrap(result, (None, None, None), None, [contextvars.copy_context()], inner)
    work.send(None)
    work.close()

    assert isinstance(result.exception(0), LoopEndedError)


@pytest.mark.anyio
@only_asyncio
async def test_a_task_that_has_ended_is_not_told_of_a_cancellation() -> None:
    calls, told = NestedTasks(), dict[Any, int]()
    calls._cancel(asyncio.current_task(), told)  # type: ignore[arg-type]

    assert told == {}


@pytest.mark.anyio
@only_asyncio
async def test_a_call_that_has_ended_is_not_changed_by_its_executor() -> None:
    call = _threadcall.ThreadCall(asyncio.get_running_loop(), int)
    waiting = asyncio.create_task(call.wait())
    await asyncio.sleep(0)
    call.run()
    call.run()
    call.fail_unless_begun(ValueError())
    await waiting
    call.fail(ValueError())

    assert call.result() == 0


def test_a_worker_whose_loop_ends_waits_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object) -> None:
        raise LoopEndedError("the event loop has ended")

    monkeypatch.setattr(_currentthreadexecutor, "run_in_eventloop_sync", ended)

    assert not CurrentThreadExecutor(None).serve(lambda: False, lending=True)


def test_a_call_is_cancelled_if_its_executor_cancels_it() -> None:
    item, dropped = ExecutorCall(int), Future[Any]()
    item.end_with(dropped)
    assert not item.future.cancelled()
    dropped.cancel()
    item.end_with(dropped)
    assert item.future.cancelled()


def test_a_waiting_thread_that_is_interrupted_fails_the_calls_sent_to_it() -> None:
    caller = CurrentThreadExecutor(None)
    item = in_plain_thread(lambda: caller.submit(int))
    caller.finish()
    caller.close(interrupted=True)

    with pytest.raises(ExecutorError, match="interrupted"):
        item.result(0)
    with pytest.raises(RuntimeError, match="does not wait"):
        in_plain_thread(lambda: captured(lambda: caller.submit(int)))[1:] and caller.submit(int)


def test_a_call_sent_before_the_executor_closes_is_made() -> None:
    caller = CurrentThreadExecutor(None)
    caller.finish()
    assert caller.serve(lambda: False)
    future = in_plain_thread(lambda: caller.submit(int, "12"))
    caller.close(interrupted=False)

    assert future.result(0) == 12


def test_a_call_that_comes_too_late_goes_to_the_executor_above() -> None:
    outer = CurrentThreadExecutor(None)
    inner = CurrentThreadExecutor(outer)
    inner.close(interrupted=False)
    future = in_plain_thread(lambda: inner.submit(int, "12"))
    outer.close(interrupted=False)

    assert future.result(0) == 12


def test_a_pump_hands_on_to_asgirefs_own() -> None:
    parameters = inspect.signature(AsgirefsCurrentThreadExecutor).parameters
    theirs = AsgirefsCurrentThreadExecutor(*[None] * len(parameters))
    inner = CurrentThreadExecutor(theirs)
    inner.close(interrupted=False)
    future = in_plain_thread(lambda: inner.submit(int, "12"))
    until: Future[None] = Future()
    until.set_result(None)
    theirs.run_until_future(until)

    assert future.result(0) == 12


def test_a_cancelled_call_is_not_made() -> None:
    item = ExecutorCall(lambda: 1 / 0)
    assert item.future.cancel()
    item.run()
    dropped = ExecutorCall(int)
    assert dropped.future.cancel()
    dropped.fail_unless_begun(ValueError())
    failed = ExecutorCall(lambda: 1 / 0)
    failed.run()

    assert item.future.cancelled()
    with pytest.raises(ZeroDivisionError):
        failed.future.result(0)


def test_a_single_thread_executor_can_be_shut_down_like_any_executor() -> None:
    executor = SingleThreadExecutor()
    blocking = Blocking()
    first, second = executor.submit(blocking), executor.submit(int)
    assert blocking.started.wait(GRACE_SECONDS)
    executor.shutdown(wait=False, cancel_futures=True)
    blocking.may_end.set()
    executor.shutdown()

    assert first.result(0) == "a value that nobody waits for"
    with pytest.raises(ExecutorError, match="shut down"):
        second.result(0)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)


def test_the_thread_of_a_single_thread_executor_ends_with_it() -> None:
    executor = SingleThreadExecutor()
    thread = executor.submit(threading.current_thread).result(GRACE_SECONDS)
    del executor
    wait_for_the_end(thread)


@pytest.mark.anyio
@pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="needs trio")
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_where_no_thread_can_be_started_the_caller_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On asyncio the loop itself says so."""

    async def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("unfazed_compat.asgiref._loops.run_in_threadpool", refuse)
    with anyio.fail_after(GRACE_SECONDS), pytest.raises(RuntimeError, match="new thread"):
        await sync_to_async(int, thread_sensitive=False)()


@pytest.mark.anyio
async def test_an_executor_that_takes_nothing_for_another_reason_is_not_passed_over() -> None:
    """The next one would have the call in another thread."""

    class Full(ThreadPoolExecutor):
        def submit(self, *args: object, **kwargs: object) -> Any:
            raise RuntimeError("can't start new thread")

    AsyncToSync.executors.current = Full()
    try:
        with pytest.raises(RuntimeError, match="new thread"):
            await sync_to_async(int)()
    finally:
        del AsyncToSync.executors.current


@pytest.mark.anyio
async def test_a_context_ends_though_its_executor_has_been_shut_down() -> None:
    with ThreadPoolExecutor(1) as executor:
        async with ThreadSensitiveContext() as context:
            SyncToAsync.context_to_thread_executor[context] = executor
            assert await sync_to_async(int)() == 0
            executor.shutdown()
