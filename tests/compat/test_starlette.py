"""The names of Starlette and FastAPI, against their own."""

from __future__ import annotations

import contextvars
import importlib
import inspect
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import starlette.concurrency
import unfazed_compat.starlette as ours
from conftest import GRACE_SECONDS, let_others_run, limit_threads
from connections import Connections, request, until

from unfazed.concurrency import WrongFunctionError, run_in_eventloop_sync

if TYPE_CHECKING:
    from collections.abc import Iterator

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def original(name: str) -> Any:
    if name != "contextmanager_in_threadpool":
        return getattr(starlette.concurrency, name)
    pytest.importorskip("fastapi")  # which the tox environment `web` has
    return getattr(importlib.import_module("fastapi.concurrency"), name)


def implementation(whose: str, name: str) -> Any:
    return original(name) if whose == "theirs" else getattr(ours, name)


both = pytest.mark.parametrize("whose", ["theirs", "ours"])


@pytest.mark.parametrize("name", [name for name in ours.__all__ if "threadpool" in name])
def test_the_parameters_are_the_same(name: str) -> None:
    mine, its = (inspect.signature(each).parameters for each in (getattr(ours, name), original(name)))

    assert [(each.name, each.kind) for each in mine.values()] == [(each.name, each.kind) for each in its.values()]


