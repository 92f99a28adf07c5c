"""The threads of the adapter: in which context they run, what they keep of their callers, and what if they die."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import os
import sys
import sysconfig
import threading
import weakref
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from asgiref_helpers import end_threads, run_program, this_thread
from conftest import GRACE_SECONDS, Blocking, captured, wait_until
from unfazed_compat.asgiref import (
    AsyncSingleThreadContext,
    AsyncToSync,
    _loopthreads,
    _threads,
    async_to_sync,
    sync_to_async,
)
from unfazed_compat.asgiref._executorcall import ExecutorCall
from unfazed_compat.asgiref._singlethreadexecutor import SingleThreadExecutor

from unfazed.concurrency import LoopEndedError

if TYPE_CHECKING:
    from collections.abc import Callable

assert end_threads  # a fixture


class Request:
    """What a program has in a context variable."""


request: contextvars.ContextVar[Request | None] = contextvars.ContextVar("request", default=None)


INHERITANCE = """
import asyncio, contextvars, sys, threading
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from unfazed_compat.asgiref import AsyncSingleThreadContext, SyncToAsync, ThreadSensitiveContext
from unfazed_compat.asgiref import async_to_sync, sync_to_async

assert sys.flags.thread_inherit_context
request = contextvars.ContextVar("request", default=None)
request.set("request 1")
inherited = {}
run = threading.Thread.run

def note(thread):
    inherited[thread.name] = request.get()
    run(thread)

threading.Thread.run = note
control = threading.Thread(target=int, name="control")
control.start()
control.join()

async def main():
    await sync_to_async(int)()
    await asyncio.to_thread(int)

async def of_a_context():
    async with ThreadSensitiveContext():
        await sync_to_async(int)()
    async with ThreadSensitiveContext() as context:
        SyncToAsync.context_to_thread_executor[context] = ThreadPoolExecutor(1)

async_to_sync(main)()
async_to_sync(main, force_new_loop=True)()
with AsyncSingleThreadContext():
    async_to_sync(main)()
asyncio.run(sync_to_async(int)())
asyncio.run(of_a_context())
print(*sorted({name.rstrip("0123456789_-") for name in inherited}))
assert inherited.pop("control") == "request 1"
assert not any(inherited.values()), inherited
"""


@pytest.mark.skipif(sys.version_info < (3, 14), reason="before, no thread inherits a context")
def test_no_thread_inherits_the_context_of_a_caller() -> None:
    done = run_program(INHERITANCE, "-X", "thread_inherit_context=1", "-W", "error")

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split() == [
        "asyncio",
        "control",
        "unfazed-async-to-sync",
        "unfazed-shutdown",
        "unfazed-thread-sensitive",
    ]


async def nothing() -> None:
    pass


async def call_a_thread() -> None:
    await sync_to_async(int)()
    await asyncio.to_thread(int)


async def leave_much_behind() -> None:
    loop = asyncio.get_running_loop()
    kept = request.get()
    loop.set_exception_handler(lambda *_: (kept, None)[1])
    loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options))

    async def generate() -> Any:
        yield kept
        yield kept

    async for _ in generate():
        break
    left = asyncio.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
    del left


def in_a_shared_thread() -> None:
    with AsyncSingleThreadContext():
        async_to_sync(call_a_thread)()


def from_a_loop() -> None:
    asyncio.run(sync_to_async(async_to_sync(call_a_thread))())


def with_an_error() -> None:
    async def fail() -> None:
        raise ValueError(request.get())

    with suppress(ValueError):
        async_to_sync(fail)()


@pytest.mark.parametrize(
    "call",
    [
        async_to_sync(nothing),
        async_to_sync(call_a_thread),
        async_to_sync(leave_much_behind),
        async_to_sync(call_a_thread, force_new_loop=True),
        in_a_shared_thread,
        from_a_loop,
        with_an_error,
    ],
)
def test_nothing_is_kept_of_the_first_caller(call: Callable[[], object]) -> None:
    """Not while the threads wait for the next one."""
    value = Request()
    alive = weakref.ref(value)
    context = contextvars.copy_context()
    context.run(request.set, value)
    context.run(call)
    del value, context

    def is_collected() -> bool:
        gc.collect()
        return alive() is None

    wait_until(is_collected, "it is kept")


class Deadly:
    """An item after which its thread dies."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def run(self) -> None:
        raise ZeroDivisionError

    def fail_unless_begun(self, error: BaseException) -> None:
        raise AssertionError

    def fail(self, error: BaseException) -> None:
        self.error = error


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `threading.excepthook` was told."""
    told: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: told.append(args.exc_type))
    return told


def test_a_thread_that_dies_says_so_and_another_one_goes_on(shown: list[Any]) -> None:
    executor, blocking, deadly = SingleThreadExecutor(), Blocking(), Deadly()
    first = executor.submit(blocking)
    assert blocking.started.wait(GRACE_SECONDS)
    executor.send(deadly)
    rest = executor.submit(threading.current_thread)
    blocking.may_end.set()

    assert rest.result(GRACE_SECONDS).name.startswith("unfazed-thread-sensitive")
    assert executor.submit(int).result(GRACE_SECONDS) == 0
    executor.shutdown()
    assert first.done()
    assert isinstance(deadly.error, LoopEndedError)
    wait_until(lambda: shown, "nobody is told")  # the other one goes on at the same time
    assert shown == [ZeroDivisionError]


def test_a_loop_thread_that_dies_starts_again(shown: list[Any]) -> None:
    thread = async_to_sync(this_thread)()
    loop_thread = _loopthreads.loop_thread_of_this_thread()
    assert loop_thread is not None
    loop_thread._runner.thread_runner.send(Deadly())
    thread.join(GRACE_SECONDS)
    next_thread = async_to_sync(this_thread)()

    assert not thread.is_alive()
    assert next_thread.is_alive()
    wait_until(lambda: shown, "nobody is told")
    assert shown == [ZeroDivisionError]
    assert _loopthreads.loop_thread_of_this_thread() is loop_thread


def test_a_call_whose_thread_dies_is_told_so(monkeypatch: pytest.MonkeyPatch, shown: list[Any]) -> None:
    def die(_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(_loopthreads._LoopThreadCall, "run", die)
    with pytest.raises(LoopEndedError, match="died"):
        async_to_sync(this_thread)()

    wait_until(lambda: shown, "nobody is told")


def test_threads_have_names_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even if the count gives a number twice, as it may without a GIL."""
    monkeypatch.setattr(_threads, "_numbers", iter([1, 1, 2, 2, 3]))
    executors = [SingleThreadExecutor(), SingleThreadExecutor()]
    names = [executor.submit(threading.current_thread).result(GRACE_SECONDS).name for executor in executors]
    for executor in executors:
        executor.shutdown()

    assert names == ["unfazed-thread-sensitive-1", "unfazed-thread-sensitive-2"]


