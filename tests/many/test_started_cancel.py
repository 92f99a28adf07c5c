"""Cancelling calls that were started, and those who wait for them."""

from __future__ import annotations

import asyncio
import concurrent.futures
import inspect
import os
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import process_functions
import pytest
from anyio.lowlevel import checkpoint
from conftest import GRACE_SECONDS, Blocking, Caller, Gate, wait_until

from unfazed.concurrency import (
    EventLoopThread,
    Handle,
    LoopEndedError,
    count_abandoned_threads,
    in_executor,
    in_processpool,
    in_threadpool,
    run_in_eventloop_sync,
    start_in_eventloop,
    start_in_executor,
    start_in_processpool,
    start_in_threadpool,
)
from unfazed.concurrency._core import _limits
from unfazed.concurrency._core._calls import HANDLE
from unfazed.concurrency._core._futures import OneShotFuture, Start
from unfazed.concurrency._eventloops import _handle
from unfazed.concurrency._eventloops._started import LoopCall
from unfazed.concurrency._executors._call import ExecutorCall
from unfazed.concurrency._processes import _call, _child, _worker
from unfazed.concurrency._processes._started import StartedCall

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TIMEOUT = GRACE_SECONDS

pytestmark = pytest.mark.usefixtures("background")


def never() -> None:
    raise AssertionError("it was to be kept from beginning")


async def never_async() -> None:
    never()


@pytest.fixture
def limiter() -> Iterator[anyio.CapacityLimiter]:
    """Give a limiter of which a call has the only slot."""
    blocking, limiter = Blocking(), anyio.CapacityLimiter(1)
    handle = in_threadpool(blocking, limiter=limiter).start()
    assert blocking.started.wait(TIMEOUT)
    yield limiter
    blocking.may_end.set()
    handle.result(TIMEOUT)


def require_cancelled(handle: Handle[Any]) -> None:
    """Demand that *handle* is cancelled, and that everybody is told."""
    assert handle.cancelled()
    assert handle.done()
    assert not handle.running()
    assert "cancelled" in repr(handle)
    assert handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(0)
    with pytest.raises(CancelledError):
        handle.exception(0)
    assert concurrent.futures.wait([handle], TIMEOUT).done == {handle}


# What has not begun


def test_a_thread_that_waits_for_its_slot_never_begins(limiter: anyio.CapacityLimiter) -> None:
    handle = in_threadpool(never, limiter=limiter).start()
    assert not handle.running()

    assert handle.cancel()
    require_cancelled(handle)
    wait_until(lambda: not _limits.limits[id(limiter)].queue, "it queues on")


def test_a_process_that_waits_for_its_slot_never_begins(limiter: anyio.CapacityLimiter) -> None:
    handle = in_processpool(process_functions.kill_own_process, limiter=limiter).start()

    assert handle.cancel()
    require_cancelled(handle)
    wait_until(lambda: not _limits.limits[id(limiter)].queue, "it queues on")


@pytest.mark.parametrize("kill_on_cancel", [False, True])
def test_a_process_that_waits_for_its_worker_never_begins(
    monkeypatch: pytest.MonkeyPatch, kill_on_cancel: bool
) -> None:
    gate = Gate()
    child = _child.Child

    def start_late() -> Any:
        gate.wait()
        return child()

    monkeypatch.setattr(_worker, "Child", start_late)
    handle = in_processpool(process_functions.kill_own_process, kill_on_cancel=kill_on_cancel).start()
    assert gate.reached.wait(TIMEOUT)

    assert handle.cancel()
    require_cancelled(handle)
    gate.opened.set()
    assert start_in_processpool(process_functions.echo, 1).result(TIMEOUT) == ((1,), {})


