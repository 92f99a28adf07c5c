"""Async iterables in sync code."""

from __future__ import annotations

import contextvars
import threading
import traceback
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from conftest import (
    Caller,
    captured,
    drop_garbage,
    end_background_eventloop,
    in_plain_thread,
    let_others_run,
    limit_threads,
    wait_for_event,
    without_address,
)

from unfazed.concurrency import (
    LoopEndedError,
    LoopThreadError,
    WrongFunctionError,
    iterate_in_eventloop_sync,
    run_in_eventloop_sync,
    run_in_threadpool,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def async_generator() -> AsyncIterator[int]:
    pytest.fail("must not run")
    yield 1


class Ticker:
    """Counts in a task, and records which tasks and loops use and close it."""

    def __init__(self, end: int = 1000) -> None:
        self.end = end
        self.given = 0
        self.tasks: set[int] = set()
        self.threads: set[int] = set()
        self.times_closed = 0

    def note(self) -> None:
        self.tasks.add(anyio.get_current_task().id)
        self.threads.add(threading.get_ident())

    def __aiter__(self) -> Ticker:
        return self

    async def __anext__(self) -> int:
        self.note()
        await anyio.lowlevel.checkpoint()
        if self.given == self.end:
            raise StopAsyncIteration
        self.given += 1
        return self.given - 1

    async def aclose(self) -> None:
        self.note()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        self.times_closed += 1


def test_all_items_come_in_order_in_sync_code(sync_caller: Caller) -> None:
    assert sync_caller.make(lambda: list(iterate_in_eventloop_sync(Ticker(100)))) == list(range(100))


def test_one_task_and_one_context_serve_the_whole_iteration(sync_caller: Caller) -> None:
    tasks: set[int] = set()

    async def generator() -> AsyncIterator[str]:
        token = variable.set("inside")
        with anyio.CancelScope():
            async with anyio.create_task_group():
                for _ in range(5):
                    tasks.add(anyio.get_current_task().id)
                    yield variable.get()
        variable.reset(token)
        yield variable.get()

    def iterate() -> list[str]:
        variable.set("the caller's")
        return [*iterate_in_eventloop_sync(generator()), variable.get()]

    assert sync_caller.make(iterate) == ["inside"] * 5 + ["the caller's"] * 2
    assert len(tasks) == 1


def test_in_a_worker_it_runs_in_the_loop_of_that_worker(background: tuple[str, dict[str, Any]]) -> None:
    ticker = Ticker(3)
    for kind in ("our worker", "anyio's worker"):
        assert Caller(kind, background).make(lambda: next(iterate_in_eventloop_sync(ticker))) in (0, 1)

    assert ticker.threads == {threading.get_ident()}
    assert ticker.times_closed == 2


def test_closed_in_its_task_after_break_and_waited_for(sync_caller: Caller) -> None:
    ticker = Ticker()

    def iterate() -> int:
        for item in iterate_in_eventloop_sync(ticker):
            if item == 3:
                break
        drop_garbage()
        return ticker.times_closed

    assert sync_caller.make(iterate) == 1
    assert len(ticker.tasks) == 1


def test_closed_in_its_task_after_an_exception_in_the_body_and_waited_for(sync_caller: Caller) -> None:
    ticker = Ticker()

    def iterate() -> int:
        def body() -> None:
            for _ in iterate_in_eventloop_sync(ticker):
                raise ValueError("body")

        with pytest.raises(ValueError, match="body"):
            body()
        drop_garbage()
        return ticker.times_closed

    assert sync_caller.make(iterate) == 1
    assert len(ticker.tasks) == 1


def test_closed_in_its_task_by_close_and_waited_for(sync_caller: Caller) -> None:
    ticker = Ticker()

    def iterate() -> int:
        items = iterate_in_eventloop_sync(ticker)
        next(items)
        items.close()
        items.close()
        assert list(items) == []
        return ticker.times_closed

    assert sync_caller.make(iterate) == 1
    assert len(ticker.tasks) == 1


def test_an_async_generator_left_early_leaves_its_task_group_and_resets_its_token(sync_caller: Caller) -> None:
    results: list[object] = []

    async def generator() -> AsyncIterator[int]:
        token = variable.set("inside")
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                try:
                    yield 1
                finally:
                    tasks.cancel_scope.cancel()
        finally:
            variable.reset(token)
            results.append("left")

    def iterate() -> None:
        with captured_items(generator()) as items:
            assert next(items) == 1

    sync_caller.make(iterate)

    assert results == ["left"]


class captured_items:  # noqa: N801  reads as what it does
    """Close the iterator at the end of the block. The exceptions that end its task group are expected."""

    def __init__(self, source: AsyncIterator[int]) -> None:
        self.items = iterate_in_eventloop_sync(source)

    def __enter__(self) -> Iterator[int]:
        return self.items

    def __exit__(self, *exc_info: object) -> None:
        _, error = captured(self.items.close)
        del error  # a task group wraps the GeneratorExit that went through it in a group


def test_an_iterator_at_its_end_is_not_closed(sync_caller: Caller) -> None:
    ticker = Ticker(2)

    assert sync_caller.make(lambda: list(iterate_in_eventloop_sync(ticker))) == [0, 1]
    assert ticker.times_closed == 0


def test_an_iterator_that_was_never_begun_runs_nothing(sync_caller: Caller) -> None:
    ticker = Ticker()

    sync_caller.make(lambda: iterate_in_eventloop_sync(ticker).close())

    assert (ticker.given, ticker.times_closed) == (0, 0)


def test_what_closing_raised_is_raised_in_sync_code(sync_caller: Caller) -> None:
    class Failing(Ticker):
        async def aclose(self) -> None:
            raise ValueError("closing")

    def iterate() -> None:
        items = iterate_in_eventloop_sync(Failing())
        next(items)
        with pytest.raises(ValueError, match="closing"):
            items.close()

    sync_caller.make(iterate)


def test_exceptions_come_with_their_traceback_in_sync_code(sync_caller: Caller) -> None:
    error = ValueError("no")

    async def fail() -> AsyncIterator[int]:
        yield 1
        raise error

    items: list[int] = []

    def iterate() -> None:
        items.extend(iterate_in_eventloop_sync(fail()))

    with pytest.raises(ValueError, match="no") as caught:
        sync_caller.make(iterate)

    assert caught.value is error
    assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"


def test_after_the_cancellation_of_a_scope_that_it_holds_a_step_raises_what_closing_it_raised(
    background: tuple[str, dict[str, Any]],
) -> None:
    scopes: list[anyio.CancelScope] = []

    async def numbers() -> AsyncIterator[int]:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            try:
                yield 1
            finally:
                raise ValueError("closed")

    async def cancel() -> None:
        scopes[0].cancel()
        await let_others_run()

    items = iterate_in_eventloop_sync(numbers())
    assert next(items) == 1
    run_in_eventloop_sync(cancel)

    with pytest.raises(ValueError, match="closed"):
        next(items)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=without_address)
