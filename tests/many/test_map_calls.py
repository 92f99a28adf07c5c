"""Many calls at once: what all map functions do, for every kind of caller."""

from __future__ import annotations

import contextvars
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import Caller, in_plain_thread, let_others_run, limit_threads
from map_functions import double
from map_helpers import FUNCTIONS, PLACES, Gated, add, all_of, collect, letters, mapping

from unfazed.concurrency import (
    InUseError,
    LoopStateError,
    LoopThreadError,
    WrongFunctionError,
    WrongOptionError,
    iterate_in_eventloop_sync,
    map_in_eventloop,
    map_in_eventloop_sync,
    map_in_processpool_sync,
    map_in_threadpool,
    map_in_threadpool_sync,
    run_in_eventloop_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")

in_each_place = pytest.mark.parametrize("place", PLACES)


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as executor:
        yield executor


def collect_in(caller: Caller, place: str, func: Any, *iterables: Any, executor: Any, **options: Any) -> Any:
    return collect(caller, place, func, *iterables, executor=executor if place == "executor" else None, **options)


@in_each_place
def test_the_results_come_in_the_order_of_the_items(caller: Caller, place: str, executor: ThreadPoolExecutor) -> None:
    results = collect_in(caller, place, FUNCTIONS[place]["double"], range(250), executor=executor)

    assert results == [2 * number for number in range(250)]


@in_each_place
def test_several_iterables_are_zipped(caller: Caller, place: str, executor: ThreadPoolExecutor) -> None:
    func = FUNCTIONS[place]["add"]

    assert collect_in(caller, place, func, [1, 2, 3], itertools.count(10), executor=executor) == [11, 13, 15]
    assert collect_in(caller, place, func, [1], (2,), iter([3, 4]), executor=executor) == [6]


@in_each_place
def test_no_items_give_no_results(caller: Caller, place: str, executor: ThreadPoolExecutor) -> None:
    assert collect_in(caller, place, FUNCTIONS[place]["double"], [], executor=executor) == []


@in_each_place
def test_what_is_ready_comes_first_if_the_order_does_not_matter(
    caller: Caller, place: str, executor: ThreadPoolExecutor
) -> None:
    results = collect_in(caller, place, FUNCTIONS[place]["double"], range(50), executor=executor, ordered=False)

    assert sorted(results) == [2 * number for number in range(50)]


def fail_at_three(number: int) -> int:
    if number == 3:
        raise LookupError("three")
    return number


async def fail_at_three_async(number: int) -> int:
    return fail_at_three(number)


@in_each_place
@pytest.mark.parametrize("options", [{}, {"ordered": False, "limit": 1}], ids=str)
def test_an_error_comes_at_its_turn_and_names_its_item(
    caller: Caller, place: str, executor: ThreadPoolExecutor, options: dict[str, Any]
) -> None:
    func = fail_at_three_async if place == "eventloop" else fail_at_three
    got: list[int] = []

    async def take_all(results: Any) -> None:
        async for result in results:
            got.append(result)

    def take(results: Any) -> None:
        with pytest.raises(LookupError, match="three") as caught:
            got.extend(iter(results.__next__, None))
        assert "raised for item 3, 3, of map_in_" in caught.value.__notes__[0]
        assert list(results) == []

    async def take_async(results: Any) -> None:
        with pytest.raises(LookupError, match="three") as caught:
            await take_all(results)
        assert "raised for item 3, 3, of map_in_" in caught.value.__notes__[0]
        assert await all_of(results) == []

    def call() -> Any:
        sync = caller.kind != "async"
        first = (executor,) if place == "executor" else ()
        results = mapping(place, sync=sync)(*first, func, range(10), **options)
        return take(results) if sync else take_async(results)

    caller.make(call)

    assert got == [0, 1, 2]


@in_each_place
def test_errors_can_be_results(caller: Caller, place: str, executor: ThreadPoolExecutor) -> None:
    func = fail_at_three_async if place == "eventloop" else fail_at_three

    results = collect_in(caller, place, func, range(6), executor=executor, return_exceptions=True)

    assert isinstance(results[3], LookupError)
    assert results[:3] + results[4:] == [0, 1, 2, 4, 5]


class OwnExit(SystemExit):
    pass


def leave(number: int) -> None:
    raise OwnExit(number)


def test_what_is_no_ordinary_exception_is_never_a_result(caller: Caller) -> None:
    with pytest.raises(OwnExit):
        collect(caller, "threadpool", leave, [1], return_exceptions=True)


def stop(number: int) -> None:
    raise StopIteration(number)


def stop_async(number: int) -> None:
    raise StopAsyncIteration(number)


@pytest.mark.parametrize("func", [stop, stop_async])
def test_a_function_cannot_end_the_iteration(caller: Caller, func: Any) -> None:
    with pytest.raises(RuntimeError) as caught:
        collect(caller, "threadpool", func, [1, 2])

    assert isinstance(caught.value.__cause__, (StopIteration, StopAsyncIteration))


def test_each_call_has_a_copy_of_the_context_of_the_first_step(caller: Caller) -> None:
    def use(number: int) -> str:
        before = variable.get()
        variable.set(str(number))
        return before

    def call() -> Any:
        variable.set("the caller's")
        return list(map_in_threadpool_sync(use, range(5), limit=1))

    async def call_async() -> Any:
        variable.set("the caller's")
        return await all_of(map_in_threadpool(use, range(5), limit=1))

    results = caller.make(call_async if caller.kind == "async" else call)

    assert results == ["the caller's"] * 5


@pytest.mark.anyio
async def test_async_functions_run_in_tasks_and_contexts_of_their_own(background: object) -> None:
    async def use(number: int) -> str:
        before = variable.get()
        variable.set(str(number))
        return before

    variable.set("the caller's")

    assert await all_of(map_in_eventloop(use, range(5), limit=1)) == ["the caller's"] * 5
    assert await run_in_threadpool(lambda: list(map_in_eventloop_sync(use, range(5), limit=1))) == ["the caller's"] * 5


# Bounds


def noting(read: list[int]) -> Iterator[int]:
    """Count, and note how far that has come."""
    for number in itertools.count():
        read.append(number)
        yield number


@pytest.mark.anyio
@pytest.mark.parametrize("ordered", [True, False])
async def test_no_more_calls_than_the_limit_have_begun_and_are_not_delivered(ordered: bool) -> None:
    func = Gated()
    read: list[int] = []
    results = map_in_threadpool(func, noting(read), limit=3, ordered=ordered)
    try:
        async with anyio.create_task_group() as tasks:
            first: list[int] = []

            async def take() -> None:
                first.append(await anext(results))

            tasks.start_soon(take)
            await run_in_threadpool(func.wait_for, 3)
            await let_others_run()
            assert sorted(func.begun) == read == [0, 1, 2]
            func.let_go(0, 1, 2)
        assert len(first) == 1
        await run_in_threadpool(func.wait_for, 4)
        await let_others_run()
        assert sorted(func.begun) == read == [0, 1, 2, 3]  # what is finished and not fetched counts as well
    finally:
        func.let_all_go()
        await results.aclose()


def test_sync_code_that_takes_a_result_makes_room_for_one_more_call() -> None:
    func = Gated()
    results = map_in_threadpool_sync(func, itertools.count(), limit=2)
    func.let_go(0, 1)

    assert next(results) == 0
    func.wait_for(3)
    assert sorted(func.begun) == [0, 1, 2]
    assert next(results) == 1
    func.wait_for(4)
    func.let_all_go()
    results.close()


@pytest.mark.anyio
async def test_as_many_calls_run_at_once_as_the_default_limiter_allows() -> None:
    limit_threads(3)
    func = Gated()
    results = map_in_threadpool(func, itertools.count())
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(results.__anext__)
        while len(func.begun) < 3:
            await anyio.sleep(0.001)
        await let_others_run()
        assert len(func.begun) == 3
        func.let_all_go()
    await results.aclose()


@pytest.mark.anyio
async def test_without_a_limit_of_the_limiter_it_is_a_hundred(background: object) -> None:
    limit_threads(1)
    begun: list[int] = []
    may_end = anyio.Event()

    async def wait(number: int) -> int:
        begun.append(number)
        await may_end.wait()
        return number

    async def use() -> int:
        results = map_in_eventloop(wait, itertools.count())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(results.__anext__)
            while len(begun) < 100:
                await anyio.sleep(0)
            await let_others_run()
            count = len(begun)
            tasks.cancel_scope.cancel()
        return count

    assert await use() == 100


def test_with_a_limit_of_one_maps_nest_without_a_deadlock(caller: Caller) -> None:
    def outer(number: int) -> list[int]:
        return list(map_in_threadpool_sync(double, range(number)))

    def call() -> Any:
        run_in_eventloop_sync(limited)
        return list(map_in_threadpool_sync(outer, range(4)))

    async def limited() -> None:
        limit_threads(1)

    async def call_async() -> Any:
        limit_threads(1)
        return await all_of(map_in_threadpool(outer, range(4)))

    results = caller.make(call_async if caller.kind == "async" else call)

    assert results == [[0, 2, 4, 6][:number] for number in range(4)]


# Who may use it, and what is refused


@pytest.mark.anyio
async def test_a_second_task_is_refused_while_one_waits() -> None:
    func = Gated()
    results = map_in_threadpool(func, [1])
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(results.__anext__)
        await run_in_threadpool(func.wait_for, 1)
        with pytest.raises(InUseError, match="another task is waiting"):
            await anext(results)
        func.let_all_go()


def test_a_second_thread_is_refused_while_one_waits_and_no_result_is_lost_unseen() -> None:
    func = Gated()
    results = map_in_threadpool_sync(func, [1, 2, 3])
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            next(results)
        except InUseError as exc:
            errors.append(exc)

    thread = threading.Thread(target=wait)
    thread.start()
    func.wait_for(1)
    with pytest.raises(InUseError, match="another thread is waiting"):
        next(results)
    func.let_all_go()
    thread.join()

    assert len(errors) == 1


def test_one_thread_after_the_other_may_use_it() -> None:
    results = map_in_threadpool_sync(double, range(4))

    assert next(results) == 0
    assert in_plain_thread(lambda: next(results)) == 2
    assert run_in_threadpool_sync(lambda: next(results)) == 4
    assert list(results) == [6]


def test_it_belongs_to_the_loop_where_it_was_begun(anyio_backend: Any) -> None:
    results = map_in_threadpool(double, range(4))
    name, options = anyio_backend

    async def take() -> int:
        return await anext(results)

    assert anyio.run(take, backend=name, backend_options=options) == 0
    with pytest.raises(LoopStateError, match="another event loop"):
        anyio.run(take, backend=name, backend_options=options)


@pytest.mark.anyio
async def test_sync_code_must_not_block_the_loop() -> None:
    for results in (map_in_threadpool_sync(double, [1]), map_in_eventloop_sync(FUNCTIONS["eventloop"]["add"], [1])):
        with pytest.raises(
            LoopThreadError, match=r"write `async for \.\.\. in map_in_(threadpool\(double|eventloop\(add_async), "
        ):
            next(results)


def test_what_cannot_be_is_refused_at_once() -> None:
    anything: Any = 3
    no_iterable: Any = range
    async_items: Any = letters()

    @asynccontextmanager
    async def entered(_: int) -> AsyncIterator[None]:
        yield pytest.fail("must not run")

    manager: Any = entered
    generator: Any = letters
    for call, message in (
        (lambda: map_in_threadpool_sync(double), r"write `map_in_threadpool_sync\(func, items\)`"),
        (lambda: map_in_threadpool_sync(double, anything), "expected an iterable, got <int object>"),
        (lambda: map_in_threadpool_sync(double, no_iterable), r"write `range\(\.\.\.\)`"),
        (lambda: map_in_threadpool_sync(anything, [1]), "expected a function, got 3"),
        (lambda: map_in_threadpool_sync(FUNCTIONS["eventloop"]["double"], [1]), "double_async"),
        (lambda: map_in_eventloop_sync(anything, [1]), "expected a function, got 3"),
        (lambda: map_in_eventloop_sync(generator, [1]), r"`async for \.\.\. in letters\(\.\.\.\)`"),
        (lambda: map_in_eventloop_sync(manager, [1]), r"enter it, with `async with entered\(\.\.\.\)`"),
        (
            lambda: map_in_threadpool_sync(double, async_items),
            r"iterate_in_eventloop_sync\(letters\(\.\.\.\)\)\)`, or `map_in_threadpool` in async code",
        ),
        (lambda: mapping("executor", sync=True)(double, [1]), "expected a concurrent.futures.Executor"),
    ):
        with pytest.raises(WrongFunctionError, match=message):
            call()
    for options in ({"limit": 0}, {"limit": 1.5}, {"ordered": 1}, {"return_exceptions": None}):
        with pytest.raises(WrongOptionError, match=r"map_in_threadpool_sync\("):
            mapping("threadpool", sync=True)(double, [1], **options)
    with pytest.raises(WrongOptionError, match="chunk"):
        map_in_processpool_sync(double, [1], chunk=0)


def test_a_coroutine_as_input_is_closed() -> None:
    coroutine: Any = run_in_threadpool(int)

    with pytest.raises(WrongFunctionError, match="expected an iterable"):
        map_in_threadpool_sync(double, coroutine)


def test_sync_code_takes_async_iterables_by_the_other_helper() -> None:
    assert list(map_in_threadpool_sync(double, iterate_in_eventloop_sync(letters()))) == ["aa", "bb", "cc"]


def test_items_are_described_in_notes(caller: Caller) -> None:
    class Photo:
        def __repr__(self) -> str:
            raise AssertionError("must not be called: it could fetch rows")

    def fail(*args: object) -> None:
        raise LookupError

    for iterables, described in (
        (["sea.jpg"], "'sea.jpg'"),
        ([Photo()], "<test_items_are_described_in_notes.<locals>.Photo object>"),
        ([(1, "a", None, 2.0, 5)], "(1, 'a', None, 2.0, ...)"),
    ):
        with pytest.raises(LookupError) as caught:
            collect(caller, "threadpool", fail, iterables)
        assert described in caught.value.__notes__[-1]
    with pytest.raises(LookupError) as caught:
        collect(caller, "threadpool", fail, [1], [2])
    assert "item 0, (1, 2), of map_in_threadpool" in caught.value.__notes__[-1]
    assert add(1, 2) == 3
