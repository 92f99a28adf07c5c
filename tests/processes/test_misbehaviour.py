"""Worker processes and what functions do to them: after each mishap, the next ten calls give the right answers."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

import anyio
import anyio.to_process
import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, Gate, children, let_others_run, wait_until
from processes import exists, is_dead

from unfazed.concurrency import (
    CallTimeoutError,
    EventLoopThread,
    NotSendableError,
    RemoteError,
    RemoteTraceback,
    WorkerProcessError,
    WrongFunctionError,
    WrongOptionError,
    configure_processpool,
    in_processpool,
    run_in_eventloop_sync,
    run_in_processpool,
    run_in_processpool_sync,
    warm_up_processpool,
    warm_up_processpool_sync,
)
from unfazed.concurrency._core import _threadstart
from unfazed.concurrency._processes import _pool

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers elsewhere are silent")

PROGRAM_SECONDS = 60
LOGGER = "misbehaviour"
variable: ContextVar[str] = ContextVar("variable", default="unset")

Backend = tuple[str, dict[str, Any]]
TaskCall = "Callable[..., Any]"


@pytest.fixture(params=["async", "sync"])
def call(request: pytest.FixtureRequest, background: Backend) -> Callable[..., Any]:
    """Make calls on one and the same loop, from async and from sync code."""
    if request.param == "sync":
        return run_in_processpool_sync
    run_async: Any = run_in_eventloop_sync
    return partial(run_async, run_in_processpool)


@pytest.fixture
def configured() -> Iterator[None]:
    yield
    configure_processpool()


def assert_ten_calls_work(call: Callable[..., Any] = run_in_processpool_sync) -> None:
    assert [call(functions.echo, number) for number in range(10)] == [((number,), {}) for number in range(10)]


def in_time(call: Callable[..., Any], *args: Any) -> Any:
    """Make a call that may hang, in a thread of its own."""
    outcomes: list[Any] = []

    def make() -> None:
        try:
            outcomes.append((call(*args), None))
        except BaseException as exc:
            outcomes.append((None, exc))

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    thread.join(GRACE_SECONDS)
    assert outcomes, "the call hangs"
    value, error = outcomes.pop()
    if error is not None:
        raise error
    return value


class Output:
    """What has appeared on the parent's stderr so far."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._text = ""

    def text(self) -> str:
        self._text += self._capsys.readouterr().err
        return self._text

    def wait_for(self, *lines: str) -> None:
        wait_until(lambda: set(lines) <= set(self.text().splitlines()), f"of {lines} something does not appear")


@pytest.fixture
def output(capsys: pytest.CaptureFixture[str]) -> Output:
    return Output(capsys)


# What a function does to the streams


@pytest.mark.parametrize(
    "mishap",
    [
        misbehaving.run_echo,
        misbehaving.run_cat,
        misbehaving.read_stdin,
        misbehaving.write_megabyte,
        misbehaving.close_streams,
        misbehaving.lose_streams,
        misbehaving.put_bad_stream,
    ],
    ids=lambda mishap: mishap.__name__,
)
def test_streams_may_be_used_and_misused(call: Callable[..., Any], mishap: Callable[[], str]) -> None:
    pid = call(os.getpid)

    assert in_time(call, mishap) == "done"
    assert_ten_calls_work(call)
    assert call(os.getpid) == pid


def test_what_one_call_closes_is_there_for_the_next(call: Callable[..., Any], output: Output, tmp_path: Path) -> None:
    pid = call(os.getpid)
    call(misbehaving.close_output)

    call(misbehaving.open_and_print, tmp_path / "file")

    assert (tmp_path / "file").read_text() == "data"
    output.wait_for("printed", "to stderr")
    assert call(os.getpid) == pid


def test_characters_are_not_cut_in_two(background: Backend, output: Output) -> None:
    run_in_processpool_sync(misbehaving.print_euros, 100_000)

    output.wait_for("€" * 100_000)


def test_a_thread_left_behind_writes_as_much_as_it_likes(background: Backend, tmp_path: Path) -> None:
    told, ended = tmp_path / "told", tmp_path / "ended"
    run_in_processpool_sync(misbehaving.leave_thread_that_writes_megabyte, told, ended)

    told.touch()

    assert_ten_calls_work()
    wait_until(ended.exists, "the thread hangs")
    assert_ten_calls_work()


def test_output_of_all_kinds_appears_on_stderr(call: Callable[..., Any], output: Output) -> None:
    call(misbehaving.print_everywhere, "word")
    output.wait_for("word printed", "word to stderr", "word to 1", "word to 2")
    call(print)  # ends the line

    output.wait_for("word without an end")
    assert_ten_calls_work(call)


def test_output_of_two_workers_is_not_mixed(background: Backend, output: Output, tmp_path: Path) -> None:
    ready = {word: tmp_path / word for word in ("aaaaaaaa", "bbbbbbbb")}
    with ThreadPoolExecutor(2) as threads:
        list(
            threads.map(
                lambda word, other: run_in_processpool_sync(misbehaving.print_slowly, word, ready[word], ready[other]),
                ready,
                reversed(ready),
            )
        )

    wait_until(lambda: output.text().count("\n") == 200, "lines are lost")
    assert sorted(output.text().splitlines()) == ["aaaaaaaa"] * 100 + ["bbbbbbbb"] * 100


def test_output_can_be_switched_off(background: Backend, output: Output, configured: None) -> None:
    configure_processpool(output=False)
    run_in_processpool_sync(misbehaving.print_everywhere, "dropped")
    run_in_processpool_sync(print, "y" * 1000)
    wait_until(lambda: taken() > 1000, "the output is not read")
    configure_processpool()
    run_in_processpool_sync(misbehaving.print_everywhere, "shown")

    output.wait_for("shown printed")
    assert "dropped" not in output.text()


