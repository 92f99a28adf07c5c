"""Worker threads that stand by for sync callers: who reaches them, how they go, and what they leave to the loop."""

from __future__ import annotations

import asyncio
import contextvars
import os
import sys
import threading
import weakref
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from conftest import (
    GRACE_SECONDS,
    Blocking,
    Gate,
    Outcome,
    captured,
    drops_at_once,
    have_a_thread_stand_by,
    in_plain_thread,
    wait_until,
)

from unfazed.concurrency import (
    EventLoopThread,
    LoopEndedError,
    in_threadpool,
    run_in_eventloop_sync,
    run_in_threadpool_sync,
)
from unfazed.concurrency._core import _limits, _slots
from unfazed.concurrency._core._futures import OneShotFuture
from unfazed.concurrency._core._taskcall import TaskCall
from unfazed.concurrency._eventloops import _background, _bypassing, _synccalls, _workers
from unfazed.concurrency._eventloops._loops import current_loop
from unfazed.concurrency._threads import _standby, _threadcall

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def owner(background: tuple[str, Any]) -> EventLoopThread:
    """Return the background event loop, a thread of which stands by."""
    if background[0] == "trio":
        pytest.skip("no threads stand by on trio, where the task that waits for one cancels what it calls")
    have_a_thread_stand_by()
    return running()


def running() -> EventLoopThread:
    owner = _background.running_background()
    assert owner is not None
    return owner


def hold_up(owner: EventLoopThread) -> Gate:
    """Have the loop do something else, until told."""
    gate = Gate()
    owner._require_running().post(gate.wait)
    assert gate.reached.wait(GRACE_SECONDS)
    return gate


def have_it_go(owner: EventLoopThread) -> _standby._Thread:
    """Have the thread that stands by go, as if it had been idle for long enough."""
    thread = _standby._idle[0]
    thread._calls.put(None)
    wait_until(lambda: thread._gone or thread._calls.empty(), "it does not go")
    return thread


def have_it_gone(owner: EventLoopThread) -> _standby._Thread:
    """Do the same, but for a caller who has taken it for idle just before."""
    thread = have_it_go(owner)
    wait_until(lambda: thread._gone and not _standby._idle, "it does not go")
    _standby._idle.append(thread)
    return thread


class Calling:
    """A call that another thread is making."""

    def __init__(self, call: Callable[[], object]) -> None:
        self.outcomes: list[Outcome] = []
        self._thread = threading.Thread(target=lambda: self.outcomes.append(captured(call)), daemon=True)
        self._thread.start()

    def outcome(self) -> Outcome:
        self._thread.join(GRACE_SECONDS)
        assert self.outcomes, "the call hangs"
        return self.outcomes[0]


def queue_length(limiter: anyio.CapacityLimiter) -> int:
    limits = [limit for known, limit in list(_limits.limits.items()) if known == id(limiter)]
    return sum(len(limit.queue) for limit in limits)


def test_a_call_does_not_wait_for_a_loop_that_is_busy(owner: EventLoopThread) -> None:
    gate = hold_up(owner)

    assert run_in_threadpool_sync(int, "1") == 1
    assert not gate.opened.is_set()
    gate.opened.set()


def test_one_call_after_another_runs_in_the_same_thread(owner: EventLoopThread) -> None:
    threads = set()
    for _ in range(5):
        threads.add(run_in_threadpool_sync(threading.get_ident))
        wait_until(lambda: _standby._idle, "the thread does not stand by again")

    assert len(threads) == 1
    assert threads != {threading.get_ident()}
    wait_until(lambda: len(owner._calls) == 1, "a call is not forgotten")


def test_the_function_belongs_to_the_background_event_loop(owner: EventLoopThread) -> None:
    async def native() -> object:
        return current_loop().native

    assert run_in_threadpool_sync(run_in_eventloop_sync, native) is owner.native
    assert run_in_threadpool_sync(anyio.from_thread.run, native) is owner.native


def test_the_function_runs_in_a_copy_of_the_callers_context(owner: EventLoopThread) -> None:
    variable = contextvars.ContextVar("variable", default="unset")
    variable.set("the caller's")

    def change() -> str:
        before = variable.get()
        variable.set("changed")
        return before

    assert run_in_threadpool_sync(change) == "the caller's"
    assert variable.get() == "the caller's"
    assert in_plain_thread(partial(run_in_threadpool_sync, variable.get)) == "unset"


class Argument:
    """Something that a weak reference can lead to."""


