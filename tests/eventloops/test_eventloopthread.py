"""`EventLoopThread`: an event loop in a thread, for the life of a block."""

from __future__ import annotations

import threading
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from conftest import GRACE_SECONDS, captured

from unfazed.concurrency import EventLoopThread, LoopEndedError, LoopStateError, LoopThreadError, run_in_threadpool


async def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    await anyio.sleep(0)
    return args, kwargs


async def _current_thread() -> threading.Thread:
    return threading.current_thread()


def test_a_loop_thread_lasts_for_its_block(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    backend, options = anyio_backend
    loop = EventLoopThread(backend, options, "my-loop")
    assert repr(loop) == f"<EventLoopThread('{backend}', name='my-loop'), not started>"
    with pytest.raises(LoopStateError, match="has not been started"):
        loop.run_sync(echo)

    with loop as entered:
        assert entered is loop
        assert loop.is_running()
        assert loop.run_sync(_current_thread).name == "my-loop"
        assert repr(loop).endswith("running>")
        with pytest.raises(LoopStateError, match="only once"):
            loop.start()

    assert repr(loop).endswith("ended>")
    assert not loop.is_running()
    with pytest.raises(LoopEndedError, match="has been stopped"):
        loop.run_sync(echo)
    with pytest.raises(LoopStateError, match="only once"):
        loop.start()


def test_a_loop_thread_shows_the_loop_of_its_library(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    backend, options = anyio_backend
    loop = EventLoopThread(backend, options)
    with pytest.raises(LoopStateError, match="has not been started"):
        _ = loop.native

    with loop:
        assert loop.native is loop.run_sync(_native_loop)

    with pytest.raises(LoopEndedError, match="has been stopped"):
        _ = loop.native


async def _native_loop() -> object:
    return anyio.lowlevel.current_token().native_token


def test_loop_threads_have_distinct_names() -> None:
    assert repr(EventLoopThread()) != repr(EventLoopThread())


@pytest.mark.anyio
async def test_a_loop_thread_is_awaited_from_any_loop(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    async def nested(loop: EventLoopThread) -> Any:
        return await loop.run(echo, 1, self=2)

    with EventLoopThread(*anyio_backend) as loop:
        assert await loop.run(echo, 1, self=2, func=3) == ((1,), {"self": 2, "func": 3})
        assert await loop.run(nested, loop) == ((1,), {"self": 2})
        with pytest.raises(LoopThreadError, match=r"await loop.run\(echo, ...\)"):
            loop.run_sync(echo)


def test_leaving_the_block_cancels_what_runs_and_awaits_its_cleanup(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    started = threading.Event()
    seen: list[str] = []

    async def work() -> None:
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(seen.append, "cleanup in a thread")

    def call() -> None:
        try:
            loop.run_sync(work)
        except BaseException as exc:
            seen.append(type(exc).__name__)

    with EventLoopThread(*anyio_backend) as loop:
        thread = threading.Thread(target=call)
        thread.start()
        assert started.wait(GRACE_SECONDS)
    thread.join(GRACE_SECONDS)

    assert seen == ["cleanup in a thread", "LoopEndedError"]


def test_a_loop_thread_cannot_wait_for_its_own_end(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    async def stop() -> None:
        with pytest.raises(LoopStateError, match="its own end"):
            loop.stop()

    with EventLoopThread(*anyio_backend) as loop:
        loop.run_sync(stop)


def test_stopping_before_the_start_is_harmless() -> None:
    EventLoopThread().stop()


def test_stop_returns_after_its_timeout(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    started, may_end = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        assert may_end.wait(GRACE_SECONDS)

    with EventLoopThread(*anyio_backend) as loop:
        thread = threading.Thread(target=captured, args=(lambda: loop.run_sync(run_in_threadpool, work),))
        thread.start()
        assert started.wait(GRACE_SECONDS)
        loop.stop(timeout=0.01)
        assert loop._thread is not None
        assert loop._thread.is_alive()
        may_end.set()
    thread.join(GRACE_SECONDS)


def test_a_worker_of_a_loop_cannot_stop_it(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    with EventLoopThread(*anyio_backend) as loop:
        with pytest.raises(LoopStateError, match="its own end"):
            loop.run_sync(run_in_threadpool, loop.stop)
        assert loop.is_running()


def test_the_cleanup_of_a_loop_that_ends_may_still_use_it(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    running = threading.Event()
    seen: list[Any] = []

    async def work() -> None:
        try:
            running.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                seen.append(await loop.run(echo, 1))

    with EventLoopThread(*anyio_backend) as loop:
        thread = threading.Thread(target=captured, args=(lambda: loop.run_sync(work),))
        thread.start()
        assert running.wait(GRACE_SECONDS)
    thread.join(GRACE_SECONDS)

    assert seen == [((1,), {})]