def taken() -> int:
    """Return how much of the output of workers has been dealt with."""
    return sum(worker.output.taken for worker in _pool.pool.workers if worker.output is not None)


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_wrong_settings_are_refused(wrong: Any) -> None:
    with pytest.raises(WrongOptionError, match="output"):
        configure_processpool(output=wrong)
    with pytest.raises(WrongOptionError, match="logs"):
        configure_processpool(logs=wrong)


class BadStream:
    """Fails in ways in which no file does."""

    def __init__(self) -> None:
        self.written = threading.Event()

    def write(self, text: str) -> None:
        self.written.set()
        raise LookupError(text)


def test_a_stderr_that_fails_is_harmless(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = BadStream()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        run_in_processpool_sync(print, "to be lost")
        assert stream.written.wait(GRACE_SECONDS)
        with pytest.raises(WorkerProcessError):
            in_time(run_in_processpool_sync, misbehaving.die, 3)

    assert_ten_calls_work()


@pytest.mark.parametrize("stream", [None, "closed"])
def test_a_stderr_that_is_gone_is_harmless(
    background: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stream: Any
) -> None:
    if stream == "closed":
        stream = (tmp_path / "closed").open("w")
        stream.close()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", stream)
        run_in_processpool_sync(print, "to be lost")
        with pytest.raises(WorkerProcessError):
            in_time(run_in_processpool_sync, misbehaving.die, 3)

    assert_ten_calls_work()


def test_a_worker_that_floods_the_output_holds_up_no_other_call(
    background: Backend, configured: None, tmp_path: Path
) -> None:
    configure_processpool(output=False)
    started, ended = tmp_path / "started", tmp_path / "ended"
    with ThreadPoolExecutor(1) as threads:
        flood = threads.submit(run_in_processpool_sync, misbehaving.flood_until, started, ended)
        wait_until(started.exists, "no worker starts")
        try:
            with pytest.raises(WorkerProcessError):
                run_in_processpool_sync(misbehaving.die, 3)
            assert not flood.done()
        finally:
            ended.touch()


# What a function raises or returns


def test_errors_that_do_not_pickle_come_back_as_text(call: Callable[..., Any]) -> None:
    for mishap, text in (
        (functions.fail_with_two_arguments, "TwoArgumentError: 1 and 2"),
        (functions.fail_with_local_class, "LocalError: of a class"),
    ):
        with pytest.raises(RemoteError, match=text) as caught:
            call(mishap)
        assert isinstance(caught.value.__cause__, RemoteTraceback)
        assert_ten_calls_work(call)


def test_tracebacks_have_their_notes_and_groups(call: Callable[..., Any]) -> None:
    with pytest.raises(ValueError, match="noted") as caught:
        call(misbehaving.fail_with_note)
    with pytest.raises(Exception, match="group") as group:
        call(functions.fail_in_group)

    assert caught.value.__notes__ == ["a note from the worker"]
    assert "in fail_with_note" in str(caught.value.__cause__)
    if sys.version_info >= (3, 11):
        assert "a note from the worker" in str(caught.value.__cause__)
        assert "KeyError: 2" in str(group.value.__cause__)
    assert_ten_calls_work(call)


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt("raised")], ids=repr)
def test_what_ends_programs_does_not_end_the_worker(call: Callable[..., Any], error: BaseException) -> None:
    pid = call(os.getpid)

    with pytest.raises(type(error)) as caught:
        call(functions.fail, error)

    assert caught.value.args == error.args
    assert_ten_calls_work(call)
    assert call(os.getpid) == pid


@pytest.mark.parametrize(
    "mishap",
    [misbehaving.return_what_ends_the_pickler, misbehaving.return_what_fails_without_text],
    ids=lambda mishap: mishap.__name__,
)
def test_results_that_fail_as_they_are_pickled_are_an_error(call: Callable[..., Any], mishap: Any) -> None:
    with pytest.raises(NotSendableError, match=mishap.__name__):
        call(mishap)
    assert_ten_calls_work(call)


# Workers that die


def assert_died(error: WorkerProcessError, name: str, status: str) -> None:
    """Fail unless it is told how a worker has ended."""
    assert error.name == name
    assert f"{name}()" in str(error)
    assert error.reason == f"ended {status} before it answered"


@pytest.mark.parametrize("code", [0, 255])
def test_an_exit_code_is_told(call: Callable[..., Any], background: Backend, code: int) -> None:
    with pytest.raises(WorkerProcessError) as caught:
        call(misbehaving.die, code)

    assert_died(caught.value, "die", f"with exit code {code}")
    assert_ten_calls_work(call)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV], ids=lambda number: number.name)
def test_a_signal_is_told(call: Callable[..., Any], background: Backend, number: signal.Signals) -> None:
    with pytest.raises(WorkerProcessError) as caught:
        call(misbehaving.kill_by, number)

    assert_died(caught.value, "kill_by", f"killed by {number.name}")
    assert_ten_calls_work(call)


def test_a_death_is_noticed_though_a_child_lives_on(
    call: Callable[..., Any], background: Backend, tmp_path: Path
) -> None:
    awaited = tmp_path / "awaited"
    try:
        with pytest.raises(WorkerProcessError) as caught:
            in_time(call, misbehaving.fork_and_die, awaited, 9)
        assert_died(caught.value, "fork_and_die", "with exit code 9")
        assert_ten_calls_work(call)
    finally:
        awaited.touch()


def test_an_idle_worker_that_dies_is_replaced_though_a_child_lives_on(
    call: Callable[..., Any], background: Backend, tmp_path: Path
) -> None:
    awaited = tmp_path / "awaited"
    try:
        call(misbehaving.fork, awaited)
        os.kill(call(os.getpid), signal.SIGKILL)

        assert in_time(call, functions.echo, 1) == ((1,), {})
        assert_ten_calls_work(call)
    finally:
        awaited.touch()


def test_a_call_at_once_after_an_idle_worker_was_killed_works(call: Callable[..., Any]) -> None:
    for _ in range(3):
        os.kill(call(os.getpid), signal.SIGKILL)
        assert in_time(call, functions.echo, 1) == ((1,), {})
    assert_ten_calls_work(call)


