"""An event loop of ours that something breaks, as `SystemExit` in a callback does, or that has a guest."""

from __future__ import annotations

import importlib.util
import sys
import threading
import time
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import GRACE_SECONDS, Gate, captured, wait_until

from unfazed.concurrency import (
    EventLoopThread,
    LoopEndedError,
    in_processpool,
    iterate_in_threadpool,
    map_in_eventloop,
    map_in_threadpool,
    run_in_eventloop,
    run_in_eventloop_sync,
    start_in_eventloop,
)
from unfazed.concurrency._eventloops import _background

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Iterator

Backend = tuple[str, dict[str, Any]]


def break_it(loop: EventLoopThread) -> None:
    loop._require_running().post(sys.exit)


async def thread_id() -> int:
    return threading.get_ident()


def test_what_cleans_up_while_the_background_loop_breaks_is_run_by_that_loop(background: Backend) -> None:
    begun, threads = threading.Event(), list[int]()

    async def serve() -> None:
        threads.append(threading.get_ident())
        begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True), anyio.fail_after(GRACE_SECONDS):
                while owner.is_running():
                    await anyio.sleep(0)
                threads.append(await run_in_eventloop(thread_id))

    run_in_eventloop_sync(thread_id)
    found = _background.running_background()
    assert found is not None
    owner = found
    handle = start_in_eventloop(serve)
    assert begun.wait(GRACE_SECONDS)
    break_it(owner)
    captured(partial(handle.result, GRACE_SECONDS))

    assert len(threads) == 2
    assert len(set(threads)) == 1


def test_while_it_cleans_up_others_get_a_new_background_loop(background: Backend) -> None:
    begun, cleans_up, may_end = threading.Event(), threading.Event(), threading.Event()

    async def serve() -> None:
        try:
            begun.set()
            await anyio.sleep_forever()
        finally:
            cleans_up.set()
            with anyio.CancelScope(shield=True):
                while not may_end.is_set():
                    await anyio.sleep(0.001)

    async def wait_for_cleanup() -> int:
        while not cleans_up.is_set():
            await anyio.sleep(0.001)
        return threading.get_ident()

    handle = start_in_eventloop(serve)
    assert begun.wait(GRACE_SECONDS)
    owner = _background.running_background()
    assert owner is not None
    assert owner._thread is not None
    break_it(owner)
    wait_until(lambda: not owner.is_running(), "it does not break")
    found = [run_in_eventloop_sync(wait_for_cleanup), start_in_eventloop(wait_for_cleanup).result(GRACE_SECONDS)]
    may_end.set()
    captured(partial(handle.result, GRACE_SECONDS))

    assert owner._thread.ident not in found
    with pytest.raises(LoopEndedError):
        owner.run_sync(thread_id)


@contextmanager
def behind_what_breaks_it(backend: str, options: dict[str, Any]) -> Iterator[EventLoopThread]:
    """Give a loop in which calls begin too late. 1: a callback breaks it. 2: asyncio cancels all tasks. 3: they begin.

    Nobody cancels their tasks.
    """
    gate = Gate()
    loop = EventLoopThread(backend, options)
    loop.start()
    loop._require_running().post(gate.wait)
    assert gate.reached.wait(GRACE_SECONDS)
    break_it(loop)
    yield loop
    gate.opened.set()
    assert loop._thread is not None
    loop._thread.join(GRACE_SECONDS)


def test_a_call_that_begins_when_its_loop_is_broken_already_loses_no_slot(background: Backend) -> None:
    limiter = anyio.CapacityLimiter(1)

    async def call() -> None:
        await in_processpool(time.sleep, limiter=limiter)(0.05)

    with behind_what_breaks_it(*background) as loop:
        handle = loop.start(call)
    _, error = captured(partial(handle.result, GRACE_SECONDS))

    assert isinstance(error, LoopEndedError) or background[0] == "trio"
    assert in_processpool(int, limiter=limiter).start("1").result(GRACE_SECONDS) == 1


def test_what_such_calls_raise_when_they_are_closed_is_shown_and_all_have_ended_before(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On asyncio: the others end all tasks, or begin none."""
    shown: list[object] = []

    def hook(args: threading.ExceptHookArgs) -> None:
        shown.append(args.exc_value)
        raise ValueError("in the hook")

    monkeypatch.setattr(threading, "excepthook", hook)
    errors = [ValueError("in the cleanup"), ValueError("in another one")]
    handles: list[Any] = []
    all_done: list[bool] = []

    async def call(number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            all_done.append(all(handle.done() for handle in handles))
            raise errors[number]

    with behind_what_breaks_it("asyncio", {}) as loop:
        handles += [loop.start(call, number) for number in range(2)]
    for handle in handles:
        assert isinstance(captured(partial(handle.result, GRACE_SECONDS))[1], LoopEndedError)

    assert sorted(shown, key=id) == sorted(errors, key=id)
    assert all_done == [True, True]


@pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="needs trio")
@pytest.mark.parametrize("source", ["a map of threads", "a map of tasks", "an iterator that fetches ahead"])
def test_in_a_guest_of_a_loop_of_ours_tasks_belong_to_the_guest(source: str) -> None:
    import trio

    async def double(number: int) -> int:
        await anyio.sleep(0)
        return 2 * number

    def make() -> AsyncIterable[int]:
        if source == "a map of threads":
            return map_in_threadpool(int, ["0", "2", "4"])
        if source == "a map of tasks":
            return map_in_eventloop(double, range(3))
        return iterate_in_threadpool([0, 2, 4], prefetch=2)

    async def main() -> list[int]:
        return [item async for item in make()]

    outcomes: list[Any] = []
    with EventLoopThread("asyncio") as host:
        native: Any = host.native
        start = partial(
            trio.lowlevel.start_guest_run,
            main,
            run_sync_soon_threadsafe=native.call_soon_threadsafe,
            done_callback=outcomes.append,
            host_uses_signal_set_wakeup_fd=True,
        )
        native.call_soon_threadsafe(start)
        wait_until(lambda: outcomes, "the guest does not end")

    assert outcomes[0].unwrap() == [0, 2, 4]
