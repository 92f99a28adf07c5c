"""Calls that are started: errors that nobody asks for, Ctrl-C, fork and exit."""

from __future__ import annotations

import asyncio
import inspect
import logging
import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import GRACE_SECONDS, Gate, drop_garbage, wait_until
from own_programs import Program
from test_started_handles import fail, fail_async

from unfazed.concurrency import (
    EventLoopThread,
    Handle,
    LoopEndedError,
    in_threadpool,
    start_in_eventloop,
    start_in_executor,
    start_in_processpool,
    start_in_threadpool,
)

if TYPE_CHECKING:
    from collections.abc import Callable

TIMEOUT = GRACE_SECONDS
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@pytest.fixture
def program(tmp_path: Any, anyio_backend: tuple[str, dict[str, Any]]) -> Any:
    return lambda source: Program(tmp_path, anyio_backend, source)


# Errors that nobody asks for


@pytest.mark.usefixtures("background")
def test_an_error_that_nobody_asks_for_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    def fails(start: Callable[[], Handle[Any]]) -> None:
        ended = threading.Event()
        start().add_done_callback(lambda _: ended.set())
        assert ended.wait(3 * TIMEOUT)  # a worker process may have to start

    def is_logged() -> bool:
        drop_garbage()
        return len(caplog.records) == number

    with ThreadPoolExecutor(1) as executor:
        ways: list[Callable[[], Handle[Any]]] = [
            lambda: start_in_threadpool(fail),
            lambda: start_in_eventloop(fail_async),
            lambda: start_in_processpool(int, "not a number"),
            lambda: start_in_executor(executor, fail),
            lambda: in_threadpool(fail).start(),
        ]
        # One after another: Python 3.13.5 drops what a finalizer logs while its thread handles another record.
        for number, start in enumerate(ways, 1):  # noqa: B007
            fails(start)
            wait_until(is_logged, "nothing is logged")

    assert {record.name for record in caplog.records} == {"unfazed.concurrency"}
    assert {record.levelno for record in caplog.records} == {logging.ERROR}
    messages = sorted(record.getMessage().partition("()")[0] for record in caplog.records)
    assert messages == ["fail", "fail", "fail", "fail_async", "int"]
    assert "raise ZeroDivisionError" in caplog.text  # the traceback


def test_an_error_that_somebody_asks_for_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        with pytest.raises(ZeroDivisionError):
            await start_in_threadpool(fail)
        with pytest.raises(ZeroDivisionError):
            await asyncio.wrap_future(start_in_threadpool(fail))

    assert start_in_threadpool(fail).exception(TIMEOUT)
    with pytest.raises(ZeroDivisionError):
        start_in_threadpool(fail).result(TIMEOUT)
    asyncio.run(ask())
    drop_garbage()

    assert not caplog.records


def test_the_end_of_a_loop_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    with EventLoopThread() as loop:
        handle = loop.start(anyio.sleep, TIMEOUT)
    wait_until(handle.done, "it is not told")
    del handle
    drop_garbage()

    assert not caplog.records


def test_nothing_keeps_a_handle_that_is_done() -> None:
    class Result:
        pass

    def work() -> Result:
        gate.wait()
        return Result()

    gate = Gate()
    handle = start_in_threadpool(work)
    result: Any = weakref.ref(handle)
    gate.opened.set()
    kept = weakref.ref(handle.result(TIMEOUT))
    del handle

    def is_gone() -> bool:
        drop_garbage()
        return result() is None and kept() is None

    wait_until(is_gone, "something keeps it")


def test_a_dropped_handle_does_not_stop_its_call() -> None:
    ended = threading.Event()

    async def work() -> None:
        await anyio.sleep(0.01)
        ended.set()

    start_in_eventloop(work)
    drop_garbage()

    assert ended.wait(TIMEOUT)


# Ctrl-C


