"""The thread that an iterator or a context manager keeps: rare moments, each forced."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio.to_thread import run_sync as run_in_anyios_thread  # now: a test puts another in its place
from conftest import GRACE_SECONDS, Gate, captured_async, let_others_run, wait_for_event, wait_until

from unfazed.concurrency import LoopEndedError
from unfazed.concurrency._core import _slots
from unfazed.concurrency._eventloops import _waiting, _workers
from unfazed.concurrency._eventloops._loops import current_loop
from unfazed.concurrency._scoped import _threadrunner
from unfazed.concurrency._threads import _threadcall

if TYPE_CHECKING:
    from collections.abc import Callable


class Steps:
    """Records the thread of each step."""

    def __init__(self) -> None:
        self.threads: list[int] = []

    def __call__(self) -> int:
        self.threads.append(threading.get_ident())
        return len(self.threads)


@pytest.mark.anyio
async def test_a_thread_does_one_step_after_another_and_the_last_one() -> None:
    steps = Steps()
    runner = _threadrunner.ThreadRunner("helper", steps)

    results = [await runner.run(steps), await runner.run(steps)]
    runner.leave()
    results.append(await runner.wait_until_ended())

    assert results == [1, 2, 3]
    assert len(set(steps.threads)) == 1
    assert threading.get_ident() not in steps.threads


@pytest.mark.anyio
async def test_left_before_its_thread_has_started_it_does_the_last_step_all_the_same() -> None:
    steps = Steps()
    runner = _threadrunner.ThreadRunner("helper", steps)

    runner.leave()

    assert await runner.wait_until_ended() == 1


@pytest.mark.anyio
async def test_left_twice_it_does_the_last_step_once() -> None:
    steps = Steps()
    runner = _threadrunner.ThreadRunner("helper", steps)

    runner.leave()
    runner.leave()
    await runner.wait_until_ended()
    await let_others_run()

    assert len(steps.threads) == 1


@pytest.mark.anyio
async def test_a_step_that_comes_after_it_was_left_is_refused() -> None:
    runner = _threadrunner.ThreadRunner("helper", int)
    runner.leave()

    with pytest.raises(LoopEndedError):
        await runner.run(pytest.fail)
    await runner.wait_until_ended()


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
        await wait_for_event(held_up)
        async with anyio.create_task_group() as late:
            late.start_soon(runner.run, pytest.fail)
            await let_others_run()
            late.cancel_scope.cancel()
        may_go_on.set()
    runner.leave()

    assert await runner.wait_until_ended() == 0


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
    await runner.wait_until_ended()
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
        await wait_for_event(done)
    other = _slots.acquire(limiter, lambda: True)
    runner.leave()

    assert await runner.wait_until_ended() == 1
    _slots.release(other)


@pytest.mark.anyio
async def test_the_last_step_counts_as_a_worker_of_ours() -> None:
    workers: list[Any] = []
    runner = _threadrunner.ThreadRunner("helper", lambda: workers.append(_workers.thread.worker))

    runner.leave()
    await runner.wait_until_ended()

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

    monkeypatch.setattr(_threadrunner, "CHECK_SECONDS", 0.001)
    monkeypatch.setattr(type(runner.loop), "is_gone", lambda self: look())
    await runner.run(int)  # so that it waits anew
    await wait_for_event(looked)

    assert await runner.run(int) == 0
    runner.leave()
    await runner.wait_until_ended()


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
        waiting = runner.wait_until_ended()
        waiting.send(None)
        waiting.close()  # as the garbage collector does
        gate.opened.set()
        await runner.wait_until_ended()

    gate = Gate()
    asyncio.run(main())


def test_an_error_of_the_last_step_after_the_end_of_the_loop_reaches_the_excepthook(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(_threadrunner, "CHECK_SECONDS", 0.01)
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


@pytest.mark.anyio
async def test_a_thread_runner_whose_task_died_after_its_cancellation_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: leaving is cancelled. 2: the task that is to hold the thread dies before its first step, and nobody tells."""
    monkeypatch.setattr(_waiting, "CHECK_SECONDS", 0.01)
    runner, died, loop = _threadrunner.ThreadRunner("iterate_in_threadpool", int), list[bool](), current_loop()
    runner._hold.taken = True  # so that no task is made
    runner._hold.task_has_ended = lambda: bool(died)
    runner.leave()

    with anyio.CancelScope() as scope:
        scope.cancel()
        loop.post(died.append, True)
        await runner.wait_until_ended()

    assert scope.cancelled_caught
    assert died
