"""Signal handlers that raise at moments that tracing rarely reaches: each is forced."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

import anyio
import pytest
from conftest import GRACE_SECONDS, captured, let_others_run, wait_until
from interrupting import EVERY_STEP, Alarm, raise_alarm

from unfazed.concurrency import EventLoopThread, LoopEndedError, LoopStateError
from unfazed.concurrency._core import _futures, _limits, _slots, _taskcall
from unfazed.concurrency._eventloops import _loops, _synccalls
from unfazed.concurrency._scoped import _feed, _taskrunner

pytestmark = [
    pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="needs signals"),
    pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs the bytecodes of CPython"),
    pytest.mark.timeout(3600 if EVERY_STEP else 120),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),  # lost before its assignment
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


async def one() -> int:
    return 1


def test_an_answer_whose_writing_is_interrupted_stands_all_the_same() -> None:
    """1: a signal handler raises while the answer is written. 2: whoever waits for it is told, or finds it out."""
    told: list[bool] = []

    def tell() -> None:
        told.append(True)
        if len(told) == 1:
            raise Alarm

    future: _futures.OneShotFuture[int] = _futures.OneShotFuture(tell)

    with pytest.raises(Alarm):
        future.write(1, None)

    assert told == [True, True]
    assert future.read() == 1
    assert not future.try_claim()


@pytest.mark.anyio
async def test_what_is_raised_outside_of_the_work_is_the_calls_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    call: _taskcall.TaskCall[int] = _taskcall.TaskCall(one, _futures.OneShotFuture())

    async def interrupted(_: object) -> None:
        raise Alarm

    monkeypatch.setattr(call, "_run", interrupted)
    await call.run(int)

    with pytest.raises(Alarm):
        call.future.read()


@pytest.mark.anyio
async def test_a_call_whose_caller_has_been_told_that_it_could_not_begin_does_not_begin() -> None:
    call: _taskcall.TaskCall[None] = _taskcall.TaskCall(pytest.fail, _futures.OneShotFuture())
    call.future.write(None, Alarm())

    await call.run(int)

    assert call.future.done


@pytest.mark.anyio
async def test_a_cancellation_that_was_not_carried_out_is_asked_for_again() -> None:
    call: _taskcall.TaskCall[int] = _taskcall.TaskCall(one, _futures.OneShotFuture())
    call.cancel()
    call.set_loop(_loops.current_loop())

    assert call.go_on()  # the loop has not begun it
    await let_others_run()

    assert call.future.done
    assert not call.go_on()


@pytest.mark.anyio
@pytest.mark.parametrize("where", ["begin", "end"])
async def test_two_alarms_as_a_call_begins_or_ends_lose_no_call(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second one comes while the first one is to become the error of the call."""
    future = _futures.OneShotFuture[int]()
    call = _taskcall.TaskCall(one, future)
    call.set_loop(_loops.current_loop())

    with monkeypatch.context() as patch:
        patch.setattr(future, "write", lambda *_: raise_alarm())
        if where == "begin":
            captured(lambda: call.begin(raise_alarm))
        else:
            call.taken, call.task_has_ended = True, lambda: True
            captured(lambda: call.end(Alarm()))
    assert not future.done
    assert not call.go_on()
    await let_others_run()

    with pytest.raises(LoopEndedError):
        future.read()


@pytest.mark.anyio
@pytest.mark.parametrize("how", ["left", "died"])
async def test_a_call_that_a_runner_lost_is_found_when_the_runner_has_ended(how: str) -> None:
    runner = _taskrunner.TaskRunner(lambda _: one())
    await runner.start()
    await let_others_run()
    call: _taskcall.TaskCall[int] = _taskcall.TaskCall(one, _futures.OneShotFuture())
    call.set_loop(_loops.current_loop())
    runner._take(call, None, None)
    runner._calls.clear()  # lost

    assert not call.go_on()
    await let_others_run()
    assert not call.future.done  # it might be just running
    runner.leave()
    await let_others_run()
    runner.over = how == "left"  # otherwise a second alarm kept it from saying so
    call.go_on()
    await let_others_run()

    with pytest.raises(LoopEndedError):
        call.future.read()


@pytest.mark.anyio
async def test_an_alarm_as_a_runner_takes_a_call_is_the_calls_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = _taskrunner.TaskRunner(lambda _: one())
    await runner.start()
    await let_others_run()
    call: _taskcall.TaskCall[int] = _taskcall.TaskCall(one, _futures.OneShotFuture())

    with monkeypatch.context() as patch:
        patch.setattr(runner, "_wake_up", raise_alarm)
        runner._take(call, None, None)

    with pytest.raises(Alarm):
        call.future.read()
    runner.leave()
    await let_others_run()


def test_a_buffer_that_is_told_twice_that_it_is_full_stays_so() -> None:
    feed: _feed.Feed[int] = _feed.Feed([1], 1)

    feed._fetched()

    assert feed._fetching is None