@drops_at_once
def test_nothing_of_a_call_is_kept_by_a_thread_that_stands_by(owner: EventLoopThread) -> None:
    argument = Argument()
    kept = weakref.ref(argument)
    run_in_threadpool_sync(id, argument)
    del argument

    wait_until(lambda: kept() is None, "the argument is kept")


@drops_at_once
def test_an_exception_that_is_kept_does_not_keep_the_callers_context(owner: EventLoopThread) -> None:
    variable: contextvars.ContextVar[Argument] = contextvars.ContextVar("variable")

    def fail() -> None:
        raise ValueError

    def call() -> tuple[weakref.ref[Argument], BaseException | None]:
        argument = Argument()
        variable.set(argument)
        kept = weakref.ref(argument)
        del argument  # for the traceback leads here
        return kept, captured(partial(run_in_threadpool_sync, fail))[1]

    kept, error = contextvars.Context().run(call)

    assert isinstance(error, ValueError)
    wait_until(lambda: kept() is None, "the context is kept")


@pytest.mark.parametrize("seen", [True, False], ids=["seen beforehand", "seen by the thread"])
def test_a_call_for_which_no_slot_is_free_waits_for_one(
    seen: bool, owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not seen:
        monkeypatch.setattr(_slots, "seems_free", lambda _: True)
    limiter = anyio.CapacityLimiter(1)
    slot = _slots.acquire(limiter)

    call = Calling(partial(in_threadpool(int, limiter=limiter).sync, "1"))
    wait_until(lambda: queue_length(limiter) == 1, "the call does not queue")
    assert not call.outcomes
    _slots.release(slot)

    assert call.outcome() == (1, None)
    assert run_in_threadpool_sync(int, "2") == 2


def test_no_more_threads_stand_by_than_there_are_slots(owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_slots, "seems_free", lambda _: True)  # as it seems to a crowd that comes in at once
    limiter = anyio.CapacityLimiter(2)
    holders = [Blocking() for _ in range(2)]
    calls = []
    for holder in holders:
        calls.append(Calling(in_threadpool(holder, limiter=limiter).sync))
        assert holder.started.wait(GRACE_SECONDS)

    crowd = [Calling(partial(in_threadpool(int, limiter=limiter).sync, "1")) for _ in range(5)]
    wait_until(lambda: queue_length(limiter) == 5, "they do not queue")

    assert len(_standby._threads) == 2
    for holder in holders:
        holder.may_end.set()
    assert [call.outcome() for call in crowd] == [(1, None)] * 5
    assert all(call.outcome()[1] is None for call in calls)


# Threads come and go


def test_a_thread_that_nobody_calls_goes_and_the_next_call_has_another(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_standby, "IDLE_SECONDS", 0.01)
    run_in_threadpool_sync(int)

    wait_until(lambda: not _standby._idle and not _standby._threads, "the thread stays")
    assert run_in_threadpool_sync(int, "1") == 1


def test_the_loop_does_what_a_thread_was_called_for_just_when_it_went(owner: EventLoopThread) -> None:
    """1: the thread goes. 2: a call takes it for idle. 3: the loop sees that it is gone."""
    gate = hold_up(owner)
    thread = have_it_go(owner)

    call = Calling(partial(run_in_threadpool_sync, int, "1"))
    wait_until(lambda: not thread._calls.empty(), "it is not taken for idle")
    gate.opened.set()

    assert call.outcome() == (1, None)


def test_the_loop_does_what_a_thread_is_called_for_that_has_gone(owner: EventLoopThread) -> None:
    """1: a call takes the thread for idle. 2: the thread goes. 3: the call comes."""
    have_it_gone(owner)

    assert run_in_threadpool_sync(int, "1") == 1


def test_a_thread_that_cannot_start_is_reported_and_the_next_call_works(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = Blocking()
    call = Calling(partial(run_in_threadpool_sync, holder))  # so that the next one needs another thread
    assert holder.started.wait(GRACE_SECONDS)

    async def no_more_threads(*args: object, **kwargs: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(anyio.to_thread, "run_sync", no_more_threads)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            run_in_threadpool_sync(int)

    assert run_in_threadpool_sync(int, "1") == 1
    holder.may_end.set()
    assert call.outcome()[1] is None


def test_what_is_raised_in_the_thread_from_outside_reaches_the_caller(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FromOutsideError(BaseException):
        pass

    def raise_it(*_: object) -> bool:
        raise FromOutsideError

    with monkeypatch.context() as patch:
        patch.setattr(_threadcall.ThreadCall, "run_bypassing", raise_it)
        with pytest.raises(FromOutsideError):
            run_in_threadpool_sync(int)

    assert run_in_threadpool_sync(int, "1") == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_no_thread_stands_by_in_a_forked_child(owner: EventLoopThread) -> None:
    child = os.fork()
    if not child:
        os._exit(len(_standby._idle) + len(_standby._threads))

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert len(_standby._idle) == 1


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
    """Whatever the call comes to: what it returned, by way of another loop, or that the loop has ended."""

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
    """That of the one before, which has just ended, and the thread does not know yet."""
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
    """Its caller may have been told so by then."""
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
    """SystemExit in a callback ends an asyncio loop, which cancels its tasks and waits for them."""

    async def wait() -> None:
        begun.set()
        await anyio.sleep_forever()

    def work() -> str:
        worker = _workers.thread.worker
        assert worker is not None
        if waits:
            with suppress(asyncio.CancelledError):
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
    wait_until(lambda: not owner.is_running(), "it has not ended")
    assert not owner._calls
    assert run_in_threadpool_sync(int, "1") == 1


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
    take = _standby._Thread.take
    with monkeypatch.context() as patch:
        interrupt(patch, _standby._Thread, "take", lambda *args: taken.append(args))
        with pytest.raises(KeyboardInterrupt):
            run_in_threadpool_sync(ran.append, True)

    take(*taken[0])  # too late

    wait_until(lambda: _standby._idle, "the thread does not stand by again")
    assert not ran
    assert run_in_threadpool_sync(int, "1") == 1


@pytest.mark.parametrize("gone", ["before", "after"])
def test_ctrl_c_while_the_loop_takes_a_call_back_leaves_nothing_behind(
    gone: str, owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cancellation comes before that, or right after it, in one turn of the loop."""
    ran: list[bool] = []
    thread = have_it_gone(owner)
    take = _standby._Thread.take
    gates: list[Gate] = []

    def take_or_wait(*args: Any) -> None:
        gates.append(hold_up(owner))
        if gone == "before":
            take(*args)
        else:
            thread._calls.put(args[1])
        threading.Timer(0.05, gates[0].opened.set).start()

    with monkeypatch.context() as patch:
        interrupt(patch, _standby._Thread, "take", take_or_wait)
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


def test_ctrl_c_cancels_what_the_function_waits_for_and_is_raised_when_it_has_ended(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
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

    take = _standby._Thread.take

    def take_and_wait(*args: Any) -> None:
        take(*args)
        assert waiting.wait(GRACE_SECONDS)

    with monkeypatch.context() as patch:
        interrupt(patch, _standby._Thread, "take", take_and_wait)
        with pytest.raises(KeyboardInterrupt):
            run_in_threadpool_sync(work)

    assert ended == ["CancelledError"]


def test_ctrl_c_does_not_wait_for_a_loop_that_has_ended(
    owner: EventLoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It takes the cancellation, which it never sees, as it is closing."""
    monkeypatch.setattr(_synccalls, "GONE_CHECK_SECONDS", 0.01)
    loop = owner._require_running()

    def end(*_: object) -> None:
        owner.stop()
        patch.setattr(type(loop), "post", lambda *_, **__: None)

    with monkeypatch.context() as patch:
        interrupt(patch, _standby._Thread, "take", end)
        with pytest.raises(KeyboardInterrupt):
            run_in_threadpool_sync(int)

    assert run_in_threadpool_sync(int, "1") == 1


def test_on_trio_ctrl_c_cancels_what_the_function_has_anyio_run(
    background: tuple[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For which reason no threads stand by there."""
    if background[0] != "trio":
        pytest.skip("asyncio's own cancellation does not reach what anyio runs")
    waiting = threading.Event()

    async def wait() -> None:
        waiting.set()
        await anyio.sleep_forever()

    for _ in range(3):
        run_in_threadpool_sync(int)

    def submit_and_wait(*args: Any) -> None:
        _background.submit_to_background(*args)
        assert waiting.wait(GRACE_SECONDS)

    with monkeypatch.context() as patch:
        interrupt(patch, _standby, "submit_to_background", submit_and_wait)
        with pytest.raises(KeyboardInterrupt):
            run_in_threadpool_sync(anyio.from_thread.run, wait)

    assert not _standby._threads
    assert run_in_threadpool_sync(int, "1") == 1
