"""Exit, in separate programs: each ends, and prints no complaint."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest
from conftest import GRACE_SECONDS
from own_programs import HANG_SECONDS, program

if TYPE_CHECKING:
    from pathlib import Path

assert program  # a fixture


def test_the_interpreter_ends_when_all_is_idle(program: Any) -> None:
    assert program("say(call_all())").run() == (0, "all\n", "")


def test_worker_processes_end_with_their_parent(program: Any) -> None:
    code, out, err = program("""
        call_all()
        say(" ".join(children_of(os.getpid())))
    """).run()

    pids = [int(pid) for pid in out.split()]
    assert (code, err) == (0, "")
    assert pids
    deadline = time.monotonic() + GRACE_SECONDS
    for pid in pids:
        while alive(pid):
            assert time.monotonic() < deadline, "a worker process is left"
            time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_at_exit_a_running_coroutine_is_cancelled_and_cleans_up(program: Any) -> None:
    code, out, err = program("""
        started = threading.Event()
        async def work():
            try:
                started.set()
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.05)
                say("clean")
        def call():
            try:
                run_in_eventloop_sync(work)
            except BaseException as exc:
                say(type(exc).__name__[:9])
        threading.Thread(target=call, daemon=True).start()
        started.wait()
    """).run()

    assert (code, err) == (0, "")
    assert out.startswith("clean\n")


def test_at_exit_a_blocked_worker_is_waited_for_only_so_long(program: Any) -> None:
    started = time.monotonic()
    code, out, err = program("""
        _loopthread.EXIT_SECONDS = 0.2
        started = threading.Event()
        def block():
            started.set()
            time.sleep(1000)
        threading.Thread(target=run_in_threadpool_sync, args=(block,), daemon=True).start()
        started.wait()
        say("exit")
    """).run()

    assert (code, out, err) == (0, "exit\n", "")
    assert time.monotonic() - started < HANG_SECONDS


def test_ordinary_threads_go_on_calling_until_they_end(program: Any) -> None:
    code, out, err = program("""
        run_in_threadpool_sync(int)
        run_in_eventloop_sync(aid)
        def go_on():
            threading.main_thread().join()
            deadline, done = time.monotonic() + 10, 0
            while done < 20:
                run_in_eventloop_sync(aid)
                try:
                    run_in_threadpool_sync(int)
                    done += 1
                except RuntimeError:  # since 3.12 no thread can start any more, and the other one may not be free yet
                    assert sys.version_info >= (3, 12) and time.monotonic() < deadline
                    time.sleep(0.001)
            say("all of them")
        threading.Thread(target=go_on).start()
    """).run()

    assert (code, out, err) == (0, "all of them\n", "")


def test_an_exit_handler_may_call_until_the_loops_have_ended(program: Any) -> None:
    code, out, err = program("""
        def handler():
            deadline = time.monotonic() + 10
            while True:
                try:
                    return say(run_in_threadpool_sync(str, "handler"))
                except RuntimeError:  # since 3.12 no thread can start any more, and the other one may not be free yet
                    assert time.monotonic() < deadline
                    time.sleep(0.001)
        atexit.register(handler)
        run_in_threadpool_sync(int)
    """).run()

    assert (code, out, err) == (0, "handler\n", "")


def test_after_that_a_call_gets_a_clear_error(program: Any) -> None:
    code, out, err = program("""
        def handler():
            for call in (run_in_threadpool_sync, run_in_processpool_sync):
                try:
                    call(int)
                except LoopEndedError as exc:
                    say(exc)
            try:
                EventLoopThread().start()
            except LoopEndedError as exc:
                say(exc)
        atexit.unregister(_lifetime.end_all)
        atexit.register(handler)
        atexit.register(_lifetime.end_all)  # as if the handler had been there first
        run_in_threadpool_sync(int)
    """).run()

    assert (code, err) == (0, "")
    assert out.count("the interpreter is exiting") == 3


def test_a_first_call_in_an_exit_handler_works_or_gets_a_clear_error(program: Any) -> None:
    code, out, err = program("""
        def handler():
            try:
                say(run_in_threadpool_sync(str, "worked"))
            except LoopEndedError as exc:
                say(exc)
        atexit.register(handler)
    """).run()

    assert (code, err) == (0, "")
    assert "worked" in out or "the interpreter is exiting" in out


def test_an_event_loop_thread_left_open_ends_at_exit(program: Any) -> None:
    code, out, err = program("""
        loop = EventLoopThread(os.environ["UNFAZED_BACKEND"])
        loop.start()
        say(loop.run_sync(run_in_threadpool, str, "open"))
    """).run()

    assert (code, out, err) == (0, "open\n", "")


def test_a_worker_process_that_is_busy_ends_with_its_parent(program: Any, tmp_path: Path) -> None:
    code, out, err = program("""
        from unfazed.concurrency._processes import _pool
        call_all()
        say(run_in_processpool_sync(os.getpid))
        def call():
            with contextlib.suppress(LoopEndedError):
                run_in_processpool_sync(time.sleep, 1000)
        threading.Thread(target=call, daemon=True).start()
        while _pool.pool._idle:
            time.sleep(0.001)
    """).run()

    assert (code, err) == (0, "")
    deadline = time.monotonic() + GRACE_SECONDS
    while alive(int(out)):
        assert time.monotonic() < deadline, "a worker process is left"
        time.sleep(0.01)


def test_at_exit_a_thread_that_waits_gets_a_clear_error(program: Any) -> None:
    code, out, err = program("""
        started = threading.Event()
        async def work():
            started.set()
            await anyio.sleep_forever()
        def call():
            try:
                run_in_eventloop_sync(work)
            except LoopEndedError as exc:
                say(exc)
                said.set()
        said = threading.Event()
        threading.Thread(target=call, daemon=True).start()
        started.wait()
        atexit.unregister(_lifetime.end_all)
        atexit.register(said.wait)
        atexit.register(_lifetime.end_all)
    """).run()

    assert (code, err) == (0, "")
    assert "the interpreter is exiting" in out


def test_the_interpreter_ends_though_a_loop_stands_still_that_a_worker_waits_for(
    program: Any, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    if anyio_backend[0] == "trio":
        pytest.skip("a trio loop does not stand still")
    _, out, _ = program("""
        import warnings
        warnings.simplefilter("ignore", ResourceWarning)
        started = threading.Event()
        async def forever():
            started.set()
            await anyio.sleep_forever()
        def work():
            try:
                run_in_eventloop_sync(forever)
            except LoopEndedError as exc:
                say("told")
        async def main():
            tasks.append(asyncio.ensure_future(run_in_threadpool(work)))
            while not started.is_set():
                await asyncio.sleep(0.001)
        tasks = []
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
    """).run()

    assert "told" in out


def test_what_holds_a_task_group_open_at_exit_is_closed_without_a_word(program: Any) -> None:
    code, out, err = program("""
        from contextlib import asynccontextmanager

        from unfazed.concurrency import contextmanager_in_eventloop_sync

        @asynccontextmanager
        async def client():
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep, 60)
                try:
                    yield "client"
                finally:
                    say("closed")
                    tasks.cancel_scope.cancel()

        kept = contextmanager_in_eventloop_sync(client())
        say(kept.__enter__())
    """).run()

    assert (code, err) == (0, "")
    assert out.split() == ["client", "closed"]


MANY_THREADS_AT_EXIT = """
import sys, threading, time
from contextlib import asynccontextmanager
import anyio
from unfazed.concurrency import *
configure_background_eventloop(backend=sys.argv[1])
begun = threading.Semaphore(0)

