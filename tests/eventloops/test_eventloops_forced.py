"""Event loops that end, break or cannot start at the moment of a call: each moment is forced."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
from contextlib import suppress
from typing import Any

import anyio
import pytest
from conftest import GRACE_SECONDS

from unfazed.concurrency import (
    EventLoopThread,
    LoopEndedError,
    LoopStartError,
    run_in_eventloop_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._core import _slots
from unfazed.concurrency._eventloops import _background, _loopthread, _synccalls

trio_only = pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="trio is not installed")


async def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    await anyio.sleep(0)
    return args, kwargs


def test_a_call_that_the_end_of_the_loop_overtakes_gets_an_error(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventLoopThread(*anyio_backend) as loop:
        assert loop._loop is not None
        dropped = threading.Event()
        monkeypatch.setattr(type(loop._loop), "submit", lambda self, call, context: dropped.set())
        seen: list[BaseException] = []

        def call() -> None:
            try:
                loop.run_sync(echo)
            except LoopEndedError as exc:
                seen.append(exc)

        thread = threading.Thread(target=call)
        thread.start()
        assert dropped.wait(GRACE_SECONDS)
        monkeypatch.setattr(loop, "_calls", Uncounted(loop._calls))
    thread.join(GRACE_SECONDS)

    assert len(seen) == 1


class Uncounted(set[Any]):
    """The calls of a loop that ends: it sees none, though one comes in at that moment."""

    def __bool__(self) -> bool:
        return False


def test_a_worker_waits_as_long_as_its_loop_is_there(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_synccalls, "CHECK_SECONDS", 0.001)
    backend, options = anyio_backend

    async def main() -> Any:
        return await run_in_threadpool(run_in_eventloop_sync, slow_echo, 1)

    async def slow_echo(value: int) -> int:
        await anyio.sleep(0.05)
        return value

    assert anyio.run(main, backend=backend, backend_options=options) == 1


def refuse_to_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("helper", [run_in_eventloop_sync, run_in_threadpool_sync])
def test_when_no_thread_can_be_started_the_error_is_clear_and_the_next_call_tries_again(
    helper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are too many threads, or this is a subinterpreter without daemon threads."""
    func = echo if helper is run_in_eventloop_sync else int
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_to_start)
        with pytest.raises(LoopStartError, match="its thread cannot be started: can't start new thread"):
            helper(func)

    assert not _slots._owner
    helper(func)


def test_when_no_thread_can_be_started_as_the_interpreter_ends_the_error_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse_and_exit(thread: threading.Thread) -> None:
        patch.setattr(_loopthread, "_exiting", True)  # seen only now: another thread ends the interpreter
        refuse_to_start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_and_exit)
        with pytest.raises(LoopEndedError, match="the interpreter is exiting"):
            run_in_eventloop_sync(echo)

    assert run_in_eventloop_sync(echo, 1) == ((1,), {})


def test_a_call_to_a_loop_that_ended_a_moment_ago_gets_an_error(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventLoopThread(*anyio_backend) as loop:

        def ended(self: object, call: object, context: object) -> None:
            raise LoopEndedError("the event loop of this call has ended")

        with monkeypatch.context() as patch:
            patch.setattr(type(loop._loop), "submit", ended)
            with pytest.raises(LoopEndedError):
                loop.run_sync(echo)
        assert not loop._calls


def test_a_loop_stopped_while_it_starts_ends(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    loop = EventLoopThread(*anyio_backend)
    loop._ask_to_stop("stopped before it ran")

    loop.start()
    loop.stop()

    assert loop._thread is not None
    assert not loop._thread.is_alive()


def test_a_call_that_comes_in_while_the_loop_ends_is_cancelled(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1: a call finds the loop open. 2: the loop is told to stop, and cancels all calls. 3: the call is submitted."""
    running = threading.Event()
    seen: list[str] = []

    async def first() -> None:
        running.set()
        with anyio.CancelScope(shield=True):
            while not seen:
                with suppress(asyncio.CancelledError):  # asyncio's own goes through the shield
                    await anyio.sleep(0.001)

    def call(func: Any) -> None:
        try:
            loop.run_sync(func)
        except LoopEndedError as exc:
            seen.append(str(exc))

    with EventLoopThread(*anyio_backend) as loop:
        assert loop._loop is not None
        original = type(loop._loop).submit
        threads = [threading.Thread(target=call, args=(first,))]
        threads[0].start()
        assert running.wait(GRACE_SECONDS)

        def submit_late(self: Any, late: Any, context: Any) -> None:
            loop._ask_to_stop("this event loop thread has been stopped")
            original(self, late, context)

        monkeypatch.setattr(type(loop._loop), "submit", submit_late)
        threads.append(threading.Thread(target=call, args=(anyio.sleep_forever,)))
        threads[1].start()
        threads[1].join(GRACE_SECONDS)
    threads[0].join(GRACE_SECONDS)

    assert seen[0].startswith("this event loop thread has been stopped")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [pytest.param("trio", marks=trio_only)])
async def test_a_worker_whose_trio_program_has_ended_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*args: object) -> None:
        raise anyio.RunFinishedError

    monkeypatch.setattr("unfazed.concurrency._eventloops._synccalls.from_thread.run", ended)
    with pytest.raises(LoopEndedError):
        await run_in_threadpool(run_in_eventloop_sync, echo)


def test_ctrl_c_during_the_very_first_call_leaves_one_loop(background: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """1: the thread is started. 2: Ctrl-C comes while the call waits for its loop. 3: the next call finds it."""
    original = EventLoopThread._ensure_started

    def interrupted(self: EventLoopThread) -> None:
        original(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EventLoopThread, "_ensure_started", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_in_eventloop_sync(echo)

    assert run_in_eventloop_sync(echo, 1) == ((1,), {})
    assert [thread.name for thread in threading.enumerate()].count("unfazed-eventloop") == 1


def test_a_signal_handler_may_make_a_call_in_the_midst_of_the_first_one(
    background: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thread has created a loop, but has not yet published it as the background event loop."""
    made = EventLoopThread.__init__
    first: list[EventLoopThread | None] = []

    def interrupted(self: EventLoopThread, *args: Any) -> None:
        made(self, *args)
        if not first:
            first.append(None)
            assert run_in_eventloop_sync(echo, 1) == ((1,), {})
            first[0] = _background._background_thread

    with monkeypatch.context() as patch:
        patch.setattr(EventLoopThread, "__init__", interrupted)
        assert run_in_eventloop_sync(echo, 2) == ((2,), {})

    assert first == [_background._background_thread]
