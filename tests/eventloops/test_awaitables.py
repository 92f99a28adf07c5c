"""What is there already is handed over as it is: `run_in_eventloop_sync(fetch(url))` and its like."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import inspect
from types import coroutine
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from anyio.lowlevel import checkpoint
from conftest import GRACE_SECONDS, Caller, end_background_eventloop

from unfazed.concurrency import (
    CallCancelledError,
    EventLoopThread,
    LoopEndedError,
    LoopThreadError,
    WrongFunctionError,
    configure_background_eventloop,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._eventloops._loopchecks import AwaitOnce

if TYPE_CHECKING:
    from collections.abc import Generator

trio_only = pytest.mark.skipif(not importlib.util.find_spec("trio"), reason="trio is not installed")


async def fetch(url: str, *, timeout: float = 1) -> tuple[str, float]:
    await checkpoint()
    return url, timeout


async def fail() -> None:
    await checkpoint()
    raise ZeroDivisionError("from the coroutine")


class Awaitable:
    """Can be awaited, and is no coroutine."""

    def __await__(self) -> Generator[Any, Any, str]:
        yield from checkpoint().__await__()
        return "awaited"


def is_closed(coroutine_: Any) -> bool:
    return inspect.getcoroutinestate(coroutine_) == inspect.CORO_CLOSED


def test_a_coroutine_is_awaited_where_its_function_would_run(caller: Caller) -> None:
    assert caller("eventloop", fetch("a", timeout=2)) == ("a", 2)


def test_whatever_can_be_awaited_is(caller: Caller) -> None:
    @coroutine
    def of_generator() -> Generator[Any, Any, str]:
        yield from checkpoint().__await__()
        return "of a generator"

    assert caller("eventloop", Awaitable()) == "awaited"
    assert caller("eventloop", of_generator()) == "of a generator"


def test_its_error_comes_back_as_itself(caller: Caller) -> None:
    with pytest.raises(ZeroDivisionError, match="from the coroutine"):
        caller("eventloop", fail())


def test_an_event_loop_thread_takes_one_as_well() -> None:
    async def from_async() -> tuple[str, float]:
        return await loop.run(fetch("b"))

    with EventLoopThread() as loop:
        assert loop.run_sync(fetch("a")) == ("a", 1)
        assert asyncio.run(from_async()) == ("b", 1)


def test_what_can_be_called_and_awaited_is_called(caller: Caller) -> None:
    class Both(Awaitable):
        async def __call__(self, value: str) -> str:
            return value

    assert caller("eventloop", Both(), "called") == "called"


def test_it_runs_in_a_copy_of_the_callers_context() -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def read_and_change() -> str:
        value = variable.get()
        variable.set("changed")
        return value

    variable.set("set")

    assert run_in_eventloop_sync(read_and_change()) == "set"
    assert variable.get() == "set"


def test_further_arguments_are_refused_and_the_coroutine_is_closed(caller: Caller) -> None:
    handed_over = fetch("a")
    with pytest.raises(WrongFunctionError, match=r"further arguments .* write `run_in_eventloop\w*\(fetch\(...\)\)`"):
        caller("eventloop", handed_over, "b")
    assert is_closed(handed_over)

    with pytest.raises(TypeError, match=r"options go to the wrapper: `in_eventloop\(fetch, timeout=...\)`"):
        caller("eventloop", fetch("a"), timeout=5)


def test_a_coroutine_is_awaited_only_once(caller: Caller) -> None:
    handed_over = fetch("a")
    caller("eventloop", handed_over)

    with pytest.raises(WrongFunctionError, match=r"the coroutine fetch\(...\), which was awaited before"):
        caller("eventloop", handed_over)


def test_one_that_runs_elsewhere_is_refused_and_left_alone() -> None:
    @coroutine
    def pause() -> Generator[None, None, str]:
        yield
        return "the end"

    async def wait() -> str:
        return await pause()

    running = wait()
    running.send(None)

    with pytest.raises(WrongFunctionError, match=r"wait\(...\), which is being awaited elsewhere"):
        run_in_eventloop_sync(running)
    with pytest.raises(WrongFunctionError, match="not a coroutine"):
        run_in_threadpool_sync(running)  # type: ignore[arg-type]
    with pytest.raises(StopIteration, match="the end"):
        running.send(None)


def test_a_task_of_another_loop_is_refused() -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()
        with pytest.raises(WrongFunctionError, match=r"run_in_eventloop\(\) cannot await .*to another event loop"):
            await run_in_eventloop(future)
        future.set_result("done, so it needs no loop")
        assert await run_in_eventloop(future) == "done, so it needs no loop"

    asyncio.run(main())


def test_a_worker_may_hand_over_a_task_of_its_own_loop() -> None:
    async def main() -> None:
        future = asyncio.get_running_loop().create_future()

        async def end_it() -> None:
            future.set_result("set in its own loop")

        def wait() -> str:
            asyncio.run_coroutine_threadsafe(end_it(), loop)
            return str(run_in_eventloop_sync(future))

        loop = asyncio.get_running_loop()
        future_of_task = asyncio.ensure_future(fetch("a"))
        assert await run_in_threadpool(run_in_eventloop_sync, future_of_task) == ("a", 1)
        assert await run_in_threadpool(wait) == "set in its own loop"

    asyncio.run(main())


def test_on_a_thread_whose_loop_runs_it_is_refused_by_name_and_closed() -> None:
    async def main() -> None:
        handed_over = fetch("a")
        with pytest.raises(LoopThreadError, match=r"write `await fetch\(...\)` here"):
            run_in_eventloop_sync(handed_over)
        assert is_closed(handed_over)

    asyncio.run(main())


def test_a_loop_that_has_ended_closes_it() -> None:
    with EventLoopThread() as loop:
        pass
    handed_over = fetch("a")

    with pytest.raises(LoopEndedError):
        loop.run_sync(handed_over)
    assert is_closed(handed_over)

    async def from_async(handed_over: Any) -> None:
        await loop.run(handed_over)

    handed_over = fetch("a")
    with pytest.raises(LoopEndedError):
        asyncio.run(from_async(handed_over))
    assert is_closed(handed_over)


@trio_only
def test_a_future_of_asyncio_does_not_go_to_trio() -> None:
    configure_background_eventloop(backend="trio")
    loop = asyncio.new_event_loop()
    try:
        with pytest.raises(WrongFunctionError, match="belongs to another event loop"):
            run_in_eventloop_sync(loop.create_future())
    finally:
        loop.close()
        end_background_eventloop()


@pytest.mark.usefixtures("background")
def test_cancelling_the_caller_cancels_it(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    cleaned_up: list[str] = []
    scope: Any = None

    async def wait() -> None:
        try:
            scope.cancel()
            await anyio.sleep(GRACE_SECONDS)
        finally:
            cleaned_up.append("cleaned up")

    async def main() -> None:
        nonlocal scope
        with anyio.CancelScope() as scope:
            await run_in_threadpool(run_in_eventloop_sync, wait())

    backend, options = anyio_backend
    anyio.run(main, backend=backend, backend_options=options)

    assert cleaned_up == ["cleaned up"]


def test_one_that_was_cancelled_there_and_not_by_us_says_its_name() -> None:
    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await checkpoint()

    async def main() -> None:
        with pytest.raises(CallCancelledError, match=r"cancel_itself\(\) was cancelled"):
            await run_in_eventloop(cancel_itself())

    asyncio.run(main())


def test_one_that_was_closed_before_its_turn_never_begins() -> None:
    handed_over = fetch("a")
    work = AwaitOnce(handed_over, "run")
    work.close()
    assert is_closed(handed_over)

    with pytest.raises(CallCancelledError, match=r"fetch\(\)"):
        asyncio.run(work())


def test_other_helpers_still_want_the_function(caller: Caller) -> None:
    with pytest.raises(WrongFunctionError, match="expected a function and its arguments, not a coroutine"):
        caller("threadpool", fetch("a"))


def test_a_future_can_be_awaited_in_the_loop_that_it_belongs_to() -> None:
    async def await_future(own: EventLoopThread) -> int:
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        handle = own.start(future)
        while not handle.running():
            await checkpoint()
        future.set_result(3)
        return await handle

    with EventLoopThread() as loop:
        assert loop.run_sync(await_future, loop) == 3
