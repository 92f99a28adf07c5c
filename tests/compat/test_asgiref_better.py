"""asgiref's names, on both backends: what is better than asgiref, and that nothing is worse."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import asgiref.sync
import pytest
import unfazed_compat.asgiref as ours
from asgiref_helpers import COLLECTS_LATE, current_native_loop, end_threads, run_async, this_thread
from conftest import GRACE_SECONDS, captured, in_plain_thread
from unfazed_compat.asgiref import (
    AsyncSingleThreadContext,
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    sync_to_async,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

assert end_threads  # a fixture

HANG_SECONDS = 3.0  # after which the original hangs; arbitrary

Backend = tuple[str, dict[str, Any]]
THEIRS = pytest.param(asgiref.sync, marks=pytest.mark.xfail(reason="it is better than the original"), id="theirs")
EITHER = [pytest.param(ours, id="ours"), THEIRS]


def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


async def echo_async(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


# ---- better than the original


@pytest.mark.parametrize("library", EITHER)
def test_each_thread_keeps_its_loop_and_its_thread(library: Any) -> None:
    async def here() -> tuple[threading.Thread, object]:
        return threading.current_thread(), asyncio.get_running_loop()

    first = library.async_to_sync(here)()

    assert library.async_to_sync(here)() == first
    assert in_plain_thread(library.async_to_sync(here)) != first


@pytest.mark.parametrize("library", EITHER)
def test_what_is_bound_to_a_loop_can_be_used_in_the_next_call(library: Any) -> None:
    class Client:
        def __init__(self) -> None:
            self.loop = asyncio.get_running_loop()

        async def use(self) -> bool:
            called = asyncio.Event()
            self.loop.call_soon(called.set)
            await asyncio.wait_for(called.wait(), GRACE_SECONDS)
            return True

    async def connect() -> Client:
        return Client()

    client = library.async_to_sync(connect)()

    used = captured(library.async_to_sync(client.use))[0]  # an error that pytest holds would keep a thread

    assert used


@pytest.mark.anyio
@pytest.mark.parametrize("thread_sensitive", [True, False])
async def test_stop_iteration_does_not_hang(thread_sensitive: bool) -> None:
    with anyio.fail_after(GRACE_SECONDS), pytest.raises(RuntimeError, match="StopIteration"):
        await sync_to_async(next, thread_sensitive=thread_sensitive)(iter(()))


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="asyncio itself has seen to it")
@pytest.mark.xfail(reason="the original hangs", raises=TimeoutError)
def test_stop_iteration_hangs_with_the_original() -> None:
    async def main() -> None:
        with anyio.fail_after(HANG_SECONDS), pytest.raises(RuntimeError):
            await asgiref.sync.sync_to_async(next, thread_sensitive=False)(iter(()))

    asyncio.run(main())


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("library", EITHER)
async def test_a_task_that_outlives_its_sync_code_can_use_thread_sensitive_code_on_asyncio(library: Any) -> None:
    finished = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def late() -> threading.Thread:
        await finished.wait()
        thread: threading.Thread = await library.sync_to_async(threading.current_thread)()
        return thread

    async def start() -> None:
        tasks.append(asyncio.create_task(late()))

    thread = await library.sync_to_async(lambda: library.async_to_sync(start)() or threading.current_thread())()
    finished.set()

    assert await asyncio.wait_for(tasks[0], GRACE_SECONDS) is thread


@pytest.mark.anyio
async def test_a_task_that_outlives_its_sync_code_can_use_thread_sensitive_code() -> None:
    finished, outcomes = anyio.Event(), []

    async def late() -> None:
        await finished.wait()
        outcomes.append(await sync_to_async(threading.current_thread)())

    async with anyio.create_task_group() as tasks:

        async def start() -> None:
            tasks.start_soon(late)

        await sync_to_async(async_to_sync(start), thread_sensitive=False)()
        finished.set()

    assert outcomes == [await sync_to_async(threading.current_thread)()]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("library", EITHER)
async def test_a_call_that_only_queues_is_no_deadlock(library: Any) -> None:
    """What a thread-sensitive function starts, without waiting for it, may be thread-sensitive as well."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Any]] = []
    started, tried = threading.Event(), threading.Event()

    async def background() -> str:
        tried.set()
        await library.sync_to_async(echo)()
        return "done"

    def outer() -> None:
        loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(background())))
        started.set()
        assert tried.wait(GRACE_SECONDS)

    await library.sync_to_async(outer)()

    assert await asyncio.wait_for(tasks[0], GRACE_SECONDS) == "done"


