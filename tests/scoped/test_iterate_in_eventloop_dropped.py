"""Async iterables in sync code that nobody iterates over any more."""

from __future__ import annotations

import gc
import threading
from typing import Any

import anyio
import pytest
from conftest import GRACE_SECONDS, Caller, wait_for_event, wait_until
from test_iterate_in_eventloop import Ticker

from unfazed.concurrency import iterate_in_eventloop_sync, start_in_eventloop


def test_dropped_in_a_loops_thread_it_is_closed_without_blocking(background: Any) -> None:
    closed = threading.Event()

    class Slow(Ticker):
        async def aclose(self) -> None:
            while not may_close.is_set():
                await anyio.sleep(0.001)
            closed.set()

    may_close = threading.Event()
    holder = [iterate_in_eventloop_sync(Slow())]
    next(holder[0])

    async def drop() -> None:
        holder.clear()
        gc.collect()
        assert not closed.is_set()
        may_close.set()
        await wait_for_event(closed)

    Caller("", background).run(drop)

    assert closed.is_set()


@pytest.mark.skipif(not hasattr(gc, "callbacks"), reason="PyPy does not say when its collector works")
def test_the_garbage_collector_does_not_wait_for_a_loop_that_waits_for_its_thread(background: Any) -> None:
    """As where it runs amid the code of a lock that the loop needs."""

    def drop() -> None:
        holder: list[Any] = [iterate_in_eventloop_sync(ticker)]
        next(holder[0])
        holder.append(holder)

    async def block() -> None:
        blocked.set()
        assert collected.wait(GRACE_SECONDS), "the collector waits for this loop"

    ticker, blocked, collected = Ticker(), threading.Event(), threading.Event()
    gc.collect()
    drop()
    call = start_in_eventloop(block)
    assert blocked.wait(GRACE_SECONDS)
    gc.collect()
    assert ticker.times_closed == 0
    collected.set()

    call.result(GRACE_SECONDS)
    wait_until(lambda: ticker.times_closed == 1, "it is never closed")
