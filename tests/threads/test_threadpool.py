"""Calls in worker threads."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import sys
import threading
import traceback
import weakref
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import process_functions
import pytest
from conftest import (
    FREE_THREADED,
    GRACE_SECONDS,
    Blocking,
    Caller,
    captured,
    drops_at_once,
    end_background_eventloop,
    in_plain_thread,
    wait_until,
    without_address,
)

from unfazed.concurrency import (
    LoopStateError,
    LoopThreadError,
    WrongFunctionError,
    in_processpool,
    in_threadpool,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_executor,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._core import _futures, _limits, _slots, _taskcall
from unfazed.concurrency._eventloops import _workers

if TYPE_CHECKING:
    from collections.abc import Callable

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

NAMES = (
    "self", "cls", "func", "args", "kwargs", "timeout", "limiter", "context", "loop", "executor", "backend", "name",
    "helper", "work", "answer", "call", "abandon_on_cancel", "thread_sensitive",
)  # fmt: skip


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def test_all_arguments_reach_the_function_whatever_their_names(caller: Caller) -> None:
    kwargs = {name: index for index, name in enumerate(NAMES)}

    assert caller("threadpool", echo, 1, 2, **kwargs) == ((1, 2), kwargs)


def test_runs_in_another_thread_than_the_caller_and_the_loop(caller: Caller) -> None:
    async def loop_thread() -> int:
        return threading.get_ident()

    def here() -> tuple[int, int]:
        return threading.get_ident(), run_in_eventloop_sync(loop_thread)

    worker, loop = caller("threadpool", here)

    assert worker not in (loop, threading.get_ident())


def test_lambdas_partials_methods_and_callable_objects_run(caller: Caller) -> None:
    class Adder:
        def __call__(self, a: int, b: int) -> int:
            return a + b

        def method(self, a: int) -> int:
            return a + 1

    assert caller("threadpool", lambda a: a + 1, 1) == 2
    assert caller("threadpool", functools.partial(Adder(), 1), b=2) == 3
    assert caller("threadpool", Adder().method, a=1) == 2
    assert caller("threadpool", int, "12") == 12


class TwoArgumentError(Exception):
    def __init__(self, first: int, second: int) -> None:
        super().__init__(first)
        self.second = second


class OwnBaseError(BaseException):
    pass


ERRORS: list[BaseException] = [
    ValueError("no"),
    TwoArgumentError(1, 2),
    OwnBaseError("base"),
    SystemExit(3),
    KeyboardInterrupt(),
    StopAsyncIteration("async"),
    asyncio.CancelledError("by the function itself"),
    ExceptionGroup("group", [ValueError(1), TypeError(2)]),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_come_back_as_themselves_and_the_next_call_works(caller: Caller, error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        caller("threadpool", fail)

    assert caught.value is error
    assert traceback.extract_tb(error.__traceback__)[-1].name == "fail"
    assert caller("threadpool", echo, 1) == ((1,), {})


def test_stop_iteration_is_itself_in_sync_code_and_a_runtime_error_in_async_code(caller: Caller) -> None:
    expected = RuntimeError if caller.kind == "async" else StopIteration

    with pytest.raises(expected) as caught:
        caller("threadpool", next, iter(()))

    if caller.kind == "async":
        assert isinstance(caught.value.__cause__, StopIteration)
    assert caller("threadpool", echo, 1) == ((1,), {})


async def async_function() -> None:
    pytest.fail("must not run")


async def async_generator() -> Any:
    yield pytest.fail("must not run")


class AsyncCallable:
    async def __call__(self) -> None:
        pytest.fail("must not run")


@pytest.mark.parametrize(
    "func", [async_function, functools.partial(async_function), AsyncCallable(), async_generator], ids=without_address
)
def test_async_functions_are_refused_with_the_right_call(caller: Caller, func: Callable[[], object]) -> None:
    instead = "`run_in_eventloop_sync" if caller.kind != "async" else "`await "
    if func is async_generator:
        instead = "for ... in "

    with pytest.raises(WrongFunctionError, match=instead):
        caller("threadpool", func)


def test_a_function_that_turns_out_to_be_async_is_refused_and_its_coroutine_closed(caller: Caller) -> None:
    with pytest.raises(WrongFunctionError, match="lambda"):
        caller("threadpool", lambda: async_function())


def test_what_cannot_be_called_is_refused(caller: Caller) -> None:
    with pytest.raises(WrongFunctionError, match="got 3"):
        caller("threadpool", 3)
    with pytest.raises(WrongFunctionError, match=r"write `async_function` and its arguments"):
        caller("threadpool", async_function())


def test_the_context_goes_in_and_changes_stay_inside(caller: Caller) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    def read_and_change() -> str:
        value = variable.get()
        variable.set("changed")
        return value

    def both() -> tuple[str, str, str]:
        variable.set("set")
        return run_in_threadpool_sync(read_and_change), run_in_threadpool_sync(read_and_change), variable.get()

    async def both_async() -> tuple[str, str, str]:
        variable.set("set")
        return await run_in_threadpool(read_and_change), await run_in_threadpool(read_and_change), variable.get()

    result = caller.run(both_async) if caller.kind == "async" else caller("threadpool", both)

    assert result == ("set", "set", "set")


def test_the_background_loop_is_the_same_from_call_to_call(background: Any) -> None:
    async def loop_thread() -> int:
        return threading.get_ident()

    threads = {run_in_threadpool_sync(run_in_eventloop_sync, loop_thread) for _ in range(10)}

    assert len(threads) == 1


def test_a_hundred_plain_threads_call_at_once(background: Any) -> None:
    together = threading.Barrier(100)
    results = []

    def call(number: int) -> None:
        together.wait(GRACE_SECONDS)
        results.append(run_in_threadpool_sync(echo, number))

    threads = [threading.Thread(target=call, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GRACE_SECONDS)

    assert sorted(results) == [((number,), {}) for number in range(100)]


class NoCycle:
    """Fails if the local variables of `fail` need the garbage collector to go away."""

    def __enter__(self) -> NoCycle:
        self.gone = threading.Event()
        gc.collect()
        gc.disable()
        return self

    def fail(self) -> None:
        class Local:
            pass

        local = Local()
        weakref.finalize(local, self.gone.set)
        raise ValueError("no")

    def __exit__(self, *exc_info: object) -> None:
        try:
            wait_until(self.gone.is_set, "a cycle keeps the frame of the function alive")
        finally:
            gc.enable()


@drops_at_once
def test_errors_leave_no_reference_cycle(background: Any) -> None:
    with NoCycle() as test:
        with pytest.raises(ValueError, match="no"):
            run_in_threadpool_sync(test.fail)
        if FREE_THREADED:
            if background[0] == "asyncio":
                end_background_eventloop()  # and its threads; on trio, the last thread is the next one
            wait_until(
                lambda: run_in_threadpool_sync(test.gone.is_set), "a cycle keeps the frame of the function alive"
            )


@drops_at_once
@pytest.mark.anyio
async def test_errors_leave_no_reference_cycle_in_async_code() -> None:
    with NoCycle() as test:
        with pytest.raises(ValueError, match="no"):
            await run_in_threadpool(test.fail)
        if FREE_THREADED:
            with anyio.fail_after(GRACE_SECONDS):
                while not test.gone.is_set():
                    await run_in_threadpool(int)  # the thread that has made the error goes on


@drops_at_once
@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_call_cancelled_by_asyncio_twice_leaves_no_reference_cycle() -> None:
    blocking = Blocking()

    with NoCycle() as test:

        async def work() -> None:
            local = Blocking()
            weakref.finalize(local, test.gone.set)
            await run_in_threadpool(blocking)

        task = asyncio.create_task(work())
        await blocking.wait_until_started()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        blocking.may_end.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        del task
        with anyio.fail_after(GRACE_SECONDS):
            while not test.gone.is_set():  # the loop holds on to some of it for a turn or two
                await anyio.sleep(0.001)


def test_a_call_made_by_the_garbage_collector_within_another_does_not_hide_that_one() -> None:
    worker = _workers.Worker()
    limiter = anyio.CapacityLimiter(1)
    worker.slot = _slots.acquire(limiter, lambda: True)
    outer, inner = (_taskcall.TaskCall(async_function, _futures.OneShotFuture[None]()) for _ in range(2))

    before_outer = worker.enter(outer)
    before_inner = worker.enter(inner)
    worker.leave(inner, before_inner)

    assert worker.call is outer
    worker.leave(outer, before_outer)
    assert worker.call is None
    _slots.release(worker.slot)


@pytest.mark.parametrize("moment", ["grant", "take_away"])
def test_a_finalizer_in_the_midst_of_a_call_is_refused_rather_than_left_waiting(
    moment: str, background: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The finalizer runs while its thread holds the lock of the slots, which its call needs."""
    original = getattr(_limits.Limit, moment)
    outcomes: list[Any] = []

    def with_garbage(self: Any, *args: Any) -> Any:
        patch.undo()
        outcomes.append(captured(partial(run_in_threadpool_sync, int)))  # as if it were collected just here
        return original(self, *args)

    run_in_threadpool_sync(int)
    with monkeypatch.context() as patch:
        patch.setattr(_limits.Limit, moment, with_garbage)
        assert in_plain_thread(partial(run_in_threadpool_sync, int, "1")) == 1
        wait_until(lambda: outcomes, "nothing was collected")

    ((_, error),) = outcomes
    assert isinstance(error, (LoopStateError, LoopThreadError))  # the latter in the loop's own thread


@pytest.mark.parametrize("place", ["threadpool", "executor", "eventloop", "processpool"])
def test_a_worker_that_runs_a_loop_of_its_own_lends_its_slot_while_that_waits(
    place: str, anyio_backend: tuple[str, dict[str, Any]], background: Any
) -> None:
    """All loops share the limiter, so wherever the call runs, it needs that slot."""
    backend, options = anyio_backend
    one = anyio.CapacityLimiter(1)
    echo_in_slot = in_threadpool(echo, limiter=one)

    async def in_background() -> Any:
        return await echo_in_slot(1)

    async def main() -> Any:
        if place == "threadpool":
            return await echo_in_slot(1)
        if place == "eventloop":
            return await run_in_eventloop(in_background)
        if place == "executor":
            with ThreadPoolExecutor(1) as executor:
                return await run_in_executor(executor, echo_in_slot.sync, 1)
        return await in_processpool(process_functions.echo, limiter=one)(1)

    outer = in_threadpool(limiter=one)(lambda: anyio.run(main, backend=backend, backend_options=options))

    assert outer.sync() == ((1,), {})