def test_exceptions_that_end_programs_reach_the_sync_consumer_alone(sync_caller: Caller, error: BaseException) -> None:
    class Failing(Ticker):
        async def __anext__(self) -> int:
            raise error

    def iterate() -> Any:
        outcome = captured(lambda: next(iterate_in_eventloop_sync(Failing())))
        assert list(iterate_in_eventloop_sync(Ticker(1))) == [0]
        return outcome

    assert sync_caller.make(iterate) == (None, error)


def test_stop_iteration_raised_inside_is_a_runtime_error_in_sync_code(sync_caller: Caller) -> None:
    class FailsAtOnce:
        def __aiter__(self) -> AsyncIterator[int]:
            raise StopIteration

    class FailsLater(Ticker):
        def __anext__(self) -> Any:
            raise StopIteration

    for failing in (FailsAtOnce(), FailsLater()):
        with pytest.raises(RuntimeError, match="StopIteration"):
            sync_caller.make(lambda source=failing: list(iterate_in_eventloop_sync(source)))  # type: ignore[misc]


def test_a_step_is_cancelled_with_the_task_that_waits_for_the_worker(background: tuple[str, dict[str, Any]]) -> None:
    sleeping = threading.Event()
    events: list[str] = []

    async def generator() -> AsyncIterator[int]:
        try:
            yield 1
            sleeping.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            events.append("cleanup awaited")

    def iterate() -> None:
        try:
            for _ in iterate_in_eventloop_sync(generator()):
                pass
        except BaseException as exc:
            events.append(type(exc).__name__)
            raise

    async def main(run: Any) -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run, iterate)
            await wait_for_event(sleeping)
            tasks.cancel_scope.cancel()

    name = "CancelledError" if background[0] == "asyncio" else "Cancelled"
    Caller("", background).run(main, run_in_threadpool)

    assert events == ["cleanup awaited", name]


