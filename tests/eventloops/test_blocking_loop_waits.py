"""A loop that stands still on purpose: what it waits for does not wait for it, but is refused."""

from __future__ import annotations

import queue
import sys
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import asynccontextmanager
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from conftest import GRACE_SECONDS, captured, captured_async, in_plain_thread, wait_until

from unfazed.concurrency import (
    CallGroup,
    EventLoopThread,
    Handle,
    LoopThreadError,
    allow_blocking_loop,
    contextmanager_in_eventloop_sync,
    in_eventloop,
    in_threadpool,
    iterate_in_eventloop_sync,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._core import _blockedloops

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

Backend = tuple[str, dict[str, Any]]


def when_it_stands_still(act: Callable[[], object]) -> None:
    """Call *act* in another thread, once a loop stands still."""

    def wait_and_act() -> None:
        wait_until(lambda: _blockedloops.blocked_loops, "the loop does not stand still")
        act()

    threading.Thread(target=wait_and_act).start()


async def double(number: int) -> int:
    await anyio.sleep(0)
    return 2 * number


async def numbers() -> AsyncIterator[int]:
    yield await double(1)
    yield await double(2)


@asynccontextmanager
async def manager() -> AsyncIterator[int]:
    yield await double(3)


def enter() -> int:
    with contextmanager_in_eventloop_sync(manager()) as value:
        return value


async def blocking(call: Callable[[], Any]) -> Any:
    """Make *call* on the thread of the loop that runs this."""
    with allow_blocking_loop():
        return call()


STANDS = r"needs the event loop of the thread 'A', which .*\(\) blocks until then"


@pytest.fixture
def loop_a(background: Backend) -> Iterator[EventLoopThread]:
    with EventLoopThread(*background, name="A") as loop:
        yield loop


@pytest.fixture
def loop_b(background: Backend) -> Iterator[EventLoopThread]:
    with EventLoopThread(*background, name="B") as loop:
        yield loop


def test_a_loop_does_not_wait_for_itself(loop_a: EventLoopThread) -> None:
    with pytest.raises(LoopThreadError, match=STANDS):
        loop_a.run_sync(blocking, partial(loop_a.run_sync, double, 1))


def test_the_background_event_loop_does_not_wait_for_itself(background: Backend) -> None:
    for call in (
        lambda: run_in_threadpool_sync(int),
        lambda: run_in_eventloop_sync(double, 1),
        lambda: list(iterate_in_eventloop_sync(numbers())),
        enter,
    ):
        with pytest.raises(LoopThreadError, match="blocks until then"):
            run_in_eventloop_sync(blocking, call)


def test_async_code_that_the_loop_waits_for_is_refused_there(loop_a: EventLoopThread) -> None:
    async def back() -> int:
        return await loop_a.run(double, 1)

    with pytest.raises(LoopThreadError, match=STANDS):
        loop_a.run_sync(blocking, partial(run_in_eventloop_sync, back))
    assert loop_a.run_sync(double, 1) == 2


def test_the_background_event_loop_is_refused_to_those_it_waits_for(loop_a: EventLoopThread) -> None:
    def from_plain_thread() -> Any:
        return in_plain_thread(partial(captured, partial(copy_context().run, run_in_threadpool_sync, int)))

    async def back() -> list[Any]:
        _, from_async_code = await captured_async(partial(run_in_eventloop, double, 1))
        _, from_sync_code = await anyio.to_thread.run_sync(from_plain_thread)
        return [from_async_code, from_sync_code]

    run_in_threadpool_sync(int)  # so that the background event loop knows its limiter
    errors = run_in_eventloop_sync(blocking, partial(loop_a.run_sync, back))

    assert [type(error) for error in errors] == [LoopThreadError] * 2


def test_a_thread_of_the_loop_is_refused_what_the_loop_waits_for(loop_a: EventLoopThread) -> None:
    """`run_in_eventloop_sync` in a worker thread runs in the loop of that worker."""
    jobs: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()

    def hand_over() -> Any:
        outcomes: queue.SimpleQueue[Any] = queue.SimpleQueue()
        context = copy_context()
        jobs.put(lambda: outcomes.put(captured(partial(context.run, run_in_eventloop_sync, double, 1))))
        return outcomes.get(timeout=GRACE_SECONDS)[1]

    async def main() -> Any:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_threadpool, lambda: jobs.get(timeout=GRACE_SECONDS)())
            await anyio.wait_all_tasks_blocked()
            with allow_blocking_loop():
                return run_in_threadpool_sync(hand_over)

    with pytest.raises(LoopThreadError, match=STANDS):
        raise loop_a.run_sync(main)


