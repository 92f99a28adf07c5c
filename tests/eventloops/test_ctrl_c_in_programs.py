"""Ctrl-C in separate programs: the first one cancels and waits, the second one stops waiting."""

from __future__ import annotations

import signal
from typing import Any

import pytest
from conftest import PYPY
from own_programs import program

assert program  # a fixture


def test_ctrl_c_cancels_the_coroutine_and_is_raised_after_its_cleanup(program: Any) -> None:
    code, out, err = program("""
        async def work():
            try:
                say("started")
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.05)
                say("clean")
        try:
            run_in_eventloop_sync(work)
        except KeyboardInterrupt:
            say("raised")
        say(call_all())
    """).interrupt("started")

    assert (code, out, err) == (0, "started\nclean\nraised\nall\n", "")


def test_a_second_ctrl_c_stops_waiting(program: Any) -> None:
    code, out, err = program("""
        async def work():
            try:
                say("started")
                await anyio.sleep_forever()
            finally:
                with anyio.CancelScope(shield=True):
                    say("cleaning")
                    await anyio.sleep(1000)
        _loopthread.EXIT_SECONDS = 0.1
        try:
            run_in_eventloop_sync(work)
        except KeyboardInterrupt:
            say("raised")
    """).interrupt("started", "cleaning")

    assert (code, out, err) == (0, "started\ncleaning\nraised\n", "")


def test_ctrl_c_waits_for_the_function_in_the_thread(program: Any) -> None:
    code, out, err = program("""
        interrupted = threading.Event()
        def work():
            say("started")
            while not _background._background_thread._calls or not any(
                call._cancelled for call in _background._background_thread._calls
            ):
                time.sleep(0.001)
            say("ended")
        try:
            run_in_threadpool_sync(work)
        except KeyboardInterrupt:
            say("raised")
        say(call_all())
    """).interrupt("started")

    assert (code, out, err) == (0, "started\nended\nraised\nall\n", "")


def test_a_second_ctrl_c_leaves_the_thread_behind(program: Any) -> None:
    code, out, err = program("""
        def work():
            say("started")
            while not any(call._cancelled for call in _background._background_thread._calls.copy()):
                time.sleep(0.001)
            say("still here")
            time.sleep(1000)
        _loopthread.EXIT_SECONDS = 0.1
        try:
            run_in_threadpool_sync(work)
        except KeyboardInterrupt:
            say("raised")
    """).interrupt("started", "still here")

    assert (code, out, err) == (0, "started\nstill here\nraised\n", "")


def test_ctrl_c_waits_for_the_function_in_a_thread_that_stands_by(program: Any) -> None:
    code, out, err = program("""
        from unfazed.concurrency._eventloops._synccalls import thread
        def work():
            say("started")
            while not thread.worker.is_cancelled():
                time.sleep(0.001)
            say("ended")
        call_all()
        try:
            run_in_threadpool_sync(work)
        except KeyboardInterrupt:
            say("raised")
        say(call_all())
    """).interrupt("started")

    assert (code, out, err) == (0, "started\nended\nraised\nall\n", "")


def test_a_second_ctrl_c_leaves_a_thread_behind_that_stood_by(program: Any) -> None:
    code, out, err = program("""
        from unfazed.concurrency._eventloops._synccalls import thread
        def work():
            say("started")
            while not thread.worker.is_cancelled():
                time.sleep(0.001)
            say("still here")
            time.sleep(1000)
        call_all()
        _loopthread.EXIT_SECONDS = 0.1
        try:
            run_in_threadpool_sync(work)
        except KeyboardInterrupt:
            say("raised")
    """).interrupt("started", "still here")

    assert (code, out, err) == (0, "started\nstill here\nraised\n", "")


def test_ctrl_c_in_a_program_without_a_handler_ends_it(program: Any) -> None:
    code, out, err = program("""
        async def work():
            say("started")
            await anyio.sleep_forever()
        run_in_eventloop_sync(work)
    """).interrupt("started")

    assert (code, out) == (-signal.SIGINT, "started\n")
    assert err.rstrip().endswith("KeyboardInterrupt")


def test_a_signal_handler_that_raises_interrupts_as_ctrl_c_does(program: Any) -> None:
    code, out, err = program("""
        class TooLate(Exception):
            pass
        def raise_too_late(*args):
            raise TooLate
        signal.signal(signal.SIGALRM, raise_too_late)
        async def work():
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                await anyio.sleep_forever()
            finally:
                say("clean")
        try:
            run_in_eventloop_sync(work)
        except TooLate:
            say("raised")
    """).run()

    assert (code, out, err) == (0, "clean\nraised\n", "")


def test_ctrl_c_on_a_terminal_does_not_disturb_idle_workers(program: Any) -> None:
    """It goes to the whole process group."""
    code, out, err = program("""
        call_all()
        try:
            os.killpg(0, signal.SIGINT)
            time.sleep(1000)
        except KeyboardInterrupt:
            say("raised")
        for number in range(3):
            say(run_in_processpool_sync(int, str(number)))
    """).run()

    assert (code, out, err) == (0, "raised\n0\n1\n2\n", "")


def test_ctrl_c_that_comes_with_the_answer_or_before_the_call_is_submitted_does_not_hang(
    program: Any, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    """Wherever a signal handler raises, the call ends, and the next one works."""
    if PYPY:
        # `SimpleQueue.put` appends the item and then releases a semaphore, in Python: a handler that raises in between
        # leaves an item in the queue that nobody takes out.
        pytest.skip("the queues of PyPy do not survive a signal handler that raises just anywhere")
    if anyio_backend[0] == "trio":
        # `TrioToken.run_sync_soon` takes a lock in a `with` block, in Python: a handler that raises between its taking
        # and the block leaves it taken by the main thread for good, and nobody gets into that loop any more.
        pytest.skip("trio itself does not survive a signal handler that raises just anywhere")
    code, out, err = program(
        """
        class Now(Exception):
            pass
        interrupts = 0
        def raise_now(*args):
            global interrupts
            interrupts += 1
            raise Now
        signal.signal(signal.SIGALRM, raise_now)
        sys.unraisablehook = lambda _: None  # Python itself drops what is raised amid a callback of a weak reference
        def call_until_interrupted(number):  # Python 3.13 leaves the jump back of a loop out of a `try`
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + number * 0.00001)
            call = (run_in_threadpool_sync, run_in_eventloop_sync)[number % 2]
            while interrupts == number:
                call((int, aid)[number % 2])
        run_in_threadpool_sync(int)
        for number in range(200):
            try:
                call_until_interrupted(number)
            except Now:
                pass
        say(interrupts)
        say(call_all())
        deadline = time.monotonic() + 10
        while _background._background_thread._calls:
            assert time.monotonic() < deadline, "a call is left"
            time.sleep(0.001)
    """,
        interrupted_anywhere=True,
    ).run()

    assert (code, out, err) == (0, "200\nall\n", "")