def test_in_one_task_a_call_at_once_after_an_idle_worker_was_killed_works(background: Backend, tmp_path: Path) -> None:
    """The loop has no time to see that the worker has died."""
    awaited = tmp_path / "awaited"

    async def main(with_child: bool) -> None:
        if with_child:
            await run_in_processpool(misbehaving.fork, awaited)
        os.kill(await run_in_processpool(os.getpid), signal.SIGKILL)
        with anyio.fail_after(GRACE_SECONDS):
            assert await run_in_processpool(functions.echo, 1) == ((1,), {})

    try:
        for with_child in (False, True):
            run_in_eventloop_sync(main, with_child)
        assert_ten_calls_work()
    finally:
        awaited.touch()


def test_the_death_of_one_of_two_idle_workers_is_noticed(background: Backend) -> None:
    async def pids() -> list[int]:
        found: list[int] = []

        async def ask() -> None:
            found.append(await run_in_processpool(os.getpid))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask)
            tasks.start_soon(ask)
        return found

    for victim in (0, 1):
        os.kill(run_in_eventloop_sync(pids)[victim], signal.SIGKILL)
        in_time(run_in_eventloop_sync, pids)
    assert_ten_calls_work()


def test_a_call_that_kills_one_of_two_workers_is_told(background: Backend, tmp_path: Path) -> None:
    awaited = tmp_path / "awaited"
    with ThreadPoolExecutor(1) as threads:
        other = threads.submit(run_in_processpool_sync, misbehaving.pid_after, tmp_path, awaited)
        wait_until(lambda: list(tmp_path.iterdir()), "no worker starts")
        try:
            for _ in range(2):
                with pytest.raises(WorkerProcessError) as caught:
                    in_time(run_in_processpool_sync, misbehaving.kill_by, signal.SIGKILL)
                assert_died(caught.value, "kill_by", "killed by SIGKILL")
        finally:
            awaited.touch()
        assert other.result(GRACE_SECONDS) != os.getpid()
    assert_ten_calls_work()


def test_a_forked_child_that_returns_answers_nothing(call: Callable[..., Any], tmp_path: Path) -> None:
    for _ in range(2):
        assert call(misbehaving.fork_and_return) > 0
        assert_ten_calls_work(call)


def test_a_call_that_ends_its_worker_runs_once(call: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(WorkerProcessError):
        call(misbehaving.note_then_die, tmp_path / "runs")
    assert (tmp_path / "runs").read_text() == "x"


@pytest.mark.parametrize("size", [10, 50_000_000])
def test_a_call_runs_once_though_its_worker_is_killed_as_it_answers(
    call: Callable[..., Any], tmp_path: Path, size: int
) -> None:
    with pytest.raises(WorkerProcessError) as caught:
        in_time(call, misbehaving.note_then_die_amid_the_answer, tmp_path / "runs", size)

    assert_died(caught.value, "note_then_die_amid_the_answer", "killed by SIGKILL")
    assert (tmp_path / "runs").read_text() == "x"
    assert_ten_calls_work(call)


def test_a_worker_that_dies_just_after_its_call_is_replaced(background: Backend, tmp_path: Path) -> None:
    pid = run_in_processpool_sync(os.getpid)
    run_in_processpool_sync(misbehaving.leave_thread_that_dies, tmp_path / "awaited")

    (tmp_path / "awaited").touch()
    wait_until(lambda: is_dead(pid), "it does not die")

    assert_ten_calls_work()


def test_many_deaths_leave_nothing_behind(background: Backend) -> None:
    def die() -> None:
        with pytest.raises(WorkerProcessError, match="before it answered"):
            run_in_processpool_sync(misbehaving.die, 3)

    die()
    run_in_processpool_sync(os.getpid)
    wait_until(lambda: len(children()) == 1, "the dead worker is left")
    before = misbehaving.descriptors()
    threads = threading.active_count()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(die) for _ in range(12)]:
            future.result()

    assert_ten_calls_work()
    wait_until(lambda: misbehaving.descriptors() <= before, "file descriptors are left")
    wait_until(lambda: len(children()) == 1, "processes are left")
    wait_until(lambda: threading.active_count() <= threads, "threads are left")


# Signals


def test_ctrl_c_in_an_idle_worker_does_nothing(call: Callable[..., Any]) -> None:
    pid = call(os.getpid)

    for _ in range(3):
        os.kill(pid, signal.SIGINT)
        assert_ten_calls_work(call)
    assert call(os.getpid) == pid


# Cancellation, and the end of loops


@pytest.mark.parametrize("options", [{}, {"kill_on_cancel": True}, {"timeout": 60}], ids=str)
def test_cancelled_as_its_worker_starts_a_call_leaves_no_process(background: Backend, options: dict[str, Any]) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_processpool(os.getpid, **options))
            await wait_for_children(1)
            tasks.cancel_scope.cancel()
        assert [await run_in_processpool(functions.echo, n) for n in range(10)] == [((n,), {}) for n in range(10)]
        assert len(children()) == 1

    backend, backend_options = background
    anyio.run(main, backend=backend, backend_options=backend_options)


async def wait_for_children(count: int) -> None:
    with anyio.fail_after(GRACE_SECONDS), anyio.CancelScope(shield=True):
        while len(children()) < count:
            await anyio.sleep(0.001)


