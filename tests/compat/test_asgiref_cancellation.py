"""asgiref's names when calls are cancelled, interrupted, or lose their loop: nothing is swallowed, nothing hangs."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import inspect
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import asgiref.sync
import pytest
import unfazed_compat.asgiref as ours
from asgiref.current_thread_executor import CurrentThreadExecutor as AsgirefsCurrentThreadExecutor
from asgiref_helpers import end_threads, this_thread, wait_for_the_end
from conftest import GRACE_SECONDS, Blocking, captured, in_plain_thread, let_others_run, seen, wait_until
from unfazed_compat.asgiref import (
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    _async_to_sync,
    _choose_loop,
    _currentthreadexecutor,
    _looprunner,
    _loopthreads,
    _threadcall,
    async_to_sync,
    sync_to_async,
)
from unfazed_compat.asgiref._currentthreadexecutor import CurrentThreadExecutor
from unfazed_compat.asgiref._executorcall import ExecutorCall
from unfazed_compat.asgiref._futures import OneShotFuture
from unfazed_compat.asgiref._loops import current_loop, is_worker
from unfazed_compat.asgiref._nestedtasks import NestedTasks
from unfazed_compat.asgiref._singlethreadexecutor import SingleThreadExecutor
from unfazed_compat.asgiref._taskcall import TaskCall

from unfazed.concurrency import ExecutorError, LoopEndedError

if TYPE_CHECKING:
    from collections.abc import Callable

assert end_threads  # a fixture

Backend = tuple[str, dict[str, Any]]
only_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"])
EITHER = [
    pytest.param(ours, id="ours"),
    # asgiref 3.12 and 3.13 on some Pythons, and not on others
    pytest.param(
        asgiref.sync, marks=pytest.mark.xfail(strict=False, reason="the original may swallow it"), id="theirs"
    ),
]


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[BaseException | None]:
    errors: list[BaseException | None] = []
    monkeypatch.setattr(threading, "excepthook", lambda args: errors.append(args.exc_value))
    return errors


async def cancel_while(call: Callable[[], Any], ready: threading.Event) -> list[Any]:
    """Cancel *call* when *ready* is set, and return what came of it otherwise."""
    outcomes: list[Any] = []

    async def make() -> None:
        outcomes.append(await call())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(make)
        await seen(ready)
        tasks.cancel_scope.cancel()
    return outcomes


@pytest.mark.anyio
async def test_a_cancelled_call_does_not_wait_for_its_thread() -> None:
    """Whoever has set a time limit must not wait longer."""
    blocking = Blocking()
    with anyio.fail_after(GRACE_SECONDS):
        assert await cancel_while(sync_to_async(blocking), blocking.started) == []

    assert not blocking.ended
    blocking.may_end.set()
    await sync_to_async(int)()
    assert blocking.ended


@pytest.mark.anyio
async def test_what_a_function_raises_that_nobody_waits_for_is_shown(shown: list[BaseException | None]) -> None:
    started, may_end = threading.Event(), threading.Event()
    error = ValueError("nobody hears")

    def fail() -> None:
        started.set()
        assert may_end.wait(GRACE_SECONDS)
        raise error

    assert await cancel_while(sync_to_async(fail), started) == []
    may_end.set()
    await sync_to_async(int)()
    await let_others_run()

    assert shown == [error]


@pytest.mark.parametrize("thread_sensitive", [True, False])
def test_it_is_shown_even_when_the_loop_has_ended(shown: list[BaseException | None], thread_sensitive: bool) -> None:
    started, may_end = threading.Event(), threading.Event()
    error = ValueError("nobody hears")

    def fail() -> None:
        started.set()
        assert may_end.wait(GRACE_SECONDS)
        raise error

    loop = asyncio.new_event_loop()  # which does not wait for its threads at its end, as `asyncio.run` does
    loop.run_until_complete(cancel_while(sync_to_async(fail, thread_sensitive=thread_sensitive), started))
    loop.close()
    may_end.set()
    wait_until(lambda: shown, "the error is lost")

    assert shown == [error]


@pytest.mark.anyio
async def test_a_call_that_has_not_started_never_starts() -> None:
    blocking, made = Blocking(), list[int]()
    queued = threading.Event()

    async def second() -> None:
        queued.set()
        await sync_to_async(made.append)(1)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sync_to_async(blocking))
        await blocking.wait_until_started()
        async with anyio.create_task_group() as inner:
            inner.start_soon(second)
            await let_others_run()
            inner.cancel_scope.cancel()
        blocking.may_end.set()
    await sync_to_async(int)()

    assert made == []


@pytest.mark.anyio
async def test_the_async_code_that_the_thread_waits_for_is_cancelled_and_cleans_up() -> None:
    started, steps = threading.Event(), []

    async def inner() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await let_others_run()
            steps.append("cleaned up")

    for thread_sensitive in (True, False):
        started.clear()
        assert await cancel_while(sync_to_async(async_to_sync(inner), thread_sensitive=thread_sensitive), started) == []
        await sync_to_async(int)()

    assert steps == ["cleaned up"] * 2


@pytest.mark.anyio
async def test_a_worker_of_anyio_is_cancelled_with_its_task() -> None:
    started = threading.Event()
    ended = []

    async def inner() -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append(1)

    with anyio.fail_after(GRACE_SECONDS):
        await cancel_while(lambda: ours_in_anyios_worker(async_to_sync(inner)), started)

    wait_until(lambda: ended, "it is not cancelled")


async def ours_in_anyios_worker(call: Callable[[], Any]) -> Any:
    from unfazed.concurrency import run_in_threadpool

    return await run_in_threadpool(call)


@pytest.mark.anyio
@only_asyncio
async def test_async_code_within_may_see_to_a_cancellation() -> None:
    """Just as if it had been awaited."""
    started = asyncio.Event()

    async def inner() -> str:
        started.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
        return "seen to"

    task = asyncio.create_task(sync_to_async(async_to_sync(inner))())
    await started.wait()
    task.cancel()

    assert await task == "seen to"


@pytest.mark.anyio
@only_asyncio
@pytest.mark.parametrize("library", EITHER)
async def test_sync_code_that_catches_everything_swallows_no_cancellation(library: Any) -> None:
    started = asyncio.Event()

    async def inner() -> None:
        started.set()
        await asyncio.Event().wait()

    def outer() -> str:
        try:
            library.async_to_sync(inner)()
        except BaseException:
            return "as if nothing had happened"
        return "never"

    task = asyncio.create_task(library.sync_to_async(outer)())
    await started.wait()
    task.cancel()
    await asyncio.wait([task], timeout=GRACE_SECONDS)

    assert task.cancelled()


@pytest.mark.anyio
@only_asyncio
async def test_a_call_can_be_cancelled_twice() -> None:
    started, again = asyncio.Event(), asyncio.Event()

    async def inner() -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            again.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(sync_to_async(async_to_sync(inner))())
    await started.wait()
    task.cancel()
    await again.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, GRACE_SECONDS)


@pytest.mark.anyio
async def test_a_call_that_is_made_after_the_cancellation_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    started, may_call, outcomes = threading.Event(), threading.Event(), []

    def outer() -> None:
        started.set()
        assert may_call.wait(GRACE_SECONDS)
        outcomes.append(captured(async_to_sync(anyio.sleep_forever)))

    await cancel_while(sync_to_async(outer), started)
    may_call.set()
    with anyio.fail_after(GRACE_SECONDS):
        await sync_to_async(int)()

    assert isinstance(outcomes[0][1], anyio.get_cancelled_exc_class())


@pytest.mark.anyio
@pytest.mark.parametrize("library", [ours, asgiref.sync], ids=["ours", "installed"])
async def test_what_such_a_call_would_send_to_its_thread_never_runs(library: Any) -> None:
    """Django's views are sent there, when the request has ended and its connections are closed."""
    started, may_call, ran = threading.Event(), threading.Event(), []

    async def inner() -> None:
        ran.append("async")
        await library.sync_to_async(ran.append)("sync")

    class Awaitable:  # and not a coroutine
        def __await__(self) -> Any:
            return inner().__await__()

    with ours.install():
        with pytest.warns(UserWarning, match="non-async-marked"):
            calls = [library.async_to_sync(inner), library.async_to_sync(Awaitable)]
        for call in calls:
            started.clear()
            may_call.clear()

            def outer(call: Any = call) -> None:
                started.set()
                assert may_call.wait(GRACE_SECONDS)
                captured(call)

            await cancel_while(library.sync_to_async(outer), started)
            may_call.set()
            with anyio.fail_after(GRACE_SECONDS):
                await library.sync_to_async(int)()

    assert ran == []


