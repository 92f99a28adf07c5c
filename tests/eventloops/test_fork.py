"""Fork, in separate programs: the child can make all calls, and so can its parent."""

from __future__ import annotations

import os
from typing import Any

import pytest
from own_programs import program

assert program  # a fixture

FORKS = {
    "before any use": """
        in_child(lambda: say(call_all()))
        say(call_all())
    """,
    "after use, from the main thread": """
        say(call_all())
        in_child(lambda: say(call_all()))
        say(call_all())
    """,
    "from a worker thread": """
        run_in_threadpool_sync(in_child, lambda: say(call_all()))
        say(call_all())
        say(call_all())
    """,
    "from a worker thread that anyio started": """
        run(anyio.to_thread.run_sync, in_child, lambda: say(call_all()))
        say(call_all())
        say(call_all())
    """,
    "from a coroutine": """
        async def main():
            in_child(lambda: say(call_all()))
            say(call_all() if not _loops.running_loop() else "all")
        run(main)
        say(call_all())
    """,
    "from a coroutine in the background loop": """
        async def main():
            in_child(lambda: say(call_all()))
        run_in_eventloop_sync(main)
        say(call_all())
        say(call_all())
    """,
    "of a fork": """
        say(call_all())
        in_child(lambda: in_child(lambda: say(call_all())))
        say(call_all())
    """,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("source", FORKS.values(), ids=FORKS.keys())
def test_a_forked_child_makes_all_calls_and_so_does_its_parent(program: Any, source: str) -> None:
    code, out, err = program(source).run()

    lines = [line for line in out.split("\n") if line]
    assert (code, err) == (0, "")
    assert lines.count("all") >= 2
    assert set(lines) == {"all", "child 0"}


def test_a_child_forked_while_all_locks_are_held_makes_all_calls(program: Any) -> None:
    code, out, err = program("""
        from unfazed.concurrency._core import _limits, _slots
        from unfazed.concurrency._processes import _output
        call_all()
        locked = threading.Event()
        def hold():
            with _slots._lock, _output._writing:
                locked.set()
                time.sleep(1000)
        threading.Thread(target=hold, daemon=True).start()
        locked.wait()
        in_child(lambda: say(call_all()))
        os._exit(0)
    """).run()

    assert (code, out, err) == (0, "all\nchild 0\n", "")


def test_a_forked_child_starts_with_all_slots_free(program: Any) -> None:
    code, out, err = program("""
        async def limit():
            anyio.to_thread.current_default_thread_limiter().total_tokens = 1
        def fork_with_the_only_slot():
            in_child(lambda: (run_in_eventloop_sync(limit), say(call_all())))
        run_in_eventloop_sync(limit)
        run_in_threadpool_sync(fork_with_the_only_slot)
        say(call_all())
    """).run()

    assert (code, out, err) == (0, "all\nchild 0\nall\n", "")


def test_an_event_loop_thread_says_that_it_was_left_behind(program: Any) -> None:
    code, out, err = program("""
        def use(loop):
            try:
                loop.run_sync(aid)
            except LoopEndedError as exc:
                say(exc)
        with EventLoopThread(os.environ["UNFAZED_BACKEND"]) as loop:
            in_child(lambda: use(loop))
    """).run()

    assert (code, err) == (0, "")
    assert "the process has forked" in out


def test_a_forked_child_that_returns_from_main_ends(program: Any) -> None:
    code, out, err = program("""
        call_all()
        pid = os.fork()
        if pid == 0:
            say(call_all())
        else:
            _, status = os.waitpid(pid, 0)
            say(f"child {os.waitstatus_to_exitcode(status)}")
    """).run()

    assert (code, out, err) == (0, "all\nchild 0\n", "")


def test_a_child_forked_in_a_worker_does_not_take_its_calls_for_nested_ones(program: Any) -> None:
    code, out, err = program("""
        from unfazed.concurrency._core import _limits, _slots
        run_in_threadpool_sync(in_child, lambda: say(_limits.current_slot.get()))
        os._exit(0)
    """).run()

    assert (code, out, err) == (0, "None\nchild 0\n", "")
