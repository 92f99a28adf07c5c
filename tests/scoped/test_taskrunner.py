"""The task that an iterator or a context manager keeps: rare moments, each forced."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from conftest import GRACE_SECONDS, captured, let_others_run, wait_for_event

from unfazed.concurrency import LoopEndedError
from unfazed.concurrency._core import _futures, _taskcall
from unfazed.concurrency._scoped import _taskrunner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(GRACE_SECONDS):
        while not condition():
            await anyio.lowlevel.checkpoint()


async def nothing() -> None:
    pass


def call_of(work: Callable[[], Awaitable[Any]]) -> tuple[_taskcall.TaskCall[Any], threading.Event]:
    """Return a call of *work*, and an event that is set when its answer stands."""
    done = threading.Event()
    return _taskcall.TaskCall(work, _futures.OneShotFuture(done.set)), done


async def taken(runner: _taskrunner.TaskRunner, work: Callable[[], Awaitable[Any]]) -> Any:
    call, done = call_of(work)
    runner.take(call, contextvars.copy_context())
    await wait_for_event(done)
    return call.future.read()


async def task_id() -> int:
    return anyio.get_current_task().id


async def no_last_step(cancellation: BaseException | None) -> None:
    """Do nothing."""


@pytest.mark.anyio
async def test_a_task_does_one_call_after_another_and_the_last_step() -> None:
    ended = threading.Event()
    tasks: list[int] = []

    async def last(cancellation: BaseException | None) -> None:
        tasks.append(await task_id())
        ended.set()

    runner = _taskrunner.TaskRunner(last)
    await runner.start()
    for _ in range(3):
        tasks.append(await taken(runner, task_id))
    runner.leave()
    await wait_for_event(ended)

    assert len(set(tasks)) == 1
    assert tasks[0] != await task_id()


@pytest.mark.anyio
async def test_finish_does_something_else_instead_of_the_last_step() -> None:
    async def last(cancellation: BaseException | None) -> None:
        pytest.fail("instead of this")

    async def end() -> str:
        return "finished"

    runner = _taskrunner.TaskRunner(last)
    await runner.start()

    assert await taken(runner, partial(runner.finish, end)) == "finished"


@pytest.mark.anyio
async def test_a_call_that_comes_after_it_was_left_is_refused() -> None:
    runner = _taskrunner.TaskRunner(no_last_step)
    await runner.start()
    runner.leave()
    await until(lambda: runner._leaving)

    with pytest.raises(LoopEndedError):
        await taken(runner, task_id)


@pytest.mark.anyio
async def test_calls_that_queue_when_it_is_left_are_refused_and_the_one_under_way_ends() -> None:
    may_end = anyio.Event()
    runner = _taskrunner.TaskRunner(no_last_step)
    await runner.start()

    async def first() -> str:
        await may_end.wait()
        return "done"

    (under_way, first_stands), (queued, queued_stands) = call_of(first), call_of(task_id)
    runner.take(under_way, contextvars.copy_context())
    runner.take(queued, contextvars.copy_context())
    await until(lambda: runner._calls and runner._current is under_way)
    runner.leave()
    await until(lambda: runner._leaving)
    may_end.set()
    await wait_for_event(first_stands)
    await wait_for_event(queued_stands)

    assert under_way.future.read() == "done"
    with pytest.raises(LoopEndedError):
        queued.future.read()


@pytest.mark.anyio
async def test_a_call_that_was_given_up_before_it_was_taken_in_is_not_run() -> None:
    runner = _taskrunner.TaskRunner(no_last_step)
    await runner.start()
    call, done = call_of(partial(pytest.fail, "given up"))
    call.loop = runner.loop
    call.cancel()  # posted before the runner is
    runner.take(call, contextvars.copy_context())
    await wait_for_event(done)

    assert await taken(runner, task_id)
    runner.leave()


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_while_it_queues_is_cancelled_when_it_runs() -> None:
    may_end = anyio.Event()
    runner = _taskrunner.TaskRunner(no_last_step)
    await runner.start()
    (first, _), (queued, done) = call_of(may_end.wait), call_of(anyio.sleep_forever)
    runner.take(first, contextvars.copy_context())
    runner.take(queued, contextvars.copy_context())
    await until(lambda: runner._calls)
    queued.cancel()
    may_end.set()
    await wait_for_event(done)
    _, error = captured(queued.future.read)

    assert isinstance(error, anyio.get_cancelled_exc_class())
    runner.leave()


@pytest.mark.anyio
async def test_the_end_of_its_loop_cancels_the_call_under_way_and_does_the_last_step() -> None:
    ended = threading.Event()

    async def last(cancellation: BaseException | None) -> None:
        ended.set()

    runner = _taskrunner.TaskRunner(last)
    await runner.start()
    call, done = call_of(anyio.sleep_forever)
    runner.take(call, contextvars.copy_context())
    await until(lambda: runner._current is call)
    runner.cancel(LoopEndedError("the end"))
    await wait_for_event(done)
    await wait_for_event(ended)

    with pytest.raises(LoopEndedError, match="the end"):
        call.future.read()


@pytest.mark.anyio
async def test_an_error_of_the_last_step_that_nobody_waits_for_reaches_the_excepthook(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[object] = []
    told = threading.Event()
    error = ValueError("last")

    def excepthook(args: threading.ExceptHookArgs) -> None:
        reported.append(args.exc_value)
        told.set()

    async def last(cancellation: BaseException | None) -> None:
        raise error

    monkeypatch.setattr(threading, "excepthook", excepthook)
    runner = _taskrunner.TaskRunner(last)
    await runner.start()
    runner.leave()
    await wait_for_event(told)

    assert reported == [error]


@pytest.mark.anyio
async def test_somebody_else_who_cancels_the_call_under_way_ends_the_runner() -> None:
    runner = _taskrunner.TaskRunner(no_last_step)
    await runner.start()
    call, done = call_of(anyio.sleep_forever)
    runner.take(call, contextvars.copy_context())
    await until(lambda: runner._current is call)
    assert runner._abort is not None
    runner._abort()
    await wait_for_event(done)
    await until(lambda: runner.over)

    with pytest.raises(anyio.get_cancelled_exc_class()):
        call.future.read()


@pytest.mark.anyio
async def test_a_last_step_that_is_cancelled_ends_the_runner() -> None:
    began = threading.Event()

    async def last(cancellation: BaseException | None) -> None:
        began.set()
        await anyio.sleep_forever()

    runner = _taskrunner.TaskRunner(last)
    await runner.start()
    await let_others_run()
    runner.leave()
    await wait_for_event(began)
    assert runner._abort is not None
    runner._abort()
    await until(lambda: runner.future.done)

    with pytest.raises(anyio.get_cancelled_exc_class()):
        runner.future.read()


def test_a_task_that_is_cancelled_before_it_has_begun_refuses_its_calls() -> None:
    """Only asyncio does that."""

    async def main() -> None:
        runner = _taskrunner.TaskRunner(no_last_step)
        others = asyncio.all_tasks()
        await runner.start()
        call, _ = call_of(nothing)
        runner.take(call, contextvars.copy_context())
        while not (ours := asyncio.all_tasks() - others):
            await asyncio.sleep(0)
        ours.pop().cancel()
        await until(lambda: call.future.done)

        with pytest.raises(LoopEndedError):
            call.future.read()

    asyncio.run(main())


@pytest.mark.anyio
async def test_a_runner_that_was_never_started_can_be_left() -> None:
    _taskrunner.TaskRunner(no_last_step).leave()


@pytest.mark.anyio
async def test_a_call_that_begins_while_the_loop_ends_is_told_why() -> None:
    """1: the end of the loop gives its reason, from another thread. 2: a call begins. 3: the runner is cancelled."""
    runner = _taskrunner.TaskRunner(no_last_step)
    await runner.start()
    await until(lambda: runner._wake is not None)
    reason = LoopEndedError("the loop is ending")
    call, done = call_of(anyio.lowlevel.checkpoint)

    runner._reason = reason
    runner.take(call, contextvars.copy_context())
    await wait_for_event(done)

    assert call._reason is reason
    runner.leave()
    await until(lambda: runner.over)
