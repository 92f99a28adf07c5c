"""Async functions called from sync code and from other loops; the background event loop; loops in threads."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import importlib.util
import math
import pickle
import sys
import threading
import traceback
from contextlib import suppress
from functools import partial
from types import ModuleType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import starlette.concurrency
from conftest import GRACE_SECONDS, Caller, captured, in_plain_thread, wait_until

from unfazed.concurrency import (
    CallCancelledError,
    EventLoopThread,
    LoopEndedError,
    LoopStartError,
    LoopStateError,
    LoopThreadError,
    NotSendableError,
    WrongFunctionError,
    WrongOptionError,
    configure_background_eventloop,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_processpool_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._core import _slots
from unfazed.concurrency._eventloops import _background, _loopthread, _synccalls

if TYPE_CHECKING:
    from collections.abc import Callable

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


# Which loop


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
    """anyio's way to say so where the loop ends before it has started the call."""
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


# The background event loop


def test_one_loop_serves_a_hundred_threads_and_what_is_made_there_stays_valid(background: Any) -> None:
    async def make() -> anyio.Event:
        return anyio.Event()

    async def use(event: anyio.Event) -> int:
        event.set()
        await event.wait()
        return threading.get_ident()

    event = run_in_eventloop_sync(make)
    together = threading.Barrier(100)
    loops: list[int] = []

    def call() -> None:
        together.wait(GRACE_SECONDS)
        loops.append(run_in_eventloop_sync(use, event))

    threads = [threading.Thread(target=call) for _ in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(GRACE_SECONDS)

    assert len(loops) == 100
    assert len(set(loops)) == 1


def test_its_thread_has_its_name_and_is_a_daemon(background: Any) -> None:
    thread = run_in_eventloop_sync(_current_thread)

    assert thread.name == "unfazed-eventloop"
    assert thread.daemon


async def _current_thread() -> threading.Thread:
    return threading.current_thread()


@pytest.mark.anyio
async def test_from_async_code_it_is_another_loop_and_in_it_the_same(background: Any) -> None:
    async def nested() -> bool:
        return await run_in_eventloop(loop_thread) == threading.get_ident()

    assert await run_in_eventloop(loop_thread) != threading.get_ident()
    assert await run_in_eventloop(nested)


@pytest.mark.anyio
async def test_cancelling_from_another_loop_awaits_the_cleanup(background: Any) -> None:
    started = threading.Event()
    done = []

    async def work() -> None:
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.01)
            done.append("cleanup")

    async def call() -> None:
        try:
            await run_in_eventloop(work)
        finally:
            done.append("raised")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        while not started.is_set():
            await anyio.sleep(0.001)
        tasks.cancel_scope.cancel()

    assert done == ["cleanup", "raised"]


@pytest.mark.anyio
async def test_a_cancellation_that_the_caller_did_not_ask_for_is_an_error(background: Any) -> None:
    async def cancel_itself() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            try:
                await anyio.sleep_forever()
            except BaseException as exc:
                caught.append(exc)
                raise
        raise caught[0]

    caught: list[BaseException] = []

    with pytest.raises(CallCancelledError, match="cancel_itself"):
        await run_in_eventloop(cancel_itself)


def test_a_loop_that_a_stray_task_broke_is_replaced() -> None:
    """SystemExit in a task ends an asyncio loop; whoever waits is told, and the next call gets a new loop."""

    async def exit_soon() -> None:
        raise SystemExit(3)

    async def start_stray() -> None:
        stray.append(asyncio.ensure_future(exit_soon()))
        await asyncio.sleep(GRACE_SECONDS)

    stray: list[Any] = []
    before = run_in_eventloop_sync(loop_thread)
    old = _background._background_thread
    with pytest.raises(asyncio.CancelledError):
        run_in_eventloop_sync(start_stray)
    assert old is not None
    wait_until(lambda: not old.is_running(), "the loop has ended")

    assert run_in_eventloop_sync(loop_thread) != before or _background._background_thread is not old
    assert isinstance(stray.pop().exception(), SystemExit)
    with pytest.raises(LoopEndedError, match="SystemExit"):
        old.run_sync(loop_thread)


