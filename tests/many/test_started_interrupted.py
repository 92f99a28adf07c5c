"""A signal handler that raises while a call is started, waited for or cancelled: it ends, and nothing stays taken.

`interrupting.py` says how.
"""

from __future__ import annotations

import gc
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import captured, captured_async, wait_until, wait_until_none
from interrupting import TRACES, Alarm, Steps, numbers, raise_alarm

import unfazed.concurrency
from unfazed.concurrency import (
    CallGroup,
    Handle,
    in_processpool,
    start_in_eventloop,
    start_in_executor,
    start_in_processpool,
    start_in_threadpool,
)
from unfazed.concurrency._core._futures import OneShotFuture
from unfazed.concurrency._core._taskcall import TaskCall
from unfazed.concurrency._eventloops import _handle, _started

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

FOLDER = str(Path(unfazed.concurrency.__file__).parent)
STEPS = 15  # about how many bytecodes of each operation are tried; arbitrary

pytestmark = [
    *TRACES,
    pytest.mark.usefixtures("background"),
]

executor: ThreadPoolExecutor


async def one() -> int:
    return 1


def in_a_thread() -> None:
    assert start_in_threadpool(int, "1").result() == 1


def in_a_loop() -> None:
    assert start_in_eventloop(one).result() == 1
    assert start_in_eventloop(one()).exception() is None


def in_a_process() -> None:
    assert start_in_processpool(int, "1").result() == 1


def in_an_executor() -> None:
    assert start_in_executor(executor, int, "1").result() == 1


def cancelled() -> None:
    for handle in (
        start_in_eventloop(anyio.sleep, 1000),
        start_in_processpool(int),
        in_processpool(int, kill_on_cancel=True).start(),
        start_in_executor(executor, int),
        start_in_threadpool(int),
    ):
        handle.cancel()
        with suppress(CancelledError):
            handle.result()


def in_a_group() -> None:
    with CallGroup() as group:
        handles = [group.start_in_threadpool(int), group.start_in_eventloop(one)]
    assert [handle.result() for handle in handles] == [0, 1]


def in_a_group_that_fails() -> None:
    error = captured(fail_in_group)[1]
    if isinstance(error, Alarm):
        raise error
    assert isinstance(error, Exception)


def fail_in_group() -> None:
    with CallGroup() as group:
        group.start_in_eventloop(anyio.sleep, 1000)
        group.start_in_threadpool(int, "not a number").result()


async def awaited() -> None:
    assert await start_in_threadpool(int, "1") == 1
    assert await start_in_eventloop(one) == 1


async def in_a_group_async() -> None:
    async with CallGroup() as group:
        handles = [group.start_in_threadpool(int), group.start_in_eventloop(one)]
    assert [await handle for handle in handles] == [0, 1]


async def in_a_group_that_fails_async() -> None:
    _, error = await captured_async(fail_in_group_async)
    if isinstance(error, Alarm):
        raise error
    assert isinstance(error, Exception)


async def fail_in_group_async() -> None:
    async with CallGroup() as group:
        group.start_in_eventloop(anyio.sleep, 1000)
        await group.start_in_threadpool(int, "not a number")


async def in_a_group_that_is_cancelled() -> None:
    with anyio.CancelScope() as scope:
        async with CallGroup() as group:
            group.start_in_eventloop(anyio.sleep, 1000)
            scope.cancel()


FROM_ASYNC_CODE = (awaited, in_a_group_async, in_a_group_that_fails_async, in_a_group_that_is_cancelled)
OPERATIONS: list[Callable[[], None]] = [
    in_a_thread,
    in_a_loop,
    in_a_process,
    in_an_executor,
    cancelled,
    in_a_group,
    in_a_group_that_fails,
]


def unsettled() -> list[Any]:
    """Return the handles whose call was started and has not ended."""
    return [each for each in gc.get_objects() if type(each) is Handle and getattr(each, "_running", None)]


@pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.__name__)
def test_a_signal_handler_raises_at_any_bytecode(operation: Callable[[], None]) -> None:
    global executor
    with ThreadPoolExecutor(1) as executor:
        interrupt(operation)


@pytest.mark.parametrize("operation", FROM_ASYNC_CODE, ids=lambda operation: operation.__name__)
def test_a_signal_handler_raises_at_any_bytecode_of_async_code(
    operation: Callable[[], Awaitable[None]], anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    name, options = anyio_backend

    def run() -> None:
        anyio.run(operation, backend=name, backend_options=options)

    run.__name__ = operation.__name__
    interrupt(run)


def interrupt(operation: Callable[[], None]) -> None:
    """Do *operation* again and again, each time interrupted at another bytecode."""
    operation()
    for when in numbers(operation, FOLDER, STEPS):
        steps = Steps(raise_alarm, when, FOLDER)
        with steps:
            _, error = captured(operation)
        assert error is None or "Alarm" in repr(error) + repr(error.__cause__), (steps.where, error)
        del error
        with_what = steps.where
        if "group" in operation.__name__:  # a group whose `__exit__` was interrupted in its first step goes away
            gc.collect()
        else:
            for handle in unsettled():  # what was interrupted before it was returned goes on
                handle.cancel()
        wait_until(lambda: not unsettled(), f"a call never ends: {with_what}")
        operation()
    wait_until_none(unsettled)


def test_a_signal_handler_raises_while_a_group_goes_away_that_was_not_left() -> None:
    """But not on Python 3.11: `interrupting.py` says why."""

    def enter() -> tuple[list[CallGroup], Handle[None]]:
        group = CallGroup()
        group.__enter__()
        return [group], group.start_in_eventloop(anyio.sleep, 1000)

    groups, handle = enter()
    for when in numbers(groups.clear, FOLDER, STEPS):
        groups, handle = enter()
        steps = Steps(raise_alarm, when, FOLDER)
        with steps:
            captured(groups.clear)
        wait_until(handle.cancelled, f"the call goes on: {steps.where}")


async def never() -> None:
    pytest.fail("must not run")


def test_a_call_whose_start_was_interrupted_is_cancelled_at_once() -> None:
    handle: Handle[None] = Handle("never")
    task = TaskCall(never, OneShotFuture(handle._settle))
    handle._running = _handle._Running(_started.LoopCall(never), task, OneShotFuture.read)

    assert handle.cancel()
    assert handle.cancelled()
    assert handle._running is None