@pytest.mark.anyio
async def test_a_cancellation_reaches_every_async_call_of_a_function() -> None:
    started, outcomes = threading.Event(), []

    async def forever() -> None:
        started.set()
        await anyio.sleep_forever()

    def view() -> None:
        async_to_sync(this_thread)()
        outcomes.append(captured(async_to_sync(forever)))

    with anyio.fail_after(GRACE_SECONDS):
        await cancel_while(sync_to_async(view), started)
        await sync_to_async(int)()

    assert isinstance(outcomes[0][1], anyio.get_cancelled_exc_class())


@pytest.mark.anyio
async def test_a_cancelled_call_does_not_wait_for_the_async_calls_that_come_next() -> None:
    """Even where the thread makes one before anybody has looked."""
    started, going_on, may_end = threading.Event(), threading.Event(), threading.Event()

    async def forever() -> None:
        started.set()
        await anyio.sleep_forever()

    async def next_call() -> None:
        going_on.set()
        while not may_end.is_set():
            await anyio.sleep(0)

    def view() -> None:
        captured(async_to_sync(forever))
        async_to_sync(next_call)()

    calls = NestedTasks()
    task = type("Task", (), {"cancel": lambda _: None})()
    calls.begin(task)
    calls.cancel()
    calls.end(task, None)
    assert calls.last_has_ended
    with anyio.fail_after(GRACE_SECONDS):
        await cancel_while(sync_to_async(view), started)
        await seen(going_on)
        may_end.set()
        await sync_to_async(int)()


