"""Worker threads on standby for sync callers: who uses them, how they start and end."""

from __future__ import annotations

import contextvars
import os
import threading
import weakref
from functools import partial

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from conftest import GRACE_SECONDS, Blocking, captured, drop_garbage, drops_at_once, in_plain_thread, wait_until
from standing_by import Calling, have_it_go, have_it_gone, hold_up, owner

from unfazed.concurrency import EventLoopThread, in_threadpool, run_in_eventloop_sync, run_in_threadpool_sync
from unfazed.concurrency._core import _limits, _slots
from unfazed.concurrency._eventloops._loops import current_loop
from unfazed.concurrency._threads import _standby, _threadcall

assert owner  # a fixture


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
    """An object that takes weak references."""


def is_gone(reference: weakref.ref[Argument]) -> bool:
    drop_garbage()
    return reference() is None


def test_nothing_of_a_call_is_kept_by_a_thread_that_stands_by(owner: EventLoopThread) -> None:
    argument = Argument()
    kept = weakref.ref(argument)
    run_in_threadpool_sync(id, argument)
    del argument

    wait_until(lambda: is_gone(kept), "the argument is kept")


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
    wait_until(lambda: is_gone(kept), "the context is kept")


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
