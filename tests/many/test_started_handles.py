"""Calls that are started: who may start one, who may wait for it, and what comes back."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextvars
import copy
import importlib.util
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from operator import pow as power
from typing import TYPE_CHECKING, Any

import anyio
import process_functions
import pytest
from anyio.lowlevel import checkpoint
from conftest import GRACE_SECONDS, Blocking, Caller, Gate, wait_for_event, wait_until
from process_functions import echo

from unfazed.concurrency import (
    CallCancelledError,
    CallTimeoutError,
    EventLoopThread,
    ExecutorError,
    Handle,
    LoopEndedError,
    LoopStateError,
    LoopThreadError,
    NotSendableError,
    WrongFunctionError,
    in_eventloop,
    in_executor,
    in_processpool,
    in_threadpool,
    run_in_eventloop_sync,
    run_in_threadpool,
    start_in_eventloop,
    start_in_executor,
    start_in_processpool,
    start_in_threadpool,
)

if TYPE_CHECKING:
    from collections.abc import Callable

trio_only = pytest.mark.skipif(not importlib.util.find_spec("trio"), reason="trio is not installed")

TIMEOUT = GRACE_SECONDS


async def fetch(value: Any) -> Any:
    await checkpoint()
    return value


def fail() -> None:
    raise ZeroDivisionError("from the function")


async def fail_async() -> None:
    await checkpoint()
    raise ZeroDivisionError("from the function")


def apply(func: Callable[..., Any], *args: Any) -> Any:
    return func(*args)


def wait_and_return(gate: Gate, value: int) -> int:
    gate.wait()
    return value


# Who starts, and where


@pytest.mark.parametrize(
    ("start", "expected"),
    [
        (partial(start_in_threadpool, echo, 1, self=2), ((1,), {"self": 2})),
        (partial(start_in_processpool, echo, 1, func=2), ((1,), {"func": 2})),
        (partial(start_in_eventloop, fetch, value=5), 5),
        (lambda: start_in_eventloop(fetch(6)), 6),
        (partial(in_threadpool(power, timeout=TIMEOUT).start, 2, 3), 8),
        (partial(in_processpool(power, timeout=TIMEOUT).start, 2, 4), 16),
        (partial(in_eventloop(fetch, timeout=TIMEOUT).start, 5), 5),
    ],
)
def test_every_caller_starts_calls_in_all_places(caller: Caller, start: Callable[[], Any], expected: Any) -> None:
    assert caller.make(lambda: _as_async(start, caller)).result(TIMEOUT) == expected


def _as_async(start: Callable[[], Any], caller: Caller) -> Any:
    """Return what *start* returns; for a caller that is async code, an awaitable of that."""

    async def start_here() -> Any:
        return start()

    return start_here() if caller.kind == "async" else start()


def test_every_caller_starts_calls_in_executors(caller: Caller) -> None:
    with ThreadPoolExecutor(1) as executor:
        ways: list[Callable[[], Handle[Any]]] = [
            lambda: start_in_executor(executor, power, 2, 3),
            lambda: in_executor(executor, power).start(2, 3),
        ]
        for start in ways:
            assert caller.make(partial(_as_async, start, caller)).result(TIMEOUT) == 8


def test_every_caller_starts_calls_in_a_loop_of_its_own(caller: Caller) -> None:
    with EventLoopThread(caller.backend[0], caller.backend[1]) as loop:
        assert caller.make(lambda: _as_async(partial(loop.start, fetch, 3), caller)).result(TIMEOUT) == 3
        assert caller.make(lambda: _as_async(lambda: loop.start(fetch(4)), caller)).result(TIMEOUT) == 4


def test_every_sync_caller_waits_for_them(sync_caller: Caller) -> None:
    def start_and_wait() -> list[Any]:
        handles = [
            start_in_threadpool(power, 2, 3),
            start_in_eventloop(fetch(3)),
            start_in_processpool(power, 2, 4),
        ]
        return [*(handle.result() for handle in handles), handles[0].exception()]

    assert sync_caller.make(start_and_wait) == [8, 3, 16, None]


@pytest.mark.usefixtures("background")
def test_async_code_awaits_them_on_every_backend(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    gate = Gate()

    async def main() -> None:
        async def wait(results: list[Any]) -> None:
            results.append(await handle)

        results: list[Any] = []
        handle = start_in_threadpool(wait_and_return, gate, 3)
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(wait, results)
            await gate.wait_until_reached()
            gate.opened.set()
        assert results == [3] * 3
        assert await handle == 3
        with pytest.raises(ZeroDivisionError, match="from the function"):
            await start_in_eventloop(fail_async())

    backend, options = anyio_backend
    anyio.run(main, backend=backend, backend_options=options)


@pytest.mark.parametrize("loop_backend", ["asyncio", pytest.param("trio", marks=trio_only)])
def test_several_loops_and_threads_await_one_handle(loop_backend: str) -> None:
    gate = Gate()
    handle = start_in_threadpool(wait_and_return, gate, 3)

    async def wait() -> int:
        return await handle

    with EventLoopThread(loop_backend) as loop, ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(loop.run_sync, wait), pool.submit(asyncio.run, wait()), pool.submit(handle.result)]
        gate.opened.set()
        assert [each.result(TIMEOUT) for each in waiting] == [3, 3, 3]


def test_they_belong_to_the_background_event_loop_and_outlive_the_callers() -> None:
    gate = Gate()

    async def start() -> Handle[None]:
        return start_in_eventloop(run_in_threadpool, gate.wait)

    handle = asyncio.run(start())
    assert not handle.done()
    gate.opened.set()

    assert handle.result(TIMEOUT) is None


def test_they_run_in_a_copy_of_the_callers_context() -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    def read_and_change() -> str:
        value = variable.get()
        variable.set("changed")
        return value

    async def read_async() -> str:
        return read_and_change()

    variable.set("set")
    with ThreadPoolExecutor(1) as executor:
        handles = [
            start_in_threadpool(read_and_change),
            start_in_eventloop(read_async),
            start_in_executor(executor, read_and_change),
        ]
        assert [each.result(TIMEOUT) for each in handles] == ["set"] * 3
    assert variable.get() == "set"

    context = contextvars.copy_context()
    assert in_threadpool(read_and_change, context=context).start().result(TIMEOUT) == "set"
    assert in_eventloop(read_async, context=context).start().result(TIMEOUT) == "changed"


# What a handle is


def test_the_standard_library_takes_handles() -> None:
    handles = [start_in_threadpool(power, 2, exp) for exp in range(5)]

    assert concurrent.futures.wait(handles, TIMEOUT).done == set(handles)
    assert sorted(each.result() for each in concurrent.futures.as_completed(handles, TIMEOUT)) == [1, 2, 4, 8, 16]

    async def main() -> None:
        assert await asyncio.wrap_future(start_in_threadpool(power, 2, 3)) == 8
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(start_in_threadpool(fail))

    asyncio.run(main())


def test_a_handle_can_be_handed_over_as_an_awaitable() -> None:
    assert run_in_eventloop_sync(start_in_threadpool(power, 2, 3)) == 8


def test_callbacks_find_it_done() -> None:
    gate, found = Gate(), list[Any]()
    handle = start_in_threadpool(wait_and_return, gate, 3)
    handle.add_done_callback(lambda each: found.append((each.done(), each.result())))
    gate.opened.set()
    wait_until(lambda: found, "the callback is not called")

    assert found == [(True, 3)]


def test_a_callback_that_raises_is_shown_and_harms_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[Any] = []
    monkeypatch.setattr(threading, "excepthook", shown.append)

    def leave(_: Any) -> None:
        raise SystemExit("from a callback")

    gate = Gate()
    handle = start_in_eventloop(run_in_threadpool, gate.wait)
    handle.add_done_callback(leave)
    gate.opened.set()

    assert handle.result(TIMEOUT) is None
    assert run_in_eventloop_sync(fetch(3)) == 3
    assert [each.exc_type for each in shown] == [SystemExit]


def test_it_says_what_it_is() -> None:
    blocking = Blocking()
    handle = in_threadpool(blocking).start()
    assert blocking.started.wait(TIMEOUT)
    assert handle.running()
    assert repr(handle) == "<Handle of Blocking(), running>"
    blocking.may_end.set()
    handle.result(TIMEOUT)
    assert not handle.running()
    assert repr(handle) == "<Handle of Blocking(), done>"

    failed = start_in_threadpool(fail)
    assert isinstance(failed.exception(TIMEOUT), ZeroDivisionError)
    assert repr(failed) == "<Handle of fail(), failed>"
    assert "result" in dir(failed)
    assert "_wakers" not in dir(failed)
    with pytest.raises(NotSendableError):
        copy.copy(failed)


def test_errors_come_back_as_themselves_to_everybody_who_asks() -> None:
    with ThreadPoolExecutor(1) as executor:
        for handle in (
            start_in_threadpool(fail),
            start_in_eventloop(fail_async),
            start_in_processpool(process_functions.fail_with_two_arguments),
            start_in_executor(executor, fail),
        ):
            error = handle.exception(TIMEOUT)
            assert isinstance(error, Exception)
            for _ in range(2):
                with pytest.raises(type(error)):
                    handle.result()


def test_a_stop_iteration_and_a_system_exit_come_back_too() -> None:
    def stop() -> None:
        raise StopIteration(3)

    def leave() -> None:
        raise SystemExit(3)

    assert isinstance(start_in_threadpool(stop).exception(TIMEOUT), StopIteration)
    assert isinstance(start_in_threadpool(leave).exception(TIMEOUT), SystemExit)


def test_a_timeout_of_the_call_is_its_error() -> None:
    blocking = Blocking()
    with pytest.raises(CallTimeoutError):
        in_threadpool(blocking, timeout=0.05).start().result(TIMEOUT)
    blocking.may_end.set()
    with pytest.raises(CallTimeoutError):
        in_eventloop(anyio.sleep, timeout=0.05).start(TIMEOUT).result(TIMEOUT)


def test_a_timeout_of_the_wait_leaves_the_call_alone(sync_caller: Caller) -> None:
    gate = Gate()

    def wait_shortly() -> Handle[None]:
        handle = start_in_eventloop(run_in_threadpool, gate.wait)
        with pytest.raises(concurrent.futures.TimeoutError, match=r"run_in_threadpool\(\) has not ended within 0 sec"):
            handle.result(0)
        with pytest.raises(concurrent.futures.TimeoutError):
            handle.exception(0.01)
        return handle

    handle = sync_caller.make(wait_shortly)
    assert not handle.done()
    gate.opened.set()
    assert handle.result(TIMEOUT) is None


def test_on_a_thread_whose_loop_runs_only_what_is_there_is_returned() -> None:
    async def main() -> None:
        gate = Gate()
        handle = start_in_threadpool(gate.wait)
        with pytest.raises(LoopThreadError, match=r"result\(\) would block .* write `await handle` here"):
            handle.result()
        with pytest.raises(LoopThreadError):
            handle.exception(0)
        gate.opened.set()
        await handle
        assert handle.result() is None
        assert handle.exception() is None

    asyncio.run(main())


# Slots


@pytest.mark.anyio
async def test_a_worker_that_waits_lends_its_slot() -> None:
    limiter = anyio.CapacityLimiter(1)

    def depth(levels: int) -> int:
        return 0 if levels == 0 else 1 + in_threadpool(depth, limiter=limiter).start(levels - 1).result()

    assert await in_threadpool(depth, limiter=limiter)(10) == 10


@pytest.mark.anyio
async def test_a_worker_with_a_loop_of_its_own_lends_its_slot() -> None:
    limiter = anyio.CapacityLimiter(1)

    async def below() -> int:
        return await in_threadpool(len, limiter=limiter).start("12345678")

    assert await in_threadpool(lambda: asyncio.run(below()), limiter=limiter)() == 8


def test_a_worker_that_waits_is_cancelled_with_its_task(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    gate, errors, begun = Gate(), list[BaseException](), threading.Event()

    def wait() -> None:
        try:
            handles.append(start_in_eventloop(run_in_threadpool, gate.wait))
            begun.set()
            handles[0].result()
        except BaseException as exc:
            errors.append(exc)
            raise

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_threadpool, wait)
            await wait_for_event(begun)
            tasks.cancel_scope.cancel()
        assert isinstance(errors[0], anyio.get_cancelled_exc_class())

    handles: list[Handle[None]] = []
    backend, options = anyio_backend
    anyio.run(main, backend=backend, backend_options=options)

    assert not handles[0].done()
    gate.opened.set()
    assert handles[0].result(TIMEOUT) is None


# What is refused


def test_bad_input_is_refused_at_once() -> None:
    dual = in_eventloop(fetch)
    with pytest.raises(WrongFunctionError, match=r"write `start_in_eventloop\(fetch, ...\)` instead"):
        start_in_threadpool(fetch, 1)
    with pytest.raises(WrongFunctionError, match=r"write `fetch.start\(...\)` instead"):
        start_in_threadpool(dual, 1)
    with pytest.raises(WrongFunctionError, match="start_in_processpool"):
        start_in_processpool(3)  # type: ignore[arg-type]
    with pytest.raises(WrongFunctionError, match=r"write `start_in_executor\(executor, func, ...\)`"):
        start_in_executor(power, 2, 3)  # type: ignore[arg-type]
    with pytest.raises(WrongFunctionError, match="expected a function"):
        start_in_eventloop(3)  # type: ignore[call-overload]
    with pytest.raises(NotSendableError):
        start_in_processpool(lambda: 3)


def test_what_shows_only_later_is_the_error_of_the_handle() -> None:
    with pytest.raises(WrongFunctionError, match=r"write `start_in_threadpool\(len, ...\)`"):
        start_in_eventloop(len, "abc").result(TIMEOUT)  # type: ignore[call-overload]
    with pytest.raises(WrongFunctionError, match="is async"):
        start_in_threadpool(partial(apply, fetch, 1)).result(TIMEOUT)
    with ThreadPoolExecutor(1) as executor:
        pass
    with pytest.raises(ExecutorError, match="was not accepted"):
        start_in_executor(executor, int).result(TIMEOUT)


def test_an_option_among_the_arguments_is_explained() -> None:
    for handle in (
        start_in_eventloop(fetch, 1, timeout=5),  # type: ignore[call-arg]
        start_in_processpool(process_functions.fail_with_two_arguments, timeout=5),  # type: ignore[call-arg]
        in_eventloop(fetch).start(1, timeout=5),  # type: ignore[call-arg]
    ):
        error = handle.exception(TIMEOUT)
        assert isinstance(error, TypeError)
        assert "as an option it goes to the wrapper" in "".join(getattr(error, "__notes__", ()))


def test_a_future_of_another_loop_is_refused_at_once() -> None:
    async def main() -> None:
        with pytest.raises(WrongFunctionError, match="belongs to another event loop"):
            start_in_eventloop(asyncio.get_running_loop().create_future())

    asyncio.run(main())


def test_a_loop_that_does_not_run_starts_nothing() -> None:
    loop = EventLoopThread()
    coroutine = fetch(1)
    with pytest.raises(LoopStateError, match="has not been started"):
        loop.start(coroutine)
    with loop:
        pass
    with pytest.raises(LoopEndedError):
        loop.start(fetch, 1)


def test_what_was_cancelled_there_says_so() -> None:
    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await checkpoint()

    with pytest.raises(CallCancelledError, match=r"cancel_itself\(\) was cancelled"):
        start_in_eventloop(cancel_itself).result(TIMEOUT)


def test_a_loop_that_ends_gives_its_calls_an_error() -> None:
    with EventLoopThread() as loop:
        handle = loop.start(anyio.sleep, TIMEOUT)
        wait_until(handle.running, "it never begins")
        threading.Thread(target=loop.stop).start()
        with pytest.raises(LoopEndedError):
            handle.result(TIMEOUT)
