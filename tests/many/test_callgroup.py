"""Groups of calls: they end together, and what fails in one cancels the others."""

from __future__ import annotations

import gc
import inspect
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import process_functions
import pytest
from anyio.lowlevel import checkpoint
from conftest import GRACE_SECONDS, Blocking, Caller, Gate, captured, wait_until
from test_started_cancel import never, never_async

from unfazed.concurrency import (
    CallGroup,
    EventLoopThread,
    Handle,
    LoopStateError,
    LoopThreadError,
    WrongFunctionError,
    count_abandoned_threads,
    in_processpool,
    in_threadpool,
    run_in_eventloop_sync,
    start_in_threadpool,
)

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

if sys.version_info < (3, 11):
    from exceptiongroup import BaseExceptionGroup, ExceptionGroup

TIMEOUT = GRACE_SECONDS

pytestmark = pytest.mark.usefixtures("background")


@pytest.fixture
def backend(anyio_backend: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"backend": anyio_backend[0], "backend_options": anyio_backend[1]}


async def fetch(value: Any) -> Any:
    await checkpoint()
    return value


def fail(text: str = "from the function") -> None:
    raise ZeroDivisionError(text)


def error_of(call: Callable[[], object]) -> BaseException:
    _, error = captured(call)
    assert error is not None
    return error


def texts(group: BaseException) -> list[str]:
    assert isinstance(group, BaseExceptionGroup)
    assert group.message == "errors in a CallGroup"
    return sorted(map(str, group.exceptions))