@pytest.mark.anyio
async def test_a_cancellation_reaches_a_new_loop() -> None:
    started = threading.Event()

    async def inner() -> None:
        started.set()
        await asyncio.Event().wait()

    with anyio.fail_after(GRACE_SECONDS):
        await cancel_while(sync_to_async(async_to_sync(inner, force_new_loop=True)), started)
        await sync_to_async(int)()


@pytest.mark.anyio
@only_asyncio
async def test_a_worker_that_was_cancelled_before_makes_no_calls() -> None:
    """anyio's worker threads know that they are cancelled."""
    started, may_call, outcomes = threading.Event(), threading.Event(), []

    def outer() -> None:
        started.set()
        assert may_call.wait(GRACE_SECONDS)
        outcomes.append(captured(async_to_sync(this_thread)))
        outcomes.append((is_worker(), None))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(lambda: anyio.to_thread.run_sync(outer))
        await seen(started)
        tasks.cancel_scope.cancel()
        may_call.set()

    assert isinstance(outcomes[0][1], asyncio.CancelledError)
    assert outcomes[1][0]


# ---- leaving a context


@pytest.mark.anyio
async def test_leaving_a_context_waits_for_what_its_thread_still_does() -> None:
    blocking = Blocking()
    with anyio.fail_after(GRACE_SECONDS):
        async with ThreadSensitiveContext():
            assert await cancel_while(sync_to_async(blocking), blocking.started) == []
            blocking.may_end.set()

    assert blocking.ended


@pytest.mark.anyio
async def test_leaving_a_context_can_be_cancelled() -> None:
    blocking = Blocking()
    with anyio.CancelScope() as scope:
        async with ThreadSensitiveContext():
            assert await cancel_while(sync_to_async(blocking), blocking.started) == []
            scope.cancel()

    assert not blocking.ended
    blocking.may_end.set()


# ---- loops that end


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
    monkeypatch.setattr(_currentthreadexecutor, "GONE_CHECK_SECONDS", 0.01)
    outcomes: list[Any] = []
    loops: list[asyncio.AbstractEventLoop] = []

    def outer() -> None:
        outcomes.append(captured(async_to_sync(this_thread)))

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loops.append(loop)
        post = loop.call_soon_threadsafe
        dropped = threading.Event()

        def drop(func: Any, *args: Any, **kwargs: Any) -> Any:
            if getattr(func, "__name__", "") == "start":
                dropped.set()
                return None
            return post(func, *args, **kwargs)

        loop.call_soon_threadsafe = drop  # type: ignore[method-assign, assignment]
        task = asyncio.create_task(sync_to_async(outer)())
        await seen(dropped)
        task.cancel()
        await asyncio.wait([task])

    asyncio.run(main())
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
        await seen(started)
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
        await seen(started)

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