def test_after_a_cancelled_step_the_source_is_closed_in_its_task(background: tuple[str, dict[str, Any]]) -> None:
    class Sleepy(Ticker):
        async def __anext__(self) -> int:
            self.note()
            sleeping.set()
            await anyio.sleep_forever()
            return 0

        async def aclose(self) -> None:
            self.note()
            self.times_closed += 1

    sleeping = threading.Event()
    ticker = Sleepy()

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_threadpool, lambda: list(iterate_in_eventloop_sync(ticker)))
            await wait_for_event(sleeping)
            tasks.cancel_scope.cancel()

    Caller("", background).run(main)

    assert ticker.times_closed == 1
    assert len(ticker.tasks) == 1


@pytest.mark.anyio
async def test_a_thread_with_a_running_loop_is_refused() -> None:
    ticker = Ticker()
    items = iterate_in_eventloop_sync(ticker)

    with pytest.raises(LoopThreadError, match=r"async for \.\.\. in Ticker"):
        next(items)
    assert ticker.given == 0


def test_used_after_its_loop_has_ended_it_says_so(background: Any) -> None:
    ticker = Ticker()
    items = iterate_in_eventloop_sync(ticker)
    next(items)
    end_background_eventloop()

    with pytest.raises(LoopEndedError):
        next(items)
    assert ticker.times_closed == 1


def test_dropped_after_its_loop_has_ended_it_says_nothing(background: Any) -> None:
    ticker = Ticker()
    items = iterate_in_eventloop_sync(ticker)
    next(items)
    end_background_eventloop()

    items.close()

    assert ticker.times_closed == 1


def test_steps_from_different_threads_go_to_one_task(background: Any) -> None:
    ticker = Ticker()
    items = iterate_in_eventloop_sync(ticker)

    taken = [next(items), *(in_plain_thread(partial(next, items)) for _ in range(3))]
    in_plain_thread(items.close)

    assert taken == [0, 1, 2, 3]
    assert len(ticker.tasks) == 1
    assert ticker.times_closed == 1


def test_a_step_from_a_worker_goes_to_the_loop_where_the_iteration_was_begun(
    background: tuple[str, dict[str, Any]],
) -> None:
    ticker = Ticker()
    items = iterate_in_eventloop_sync(ticker)
    taken = [next(items)]

    for kind in ("our worker", "anyio's worker"):
        taken.append(Caller(kind, background).make(partial(next, items)))
    items.close()

    assert taken == [0, 1, 2]
    assert len(ticker.tasks) == len(ticker.threads) == 1
    assert ticker.times_closed == 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ([1, 2], "`for ... in` without iterate_in_eventloop_sync"),
        (async_generator, r"`iterate_in_eventloop_sync\(async_generator\(...\)\)`"),
        (3, "expected an async iterable, got 3"),
    ],
    ids=without_address,
)
def test_what_is_no_async_iterable_is_refused_at_once(source: Any, message: str) -> None:
    with pytest.raises(WrongFunctionError, match=message):
        iterate_in_eventloop_sync(source)


def test_a_hundred_iterators_in_sync_code_at_once(background: Any) -> None:
    iterators = [iterate_in_eventloop_sync(Ticker(3)) for _ in range(100)]

    firsts = [next(items) for items in iterators]
    rest = [list(items) for items in iterators]

    assert (firsts, rest) == ([0] * 100, [[1, 2]] * 100)


def test_a_source_that_calls_the_pool_runs_on_the_slot_of_its_consumer(background: tuple[str, dict[str, Any]]) -> None:
    async def generator() -> AsyncIterator[int]:
        for number in range(3):
            yield await run_in_threadpool(int, number)

    async def main() -> list[int]:
        limit_threads(1)
        return await run_in_threadpool(lambda: list(iterate_in_eventloop_sync(generator())))

    assert Caller("", background).run(main) == [0, 1, 2]