def test_ctrl_c_in_result_stops_the_wait_and_not_the_call(program: Any) -> None:
    code, out, err = program("""
        begun, may_end = threading.Event(), threading.Event()
        def work():
            begun.set()
            may_end.wait()
            return "result"
        handle = start_in_threadpool(work)
        begun.wait()
        try:
            say("waiting")
            handle.result()
        except KeyboardInterrupt:
            say("interrupted")
        may_end.set()
        say(handle.result())
    """).interrupt("waiting")

    assert (code, out, err) == (0, "waiting\ninterrupted\nresult\n", "")


# Fork and exit


@needs_fork
def test_a_forked_child_starts_calls_and_leaves_the_parents_behind(program: Any) -> None:
    code, out, err = program("""
        def ask():
            say(done.result())
            for ask in (running.result, running.exception, lambda: run(wait)):
                try:
                    ask()
                except LoopEndedError as exc:
                    say(exc)
            say(running.cancel())
            say(start_in_threadpool(int, "4").result())
            say(start_in_eventloop(aid()).result() > 0)
            say(start_in_processpool(int, "5").result())
        async def wait():
            await running
        done, running = start_in_threadpool(int, "3"), start_in_eventloop(anyio.sleep, 1000)
        done.result()
        in_child(ask)
        say(running.cancel())
    """).run()

    left = "the process has forked, and sleep() was left behind in the parent; this call cannot be made any more\n"
    assert (code, err) == (0, "")
    assert out == f"3\n{left * 3}False\n4\nTrue\n5\nchild 0\nTrue\n"


def test_at_exit_calls_end_as_all_of_their_loop_do(program: Any) -> None:
    code, out, err = program("""
        begun = threading.Event()
        async def clean_up():
            try:
                begun.set()
                await anyio.sleep(1000)
            finally:
                say("cleaned up")
        def work():
            working.set()
            time.sleep(0.2)
            say("worked")
        def fail():
            raise ZeroDivisionError
        working = threading.Event()
        handle = start_in_eventloop(clean_up)
        start_in_threadpool(work)
        begun.wait(), working.wait()
    """).run()

    assert (code, err) == (0, "")
    assert sorted(out.split("\n")) == ["", "cleaned up", "worked"]


def test_an_error_that_nobody_has_asked_for_is_logged_at_exit(program: Any) -> None:
    code, out, err = program("""
        def fail():
            raise ZeroDivisionError("from the function")
        handle = start_in_threadpool(fail)
        while not handle.done():
            time.sleep(0.001)
    """).run()

    assert (code, out) == (0, "")
    assert "Exception ignored" not in err
    assert err.endswith("ZeroDivisionError: from the function\n")
    assert err.count("nobody has asked for the error") == 1


def test_exit_handlers_start_calls_until_the_loops_have_ended(program: Any) -> None:
    code, out, err = program("""
        def late():
            try:
                start_in_threadpool(int, "4")
            except LoopEndedError as exc:
                say(exc)
        def early():
            say(start_in_threadpool(int, "3").result())
            say(start_in_eventloop(aid()).result() > 0)
        atexit.unregister(_lifetime.end_all)
        atexit.register(late)
        atexit.register(_lifetime.end_all)
        atexit.register(early)
        start_in_threadpool(int).result()
    """).run()

    assert (code, out, err) == (0, "3\nTrue\nthe interpreter is exiting; this call cannot be made any more\n", "")


def test_who_waits_at_exit_is_told(program: Any) -> None:
    code, out, err = program("""
        def wait():
            try:
                handle.result()
            except LoopEndedError:
                say("told")
        handle = start_in_eventloop(anyio.sleep, 1000)
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        atexit.register(waiting.join)  # after the loops have ended
        atexit.unregister(_lifetime.end_all)
        atexit.register(_lifetime.end_all)
    """).run()

    assert (code, out, err) == (0, "told\n", "")


def test_a_loop_that_has_ended_starts_nothing_and_closes_the_coroutine() -> None:
    async def never() -> None:
        raise AssertionError

    with EventLoopThread() as loop:
        pass
    handed_over = never()
    with pytest.raises(LoopEndedError):
        loop.start(handed_over)
    assert inspect.getcoroutinestate(handed_over) == inspect.CORO_CLOSED