def test_a_call_that_would_wait_for_its_own_thread_is_refused(anyio_backend: Backend) -> None:
    async def within() -> None:
        await sync_to_async(echo)()

    async def main() -> None:
        call = sync_to_async(lambda: run_async(anyio_backend, within))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="would deadlock"):
                await call()
        async with ThreadSensitiveContext():
            with pytest.raises(RuntimeError, match="would deadlock"):
                await call()

    run_async(anyio_backend, main)


def test_a_loop_within_the_thread_that_waits_uses_another_thread() -> None:
    """The thread runs a loop, and does not wait: its thread-sensitive calls go to the next place."""

    async def within() -> threading.Thread:
        return await sync_to_async(threading.current_thread)()

    async def outer() -> threading.Thread:
        return await sync_to_async(asyncio.run)(within())

    assert async_to_sync(outer)() is not threading.current_thread()


@pytest.mark.anyio
async def test_the_executor_of_the_process_may_be_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(max_workers=1) as executor:
        monkeypatch.setattr(SyncToAsync, "single_thread_executor", executor)

        assert await sync_to_async(threading.current_thread)() in executor._threads
    monkeypatch.undo()
    assert await sync_to_async(threading.current_thread)() in SyncToAsync.single_thread_executor._threads  # type: ignore[attr-defined]


# ---- and nothing worse


def test_a_blocking_call_stalls_nobody_elses() -> None:
    may_end = threading.Event()

    async def block() -> None:
        assert may_end.wait(GRACE_SECONDS)

    blocked = threading.Thread(target=async_to_sync(block))
    blocked.start()
    try:
        assert async_to_sync(echo_async)(1) == ((1,), {})
    finally:
        may_end.set()
        blocked.join()


def test_what_a_call_leaves_over_is_ended_with_it() -> None:
    ended = []

    async def left_over() -> None:
        generator = generate()
        await generator.__anext__()
        try:
            await asyncio.Event().wait()
        finally:
            del generator
            ended.append(await sync_to_async(threading.current_thread)())

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            ended.append(threading.current_thread())

    kept = []

    async def main() -> None:
        task = asyncio.create_task(left_over())
        await asyncio.sleep(0)
        assert not task.done()
        generators = generate(), generate()
        for generator in generators:
            await generator.__anext__()
        kept.append(generators[0])

    async_to_sync(main)()

    assert ended[0] is threading.current_thread()
    assert len(ended) == 4


def test_an_async_generator_that_is_dropped_is_closed_soon() -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def generate() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                closed.set()

        async for _ in generate():
            break
        if COLLECTS_LATE:
            gc.collect()
        await asyncio.wait_for(closed.wait(), GRACE_SECONDS)
        await asyncio.sleep(0)

    async_to_sync(main)()


def test_what_fails_while_it_is_ended_is_told_to_the_loops_handler() -> None:
    told: list[str] = []

    async def left_over() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in cleanup")

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("in cleanup")

    kept = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        kept.append(asyncio.create_task(left_over()))
        await asyncio.sleep(0)
        kept.append(generate())  # type: ignore[arg-type]
        await kept[1].__anext__()  # type: ignore[attr-defined]

    async_to_sync(main)()

    assert ["left over" in each for each in told] == [True, True]


# ---- one thread for the async code of all sync code


def test_within_a_single_thread_context_all_async_code_runs_in_one_thread() -> None:
    def main() -> None:
        with AsyncSingleThreadContext() as context:
            thread = async_to_sync(this_thread)()
            with AsyncSingleThreadContext():
                assert async_to_sync(this_thread)() is thread
            assert async_to_sync(this_thread, force_new_loop=True)() is thread
            assert in_plain_thread(lambda: contextvars.copy_context().run(async_to_sync(this_thread))) is not thread
            here = contextvars.copy_context()
            assert in_plain_thread(lambda: here.run(async_to_sync(this_thread))) is thread
            assert context in AsyncToSync.context_to_thread_executor
        assert not thread.is_alive()
        assert async_to_sync(this_thread)() is not thread
        with AsyncSingleThreadContext():
            pass

    contextvars.copy_context().run(main)


def test_force_new_loop_is_a_new_loop_each_time() -> None:
    async def loop() -> object:
        return asyncio.get_running_loop()

    call = async_to_sync(loop, force_new_loop=True)

    assert len({call(), call(), async_to_sync(loop)()}) == 3


@pytest.mark.anyio
async def test_force_new_loop_works_in_a_worker() -> None:
    call = async_to_sync(current_native_loop, force_new_loop=True)

    assert await sync_to_async(call)() != await current_native_loop()
