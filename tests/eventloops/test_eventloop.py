"""Async functions called from sync code and from other loops: what goes in, what comes out, which loop runs them."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import sys
import threading
import traceback
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import anyio
import anyio.to_thread
import pytest
import starlette.concurrency
from conftest import Caller, in_plain_thread

from unfazed.concurrency import (
    EventLoopThread,
    LoopEndedError,
    LoopThreadError,
    WrongFunctionError,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_processpool_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)

trio_only = pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="trio is not installed")


async def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    await anyio.sleep(0)
    return args, kwargs


async def loop_thread() -> int:
    return threading.get_ident()


class OwnBaseError(BaseException):
    pass


def test_all_arguments_reach_the_function_whatever_their_names(caller: Caller) -> None:
    kwargs = dict.fromkeys(("self", "func", "args", "kwargs", "timeout", "context", "token", "loop", "name"), 1)

    assert caller("eventloop", echo, 1, 2, **kwargs) == ((1, 2), kwargs)


@pytest.mark.parametrize("error", [ValueError("no"), OwnBaseError(), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_errors_come_back_as_themselves_and_the_loop_lives_on(caller: Caller, error: BaseException) -> None:
    async def fail() -> None:
        await anyio.sleep(0)
        raise error

    with pytest.raises(type(error)) as caught:
        caller("eventloop", fail)

    assert caught.value is error
    assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"
    assert caller("eventloop", echo, 1) == ((1,), {})


def test_anything_that_gives_an_awaitable_will_do(caller: Caller) -> None:
    class Awaitable:
        def __await__(self) -> Any:
            yield from echo(2).__await__()
            return 2

    class Callable:
        async def __call__(self, value: int) -> int:
            return value

    assert caller("eventloop", lambda: echo(1)) == ((1,), {})
    assert caller("eventloop", Awaitable) == 2
    assert caller("eventloop", Callable(), 3) == 3


def test_sync_functions_are_refused_with_the_right_call(caller: Caller) -> None:
    instead = "await run_in_threadpool" if caller.kind == "async" else "run_in_threadpool_sync"

    with pytest.raises(WrongFunctionError, match=rf"`{instead}\(len, ...\)`"):
        caller("eventloop", len, "abc")
    with pytest.raises(WrongFunctionError, match="expected a function, got 3"):
        caller("eventloop", 3)


def test_functions_of_async_context_managers_are_refused_with_the_right_call(caller: Caller) -> None:
    @asynccontextmanager
    async def connection() -> Any:
        yield pytest.fail("must not run")

    with pytest.raises(WrongFunctionError, match=r"enter it, with `async with connection\(...\)`"):
        caller("eventloop", connection)


def test_the_context_goes_in_and_changes_stay_inside(caller: Caller) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def read_and_change() -> str:
        value = variable.get()
        variable.set("changed")
        return value

    async def both_async() -> list[str]:
        variable.set("set")
        return [await run_in_eventloop(read_and_change), await run_in_eventloop(read_and_change), variable.get()]

    def both() -> list[str]:
        variable.set("set")
        return [run_in_eventloop_sync(read_and_change), run_in_eventloop_sync(read_and_change), variable.get()]

    result = caller.run(both_async) if caller.kind == "async" else caller("threadpool", both)

    assert result == ["set"] * 3


@pytest.mark.anyio
@pytest.mark.parametrize(
    "to_worker", [run_in_threadpool, anyio.to_thread.run_sync, starlette.concurrency.run_in_threadpool]
)
async def test_a_worker_calls_the_loop_that_awaits_it(to_worker: Any) -> None:
    assert await to_worker(run_in_eventloop_sync, loop_thread) == threading.get_ident()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [pytest.param("trio", marks=trio_only)])
@pytest.mark.parametrize("abandon_on_cancel", [False, True])
async def test_a_worker_that_trio_itself_started_calls_the_loop_that_awaits_it(abandon_on_cancel: bool) -> None:
    import trio

    def work() -> int:
        return run_in_eventloop_sync(loop_thread)

    assert await trio.to_thread.run_sync(work, abandon_on_cancel=abandon_on_cancel) == threading.get_ident()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_thread_of_asyncio_calls_the_background_loop() -> None:
    thread = await asyncio.to_thread(run_in_eventloop_sync, loop_thread)

    assert thread == await run_in_eventloop(loop_thread)
    assert thread != threading.get_ident()


@pytest.mark.anyio
async def test_a_worker_of_others_is_cancelled_with_the_task_that_waits_for_it(anyio_backend_name: str) -> None:
    sleeping = threading.Event()
    seen: list[str] = []

    async def sleep() -> None:
        sleeping.set()
        await anyio.sleep_forever()

    def work() -> None:
        try:
            run_in_eventloop_sync(sleep)
        except BaseException as exc:
            seen.append(type(exc).__name__)
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, work)
        while not sleeping.is_set():
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()

    assert seen == ["CancelledError" if anyio_backend_name == "asyncio" else "Cancelled"]


def test_a_runtime_error_of_the_function_in_a_worker_of_others_is_not_mistaken_for_ours(sync_caller: Caller) -> None:
    calls = []

    async def fail() -> None:
        calls.append(1)
        raise RuntimeError("the function's own")

    with pytest.raises(RuntimeError, match="the function's own"):
        sync_caller("eventloop", fail)
    assert calls == [1]


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("helper", "instead"),
    [
        (run_in_threadpool_sync, "await run_in_threadpool(print, ...)"),
        (run_in_processpool_sync, "await run_in_processpool(print, ...)"),
        (run_in_eventloop_sync, "await print(...)"),
    ],
)
async def test_a_thread_whose_own_loop_runs_is_refused(helper: Any, instead: str) -> None:
    with pytest.raises(LoopThreadError) as caught:
        helper(print)

    assert f"`{instead}` here" in str(caught.value)
    assert "or call the sync function that this is in with `await run_in_threadpool(...)` further up" in str(
        caught.value
    )
    assert "notebook" not in str(caught.value)


@pytest.mark.parametrize("shell", [None, object()])
def test_a_notebook_is_named_only_where_ipython_runs(monkeypatch: pytest.MonkeyPatch, shell: object) -> None:
    ipython = ModuleType("IPython")
    monkeypatch.setattr(ipython, "get_ipython", lambda: shell, raising=False)
    monkeypatch.setitem(sys.modules, "IPython", ipython)

    text = str(LoopThreadError("f.sync", "await f(...)"))

    assert ("in a notebook, `await` works at the top level of a cell" in text) == (shell is not None)


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_call_to_the_loop_of_a_worker_that_ended_first_gets_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """anyio raises this if the loop ends before it has started the call."""
    from concurrent.futures import CancelledError

    def cancelled(*args: object) -> None:
        raise CancelledError

    monkeypatch.setattr("unfazed.concurrency._eventloops._synccalls.from_thread.run", cancelled)
    with pytest.raises(LoopEndedError):
        await anyio.to_thread.run_sync(run_in_eventloop_sync, echo)


@pytest.mark.parametrize("backend", ["asyncio", pytest.param("trio", marks=trio_only)])
def test_loops_do_not_leak_into_each_other_through_the_context(background: Any, backend: str) -> None:
    """A context that comes from a program on one library works in a loop of the other."""

    async def context() -> contextvars.Context:
        return contextvars.copy_context()

    async def use_anyio() -> str:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 0)
        return await run_in_threadpool(str, "done")

    foreign = anyio.run(context, backend=backend)

    assert foreign.run(lambda: run_in_eventloop_sync(use_anyio)) == "done"
    assert (
        in_plain_thread(lambda: foreign.run(lambda: run_in_threadpool_sync(run_in_eventloop_sync, use_anyio))) == "done"
    )


def test_a_worker_calls_another_loop_and_is_cancelled_with_its_task(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    sleeping = threading.Event()
    seen: list[str] = []

    async def sleep() -> None:
        try:
            sleeping.set()
            await anyio.sleep_forever()
        finally:
            seen.append("cleanup")

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(lambda: run_in_threadpool(lambda: other.run_sync(sleep)))
            while not sleeping.is_set():
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()

    with EventLoopThread(*anyio_backend) as other:
        assert anyio.run(main, backend=anyio_backend[0], backend_options=anyio_backend[1]) is None
        assert seen == ["cleanup"]
        assert other.run_sync(echo, 1) == ((1,), {})


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
def test_a_task_factory_that_fails_fails_the_call(anyio_backend: Any) -> None:
    async def break_it() -> None:
        def refuse(*args: object, **kwargs: object) -> Any:
            raise ValueError("no tasks today")

        asyncio.get_running_loop().set_task_factory(refuse)

    with EventLoopThread(anyio_backend) as loop:
        loop.run_sync(break_it)
        with pytest.raises(ValueError, match="no tasks today"):
            loop.run_sync(echo)
        assert loop._loop is not None
        loop._loop.post(lambda: asyncio.get_running_loop().set_task_factory(None))
        assert loop.run_sync(echo, 1) == ((1,), {})


@pytest.mark.anyio
async def test_a_worker_of_others_calls_another_loop_and_is_cancelled_with_its_task(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    sleeping = threading.Event()

    async def sleep() -> None:
        sleeping.set()
        await anyio.sleep_forever()

    with EventLoopThread(*anyio_backend) as other:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.to_thread.run_sync, lambda: other.run_sync(sleep))
            while not sleeping.is_set():
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()
