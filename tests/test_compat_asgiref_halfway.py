"""What is interrupted halfway, comes twice, or comes too late, one forced step at a time.

`test_compat_asgiref_interrupted.py` has signal handlers do the same at any bytecode; this says what comes of each.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import asgiref.sync
import pytest
from asgiref_helpers import end_threads, this_thread
from conftest import GRACE_SECONDS
from unfazed_compat.asgiref import (
    AsyncSingleThreadContext,
    AsyncToSync,
    ThreadSensitiveContext,
    _async_to_sync,
    _calls,
    _companions,
    _executors,
    _install,
    _jobs,
    _loops,
    _outcomes,
    _shared,
    _sync_to_async,
    _threads,
    async_to_sync,
    install,
)

from unfazed.concurrency import ExecutorError, LoopEndedError

if TYPE_CHECKING:
    from collections.abc import Callable

assert end_threads  # a fixture


class Stop(BaseException):
    """What a signal handler raises."""


class Interrupted:
    """*func*, which is interrupted when it is called first: before it does anything, or *after* that."""

    def __init__(self, func: Callable[..., Any], *, after: bool = False) -> None:
        self._func = func
        self._after = after
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        if self.calls == 1:
            if self._after:
                self._func(*args, **kwargs)
            raise Stop
        return self._func(*args, **kwargs)


class Variable:
    """A context variable whose first `set` is interrupted, when it is done."""

    def __init__(self, variable: contextvars.ContextVar[Any]) -> None:
        self.get = variable.get
        self.reset = variable.reset
        self.set = Interrupted(variable.set, after=True)


class Deadly:
    """An item that is interrupted; *pump* is one that forgets it before that."""

    def __init__(self, pump: Any = None) -> None:
        self._pump = pump
        self.error: BaseException | None = None

    def run(self) -> None:
        if self._pump is not None:
            self._pump._items.popleft()
        raise Stop

    def drop(self, error: BaseException) -> None:
        raise AssertionError

    def fail(self, error: BaseException) -> None:
        self.error = error


async def nothing() -> None:
    pass


async def one() -> int:
    return 1


def call_of(func: Any = nothing) -> _calls.Call:
    inner = func()
    result: _outcomes.Outcome[Any] = _outcomes.Outcome()

    async def work() -> None:
        result.set_result(await inner)

    return _calls.Call(work(), inner, result)


# ---- calls of async code


def test_a_call_that_is_interrupted_before_it_has_a_context_leaves_this_thread_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = _shared.worker_state(), getattr(_shared.executors, "current", None)
    copy = Interrupted(contextvars.copy_context)
    monkeypatch.setattr(_async_to_sync, "copy_context", copy)
    with pytest.raises(Stop):
        async_to_sync(nothing)()

    assert (_shared.worker_state(), getattr(_shared.executors, "current", None)) == before
    assert async_to_sync(this_thread)().is_alive()


def test_a_future_that_is_done_keeps_its_result() -> None:
    """One of asgiref's own wrappers, which may be told twice."""
    future: Future[Any] = Future()
    future.set_result(1)
    nowhere = None, None, None
    asyncio.run(AsyncToSync(nothing).main_wrap(future, nowhere, None, [contextvars.copy_context()], nothing()))

    assert future.result() == 1


@pytest.mark.parametrize("after", [False, True])
def test_a_result_whose_telling_is_interrupted_is_told(monkeypatch: pytest.MonkeyPatch, after: bool) -> None:
    end = Interrupted(_async_to_sync._end, after=after)
    monkeypatch.setattr(_async_to_sync, "_end", end)
    result: _outcomes.Outcome[Any] = _outcomes.Outcome()
    nowhere = None, None, None
    with pytest.raises(Stop):
        asyncio.run(AsyncToSync(one).main_wrap(result, nowhere, None, [contextvars.copy_context()], one()))

    assert result.result() == 1
    assert end.calls == 2


def test_a_task_that_was_made_before_the_interruption_still_ends_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        call = call_of(one)
        with pytest.raises(Stop):
            call.start(asyncio.get_running_loop())
        await asyncio.wait([call.start(asyncio.get_running_loop())])

        assert call.result.result() == 1

    monkeypatch.setattr(_calls, "start_task", Interrupted(_loops.start_task, after=True))
    asyncio.run(main())


def test_a_call_that_trio_does_not_start_any_more_has_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    token: Any = None
    monkeypatch.setattr(_calls, "start_task", Interrupted(int))
    call = call_of()

    assert call.start(_loops.TrioLoop(token)) is None
    with pytest.raises(LoopEndedError):
        call.result.result()


