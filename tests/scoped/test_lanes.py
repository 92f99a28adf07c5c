"""The threads and tasks of iterators and context managers: what no user can bring about at will, races above all."""

from __future__ import annotations

import asyncio
import contextvars
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio.to_thread import run_sync as run_in_anyios_thread  # now: a test puts another in its place
from conftest import (
    GRACE_SECONDS,
    Gate,
    captured,
    captured_async,
    let_others_run,
    seen,
    wait_until,
)

from unfazed.concurrency import LoopEndedError
from unfazed.concurrency._core import _futures, _slots, _taskcall
from unfazed.concurrency._eventloops import _waiting, _workers
from unfazed.concurrency._eventloops._loops import current_loop
from unfazed.concurrency._scoped import _taskrunner, _threadrunner
from unfazed.concurrency._threads import _threadcall

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(GRACE_SECONDS):
        while not condition():
            await anyio.lowlevel.checkpoint()


class Steps:
    """Notes the threads in which steps are done."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __call__(self) -> int:
        self.threads.append(threading.get_ident())
        return len(self.threads)


# A worker thread


@pytest.mark.anyio
async def test_a_thread_does_one_step_after_another_and_the_last_one() -> None:
    steps = Steps()
    runner = _threadrunner.ThreadRunner("helper", steps)

    results = [await runner.run(steps), await runner.run(steps)]
    runner.leave()
    results.append(await runner.left())

    assert results == [1, 2, 3]
    assert len(set(steps.threads)) == 1
    assert threading.get_ident() not in steps.threads


@pytest.mark.anyio
async def test_left_before_its_thread_has_started_it_does_the_last_step_all_the_same() -> None:
    steps = Steps()
    runner = _threadrunner.ThreadRunner("helper", steps)

    runner.leave()

    assert await runner.left() == 1


@pytest.mark.anyio
async def test_left_twice_it_does_the_last_step_once() -> None:
    steps = Steps()
    runner = _threadrunner.ThreadRunner("helper", steps)

    runner.leave()
    runner.leave()
    await runner.left()
    await let_others_run()

    assert len(steps.threads) == 1


@pytest.mark.anyio
async def test_a_step_that_comes_after_it_was_left_is_refused() -> None:
    runner = _threadrunner.ThreadRunner("helper", int)
    runner.leave()

    with pytest.raises(LoopEndedError):
        await runner.run(pytest.fail)
    await runner.left()


@pytest.mark.anyio
async def test_a_step_that_is_cancelled_before_the_thread_gets_to_it_is_not_done() -> None:
    """1: the thread is held up by a step. 2: another one is handed over, and cancelled. 3: the thread gets to it."""
    held_up, may_go_on = threading.Event(), threading.Event()
    runner = _threadrunner.ThreadRunner("helper", int)

    def hold_up() -> None:
        held_up.set()
        assert may_go_on.wait(GRACE_SECONDS)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run, hold_up)
        await seen(held_up)
        async with anyio.create_task_group() as late:
            late.start_soon(runner.run, pytest.fail)
            await let_others_run()
            late.cancel_scope.cancel()
        may_go_on.set()
    runner.leave()

    assert await runner.left() == 0


@pytest.mark.anyio
async def test_a_thread_that_comes_after_it_could_not_be_started_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: the thread is asked for. 2: that fails. 3: only now does the thread come."""
    late: list[Callable[[], object]] = []
    error = RuntimeError("can't start new thread")

    async def fail(work: Callable[[], object], **options: object) -> None:
        late.append(work)
        raise error

    monkeypatch.setattr("unfazed.concurrency._scoped._threadrunner.to_thread.run_sync", fail)
    runner: _threadrunner.ThreadRunner[None] = _threadrunner.ThreadRunner("helper", pytest.fail)
    _, raised = await captured_async(partial(runner.run, pytest.fail))
    runner.leave()
    await runner.left()
    monkeypatch.undo()
    await run_in_anyios_thread(late.pop())

    assert raised is error


