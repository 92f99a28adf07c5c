"""Worker threads on standby when their loop ends, or something breaks it: each moment is forced."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import Any

import anyio
import anyio.from_thread
import pytest
from conftest import GRACE_SECONDS, captured, in_plain_thread, wait_until
from standing_by import Calling, have_it_go, have_it_gone, owner

from unfazed.concurrency import (
    EventLoopThread,
    LoopEndedError,
    in_threadpool,
    run_in_eventloop_sync,
    run_in_threadpool_sync,
    start_in_threadpool,
)
from unfazed.concurrency._core import _slots
from unfazed.concurrency._core._futures import OneShotFuture
from unfazed.concurrency._core._taskcall import TaskCall
from unfazed.concurrency._eventloops import _bypassing, _waiting, _workers
from unfazed.concurrency._threads import _standby, _threadcall

assert owner  # a fixture


def test_threads_go_with_their_loop_and_the_next_call_starts_another(owner: EventLoopThread) -> None:
    (thread,) = _standby._threads

    owner.stop()

    wait_until(lambda: thread._gone, "the thread does not know")
    assert not _standby._idle
    assert run_in_threadpool_sync(int, "1") == 1


def test_the_end_of_the_loop_waits_for_what_runs_in_its_threads(owner: EventLoopThread) -> None:
    def work() -> None:
        worker = _workers.thread.worker
        assert worker is not None
        begun.set()
        wait_until(worker.is_cancelled, "it is not cancelled")
        ended.append(True)

    begun = threading.Event()
    ended: list[bool] = []
    call = Calling(partial(run_in_threadpool_sync, work))
    assert begun.wait(GRACE_SECONDS)

    owner.stop()

    assert ended
    assert isinstance(call.outcome()[1], LoopEndedError)


def test_the_end_of_the_loop_cancels_what_a_thread_waits_for(owner: EventLoopThread) -> None:
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await anyio.sleep_forever()

    call = Calling(partial(run_in_threadpool_sync, run_in_eventloop_sync, wait))
    assert begun.wait(GRACE_SECONDS)

    owner.stop()

    assert isinstance(call.outcome()[1], LoopEndedError)


@pytest.mark.parametrize("when", ["before it is asked", "while it is asked", "before it is handed back", "after that"])
def test_a_loop_that_ends_just_when_a_call_comes_hangs_nobody(
    when: str, owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The call may return its value, in another loop, or raise `LoopEndedError`."""

    def then_end(target: Any, name: str, *, first: bool = False) -> None:
        original = getattr(target, name)

        def end(*args: Any) -> Any:
            patch.undo()
            if first:
                owner.stop()
            else:
                owner._ask_to_stop("it has been stopped")
            return original(*args)

        patch.setattr(target, name, end)

    with monkeypatch.context() as patch:
        if when == "before it is asked":
            then_end(_threadcall.ThreadCall, "may_bypass", first=True)
        elif when == "while it is asked":
            then_end(_standby, "bypass")
        elif when == "before it is handed back":
            have_it_gone(owner)
            then_end(_standby, "hand_back", first=True)
        else:
            have_it_gone(owner)
            then_end(TaskCall, "hand_back")
        value, error = captured(partial(run_in_threadpool_sync, int, "1"))

    assert value == 1 or isinstance(error, LoopEndedError)
    owner.stop()
    assert not owner.is_running()
    assert run_in_threadpool_sync(run_in_eventloop_sync, anyio.sleep, 0) is None
    assert run_in_threadpool_sync(int, "2") == 2


def test_a_thread_of_another_loop_is_left_alone(owner: EventLoopThread) -> None:
    """A thread of the previous loop, which has just ended; the thread does not know yet."""
    thread = _standby._idle[0]
    with EventLoopThread() as thread.owner:
        assert run_in_threadpool_sync(int, "1") == 1
    thread.owner = owner

    assert thread not in _standby._idle


