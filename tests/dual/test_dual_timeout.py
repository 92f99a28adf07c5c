"""The timeout of dual callables."""

from __future__ import annotations

import asyncio
import math
import os
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import decorated_functions as decorated
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, Blocking, Caller, captured_async, let_others_run, until_begun, wait_until
from processes import is_dead
from waiting import occupied, queued, wait_for

from unfazed.concurrency import (
    CallTimeoutError,
    count_abandoned_threads,
    in_eventloop,
    in_executor,
    in_processpool,
    in_threadpool,
    run_in_eventloop_sync,
    run_in_processpool,
)
from unfazed.concurrency._core import _slots

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SOON = 0.05  # seconds: a timeout that is waited for
LATER = 2.0  # seconds: the same, after something else, which may take a busy machine long
LATE = 600  # seconds: one that is not

Backend = tuple[str, "dict[str, Any]"]
only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


@pytest.fixture
def one_thread() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(max_workers=1) as executor:
        yield executor


# Timeouts


def test_the_error_names_the_function_and_the_seconds(caller: Caller) -> None:
    blocking = Blocking()

    def work() -> None:
        blocking()

    for seconds in until_begun(count_abandoned_threads):
        with pytest.raises(CallTimeoutError) as caught:
            caller.dual(in_threadpool(work, timeout=seconds))
    blocking.may_end.set()

    assert isinstance(caught.value, TimeoutError)
    assert str(caught.value) == f"work() has not ended within {seconds} seconds"
    assert (caught.value.name, caught.value.seconds) == ("work", seconds)
    wait_until(lambda: count_abandoned_threads() == 0, "the thread ends")


def test_the_thread_of_a_call_that_is_late_is_abandoned(caller: Caller) -> None:
    blocking, limiter = Blocking(), anyio.CapacityLimiter(1)

    for seconds in until_begun(count_abandoned_threads):
        with pytest.raises(CallTimeoutError):
            caller.dual(in_threadpool(blocking, timeout=seconds, limiter=limiter))
    seen = count_abandoned_threads(), occupied(limiter), blocking.ended
    blocking.may_end.set()

    assert seen == (1, 1, False)
    wait_until(lambda: (count_abandoned_threads(), occupied(limiter)) == (0, 0), "the thread ends")


def test_a_call_that_is_late_while_it_waits_for_a_slot_never_starts(caller: Caller) -> None:
    limiter = anyio.CapacityLimiter(1)
    slot = _slots.acquire(limiter, lambda: True)

    try:
        with pytest.raises(CallTimeoutError):
            caller.dual(in_threadpool(pytest.fail, timeout=SOON, limiter=limiter), "must not run")
        with pytest.raises(CallTimeoutError):
            caller.dual(in_processpool(functions.end_at_once, timeout=SOON, limiter=limiter), 3)
        assert queued(limiter) == 0
    finally:
        _slots.release(slot)


def test_a_call_that_is_late_in_the_queue_of_an_executor_never_starts(
    caller: Caller, one_thread: ThreadPoolExecutor
) -> None:
    blocking = Blocking()
    future = one_thread.submit(blocking)

    with pytest.raises(CallTimeoutError, match=r"fail\(\)"):
        caller.dual(in_executor(one_thread, functions.fail, timeout=SOON), AssertionError("must not run"))

    blocking.may_end.set()
    assert future.result(GRACE_SECONDS)


def test_what_runs_in_an_executor_and_is_late_runs_on_unseen(caller: Caller, one_thread: ThreadPoolExecutor) -> None:
    blocking = Blocking()

    for seconds in until_begun(blocking.started.is_set):
        with pytest.raises(CallTimeoutError, match="Blocking"):
            caller.dual(in_executor(one_thread, blocking, timeout=seconds))
    ended_early = blocking.ended
    blocking.may_end.set()

    assert not ended_early
    assert one_thread.submit(lambda: blocking.ended).result(GRACE_SECONDS)


@pytest.mark.anyio
async def test_the_process_of_a_call_that_is_late_is_killed_and_replaced(tmp_path: Path) -> None:
    started, never = tmp_path / "started", tmp_path / "never"
    pid = await run_in_processpool(os.getpid)

    for seconds in until_begun(started.exists):
        with pytest.raises(CallTimeoutError, match="touch_then_wait_for"):
            await in_processpool(functions.touch_then_wait_for, timeout=seconds)(started, never)

    assert await run_in_processpool(os.getpid) != pid
    wait_until(lambda: is_dead(pid), "the worker is killed")


