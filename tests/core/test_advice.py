"""Errors say what is wrong and what to write instead."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, Blocking, Caller, captured, in_plain_thread, until_begun, wait_until

from unfazed.concurrency import (
    CallTimeoutError,
    DualCallable,
    EventLoopThread,
    NotSendableError,
    RemoteError,
    WrongFunctionError,
    WrongOptionError,
    contextmanager_in_eventloop_sync,
    contextmanager_in_threadpool,
    count_abandoned_threads,
    in_eventloop,
    in_executor,
    in_processpool,
    in_threadpool,
    run_in_eventloop_sync,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def read(path: str, *, size: int = 1) -> bytes:
    """Read a file."""
    return path[:size].encode()


async def fetch(url: str) -> str:
    """Fetch a page."""
    return url


def notes(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", ()))


never_used = ThreadPoolExecutor(max_workers=1)


# Time that is up before a call has begun


def test_a_call_that_waits_behind_abandoned_threads_says_so(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    limiter = anyio.CapacityLimiter(1)
    blocking = Blocking()

    def sleepy() -> str:
        return blocking()

    try:
        for seconds in until_begun(blocking.started.is_set):
            with pytest.raises(CallTimeoutError):
                caller.dual(in_threadpool(sleepy, limiter=limiter, timeout=seconds))
        with pytest.raises(CallTimeoutError) as caught:
            caller.dual(in_threadpool(read, limiter=limiter, timeout=0.05), "a")
        with pytest.raises(CallTimeoutError):
            caller.dual(in_threadpool(sleepy, limiter=limiter, timeout=0.05))
    finally:
        blocking.may_end.set()
    wait_until(lambda: not count_abandoned_threads(), "the thread stays")

    assert "read() has not started within 0.05 seconds: it waited for " in str(caught.value)
    assert "a slot, but 1 of 1 are taken, by sleepy() (1, 1 of them abandoned)" in str(caught.value)
    (record,) = (each for each in caplog.records if each.name == "unfazed.concurrency")
    assert record.levelno == logging.WARNING
    assert "All slots of a limiter belong to abandoned threads" in record.getMessage()
    assert "sleepy() (1, 1 of them abandoned)" in record.getMessage()


@pytest.mark.anyio
async def test_a_call_that_waits_behind_others_names_them(caplog: pytest.LogCaptureFixture) -> None:
    limiter = anyio.CapacityLimiter(3)
    blocking = Blocking()

    @contextmanager
    def manager() -> Iterator[None]:
        blocking()
        yield

    async def enter() -> None:
        async with contextmanager_in_threadpool(manager(), limiter=limiter):
            pass

    async with anyio.create_task_group() as tasks, limiter:
        tasks.start_soon(enter)
        await blocking.wait_until_started()
        blocking.started.clear()
        tasks.start_soon(in_threadpool(blocking, limiter=limiter))
        await blocking.wait_until_started()
        with pytest.raises(CallTimeoutError) as caught:
            await in_threadpool(read, limiter=limiter, timeout=0.05)("a")
        blocking.may_end.set()

    assert "but 3 of 3 are taken, by " in str(caught.value)
    for taken in ("contextmanager_in_threadpool() (1)", "Blocking() (1)", "anyio's own calls (1)"):
        assert taken in str(caught.value)
    assert not caplog.records


def test_a_call_without_time_waits_for_a_thread(caller: Caller) -> None:
    with pytest.raises(CallTimeoutError, match=r"read\(\) has not started within 0 seconds: it waited for a thread"):
        caller.dual(in_threadpool(read, timeout=0), "a")


def test_a_call_to_a_process_says_what_it_waits_for(caller: Caller) -> None:
    limiter = anyio.CapacityLimiter(1)
    blocking = Blocking()
    thread = threading.Thread(target=in_threadpool(blocking, limiter=limiter).sync)
    thread.start()
    try:
        assert blocking.started.wait(GRACE_SECONDS)
        for seconds in until_begun(lambda: caught.value.waited_for):  # until it queues before its time is up
            with pytest.raises(CallTimeoutError) as caught:
                caller.dual(in_processpool(abs, limiter=limiter, timeout=seconds), -1)
    finally:
        blocking.may_end.set()
        thread.join()

    assert re.search(r"abs\(\) has not started .* by Blocking\(\) \(1\)", str(caught.value))


def test_a_call_in_an_executor_says_what_it_waits_for(caller: Caller) -> None:
    blocking = Blocking()
    with ThreadPoolExecutor(max_workers=1) as executor:
        executor.submit(blocking)
        try:
            for seconds in until_begun(lambda: caught.value.waited_for):  # until it queues before its time is up
                with pytest.raises(CallTimeoutError) as caught:
                    caller.dual(in_executor(executor, read, timeout=seconds), "a")
        finally:
            blocking.may_end.set()

    assert "it waited for its turn in the ThreadPoolExecutor" in str(caught.value)


# Options among the arguments


PLACES: dict[str, Any] = {"threadpool": read, "processpool": functions.echo_of_one, "eventloop": fetch}
MISPLACED = [
    ("threadpool", "timeout", "`in_threadpool(read, timeout=5)`"),
    ("threadpool", "limiter", "`in_threadpool(read, limiter=5)`"),
    ("threadpool", "kill_on_cancel", "write `abandon_on_cancel=True`"),
    ("threadpool", "cancellable", "write `abandon_on_cancel=True`"),
    ("processpool", "timeout", "`in_processpool(echo_of_one, timeout=5)`"),
    ("processpool", "max_calls", "`in_processpool(echo_of_one, max_calls=5)`"),
    ("processpool", "abandon_on_cancel", "write `kill_on_cancel=True`"),
    ("eventloop", "timeout", "`in_eventloop(fetch, timeout=5)`"),
    ("eventloop", "limiter", "write `async with limiter:` in the function"),
]


@pytest.mark.parametrize(("place", "option", "note"), MISPLACED)
def test_an_option_among_the_arguments_gets_a_note(caller: Caller, place: str, option: str, note: str) -> None:
    func = PLACES[place]
    calls: list[Callable[[], Any]] = [partial(caller, place, func, "a", **{option: 5})]
    wraps: dict[str, Any]
    wraps = {"threadpool": in_threadpool, "processpool": in_processpool, "eventloop": in_eventloop}
    calls.append(partial(caller.dual, wraps[place](func), "a", **{option: 5}))
    for call in calls:
        with pytest.raises(TypeError, match=option) as caught:
            call()

        assert f"`{option}` was passed on to {func.__name__}()" in notes(caught.value)
        assert note in notes(caught.value)


def test_an_option_among_the_arguments_for_an_executor_gets_a_note(caller: Caller) -> None:
    with ThreadPoolExecutor() as executor, pytest.raises(TypeError) as caught:
        caller.dual(in_executor(executor, read), "a", timeout=5)

    assert "`in_executor(executor, read, timeout=5)`" in notes(caught.value)


def test_an_option_among_the_arguments_for_a_loop_thread_gets_a_note(sync_caller: Caller) -> None:
    call: Any = fetch

    async def from_async_code(loop: EventLoopThread) -> None:
        await loop.run(call, "a", timeout=5)

    with EventLoopThread() as loop:
        for make in (partial(loop.run_sync, call, "a", timeout=5), partial(sync_caller.run, from_async_code, loop)):
            _, error = captured(partial(in_plain_thread, partial(captured, make)))
            assert error is None
            _, error = in_plain_thread(partial(captured, make))

            assert "`in_eventloop(fetch, timeout=5)`" in notes(error)


def test_builtins_and_lambda_functions_get_the_note(caller: Caller) -> None:
    for func, name in ((len, "len"), (dict.fromkeys, "dict.fromkeys"), (lambda: None, "func")):
        with pytest.raises(TypeError) as caught:
            caller("threadpool", func, timeout=5)

        assert f"`in_threadpool({name}, timeout=5)`" in notes(caught.value)


def test_what_the_function_takes_or_passes_on_gets_no_note(caller: Caller) -> None:
    def takes(timeout: int) -> None:
        raise TypeError("its own")

    def passes_on(**kwargs: Any) -> None:
        read(**kwargs)

    def raises_another() -> None:
        raise WrongFunctionError("its own")

    def nonsense() -> None:
        pytest.fail("must not run")

    for func, kwargs in (
        (takes, {"timeout": 5}),
        (passes_on, {"timeout": 5}),
        (nonsense, {"nonsense": 5}),
        (raises_another, {}),
        (int, {"base": 5}),
        (dict, {"timeout": 5}),
    ):
        result, error = captured(partial(caller, "threadpool", func, **kwargs))

        assert result == {"timeout": 5} or isinstance(error, TypeError)
        assert error is None or not notes(error)


executor_place: Any = in_executor
OTHER_PLACES: list[tuple[Any, str, str]] = [
    (in_threadpool, "kill_on_cancel", "in_threadpool() has no option `kill_on_cancel`: a thread cannot be killed"),
    (in_threadpool, "cancellable", "write `abandon_on_cancel=True`"),
    (in_threadpool, "max_calls", "`in_processpool` has it"),
    (in_threadpool, "nonsense", "its options are `limiter`, `abandon_on_cancel`, `timeout`, `context`"),
    (in_processpool, "abandon_on_cancel", "write `kill_on_cancel=True`"),
    (in_processpool, "context", "pass what it holds as arguments"),
    (partial(executor_place, never_used), "limiter", "the executor says how many run at once"),
    (in_eventloop, "limiter", "write `async with limiter:` in the function"),
]


@pytest.mark.parametrize(("wrap", "option", "text"), OTHER_PLACES)
def test_an_option_of_another_place_is_refused_with_the_right_one(wrap: Any, option: str, text: str) -> None:
    for args in ((), (read,)):
        with pytest.raises(WrongOptionError) as caught:
            wrap(*args, **{option: True})

        assert text in str(caught.value)


# Functions that do not fit


def test_an_async_initializer_is_refused_with_what_to_write() -> None:
    initializer: Any = fetch
    not_callable: Any = 3

    with pytest.raises(WrongFunctionError) as caught:
        in_processpool(initializer=initializer)

    assert str(caught.value) == (
        "in_processpool(initializer=...) runs a sync function, and fetch() is async: write a `def` that calls "
        "`run_in_eventloop_sync(fetch)`"
    )
    with pytest.raises(WrongFunctionError, match=r"^in_processpool\(initializer=...\) expected a function, got 3"):
        in_processpool(initializer=not_callable)


@asynccontextmanager
async def connection() -> AsyncIterator[str]:
    yield pytest.fail("must not run")


def test_an_async_context_manager_function_is_sent_to_the_right_helper(caller: Caller) -> None:
    wrong: Any = connection
    hidden: Any = lambda: connection()  # noqa: E731
    wrap: Any = in_eventloop
    calls: list[Callable[[], Any]] = [partial(caller.dual, wrap(hidden))]
    calls += [partial(caller, "eventloop", each) for each in (wrong, hidden)]
    for call in calls:
        with pytest.raises(WrongFunctionError, match=r"\(\) gives an async context manager: enter it") as caught:
            call()

        assert "with contextmanager_in_eventloop_sync(" in str(caught.value)


def test_the_advice_for_a_sync_function_is_a_line_that_works(background: Any) -> None:
    wrong: Any = read
    with pytest.raises(WrongFunctionError, match=r"`run_in_threadpool_sync\(read, ...\)`, or just call it"):
        run_in_eventloop_sync(wrong, "a")
    with pytest.raises(WrongFunctionError, match=r"`in_threadpool\(read\)`"):
        in_eventloop(wrong).sync("a")
    wrong = lambda: 1  # noqa: E731
    with pytest.raises(WrongFunctionError, match=r"`run_in_threadpool_sync\(func, ...\)`"):
        run_in_eventloop_sync(wrong)


def test_dual_callables_are_made_by_the_helpers() -> None:
    make: Any = DualCallable
    with pytest.raises(WrongFunctionError, match=r"call one of these"):
        make(read, read)


# Entered and iterated over in the wrong way


@pytest.mark.anyio
async def test_with_in_the_wrong_colour_says_which_is_the_right_one() -> None:
    wrong: Any = contextmanager_in_threadpool(memoryview(b""))
    with pytest.raises(WrongFunctionError, match=r"is for async with: write `async with ...`"), wrong:
        pass
    wrong.__exit__()
    wrong = contextmanager_in_eventloop_sync(connection())
    with pytest.raises(WrongFunctionError, match=r"is for with: write `with ...`"):
        async with wrong:
            pass
    await wrong.__aexit__()


def test_what_has_been_bridged_is_not_bridged_again() -> None:
    wrong: Any = contextmanager_in_threadpool(memoryview(b""))
    with pytest.raises(WrongFunctionError, match="write `async with` without"):
        contextmanager_in_threadpool(wrong)
    wrong = contextmanager_in_eventloop_sync(connection())
    with pytest.raises(WrongFunctionError, match="write `with` without"):
        contextmanager_in_eventloop_sync(wrong)


# From worker processes


def test_members_of_a_group_that_pickle_badly_show_their_texts(caller: Caller) -> None:
    with pytest.raises(Exception, match="all of them") as caught:
        caller("processpool", functions.raise_group)

    error: Any = caught.value
    first, bad, inner, unknown = error.exceptions
    assert type(error).__name__ == "ExceptionGroup"
    assert isinstance(first, ValueError)
    assert (type(bad), str(bad)) == (RemoteError, "process_functions.TwoArgumentError: 1 and 2")
    assert [type(each) for each in inner.exceptions] == [RemoteError, KeyError]
    assert "WorkerOnlyError: of a group (it cannot be read in this process" in str(unknown)


def test_an_error_whose_class_cannot_be_read_here_shows_its_text(caller: Caller) -> None:
    with pytest.raises(RemoteError, match=r"WorkerOnlyError: what it says \(it cannot be read in this") as caught:
        caller("processpool", functions.raise_worker_only)

    assert "in raise_worker_only" in str(caught.value.__cause__)


def test_what_is_unpickled_instead_of_an_error_becomes_one(caller: Caller) -> None:
    with pytest.raises(RemoteError, match="NotAnErrorError: what it says"):
        caller("processpool", functions.raise_what_unpickles_as_a_string)


def test_what_is_local_gets_the_advice_that_functions_get(caller: Caller) -> None:
    class Local:
        def method(self) -> None:
            pytest.fail("must not run")

    for func, args in ((print, (Local(),)), (print, (Local,)), (Local().method, ()), (Local, ())):
        with pytest.raises(NotSendableError, match="at the top level of a module"):
            caller("processpool", func, *args)
    with pytest.raises(NotSendableError, match=r"cannot send the arguments of print\(\)") as refused:
        caller("processpool", print, threading.Lock())
    assert "top level" not in str(refused.value)
    with pytest.raises(NotSendableError, match=r"returned cannot be sent back .* at the top level of a module"):
        caller("processpool", functions.local_object)


def test_a_server_without_a_guard_is_told_what_to_write(tmp_path: Any) -> None:
    """As `uvicorn.run(app)` does: the address is in use, so it ends the worker that imports it."""
    (tmp_path / "server_library.py").write_text("import sys\ndef run(): sys.exit(3)\n")
    program = tmp_path / "server.py"
    program.write_text(
        "import server_library\nfrom unfazed.concurrency import *\n"
        "def main():\n"
        "    try: print(run_in_processpool_sync(abs, -1))\n"
        "    except WorkerProcessError as exc: print(exc)\n"
        "if __name__ != '__main__': server_library.run()\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=50, check=True)

    assert "it has run the main module, which ended (SystemExit: 3)" in done.stdout
    assert done.stdout.count("`if __name__ == '__main__':`") == 1


@pytest.mark.skipif(sys.platform == "win32", reason="nobody can wait for a pipe there")
def test_a_server_without_a_guard_that_runs_in_the_worker_is_noticed(tmp_path: Any) -> None:
    """As `uvicorn.run(app)` does if the address is free, or asks for any free port."""
    warned = tmp_path / "warned"
    (tmp_path / "server_library.py").write_text(
        "import pathlib, sys, time\n"
        "def run():\n"
        f"    while not pathlib.Path({str(warned)!r}).exists(): time.sleep(0.01)\n"
        "    sys.exit(3)\n"
    )
    program = tmp_path / "server.py"
    program.write_text(
        "import logging, pathlib, server_library\nfrom unfazed.concurrency import *\n"
        "from unfazed.concurrency._processes import _child\n"
        "class Handler(logging.Handler):\n"
        "    def emit(self, record):\n"
        "        print(record.getMessage())\n"
        f"        pathlib.Path({str(warned)!r}).touch()\n"
        "def main():\n"
        "    _child.LATE_SECONDS = 0.1\n"
        "    logging.getLogger('unfazed.concurrency').addHandler(Handler())\n"
        "    for _ in range(2):\n"
        "        try: run_in_processpool_sync(abs, -1)\n"
        "        except WorkerProcessError as exc: print(type(exc).__name__)\n"
        "if __name__ != '__main__': server_library.run()\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=50, check=True)

    warning, *errors = done.stdout.splitlines()
    assert "has been importing the main module for 0.1 s. If that runs a server" in warning
    assert "`if __name__ == '__main__':`" in warning
    assert errors == ["WorkerProcessError"] * 2
