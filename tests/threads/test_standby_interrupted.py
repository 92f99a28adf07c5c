"""Worker threads on standby when Ctrl-C comes or their call is cancelled: each moment is forced."""

from __future__ import annotations

import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import pytest
from conftest import GRACE_SECONDS, Gate, captured, wait_until
from standing_by import have_it_gone, hold_up, owner, running

from unfazed.concurrency import (
    EventLoopThread,
    LoopEndedError,
    run_in_eventloop_sync,
    run_in_threadpool_sync,
    start_in_threadpool,
)
from unfazed.concurrency._core import _limits
from unfazed.concurrency._eventloops import _synccalls
from unfazed.concurrency._threads import _standby

if TYPE_CHECKING:
    from collections.abc import Callable

assert owner  # a fixture


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
