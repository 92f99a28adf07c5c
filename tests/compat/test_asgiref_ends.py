"""asgiref's names when a loop ends or stops, on Ctrl-C, and at exit: every caller gets an answer."""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import anyio
import pytest
from asgiref_helpers import end_threads, this_thread
from conftest import GRACE_SECONDS, Blocking, captured, in_plain_thread, wait_for_event, wait_until
from unfazed_compat.asgiref import (
    SyncToAsync,
    _async_to_sync,
    _currentthreadexecutor,
    _looprunner,
    _loopthreads,
    async_to_sync,
    sync_to_async,
)
from unfazed_compat.asgiref._currentthreadexecutor import CurrentThreadExecutor
from unfazed_compat.asgiref._futures import OneShotFuture
from unfazed_compat.asgiref._loops import current_loop
from unfazed_compat.asgiref._taskcall import TaskCall

from unfazed.concurrency import LoopEndedError

assert end_threads  # a fixture

only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])


def test_a_call_to_a_loop_that_ends_is_told_so() -> None:
    """The loop is cancelled before the call's task has begun."""
    posted, may_end = threading.Event(), threading.Event()
    outcomes: list[Any] = []

    def outer() -> None:
        outcomes.append(captured(async_to_sync(this_thread)))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        monkeypatched = loop.call_soon_threadsafe

        def post(func: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(func, "__name__", "") == "start":
                posted.set()
                return monkeypatched(lambda: (func(*args), [each.cancel() for each in asyncio.all_tasks()]))
            return monkeypatched(func, *args, **kwargs)

        loop.call_soon_threadsafe = post  # type: ignore[method-assign, assignment]
        with suppress(asyncio.CancelledError):
            await sync_to_async(outer)()

    asyncio.run(main())
    asyncio.run(sync_to_async(int)())
    may_end.set()

    assert isinstance(outcomes[0][1], asyncio.CancelledError)


def test_a_loop_that_drops_the_call_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_currentthreadexecutor, "CHECK_SECONDS", 0.01)
    outcomes: list[Any] = []
    dropped, has_ended = threading.Event(), threading.Event()

    def outer() -> None:
        outcomes.append(captured(async_to_sync(this_thread)))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        post = loop.call_soon_threadsafe

        def drop(func: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(func, "__name__", "") == "start":
                dropped.set()
                assert has_ended.wait(GRACE_SECONDS)  # otherwise the thread might have it repeated
                return None
            return post(func, *args, **kwargs)

        loop.call_soon_threadsafe = drop  # type: ignore[method-assign, assignment]
        task = asyncio.create_task(sync_to_async(outer)())
        await wait_for_event(dropped)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
    has_ended.set()
    asyncio.run(sync_to_async(int)())

    assert isinstance(outcomes[0][1], LoopEndedError)


@pytest.mark.anyio
@only_asyncio
async def test_a_task_factory_that_fails_is_heard_of() -> None:
    loop = asyncio.get_running_loop()
    error = ValueError("no tasks today")

    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise error

    def outer() -> BaseException | None:
        loop.set_task_factory(refuse)
        try:
            return captured(async_to_sync(this_thread))[1]
        finally:
            loop.set_task_factory(None)

    assert await sync_to_async(outer)() is error


def test_a_loop_that_has_stopped_is_not_waited_for() -> None:
    """A worker may outlive the run of its loop: it gets a loop of its own then."""
    may_call, outcomes = threading.Event(), []

    def outer() -> None:
        assert may_call.wait(GRACE_SECONDS)
        outcomes.append(async_to_sync(this_thread)())

    started = threading.Event()

    def announce() -> None:
        started.set()
        outer()

    async def start() -> asyncio.Task[None]:
        task = asyncio.create_task(sync_to_async(announce)())
        await wait_for_event(started)
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(start())
    may_call.set()
    wait_until(lambda: outcomes, "the call hangs")
    loop.run_until_complete(task)
    loop.run_until_complete(loop.shutdown_default_executor())
    loop.close()

    assert outcomes[0].name.startswith("unfazed-async-to-sync")


def test_the_end_of_trio_is_told_to_a_call() -> None:
    trio = pytest.importorskip("trio")
    started, outcomes = threading.Event(), []

    async def forever() -> None:
        started.set()
        await trio.sleep_forever()

    def outer(loop: object) -> None:
        SyncToAsync.threadlocal.main_event_loop = loop
        SyncToAsync.threadlocal.main_event_loop_pid = os.getpid()
        outcomes.append(captured(async_to_sync(forever)))

    threads: list[threading.Thread] = []

    async def main() -> None:
        threads.append(threading.Thread(target=outer, args=(current_loop(),)))
        threads[0].start()
        await wait_for_event(started)

    trio.run(main)
    threads[0].join(GRACE_SECONDS)

    assert isinstance(outcomes[0][1], LoopEndedError)


def test_a_loop_of_trio_knows_when_it_has_ended() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> Any:
        assert current_loop() == current_loop()
        assert len({current_loop(), current_loop()}) == 1
        return current_loop()

    loop = trio.run(main)

    assert loop.is_closed()
    assert not loop.is_running()


def test_a_loop_that_closes_just_now_is_not_used() -> None:
    class Closing:
        def is_running(self) -> bool:
            return True

        def call_soon_threadsafe(self, *_: object) -> None:
            raise RuntimeError("Event loop is closed")

    def call() -> threading.Thread:
        SyncToAsync.threadlocal.main_event_loop = Closing()
        SyncToAsync.threadlocal.main_event_loop_pid = os.getpid()
        return async_to_sync(this_thread)()

    assert in_plain_thread(call).name.startswith("unfazed-async-to-sync")


INTERRUPTED = """
import asyncio, signal, sys, threading
from contextlib import nullcontext
from unfazed_compat.asgiref import AsyncSingleThreadContext, async_to_sync, sync_to_async

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell is deaf to it

async def main(again):
    try:
        print("ready", flush=True)
        await asyncio.Event().wait()
    finally:
        if again:
            print("again", flush=True)
            await asyncio.Event().wait()
        print("cleaned up", await sync_to_async(lambda: threading.current_thread() is threading.main_thread())())

async def quick():
    return "goes on"

for context in (nullcontext(), AsyncSingleThreadContext()):
    with context:
        for again in (False, True):
            try:
                async_to_sync(main)(again)
            except KeyboardInterrupt:
                print("interrupted", flush=True)
        print(async_to_sync(quick)(), flush=True)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGINT")
def test_ctrl_c_cancels_the_coroutine_and_a_second_one_stops_waiting() -> None:
    with subprocess.Popen([sys.executable, "-c", INTERRUPTED], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        lines = []
        for line in program.stdout:
            lines.append(line.strip())
            if lines[-1] in ("ready", "again"):
                os.kill(program.pid, signal.SIGINT)

    assert lines == ["ready", "cleaned up True", "interrupted", "ready", "again", "interrupted", "goes on"] * 2
    assert program.returncode == 0


def test_a_call_that_is_dropped_after_its_loop_is_closed_without_a_word() -> None:
    blocking = Blocking()
    loop = asyncio.new_event_loop()
    call = sync_to_async(blocking)()

    async def start() -> None:
        call.send(None)
        await wait_for_event(blocking.started)

    loop.run_until_complete(start())
    loop.close()
    call.close()
    blocking.may_end.set()


def test_the_loop_of_a_loop_thread_counts_as_stopped_between_calls() -> None:
    async def is_standing_still() -> bool:
        return _loopthreads.is_stopped(asyncio.get_running_loop())

    assert not async_to_sync(is_standing_still)()
    (loop_thread,) = _looprunner.runners
    wait_until(lambda: _loopthreads.is_stopped(loop_thread.loop), "it runs on")
    other = asyncio.new_event_loop()
    assert not _loopthreads.is_stopped(other)  # somebody may go on with it
    other.close()
    assert _loopthreads.is_stopped(other)
    assert not _loopthreads.is_stopped(object())


def test_a_call_into_a_loop_that_comes_to_stand_still_does_not_hang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_currentthreadexecutor, "CHECK_SECONDS", 0.01)
    started, may_call, outcomes = threading.Event(), threading.Event(), []

    def view() -> None:
        started.set()
        assert may_call.wait(GRACE_SECONDS)
        outcomes.append(captured(async_to_sync(this_thread)))

    async def main() -> asyncio.AbstractEventLoop:
        task = asyncio.ensure_future(sync_to_async(view, thread_sensitive=False, executor=executor)())
        await wait_for_event(started)
        task.cancel()
        await asyncio.wait([task])
        return asyncio.get_running_loop()

    executor = ThreadPoolExecutor()
    loop = async_to_sync(main)()
    monkeypatch.setattr(_async_to_sync, "loop_of_this_thread", lambda _: loop)  # it was running a moment ago
    may_call.set()
    executor.shutdown()

    assert isinstance(outcomes[0][1], LoopEndedError)


@pytest.mark.parametrize("begun", [False, True])
def test_a_loop_that_ends_before_the_first_step_of_a_task_leaves_no_coroutine_behind(begun: bool) -> None:
    """1: the loop makes a call's task. 2: it ends before the first step. 3: the thread that waits notices that."""
    loop = asyncio.new_event_loop()
    inner: Any = anyio.sleep_forever()
    call: Any = TaskCall(inner, inner, OneShotFuture())

    def send() -> bool:
        assert call.start(loop) is not None
        if begun:
            loop.run_until_complete(asyncio.sleep(0))
        loop.close()
        return True

    caller = CurrentThreadExecutor(None)
    with pytest.raises(LoopEndedError):
        call.wait(send, caller, loop.is_closed)

    assert inspect.getcoroutinestate(inner) == (inspect.CORO_SUSPENDED if begun else inspect.CORO_CLOSED)
    inner.close()