@pytest.mark.anyio
async def test_a_thread_that_fails_to_start_after_a_step_was_handed_over_wakes_that(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    error = RuntimeError("can't start new thread")
    runners: list[_threadrunner.ThreadRunner[None]] = []

    async def fail(work: Callable[[], object], **options: object) -> None:
        while runners[0]._waiting is None:
            await anyio.lowlevel.checkpoint()
        raise error

    monkeypatch.setattr("unfazed.concurrency._scoped._threadrunner.to_thread.run_sync", fail)
    runners.append(_threadrunner.ThreadRunner("helper", pytest.fail))
    _, raised = await captured_async(partial(runners[0].run, pytest.fail))
    _, raised_again = await captured_async(partial(runners[0].run, pytest.fail))

    assert raised is error
    assert raised_again is error


@pytest.mark.anyio
async def test_steps_wait_for_slots_and_the_last_one_does_not() -> None:
    limiter = anyio.to_thread.current_default_thread_limiter()
    limiter.total_tokens = 1
    runner = _threadrunner.ThreadRunner("helper", Steps())
    await runner.run(int)
    other = _slots.acquire(limiter, lambda: True)
    done = threading.Event()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(runner.run, done.set)
        await let_others_run()
        assert not done.is_set()
        _slots.release(other)
        await seen(done)
    other = _slots.acquire(limiter, lambda: True)
    runner.leave()

    assert await runner.left() == 1
    _slots.release(other)


@pytest.mark.anyio
async def test_the_last_step_counts_as_a_worker_of_ours() -> None:
    workers: list[Any] = []
    runner = _threadrunner.ThreadRunner("helper", lambda: workers.append(_workers.thread.worker))

    runner.leave()
    await runner.left()

    assert isinstance(workers[0], _threadcall.ThreadCall)
    assert workers[0].slot is not None
    assert not workers[0].slot.held


@pytest.mark.anyio
async def test_an_idle_thread_looks_for_its_loop_and_stays_while_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = threading.Event()
    runner = _threadrunner.ThreadRunner("helper", int)
    await runner.run(int)
    is_gone = runner.loop.is_gone

    def look() -> bool:
        looked.set()
        return is_gone()

    monkeypatch.setattr(_threadrunner, "GONE_CHECK_SECONDS", 0.001)
    monkeypatch.setattr(type(runner.loop), "is_gone", lambda self: look())
    await runner.run(int)  # so that it waits anew
    await seen(looked)

    assert await runner.run(int) == 0
    runner.leave()
    await runner.left()


def test_a_loop_that_ends_before_the_thread_has_started_says_so(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1: the thread is asked for. 2: the loop ends. 3: whoever waits is told; a thread that comes late does nothing."""
    late: list[Callable[[], object]] = []
    runners: list[_threadrunner.ThreadRunner[None]] = []

    async def never(work: Callable[[], object], **options: object) -> None:
        late.append(work)
        await anyio.sleep_forever()

    async def begin() -> None:
        runners.append(_threadrunner.ThreadRunner("helper", pytest.fail))
        runners[0]._ensure_started()
        while not late:
            await anyio.lowlevel.checkpoint()

    backend, options = anyio_backend
    monkeypatch.setattr("unfazed.concurrency._scoped._threadrunner.to_thread.run_sync", never)
    anyio.run(begin, backend=backend, backend_options=options)
    late.pop()()

    assert isinstance(runners[0]._error, LoopEndedError)


def test_who_waits_for_the_last_step_when_the_loop_is_dropped_ends_in_silence() -> None:
    async def main() -> None:
        runner = _threadrunner.ThreadRunner("helper", gate.wait)
        runner.leave()
        waiting = runner.left()
        waiting.send(None)
        waiting.close()  # as the garbage collector does
        gate.opened.set()
        await runner.left()

    gate = Gate()
    asyncio.run(main())


def test_an_error_of_the_last_step_after_the_end_of_the_loop_reaches_the_excepthook(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(_threadrunner, "GONE_CHECK_SECONDS", 0.01)
    monkeypatch.setattr(threading, "excepthook", lambda args: reported.append(args.exc_value))
    error = ValueError("last")

    def last() -> None:
        raise error

    async def begin() -> None:
        await _threadrunner.ThreadRunner("helper", last).run(int)

    backend, options = anyio_backend
    anyio.run(begin, backend=backend, backend_options=options)
    wait_until(lambda: reported, "the error is shown")

    assert reported == [error]


# A task


async def nothing() -> None:
    pass


def call_of(work: Callable[[], Awaitable[Any]]) -> tuple[_taskcall.TaskCall[Any], threading.Event]:
    """Return a call of *work*, and an event that is set when its answer stands."""
    done = threading.Event()
    return _taskcall.TaskCall(work, _futures.OneShotFuture(done.set)), done


async def taken(runner: _taskrunner.TaskRunner, work: Callable[[], Awaitable[Any]]) -> Any:
    call, done = call_of(work)
    runner.take(call, contextvars.copy_context())
    await seen(done)
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
    await seen(ended)

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
    await seen(first_stands)
    await seen(queued_stands)

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
    await seen(done)

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
    await seen(done)
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
    await seen(done)
    await seen(ended)

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
    await seen(told)

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
    await seen(done)
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
    await seen(began)
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
async def test_a_thread_runner_whose_task_died_after_its_cancellation_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: leaving is cancelled. 2: the task that is to hold the thread dies before its first step, and nobody tells."""
    monkeypatch.setattr(_waiting, "CHECK_SECONDS", 0.01)
    runner, died, loop = _threadrunner.ThreadRunner("iterate_in_threadpool", int), list[bool](), current_loop()
    runner._hold.accepted = True  # so that no task is made
    runner._hold.task_has_ended = lambda: bool(died)
    runner.leave()

    with anyio.CancelScope() as scope:
        scope.cancel()
        loop.post(died.append, True)
        await runner.left()

    assert scope.cancelled_caught
    assert died
