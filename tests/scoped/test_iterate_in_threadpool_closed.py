"""Sync iterables in async code: how they are closed, left early, and dropped."""

from __future__ import annotations

import contextvars
import threading
from contextlib import aclosing
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from conftest import (
    GRACE_SECONDS,
    Gate,
    captured,
    drop_garbage,
    in_plain_thread,
    let_others_run,
    limit_threads,
    wait_for_event,
    wait_until,
)
from iterables import Counter

from unfazed.concurrency import EventLoopThread, iterate_in_threadpool, run_in_threadpool
from unfazed.concurrency._scoped import _threaditerators, _threadrunner

if TYPE_CHECKING:
    from collections.abc import Iterator

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

both_ways = pytest.mark.parametrize("prefetch", [0, 3])


@pytest.mark.anyio
@both_ways
async def test_a_generator_that_is_left_early_resets_its_token_in_its_thread(prefetch: int) -> None:
    ended = threading.Event()
    results: list[object] = []

    def generator() -> Iterator[int]:
        token = variable.set("inside")
        try:
            yield threading.get_ident()
            yield 1
        finally:
            results.append(captured(partial(variable.reset, token))[1])
            results.append(threading.get_ident())
            ended.set()

    async for item in iterate_in_threadpool(generator(), prefetch=prefetch):
        thread = item
        break
    drop_garbage()
    await wait_for_event(ended)

    assert results == [None, thread]


@pytest.mark.anyio
@both_ways
async def test_closed_in_its_thread_after_break(prefetch: int) -> None:
    source = Counter()

    async for item in iterate_in_threadpool(source, prefetch=prefetch):
        if item == 5:
            break

    await source.check_closed_in_its_thread()


@pytest.mark.anyio
@both_ways
async def test_closed_in_its_thread_after_an_exception_in_the_body(prefetch: int) -> None:
    source = Counter()

    async def body() -> None:
        async for _ in iterate_in_threadpool(source, prefetch=prefetch):
            raise ValueError("body")

    with pytest.raises(ValueError, match="body"):
        await body()

    await source.check_closed_in_its_thread()


@pytest.mark.anyio
@both_ways
async def test_aclose_closes_the_iterator_and_waits_for_that(prefetch: int) -> None:
    source = Counter()
    items = iterate_in_threadpool(source, prefetch=prefetch)
    await anext(items)

    await items.aclose()

    assert source.closed.is_set()
    await source.check_closed_in_its_thread()
    assert len([item async for item in items]) < prefetch or prefetch == 0  # what was there already is delivered


@pytest.mark.anyio
async def test_aclose_of_an_iterator_that_was_never_begun_or_is_closed_or_over_does_nothing() -> None:
    begun, over, never = Counter(), Counter(1), Counter()
    items = iterate_in_threadpool(begun)
    await anext(items)
    for iterator in (items, items, iterate_in_threadpool(never)):
        await iterator.aclose()
    items = iterate_in_threadpool(over)
    assert [item async for item in items] == [0]
    await items.aclose()

    assert (begun.times_closed, over.times_closed, never.times_closed) == (1, 0, 0)


@pytest.mark.anyio
@both_ways
async def test_aclosing_closes_the_iterator_before_it_goes_on(prefetch: int) -> None:
    source = Counter()

    async with aclosing(iterate_in_threadpool(source, prefetch=prefetch)) as items:
        async for _ in items:
            break

    assert source.closed.is_set()


@pytest.mark.anyio
@both_ways
async def test_aclose_raises_what_closing_raised(prefetch: int) -> None:
    class Failing(Counter):
        def close(self) -> None:
            raise ValueError("closing")

    items = iterate_in_threadpool(Failing(), prefetch=prefetch)
    await anext(items)

    with pytest.raises(ValueError, match="closing"):
        await items.aclose()