def test_what_waits_in_an_executor_never_begins() -> None:
    gate = Gate()
    with ThreadPoolExecutor(1) as executor:
        first = start_in_executor(executor, gate.wait)
        assert gate.reached.wait(TIMEOUT)
        handle = in_executor(executor, never).start()
        wait_until(lambda: executor._work_queue.qsize() == 1, "it is not submitted")

        assert handle.cancel()
        require_cancelled(handle)
        assert not first.cancel()
        gate.opened.set()
        assert first.result(TIMEOUT) is None


def test_what_waits_for_a_busy_loop_never_begins(caller: Caller) -> None:
    """The loop runs nothing: neither a coroutine, nor what submits to an executor, nor what takes a slot."""
    gate = Gate()

    async def block() -> None:
        gate.wait()

    async def start_and_cancel_in_async_code(starts: Any) -> list[Any]:
        return start_and_cancel(starts)

    def start_and_cancel(starts: list[Callable[[], Handle[Any]]]) -> list[Handle[Any]]:
        handles = [start() for start in starts]
        assert all(handle.cancel() for handle in handles)
        return handles

    coroutine = never_async()
    with ThreadPoolExecutor(1) as executor:
        starts: list[Callable[[], Handle[Any]]] = [
            lambda: start_in_eventloop(never_async),
            lambda: start_in_eventloop(coroutine),
            lambda: start_in_executor(executor, never),
            lambda: in_threadpool(never, timeout=TIMEOUT).start(),
            lambda: start_in_processpool(process_functions.kill_own_process),
        ]
        busy = start_in_eventloop(block)
        assert gate.reached.wait(TIMEOUT)
        make = start_and_cancel_in_async_code if caller.kind == "async" else start_and_cancel
        handles = caller.make(partial(make, starts))
        for handle in handles:
            assert handle.cancelled()
        assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
        gate.opened.set()
        for handle in handles:
            require_cancelled(handle)
        assert busy.result(TIMEOUT) is None


# What runs


def test_a_thread_that_runs_goes_on() -> None:
    blocking = Blocking()
    handle = start_in_threadpool(blocking)
    assert blocking.started.wait(TIMEOUT)

    assert not handle.cancel()
    assert handle.running()
    blocking.may_end.set()
    assert handle.result(TIMEOUT) == "a value that nobody waits for"
    assert not handle.cancel()


def test_a_thread_that_may_be_abandoned_is() -> None:
    blocking = Blocking()
    handle = in_threadpool(blocking, abandon_on_cancel=True).start()
    assert blocking.started.wait(TIMEOUT)

    assert handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(TIMEOUT)
    require_cancelled(handle)
    assert count_abandoned_threads() == 1
    blocking.may_end.set()
    wait_until(lambda: not count_abandoned_threads(), "it never ends")


def test_a_process_that_runs_goes_on(tmp_path: Path) -> None:
    begun, may_end = tmp_path / "begun", tmp_path / "may end"
    handle = start_in_processpool(process_functions.touch_then_wait_for, begun, may_end)
    wait_until(begun.exists, "it never begins")

    assert not handle.cancel()
    assert handle.running()
    may_end.touch()
    assert handle.result(TIMEOUT)


def test_a_process_that_may_be_killed_is(tmp_path: Path) -> None:
    begun = tmp_path / "begun"
    handle = in_processpool(process_functions.touch_then_wait_for, kill_on_cancel=True).start(begun, tmp_path / "never")
    wait_until(begun.exists, "it never begins")

    assert handle.cancel()
    with pytest.raises(CancelledError):
        handle.result(TIMEOUT)
    require_cancelled(handle)
    assert start_in_processpool(os.getpid).result(TIMEOUT) != os.getpid()


def test_a_coroutine_that_runs_is_cancelled_and_cleans_up() -> None:
    begun, gate = threading.Event(), Gate()
    done: list[str] = []

    async def wait() -> None:
        try:
            begun.set()
            await anyio.sleep(TIMEOUT)
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(gate.wait)
            done.append("cleaned up")

    handle = start_in_eventloop(wait)
    assert begun.wait(TIMEOUT)
    assert handle.cancel()
    assert gate.reached.wait(TIMEOUT)
    assert not handle.done()
    assert handle.cancel()  # again, which changes nothing
    gate.opened.set()

    with pytest.raises(CancelledError):
        handle.result(TIMEOUT)
    assert done == ["cleaned up"]
    require_cancelled(handle)


