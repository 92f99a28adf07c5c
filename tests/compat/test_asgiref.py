"""asgiref's names, on both backends: where calls run, what goes in and comes back, and what is better than asgiref."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import gc
import inspect
import os
import subprocess
import sys
import threading
import warnings
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import asgiref.sync
import pytest
import unfazed_compat.asgiref as ours
from asgiref_helpers import (
    COLLECTS_LATE,
    counts_references,
    current_native_loop,
    end_threads,
    run_async,
    run_program,
    this_thread,
)
from conftest import GRACE_SECONDS, captured, captured_async, drops_at_once, in_plain_thread, limit_threads
from unfazed_compat.asgiref import (
    AsyncSingleThreadContext,
    AsyncToSync,
    SyncToAsync,
    ThreadSensitiveContext,
    async_to_sync,
    iscoroutinefunction,
    sync_to_async,
)

from unfazed.concurrency import ExecutorError, run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

assert end_threads  # a fixture

HANG_SECONDS = 3.0  # after which the original hangs; arbitrary
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


# ---- better than the original


@pytest.mark.parametrize("library", EITHER)
def test_each_thread_keeps_its_loop_and_its_thread(library: Any) -> None:
    async def here() -> tuple[threading.Thread, object]:
        return threading.current_thread(), asyncio.get_running_loop()

    first = library.async_to_sync(here)()

    assert library.async_to_sync(here)() == first
    assert in_plain_thread(library.async_to_sync(here)) != first


@pytest.mark.parametrize("library", EITHER)
def test_what_is_bound_to_a_loop_can_be_used_in_the_next_call(library: Any) -> None:
    class Client:
        def __init__(self) -> None:
            self.loop = asyncio.get_running_loop()

        async def use(self) -> bool:
            called = asyncio.Event()
            self.loop.call_soon(called.set)
            await asyncio.wait_for(called.wait(), GRACE_SECONDS)
            return True

    async def connect() -> Client:
        return Client()

    client = library.async_to_sync(connect)()

    used = captured(library.async_to_sync(client.use))[0]  # an error that pytest holds would keep a thread

    assert used


@pytest.mark.anyio
@pytest.mark.parametrize("thread_sensitive", [True, False])
async def test_stop_iteration_does_not_hang(thread_sensitive: bool) -> None:
    with anyio.fail_after(GRACE_SECONDS), pytest.raises(RuntimeError, match="StopIteration"):
        await sync_to_async(next, thread_sensitive=thread_sensitive)(iter(()))


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="asyncio itself has seen to it")
@pytest.mark.xfail(reason="the original hangs", raises=TimeoutError)
def test_stop_iteration_hangs_with_the_original() -> None:
    async def main() -> None:
        with anyio.fail_after(HANG_SECONDS), pytest.raises(RuntimeError):
            await asgiref.sync.sync_to_async(next, thread_sensitive=False)(iter(()))

    asyncio.run(main())


FORK = """
import asyncio, os, sys
from {library} import ThreadSensitiveContext, async_to_sync, sync_to_async

async def use() -> int:
    return await sync_to_async(os.getpid)()

assert async_to_sync(use)() == os.getpid()
assert asyncio.run(use()) == os.getpid()