@pytest.mark.parametrize("begun", [False, True])
def test_a_loop_that_ends_amid_a_call_leaves_nothing(background: Backend, begun: bool, tmp_path: Path) -> None:
    """`asyncio.run` cancels what still runs, and waits for that: for what has begun, as ever."""
    if background[0] == "trio":
        pytest.skip("tasks do not outlive the main task there")
    awaited = tmp_path / "awaited"

    async def main() -> None:
        task = asyncio.create_task(run_in_processpool(misbehaving.pid_after, tmp_path, awaited))
        with anyio.fail_after(GRACE_SECONDS):
            while begun and not list(tmp_path.iterdir()):
                await anyio.sleep(0.001)
            await let_others_run()
        if begun:
            asyncio.get_running_loop().call_later(0.05, awaited.touch)
        tasks.append(task)  # kept, or it would be collected

    tasks: list[asyncio.Task[int]] = []
    anyio.run(main, backend=background[0], backend_options=background[1])
    tasks.clear()
    assert_ten_calls_work()
    assert len(children()) == 1
    assert begun == bool(list(tmp_path.glob("[0-9]*")))


def test_loops_share_the_workers_and_get_the_answers_to_their_own_calls(background: Backend) -> None:
    backend, options = background
    pid = run_in_processpool_sync(os.getpid)
    with (
        EventLoopThread(backend=backend, backend_options=options) as one,
        EventLoopThread(backend=backend, backend_options=options) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        for loop in (one, other):
            run_sync: Any = loop.run_sync
            assert run_sync(run_in_processpool, os.getpid) == pid
        for number in range(20):
            calls = [
                threads.submit(cast("Any", loop.run_sync), run_in_processpool, functions.echo, (name, number))
                for loop, name in ((one, "one"), (other, "other"))
            ]
            assert [each.result(GRACE_SECONDS) for each in calls] == [
                (((name, number),), {}) for name in ("one", "other")
            ]


def test_loops_that_have_ended_leave_nothing(background: Backend) -> None:
    """No loop, thread or descriptor; the workers stay."""
    loops: list[weakref.ref[Any]] = []

    async def main() -> int:
        if background[0] == "asyncio":
            loops.append(weakref.ref(asyncio.get_running_loop()))
        return await run_in_processpool(os.getpid)

    def run() -> int:
        return anyio.run(main, backend=background[0], backend_options=background[1])

    pid = run()
    before = misbehaving.descriptors(), threading.active_count()
    pids = {run() for _ in range(30)}
    gc.collect()

    assert pids == {pid}
    assert (misbehaving.descriptors(), threading.active_count()) <= before
    assert not [loop for loop in loops if loop() is not None]


def test_where_no_process_can_be_started_calls_fail(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", fail)
        with pytest.raises(WorkerProcessError, match=r"getpid\(\) could not start .*too many open files"):
            in_time(run_in_processpool_sync, os.getpid)
        with pytest.raises(WorkerProcessError, match=r"could not start .*too many open files"):
            in_time(warm_up_processpool_sync, 2)

    assert_ten_calls_work()


def test_where_no_thread_can_be_started_calls_fail(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> NoReturn:
        raise RuntimeError("can't start new thread")

    run_in_eventloop_sync(anyio.sleep, 0)
    with monkeypatch.context() as patch:
        patch.setattr(_threadstart, "start_thread", fail)
        with pytest.raises(WorkerProcessError, match=r"getpid\(\) could not start .*can't start new thread"):
            in_time(run_in_processpool_sync, os.getpid)
        with pytest.raises(WorkerProcessError, match=r"could not start .*can't start new thread"):
            in_time(warm_up_processpool_sync, 2)

    assert_ten_calls_work()


def test_a_lack_of_file_descriptors_passes(background: Backend) -> None:
    """While there are none, no worker starts; those that are there work."""
    run_in_processpool_sync(os.getpid)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (misbehaving.descriptors() + 64, hard))
    spare: list[int] = []
    try:
        with suppress(OSError):  # too many open files
            while True:
                spare.append(os.dup(0))
        assert in_time(run_in_processpool_sync, functions.echo, 1) == ((1,), {})
        with pytest.raises(WorkerProcessError, match="could not start"):
            in_time(warm_up_processpool_sync, 2)
    finally:
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert_ten_calls_work()


# Log records


class Keeper(logging.Handler):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.seen: list[str] = []  # of the context variable
        self.on_record: Callable[[logging.LogRecord], object] = bool

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(variable.get())
        self.records.append(record)
        self.on_record(record)

    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def kept() -> Iterator[Keeper]:
    keeper = Keeper()
    logger = logging.getLogger(LOGGER)
    logger.addHandler(keeper)
    logger.setLevel(logging.INFO)
    yield keeper
    logger.removeHandler(keeper)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    logger.disabled = False
    logger.filters.clear()
    logging.disable(logging.NOTSET)


EVERY_LEVEL = tuple((level, logging.getLevelName(level)) for level in (10, 20, 30, 40))


def test_records_are_there_once_and_in_order_when_the_call_returns(call: Callable[..., Any], kept: Keeper) -> None:
    for _ in range(3):
        kept.records.clear()
        call(misbehaving.log_many, LOGGER, 200)
        assert kept.messages() == [str(number) for number in range(200)]
    assert_ten_calls_work(call)


def test_records_say_where_they_come_from(background: Backend, kept: Keeper) -> None:
    pid = run_in_processpool_sync(misbehaving.log, LOGGER, (30, "a %s"), extra={"color": "red"})

    (record,) = kept.records
    assert (record.process, record.processName) == (pid, f"unfazed-worker-{pid}")
    assert record.color == "red"  # type: ignore[attr-defined]
    assert record.levelname == "WARNING"
    assert record.funcName == "log"


def test_the_levels_are_those_of_the_parent_at_the_time_of_the_call(background: Backend, kept: Keeper) -> None:
    logger = logging.getLogger(LOGGER)
    got: list[list[str]] = []

    def log(name: str = LOGGER) -> None:
        kept.records.clear()
        run_in_processpool_sync(misbehaving.log, name, *EVERY_LEVEL)
        got.append(kept.messages())

    log()
    logger.setLevel(logging.DEBUG)
    log()
    log(f"{LOGGER}.child")
    logging.getLogger(f"{LOGGER}.child").setLevel(logging.ERROR)
    log(f"{LOGGER}.child")
    logging.getLogger(f"{LOGGER}.child").setLevel(logging.NOTSET)
    log(f"{LOGGER}.child")
    logging.disable(logging.WARNING)
    log()
    logging.disable(logging.NOTSET)
    logger.setLevel(logging.NOTSET)  # the root's
    log()

    names = [name for _, name in EVERY_LEVEL]
    root = [name for level, name in EVERY_LEVEL if level >= logging.root.level]
    assert got == [names[1:], names, names, names[3:], names, names[3:], root]


def test_loggers_that_take_nothing_get_nothing(background: Backend, kept: Keeper) -> None:
    logger = logging.getLogger(LOGGER)
    child = logging.getLogger(f"{LOGGER}.child")

    child.propagate = False
    run_in_processpool_sync(misbehaving.log, child.name, *EVERY_LEVEL)
    child.propagate = True
    child.disabled = True
    run_in_processpool_sync(misbehaving.log, child.name, *EVERY_LEVEL)
    child.disabled = False
    assert kept.messages() == []

    logger.addFilter(lambda record: record.levelno == logging.WARNING)
    run_in_processpool_sync(misbehaving.log, LOGGER, *EVERY_LEVEL)
    assert kept.messages() == ["WARNING"]


def test_a_logged_traceback_arrives(background: Backend, kept: Keeper) -> None:
    run_in_processpool_sync(misbehaving.log_error, LOGGER)

    (record,) = kept.records
    text = logging.Formatter().format(record)
    assert text.startswith("with its traceback\nTraceback")
    assert "ValueError: logged" in text


def test_records_of_a_call_that_crashes_arrive(call: Callable[..., Any], kept: Keeper) -> None:
    with pytest.raises(WorkerProcessError):
        call(misbehaving.log_and_die, LOGGER)

    assert kept.messages() == ["0", "1", "2"]
    assert_ten_calls_work(call)


def test_records_are_handled_before_the_call_returns_though_its_worker_ends(background: Backend, kept: Keeper) -> None:
    gate = Gate()
    kept.on_record = lambda record: gate.wait() if record.getMessage() == "0" else None
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(in_processpool(misbehaving.log_many, max_calls=1).sync, LOGGER, 100)
        assert gate.reached.wait(GRACE_SECONDS)
        try:
            assert not future.done()
        finally:
            gate.opened.set()
        future.result(GRACE_SECONDS)

    assert kept.messages() == [str(number) for number in range(100)]
    assert_ten_calls_work()


def test_a_timeout_ends_the_wait_for_handlers(background: Backend, kept: Keeper) -> None:
    gate = Gate()
    kept.on_record = lambda record: gate.wait()
    try:
        with pytest.raises(TimeoutError):
            in_time(in_processpool(misbehaving.log_many, timeout=0.5).sync, LOGGER, 1)
    finally:
        gate.opened.set()

    assert_ten_calls_work()


def test_records_with_bad_texts_arrive_and_harm_nobody(background: Backend, kept: Keeper) -> None:
    run_in_processpool_sync(misbehaving.log_bad_texts, LOGGER)

    assert kept.messages() == ["<BadTextError> ()", "bad syntax"]
    assert "SyntaxError" in str(kept.records[1].exc_text)  # on some Pythons that is all that can be said


def test_the_terminal_is_not_configured_twice(background: Backend, kept: Keeper, output: Output) -> None:
    run_in_processpool_sync(misbehaving.configure_logging_and_log, LOGGER)
    run_in_processpool_sync(misbehaving.print_everywhere, "last")

    output.wait_for("last printed")
    assert kept.messages() == ["once"]
    assert "doubled" not in output.text()


def test_records_of_a_thread_left_behind_arrive(background: Backend, kept: Keeper, tmp_path: Path) -> None:
    run_in_processpool_sync(misbehaving.log_from_thread_left_behind, LOGGER, tmp_path / "awaited")
    (tmp_path / "awaited").touch()

    wait_until(lambda: kept.messages() == ["left behind"], "the record does not arrive")
    assert_ten_calls_work()


def test_records_that_are_wrong_or_do_not_pickle_arrive_all_the_same(background: Backend, kept: Keeper) -> None:
    in_time(run_in_processpool_sync, misbehaving.log_wrong_format, LOGGER)
    in_time(run_in_processpool_sync, misbehaving.log_what_does_not_pickle, LOGGER)

    assert kept.messages() == ["%d ('no number',)", "with extra"]
    assert "lambda" in kept.records[1].here  # type: ignore[attr-defined]
    assert_ten_calls_work()


def test_records_of_the_functions_of_the_module_are_handled_once(
    background: Backend, kept: Keeper, output: Output
) -> None:
    """`logging.warning` adds a handler where there is none."""
    kept.addFilter(lambda record: record.name == "root")  # and not asyncio, which tells of what takes long
    logging.getLogger().addHandler(kept)
    try:
        run_in_processpool_sync(logging.warning, "of the root")
    finally:
        logging.getLogger().removeHandler(kept)
    run_in_processpool_sync(print, "printed")
    output.wait_for("printed")

    assert kept.messages() == ["of the root"]
    assert "of the root" not in output.text()


def test_a_file_handler_of_the_function_works(background: Backend, kept: Keeper, tmp_path: Path) -> None:
    run_in_processpool_sync(misbehaving.log_to_file, LOGGER, str(tmp_path / "log"))

    assert (tmp_path / "log").read_text() == "to a file\n"
    assert kept.messages() == ["to a file"]


def test_handlers_see_the_context_of_the_caller(call: Callable[..., Any], kept: Keeper) -> None:
    token = variable.set("the caller's")
    try:
        call(misbehaving.log, LOGGER, (30, "x"))
    finally:
        variable.reset(token)
    call(misbehaving.log, LOGGER, (30, "x"))

    assert kept.seen == ["the caller's", "unset"]


def test_records_can_be_switched_off(background: Backend, kept: Keeper, configured: None) -> None:
    configure_processpool(logs=False)
    run_in_processpool_sync(misbehaving.log, LOGGER, (30, "dropped"))
    configure_processpool()
    run_in_processpool_sync(misbehaving.log, LOGGER, (30, "kept"))

    assert kept.messages() == ["kept"]


def test_a_level_that_was_disabled_is_enabled_when_records_are_switched_off(
    background: Backend, output: Output, kept: Keeper, configured: None
) -> None:
    logging.disable(logging.CRITICAL)
    run_in_processpool_sync(misbehaving.log, LOGGER, (30, "disabled"))
    logging.disable(logging.NOTSET)
    configure_processpool(logs=False)
    run_in_processpool_sync(misbehaving.log, LOGGER, (30, "the worker's own"))

    output.wait_for("the worker's own")


@pytest.mark.parametrize("error", [ValueError("h"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_handler_that_raises_is_harmless(
    background: Backend, kept: Keeper, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(record: logging.LogRecord) -> None:
        raise error

    told: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: told.append(args[1]))
    kept.on_record = fail

    in_time(run_in_processpool_sync, misbehaving.log_many, LOGGER, 3)
    kept.on_record = bool

    assert told == [error] * 3
    assert_ten_calls_work()


def test_a_handler_that_logs_itself_is_harmless(background: Backend, kept: Keeper) -> None:
    def log_again(record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            logging.getLogger(LOGGER).error("again")

    kept.on_record = log_again
    in_time(run_in_processpool_sync, misbehaving.log, LOGGER, (30, "once"))

    # Python 3.13.4 and 3.13.5 drop the second one: https://github.com/python/cpython/issues/91555
    assert kept.messages() == ["once"] + ["again"] * (not hasattr(logging.Logger, "_is_disabled"))


@pytest.mark.parametrize("nested", ["echo", "log", "die", "write"])
def test_a_handler_may_make_calls(background: Backend, kept: Keeper, nested: str) -> None:
    made: list[object] = []
    what: dict[str, tuple[Any, ...]] = {
        "echo": (functions.echo, 1),
        "log": (misbehaving.log, LOGGER, (30, "inner")),
        "die": (misbehaving.die, 1),
        "write": (misbehaving.write_megabyte,),
    }

    def make_call(record: logging.LogRecord) -> None:
        if record.getMessage() == "outer":
            try:
                made.append(run_in_processpool_sync(*what[nested]))
            except Exception as exc:
                made.append(exc)

    kept.on_record = make_call
    in_time(run_in_processpool_sync, misbehaving.log, LOGGER, (30, "outer"))

    assert len(made) == 1
    assert isinstance(made[0], WorkerProcessError) == (nested == "die")
    assert_ten_calls_work()


def test_a_handler_that_blocks_holds_up_calls_that_log_alone(background: Backend, kept: Keeper) -> None:
    may_end = threading.Event()
    reached = threading.Event()

    def block(record: logging.LogRecord) -> None:
        reached.set()
        assert may_end.wait(GRACE_SECONDS)

    kept.on_record = block
    with ThreadPoolExecutor(1) as threads:
        logging_call = threads.submit(run_in_processpool_sync, misbehaving.log, LOGGER, (30, "blocks"))
        assert reached.wait(GRACE_SECONDS)
        try:
            assert_ten_calls_work()
            assert not logging_call.done()
        finally:
            may_end.set()
        logging_call.result(GRACE_SECONDS)


def test_a_forked_child_that_logs_mixes_up_no_records(background: Backend, kept: Keeper) -> None:
    in_time(run_in_processpool_sync, misbehaving.log_from_fork, LOGGER, 20)

    assert [message.split()[0] for message in kept.messages()] == [str(number) for number in range(20)]
    assert_ten_calls_work()


def test_logging_is_imported_by_no_worker_that_does_not_need_it(background: Backend, tmp_path: Path) -> None:
    out, err = run_program(
        tmp_path,
        """
import sys
import silent

if __name__ == "__main__":
    import logging
    from unfazed.concurrency import configure_background_eventloop, run_in_processpool_sync
    logging.basicConfig(format="%(message)s from %(processName).14s", stream=sys.stdout)
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    print(run_in_processpool_sync(silent.is_logging_imported))
    run_in_processpool_sync(silent.log)
""",
        background,
        silent="""
import sys
def is_logging_imported():
    return "logging" in sys.modules
def log():
    import logging
    logging.warning("imported late")
""",
    )

    assert (out, err) == ("False\nimported late from unfazed-worker\n", "")


# Warming up


def test_warm_workers_are_distinct_and_used_by_later_calls(background: Backend, tmp_path: Path) -> None:
    warm_up_processpool_sync(3)
    workers = children()
    warm_up_processpool_sync(3)
    run_in_eventloop_sync(warm_up_processpool, 2)

    assert len(workers) == 3
    assert children() == workers
    with ThreadPoolExecutor(2) as threads:
        calls = [
            threads.submit(run_in_processpool_sync, misbehaving.pid_after, tmp_path, tmp_path / "go") for _ in "ab"
        ]
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "the workers are not used")
        (tmp_path / "go").touch()
        used = {each.result(GRACE_SECONDS) for each in calls}
    assert len(used) == 2
    assert used < workers
    assert_ten_calls_work()


@pytest.mark.parametrize("count", [-1, 1.5, True, "2", None])
def test_wrong_counts_are_refused(count: Any, background: Backend) -> None:
    with pytest.raises(WrongOptionError, match="count"):
        warm_up_processpool_sync(count)
    with pytest.raises(WrongOptionError, match="count"):
        run_in_eventloop_sync(warm_up_processpool, count)


def test_no_workers_are_not_started(background: Backend) -> None:
    warm_up_processpool_sync(0)

    assert children() == set()


def test_warming_up_cancelled_waits_for_the_workers(background: Backend) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(warm_up_processpool, 2)
            await wait_for_children(1)
            tasks.cancel_scope.cancel()
        assert len(children()) == 2

    anyio.run(main, backend=background[0], backend_options=background[1])
    assert_ten_calls_work()
    assert len(children()) == 2


# Workers that are replaced


def test_a_worker_is_replaced_after_so_many_calls(background: Backend) -> None:
    two = in_processpool(os.getpid, max_calls=2)

    pids = [two.sync() for _ in range(6)]

    assert pids[0::2] == pids[1::2]
    assert len(set(pids)) == 3
    assert_ten_calls_work()
    wait_until(lambda: len(children()) == 1, "a retired worker is left")


def test_workers_are_replaced_by_calls_in_parallel(background: Backend) -> None:
    once = in_processpool(misbehaving.log, max_calls=1)
    with ThreadPoolExecutor(3) as threads:
        pids = [each.result() for each in [threads.submit(once.sync, LOGGER, (40, "x")) for _ in range(9)]]

    assert len(set(pids)) == 9
    assert_ten_calls_work()


def test_replacing_goes_with_crashes_timeouts_and_cancellation(background: Backend, tmp_path: Path) -> None:
    options: dict[str, Any] = {"max_calls": 2, "kill_on_cancel": True, "timeout": 60}
    once = in_processpool(misbehaving.apply, **options)
    assert once.sync(functions.echo, 1) == ((1,), {})
    with pytest.raises(WorkerProcessError):
        once.sync(misbehaving.die, 1)
    with pytest.raises(SystemExit):
        once.sync(sys.exit, 1)
    with pytest.raises(CallTimeoutError):
        in_processpool(misbehaving.apply, max_calls=1, timeout=0.3).sync(misbehaving.wait_for, tmp_path / "never")

    async def cancel() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(once, misbehaving.pid_after, tmp_path, tmp_path / "never")
            while not list(tmp_path.iterdir()):
                await anyio.sleep(0.001)
            tasks.cancel_scope.cancel()

    run_in_eventloop_sync(cancel)
    assert [once.sync(functions.echo, number) for number in range(4)] == [((number,), {}) for number in range(4)]
    assert_ten_calls_work()


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, "2"])
def test_wrong_numbers_of_calls_are_refused(wrong: Any) -> None:
    with pytest.raises(WrongOptionError, match="max_calls"):
        in_processpool(os.getpid, max_calls=wrong)


# Initializers


def test_an_initializer_runs_once_in_each_worker(background: Backend, tmp_path: Path) -> None:
    initialized = in_processpool(misbehaving.apply, initializer=partial(misbehaving.initialize, tmp_path))

    with ThreadPoolExecutor(2) as threads:
        for each in [threads.submit(initialized.sync, misbehaving.times_initialized) for _ in range(6)]:
            assert each.result() == 1

    workers = {str(child) for child in children()}
    assert {path.name for path in tmp_path.iterdir()} <= {f"{pid} 1" for pid in workers}
    assert_ten_calls_work()


def test_an_initializer_is_the_same_whatever_becomes_of_its_arguments(background: Backend, tmp_path: Path) -> None:
    settings = [1]
    initializer = partial(misbehaving.initialize_with, tmp_path, settings)
    initialized = in_processpool(misbehaving.times_initialized, initializer=initializer)

    assert initialized.sync() == 1
    settings.append(2)
    assert initialized.sync() == 1


def test_an_initializer_may_be_any_object(background: Backend, tmp_path: Path) -> None:
    initialized = in_processpool(misbehaving.times_initialized, initializer=misbehaving.Initializer(tmp_path))

    assert [initialized.sync(), initialized.sync()] == [1, 1]


def test_an_initializer_that_raises_is_tried_again(background: Backend, tmp_path: Path) -> None:
    fails = tmp_path / "fails"
    initialized = in_processpool(
        misbehaving.times_initialized,
        initializer=partial(misbehaving.initialize_unless, fails),
        timeout=60,
        kill_on_cancel=True,
    )

    fails.touch()
    for _ in range(2):
        with pytest.raises(LookupError, match="cannot initialize") as caught:
            initialized.sync()
        assert "in initialize_unless" in str(caught.value.__cause__)
    fails.unlink()

    assert [initialized.sync() for _ in range(3)] == [1, 1, 1]
    assert_ten_calls_work()


def test_an_initializer_that_hangs_is_killed_in_time(background: Backend, tmp_path: Path) -> None:
    hangs = in_processpool(os.getpid, initializer=partial(misbehaving.wait_for, tmp_path / "never"), timeout=0.3)

    with pytest.raises(CallTimeoutError):
        in_time(hangs.sync)
    assert_ten_calls_work()


def test_wrong_initializers_are_refused_at_once() -> None:
    with pytest.raises(NotSendableError, match="initializer"):
        in_processpool(os.getpid, initializer=lambda: None)
    with pytest.raises(WrongFunctionError, match="initializer"):
        in_processpool(os.getpid, initializer=functions.async_function)
    with pytest.raises(WrongFunctionError, match="initializer"):
        in_processpool(os.getpid, initializer=3)  # type: ignore[call-overload]


# Programs


def run_program(folder: Path, source: str, background: Backend, how: str = "script", **modules: str) -> tuple[str, str]:
    """Run a program, given in several ways, and return its output."""
    source = source.replace("BACKEND", repr(background[0])).replace("OPTIONS", repr(background[1]))
    for name, text in modules.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "program.py").write_text(source)
    package = folder / "package"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(source)
    (package / "sibling.py").write_text("def triple(number):\n    print('in the worker')\n    return 3 * number\n")
    ways = {
        "script": ["program.py"],
        "-c": ["-c", source],
        "stdin": ["-"],
        "package": ["-m", "package"],
    }
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(folder), *sys.path]))
    done = subprocess.run(
        [sys.executable, "-W", "ignore::DeprecationWarning", *ways[how]],
        cwd=folder,
        env=environment,
        input=source if how == "stdin" else "",
        capture_output=True,
        text=True,
        timeout=PROGRAM_SECONDS,
        check=False,
    )
    return done.stdout, done.stderr


