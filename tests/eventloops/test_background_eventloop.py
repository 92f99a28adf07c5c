"""The background event loop: which calls it serves, and how it is configured."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import importlib.util
import math
import pickle
import sys
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from conftest import GRACE_SECONDS, wait_until

from unfazed.concurrency import (
    CallCancelledError,
    EventLoopThread,
    LoopEndedError,
    LoopStartError,
    LoopStateError,
    NotSendableError,
    WrongOptionError,
    configure_background_eventloop,
    run_in_eventloop,
    run_in_eventloop_sync,
)
from unfazed.concurrency._eventloops import _background

if TYPE_CHECKING:
    from collections.abc import Callable


async def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    await anyio.sleep(0)
    return args, kwargs


async def loop_thread() -> int:
    return threading.get_ident()


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
    wait_until(lambda: old._closed, "the loop does not end")

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
    """For asyncio, anyio ignores options that it does not know."""
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


@pytest.mark.anyio
async def test_the_first_call_to_the_background_loop_needs_no_slot(background: Any) -> None:
    """The caller is a worker that anyio started, and it holds the only slot."""
    anyio.to_thread.current_default_thread_limiter().total_tokens = 1

    async def below() -> int:
        return await run_in_eventloop(loop_thread)

    assert await anyio.to_thread.run_sync(run_in_eventloop_sync, below) != threading.get_ident()


@pytest.mark.anyio
async def test_on_the_background_loop_itself_it_is_a_task_in_a_context_of_its_own(background: Any) -> None:
    variable = contextvars.ContextVar("variable", default="unset")

    async def change() -> None:
        variable.set("changed")

    async def outer() -> str:
        await run_in_eventloop(change)
        return variable.get()

    assert await run_in_eventloop(outer) == "unset"