def new_call() -> tuple[TaskCall, Any]:
    inner = this_thread()
    result: OneShotFuture[Any] = OneShotFuture()

    async def work() -> None:
        await asyncio.sleep(0)
        result.set_result(await inner)

    return TaskCall(work(), inner, result), inner


@pytest.mark.anyio
@only_asyncio
async def test_a_call_that_is_cancelled_before_it_starts_never_starts() -> None:
    call, _ = new_call()

    assert not call.cancel()
    assert call.start(asyncio.get_running_loop()) is None


def test_a_call_that_was_given_up_never_starts() -> None:
    for twice in (False, True):
        call, _ = new_call()
        call.give_up()
        if twice:
            call.give_up()
        loop_thread = _loopthreads.LoopThread()
        loop_thread.run(call, CurrentThreadExecutor(None), contextvars.copy_context())
        loop_thread.shutdown()
    call, _ = new_call()
    call.give_up()
    asyncio.run(_choose_loop._run_in_new_loop(call, CurrentThreadExecutor(None)))
    call, inner = new_call()
    call._inner = asyncio.Event()  # type: ignore[assignment]  # which cannot be closed
    call.give_up()
    inner.close()


@pytest.mark.anyio
@only_asyncio
async def test_a_coroutine_that_its_loop_forgets_says_so() -> None:
    result: Future[Any] = Future()
    inner = asyncio.get_running_loop().create_future()
    work = async_to_sync(this_thread).main_wrap(result, (None, None, None), None, [contextvars.copy_context()], inner)
    work.send(None)
    work.close()

    assert isinstance(result.exception(0), LoopEndedError)


@pytest.mark.anyio
@only_asyncio
async def test_a_task_that_has_ended_is_not_told_of_a_cancellation() -> None:
    calls, told = NestedTasks(), dict[Any, int]()
    calls._cancel(asyncio.current_task(), told)  # type: ignore[arg-type]

    assert told == {}


@pytest.mark.anyio
@only_asyncio
async def test_a_call_that_has_ended_is_not_changed_by_its_executor() -> None:
    call = _threadcall.ThreadCall(asyncio.get_running_loop(), int)
    waiting = asyncio.create_task(call.wait())
    await asyncio.sleep(0)
    call.run()
    call.run()
    call.fail_unless_begun(ValueError())
    await waiting
    call.fail(ValueError())

    assert call.result() == 0


# ---- executors


def test_a_worker_whose_loop_ends_waits_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*_: object) -> None:
        raise LoopEndedError("the event loop has ended")

    monkeypatch.setattr(_currentthreadexecutor, "run_in_eventloop_sync", ended)

    assert not CurrentThreadExecutor(None).serve(lambda: False, lending=True)


def test_a_call_is_cancelled_if_its_executor_cancels_it() -> None:
    item, dropped = ExecutorCall(int), Future[Any]()
    item.end_with(dropped)
    assert not item.future.cancelled()
    dropped.cancel()
    item.end_with(dropped)
    assert item.future.cancelled()


def test_a_waiting_thread_that_is_interrupted_fails_the_calls_sent_to_it() -> None:
    caller = CurrentThreadExecutor(None)
    item = in_plain_thread(lambda: caller.submit(int))
    caller.finish()
    caller.close(interrupted=True)

    with pytest.raises(ExecutorError, match="interrupted"):
        item.result(0)
    with pytest.raises(RuntimeError, match="does not wait"):
        in_plain_thread(lambda: captured(lambda: caller.submit(int)))[1:] and caller.submit(int)


def test_a_call_sent_before_the_executor_closes_is_made() -> None:
    caller = CurrentThreadExecutor(None)
    caller.finish()
    assert caller.serve(lambda: False)
    future = in_plain_thread(lambda: caller.submit(int, "12"))
    caller.close(interrupted=False)

    assert future.result(0) == 12