def test_the_end_of_the_loop_does_not_wait_for_a_call_that_ends_just_then(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1: the loop sees the call. 2: the call ends. 3: the loop waits for what is left: nothing."""
    have_it_go(owner)
    wait_until(lambda: not owner._calls, "it does not go")
    call: TaskCall[None] = TaskCall(partial(anyio.sleep, 0), OneShotFuture())
    _bypassing.bypass(owner, call, int)
    monkeypatch.setattr(call, "cancel", lambda _: call.end_bypassing(None))

    owner.stop(GRACE_SECONDS)

    assert not owner.is_running()
    assert owner._thread is not None and not owner._thread.is_alive()


def test_a_call_that_is_handed_back_to_a_loop_that_has_ended_is_run_nowhere(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its caller may know that already."""
    have_it_gone(owner)
    ran: list[bool] = []

    def hand_back_late(*args: Any) -> None:
        in_plain_thread(owner.stop)
        _bypassing.hand_back(*args)

    with monkeypatch.context() as patch:
        patch.setattr(_standby, "hand_back", hand_back_late)
        with pytest.raises(LoopEndedError, match="stopped"):
            run_in_threadpool_sync(ran.append, True)

    assert run_in_threadpool_sync(int, "1") == 1
    assert not ran


@pytest.mark.parametrize("waits", [False, True])
def test_a_loop_that_breaks_waits_for_what_runs_in_its_threads(owner: EventLoopThread, waits: bool) -> None:
    """SystemExit in a callback ends the loop, which cancels its tasks and waits for them."""

    async def wait() -> None:
        begun.set()
        await anyio.sleep_forever()

    def work() -> str:
        worker = _workers.thread.worker
        assert worker is not None
        if waits:
            with suppress(*_waiting.cancelled_classes()):
                run_in_eventloop_sync(wait)
        begun.set()
        wait_until(worker.is_cancelled, "it is not cancelled")
        assert owner._thread is not None
        alive.append(owner._thread.is_alive())
        return "done"

    begun = threading.Event()
    alive: list[bool] = []
    call = Calling(partial(run_in_threadpool_sync, work))
    assert begun.wait(GRACE_SECONDS)

    owner._require_running().post(sys.exit)

    assert call.outcome() == ("done", None)
    assert alive == [True]
    wait_until(lambda: not owner.is_running() and not owner._calls, "it has not ended")
    assert run_in_threadpool_sync(int, "1") == 1


@pytest.mark.parametrize("first", ["the loop", "the thread"])
@pytest.mark.parametrize("started", [False, True])
def test_a_loop_that_breaks_before_the_function_begins_gives_up_the_call(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch, started: bool, first: str
) -> None:
    """1: the thread takes the call. 2: the loop breaks. 3: both find out that the function never begins."""
    (thread,) = _standby._threads
    run, prevent = _standby._DirectCall.run, _threadcall.ThreadCall.prevent_start
    calls: list[_standby._DirectCall] = []
    ran: list[bool] = []

    def run_late(self: _standby._DirectCall, loop: Any) -> bool:
        calls.append(self)
        owner._require_running().post(sys.exit)
        given_up = self._thread_call.is_prevented if first == "the thread" else lambda: self.call.future.done
        wait_until(given_up, "the call is not given up")
        return run(self, loop)

    def prevent_and_wait(self: _threadcall.ThreadCall[Any]) -> bool:
        prevented = prevent(self)
        if first == "the thread":
            wait_until(lambda: calls[0].call.future.done, "the thread does not give up the call")
        return prevented

    with monkeypatch.context() as patch:
        patch.setattr(_standby._DirectCall, "run", run_late)
        patch.setattr(_threadcall.ThreadCall, "prevent_start", prevent_and_wait)
        call = partial(run_in_threadpool_sync, ran.append, True)
        _, error = captured(start_in_threadpool(ran.append, True).result if started else call)

    assert isinstance(error, LoopEndedError)
    assert thread._gone
    assert not ran
    wait_until(lambda: not owner.is_running(), "it has not ended")
    assert run_in_threadpool_sync(int, "1") == 1


def test_a_loop_that_breaks_while_a_call_is_started_says_so(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1: the thread takes the call. 2: the loop breaks, and prevents it. 3: it is started. 4: the loop gives it up."""
    prevent, taken, prevented, started = _threadcall.ThreadCall.prevent_start, *(threading.Event() for _ in range(3))
    put = _standby._StandbyThread.take

    def run_late(self: _standby._DirectCall, loop: Any) -> bool:
        taken.set()
        wait_until(lambda: self.call.future.done, "the call is not given up")
        return False

    def take(self: _standby._StandbyThread, direct_call: _standby._DirectCall) -> None:
        put(self, direct_call)
        assert taken.wait(GRACE_SECONDS)
        owner._require_running().post(sys.exit)
        assert prevented.wait(GRACE_SECONDS)

    def prevent_slowly(self: _threadcall.ThreadCall[Any]) -> bool:
        is_first = not prevented.is_set()
        result = prevent(self)
        prevented.set()
        if is_first:
            assert started.wait(GRACE_SECONDS)
        return result

    with monkeypatch.context() as patch:
        patch.setattr(_standby._DirectCall, "run", run_late)
        patch.setattr(_standby._StandbyThread, "take", take)
        patch.setattr(_threadcall.ThreadCall, "prevent_start", prevent_slowly)
        call = start_in_threadpool(pytest.fail, "it was prevented")
        started.set()
        _, error = captured(call.result)

    assert isinstance(error, LoopEndedError)


def test_a_call_that_comes_while_its_loop_breaks_does_not_begin(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1: the loop breaks. 2: it hands back a call that its thread has not taken yet. Nobody would end its task."""
    limiter = anyio.CapacityLimiter(1)
    ran: list[bool] = []
    (thread,) = _standby._threads
    hand_back = _standby._StandbyThread._hand_back
    handed_back: list[bool] = []

    def note_hand_back(self: _standby._StandbyThread, direct_call: _standby._DirectCall) -> None:
        handed_back.append(True)
        hand_back(self, direct_call)

    monkeypatch.setattr(_standby._StandbyThread, "_hand_back", note_hand_back)
    calls = thread._calls
    monkeypatch.setattr(thread, "_calls", SimpleQueue())  # the thread waits for the other one
    call = in_threadpool(ran.append, limiter=limiter).start(True)
    owner._require_running().post(sys.exit)
    _, error = captured(call.result)
    calls.put(None)

    assert isinstance(error, LoopEndedError)
    assert handed_back == [True]
    assert not ran
    assert _slots.seems_free(limiter)