async def nap():
    await anyio.sleep(0.001)

async def naps():
    for number in range(3):
        await nap()
        yield number

@asynccontextmanager
async def napping():
    await nap()
    yield

def enter():
    with contextmanager_in_eventloop_sync(napping()):
        pass

FORMS = [
    lambda: run_in_eventloop_sync(nap),
    lambda: run_in_threadpool_sync(time.sleep, 0.001),
    lambda: run_in_threadpool_sync(lambda: [run_in_eventloop_sync(nap), run_in_threadpool_sync(time.sleep, 0.001)]),
    lambda: list(iterate_in_eventloop_sync(naps())),
    enter,
]

def call_for_ever(call):
    begun.release()
    try:
        while True:
            call()
    except LoopEndedError:
        pass

for call in FORMS * 8:
    threading.Thread(target=call_for_ever, args=(call,), daemon=True).start()
for call in FORMS * 8:
    begun.acquire()
for call in FORMS:
    call()
"""


def test_many_threads_that_end_with_the_interpreter_print_nothing(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    """Each thread gets a `LoopEndedError`, not a cancellation, for nobody cancelled it."""
    done = subprocess.run(
        [sys.executable, "-c", MANY_THREADS_AT_EXIT, anyio_backend[0]],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )

    assert (done.stdout, done.stderr) == ("", "")
