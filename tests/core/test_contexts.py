"""Contexts that are handed to several calls in a row."""

from __future__ import annotations

import contextvars
import threading
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from conftest import Blocking, until_begun, wait_until

from unfazed.concurrency import (
    CallTimeoutError,
    InUseError,
    count_abandoned_threads,
    in_eventloop,
    in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._core import _contexts, _limits, _slots

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import Caller

variable = contextvars.ContextVar("variable", default="unset")
tokens: list[contextvars.Token[str]] = []


@pytest.fixture
def context() -> Iterator[contextvars.Context]:
    """Return an empty context. After the test no slot may be left in it, and no call may still lease it."""
    context = contextvars.Context()

    yield context

    tokens.clear()
    assert context.get(_limits.current_slot) is None
    assert not _contexts._leases


def set_variable(value: str) -> None:
    tokens.append(variable.set(value))


def reset_variable() -> str:
    value = variable.get()
    variable.reset(tokens.pop())
    return value


async def async_set_variable(value: str) -> None:
    set_variable(value)
    await anyio.lowlevel.checkpoint()
    assert variable.get() == value


async def async_reset_variable() -> str:
    await anyio.lowlevel.checkpoint()
    return reset_variable()


def both_places(context: contextvars.Context) -> list[tuple[Any, Any]]:
    return [
        (in_threadpool(set_variable, context=context), in_threadpool(reset_variable, context=context)),
        (in_eventloop(async_set_variable, context=context), in_eventloop(async_reset_variable, context=context)),
    ]


@pytest.mark.parametrize("setter", [0, 1], ids=["set in a thread", "set in a loop"])
@pytest.mark.parametrize("resetter", [0, 1], ids=["reset in a thread", "reset in a loop"])
def test_a_token_set_in_one_call_is_reset_in_the_next(
    caller: Caller, context: contextvars.Context, setter: int, resetter: int
) -> None:
    places = both_places(context)

    caller.dual(places[setter][0], "set")
    assert context[variable] == "set"
    assert caller.dual(places[resetter][1]) == "set"

    assert variable not in context
    assert variable.get() == "unset"


def test_a_token_set_from_sync_code_is_reset_from_async_code(
    background: tuple[str, dict[str, Any]], context: contextvars.Context
) -> None:
    for set_it, reset_it in both_places(context):
        set_it.sync("set")
        assert anyio.run(reset_it, backend=background[0], backend_options=background[1]) == "set"


def test_without_the_option_changes_stay_in_the_call_of_a_thread(caller: Caller) -> None:
    caller.dual(in_threadpool(set_variable), "set")
    tokens.clear()

    assert variable.get() == "unset"


def test_the_context_is_free_after_an_error(caller: Caller, context: contextvars.Context) -> None:
    def fail() -> None:
        raise RuntimeError("cannot enter context: of the function itself")

    async def async_fail() -> None:
        await anyio.lowlevel.checkpoint()
        fail()

    for dual in (in_threadpool(fail, context=context), in_eventloop(async_fail, context=context)):
        with pytest.raises(RuntimeError, match="of the function itself"):
            caller.dual(dual)


def test_a_second_call_at_once_is_refused_and_the_next_one_works(caller: Caller, context: contextvars.Context) -> None:
    blocking = Blocking()
    holder = threading.Thread(target=in_threadpool(blocking, context=context).sync)
    holder.start()
    assert blocking.started.wait(10)

    for set_it, _ in both_places(context):
        with pytest.raises(InUseError, match=r"set_variable\(\) cannot run .* Blocking\(\) has not ended in it yet"):
            caller.dual(set_it, "never")
    blocking.may_end.set()
    holder.join(10)

    for set_it, reset_it in both_places(context):
        caller.dual(set_it, "set")
        assert caller.dual(reset_it) == "set"


@pytest.mark.anyio
async def test_a_second_call_at_once_in_one_loop_is_refused(context: contextvars.Context) -> None:
    waiting, may_end = anyio.Event(), anyio.Event()

    async def wait() -> None:
        waiting.set()
        await may_end.wait()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_eventloop(wait, context=context))
        await waiting.wait()
        for set_it, _ in both_places(context):
            with pytest.raises(InUseError, match=r"wait\(\) has not ended in it yet"):
                await set_it("never")
        may_end.set()


def test_the_context_that_a_sync_caller_is_in_is_refused(background: Any, context: contextvars.Context) -> None:
    for set_it, _ in both_places(context):
        with pytest.raises(InUseError, match="entered already"):
            context.run(set_it.sync, "never")


