"""What is interrupted halfway, comes twice, or comes too late, one forced step at a time.

`test_asgiref_interrupted.py` has signal handlers do the same at any bytecode; this says what comes of each.
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
    _contextmanagers,
    _currentthreadexecutor,
    _futures,
    _install,
    _loops,
    _loopthreads,
    _shared,
    _singlethreadexecutor,
    _taskcall,
    _threadcall,
    _threads,
    async_to_sync,
    install,
)
from unfazed_compat.asgiref._currentthreadexecutor import CurrentThreadExecutor
from unfazed_compat.asgiref._executorcall import ExecutorCall
from unfazed_compat.asgiref._nestedtasks import NestedTasks
from unfazed_compat.asgiref._singlethreadexecutor import SingleThreadExecutor

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
    """A call that a signal handler interrupts; *caller*: an executor that loses it before that."""

    def __init__(self, caller: Any = None) -> None:
        self._caller = caller
        self.error: BaseException | None = None

    def run(self) -> None:
        if self._caller is not None:
            self._caller._calls.popleft()
        raise Stop

    def fail_unless_begun(self, error: BaseException) -> None:
        raise AssertionError

    def fail(self, error: BaseException) -> None:
        self.error = error


async def nothing() -> None:
    pass


async def one() -> int:
    return 1


def call_of(func: Any = nothing) -> _taskcall.TaskCall:
    inner = func()
    result: _futures.OneShotFuture[Any] = _futures.OneShotFuture()

    async def work() -> None:
        result.set_result(await inner)

    return _taskcall.TaskCall(work(), inner, result)


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
    result: _futures.OneShotFuture[Any] = _futures.OneShotFuture()
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

    monkeypatch.setattr(_taskcall, "start_task", Interrupted(_loops.start_task, after=True))
    asyncio.run(main())


def test_a_call_that_trio_does_not_start_any_more_has_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    token: Any = None
    monkeypatch.setattr(_taskcall, "start_task", Interrupted(int))
    call = call_of()

    assert call.start(_loops.TrioLoop(token)) is None
    with pytest.raises(LoopEndedError):
        call.result.result()


def test_a_call_that_was_sent_nowhere_has_lost_no_steps() -> None:
    call = call_of()
    call.repeat_lost_steps()
    call.repeat_lost_steps_here()

    assert call.give_up()


def test_a_waiting_thread_has_lost_steps_repeated_until_the_loop_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_currentthreadexecutor, "CHECK_SECONDS", 0.001)
    call, loop = call_of(), asyncio.new_event_loop()
    loop.close()
    with pytest.raises(RuntimeError, match="closed"):
        call.send_to(loop)
    gone = iter([False, True])

    assert not CurrentThreadExecutor(None).serve(lambda: next(gone), call)
    assert call.give_up()


def test_a_call_that_has_a_result_is_not_started_to_be_cancelled() -> None:
    call = call_of()
    call.result.set_result(None)
    loop: Any = object()

    assert call.start(loop) is None
    call._cancel_task()
    assert not call._task_is_cancelled
    call._close()


def test_a_task_that_has_ended_ends_twice_harmlessly() -> None:
    calls, told = NestedTasks(), list[Any]()
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
    leave = Interrupted(_contextmanagers._leave_single_thread_context, after=after)
    monkeypatch.setattr(_contextmanagers, "_leave_single_thread_context", leave)
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

    executor = SingleThreadExecutor() if own else None
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

    monkeypatch.setattr(
        _contextmanagers,
        "_leave_thread_sensitive_context",
        Interrupted(_contextmanagers._leave_thread_sensitive_context),
    )
    asyncio.run(main())


def test_an_installation_that_is_interrupted_is_taken_back(monkeypatch: pytest.MonkeyPatch) -> None:
    before = dict(vars(asgiref.sync.SyncToAsync))
    monkeypatch.setattr(_install, "_replace", Interrupted(_install._replace, after=True))
    with pytest.raises(Stop):
        install()

    assert dict(vars(asgiref.sync.SyncToAsync)) == before


# ---- what is sent to a thread


def test_a_call_is_made_or_failed_once() -> None:
    done, dropped, told = list[int](), ExecutorCall(int), ExecutorCall(int)
    item = ExecutorCall(lambda: done.append(1))
    item.run()
    item.run()
    item.fail_unless_begun(ZeroDivisionError())
    item.fail(ZeroDivisionError())
    dropped.fail_unless_begun(ZeroDivisionError())
    dropped.run()
    told.fail(ZeroDivisionError())
    told.run()

    assert done == [1]
    assert item.future.result(0) is None
    assert isinstance(dropped.future.exception(0), ZeroDivisionError)
    assert isinstance(told.future.exception(0), ZeroDivisionError)


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_call_that_is_interrupted_fails(forgotten: bool) -> None:
    caller = CurrentThreadExecutor(None)
    item, rest = Deadly(caller if forgotten else None), ExecutorCall(int)
    caller._put(item)
    caller._put(rest)
    with pytest.raises(Stop):
        caller.serve(lambda: True)
    caller.close(interrupted=True)

    assert isinstance(item.error, ExecutorError)
    assert isinstance(rest.future.exception(0), ExecutorError)
    assert not caller._calls


def test_a_thread_waits_until_its_loop_is_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_currentthreadexecutor, "CHECK_SECONDS", 0.001)
    gone = iter([False, False, True])

    assert not CurrentThreadExecutor(None).serve(lambda: next(gone))
    assert list(gone) == []


def test_what_has_come_before_the_thread_lends_its_slot_is_seen() -> None:
    caller = CurrentThreadExecutor(None)
    caller.finish()
    asyncio.run(asyncio.wait_for(caller._wait_in_loop(None), GRACE_SECONDS))

    assert caller.serve(lambda: False)


def test_a_forked_child_that_could_not_watch_its_end_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    start = Interrupted(lambda *_, **__: None)
    monkeypatch.setattr(_singlethreadexecutor, "_end_is_unwatched", True)
    monkeypatch.setattr(_singlethreadexecutor, "start_thread", start)
    executor = SingleThreadExecutor()
    with pytest.raises(Stop):
        executor.submit(int)
    executor.submit(int).result(GRACE_SECONDS)
    executor.submit(int).result(GRACE_SECONDS)
    executor.shutdown()

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
        patch.setattr(_singlethreadexecutor, "end_single_thread_executors", lambda: ended.append(not other.is_alive()))
        _singlethreadexecutor._end_after_other_threads()

    assert ended == [True]


def test_a_waker_that_is_interrupted_wakes_once_more() -> None:
    class Sleeper:
        note_end = Interrupted(int)

    call: Any = Sleeper()
    waker = _threadcall._waking(call)
    next(waker)
    with pytest.raises(Stop):
        next(waker)

    assert Sleeper.note_end.calls == 2


# ---- threads


def test_a_thread_whose_start_is_interrupted_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = SingleThreadExecutor()
    start = threading.Thread.start
    started = list[threading.Thread]()

    def interrupted(thread: threading.Thread) -> None:
        start(thread)
        started.append(thread)
        raise Stop

    monkeypatch.setattr(threading.Thread, "start", interrupted)
    with pytest.raises(Stop):
        executor.submit(int)

    assert executor.submit(threading.current_thread).result(GRACE_SECONDS) is started[0]
    assert executor._thread_runner.threads == set(started)
    executor.shutdown()


def test_a_thread_runner_whose_closing_is_interrupted_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = SingleThreadExecutor()
    thread = executor.submit(threading.current_thread).result(GRACE_SECONDS)
    wake_to_end = _threads.ThreadRunner.wake_to_end
    interrupted = Interrupted(wake_to_end)
    monkeypatch.setattr(_threads.ThreadRunner, "wake_to_end", lambda runner: interrupted(runner))
    with pytest.raises(Stop):
        executor.shutdown()
    thread.join(GRACE_SECONDS)

    assert not thread.is_alive()


def test_a_thread_runner_of_the_parent_process_is_not_woken(monkeypatch: pytest.MonkeyPatch) -> None:
    """When this process has forked: the queue may be in any state."""
    executor = SingleThreadExecutor()
    monkeypatch.setattr(_threads, "_generation", object())
    executor.shutdown()

    assert executor._thread_runner.closed
    assert executor._thread_runner._calls.empty()


def test_a_loop_thread_that_was_shut_down_takes_no_calls() -> None:
    loop_thread = _loopthreads.LoopThread()
    loop_thread.shutdown()

    with pytest.raises(RuntimeError, match="after shutdown"):
        loop_thread.submit(int)


def test_a_call_that_a_loop_thread_has_begun_is_not_given_up() -> None:
    call = call_of()
    loop_thread = _loopthreads.LoopThread()
    sent = _loopthreads._LoopThreadCall(
        loop_thread._runner, call, CurrentThreadExecutor(None), contextvars.copy_context()
    )
    sent.run()
    sent.ended = False
    sent.fail_unless_begun(ZeroDivisionError())

    assert call.result.result() is None
    assert not sent.ended
    assert not sent.is_gone()
    loop_thread._runner.close_loop()


def test_a_call_that_waits_for_a_loop_thread_is_gone_only_after_a_fork(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    call = call_of()
    loop_thread = _loopthreads.LoopThread()
    thread_runner = loop_thread._runner.thread_runner
    sent = _loopthreads._LoopThreadCall(
        loop_thread._runner, call, CurrentThreadExecutor(None), contextvars.copy_context()
    )

    assert not sent.is_gone()
    assert len(thread_runner.threads) == 1
    loop_thread.shutdown()
    monkeypatch.setattr(_threads, "_generation", object())
    assert sent.is_gone()
    call.give_up()