def test_it_is_configured_before_its_first_use_only(background: Any) -> None:
    run_in_eventloop_sync(echo)

    with pytest.raises(LoopStateError, match="running already"):
        configure_background_eventloop(backend="asyncio")


def test_settings_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WrongOptionError, match=r"configure_background_eventloop.*must be one of.*not 'curio'"):
        configure_background_eventloop(backend="curio")
    with pytest.raises(ValueError, match=r"EventLoopThread.*'curio'"):
        EventLoopThread("curio")
    monkeypatch.setenv("UNFAZED_BACKEND", "curio")
    with pytest.raises(WrongOptionError, match="environment variable UNFAZED_BACKEND"):
        run_in_eventloop_sync(echo)
    monkeypatch.setenv("UNFAZED_BACKEND", "")
    assert run_in_eventloop_sync(echo, 1) == ((1,), {})


def test_backend_options_are_checked_at_once(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """With asyncio, anyio takes no notice of those that it does not know."""
    backend, _ = anyio_backend
    for make in (partial(EventLoopThread, backend), partial(configure_background_eventloop, backend=backend)):
        with pytest.raises(WrongOptionError, match=rf"has no option 'polici' with {backend}: they are \w+"):
            make(backend_options={"polici": 1})
        wrong: Any = "use_uvloop"
        with pytest.raises(WrongOptionError, match=r"\(backend_options=...\) must be a dict"):
            make(backend_options=wrong)
        make(backend_options={})


def test_options_of_a_backend_that_is_not_there_are_its_own_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "trio", None)

    assert not EventLoopThread("trio", {"clock": 1}).is_running()


@pytest.mark.parametrize("timeout", [-1, "x", True])
def test_a_timeout_of_stop_is_checked(timeout: Any) -> None:
    with EventLoopThread() as loop, pytest.raises(WrongOptionError, match=r"stop\(timeout=...\) must be a number"):
        loop.stop(timeout)


def test_a_name_that_is_none_is_refused() -> None:
    name: Any = 5
    with pytest.raises(WrongOptionError, match=r"EventLoopThread\(name=...\) must be a string, or None, not 5"):
        EventLoopThread(name=name)


def test_stop_takes_any_number_of_seconds() -> None:
    loop = EventLoopThread()
    loop.start()

    loop.stop(math.inf)

    assert not loop.is_running()


@pytest.mark.parametrize("copy_it", [copy.copy, copy.deepcopy, pickle.dumps])
def test_a_loop_thread_cannot_be_copied(copy_it: Callable[[object], object]) -> None:
    with pytest.raises(NotSendableError, match=r"<EventLoopThread.*> can be neither copied nor pickled"):
        copy_it(EventLoopThread())


def test_what_is_private_is_not_shown() -> None:
    shown = dir(EventLoopThread())

    assert {"run_sync", "native", "__class__"} <= {*shown}
    assert not [name for name in shown if name.startswith("_") and not name.startswith("__")]