def work(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return args, kwargs, variable.get(), threading.current_thread() is threading.main_thread()


@both
@pytest.mark.anyio
async def test_a_function_runs_in_a_thread_with_its_arguments_and_the_context(whose: str) -> None:
    run_in_threadpool = implementation(whose, "run_in_threadpool")
    variable.set("set")

    assert await run_in_threadpool(work, 1, self=2, limiter=3) == ((1,), {"self": 2, "limiter": 3}, "set", False)
    assert await run_in_threadpool(func=work) == ((), {}, "set", False)
    with pytest.raises(ZeroDivisionError):
        await run_in_threadpool(divmod, 1, 0)


@pytest.mark.anyio
async def test_an_async_function_is_refused() -> None:
    async_function: Any = let_others_run

    with pytest.raises(WrongFunctionError, match="write `await let_others_run"):
        await ours.run_in_threadpool(async_function)


@both
@pytest.mark.anyio
async def test_a_function_may_call_back(whose: str) -> None:
    async def loop_thread() -> int:
        return threading.get_ident()

    run_in_threadpool = implementation(whose, "run_in_threadpool")

    assert await run_in_threadpool(anyio.from_thread.run, loop_thread) == threading.get_ident()
    assert await run_in_threadpool(run_in_eventloop_sync, loop_thread) == threading.get_ident()


@both
@pytest.mark.anyio
async def test_an_iterator_gives_its_items_from_threads(whose: str) -> None:
    iterate_in_threadpool = implementation(whose, "iterate_in_threadpool")

    def rows() -> Iterator[bool]:
        for _ in range(3):
            yield threading.current_thread() is threading.main_thread()

    assert [row async for row in iterate_in_threadpool(rows())] == [False, False, False]
    assert [row async for row in iterate_in_threadpool(range(3))] == [0, 1, 2]
    assert [row async for row in iterate_in_threadpool(iterator=[])] == []


@both
@pytest.mark.anyio
async def test_an_iterator_raises_what_it_raises(whose: str) -> None:
    def rows() -> Iterator[int]:
        yield 1
        raise LookupError("no more")

    got = aiter(implementation(whose, "iterate_in_threadpool")(rows()))

    assert await anext(got) == 1
    with pytest.raises(LookupError, match="no more"):
        await anext(got)


@pytest.mark.anyio
async def test_an_iterator_has_one_thread_and_one_context_and_is_closed_there_when_it_is_left() -> None:
    threads: set[int] = set()
    closed = threading.Event()

    def rows() -> Iterator[int]:
        token = variable.set("inside")
        try:
            while True:
                threads.add(threading.get_ident())
                yield 1
        finally:
            threads.add(threading.get_ident())
            variable.reset(token)
            closed.set()

    rows_in_threadpool = ours.iterate_in_threadpool(rows())
    assert [await anext(rows_in_threadpool) for _ in range(3)] == [1, 1, 1]
    await rows_in_threadpool.aclose()

    assert closed.is_set()
    assert len(threads) == 1


@pytest.mark.anyio
async def test_with_theirs_requests_that_wait_for_a_connection_starve_the_one_that_has_it() -> None:
    """The waiting requests fill the pool. The first one needs a thread of it before it gives its connection back."""
    theirs = pytest.importorskip("fastapi.concurrency")  # which the tox environment `web` has
    limit_threads(1)
    connections = Connections()
    first_has_it = anyio.Event()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(request, connections, theirs, "the first", first_has_it.set)
        await first_has_it.wait()
        tasks.start_soon(request, connections, theirs, "the second", None)
        await until(connections.wanted.is_set)
        limiter = anyio.to_thread.current_default_thread_limiter()
        await until(lambda: limiter.statistics().tasks_waiting == 1)

        assert limiter.borrowed_tokens == limiter.total_tokens  # by the second, who waits for the first
        assert connections.events == ["the first has it"]  # which waits for the second
        connections.broken.set()  # else they would wait for ever

    assert connections.events == [
        "the first has it",
        "the second has waited in vain",
        "the first queries",
        "the first gives it back",
    ]


@pytest.mark.anyio
async def test_requests_that_wait_for_a_connection_do_not_starve_the_one_that_has_it() -> None:
    limit_threads(1)
    connections = Connections()
    first_has_it = anyio.Event()

    with anyio.fail_after(GRACE_SECONDS):  # if it hangs
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(request, connections, ours, "the first", first_has_it.set)
            await first_has_it.wait()
            tasks.start_soon(request, connections, ours, "the second", None)

    assert connections.events == [
        f"the {which} {does}" for which in ("first", "second") for does in ("has it", "queries", "gives it back")
    ]


@both
@pytest.mark.anyio
async def test_leaving_a_context_manager_waits_for_no_slot(whose: str) -> None:
    contextmanager_in_threadpool = implementation(whose, "contextmanager_in_threadpool")
    limit_threads(1)
    connections = Connections()
    released, blocked = threading.Event(), threading.Event()

    def block() -> None:
        blocked.set()
        assert released.wait(GRACE_SECONDS)

    async with anyio.create_task_group() as tasks:
        async with contextmanager_in_threadpool(cm=connections.connection("it")) as name:
            tasks.start_soon(implementation(whose, "run_in_threadpool"), block)
            await until(blocked.is_set)
        assert connections.events == ["it has it", "it gives it back"]
        released.set()

    assert name == "it"


@both
@pytest.mark.anyio
async def test_a_context_manager_is_told_of_exceptions_and_can_suppress_them(whose: str) -> None:
    contextmanager_in_threadpool = implementation(whose, "contextmanager_in_threadpool")
    async with contextmanager_in_threadpool(suppress(LookupError)):
        raise LookupError
    with pytest.raises(ZeroDivisionError):
        async with contextmanager_in_threadpool(suppress(LookupError)):
            raise ZeroDivisionError


@pytest.mark.anyio
async def test_a_context_manager_has_one_thread_and_one_context() -> None:
    threads: list[int] = []

    @contextmanager
    def manager() -> Iterator[None]:
        token = variable.set("inside")
        threads.append(threading.get_ident())
        yield
        threads.append(threading.get_ident())
        variable.reset(token)

    async with ours.contextmanager_in_threadpool(manager()):
        await ours.run_in_threadpool(int)

    assert len(set(threads)) == 1


@pytest.mark.anyio
async def test_nested_calls_do_not_use_up_the_threads() -> None:
    limit_threads(1)

    def nested() -> int:
        return run_in_eventloop_sync(ours.run_in_threadpool, int, "7")

    assert await ours.run_in_threadpool(nested) == 7
