"""Calls in worker threads that are cancelled, lose their loop, or get no thread."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from conftest import GRACE_SECONDS, Blocking, wait_until
from forcing import once_before
from interrupting import Alarm, raise_alarm

from unfazed.concurrency import (
    CallTimeoutError,
    LoopEndedError,
    count_abandoned_threads,
    in_threadpool,
    run_in_eventloop_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._eventloops import _background, _loops, _synccalls
from unfazed.concurrency._threads import _threadcall
from unfazed.concurrency._threads._threadcall import ThreadCall, ThreadOptions

if TYPE_CHECKING:
    from collections.abc import Callable


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


async def async_function() -> None:
    pytest.fail("must not run")


@pytest.mark.anyio
async def test_a_cancelled_call_waits_for_its_thread_and_raises(anyio_backend_name: str) -> None:
    blocking = Blocking()
    raised = False

    async def call() -> None:
        nonlocal raised
        try:
            await run_in_threadpool(blocking)
        except anyio.get_cancelled_exc_class():
            raised = blocking.ended
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            assert not raised
            blocking.may_end.set()

    assert raised


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_call_cancelled_by_asyncio_twice_waits_for_its_thread_and_raises() -> None:
    blocking = Blocking()
    task = asyncio.create_task(run_in_threadpool(blocking))
    await blocking.wait_until_started()

    for _ in range(2):
        task.cancel()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not task.done()
    blocking.may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert blocking.ended


@pytest.mark.anyio
async def test_a_call_cancelled_before_it_starts_never_starts() -> None:
    async with anyio.create_task_group() as tasks:
        tasks.cancel_scope.cancel()
        tasks.start_soon(run_in_threadpool, pytest.fail)


@pytest.mark.anyio
async def test_a_call_cancelled_while_it_queues_never_starts_and_leaves_the_queue() -> None:
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1
    blocking = Blocking()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, blocking)
        while not blocking.started.is_set():
            await anyio.sleep(0.001)
        async with anyio.create_task_group() as queued:
            for _ in range(3):
                queued.start_soon(run_in_threadpool, pytest.fail)
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            queued.cancel_scope.cancel()
        blocking.may_end.set()

    assert await run_in_threadpool(echo, 1) == ((1,), {})


@pytest.mark.anyio
async def test_what_the_thread_waits_for_is_cancelled_with_the_task(anyio_backend_name: str) -> None:
    sleeping = threading.Event()
    seen: list[str] = []

    async def sleep() -> None:
        try:
            sleeping.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                seen.append("cleanup awaited")

    def work() -> None:
        try:
            run_in_eventloop_sync(sleep)
        except BaseException as exc:
            seen.append(type(exc).__name__)
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, work)
        while not sleeping.is_set():
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()

    assert seen == ["cleanup awaited", "CancelledError" if anyio_backend_name == "asyncio" else "Cancelled"]


@pytest.mark.anyio
async def test_what_the_thread_waits_for_next_is_cancelled_too() -> None:
    blocking = Blocking()
    seen: list[str] = []

    async def sleep() -> None:
        await anyio.sleep_forever()

    def work() -> None:
        blocking()
        try:
            run_in_eventloop_sync(sleep)
        except BaseException as exc:
            seen.append(type(exc).__name__)
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, work)
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await anyio.sleep(0)
            await anyio.sleep(0)
            blocking.may_end.set()

    assert seen[0].startswith("Cancelled")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_on_asyncio_only_one_wait_of_a_cancelled_thread_is_cancelled() -> None:
    sleeping = threading.Event()
    results: list[str] = []

    async def sleep() -> None:
        sleeping.set()
        await anyio.sleep_forever()

    async def clean_up() -> str:
        await asyncio.sleep(0)
        return "clean"

    def work() -> None:
        try:
            run_in_eventloop_sync(sleep)
        finally:
            results.append(run_in_eventloop_sync(clean_up))

    task = asyncio.create_task(run_in_threadpool(work))
    while not sleeping.is_set():
        await anyio.sleep(0.001)
    task.cancel()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert results == ["clean"]


@pytest.mark.anyio
async def test_a_nested_call_in_a_thread_is_cancelled_and_waited_for() -> None:
    blocking = Blocking()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(partial(run_in_threadpool, run_in_threadpool_sync, blocking))
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            for _ in range(5):
                await anyio.lowlevel.checkpoint()
            blocking.may_end.set()

    assert blocking.ended


def test_threads_that_cannot_be_started_give_an_error_and_the_slot_back(
    background: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def no_more_threads(*args: object, **kwargs: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("unfazed.concurrency._threads._threadcall.to_thread.run_sync", no_more_threads)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            run_in_threadpool_sync(echo)

    assert run_in_threadpool_sync(echo, 1) == ((1,), {})


def test_a_worker_whose_loop_dropped_the_call_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """A loop that is closed forgets what was posted to it just before."""
    monkeypatch.setattr(_synccalls, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(_loops.AsyncioLoop, "_start", lambda self, call: None)
    monkeypatch.setattr(_loops.AsyncioLoop, "is_gone", lambda self: True)

    def work() -> None:
        with pytest.raises(LoopEndedError, match="the event loop of this call has ended"):
            run_in_eventloop_sync(async_function)

    anyio.run(run_in_threadpool, work)


@pytest.mark.anyio
async def test_a_worker_that_comes_after_the_cancellation_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: the call is handed to the worker. 2: it is cancelled. 3: only now does the worker get round to it."""
    late: list[Callable[[], object]] = []

    async def cancelled_before_the_start(work: Callable[[], object], **options: object) -> None:
        late.append(work)
        await anyio.sleep_forever()

    monkeypatch.setattr("unfazed.concurrency._threads._threadcall.to_thread.run_sync", cancelled_before_the_start)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, pytest.fail)
        while not late:
            await anyio.lowlevel.checkpoint()
        tasks.cancel_scope.cancel()

    late.pop()()


