"""asgiref's names, on both backends: where calls run, what goes in and comes back."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import sys
import threading
import warnings
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import Any

import anyio
import anyio.to_thread
import asgiref.sync
import pytest
import unfazed_compat.asgiref as ours
from asgiref_helpers import current_native_loop, end_threads, run_async
from conftest import GRACE_SECONDS, captured, captured_async, drops_at_once, in_plain_thread, limit_threads
from unfazed_compat.asgiref import (
    AsyncToSync,
    ThreadSensitiveContext,
    async_to_sync,
    iscoroutinefunction,
    sync_to_async,
)

from unfazed.concurrency import ExecutorError, run_in_threadpool

assert end_threads  # a fixture

Backend = tuple[str, dict[str, Any]]
THEIRS = pytest.param(asgiref.sync, marks=pytest.mark.xfail(reason="it is better than the original"), id="theirs")
EITHER = [pytest.param(ours, id="ours"), THEIRS]

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def echo(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


async def echo_async(*args: Any, **kwargs: Any) -> Any:
    return args, kwargs


# ---- where calls run


@pytest.mark.anyio
@pytest.mark.parametrize("thread_sensitive", [True, False])
async def test_all_arguments_belong_to_the_function(thread_sensitive: bool) -> None:
    names: dict[str, Any] = dict.fromkeys(("self", "func", "loop", "context", "task_context", "executor", "args"), 1)

    assert await sync_to_async(echo, thread_sensitive=thread_sensitive)(1, **names) == ((1,), names)
    call = sync_to_async(lambda: async_to_sync(echo_async)(1, **names), thread_sensitive=thread_sensitive)
    assert await call() == ((1,), names)


@pytest.mark.anyio
async def test_thread_sensitive_calls_share_a_thread_that_is_not_the_loops() -> None:
    here = threading.current_thread()
    thread = await sync_to_async(threading.current_thread)()

    assert thread is not here
    assert await sync_to_async(threading.current_thread)() is thread
    assert await sync_to_async(threading.current_thread, thread_sensitive=False)() not in (here, thread)


@pytest.mark.anyio
async def test_a_thread_sensitive_context_has_a_thread_of_its_own() -> None:
    thread = sync_to_async(threading.current_thread)
    outside = await thread()
    async with ThreadSensitiveContext():
        inside = await thread()
        async with ThreadSensitiveContext():
            assert await thread() is inside

    assert inside is not outside
    assert await thread() is outside
    async with ThreadSensitiveContext():
        pass


@pytest.mark.anyio
async def test_a_context_with_an_executor_uses_that_and_leaves_it_alone() -> None:
    thread = sync_to_async(threading.current_thread)
    with ThreadPoolExecutor(max_workers=1) as executor:
        context = ThreadSensitiveContext(executor=executor)
        async with ThreadSensitiveContext():
            async with context:
                inside = await thread()
                with pytest.raises(RuntimeError, match="already entered"):
                    await context.__aenter__()
            assert await thread() is not inside
        with pytest.raises(RuntimeError, match="cannot be entered again"):
            await context.__aenter__()
        assert executor.submit(threading.current_thread).result() is inside


@pytest.mark.anyio
async def test_a_task_that_outlives_a_context_with_an_executor_is_refused() -> None:
    outcomes: list[Any] = []
    left = anyio.Event()

    async def late() -> None:
        await left.wait()
        try:
            await sync_to_async(echo)()
        except RuntimeError as exc:
            outcomes.append(str(exc))

    with ThreadPoolExecutor(max_workers=1) as executor:
        async with anyio.create_task_group() as tasks:
            async with ThreadSensitiveContext(executor=executor):
                tasks.start_soon(late)
                await anyio.lowlevel.checkpoint()
            left.set()

    assert "has exited" in outcomes[0]


def test_from_sync_code_thread_sensitive_calls_run_in_the_calling_thread(anyio_backend: Backend) -> None:
    async def inner() -> threading.Thread:
        return await sync_to_async(threading.current_thread)()

    def outer() -> tuple[threading.Thread, threading.Thread]:
        return threading.current_thread(), async_to_sync(inner)()

    here, there = captured(outer)[0]
    assert here is there
    here, there = in_plain_thread(outer)
    assert here is there
    for thread_sensitive in (True, False):
        here, there = run_async(anyio_backend, sync_to_async(outer, thread_sensitive=thread_sensitive))
        assert here is there


@pytest.mark.anyio
async def test_from_a_worker_async_code_runs_in_the_workers_loop() -> None:
    loop = await current_native_loop()
    call = async_to_sync(current_native_loop)

    assert await sync_to_async(call)() == loop
    assert await sync_to_async(call, thread_sensitive=False)() == loop
    assert await run_in_threadpool(call) == loop
    assert await anyio.to_thread.run_sync(call) == loop


def test_a_worker_of_trio_itself_finds_its_loop() -> None:
    trio = pytest.importorskip("trio")

    async def main() -> None:
        assert await trio.to_thread.run_sync(async_to_sync(current_native_loop)) == await current_native_loop()

    trio.run(main)


@pytest.mark.anyio
async def test_a_worker_lends_its_slot_while_it_waits() -> None:
    """With a limit of one, each level would wait for ever for the slot of the one above."""
    limit_threads(1)

    async def depth(levels: int) -> int:
        return 1 + await run_in_threadpool(async_to_sync(depth), levels - 1) if levels else 0

    with anyio.fail_after(GRACE_SECONDS):
        assert await depth(4) == 4


def test_in_the_thread_of_a_loop_async_to_sync_is_refused(anyio_backend: Backend) -> None:
    async def main() -> None:
        with pytest.raises(RuntimeError) as caught:
            async_to_sync(echo_async)()
        assert str(caught.value) == (
            "You cannot use AsyncToSync in the same thread as an async event loop - "
            "just await the async function directly."
        )

    run_async(anyio_backend, main)


@pytest.mark.anyio
async def test_an_executor_that_is_given_is_used() -> None:
    with ThreadPoolExecutor(max_workers=1) as executor:
        thread = executor.submit(threading.current_thread).result()

        assert await sync_to_async(threading.current_thread, thread_sensitive=False, executor=executor)() is thread
    with pytest.raises(RuntimeError, match="shutdown"):
        await sync_to_async(echo, thread_sensitive=False, executor=executor)()


class Dropping(Executor):
    """An executor that accepts calls, and makes none of them."""

    def __init__(self, error: BaseException | None) -> None:
        self._error = error

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        if self._error is None:
            future.cancel()
        else:
            future.set_exception(self._error)
        return future


@pytest.mark.anyio
async def test_an_executor_that_drops_a_call_does_not_leave_it_waiting() -> None:
    with anyio.fail_after(GRACE_SECONDS):
        with pytest.raises(ExecutorError, match="cancelled by its executor"):
            await sync_to_async(echo, thread_sensitive=False, executor=Dropping(None))()
        with pytest.raises(OSError, match="broken"):
            await sync_to_async(echo, thread_sensitive=False, executor=Dropping(OSError("broken")))()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_a_default_executor_that_drops_a_call_does_not_leave_it_waiting() -> None:
    class DroppingPool(ThreadPoolExecutor):
        def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
            return Dropping(None).submit(fn)

    asyncio.get_running_loop().set_default_executor(DroppingPool())
    with anyio.fail_after(GRACE_SECONDS), pytest.raises(ExecutorError, match="cancelled by its executor"):
        await sync_to_async(echo, thread_sensitive=False)()


# ---- what goes in, and what comes back


@pytest.mark.anyio
async def test_context_variables_go_in_and_come_back() -> None:
    def sync_part() -> str:
        before = variable.get()
        async_to_sync(async_part)()
        return f"{before} {variable.get()}"

    async def async_part() -> None:
        assert variable.get() == "from the task"
        variable.set("from the coroutine")

    variable.set("from the task")

    assert await sync_to_async(sync_part)() == "from the task from the coroutine"
    assert variable.get() == "from the coroutine"


def test_context_variables_come_back_to_sync_code() -> None:
    async def part() -> None:
        variable.set(variable.get() + " and back")

    def main() -> str:
        variable.set("there")
        async_to_sync(part)()
        return variable.get()

    assert contextvars.copy_context().run(main) == "there and back"


@pytest.mark.anyio
async def test_a_context_that_is_given_keeps_what_is_set_in_it() -> None:
    context = contextvars.copy_context()
    await sync_to_async(variable.set, context=context)("in the context")

    assert context[variable] == "in the context"
    assert variable.get() == "unset"


@pytest.mark.anyio
async def test_what_is_in_a_local_goes_along() -> None:
    local = ours.Local()
    local.value = "from the task"

    async def async_part() -> str:
        value: str = local.value
        local.value = "from the coroutine"
        return value

    assert await sync_to_async(async_to_sync(async_part))() == "from the task"
    assert local.value == "from the coroutine"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), StopAsyncIteration()], ids=repr
)
async def test_exceptions_come_back_as_themselves(error: BaseException) -> None:
    def fail() -> None:
        raise error

    async def fail_async() -> None:
        raise error

    for call in (sync_to_async(fail), sync_to_async(async_to_sync(fail_async))):
        assert (await captured_async(call))[1] is error


def test_an_exception_comes_back_to_sync_code() -> None:
    error = ValueError("no")

    async def fail() -> None:
        raise error

    assert captured(async_to_sync(fail))[1] is error


@pytest.mark.anyio
async def test_the_callers_exception_can_be_raised_anew_within() -> None:
    def again() -> None:
        raise

    async def again_async() -> None:
        raise

    for call in (sync_to_async(again), sync_to_async(async_to_sync(again_async))):
        error = ValueError("the caller's")
        try:
            raise error
        except ValueError:
            assert (await captured_async(call))[1] is error


@drops_at_once
@pytest.mark.anyio
async def test_an_exception_is_no_reference_cycle() -> None:
    class OwnError(Exception):
        pass

    def fail() -> None:
        raise OwnError

    gc.disable()
    try:
        for call in (sync_to_async(fail), sync_to_async(fail, thread_sensitive=False)):
            with pytest.raises(OwnError):
                await call()
        assert not [each for each in gc.get_objects() if isinstance(each, OwnError) and each.__traceback__ is None]
    finally:
        gc.enable()


def test_the_coroutine_is_made_in_the_calling_thread() -> None:
    made_in = []

    def make() -> Any:
        made_in.append(threading.current_thread())
        return echo_async()

    with pytest.warns(UserWarning, match="async_to_sync was passed a non-async-marked callable"):
        call = async_to_sync(make)

    assert call() == ((), {})
    assert made_in == [threading.current_thread()]


def test_what_makes_no_coroutine_raises_and_leaves_nothing_behind() -> None:
    def fail() -> Any:
        raise ValueError("no coroutine")

    with pytest.warns(UserWarning, match="non-async-marked"):
        call = async_to_sync(fail)
    with pytest.raises(ValueError, match="no coroutine"):
        call()
    assert getattr(AsyncToSync.executors, "current", None) is None


# ---- wrappers


def test_what_is_not_sync_is_refused() -> None:
    class Callable:
        async def __call__(self) -> None: ...

    wrongs: tuple[Any, ...] = (1, echo_async, functools.partial(echo_async, 1), Callable())
    for wrong in wrongs:
        with pytest.raises(TypeError) as caught:
            sync_to_async(wrong)
        assert str(caught.value) == "sync_to_async can only be applied to sync functions."
    with (
        pytest.raises(TypeError, match="executor must not be set when thread_sensitive is True"),
        ThreadPoolExecutor() as e,
    ):
        sync_to_async(echo, executor=e)


def test_an_async_callable_object_is_no_reason_for_a_warning() -> None:
    class Callable:
        async def __call__(self) -> int:
            return 42

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert async_to_sync(Callable())() == 42


class Methods:
    @sync_to_async
    def sync_method(self, value: int) -> Any:
        return self, value

    @async_to_sync
    async def async_method(self, value: int) -> Any:
        return self, value

    @classmethod
    @sync_to_async
    def class_method(cls) -> Any:
        return cls

    @staticmethod
    @sync_to_async(thread_sensitive=False)
    def static_method() -> Any:
        return "static"

    @async_to_sync(force_new_loop=True)
    async def forced(self) -> Any:
        return self


@pytest.mark.anyio
async def test_methods() -> None:
    methods = Methods()

    assert await methods.sync_method(1) == (methods, 1)
    assert await sync_to_async(methods.async_method)(1) == (methods, 1)
    assert await sync_to_async(methods.forced)() is methods
    assert await methods.class_method() is Methods
    assert await methods.static_method() == "static"
    assert iscoroutinefunction(methods.sync_method)


def test_wrappers_of_methods_know_their_object() -> None:
    class Plain:
        def method(self) -> None: ...

        async def async_method(self) -> None: ...

    plain = Plain()

    assert sync_to_async(plain.method).__self__ is plain
    assert async_to_sync(plain.async_method).__self__ is plain


@pytest.mark.parametrize("library", EITHER)
def test_wrappers_of_async_functions_keep_their_names(library: Any) -> None:
    def documented() -> None:
        """Say what this is."""

    async def documented_async() -> None:
        """Say what this is."""

    for wrapper in (library.sync_to_async(documented), library.async_to_sync(documented_async)):
        assert wrapper.__name__.startswith("documented")
        assert wrapper.__doc__ == "Say what this is."
    assert not iscoroutinefunction(library.async_to_sync(documented_async))


@pytest.mark.parametrize("library", [pytest.param(ours, id="ours"), *([THEIRS] if sys.version_info < (3, 12) else [])])
def test_wrappers_are_coroutine_functions_on_every_python(library: Any) -> None:
    for func in (echo, functools.partial(echo, 1), len, Methods):
        assert inspect.iscoroutinefunction(library.sync_to_async(func)), func
        assert library.iscoroutinefunction(library.sync_to_async(func)), func


def test_a_function_can_be_marked_as_async() -> None:
    def not_async() -> None: ...

    assert iscoroutinefunction(ours.markcoroutinefunction(not_async))