def test_one_thread_serves_whoever_starts_it() -> None:
    executor = SingleThreadExecutor()
    thread = executor.submit(threading.current_thread).result(GRACE_SECONDS)
    worker = executor._thread_runner
    late = threading.Thread(target=worker._serve)  # as if it had been started at the same time
    late.start()
    late.join(GRACE_SECONDS)

    assert not late.is_alive()
    assert worker.threads == {thread}
    assert executor.submit(threading.current_thread).result(GRACE_SECONDS) is thread
    executor.shutdown()


def test_where_no_thread_can_start_what_was_sent_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    executor = SingleThreadExecutor()
    executor._thread_runner._calls.put(item := ExecutorCall(int))  # somebody else's
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(RuntimeError, match="new thread"):
        executor.submit(int)

    assert isinstance(item.future.exception(0), RuntimeError)
    assert not executor._thread_runner.threads


def test_threads_that_share_a_context_start_one_loop_thread() -> None:
    """Many at once, which have to agree on one."""
    go, threads = threading.Barrier(8), set[Any]()

    def call() -> None:
        go.wait(GRACE_SECONDS)
        threads.add(async_to_sync(this_thread)())

    with AsyncSingleThreadContext():
        callers = [threading.Thread(target=contextvars.copy_context().run, args=(call,)) for _ in range(8)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(GRACE_SECONDS)

    assert len(threads) == 1


def test_an_executor_in_a_context_that_drops_a_call_says_so() -> None:
    class Dropping(ThreadPoolExecutor):
        def submit(self, *args: Any, **kwargs: Any) -> Any:
            future: Future[None] = Future()
            future.cancel()
            return future

    with AsyncSingleThreadContext() as scope, Dropping(1) as executor:
        AsyncToSync.context_to_thread_executor[scope] = executor
        error = captured(async_to_sync(this_thread))[1]

    assert isinstance(error, CancelledError)


def test_a_loop_thread_that_was_replaced_meanwhile_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """By another thread, between a look at the one that has ended and its removal."""
    with AsyncSingleThreadContext() as scope:
        async_to_sync(nothing)()
        executors = AsyncToSync.context_to_thread_executor
        ended, fresh = executors[scope], _loopthreads.LoopThread()
        ended.shutdown()
        takes_no_more_calls = _loopthreads.LoopThread.takes_no_more_calls

        def replace(loop_thread: _loopthreads.LoopThread) -> bool:
            if loop_thread is ended:
                executors[scope] = fresh
            return takes_no_more_calls(loop_thread)

        monkeypatch.setattr(_loopthreads.LoopThread, "takes_no_more_calls", replace)
        async_to_sync(nothing)()

        assert executors[scope] is fresh


@pytest.mark.skipif(not sysconfig.get_config_var("Py_GIL_DISABLED"), reason="needs a free-threaded build")
def test_there_is_no_gil() -> None:
    """Nothing that was imported has asked for it."""
    is_gil_enabled = getattr(sys, "_is_gil_enabled")  # noqa: B009
    assert os.environ.get("PYTHON_GIL") != "0" or not is_gil_enabled()