def test_a_call_that_was_sent_nowhere_needs_no_looking_after() -> None:
    call = call_of()
    call.look_after()
    call.look_after_here()

    assert call.drop()


def test_a_thread_that_waits_looks_after_its_call_until_the_loop_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_executors, "GONE_CHECK_SECONDS", 0.001)
    call, loop = call_of(), asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        call.send_to(loop)
    gone = iter([False, True])

    assert not _executors.Pump(None).serve(lambda: next(gone), call)
    assert call.drop()


def test_a_call_that_has_a_result_is_not_started_to_be_cancelled() -> None:
    call = call_of()
    call.result.set_result(None)
    loop: Any = object()

    assert call.start(loop) is None
    call._tell()
    assert not call._told
    call._close()


def test_a_task_that_has_ended_ends_twice_harmlessly() -> None:
    calls, told = _jobs.Calls(), list[Any]()
    calls.on_end = lambda: told.append(None)
    task: Any = object()
    calls.begin(task)
    calls.end(task, None)
    calls.end(task, None)

    assert told == [None]


# ---- contexts


def test_a_context_for_async_code_that_is_interrupted_at_its_beginning_never_begins(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    variable = _shared.async_single_thread_context
    monkeypatch.setattr(_shared, "async_single_thread_context", Variable(variable))
    scope = AsyncSingleThreadContext()
    with pytest.raises(Stop), scope:
        raise AssertionError

    assert variable.get(None) is None
    assert scope.token is None


@pytest.mark.parametrize("after", [False, True])
def test_a_context_for_async_code_that_is_interrupted_at_its_end_ends(
    monkeypatch: pytest.MonkeyPatch, after: bool
) -> None:
    leave = Interrupted(_async_to_sync._leave_single_thread_context, after=after)
    monkeypatch.setattr(_async_to_sync, "_leave_single_thread_context", leave)
    with pytest.raises(Stop), AsyncSingleThreadContext() as scope:
        thread = async_to_sync(this_thread)()

    assert not thread.is_alive()
    assert scope not in _shared.single_thread_contexts
    assert _shared.async_single_thread_context.get(None) is None


@pytest.mark.parametrize("own", [False, True])
def test_a_context_for_sync_code_that_is_interrupted_at_its_beginning_never_begins(
    monkeypatch: pytest.MonkeyPatch, own: bool
) -> None:
    async def main() -> None:
        with pytest.raises(Stop):
            async with scope:
                raise AssertionError

        assert variable.get(None) is None

    executor = _executors.Lane() if own else None
    variable = _shared.thread_sensitive_context
    monkeypatch.setattr(_shared, "thread_sensitive_context", Variable(variable))
    scope = ThreadSensitiveContext(executor=executor)
    asyncio.run(main())

    assert scope.token is None
    assert scope not in _shared.scope_executors


def test_a_context_for_sync_code_that_is_interrupted_at_its_end_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with pytest.raises(Stop):
            async with ThreadSensitiveContext():
                pass

        assert _shared.thread_sensitive_context.get(None) is None

    monkeypatch.setattr(_sync_to_async, "_leave_context", Interrupted(_sync_to_async._leave_context))
    asyncio.run(main())


def test_an_installation_that_is_interrupted_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(vars(asgiref.sync.SyncToAsync))
    monkeypatch.setattr(_install, "_replace", Interrupted(_install._replace, after=True))
    with pytest.raises(Stop):
        install()

    assert dict(vars(asgiref.sync.SyncToAsync)) == before


# ---- what is sent to a thread


def test_an_item_is_done_or_dropped_once() -> None:
    done, dropped, told = list[int](), _executors.WorkItem(int), _executors.WorkItem(int)
    item = _executors.WorkItem(lambda: done.append(1))
    item.run()
    item.run()
    item.drop(ZeroDivisionError())
    item.fail(ZeroDivisionError())
    dropped.drop(ZeroDivisionError())
    dropped.run()
    told.fail(ZeroDivisionError())
    told.run()

    assert done == [1]
    assert item.future.result(0) is None
    assert isinstance(dropped.future.exception(0), ZeroDivisionError)
    assert isinstance(told.future.exception(0), ZeroDivisionError)


@pytest.mark.parametrize("forgotten", [False, True])
def test_an_item_that_is_interrupted_has_an_error(forgotten: bool) -> None:
    pump = _executors.Pump(None)
    item, rest = Deadly(pump if forgotten else None), _executors.WorkItem(int)
    pump._put(item)
    pump._put(rest)
    with pytest.raises(Stop):
        pump.serve(lambda: True)
    pump.close(interrupted=True)

    assert isinstance(item.error, ExecutorError)
    assert isinstance(rest.future.exception(0), ExecutorError)
    assert not pump._items


def test_a_thread_waits_until_its_loop_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_executors, "GONE_CHECK_SECONDS", 0.001)
    gone = iter([False, False, True])

    assert not _executors.Pump(None).serve(lambda: next(gone))
    assert list(gone) == []