def fork_and_use():
    child = os.fork()
    if child == 0:
        try:
            assert async_to_sync(use)() == os.getpid()
            assert asyncio.run(use()) == os.getpid()
        except BaseException as exc:
            print(exc, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

async def fork_in_context():
    async with ThreadSensitiveContext():
        return await sync_to_async(fork_and_use)()

print(fork_and_use(), asyncio.run(sync_to_async(fork_and_use)()), asyncio.run(fork_in_context()))
assert async_to_sync(use)() == os.getpid()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_make_calls() -> None:
    done = run_program(FORK.format(library="unfazed_compat.asgiref"), "-W", "ignore::DeprecationWarning")

    assert (done.stdout, done.stderr) == ("0 0 0\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.xfail(reason="the original hangs", raises=subprocess.TimeoutExpired)
def test_a_forked_child_hangs_with_the_original() -> None:
    run_program(FORK.format(library="asgiref.sync"), "-W", "ignore::DeprecationWarning", seconds=HANG_SECONDS)


END_OF_CHILD = """
import asyncio, multiprocessing, threading
from unfazed_compat.asgiref import sync_to_async

running, may_end = threading.Event(), threading.Event()

def work():
    running.set()
    may_end.wait()
    print("done", flush=True)

async def main():
    task = asyncio.create_task(sync_to_async(work)())
    while not running.is_set():
        await asyncio.sleep(0.001)
    task.cancel()

def child():
    asyncio.run(main())
    threading.Thread(target=go_on).start()

def go_on():
    threading.main_thread().join()
    may_end.set()
    asyncio.run(sync_to_async(print)("from another thread", flush=True))

child_process = multiprocessing.get_context("fork").Process(target=child)
child_process.start()
child_process.join()
print(child_process.exitcode)
"""


@counts_references
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_runs_at_the_end_of_a_child_of_multiprocessing_may_end() -> None:
    done = run_program(END_OF_CHILD, "-W", "ignore::DeprecationWarning")

    assert (done.stdout, done.stderr) == ("done\nfrom another thread\n0\n", "")


FORK_LATE = """
import asyncio, os, threading
from asgiref.sync import sync_to_async
asyncio.run(sync_to_async(int)())  # before anybody has heard of us
import unfazed_compat.asgiref
{install}
child = os.fork()
if child == 0:
    threads = []
    barrier = threading.Barrier(4)
    def use():
        barrier.wait()
        threads.append(asyncio.run(sync_to_async(threading.get_ident)()))
    users = [threading.Thread(target=use) for _ in range(4)]
    for each in users:
        each.start()
    for each in users:
        each.join()
    os._exit(0 if len(threads) == 4 and len(set(threads)) == 1 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("install", ["", "unfazed_compat.asgiref.install()"], ids=["import", "install"])
def test_a_forked_child_can_make_calls_though_asgirefs_own_thread_has_been_used(install: str) -> None:
    done = run_program(FORK_LATE.format(install=install), "-W", "ignore::DeprecationWarning")

    assert (done.stdout, done.stderr) == ("0\n", "")


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("library", EITHER)
async def test_a_task_that_outlives_its_sync_code_can_use_thread_sensitive_code_on_asyncio(library: Any) -> None:
    finished = asyncio.Event()
    tasks: list[asyncio.Task[Any]] = []

    async def late() -> threading.Thread:
        await finished.wait()
        thread: threading.Thread = await library.sync_to_async(threading.current_thread)()
        return thread

    async def start() -> None:
        tasks.append(asyncio.create_task(late()))

    thread = await library.sync_to_async(lambda: library.async_to_sync(start)() or threading.current_thread())()
    finished.set()

    assert await asyncio.wait_for(tasks[0], GRACE_SECONDS) is thread


@pytest.mark.anyio
async def test_a_task_that_outlives_its_sync_code_can_use_thread_sensitive_code() -> None:
    finished, outcomes = anyio.Event(), []

    async def late() -> None:
        await finished.wait()
        outcomes.append(await sync_to_async(threading.current_thread)())

    async with anyio.create_task_group() as tasks:

        async def start() -> None:
            tasks.start_soon(late)

        await sync_to_async(async_to_sync(start), thread_sensitive=False)()
        finished.set()

    assert outcomes == [await sync_to_async(threading.current_thread)()]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("library", EITHER)
async def test_a_call_that_only_queues_is_no_deadlock(library: Any) -> None:
    """What a thread-sensitive function starts, without waiting for it, may be thread-sensitive as well."""
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Any]] = []
    started, tried = threading.Event(), threading.Event()

    async def background() -> str:
        tried.set()
        await library.sync_to_async(echo)()
        return "done"

    def outer() -> None:
        loop.call_soon_threadsafe(lambda: tasks.append(loop.create_task(background())))
        started.set()
        assert tried.wait(GRACE_SECONDS)

    await library.sync_to_async(outer)()

    assert await asyncio.wait_for(tasks[0], GRACE_SECONDS) == "done"


def test_a_call_that_would_wait_for_its_own_thread_is_refused(anyio_backend: Backend) -> None:
    async def within() -> None:
        await sync_to_async(echo)()

    async def main() -> None:
        call = sync_to_async(lambda: run_async(anyio_backend, within))
        for _ in range(2):
            with pytest.raises(RuntimeError, match="would deadlock"):
                await call()
        async with ThreadSensitiveContext():
            with pytest.raises(RuntimeError, match="would deadlock"):
                await call()

    run_async(anyio_backend, main)


def test_a_loop_within_the_thread_that_waits_uses_another_thread() -> None:
    """The thread runs a loop, and does not wait: its thread-sensitive calls go to the next place."""

    async def within() -> threading.Thread:
        return await sync_to_async(threading.current_thread)()

    async def outer() -> threading.Thread:
        return await sync_to_async(asyncio.run)(within())

    assert async_to_sync(outer)() is not threading.current_thread()


@pytest.mark.anyio
async def test_the_executor_of_the_process_may_be_assigned(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(max_workers=1) as executor:
        monkeypatch.setattr(SyncToAsync, "single_thread_executor", executor)

        assert await sync_to_async(threading.current_thread)() in executor._threads
    monkeypatch.undo()
    assert await sync_to_async(threading.current_thread)() in SyncToAsync.single_thread_executor._threads  # type: ignore[attr-defined]


# ---- and nothing worse


def test_a_blocking_call_stalls_nobody_elses() -> None:
    may_end = threading.Event()

    async def block() -> None:
        assert may_end.wait(GRACE_SECONDS)

    blocked = threading.Thread(target=async_to_sync(block))
    blocked.start()
    try:
        assert async_to_sync(echo_async)(1) == ((1,), {})
    finally:
        may_end.set()
        blocked.join()


def test_what_a_call_leaves_over_is_ended_with_it() -> None:
    ended = []

    async def left_over() -> None:
        generator = generate()
        await generator.__anext__()
        try:
            await asyncio.Event().wait()
        finally:
            del generator
            ended.append(await sync_to_async(threading.current_thread)())

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await asyncio.sleep(0)
            ended.append(threading.current_thread())

    kept = []

    async def main() -> None:
        task = asyncio.create_task(left_over())
        await asyncio.sleep(0)
        assert not task.done()
        generators = generate(), generate()
        for generator in generators:
            await generator.__anext__()
        kept.append(generators[0])

    async_to_sync(main)()

    assert ended[0] is threading.current_thread()
    assert len(ended) == 4


def test_an_async_generator_that_is_dropped_is_closed_soon() -> None:
    async def main() -> None:
        closed = asyncio.Event()

        async def generate() -> AsyncIterator[int]:
            try:
                yield 1
            finally:
                closed.set()

        async for _ in generate():
            break
        if COLLECTS_LATE:
            gc.collect()
        await asyncio.wait_for(closed.wait(), GRACE_SECONDS)
        await asyncio.sleep(0)

    async_to_sync(main)()


def test_what_fails_while_it_is_ended_is_told_to_the_loops_handler() -> None:
    told: list[str] = []

    async def left_over() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in cleanup")

    async def generate() -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            raise ValueError("in cleanup")

    kept = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
        kept.append(asyncio.create_task(left_over()))
        await asyncio.sleep(0)
        kept.append(generate())  # type: ignore[arg-type]
        await kept[1].__anext__()  # type: ignore[attr-defined]

    async_to_sync(main)()

    assert ["left over" in each for each in told] == [True, True]


# ---- one thread for the async code of all sync code


def test_within_a_single_thread_context_all_async_code_runs_in_one_thread() -> None:
    def main() -> None:
        with AsyncSingleThreadContext() as context:
            thread = async_to_sync(this_thread)()
            with AsyncSingleThreadContext():
                assert async_to_sync(this_thread)() is thread
            assert async_to_sync(this_thread, force_new_loop=True)() is thread
            assert in_plain_thread(lambda: contextvars.copy_context().run(async_to_sync(this_thread))) is not thread
            here = contextvars.copy_context()
            assert in_plain_thread(lambda: here.run(async_to_sync(this_thread))) is thread
            assert context in AsyncToSync.context_to_thread_executor
        assert not thread.is_alive()
        assert async_to_sync(this_thread)() is not thread
        with AsyncSingleThreadContext():
            pass

    contextvars.copy_context().run(main)


def test_force_new_loop_is_a_new_loop_each_time() -> None:
    async def loop() -> object:
        return asyncio.get_running_loop()

    call = async_to_sync(loop, force_new_loop=True)

    assert len({call(), call(), async_to_sync(loop)()}) == 3


@pytest.mark.anyio
async def test_force_new_loop_works_in_a_worker() -> None:
    call = async_to_sync(current_native_loop, force_new_loop=True)

    assert await sync_to_async(call)() != await current_native_loop()


# ---- without asgiref


WITHOUT = """
import sys
sys.modules["asgiref"] = None
import asyncio, threading
import unfazed_compat.asgiref as ours
from unfazed_compat.asgiref import AsyncToSync, SyncToAsync, ThreadSensitiveContext, async_to_sync, sync_to_async

variable = __import__("contextvars").ContextVar("variable", default=0)

async def inner():
    assert AsyncToSync.executors.current is not None
    variable.set(1)
    return await sync_to_async(threading.current_thread)()

assert async_to_sync(inner)() is threading.current_thread()
assert variable.get() == 1

async def main():
    thread = await sync_to_async(threading.current_thread)()
    assert thread in SyncToAsync.single_thread_executor._threads
    async with ThreadSensitiveContext():
        assert await sync_to_async(threading.current_thread)() is not thread
    del AsyncToSync.executors.current

asyncio.run(main())
for call in (lambda: ours.Local, ours.install):
    try:
        call()
    except (ImportError, RuntimeError, Exception) as exc:
        print(type(exc).__name__, exc)
try:
    ours.nothing
except AttributeError as exc:
    print(exc)
"""


def test_it_works_without_asgiref_but_for_local() -> None:
    done = run_program(WITHOUT, "-W", "error")

    assert done.stderr == ""
    local, install, nothing = done.stdout.splitlines()
    assert local.startswith("ImportError Local is asgiref's own")
    assert install.startswith("UnfazedError install() needs asgiref")
    assert "has no attribute 'nothing'" in nothing