def test_a_coroutine_whose_children_are_cancelled_with_it_is_cancelled() -> None:
    begun = threading.Event()

    async def wait() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(anyio.sleep, TIMEOUT)
            begun.set()
            await anyio.sleep(TIMEOUT)

    handle = start_in_eventloop(wait)
    assert begun.wait(TIMEOUT)
    assert handle.cancel()

    assert concurrent.futures.wait([handle], TIMEOUT).done
    require_cancelled(handle)


def test_an_error_of_the_cleanup_is_the_error_of_the_call() -> None:
    begun = threading.Event()

    async def wait() -> None:
        try:
            begun.set()
            await anyio.sleep(TIMEOUT)
        finally:
            raise ZeroDivisionError("in the cleanup")

    handle = start_in_eventloop(wait)
    assert begun.wait(TIMEOUT)
    assert handle.cancel()

    with pytest.raises(ZeroDivisionError, match="in the cleanup"):
        handle.result(TIMEOUT)
    assert not handle.cancel()
    assert not handle.cancelled()


def test_a_coroutine_that_swallows_its_cancellation_has_a_result() -> None:
    begun = threading.Event()

    async def wait() -> str:
        try:
            begun.set()
            await asyncio.sleep(TIMEOUT)
        except asyncio.CancelledError:
            return "swallowed"
        raise AssertionError

    with EventLoopThread() as loop:
        handle = loop.start(wait)
        assert begun.wait(TIMEOUT)
        assert handle.cancel()
        assert handle.result(TIMEOUT) == "swallowed"


# Those who wait


def test_who_awaits_and_is_cancelled_stops_waiting(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    gate = Gate()
    handle = start_in_threadpool(gate.wait)

    async def main() -> None:
        with anyio.move_on_after(0.01) as scope:
            await handle
        assert scope.cancelled_caught
        assert not handle._wakers
        handle_of_loop = start_in_eventloop(anyio.sleep, TIMEOUT)
        with anyio.move_on_after(0.01):
            await handle_of_loop
        assert not handle_of_loop.done()
        handle_of_loop.cancel()
        with pytest.raises(CancelledError):
            await handle_of_loop
        with pytest.raises(CancelledError):  # an ordinary exception: it cannot pass for the cancellation of this task
            await handle_of_loop
        assert not isinstance(CancelledError(), anyio.get_cancelled_exc_class())
        await checkpoint()

    backend, options = anyio_backend
    anyio.run(main, backend=backend, backend_options=options)

    assert not handle.done()
    gate.opened.set()
    assert handle.result(TIMEOUT) is None


def test_cancelling_a_wrapped_future_cancels_the_call() -> None:
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await anyio.sleep(TIMEOUT)

    async def main() -> None:
        wrapped = asyncio.wrap_future(handle)
        wrapped.cancel()
        await asyncio.wait([wrapped])

    handle = start_in_eventloop(wait)
    assert begun.wait(TIMEOUT)
    asyncio.run(main())

    assert concurrent.futures.wait([handle], TIMEOUT).done
    require_cancelled(handle)


def test_cancelling_wakes_those_who_wait_in_threads() -> None:
    handle = start_in_eventloop(anyio.sleep, TIMEOUT)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(handle.exception) for _ in range(2)]
        wait_until(lambda: len(handle._wakers) == 2, "nobody waits")
        handle.cancel()
        for each in waiting:
            with pytest.raises(CancelledError):
                each.result(TIMEOUT)


# Who comes first