class Waits:
    """An async function that waits until it is cancelled, and cleans up."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cleaned_up = False

    async def __call__(self) -> None:
        try:
            self.begun.set()
            await anyio.sleep(TIMEOUT)
        finally:
            self.cleaned_up = True


# In good order


def test_leaving_waits_for_all_calls_in_all_places(caller: Caller) -> None:
    def start(group: CallGroup) -> list[Handle[Any]]:
        return [
            group.start_in_threadpool(process_functions.echo, 1, func=2),
            group.start_in_processpool(process_functions.echo, 1, self=2),
            group.start_in_executor(executor, process_functions.echo, 1, executor=2),
            group.start_in_eventloop(fetch, value=3),
            group.start_in_eventloop(fetch(4)),
            group.add(in_threadpool(len).start("five!")),
            group.add(loop.start(fetch, 6)),
        ]

    def in_sync_code() -> list[Any]:
        with CallGroup() as group:
            handles = start(group)
        assert all(handle.done() for handle in handles)
        assert repr(group) == "<CallGroup, left, 0 calls>"
        return [handle.result() for handle in handles]

    async def in_async_code() -> list[Any]:
        async with CallGroup() as group:
            handles = start(group)
        assert all(handle.done() for handle in handles)
        return [handle.result() for handle in handles]

    with ThreadPoolExecutor(1) as executor, EventLoopThread() as loop:
        results = caller.make(in_async_code if caller.kind == "async" else in_sync_code)

    of_echo = [((1,), {name: 2}) for name in ("func", "self", "executor")]
    assert results == [*of_echo, 3, 4, 5, 6]


def test_an_empty_group_waits_for_nothing(backend: dict[str, Any]) -> None:
    async def main() -> None:
        async with CallGroup():
            pass

    with CallGroup() as group:
        assert repr(group) == "<CallGroup, open, 0 calls>"
    anyio.run(main, **backend)
    assert "add" in dir(group)
    assert "_members" not in dir(group)


def test_the_calls_of_a_group_start_more() -> None:
    ended: list[int] = []

    def count(left: int) -> None:
        if left:
            group.start_in_threadpool(count, left - 1)
        ended.append(left)

    with CallGroup() as group:
        group.start_in_threadpool(count, 20)

    assert sorted(ended) == list(range(21))


def test_a_call_that_starts_another_while_the_group_is_being_left() -> None:
    """1: the group waits. 2: its only call ends, and another joins before the group has seen that."""
    gate, joined = Gate(), list[Handle[Any]]()

    def start_another(_: Any) -> None:
        joined.append(group.start_in_threadpool(len, "abc"))

    group = CallGroup()
    with group:
        handle = group.start_in_threadpool(gate.wait)
        group._members.add(handle)
        handle.add_done_callback(start_another)
        threading.Timer(0.01, gate.opened.set).start()

    assert joined[0].result(0) == 3


@pytest.mark.anyio
async def test_a_group_in_a_worker_needs_no_second_slot() -> None:
    limiter = anyio.CapacityLimiter(1)

    def depth(levels: int) -> int:
        if levels == 0:
            return 0
        with CallGroup() as group:
            handles = [group.add(in_threadpool(depth, limiter=limiter).start(levels - 1)) for _ in range(2)]
        return 1 + max(handle.result() for handle in handles)

    assert await in_threadpool(depth, limiter=limiter)(4) == 4


# Errors


def test_the_first_error_cancels_the_others(caller: Caller, tmp_path: Path) -> None:
    waits, running, abandoned = Waits(), Blocking(), Blocking()
    begun = tmp_path / "begun"
    limiter = anyio.CapacityLimiter(1)
    handles: dict[str, Handle[Any]] = {}

    def start(group: CallGroup) -> None:
        handles["waits"] = group.start_in_eventloop(waits)
        handles["running"] = group.add(in_threadpool(running, limiter=limiter).start())
        assert running.started.wait(TIMEOUT)
        handles["queued"] = group.add(in_threadpool(never, limiter=limiter).start())
        handles["abandoned"] = group.add(in_threadpool(abandoned, abandon_on_cancel=True).start())
        kill = in_processpool(process_functions.touch_then_wait_for, kill_on_cancel=True)
        handles["killed"] = group.add(kill.start(begun, tmp_path / "never"))
        assert waits.begun.wait(TIMEOUT)
        assert abandoned.started.wait(TIMEOUT)
        wait_until(begun.exists, "the process never begins")
        handles["fails"] = group.start_in_threadpool(fail)
        threading.Timer(0.05, running.may_end.set).start()

    def in_sync_code() -> None:
        with CallGroup() as group:
            start(group)

    async def in_async_code() -> None:
        async with CallGroup() as group:
            start(group)
            await anyio.sleep(TIMEOUT)

    with pytest.raises(ExceptionGroup) as caught:
        caller.make(in_async_code if caller.kind == "async" else in_sync_code)

    assert texts(caught.value) == ["from the function"]
    assert waits.cleaned_up
    assert running.ended
    assert handles["running"].result() == "a value that nobody waits for"
    assert all(handles[each].cancelled() for each in ("waits", "queued", "abandoned", "killed"))
    abandoned.may_end.set()
    wait_until(lambda: not count_abandoned_threads(), "it never ends")


def test_all_errors_are_raised_as_one_group() -> None:
    gate = Gate()

    def fail_late() -> None:
        gate.wait()
        fail("late")

    async def fail_in_cleanup() -> None:
        try:
            begun.set()
            await anyio.sleep(TIMEOUT)
        finally:
            gate.opened.set()
            fail("in the cleanup")

    begun = threading.Event()
    group = CallGroup()

    def run() -> None:
        with group:
            group.start_in_threadpool(fail_late)
            group.start_in_eventloop(fail_in_cleanup)
            assert begun.wait(TIMEOUT)
            assert gate.reached.wait(TIMEOUT)
            fail("in the body")

    assert texts(error_of(run)) == ["in the body", "in the cleanup", "late"]
    assert not group._errors


def test_what_is_no_exception_makes_a_base_exception_group() -> None:
    def leave() -> None:
        raise SystemExit(3)

    with pytest.raises(BaseExceptionGroup) as caught, CallGroup() as group:
        group.start_in_threadpool(leave)

    assert not isinstance(caught.value, ExceptionGroup)
    assert texts(caught.value) == ["3"]


def test_what_joins_a_group_that_has_failed_never_begins(caller: Caller) -> None:
    coroutine = never_async()

    def start(group: CallGroup) -> list[Handle[Any]]:
        failed = group.start_in_threadpool(fail)
        wait_until(lambda: failed.done() and group._failed, "it does not fail")
        handles: list[Handle[Any]] = [
            group.start_in_threadpool(never),
            group.start_in_processpool(process_functions.kill_own_process),
            group.start_in_executor(executor, never),
            group.start_in_eventloop(never_async),
            group.start_in_eventloop(coroutine),
        ]
        assert "failed" in repr(group)
        return handles

    def in_sync_code() -> None:
        with CallGroup() as group:
            handles.extend(start(group))

    async def in_async_code() -> None:
        async with CallGroup() as group:
            handles.extend(start(group))

    handles: list[Handle[Any]] = []
    with ThreadPoolExecutor(1) as executor, pytest.raises(ExceptionGroup) as caught:
        caller.make(in_async_code if caller.kind == "async" else in_sync_code)

    assert texts(caught.value) == ["from the function"]
    assert len(handles) == 5
    assert all(handle.cancelled() for handle in handles)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED


def test_what_the_body_gets_from_its_calls_is_in_the_group_once() -> None:
    with pytest.raises(ExceptionGroup) as caught, CallGroup() as group:
        group.start_in_threadpool(fail).result(TIMEOUT)
    assert texts(caught.value) == ["from the function"]

    def wait_for_another() -> None:
        with CallGroup() as group:
            waits = group.start_in_eventloop(Waits())
            group.start_in_threadpool(fail)
            waits.result(TIMEOUT)  # raises CancelledError, which only follows from the other error

    assert texts(error_of(wait_for_another)) == ["from the function"]


def test_a_call_that_somebody_cancels_is_no_error() -> None:
    with CallGroup() as group:
        handle = group.start_in_eventloop(Waits())
        assert handle.cancel()
    assert handle.cancelled()

    def ask_for_it() -> None:
        with CallGroup() as group:
            handle = group.start_in_eventloop(Waits())
            handle.cancel()
            handle.result(TIMEOUT)

    error = error_of(ask_for_it)
    assert isinstance(error, ExceptionGroup)
    assert isinstance(error.exceptions[0], CancelledError)


def test_a_thread_that_waits_in_a_call_of_ours_is_told() -> None:
    """The thread runs on until it ends; the coroutine that it waits for is cancelled."""
    waits = Waits()

    def wait_in_thread() -> str:
        try:
            run_in_eventloop_sync(waits)
        finally:
            ended.append("ended")
        return "never returned"

    def run() -> None:
        with CallGroup() as group:
            handles.append(group.start_in_threadpool(wait_in_thread))
            assert waits.begun.wait(TIMEOUT)
            fail("in the body")

    ended: list[str] = []
    handles: list[Handle[str]] = []
    assert texts(error_of(run)) == ["in the body"]
    assert waits.cleaned_up
    assert ended == ["ended"]
    assert handles[0].cancelled()


def test_groups_nest(backend: dict[str, Any]) -> None:
    def in_sync_code() -> None:
        with CallGroup() as outer:
            waits = outer.start_in_eventloop(Waits())
            with CallGroup() as inner:
                inner.start_in_threadpool(fail)
            raise AssertionError(waits)

    async def in_async_code() -> None:
        async with CallGroup() as outer:
            outer.start_in_eventloop(Waits())
            async with CallGroup() as inner:
                inner.start_in_threadpool(fail)
                await anyio.sleep(TIMEOUT)

    for call in (in_sync_code, partial(anyio.run, in_async_code, **backend)):
        _, error = captured(call)
        assert isinstance(error, ExceptionGroup)
        assert texts(error.exceptions[0]) == ["from the function"]


# What is refused


def test_a_group_is_used_inside_its_block_and_once(backend: dict[str, Any]) -> None:
    group = CallGroup()
    assert repr(group) == "<CallGroup, not entered, 0 calls>"
    with pytest.raises(LoopStateError, match="has not been entered"):
        group.start_in_threadpool(never)
    with group:
        pass
    coroutine = never_async()
    with pytest.raises(LoopStateError, match="has been left"):
        group.start_in_eventloop(coroutine)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
    with pytest.raises(LoopStateError, match="has been entered before"):
        group.__enter__()

    async def enter_again() -> None:
        async with group:
            raise AssertionError

    with pytest.raises(LoopStateError, match="has been entered before"):
        anyio.run(enter_again, **backend)


def test_only_handles_can_be_added() -> None:
    with CallGroup() as group, pytest.raises(WrongFunctionError, match="expected a handle"):
        group.add(len)  # type: ignore[arg-type]


def test_async_code_needs_async_with(backend: dict[str, Any]) -> None:
    async def main() -> None:
        with pytest.raises(LoopThreadError, match="write `async with CallGroup"):
            CallGroup().__enter__()

    anyio.run(main, **backend)


def test_what_is_added_late_is_cancelled() -> None:
    blocking = Blocking()
    handle = start_in_threadpool(blocking)
    assert blocking.started.wait(TIMEOUT)

    def run() -> None:
        with CallGroup() as group:
            failed = group.start_in_threadpool(fail)
            wait_until(failed.done, "it does not fail")
            group.add(handle)
            blocking.may_end.set()

    assert texts(error_of(run)) == ["from the function"]
    assert handle.result(0) == "a value that nobody waits for"


@pytest.mark.anyio
async def test_who_waits_for_calls_that_have_just_ended_does_not_wait() -> None:
    with anyio.fail_after(GRACE_SECONDS):
        await CallGroup()._wait(None)


def test_a_group_that_is_never_left_cancels_its_calls_when_it_goes_away() -> None:
    """So it is if a signal handler raises in the first step of `__exit__`."""
    group = CallGroup()
    group.__enter__()
    waiting = group.start_in_eventloop(anyio.sleep, 1000)
    done = group.start_in_threadpool(int)
    assert done.result(GRACE_SECONDS) == 0
    group._members.add(Handle("has not begun"))

    del group
    gc.collect()

    with pytest.raises(CancelledError):
        waiting.result(GRACE_SECONDS)


def test_a_group_that_goes_away_cancels_its_calls_though_a_signal_handler_raises_in_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    group = CallGroup()
    group.__enter__()
    waiting = group.start_in_eventloop(anyio.sleep, 1000)
    wait_until(waiting.running, "it does not begin")
    posts = 0

    def post_or_raise(self: Any, *args: Any) -> None:
        nonlocal posts
        posts += 1
        if posts == 1:
            raise KeyboardInterrupt
        post(self, *args)

    running = waiting._running
    assert running is not None
    loop: Any = type(running.task.loop)
    post = loop.post
    monkeypatch.setattr(loop, "post", post_or_raise)
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)

    del group
    gc.collect()

    with pytest.raises(CancelledError):
        waiting.result(GRACE_SECONDS)