def test_who_is_not_waited_for_waits_until_the_loop_goes_on(loop_a: EventLoopThread) -> None:
    go_on = threading.Event()

    def call_a() -> Any:
        wait_until(lambda: _blockedloops.blocked_loops, "the loop does not stand still")
        threading.Timer(0.05, go_on.set).start()
        return run_in_eventloop_sync(double, 1), loop_a.run_sync(double, 2)

    async def main() -> Any:
        results: list[Any] = []

        async def call_in_thread() -> None:
            results.append(await run_in_threadpool(call_a))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call_in_thread)
            await anyio.wait_all_tasks_blocked()
            with allow_blocking_loop():
                assert run_in_threadpool_sync(go_on.wait, GRACE_SECONDS)
        return results

    assert loop_a.run_sync(main) == [(2, 4)]


def test_an_iterator_in_the_loop_is_not_waited_for_by_the_loop(loop_a: EventLoopThread) -> None:
    def begin() -> Any:
        items = iterate_in_eventloop_sync(numbers())
        assert next(items) == 2
        return items

    async def main() -> None:
        items = await run_in_threadpool(begin)  # in a task of this loop
        with allow_blocking_loop(), pytest.raises(LoopThreadError, match=STANDS):
            next(items)
        await anyio.sleep(0)

    loop_a.run_sync(main)


def later_items_of_a_task(loop: EventLoopThread) -> Any:
    async def items() -> AsyncIterator[int]:
        yield 1
        yield await loop.run(double, 1)

    return iterate_in_eventloop_sync(items())


def later_items_of_a_thread(loop: EventLoopThread) -> Any:
    @in_threadpool
    def items() -> Iterator[int]:
        yield 1
        yield loop.run_sync(double, 1)

    made: Any = items
    return made.sync()


def in_a_shared_context(loop: Any) -> Any:
    yield 1
    yield in_threadpool(loop.run_sync, context=copy_context()).sync(double, 1)


def in_a_shared_context_of_a_loop(loop: Any) -> Any:
    yield 1
    yield in_eventloop(loop.run, context=copy_context()).sync(double, 1)


@pytest.mark.parametrize(
    "begin", [later_items_of_a_task, later_items_of_a_thread, in_a_shared_context, in_a_shared_context_of_a_loop]
)
def test_it_is_refused_in_contexts_that_are_kept_as_well(
    loop_a: EventLoopThread, begin: Callable[[EventLoopThread], Any]
) -> None:
    items = begin(loop_a)

    assert loop_a.run_sync(blocking, partial(next, items)) == 1
    with pytest.raises(LoopThreadError, match=STANDS):
        loop_a.run_sync(blocking, partial(next, items))