def test_a_call_that_ends_while_it_is_cancelled_keeps_its_result() -> None:
    """1: `cancel` looks whether it is done. 2: it ends. 3: `cancel` goes on."""
    blocking = Blocking()
    handle = start_in_threadpool(blocking)
    assert blocking.started.wait(TIMEOUT)
    running = handle._running
    assert running is not None
    blocking.may_end.set()
    assert handle.result(TIMEOUT)
    handle._running = running

    assert not handle.cancel()
    assert handle.result() == "a value that nobody waits for"
    handle._running = None
    handle._settle()  # again: a signal handler has interrupted whoever wrote the future
    assert handle.result() == "a value that nobody waits for"


def test_a_loop_that_is_gone_wakes_who_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Something has ended the loop in such a way that nobody has told the call."""
    monkeypatch.setattr("unfazed.concurrency._eventloops._handle.CHECK_SECONDS", 0.01)
    with EventLoopThread() as loop:
        handle = loop.start(anyio.sleep, TIMEOUT)
        running = handle._running
        assert running is not None
        wait_until(handle.running, "it never begins")
        monkeypatch.setattr(running.task, "fail_if_gone", lambda: running.task.future.write(None, None))
        assert handle.result(TIMEOUT) is None


def test_a_process_call_is_cancelled_while_its_loop_makes_it_ready() -> None:
    """1: the handle claims the call. 2: the loop says who gets the answer. 3: each sees the other."""

    async def in_loop() -> tuple[bool, bool]:
        call = _call.ProcessCall("start_in_processpool", os.getpid, (), {})
        started = StartedCall(call)
        call.slot = _limits.Slot(anyio.CapacityLimiter(1))
        assert started.prevent_start()
        assert started.prevent_start()
        future = OneShotFuture[Any]()
        call.expect(future)
        assert not started.has_begun()
        started.tell_cancelled()
        return future.done, started.is_prevented()

    assert run_in_eventloop_sync(in_loop) == (True, True)


def test_a_process_call_that_was_kept_from_beginning_needs_no_kill() -> None:
    """1: the handle has claimed the call, and told nobody. 2: the loop ends, and kills its calls."""
    call = _call.ProcessCall("in_processpool", os.getpid, (), {}, _call.CallOptions(kill_on_cancel=True))
    call.expect_handle()
    call.slot = _limits.Slot(anyio.CapacityLimiter(1))
    future = OneShotFuture[Any]()
    call.expect(future)
    call._start.prevent()
    call.cancel()

    assert future.done
    assert not call.has_begun()


def test_what_ends_just_before_the_wait_is_seen() -> None:
    handle = start_in_threadpool(len, "12345678")
    assert handle.result(TIMEOUT) == 8

    asyncio.run(handle._wait_in_loop())  # its caller has looked before


def test_a_worker_whose_loop_has_just_ended_does_not_wait() -> None:
    with pytest.raises(LoopEndedError, match="the event loop of this worker thread has ended"):
        _handle._no_loop(None, None)  # type: ignore[arg-type]


def test_who_is_interrupted_while_it_starts_a_call_cancels_it() -> None:
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await anyio.sleep(TIMEOUT)

    def submit(task: Any, context: Any) -> None:
        tasks.append(task)
        loop._submit(task, context)
        assert begun.wait(TIMEOUT)
        raise KeyboardInterrupt

    def read(future: Any) -> None:
        future.read()

    tasks: list[Any] = []
    handles: list[Handle[None]] = []
    with EventLoopThread() as loop:
        call = LoopCall(wait)
        with pytest.raises(KeyboardInterrupt):
            _handle.start_call(call, call.run, wait, submit, read, handles.append)
        wait_until(handles[0].cancelled, "it goes on, or has an error")


def test_what_was_prevented_is_not_submitted_to_its_executor() -> None:
    """1: the loop begins the call. 2: its handle prevents it. 3: the loop is about to submit it."""
    with ThreadPoolExecutor(1) as executor:
        call = ExecutorCall("start_in_executor", executor, never, (), {})
        call._start, call.waiter = Start(), HANDLE
        assert call.prevent_start()
        assert not run_in_eventloop_sync(call.run).done
        assert call.is_prevented()