USES_A_MODULE = """
{imports}
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    try:
        print([run_in_processpool_sync(triple, number) for number in range(10)])
    except WorkerProcessError as exc:
        print("error:", exc)
"""


@pytest.mark.parametrize("how", ["script", "-c", "stdin", "package"])
def test_programs_of_all_kinds_use_workers(tmp_path: Path, background: Backend, how: str) -> None:
    out, err = run_program(
        tmp_path, USES_A_MODULE.format(imports="from package.sibling import triple"), background, how
    )

    assert out == f"{[3 * number for number in range(10)]}\n"
    assert err == "in the worker\n" * 10


def test_a_script_without_a_guard_is_told_what_to_write(tmp_path: Path, background: Backend) -> None:
    out, _ = run_program(
        tmp_path,
        """
from unfazed.concurrency import *
try:
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    print(run_in_processpool_sync(int))
except WorkerProcessError as exc:
    print("error:", exc)
    raise
""",
        background,
    )

    assert out.startswith("error: ")
    assert "`if __name__ == '__main__':`" in out


def test_a_timeout_ends_a_call_to_a_worker_that_has_been_stopped(
    background: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid = run_in_processpool_sync(os.getpid)
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(TimeoutError):
        in_time(in_processpool(os.getpid, timeout=0.05).sync)

    assert_ten_calls_work()
    wait_until(lambda: not exists(pid), "the worker is left")


def test_workers_that_end_before_they_are_ready_are_an_error(tmp_path: Path, background: Backend) -> None:
    out, _ = run_program(
        tmp_path,
        """
import multiprocessing, shutil, sys
from functools import partial
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    multiprocessing.set_executable(shutil.which("true"))
    for call in (partial(run_in_processpool_sync, abs, -1), partial(warm_up_processpool_sync, 2)):
        try:
            print(call())
        except WorkerProcessError as exc:
            print("error:", exc)
    multiprocessing.set_executable(sys.executable)
    print(run_in_processpool_sync(abs, -1))
""",
        background,
    )

    *errors, value = out.splitlines()
    assert len(errors) == 2
    assert all("true' ended with exit code 0 before it was ready" in each for each in errors)
    assert value == "1"


def test_a_main_module_that_cannot_be_imported_is_told_from_one_without_a_guard(
    tmp_path: Path, background: Backend
) -> None:
    out, _ = run_program(
        tmp_path,
        """
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    try:
        run_in_processpool_sync(abs, -1)
    except WorkerProcessError as exc:
        print(exc)
else:
    raise ValueError("no configuration")
""",
        background,
    )

    assert "could not import the main module (ValueError: no configuration)" in out
    assert "guard" not in out
    assert "__name__" not in out


def test_classes_of_the_main_module_come_back_and_so_do_its_errors(tmp_path: Path, background: Backend) -> None:
    out, err = run_program(
        tmp_path,
        """
from unfazed.concurrency import *

class OwnError(Exception):
    pass

class Point:
    def __init__(self, x):
        self.x = x

def make(point):
    return Point(point.x + 1)

def fail():
    raise OwnError("own")

if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    for number in range(10):
        point = run_in_processpool_sync(make, Point(number))
        assert type(point) is Point and point.x == number + 1
        try:
            run_in_processpool_sync(fail)
        except OwnError as exc:
            assert str(exc) == "own"
    print("done")
""",
        background,
    )

    assert (out, err) == ("done\n", "")


HANDLERS = """
import logging, sys
{here}
import tasks
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    for number in range(3):
        run_in_processpool_sync(tasks.log, number)
"""


@pytest.mark.parametrize("place", ["main", "other"])
def test_handlers_made_on_import_do_not_handle_twice(tmp_path: Path, background: Backend, place: str) -> None:
    make = (
        "import logging\n"
        "handler = logging.FileHandler('log.txt')\n"
        "logging.getLogger('tasks').addHandler(handler)\n"
        "logging.getLogger('tasks').setLevel(logging.INFO)\n"
    )
    log = "import logging\ndef log(number):\n    logging.getLogger('tasks').info('record %d', number)\n"
    run_program(
        tmp_path,
        HANDLERS.format(here=make if place == "main" else ""),
        background,
        tasks=log if place == "main" else make + log,
    )

    assert (tmp_path / "log.txt").read_text() == "record 0\nrecord 1\nrecord 2\n"


def test_the_last_output_is_not_lost_at_the_end_of_the_program(tmp_path: Path, background: Backend) -> None:
    _, err = run_program(
        tmp_path,
        """
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    run_in_processpool_sync(print, "x" * 60000, end="")
    run_in_processpool_sync(print, "the end", end="")
""",
        background,
    )

    assert err == "x" * 60000 + "the end\n"


def test_a_forked_child_uses_the_pool_and_so_does_its_parent(tmp_path: Path, background: Backend) -> None:
    out, err = run_program(
        tmp_path,
        """
import os, signal, sys
from unfazed.concurrency import *

def ten_calls():
    return [run_in_processpool_sync(abs, -number) for number in range(10)] == list(range(10))

if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    assert ten_calls()
    workers = {run_in_processpool_sync(os.getpid)}
    pid = os.fork()
    if not pid:
        fine = ten_calls() and run_in_processpool_sync(os.getpid) not in workers
        try:
            run_in_processpool_sync(signal.raise_signal, signal.SIGKILL)
        except WorkerProcessError:
            fine = fine and ten_calls()
        sys.exit(7 if fine else 1)
    assert ten_calls()
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert ten_calls()
    assert run_in_processpool_sync(os.getpid) in workers
    print(code)
""",
        background,
    )

    assert (out, err) == ("7\n", "")


def test_a_program_that_is_killed_leaves_no_worker(tmp_path: Path, background: Backend) -> None:
    out, _ = run_program(
        tmp_path,
        """
import os, signal
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    print(run_in_processpool_sync(os.getpid), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
""",
        background,
    )

    wait_until(lambda: not exists(int(out)), "the worker lives on")
