"""asgiref's names when calls are cancelled: nothing is swallowed, nothing hangs."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import asgiref.sync
import pytest
import unfazed_compat.asgiref as ours
from asgiref_helpers import end_threads, this_thread
from conftest import GRACE_SECONDS, Blocking, captured, let_others_run, wait_for_event, wait_until
from unfazed_compat.asgiref import ThreadSensitiveContext, async_to_sync, sync_to_async
from unfazed_compat.asgiref._loops import is_worker
from unfazed_compat.asgiref._nestedtasks import NestedTasks

if TYPE_CHECKING:
    from collections.abc import Callable

assert end_threads  # a fixture

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
    """Cancel *call* when *ready* is set, or return its outcome."""
    outcomes: list[Any] = []

    async def make() -> None:
        outcomes.append(await call())

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(make)
        await wait_for_event(ready)
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
        await wait_for_event(going_on)
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
        await wait_for_event(started)
        tasks.cancel_scope.cancel()
        may_call.set()

    assert isinstance(outcomes[0][1], asyncio.CancelledError)
    assert outcomes[1][0]


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
