"""Fork, exit and Ctrl-C, each in a program of its own: it ends, and says nothing that it should not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
from conftest import GRACE_SECONDS

HANG_SECONDS = 30  # nothing here takes a tenth of it

PRELUDE = """
import anyio, asyncio, atexit, contextlib, os, signal, sys, threading, time
from unfazed.concurrency import *
from unfazed.concurrency._eventloops import _background, _loops, _loopthread
signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background of a shell is deaf to it
if {options!r}:
    configure_background_eventloop(backend={backend!r}, backend_options={options!r})

def say(text):
    os.write(1, (str(text) + "\\n").encode())  # at once and whole, from any thread and process

def children_of(pid):
    import processes
    return [str(child) for child in processes.children_of(pid)]

async def aid():
    await anyio.sleep(0)
    return threading.get_ident()

def call_all():
    for _ in range(3):  # the first goes by way of the loop; then a thread stands by
        assert run_in_threadpool_sync(int, "1") == 1
    assert run_in_eventloop_sync(aid)
    assert run_in_processpool_sync(int, "2") == 2
    return "all"

def run(afn, *args):
    return anyio.run(afn, *args, backend={backend!r}, backend_options={options!r})

def in_child(function):
    "Fork, call the function in the child, and say how that ended."
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            signal.alarm(15)  # a child that hangs is killed
            function()
            code = 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    say(f"child {{os.waitstatus_to_exitcode(status)}}")
"""


class Program:
    """A program on the backend under test."""

    def __init__(
        self, folder: Path, backend: tuple[str, dict[str, Any]], source: str, *, interrupted_anywhere: bool = False
    ) -> None:
        self._file = folder / "program.py"
        prelude = PRELUDE.format(backend=backend[0], options=backend[1])
        body = textwrap.indent(textwrap.dedent(source), "    ")
        self._file.write_text(f"{prelude}\nif __name__ == '__main__':\n{body}")
        self._environment = dict(os.environ, UNFAZED_BACKEND=backend[0], PYTHONWARNINGS=WARNINGS)
        paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._environment["PYTHONPATH"] = os.pathsep.join(paths)  # for `processes`
        if interrupted_anywhere:  # in the measurement of coverage as well, which keeps its lock then
            for name in [name for name in self._environment if name.startswith("COV")]:
                del self._environment[name]

    def start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(self._file)],
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def run(self) -> tuple[int, str, str]:
        """Run it to its end. Return its exit code, what it said and what it complained about."""
        return finish(self.start())

    def interrupt(self, *times: str) -> tuple[int, str, str]:
        """Run it, and send it Ctrl-C each time that it has said one of these words."""
        process = self.start()
        assert process.stdout is not None
        said = ""
        for word in times:
            while word not in said:
                line = process.stdout.readline()
                assert line, f"ended before it said {word!r}: {said}{process.stderr and process.stderr.read()}"
                said += line
            os.kill(process.pid, signal.SIGINT)
        code, rest, complaints = finish(process)
        return code, said + rest, complaints


# Forking with other threads alive is what these programs are about; Python warns of it.
WARNINGS = (
    "error,ignore:This process:DeprecationWarning,ignore::DeprecationWarning:asyncio,ignore::DeprecationWarning:anyio"
)


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=HANG_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        pytest.fail(f"the program hangs: {out}\n{err}")
    return process.returncode, out, err


@pytest.fixture
def program(tmp_path: Path, anyio_backend: tuple[str, dict[str, Any]]) -> Any:
    return lambda source, **options: Program(tmp_path, anyio_backend, source, **options)


# Fork

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


# Exit


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
        atexit.unregister(_loopthread._end_all_loops)
        atexit.register(handler)
        atexit.register(_loopthread._end_all_loops)  # as if the handler had been there first
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


# Ctrl-C


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
            while not any(call._cancelled for call in tuple(_background._background_thread._calls)):
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


def test_ctrl_c_waits_for_the_function_in_a_thread_that_stands_by(
    program: Any, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    if anyio_backend[0] == "trio":
        pytest.skip("no threads stand by on trio")
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


def test_a_second_ctrl_c_leaves_a_thread_behind_that_stood_by(
    program: Any, anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    if anyio_backend[0] == "trio":
        pytest.skip("no threads stand by on trio")
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
        atexit.unregister(_loopthread._end_all_loops)
        atexit.register(said.wait)
        atexit.register(_loopthread._end_all_loops)
    """).run()

    assert (code, err) == (0, "")
    assert "the interpreter is exiting" in out


def test_a_child_forked_in_a_worker_does_not_take_its_calls_for_nested_ones(program: Any) -> None:
    code, out, err = program("""
        from unfazed.concurrency._core import _limits, _slots
        run_in_threadpool_sync(in_child, lambda: say(_limits.current_slot.get()))
        os._exit(0)
    """).run()

    assert (code, out, err) == (0, "None\nchild 0\n", "")


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
    """Each gets a `LoopEndedError`, and no cancellation, which is not theirs."""
    done = subprocess.run(
        [sys.executable, "-c", MANY_THREADS_AT_EXIT, anyio_backend[0]],
        capture_output=True,
        text=True,
        timeout=50,
        check=True,
    )

    assert (done.stdout, done.stderr) == ("", "")
