"""Worker threads on standby when their loop ends or Ctrl-C comes: each moment is forced."""

from __future__ import annotations

import sys
import threading
from contextlib import suppress
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import pytest
from conftest import GRACE_SECONDS, Gate, captured, in_plain_thread, wait_until
from standing_by import Calling, have_it_go, have_it_gone, hold_up, owner, running

from unfazed.concurrency import (
    EventLoopThread,
    LoopEndedError,
    in_threadpool,
    run_in_eventloop_sync,
    run_in_threadpool_sync,
    start_in_threadpool,
)
from unfazed.concurrency._core import _limits, _slots
from unfazed.concurrency._core._futures import OneShotFuture
from unfazed.concurrency._core._taskcall import TaskCall
from unfazed.concurrency._eventloops import _bypassing, _synccalls, _waiting, _workers
from unfazed.concurrency._threads import _standby, _threadcall

if TYPE_CHECKING:
    from collections.abc import Callable

assert owner  # a fixture


# The end of the loop


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


# Ctrl-C


def interrupt(monkeypatch: pytest.MonkeyPatch, target: Any, name: str, done: Callable[..., object]) -> None:
    def interrupted(*args: Any) -> None:
        done(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(target, name, interrupted)


def test_ctrl_c_before_the_thread_has_begun_keeps_the_function_from_running(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[Any] = []
    ran: list[bool] = []
    take = _standby._StandbyThread.take
    with monkeypatch.context() as patch:
        interrupt(patch, _standby._StandbyThread, "take", lambda *args: taken.append(args))
        with pytest.raises(KeyboardInterrupt):
            run_in_threadpool_sync(ran.append, True)

    take(*taken[0])  # too late

    wait_until(lambda: _standby._idle, "the thread does not stand by again")
    assert not ran
    assert run_in_threadpool_sync(int, "1") == 1


def test_ctrl_c_while_a_call_is_started_leaves_nothing_to_wait_for(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The handle, which nobody gets, is done before the loop gives up the call."""
    with monkeypatch.context() as patch:
        interrupt(patch, _standby._StandbyThread, "take", lambda *_: None)
        with pytest.raises(KeyboardInterrupt):
            start_in_threadpool(int)

    wait_until(lambda: not any(call.bypassing for call in owner._calls.copy()), "the loop does not forget the call")
    owner.stop()


@pytest.mark.parametrize("gone", ["before", "after"])
def test_ctrl_c_while_the_loop_takes_a_call_back_leaves_nothing_behind(
    gone: str, owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancellation comes before that, or right after it, in one turn of the loop."""
    ran: list[bool] = []
    thread = have_it_gone(owner)
    take = _standby._StandbyThread.take
    gates: list[Gate] = []

    def take_or_wait(*args: Any) -> None:
        gates.append(hold_up(owner))
        if gone == "before":
            take(*args)
        else:
            thread._calls.put(args[1])
        threading.Timer(0.05, gates[0].opened.set).start()

    with monkeypatch.context() as patch:
        interrupt(patch, _standby._StandbyThread, "take", take_or_wait)
        with pytest.raises(KeyboardInterrupt):
            run_in_threadpool_sync(ran.append, True)
    thread._hand_back_all()

    assert run_in_threadpool_sync(int, "1") == 1
    wait_until(lambda: all(limit.occupied == 0 for limit in list(_limits.limits.values())), "a slot is not given back")
    owner.stop(GRACE_SECONDS)
    assert owner._thread is not None and not owner._thread.is_alive()
    assert not ran


def test_ctrl_c_while_a_thread_is_started_leaves_nothing_behind(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    have_it_gone(owner)
    _standby._idle.clear()
    for submit in (lambda *_: None, owner._require_running().submit):  # before it is asked to, and after
        with monkeypatch.context() as patch:
            loop = type(owner._require_running())
            interrupt(patch, loop, "submit", lambda _, *args, submit=submit: submit(*args))
            with pytest.raises(KeyboardInterrupt):
                run_in_threadpool_sync(int)

    wait_until(lambda: not _standby._threads and not owner._calls, "a thread is left")
    assert run_in_threadpool_sync(int, "1") == 1


def interrupt_while_it_waits(
    monkeypatch: pytest.MonkeyPatch, waiting: threading.Event, work: Callable[..., object], *args: Any
) -> None:
    """Call *work* in a thread that stands by, and interrupt that call when *waiting* is set."""
    take = _standby._StandbyThread.take

    def take_and_wait(*taken: Any) -> None:
        take(*taken)
        assert waiting.wait(GRACE_SECONDS)

    with monkeypatch.context() as patch:
        interrupt(patch, _standby._StandbyThread, "take", take_and_wait)
        with pytest.raises(KeyboardInterrupt):
            run_in_threadpool_sync(work, *args)


def test_ctrl_c_cancels_what_the_function_waits_for_and_is_raised_when_it_has_ended(
    owner: EventLoopThread, background: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = threading.Event()
    ended: list[str] = []

    async def wait() -> None:
        waiting.set()
        await anyio.sleep_forever()

    def work() -> None:
        try:
            run_in_eventloop_sync(wait)
        except BaseException as exc:
            ended.append(type(exc).__name__)
            raise

    interrupt_while_it_waits(monkeypatch, waiting, work)

    assert ended == ["Cancelled" if background[0] == "trio" else "CancelledError"]


def test_after_ctrl_c_the_function_may_clean_up_by_means_of_anyio(
    owner: EventLoopThread, background: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On trio, what anyio runs for it is cancelled as well; on asyncio it is not, and goes on."""
    waiting = threading.Event()
    ended: list[object] = []

    async def wait() -> None:
        waiting.set()
        await anyio.sleep_forever()

    async def clean_up() -> str:
        async with anyio.Lock():
            return "cleaned up"

    def work() -> None:
        try:
            run_in_eventloop_sync(wait)
        finally:
            ended.extend(captured(partial(anyio.from_thread.run, clean_up)))

    interrupt_while_it_waits(monkeypatch, waiting, work)

    if background[0] == "trio":
        assert type(ended[1]).__name__ == "Cancelled"
    else:
        assert ended == ["cleaned up", None]


def test_ctrl_c_does_not_wait_for_a_loop_that_has_ended(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop is closing: it accepts the cancellation and never handles it."""
    monkeypatch.setattr(_synccalls, "CHECK_SECONDS", 0.01)
    loop = owner._require_running()

    def end(*_: object) -> None:
        owner.stop()
        patch.setattr(type(loop), "post", lambda *_, **__: None)

    with monkeypatch.context() as patch:
        interrupt(patch, _standby._StandbyThread, "take", end)
        with pytest.raises(KeyboardInterrupt):
            run_in_threadpool_sync(int)

    assert run_in_threadpool_sync(int, "1") == 1


def test_on_trio_ctrl_c_cancels_what_the_function_has_anyio_run(
    owner: EventLoopThread, background: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    if background[0] != "trio":
        pytest.skip("asyncio's own cancellation does not reach what anyio runs")
    waiting = threading.Event()
    (thread,) = _standby._threads

    async def wait() -> None:
        waiting.set()
        await anyio.sleep_forever()

    interrupt_while_it_waits(monkeypatch, waiting, anyio.from_thread.run, wait)

    wait_until(lambda: thread._gone, "its task is cancelled, and it stays")
    run_in_threadpool_sync(anyio.from_thread.run, anyio.sleep, 0)


def test_a_thread_whose_call_was_cancelled_takes_no_other(owner: EventLoopThread) -> None:
    (thread,) = _standby._threads

    with pytest.raises(LoopEndedError):
        run_in_threadpool_sync(run_in_eventloop_sync, cancel_current_call)

    wait_until(lambda: thread._gone, "its task is cancelled, and it stays")
    run_in_threadpool_sync(anyio.from_thread.run, anyio.sleep, 0)


async def cancel_current_call() -> None:
    """Cancel the call that bypasses the loop, as the end of the loop does."""
    owner = running()
    (bypassing,) = (call for call in owner._calls.copy() if call.bypassing)
    bypassing.cancel(LoopEndedError("forced"))
    await anyio.sleep_forever()


def test_a_cancellation_that_comes_after_the_call_leaves_its_thread_alone(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[_standby._DirectCall] = []
    take = _standby._StandbyThread.take

    def note_and_take(self: _standby._StandbyThread, direct_call: _standby._DirectCall) -> None:
        taken.append(direct_call)
        take(self, direct_call)

    monkeypatch.setattr(_standby._StandbyThread, "take", note_and_take)
    threads = set()
    for _ in range(2):
        threads.add(run_in_threadpool_sync(threading.get_ident))
        wait_until(lambda: _standby._idle, "the thread does not stand by again")
        thread = _standby._idle[0]
        owner.run_sync(call_in_loop, thread.abort, taken[-1])
        run_in_threadpool_sync(anyio.from_thread.run, anyio.sleep, 0)
        wait_until(lambda: _standby._idle, "the thread does not stand by again")

    assert len(threads) == 1


async def call_in_loop(func: Callable[..., object], *args: object) -> None:
    func(*args)