def test_the_process_of_a_sync_call_that_is_late_is_killed_and_replaced(background: Backend, tmp_path: Path) -> None:
    started, never = tmp_path / "started", tmp_path / "never"
    pid = decorated.add.sync(1)[1]

    for seconds in until_begun(started.exists):
        with pytest.raises(CallTimeoutError, match="touch_then_wait_for"):
            in_processpool(functions.touch_then_wait_for, timeout=seconds).sync(started, never)

    assert decorated.add.sync(1)[1] != pid


def test_the_timeout_includes_the_start_of_a_worker_process(caller: Caller, tmp_path: Path) -> None:
    with pytest.raises(CallTimeoutError):
        caller.dual(in_processpool(functions.touch_then_wait_for, timeout=0.001), tmp_path / "a", tmp_path / "never")


def test_a_coroutine_that_is_late_is_cancelled_once_and_its_cleanup_awaited(caller: Caller) -> None:
    shielded = caller.backend[0] == "trio"  # which cancels every wait
    seen: list[str] = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            seen.append("cancelled")
            with anyio.CancelScope(shield=shielded):
                await let_others_run()
                await anyio.sleep(SOON)
            seen.append("cleaned up")
            raise

    for seconds in until_begun(lambda: seen):
        with pytest.raises(CallTimeoutError, match=r"work\(\)"):
            caller.dual(in_eventloop(work, timeout=seconds))

    assert seen == ["cancelled", "cleaned up"]


def test_the_async_code_that_a_late_thread_waits_for_is_cancelled(caller: Caller) -> None:
    seen: list[str] = []
    begun, ended = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        try:
            run_in_eventloop_sync(anyio.sleep_forever)
        except BaseException as exc:
            seen.append(type(exc).__name__)
        ended.set()

    def call() -> None:
        for seconds in until_begun(begun.is_set):
            with pytest.raises(CallTimeoutError):
                in_threadpool(work, timeout=seconds).sync()
        assert ended.wait(GRACE_SECONDS)

    caller("threadpool", call)

    assert seen[0].startswith("Cancelled")
    wait_until(lambda: count_abandoned_threads() == 0, "the thread ends")


def wrapped_with(timeout: float, executor: ThreadPoolExecutor) -> dict[str, Any]:
    async def async_echo(*args: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return args, {}

    return {
        "threadpool": in_threadpool(functions.echo, timeout=timeout),
        "processpool": in_processpool(functions.echo, timeout=timeout),
        "executor": in_executor(executor, functions.echo, timeout=timeout),
        "eventloop": in_eventloop(async_echo, timeout=timeout),
    }


@pytest.mark.parametrize("place", ["threadpool", "processpool", "executor", "eventloop"])
def test_who_is_fast_enough_returns_its_value(caller: Caller, one_thread: ThreadPoolExecutor, place: str) -> None:
    for timeout in (LATE, math.inf):
        assert caller.dual(wrapped_with(timeout, one_thread)[place], 1) == ((1,), {})


def test_a_timeout_of_zero_is_too_late_at_once(caller: Caller, one_thread: ThreadPoolExecutor) -> None:
    async def async_fail() -> None:
        pytest.fail("must not run")

    def fail() -> None:
        pytest.fail("must not run")

    for dual in (
        in_threadpool(fail, timeout=0),
        in_executor(one_thread, fail, timeout=0),
        in_eventloop(async_fail, timeout=0),
    ):
        with pytest.raises(CallTimeoutError, match="within 0 seconds"):
            caller.dual(dual)
    assert one_thread.submit(int).result(GRACE_SECONDS) == 0


def test_a_timeout_error_of_the_function_itself_comes_back_as_itself(caller: Caller) -> None:
    error = TimeoutError("of the function")

    with pytest.raises(TimeoutError) as caught:
        caller.dual(in_threadpool(functions.fail, timeout=LATE), error)

    assert caught.value is error


# Cancelled while there is a timeout


@pytest.mark.anyio
async def test_a_cancelled_call_with_a_timeout_waits_for_its_thread() -> None:
    blocking = Blocking()
    outcome: list[Any] = []

    async def call() -> None:
        try:
            await in_threadpool(blocking, timeout=LATE)()
        finally:
            outcome.append(blocking.ended)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await let_others_run()
            assert not outcome
            blocking.may_end.set()

    assert outcome == [True]


@pytest.mark.anyio
async def test_a_cancelled_call_with_a_timeout_waits_no_longer_than_that_and_raises_the_cancellation() -> None:
    blocking = Blocking()
    errors: list[BaseException | None] = []

    async def call() -> None:
        _, error = await captured_async(in_threadpool(blocking, timeout=LATER))
        errors.append(error)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()

    assert isinstance(errors[0], anyio.get_cancelled_exc_class())
    assert (count_abandoned_threads(), blocking.ended) == (1, False)
    blocking.may_end.set()
    wait_until(lambda: count_abandoned_threads() == 0, "the thread ends")


@pytest.mark.anyio
@only_asyncio
async def test_a_call_cancelled_by_asyncio_twice_waits_no_longer_than_its_timeout() -> None:
    blocking = Blocking()
    task = asyncio.create_task(in_threadpool(blocking, timeout=LATER)())
    await blocking.wait_until_started()

    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)

    with pytest.raises(asyncio.CancelledError):
        await task
    assert count_abandoned_threads() == 1
    blocking.may_end.set()
    wait_until(lambda: count_abandoned_threads() == 0, "the thread ends")


