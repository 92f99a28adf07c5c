"""Async iterables and context managers in sync code that nobody uses any more: in the end they are closed."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from conftest import GRACE_SECONDS, Caller, wait_for_event, wait_until
from own_programs import Program
from test_concurrency import python
from test_iterate_in_eventloop import Ticker

from unfazed.concurrency import (
    LoopEndedError,
    contextmanager_in_eventloop_sync,
    iterate_in_eventloop_sync,
    run_in_threadpool,
    start_in_eventloop,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

needs_the_collectors_word = pytest.mark.skipif(
    not hasattr(gc, "callbacks"), reason="PyPy does not say when its collector works"
)


class Manager:
    """Counts how often it is left."""

    def __init__(self) -> None:
        self.times_closed = 0

    async def __aenter__(self) -> None:
        await anyio.sleep(0)

    async def __aexit__(self, kind: object, *_: object) -> None:
        await anyio.sleep(0)
        self.times_closed += kind is GeneratorExit


def in_manager(manager: Manager) -> Iterator[None]:
    with contextmanager_in_eventloop_sync(manager):
        yield


def cycle_with(items: Iterator[Any]) -> None:
    """Begin the iteration, and leave it to the garbage collector."""
    next(items)
    holder: list[Any] = [items]
    holder.append(holder)


SOURCES: dict[str, Callable[[], tuple[Any, Iterator[Any]]]] = {
    "iterator": lambda: ((ticker := Ticker()), iterate_in_eventloop_sync(ticker)),
    "context manager": lambda: ((manager := Manager()), in_manager(manager)),
}


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


@needs_the_collectors_word
@pytest.mark.parametrize("kind", SOURCES)
def test_the_garbage_collector_does_not_wait_for_a_loop_that_waits_for_its_thread(kind: str, background: Any) -> None:
    """As where it runs amid the code of a lock that the loop needs."""

    async def block() -> None:
        blocked.set()
        assert collected.wait(GRACE_SECONDS), "the collector waits for this loop"

    blocked, collected = threading.Event(), threading.Event()
    gc.collect()
    source, items = SOURCES[kind]()
    cycle_with(items)
    del items
    call = start_in_eventloop(block)
    assert blocked.wait(GRACE_SECONDS)
    gc.collect()
    assert source.times_closed == 0
    collected.set()

    call.result(GRACE_SECONDS)
    wait_until(lambda: source.times_closed == 1, "it is never closed")


@pytest.mark.parametrize("kind", SOURCES)
@pytest.mark.parametrize("ours", [True, False])
def test_the_garbage_collector_leaves_the_task_in_the_loop_of_a_worker(kind: str, ours: bool, background: Any) -> None:
    """A loop that is not ours: asyncio itself keeps its tasks weakly."""

    def work() -> Any:
        source, items = SOURCES[kind]()
        cycle_with(items)
        del items
        gc.collect()
        return source

    async def main() -> None:
        source = await (run_in_threadpool(work) if ours else anyio.to_thread.run_sync(work))
        with anyio.fail_after(GRACE_SECONDS):
            while source.times_closed != 1:
                gc.collect()
                await anyio.sleep(0.001)

    Caller("", background).run(main)


def test_after_its_loop_was_closed_with_open_tasks_nothing_keeps_what_it_iterates_over() -> None:
    """On asyncio, which lets its users do that."""

    def begin() -> tuple[Iterator[Any], weakref.ref[Ticker]]:
        ticker = Ticker()
        items = iterate_in_eventloop_sync(ticker)
        next(items)
        return items, weakref.ref(ticker)

    loop = asyncio.new_event_loop()
    items, ticker = loop.run_until_complete(run_in_threadpool(begin))
    loop.close()
    del loop
    with pytest.raises(LoopEndedError):
        next(items)
    del items

    def is_free() -> bool:
        gc.collect()
        return ticker() is None

    wait_until(is_free, "something keeps it")


@needs_the_collectors_word
def test_a_callback_of_the_collector_that_removes_itself_does_not_keep_the_end_from_being_waited_for() -> None:
    """CPython leaves out the callback after it."""
    program = """
import gc
gc.disable()
def once(phase, _):
    if phase == "stop":
        gc.callbacks.remove(once)
gc.callbacks.append(once)

import anyio
from unfazed.concurrency import iterate_in_eventloop_sync
class Rows:
    def __aiter__(self): return self
    async def __anext__(self): return 1
    async def aclose(self):
        await anyio.sleep(0.1)
        print("closed")
items = iterate_in_eventloop_sync(Rows())
next(items)
gc.collect()
items.close()
print("waited for")
"""
    assert python(program).split("\n") == ["closed", "waited for"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_ends_in_silence_though_one_is_open(
    tmp_path: Path, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    program = """
    async def numbers():
        yield 1
        yield 2
    items = iterate_in_eventloop_sync(numbers())
    next(items)
    if pid := os.fork():
        _, status = os.waitpid(pid, 0)
        say(os.waitstatus_to_exitcode(status))
        items.close()
    """
    assert Program(tmp_path, anyio_backend, program).run() == (0, "0\n", "")