@pytest.mark.anyio
@pytest.mark.parametrize("done", [False, True])
async def test_an_alarm_in_a_system_task_of_trios_ends_no_loop(done: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if _loops.current_loop().cancels_once:
        pytest.skip("asyncio shows what its tasks raise")
    shown: list[type[BaseException]] = []
    call: _taskcall.TaskCall[int] = _taskcall.TaskCall(one, _futures.OneShotFuture())
    if done:
        call.future.write(1, None)

    async def interrupted(_: object) -> None:
        raise Alarm

    monkeypatch.setattr(call, "run", interrupted)
    monkeypatch.setattr(sys, "excepthook", lambda kind, *_: shown.append(kind))
    loop: Any = object()
    await _loops.TrioLoop._run(loop, call)

    assert shown == [Alarm] * done
    assert call.future.done


def test_a_grant_that_was_interrupted_is_completed() -> None:
    """1: a slot is counted. 2: a signal handler raises. 3: whoever comes next completes the grant."""
    limiter = anyio.CapacityLimiter(1)
    woken: list[bool] = []
    holder = _slots.acquire(limiter)

    def wake() -> bool:
        woken.append(True)
        return True

    queued = _slots.acquire(limiter, wake)

    def interrupted() -> list[_limits.Slot]:
        holder.limit.take_away(holder)
        holder.limit.holders.add(queued)
        raise Alarm

    with pytest.raises(Alarm):
        _slots._locked(interrupted)
    _slots.release(holder)

    assert queued.held
    wait_until(lambda: woken, "nobody wakes it")
    _slots.release(queued)


def test_an_alarm_while_we_wait_for_the_lock_leaves_it_to_its_owner(monkeypatch: pytest.MonkeyPatch) -> None:
    class Taken:
        def acquire(self) -> None:
            raise Alarm

        def release(self) -> None:
            raise RuntimeError("cannot release un-acquired lock")

    limiter = anyio.CapacityLimiter(1)
    with monkeypatch.context() as patch:
        patch.setattr(_slots, "_lock", Taken())
        with pytest.raises(Alarm):
            _slots.acquire(limiter)

    slot = _slots.acquire(limiter)
    assert slot.held
    _slots.release(slot)


def test_an_alarm_just_after_the_lock_was_taken_or_given_back_leaves_it_free(monkeypatch: pytest.MonkeyPatch) -> None:
    lock = threading.RLock()

    class Interrupted:
        at = ""

        def acquire(self) -> None:
            lock.acquire()
            if self.at == "acquire":
                raise Alarm

        def release(self) -> None:
            lock.release()
            if self.at == "release":
                self.at = ""
                raise Alarm

    limiter = anyio.CapacityLimiter(1)
    monkeypatch.setattr(_slots, "_lock", Interrupted())
    for at in ("acquire", "release"):
        monkeypatch.setattr(Interrupted, "at", at)
        slot = _limits.Slot(limiter)
        with pytest.raises(Alarm):
            _slots.take(slot)
        monkeypatch.setattr(Interrupted, "at", "")
        _slots.release(slot)

    assert not _slots._owner
    with pytest.raises(RuntimeError):
        lock.release()


def test_a_finalizer_that_asks_for_a_slot_amid_the_accounts_is_refused() -> None:
    limiter = anyio.CapacityLimiter(1)

    def finalize() -> list[_limits.Slot]:
        _slots.acquire(limiter)
        return []

    with pytest.raises(LoopStateError, match="finalizer"):
        _slots._locked(finalize)

    slot = _slots.acquire(limiter)
    assert slot.held
    _slots.release(slot)


def test_the_watcher_goes_on_whatever_it_meets(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: something raises in the watcher. 2: that is shown. 3: calls are looked after all the same."""
    shown: list[str] = []
    failed = threading.Event()

    def fail(_: object, now: float) -> list[_limits.Slot]:
        patch.setattr(_limits.Limit, "relieve", relieve)
        failed.set()
        raise ZeroDivisionError

    relieve = _limits.Limit.relieve
    limiter = anyio.CapacityLimiter(1)
    with monkeypatch.context() as patch:
        patch.setattr(threading, "excepthook", lambda caught: shown.append(caught.exc_type.__name__))
        patch.setattr(_limits.Limit, "relieve", fail)
        holder, queued = _slots.acquire(limiter), _slots.acquire(limiter, lambda: True)
        assert failed.wait(GRACE_SECONDS)
        wait_until(lambda: shown, "nobody is told")

    _slots.lend(holder)
    wait_until(lambda: queued.held, "the watcher has gone")
    assert shown == ["ZeroDivisionError"]
    for slot in (queued, holder):
        _slots.release(slot)


def test_a_loop_that_another_one_has_started_in_the_meantime_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: a thread cannot be started. 2: by then a signal handler has started one for the same loop."""
    start = threading.Thread.start

    def start_and_fail(thread: threading.Thread) -> None:
        start(thread)
        wait_until(lambda: loop._thread, "it does not start")
        raise RuntimeError("can't start new thread")

    loop = EventLoopThread()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_and_fail)
        loop.start()

    assert loop.run_sync(one) == 1
    loop.stop()


def test_who_waits_for_a_loop_that_breaks_is_told_though_the_loop_never_knew_of_the_call() -> None:
    loop = EventLoopThread()
    loop.start()
    call: _taskcall.TaskCall[int] = _taskcall.TaskCall(one, _futures.OneShotFuture())
    loop._calls.add(call)

    loop._require_running().post(sys.exit)

    wait_until(lambda: call.future.done, "nobody is told")
    with pytest.raises(LoopEndedError):
        call.future.read()
    loop.stop()


@pytest.mark.anyio
async def test_what_is_raised_after_the_answer_is_the_tasks_own(monkeypatch: pytest.MonkeyPatch) -> None:
    call: _taskcall.TaskCall[int] = _taskcall.TaskCall(one, _futures.OneShotFuture())

    async def answer_and_fail(_: object) -> None:
        call.future.write(1, None)
        raise Alarm

    monkeypatch.setattr(call, "_run", answer_and_fail)
    with pytest.raises(Alarm):
        await call.run(int)

    assert call.future.read() == 1


def test_a_thread_may_be_told_twice_of_its_answer() -> None:
    future: _futures.BlockingFuture[int] = _futures.BlockingFuture()
    future.write(1, None)

    future._wake()

    assert future.ready.acquire(timeout=GRACE_SECONDS)
    assert future.read() == 1


@pytest.mark.anyio
async def test_a_runner_that_is_interrupted_between_its_calls_does_the_last_step_and_refuses_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    left: list[object] = []

    async def last(cancellation: object) -> None:
        left.append(cancellation)

    async def interrupted(*_: object) -> None:
        raise Alarm

    runner = _taskrunner.TaskRunner(last)
    monkeypatch.setattr(runner, "_run_calls", interrupted)
    await runner.start()
    await let_others_run()

    with pytest.raises(Alarm):
        runner.future.read()
    assert left == [None]
    assert runner.over


def test_a_loop_whose_start_is_interrupted_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = EventLoopThread()
    start = loop._ensure_started

    def start_and_fail() -> None:
        start()
        raise Alarm

    monkeypatch.setattr(loop, "_ensure_started", start_and_fail)
    with pytest.raises(Alarm), loop:
        pytest.fail("it is not entered")

    assert not loop.is_running()
    loop.stop()


def a_slot_that_is_lent(limiter: anyio.CapacityLimiter) -> tuple[_limits.Slot, _limits.Slot]:
    """Return the slot of a worker that waits in one of our calls, and the slot of that call, which runs on it."""
    holder = _slots.acquire(limiter)
    _slots.lend(holder, "a call")
    token = _limits.current_slot.set(holder)
    below = _slots.acquire(limiter)
    _limits.current_slot.reset(token)
    return holder, below


def test_who_runs_on_a_slot_whose_giving_back_was_interrupted_keeps_it() -> None:
    limiter = anyio.CapacityLimiter(1)
    holder, below = a_slot_that_is_lent(limiter)
    assert below.lender is holder

    def interrupted() -> list[_limits.Slot]:
        holder.limit.holders.discard(holder)
        raise Alarm

    with pytest.raises(Alarm):
        _slots._locked(interrupted)
    _slots.release(holder)

    assert not below.lender
    assert below.limit.occupied == 1
    _slots.release(below)
    assert below.limit.occupied == 0


def interrupted_at_once() -> list[_limits.Slot]:
    raise Alarm


def test_accounts_that_are_put_in_order_keep_who_lends_to_whom() -> None:
    limiter = anyio.CapacityLimiter(1)
    holder, below = a_slot_that_is_lent(limiter)

    with pytest.raises(Alarm):
        _slots._locked(interrupted_at_once)
    _slots.pass_through()

    assert below.lender is holder
    assert holder.borrower is below
    assert (holder.limit.occupied, holder.limit.running) == (1, 1)
    for slot in (below, holder):
        _slots.release(slot)


def test_a_thread_has_the_loop_begin_a_call_that_it_was_kept_from_beginning(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: a signal handler raises before the call begins. 2: the thread that waits looks, and submits it again."""
    future: _futures.BlockingFuture[int] = _futures.BlockingFuture()
    call: _taskcall.TaskCall[int] = _taskcall.TaskCall(one, future)
    monkeypatch.setattr(_synccalls, "CHECK_SECONDS", 0.001)

    _synccalls._wait(call, future, lambda: future.write(1, None))

    assert future.read() == 1