@pytest.mark.anyio
async def test_a_cancelled_call_kills_its_process_when_its_timeout_is_over(tmp_path: Path) -> None:
    started, never = tmp_path / "started", tmp_path / "never"
    pid = await run_in_processpool(os.getpid)
    errors: list[BaseException | None] = []

    async def call() -> None:
        dual = in_processpool(functions.touch_then_wait_for, timeout=LATER)
        errors.append((await captured_async(partial(dual, started, never)))[1])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await wait_for(started)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await let_others_run()
            assert not errors

    assert isinstance(errors[0], anyio.get_cancelled_exc_class())
    assert await run_in_processpool(os.getpid) != pid


@pytest.mark.anyio
async def test_a_cancelled_call_with_a_timeout_waits_for_its_executor_no_longer_than_that(
    one_thread: ThreadPoolExecutor,
) -> None:
    blocking = Blocking()
    errors: list[BaseException | None] = []

    async def call() -> None:
        errors.append((await captured_async(in_executor(one_thread, blocking, timeout=LATER)))[1])

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()

    ended_early = blocking.ended
    blocking.may_end.set()
    assert isinstance(errors[0], anyio.get_cancelled_exc_class())
    assert not ended_early


@pytest.mark.anyio
async def test_a_cancelled_coroutine_with_a_timeout_raises_the_cancellation() -> None:
    sleeping = anyio.Event()

    async def sleep() -> None:
        sleeping.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_eventloop(sleep, timeout=LATE))
        await sleeping.wait()
        tasks.cancel_scope.cancel()


@pytest.mark.anyio
@only_asyncio
async def test_a_cancellation_that_comes_during_the_cleanup_of_a_late_coroutine_is_not_lost() -> None:
    cleaning = asyncio.Event()

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            cleaning.set()
            await anyio.sleep_forever()

    task = asyncio.create_task(in_eventloop(work, timeout=SOON)())
    with anyio.fail_after(GRACE_SECONDS):
        await cleaning.wait()
    task.cancel()
    await asyncio.wait([task], timeout=GRACE_SECONDS)

    assert task.done()
    assert task.cancelled() or sys.version_info < (3, 11)  # where nobody counts cancellations


@pytest.mark.anyio
async def test_a_scope_around_a_call_and_its_timeout_do_not_take_each_other_for_themselves() -> None:
    async def work() -> None:
        await anyio.sleep_forever()

    with anyio.CancelScope() as outer:
        with pytest.raises(CallTimeoutError):
            await in_eventloop(work, timeout=SOON)()
        with pytest.raises(CallTimeoutError):
            await in_threadpool(time.sleep, timeout=0)(SOON)
        await anyio.lowlevel.checkpoint()

    assert not outer.cancelled_caught