def test_a_context_that_is_entered_by_other_means_before_the_call_starts_is_refused(
    background: Any, context: contextvars.Context
) -> None:
    """1: the call claims it, and queues. 2: a thread enters it. 3: the call comes to run."""
    limiter = anyio.CapacityLimiter(1)
    slot = _slots.acquire(limiter, lambda: True)
    entered, may_leave = threading.Event(), threading.Event()
    errors: list[BaseException] = []

    def call() -> None:
        try:
            in_threadpool(set_variable, context=context, limiter=limiter).sync("never")
        except InUseError as exc:
            errors.append(exc)

    def stay() -> None:
        entered.set()
        assert may_leave.wait(10)

    calling, staying = threading.Thread(target=call), threading.Thread(target=context.run, args=(stay,))
    calling.start()
    wait_until(lambda: _contexts._leases and _limits.limits[id(limiter)].queue, "the call queues")
    staying.start()
    assert entered.wait(10)
    _slots.release(slot)
    calling.join(10)
    may_leave.set()
    staying.join(10)

    assert "it was entered meanwhile" in str(errors[0])


def test_an_abandoned_thread_keeps_the_context_until_it_ends(caller: Caller, context: contextvars.Context) -> None:
    blocking = Blocking()
    ((set_it, reset_it), _) = both_places(context)

    for seconds in until_begun(count_abandoned_threads):
        with pytest.raises(CallTimeoutError):
            caller.dual(in_threadpool(blocking, context=context, timeout=seconds))
    with pytest.raises(InUseError, match=r"Blocking\(\) has not ended"):
        caller.dual(set_it, "never")
    blocking.may_end.set()
    wait_until(lambda: count_abandoned_threads() == 0, "the thread ends")

    caller.dual(set_it, "set")
    assert caller.dual(reset_it) == "set"


def test_a_nested_call_in_the_context_of_its_caller_is_refused_and_a_copy_is_not(
    caller: Caller, context: contextvars.Context
) -> None:
    def nested() -> str:
        with pytest.raises(InUseError, match=r"nested\(\) has not ended"):
            in_threadpool(reset_variable, context=context).sync()
        return in_threadpool(variable.get, context=context.copy()).sync()

    context.run(variable.set, "set")

    assert caller.dual(in_threadpool(nested, context=context)) == "set"


def test_nested_calls_lend_the_slot_of_the_call_in_a_given_context(
    caller: Caller, context: contextvars.Context
) -> None:
    one = anyio.CapacityLimiter(1)
    inner = in_threadpool(variable.get, limiter=one)

    assert caller.dual(in_threadpool(run_in_threadpool_sync, limiter=one, context=context), inner.sync) == "unset"


@pytest.mark.parametrize("other", ["asyncio", "trio"])
def test_async_code_in_a_context_of_another_library_knows_its_own(
    caller: Caller, context: contextvars.Context, other: str
) -> None:
    sniffio = pytest.importorskip("sniffio")  # comes with trio
    context.run(sniffio.current_async_library_cvar.set, other)

    async def library() -> str:
        await anyio.sleep(0)
        found: str = sniffio.current_async_library()
        return found

    assert caller.dual(in_eventloop(library, context=context)) == caller.backend[0]


@pytest.mark.anyio
async def test_cancellation_and_errors_go_through_each_step(context: contextvars.Context) -> None:
    sleeping = anyio.Event()
    seen: list[str] = []

    async def generate() -> Any:
        try:
            for number in range(3):
                yield number
                await anyio.lowlevel.checkpoint()
        finally:
            seen.append(variable.get())

    async def work() -> None:
        variable.set("set")
        try:
            async for number in generate():
                seen.append(f"{number} {variable.get()}")
            with anyio.move_on_after(0):
                await anyio.sleep_forever()
            sleeping.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            seen.append(f"cleanup {variable.get()}")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(in_eventloop(work, context=context))
        await sleeping.wait()
        assert variable.get() == "unset"
        tasks.cancel_scope.cancel()

    assert seen == ["0 set", "1 set", "2 set", "set", "cleanup set"]


@pytest.mark.anyio
async def test_a_coroutine_that_is_closed_midway_is_closed_in_its_context(context: contextvars.Context) -> None:
    seen: list[str] = []

    class Pause:
        def __await__(self) -> Any:
            yield

    async def work() -> None:
        variable.set("set")
        try:
            await Pause()
        finally:
            seen.append(variable.get())

    coroutine = in_eventloop(work, context=context)()
    coroutine.send(None)
    coroutine.close()

    assert seen == ["set"]


@pytest.mark.anyio
async def test_tasks_started_in_the_context_get_a_copy(context: contextvars.Context) -> None:
    async def work() -> str:
        variable.set("set")
        seen: list[str] = []

        async def child() -> None:
            seen.append(variable.get())
            variable.set("changed")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
        return f"{seen[0]} {variable.get()}"

    assert await in_eventloop(work, context=context)() == "set set"


def test_a_timeout_frees_the_context_of_async_code(caller: Caller, context: contextvars.Context) -> None:
    with pytest.raises(CallTimeoutError):
        caller.dual(in_eventloop(anyio.sleep_forever, context=context, timeout=0.02))

    set_it, reset_it = both_places(context)[1]
    caller.dual(set_it, "set")
    assert caller.dual(reset_it) == "set"