@pytest.mark.anyio
async def test_aclose_raises_what_closing_raised_however_fast_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: the runner is left. 2: its thread has ended. 3: only now does the loop get round to waiting for that."""
    leave = _threadrunner.ThreadRunner.leave

    class Failing(Counter):
        def close(self) -> None:
            raise ValueError("closing")

    def leave_and_let_it_end(runner: _threadrunner.ThreadRunner[Any]) -> None:
        leave(runner)
        wait_until(lambda: runner._outcome is not None, "the thread ends")

    monkeypatch.setattr(_threadrunner.ThreadRunner, "leave", leave_and_let_it_end)
    items = iterate_in_threadpool(Failing())
    await anext(items)

    with pytest.raises(ValueError, match="closing"):
        await items.aclose()


@pytest.mark.anyio
@both_ways
async def test_aclose_that_is_cancelled_waits_all_the_same(prefetch: int) -> None:
    gate = Gate()

    class SlowToClose(Counter):
        def close(self) -> None:
            gate.wait()
            super().close()

    source = SlowToClose()
    items = iterate_in_threadpool(source, prefetch=prefetch)
    await anext(items)
    closed_when_raised: list[bool] = []

    async def close() -> None:
        try:
            await items.aclose()
        except anyio.get_cancelled_exc_class():
            closed_when_raised.append(source.closed.is_set())
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(close)
        await gate.wait_until_reached()
        tasks.cancel_scope.cancel()
        await let_others_run()
        gate.opened.set()

    assert closed_when_raised == [True]


@pytest.mark.anyio
@both_ways
async def test_closing_waits_for_no_slot(prefetch: int) -> None:
    limit_threads(1)
    gate = Gate()
    source = Counter()
    items = iterate_in_threadpool(source, prefetch=prefetch)
    await anext(items)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, gate.wait)
        await gate.wait_until_reached()
        await items.aclose()
        gate.opened.set()

    await source.check_closed_in_its_thread()


def test_an_iterator_that_could_not_be_made_is_dropped_in_silence() -> None:
    with pytest.raises(TypeError):
        _threaditerators.ThreadpoolIterator()  # type: ignore[call-arg]


@pytest.mark.anyio
@both_ways
async def test_dropped_in_another_thread_it_is_closed_in_its_own(prefetch: int) -> None:
    source = Counter()
    holder = [iterate_in_threadpool(source, prefetch=prefetch)]
    await anext(holder[0])

    await anyio.to_thread.run_sync(in_plain_thread, holder.clear)

    await source.check_closed_in_its_thread()


@pytest.mark.anyio
@both_ways
async def test_errors_of_closing_that_nobody_waits_for_reach_the_excepthook(
    prefetch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[Any] = []
    told = threading.Event()

    def excepthook(args: threading.ExceptHookArgs) -> None:
        reported.append((args.exc_type, args.exc_value))
        told.set()

    error = ValueError("closing")

    class Failing(Counter):
        def close(self) -> None:
            raise error

    monkeypatch.setattr(threading, "excepthook", excepthook)
    async for _ in iterate_in_threadpool(Failing(), prefetch=prefetch):
        break
    drop_garbage()
    await wait_for_event(told)

    assert reported == [(ValueError, error)]


@both_ways
def test_an_idle_iterator_is_closed_in_its_thread_when_its_loop_has_ended(
    prefetch: int, anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_threadrunner, "CHECK_SECONDS", 0.01)
    source = Counter()
    backend, options = anyio_backend
    kept: list[Any] = []

    async def begin() -> None:
        items = iterate_in_threadpool(source, prefetch=prefetch)
        kept.append(items)
        await anext(items)

    anyio.run(begin, backend=backend, backend_options=options)

    assert source.closed.wait(GRACE_SECONDS)
    assert len(source.threads) == 1
    assert source.times_closed == 1


@both_ways
def test_a_loop_thread_ends_with_an_idle_iterator_open(
    prefetch: int, anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_threadrunner, "CHECK_SECONDS", 0.01)
    source = Counter()
    items = iterate_in_threadpool(source, prefetch=prefetch)
    backend, options = anyio_backend

    async def step() -> int:
        return await anext(items)

    with EventLoopThread(backend, options) as loop:
        assert loop.run_sync(step) == 0

    assert source.closed.wait(GRACE_SECONDS)
    assert len(source.threads) == 1