def test_what_has_come_before_the_thread_lends_its_slot_is_seen() -> None:
    pump = _executors.Pump(None)
    pump.finish()
    asyncio.run(asyncio.wait_for(pump._arrival(None), GRACE_SECONDS))

    assert pump.serve(lambda: False)


def test_a_forked_child_that_could_not_watch_its_end_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Interrupted(lambda *_, **__: None)
    monkeypatch.setattr(_executors, "_forked", True)
    monkeypatch.setattr(_executors, "start_thread", start)
    lane = _executors.Lane()
    with pytest.raises(Stop):
        lane.submit(int)
    lane.submit(int).result(GRACE_SECONDS)
    lane.submit(int).result(GRACE_SECONDS)
    lane.shutdown()

    assert start.calls == 2


def test_a_forked_child_ends_its_executors_after_its_other_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    may_end, ended, main = threading.Event(), list[bool](), threading.Thread(target=int)
    other = threading.Thread(target=may_end.wait, args=(GRACE_SECONDS,))
    for thread in (main, other):
        thread.start()

    def alive() -> list[threading.Thread]:
        found = [other] if other.is_alive() else []
        may_end.set()
        return found

    with monkeypatch.context() as patch:
        patch.setattr(threading, "main_thread", lambda: main)
        patch.setattr(threading, "enumerate", alive)
        patch.setattr(_executors, "end_lanes", lambda: ended.append(not other.is_alive()))
        _executors._end_lanes_last()

    assert ended == [True]


def test_a_waker_that_is_interrupted_wakes_once_more() -> None:
    class Sleeper:
        wake_up = Interrupted(int)

    job: Any = Sleeper()
    waker = _jobs._waking(job)
    next(waker)
    with pytest.raises(Stop):
        next(waker)

    assert Sleeper.wake_up.calls == 2


# ---- threads


def test_a_thread_whose_start_is_interrupted_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = _executors.Lane()
    start = threading.Thread.start
    started = list[threading.Thread]()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise Stop

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(Stop):
        lane.submit(int)

    assert lane.submit(threading.current_thread).result(GRACE_SECONDS) is started[0]
    assert lane._worker.threads == set(started)
    lane.shutdown()


def test_a_worker_whose_end_is_interrupted_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    lane = _executors.Lane()
    thread = lane.submit(threading.current_thread).result(GRACE_SECONDS)
    tell = _threads.Worker.tell
    interrupted = Interrupted(tell)
    monkeypatch.setattr(_threads.Worker, "tell", lambda worker: interrupted(worker))
    with pytest.raises(Stop):
        lane.shutdown()
    thread.join(GRACE_SECONDS)

    assert not thread.is_alive()


def test_a_worker_that_stayed_behind_is_told_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this process has forked: the queue may be in any state."""
    lane = _executors.Lane()
    monkeypatch.setattr(_threads, "_era", object())
    lane.shutdown()

    assert lane._worker.closed
    assert lane._worker._items.empty()


def test_a_companion_that_has_ended_takes_nothing() -> None:
    companion = _companions.Companion()
    companion.shutdown()

    with pytest.raises(RuntimeError, match="after shutdown"):
        companion.submit(int)


def test_a_call_that_a_companion_has_begun_is_not_dropped() -> None:
    call = call_of()
    companion = _companions.Companion()
    visit = _companions._Visit(companion._loop_thread, call, _executors.Pump(None), contextvars.copy_context())
    visit.run()
    visit.ended = False
    visit.drop(ZeroDivisionError())

    assert call.result.result() is None
    assert not visit.ended
    assert not visit.is_gone()
    companion._loop_thread._end()


def test_a_call_that_waits_for_its_companion_is_gone_only_if_that_stayed_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = call_of()
    companion = _companions.Companion()
    worker = companion._loop_thread.worker
    visit = _companions._Visit(companion._loop_thread, call, _executors.Pump(None), contextvars.copy_context())

    assert not visit.is_gone()
    assert len(worker.threads) == 1
    companion.shutdown()
    monkeypatch.setattr(_threads, "_era", object())
    assert visit.is_gone()
    call.drop()