def test_a_worker_that_comes_after_the_end_of_the_loop_writes_no_answer(background: Any) -> None:
    answered: list[bool] = []

    def work() -> None:
        loop_thread = _background._background_thread
        assert loop_thread is not None
        (call,) = loop_thread._calls
        call.future.write(None, LoopEndedError("the loop has ended"))
        answered.append(True)

    with pytest.raises(LoopEndedError, match="the loop has ended"):
        run_in_threadpool_sync(work)
    wait_until(lambda: answered, "the worker ends")


@pytest.mark.anyio
async def test_what_the_thread_waits_for_through_anyio_is_cancelled_as_well() -> None:
    sleeping = threading.Event()
    seen: list[str] = []

    async def sleep() -> None:
        sleeping.set()
        await anyio.sleep_forever()

    def work() -> None:
        try:
            anyio.from_thread.run(sleep)
        except BaseException as exc:
            seen.append(type(exc).__name__)
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, work)
        while not sleeping.is_set():
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()

    assert seen[0].startswith("Cancelled")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_second_cancellation_is_not_hidden_by_a_scope_that_ends_the_first() -> None:
    """1: a scope cancels the call. 2: the task itself is cancelled. 3: the scope ends, and the task must not go on."""
    blocking = Blocking()
    first_is_there = asyncio.Event()

    async def work() -> None:
        with anyio.CancelScope() as scope:
            asyncio.get_running_loop().call_soon(first_is_there.set)
            scopes.append(scope)
            await run_in_threadpool(blocking)
        pytest.fail("the second cancellation is lost")

    scopes: list[anyio.CancelScope] = []
    task = asyncio.create_task(work())
    await blocking.wait_until_started()
    scopes[0].cancel()
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.sleep(0)
    blocking.may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await task


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_cancellation_that_comes_with_the_end_of_a_nested_call_reaches_the_next() -> None:
    async def cancel_the_task() -> None:
        task.cancel()

    def work() -> None:
        run_in_eventloop_sync(cancel_the_task)
        run_in_eventloop_sync(anyio.sleep_forever)

    for _ in range(20):
        task = asyncio.create_task(run_in_threadpool(work))
        await asyncio.wait([task], timeout=GRACE_SECONDS)
        assert task.cancelled()


@pytest.mark.anyio
async def test_calls_cancelled_before_their_thread_begins_leave_no_threads_behind() -> None:
    before = threading.active_count()

    for yields in range(100):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_threadpool, int)
            for _ in range(yields % 5):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()

    assert threading.active_count() < before + 30


@pytest.mark.parametrize("moment", ["the claim", "the end of the wait"])
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_signal_handler_that_raises_while_a_call_is_cancelled_leaves_the_slot_with_its_thread(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, moment: str, anyio_backend: str
) -> None:
    """1: the call is cancelled. 2: the handler raises, before or after the call is claimed. The function still runs."""
    name = "_claim" if moment == "the claim" else "cancel"
    monkeypatch.setattr(ThreadCall, name, once_before(getattr(ThreadCall, name), raise_alarm))
    blocking, limiter = Blocking(), anyio.CapacityLimiter(1)
    task = asyncio.create_task(in_threadpool(blocking, limiter=limiter)())
    await blocking.wait_until_started()

    task.cancel()
    await asyncio.wait([task])

    assert isinstance(task.exception(), Alarm)
    assert count_abandoned_threads() == 1
    with pytest.raises(CallTimeoutError, match="1 of 1 are taken"):
        await in_threadpool(int, limiter=limiter, timeout=0.05)()
    blocking.may_end.set()
    assert await in_threadpool(int, limiter=limiter)() == 0
    wait_until(lambda: count_abandoned_threads() == 0, "its thread ends")
    assert "All slots of a limiter belong to abandoned threads" in caplog.text


class LateSet(set[Any]):
    """Calls *before_add* before it adds something."""

    def __init__(self, before_add: Callable[[], object]) -> None:
        super().__init__()
        self._before_add = before_add

    def add(self, each: Any) -> None:
        self._before_add()
        super().add(each)


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["before it is claimed", "before it is noted", "afterwards"])
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_function_that_ends_while_it_is_abandoned_is_forgotten(
    monkeypatch: pytest.MonkeyPatch, when: str, anyio_backend: str
) -> None:
    """1: the call is to be abandoned. 2: its function ends. 3: the loop goes on with that."""
    blocking, limiter = Blocking(), anyio.CapacityLimiter(1)
    call = ThreadCall("in_threadpool", blocking, (), {}, ThreadOptions(limiter, abandon_on_cancel=True))

    def let_it_end() -> None:
        blocking.may_end.set()
        wait_until(lambda: call.slot is not None and call.slot.ended, "it does not end")

    abandon = ThreadCall._abandon

    def abandon_and_let_it_end(self: ThreadCall[Any], slot: Any) -> None:
        abandon(self, slot)
        let_it_end()

    if when == "before it is claimed":
        monkeypatch.setattr(ThreadCall, "_claim", once_before(once_before(ThreadCall._claim, let_it_end), raise_alarm))
    elif when == "before it is noted":
        monkeypatch.setattr(_threadcall, "_abandoned", LateSet(let_it_end))
    else:
        monkeypatch.setattr(ThreadCall, "_abandon", abandon_and_let_it_end)

    task = asyncio.ensure_future(call.run())
    await blocking.wait_until_started()
    task.cancel()
    with pytest.raises((asyncio.CancelledError, Alarm)):
        await task

    assert not count_abandoned_threads()
    assert await in_threadpool(int, limiter=limiter)() == 0