def test_the_environment_chooses_the_backend(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def library() -> str:
        return anyio.get_cancelled_exc_class().__module__.split(".")[0]

    monkeypatch.setenv("UNFAZED_BACKEND", anyio_backend[0])

    assert run_in_eventloop_sync(library) == ("trio" if anyio_backend[0] == "trio" else "asyncio")


def test_a_backend_that_cannot_start_says_why() -> None:
    configure_background_eventloop(backend_options={"loop_factory": "not a factory"})

    with pytest.raises(LoopStartError, match="not callable"):
        run_in_eventloop_sync(echo)
    configure_background_eventloop()
    assert run_in_eventloop_sync(echo, 1) == ((1,), {})


@pytest.mark.skipif(importlib.util.find_spec("uvloop") is None, reason="uvloop is not installed")
def test_uvloop_is_a_backend_option() -> None:
    async def loop_module() -> str:
        return type(asyncio.get_running_loop()).__module__

    configure_background_eventloop(backend_options={"use_uvloop": True})

    assert run_in_eventloop_sync(loop_module).startswith("uvloop")


# Event loops in threads


def test_a_loop_thread_lasts_for_its_block(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    backend, options = anyio_backend
    loop = EventLoopThread(backend, options, "my-loop")
    assert repr(loop) == f"<EventLoopThread('{backend}', name='my-loop'), not started>"
    with pytest.raises(LoopStateError, match="has not been started"):
        loop.run_sync(echo)

    with loop as entered:
        assert entered is loop
        assert loop.is_running()
        assert loop.run_sync(_current_thread).name == "my-loop"
        assert repr(loop).endswith("running>")
        with pytest.raises(LoopStateError, match="only once"):
            loop.start()

    assert repr(loop).endswith("ended>")
    assert not loop.is_running()
    with pytest.raises(LoopEndedError, match="has been stopped"):
        loop.run_sync(echo)
    with pytest.raises(LoopStateError, match="only once"):
        loop.start()


def test_a_loop_thread_shows_the_loop_of_its_library(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    backend, options = anyio_backend
    loop = EventLoopThread(backend, options)
    with pytest.raises(LoopStateError, match="has not been started"):
        _ = loop.native

    with loop:
        assert loop.native is loop.run_sync(_native_loop)

    with pytest.raises(LoopEndedError, match="has been stopped"):
        _ = loop.native


async def _native_loop() -> object:
    return anyio.lowlevel.current_token().native_token


def test_loop_threads_have_distinct_names() -> None:
    assert repr(EventLoopThread()) != repr(EventLoopThread())


@pytest.mark.anyio
async def test_a_loop_thread_is_awaited_from_any_loop(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    async def nested(loop: EventLoopThread) -> Any:
        return await loop.run(echo, 1, self=2)

    with EventLoopThread(*anyio_backend) as loop:
        assert await loop.run(echo, 1, self=2, func=3) == ((1,), {"self": 2, "func": 3})
        assert await loop.run(nested, loop) == ((1,), {"self": 2})
        with pytest.raises(LoopThreadError, match=r"await loop.run\(echo, ...\)"):
            loop.run_sync(echo)


def test_leaving_the_block_cancels_what_runs_and_awaits_its_cleanup(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    started = threading.Event()
    seen: list[str] = []

    async def work() -> None:
        try:
            started.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await run_in_threadpool(seen.append, "cleanup in a thread")

    def call() -> None:
        try:
            loop.run_sync(work)
        except BaseException as exc:
            seen.append(type(exc).__name__)

    with EventLoopThread(*anyio_backend) as loop:
        thread = threading.Thread(target=call)
        thread.start()
        assert started.wait(GRACE_SECONDS)
    thread.join(GRACE_SECONDS)

    assert seen == ["cleanup in a thread", "LoopEndedError"]


def test_a_loop_thread_cannot_wait_for_its_own_end(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    async def stop() -> None:
        with pytest.raises(LoopStateError, match="its own end"):
            loop.stop()

    with EventLoopThread(*anyio_backend) as loop:
        loop.run_sync(stop)


def test_a_call_that_the_end_of_the_loop_overtakes_gets_an_error(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventLoopThread(*anyio_backend) as loop:
        assert loop._loop is not None
        dropped = threading.Event()
        monkeypatch.setattr(type(loop._loop), "submit", lambda self, call, context: dropped.set())
        seen: list[BaseException] = []

        def call() -> None:
            try:
                loop.run_sync(echo)
            except LoopEndedError as exc:
                seen.append(exc)

        thread = threading.Thread(target=call)
        thread.start()
        assert dropped.wait(GRACE_SECONDS)
        monkeypatch.setattr(loop, "_calls", Uncounted(loop._calls))
    thread.join(GRACE_SECONDS)

    assert len(seen) == 1


class Uncounted(set[Any]):
    """The calls of a loop as it sees them when one comes in just as it ends: none."""

    def __bool__(self) -> bool:
        return False


def test_stopping_before_the_start_is_harmless() -> None:
    EventLoopThread().stop()


def test_stop_returns_after_its_timeout(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    started, may_end = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        assert may_end.wait(GRACE_SECONDS)

    with EventLoopThread(*anyio_backend) as loop:
        thread = threading.Thread(target=captured, args=(lambda: loop.run_sync(run_in_threadpool, work),))
        thread.start()
        assert started.wait(GRACE_SECONDS)
        loop.stop(timeout=0.01)
        assert loop._thread is not None
        assert loop._thread.is_alive()
        may_end.set()
    thread.join(GRACE_SECONDS)


def test_a_worker_waits_as_long_as_its_loop_is_there(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_synccalls, "GONE_CHECK_SECONDS", 0.001)
    backend, options = anyio_backend

    async def main() -> Any:
        return await run_in_threadpool(run_in_eventloop_sync, slow_echo, 1)

    async def slow_echo(value: int) -> int:
        await anyio.sleep(0.05)
        return value

    assert anyio.run(main, backend=backend, backend_options=options) == 1


def refuse_to_start(thread: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("helper", [run_in_eventloop_sync, run_in_threadpool_sync])
def test_when_no_thread_can_be_started_the_error_is_clear_and_the_next_call_tries_again(
    helper: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There are too many, or this is a subinterpreter without daemon threads."""
    func = echo if helper is run_in_eventloop_sync else int
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_to_start)
        with pytest.raises(LoopStartError, match="its thread cannot be started: can't start new thread"):
            helper(func)

    assert not _slots._inside
    helper(func)


def test_when_no_thread_can_be_started_as_the_interpreter_ends_the_error_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse_and_exit(thread: threading.Thread) -> None:
        patch.setattr(_loopthread, "_exiting", True)  # seen only now: another thread ends the interpreter
        refuse_to_start(thread)

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse_and_exit)
        with pytest.raises(LoopEndedError, match="the interpreter is exiting"):
            run_in_eventloop_sync(echo)

    assert run_in_eventloop_sync(echo, 1) == ((1,), {})


def test_a_call_to_a_loop_that_ended_a_moment_ago_gets_an_error(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    with EventLoopThread(*anyio_backend) as loop:

        def ended(self: object, call: object, context: object) -> None:
            raise LoopEndedError("the event loop of this call has ended")

        with monkeypatch.context() as patch:
            patch.setattr(type(loop._loop), "submit", ended)
            with pytest.raises(LoopEndedError):
                loop.run_sync(echo)
        assert not loop._calls


@pytest.mark.anyio
async def test_the_first_call_to_the_background_loop_needs_no_slot(background: Any) -> None:
    """Below a worker of others, which holds the only one."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1

    async def below() -> int:
        return await run_in_eventloop(loop_thread)

    assert await anyio.to_thread.run_sync(run_in_eventloop_sync, below) != threading.get_ident()


def test_a_worker_of_a_loop_cannot_stop_it(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    with EventLoopThread(*anyio_backend) as loop:
        with pytest.raises(LoopStateError, match="its own end"):
            loop.run_sync(run_in_threadpool, loop.stop)
        assert loop.is_running()


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


def test_a_loop_stopped_while_it_starts_ends(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    loop = EventLoopThread(*anyio_backend)
    loop._ask_to_stop("stopped before it ran")

    loop.start()
    loop.stop()

    assert loop._thread is not None
    assert not loop._thread.is_alive()


def test_a_call_that_comes_in_while_the_loop_ends_is_cancelled(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """1: a call finds the loop open. 2: the loop is told to stop, and cancels all calls. 3: the call is submitted."""
    running = threading.Event()
    seen: list[str] = []

    async def first() -> None:
        running.set()
        with anyio.CancelScope(shield=True):
            while not seen:
                with suppress(asyncio.CancelledError):  # asyncio's own goes through the shield
                    await anyio.sleep(0.001)

    def call(func: Any) -> None:
        try:
            loop.run_sync(func)
        except LoopEndedError as exc:
            seen.append(str(exc))

    with EventLoopThread(*anyio_backend) as loop:
        assert loop._loop is not None
        original = type(loop._loop).submit
        threads = [threading.Thread(target=call, args=(first,))]
        threads[0].start()
        assert running.wait(GRACE_SECONDS)

        def submit_late(self: Any, late: Any, context: Any) -> None:
            loop._ask_to_stop("this event loop thread has been stopped")
            original(self, late, context)

        monkeypatch.setattr(type(loop._loop), "submit", submit_late)
        threads.append(threading.Thread(target=call, args=(anyio.sleep_forever,)))
        threads[1].start()
        threads[1].join(GRACE_SECONDS)
    threads[0].join(GRACE_SECONDS)

    assert seen[0].startswith("this event loop thread has been stopped")


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


@pytest.mark.anyio
async def test_on_the_background_loop_itself_it_is_a_task_in_a_context_of_its_own(background: Any) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def change() -> None:
        variable.set("changed")

    async def outer() -> str:
        await run_in_eventloop(change)
        return variable.get()

    assert await run_in_eventloop(outer) == "unset"


def test_the_cleanup_of_a_loop_that_ends_may_still_use_it(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    running = threading.Event()
    seen: list[Any] = []

    async def work() -> None:
        try:
            running.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                seen.append(await loop.run(echo, 1))

    with EventLoopThread(*anyio_backend) as loop:
        thread = threading.Thread(target=captured, args=(lambda: loop.run_sync(work),))
        thread.start()
        assert running.wait(GRACE_SECONDS)
    thread.join(GRACE_SECONDS)

    assert seen == [((1,), {})]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", [pytest.param("trio", marks=trio_only)])
async def test_a_worker_whose_trio_program_has_ended_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def ended(*args: object) -> None:
        raise anyio.RunFinishedError

    monkeypatch.setattr("unfazed.concurrency._eventloops._synccalls.from_thread.run", ended)
    with pytest.raises(LoopEndedError):
        await run_in_threadpool(run_in_eventloop_sync, echo)


def test_ctrl_c_during_the_very_first_call_leaves_one_loop(background: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """1: the thread is started. 2: Ctrl-C comes while the call waits for its loop. 3: the next call finds it."""
    original = EventLoopThread._ensure_started

    def interrupted(self: EventLoopThread) -> None:
        original(self)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(EventLoopThread, "_ensure_started", interrupted)
        with pytest.raises(KeyboardInterrupt):
            run_in_eventloop_sync(echo)

    assert run_in_eventloop_sync(echo, 1) == ((1,), {})
    assert [thread.name for thread in threading.enumerate()].count("unfazed-eventloop") == 1


def test_a_signal_handler_may_make_a_call_in_the_midst_of_the_first_one(
    background: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the thread that has made one, and has not yet made known that it is to be the background event loop."""
    made = EventLoopThread.__init__
    first: list[EventLoopThread | None] = []

    def interrupted(self: EventLoopThread, *args: Any) -> None:
        made(self, *args)
        if not first:
            first.append(None)
            assert run_in_eventloop_sync(echo, 1) == ((1,), {})
            first[0] = _background._background_thread

    with monkeypatch.context() as patch:
        patch.setattr(EventLoopThread, "__init__", interrupted)
        assert run_in_eventloop_sync(echo, 2) == ((2,), {})

    assert first == [_background._background_thread]