def test_a_call_that_comes_too_late_goes_to_the_executor_above() -> None:
    outer = CurrentThreadExecutor(None)
    inner = CurrentThreadExecutor(outer)
    inner.close(interrupted=False)
    future = in_plain_thread(lambda: inner.submit(int, "12"))
    outer.close(interrupted=False)

    assert future.result(0) == 12


def test_a_pump_hands_on_to_asgirefs_own() -> None:
    parameters = inspect.signature(AsgirefsCurrentThreadExecutor).parameters
    theirs = AsgirefsCurrentThreadExecutor(*[None] * len(parameters))
    inner = CurrentThreadExecutor(theirs)
    inner.close(interrupted=False)
    future = in_plain_thread(lambda: inner.submit(int, "12"))
    until: Future[None] = Future()
    until.set_result(None)
    theirs.run_until_future(until)

    assert future.result(0) == 12


def test_a_cancelled_call_is_not_made() -> None:
    item = ExecutorCall(lambda: 1 / 0)
    assert item.future.cancel()
    item.run()
    dropped = ExecutorCall(int)
    assert dropped.future.cancel()
    dropped.fail_unless_begun(ValueError())
    failed = ExecutorCall(lambda: 1 / 0)
    failed.run()

    assert item.future.cancelled()
    with pytest.raises(ZeroDivisionError):
        failed.future.result(0)


def test_a_single_thread_executor_can_be_shut_down_like_any_executor() -> None:
    executor = SingleThreadExecutor()
    blocking = Blocking()
    first, second = executor.submit(blocking), executor.submit(int)
    assert blocking.started.wait(GRACE_SECONDS)
    executor.shutdown(wait=False, cancel_futures=True)
    blocking.may_end.set()
    executor.shutdown()

    assert first.result(0) == "a value that nobody waits for"
    with pytest.raises(ExecutorError, match="shut down"):
        second.result(0)
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(int)


def test_the_thread_of_a_single_thread_executor_ends_with_it() -> None:
    executor = SingleThreadExecutor()
    thread = executor.submit(threading.current_thread).result(GRACE_SECONDS)
    del executor
    wait_for_the_end(thread)


# ---- Ctrl-C and exit


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


@pytest.mark.anyio
@pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="needs trio")
@pytest.mark.parametrize("anyio_backend", ["trio"])
async def test_where_no_thread_can_be_started_the_caller_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """On asyncio the loop itself says so."""

    async def refuse(*args: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr("unfazed_compat.asgiref._loops.run_in_threadpool", refuse)
    with anyio.fail_after(GRACE_SECONDS), pytest.raises(RuntimeError, match="new thread"):
        await sync_to_async(int, thread_sensitive=False)()


@pytest.mark.anyio
async def test_an_executor_that_takes_nothing_for_another_reason_is_not_passed_over() -> None:
    """The next one would have the call in another thread."""

    class Full(ThreadPoolExecutor):
        def submit(self, *args: object, **kwargs: object) -> Any:
            raise RuntimeError("can't start new thread")

    AsyncToSync.executors.current = Full()
    try:
        with pytest.raises(RuntimeError, match="new thread"):
            await sync_to_async(int)()
    finally:
        del AsyncToSync.executors.current


@pytest.mark.anyio
async def test_a_context_ends_though_its_executor_has_been_shut_down() -> None:
    with ThreadPoolExecutor(1) as executor:
        async with ThreadSensitiveContext() as context:
            SyncToAsync.context_to_thread_executor[context] = executor
            assert await sync_to_async(int)() == 0
            executor.shutdown()


def test_a_call_that_is_dropped_after_its_loop_is_closed_without_a_word() -> None:
    blocking = Blocking()
    loop = asyncio.new_event_loop()
    call = sync_to_async(blocking)()

    async def start() -> None:
        call.send(None)
        await seen(blocking.started)

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
    monkeypatch.setattr(_currentthreadexecutor, "GONE_CHECK_SECONDS", 0.01)
    started, may_call, outcomes = threading.Event(), threading.Event(), []

    def view() -> None:
        started.set()
        assert may_call.wait(GRACE_SECONDS)
        outcomes.append(captured(async_to_sync(this_thread)))

    async def main() -> asyncio.AbstractEventLoop:
        task = asyncio.ensure_future(sync_to_async(view, thread_sensitive=False, executor=executor)())
        await seen(started)
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