def test_of_two_loops_that_would_wait_for_each_other_one_is_refused(
    loop_a: EventLoopThread, loop_b: EventLoopThread
) -> None:
    both = threading.Barrier(2, timeout=GRACE_SECONDS)

    def wait_for(other: EventLoopThread) -> Any:
        both.wait()
        return captured(partial(other.run_sync, double, 1))

    outcomes: list[Any] = []

    def block(one: EventLoopThread, other: EventLoopThread) -> None:
        outcomes.append(one.run_sync(blocking, partial(wait_for, other)))

    pairs = ((loop_a, loop_b), (loop_b, loop_a))
    threads = [threading.Thread(target=block, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GRACE_SECONDS)

    assert len(outcomes) == 2
    errors = [error for _, error in outcomes if error is not None]
    assert errors
    assert all(isinstance(error, LoopThreadError) and "blocks until then" in str(error) for error in errors)


def test_a_loop_does_not_wait_for_one_that_waits_for_a_call_in_it(
    loop_a: EventLoopThread, loop_b: EventLoopThread
) -> None:
    """A waits for the background loop, which waits for B: so B is refused A."""
    begun, refused = threading.Event(), threading.Event()

    async def in_b() -> int:
        begun.set()
        while not refused.is_set():
            await anyio.sleep(0.001)
        return 1

    async def in_background() -> int:
        return await loop_b.run(in_b)

    with ThreadPoolExecutor(1) as executor:
        waiting = executor.submit(loop_a.run_sync, blocking, partial(run_in_eventloop_sync, in_background))
        assert begun.wait(GRACE_SECONDS)
        _, error = captured(lambda: loop_b.run_sync(blocking, partial(loop_a.run_sync, double, 1)))
        refused.set()

        assert isinstance(error, LoopThreadError)
        assert waiting.result(GRACE_SECONDS) == 1


def test_the_loop_is_not_stopped_by_what_it_waits_for(loop_a: EventLoopThread) -> None:
    with pytest.raises(LoopThreadError, match=STANDS):
        loop_a.run_sync(blocking, partial(run_in_threadpool_sync, loop_a.stop))
    assert loop_a.is_running()


def test_another_loop_may_be_stopped(background: Backend, loop_a: EventLoopThread) -> None:
    with EventLoopThread(*background) as other:
        loop_a.run_sync(blocking, partial(run_in_threadpool_sync, other.stop))
        assert not other.is_running()


def test_what_outlives_the_wait_may_use_the_loop_again(loop_a: EventLoopThread, loop_b: EventLoopThread) -> None:
    gone_on = threading.Event()
    results: list[Any] = []

    async def outlive(done: threading.Event) -> None:
        while not gone_on.is_set():
            await anyio.sleep(0.001)
        results.append(await captured_async(partial(loop_a.run, double, 1)))
        done.set()

    def start() -> threading.Event:
        done = threading.Event()
        context = copy_context()
        threading.Thread(target=lambda: context.run(run_in_eventloop_sync, outlive, done)).start()
        return done

    done = loop_a.run_sync(blocking, partial(run_in_threadpool_sync, start))
    when_it_stands_still(gone_on.set)
    assert loop_b.run_sync(blocking, partial(run_in_threadpool_sync, done.wait, GRACE_SECONDS))

    assert results == [(2, None)]


def test_what_the_loop_waits_for_may_use_other_loops(loop_a: EventLoopThread, loop_b: EventLoopThread) -> None:
    async def in_background() -> list[int]:
        return [await loop_b.run(double, number) for number in range(3)]

    assert loop_a.run_sync(blocking, partial(run_in_eventloop_sync, in_background)) == [0, 2, 4]


@pytest.mark.parametrize("way", ["a handle", "a group"])
def test_a_started_call_that_waits_for_the_loop_already_is_not_waited_for(background: Backend, way: str) -> None:
    """1: it is started. 2: it makes a call in the loop. 3: the loop would be blocked until it has ended."""
    backend, options = background

    async def inside(owner: EventLoopThread, other: EventLoopThread) -> int:
        handles: list[Handle[int]] = []

        def start() -> Handle[int]:
            handles.append(other.start(owner.run, double, 1))
            wait_until(lambda: is_needed(handles[0]), "it makes no call")
            return handles[0]

        def wait_in_a_group() -> None:
            with CallGroup() as group:
                group.add(start())

        wait = wait_in_a_group if way == "a group" else lambda: start().result()
        with allow_blocking_loop(), pytest.raises((LoopThreadError, ExceptionGroup)) as caught:
            wait()
        error = caught.value.exceptions[0] if isinstance(caught.value, ExceptionGroup) else caught.value
        assert "it needs the event loop" in str(error)
        if way == "a group":  # which has cancelled it
            with pytest.raises(CancelledError):
                await handles[0]
            return 2
        return await handles[0]

    def is_needed(handle: Any) -> bool:
        native = owner._require_running().native
        needs = handle._blocks_later._needs.copy().items()
        return any(loop is native and call.loop is not None for call, loop in needs)  # it was not refused

    with EventLoopThread(backend, options) as owner, EventLoopThread(backend, options) as other:
        assert owner.run_sync(inside, owner, other) == 2
