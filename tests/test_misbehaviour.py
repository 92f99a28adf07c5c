"""Worker processes and what functions do to them: after each mishap, the next ten calls give the right answers."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, cast

import anyio
import anyio.to_process
import misbehaving_functions as misbehaving
import process_functions as functions
import psutil
import pytest
from conftest import GRACE_SECONDS, Gate, children, is_dead, let_others_run, wait_until

from unfazed._worker import payloads
from unfazed.concurrency import (
    CallTimeoutError,
    EventLoopThread,
    NotSendableError,
    RemoteError,
    RemoteTraceback,
    WorkerProcessError,
    WrongFunctionError,
    WrongOptionError,
    _processpool,
    _relay,
    configure_processpool,
    in_processpool,
    run_in_eventloop_sync,
    run_in_processpool,
    run_in_processpool_sync,
    warm_up_processpool,
    warm_up_processpool_sync,
)
from unfazed.concurrency._loops import current_loop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers elsewhere are silent")

PROGRAM_SECONDS = 60
LOGGER = "misbehaviour"
variable: ContextVar[str] = ContextVar("variable", default="unset")

Backend = tuple[str, dict[str, Any]]
Call = "Callable[..., Any]"


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


def test_what_one_call_closes_is_there_for_the_next(
    call: Callable[..., Any], output: Output, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
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
    run_in_processpool_sync(print)
    wait_until_relay_idle()
    configure_processpool()
    run_in_processpool_sync(misbehaving.print_everywhere, "shown")

    output.wait_for("shown printed")
    assert "dropped" not in output.text()


def wait_until_relay_idle() -> None:
    async def settled() -> None:
        relay = _relay.current()
        assert relay is not None
        await relay.settled(current_loop(), hears=True)

    run_in_eventloop_sync(settled)


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
    """Fail unless it is told how a worker has ended, or that this is unknown: the loop may have read it first."""
    assert error.name == name
    assert f"{name}()" in str(error)
    assert error.reason in (f"ended {status} before it answered", "ended for an unknown reason before it answered")


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


def test_a_call_runs_once_though_its_worker_is_killed_as_it_answers(
    background: Backend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(payloads, "borrow", lambda: None)  # so that the answer has to go through the pipe
    runs = tmp_path / "runs"

    async def main() -> None:
        pid = await run_in_processpool(os.getpid)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(expect_death)
            while not runs.exists():
                await anyio.sleep(0.001)
            # The loop reads nothing from here on, so the worker comes to a halt amid its answer.
            wait_until(lambda: "pipe" in wchan(pid) or "sock" in wchan(pid), "the worker does not answer")
            os.kill(pid, signal.SIGKILL)

    async def expect_death() -> None:
        with pytest.raises(WorkerProcessError):
            await run_in_processpool(misbehaving.note_then_return, runs, 50_000_000)

    run_in_eventloop_sync(main)

    assert runs.read_text() == "x"
    assert_ten_calls_work()


def wchan(pid: int) -> str:
    """Say what the main thread of a process waits for."""
    try:
        text = Path(f"/proc/{pid}/task/{pid}/wchan").read_text()
        if text not in ("", "0"):
            return text
        syscall = Path(f"/proc/{pid}/task/{pid}/syscall").read_text()
        return "pipe" if syscall.startswith("1 ") else ""  # write, on x86
    except OSError:
        return ""


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
    wait_until_relay_idle()
    before = misbehaving.descriptors()
    threads = threading.active_count()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(die) for _ in range(12)]:
            future.result()

    assert_ten_calls_work()
    wait_until(lambda: misbehaving.descriptors() <= before, "file descriptors are left")
    wait_until(lambda: len(children()) == 1, "processes are left")
    wait_until(
        lambda: threading.active_count() <= threads + 2, "threads are left"
    )  # of asyncio, which wait for a child


# Signals


def test_ctrl_c_in_an_idle_worker_does_nothing(call: Callable[..., Any]) -> None:
    pid = call(os.getpid)

    for _ in range(3):
        os.kill(pid, signal.SIGINT)
        assert_ten_calls_work(call)
    assert call(os.getpid) == pid


def test_ctrl_c_in_an_idle_worker_of_plain_anyio_mixes_up_no_answers(call: Callable[..., Any]) -> None:
    async def plain() -> int:
        return await anyio.to_process.run_sync(os.getpid)

    os.kill(run_in_eventloop_sync(plain), signal.SIGINT)

    assert_ten_calls_work(call)


def test_an_answer_that_was_left_over_is_nobodys(call: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """1: a worker answers though nothing was asked. 2: from then on each question gets the answer to the one before."""
    pid = call(os.getpid)
    ask = _processpool._ask
    answers: list[object] = [KeyboardInterrupt()]

    async def ask_one_behind(func: Callable[..., object], *args: object) -> object:
        answers.append(await ask(func, *args))
        return answers.pop(0)

    with monkeypatch.context() as patch:
        patch.setattr(_processpool, "_ask", ask_one_behind)
        assert call(functions.echo, 1) == ((1,), {})

    assert call(os.getpid) != pid, "a worker that is out of step must not be used again"
    assert_ten_calls_work(call)


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


@pytest.mark.parametrize(
    "settled",
    [
        pytest.param(False, marks=pytest.mark.xfail(run=False, reason="anyio leaves what is starting behind")),
        True,
    ],
)
def test_a_loop_that_ends_amid_a_call_leaves_no_process(background: Backend, settled: bool, tmp_path: Path) -> None:
    """`asyncio.run` cancels what still runs, and waits for that."""
    if background[0] == "trio":
        pytest.skip("tasks do not outlive the main task there")
    awaited = tmp_path / "awaited"

    async def main() -> None:
        task = asyncio.create_task(run_in_processpool(misbehaving.pid_after, tmp_path, awaited))
        # Not while asyncio opens the pipes of a process: cancelled then, it waits for ever (3.11).
        with anyio.fail_after(GRACE_SECONDS):
            while not (found := children()) or "anyio.to_process" not in found[0].cmdline():
                await anyio.sleep(0.001)
            await let_others_run()
            while settled and not list(tmp_path.iterdir()):
                await anyio.sleep(0.001)
        tasks.append(task)  # kept, or it would be collected

    tasks: list[asyncio.Task[int]] = []
    anyio.run(main, backend=background[0], backend_options=background[1])
    tasks.clear()

    wait_until(lambda: not children(), "a process is left")
    awaited.touch()


def test_two_loops_at_once_have_workers_of_their_own(background: Backend) -> None:
    backend, options = background
    with (
        EventLoopThread(backend=backend, backend_options=options) as one,
        EventLoopThread(backend=backend, backend_options=options) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        for _ in range(3):
            first: Any = threads.submit(
                cast("Any", one.run_sync), run_in_processpool, misbehaving.log, LOGGER, (logging.ERROR, "one")
            )
            second: Any = threads.submit(
                cast("Any", other.run_sync), run_in_processpool, misbehaving.log, LOGGER, (logging.ERROR, "two")
            )
            assert first.result(GRACE_SECONDS) != second.result(GRACE_SECONDS)


def test_two_loops_that_start_at_once_share_one_relay(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a worker's log records come to a relay that knows nothing of its calls, which then wait for ever."""
    coming = threading.Barrier(2)

    class SlowRelay(_relay.Relay):  # type: ignore[misc]
        def __init__(self) -> None:
            with suppress(threading.BrokenBarrierError):
                coming.wait(0.3)  # passes only where two are made at once
            super().__init__()

    monkeypatch.setattr(_relay, "Relay", SlowRelay)
    backend, options = background
    with (
        EventLoopThread(backend=backend, backend_options=options) as one,
        EventLoopThread(backend=backend, backend_options=options) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        for _ in range(2):
            calls: list[Any] = [
                threads.submit(
                    cast("Any", loop.run_sync), run_in_processpool, misbehaving.log, LOGGER, (logging.ERROR, "x")
                )
                for loop in (one, other)
            ]
            for each in calls:
                each.result(GRACE_SECONDS)
    assert len([thread for thread in threading.enumerate() if thread.name == "unfazed-relay"]) == 1


class Turn:
    """A lock that tells when somebody has to wait for it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.awaited = threading.Event()

    def __enter__(self) -> None:
        if not self._lock.acquire(blocking=False):
            self.awaited.set()
            assert self._lock.acquire(timeout=GRACE_SECONDS)

    def __exit__(self, *exc_info: object) -> None:
        self._lock.release()


@pytest.fixture
def before_fork() -> Iterator[Gate]:
    """A gate that stands open but for the first one, from within uvloop, who is about to fork."""
    gate = Gate()
    gates.append(gate)
    yield gate
    gates.clear()


gates: list[Gate] = []


def pass_gate() -> None:
    if gates:
        gates.pop().wait()


os.register_at_fork(before=pass_gate)


def test_two_loops_start_workers_one_after_the_other(
    background: Backend, before_fork: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop refuses to start a process while another loop is at it."""
    backend, options = background
    if not options:
        pytest.skip("other loops let no other thread run amid that")
    turn = Turn()
    monkeypatch.setattr(_processpool, "_turn", turn)
    with (
        EventLoopThread(backend=backend, backend_options=options) as one,
        EventLoopThread(backend=backend, backend_options=options) as other,
        ThreadPoolExecutor(2) as threads,
    ):
        first: Any = threads.submit(cast("Any", one.run_sync), run_in_processpool, os.getpid)
        assert before_fork.reached.wait(GRACE_SECONDS)
        second: Any = threads.submit(cast("Any", other.run_sync), run_in_processpool, os.getpid)
        try:
            wait_until(lambda: turn.awaited.is_set() or second.done(), "nobody starts a second one")
        finally:
            before_fork.opened.set()
        assert first.result(GRACE_SECONDS) != second.result(GRACE_SECONDS)


def test_where_no_process_can_be_started_calls_fail(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(*args: object, **kwargs: object) -> NoReturn:
        raise OSError(errno.EMFILE, "too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(anyio.to_process, "open_process", fail)
        with pytest.raises(WorkerProcessError, match=r"getpid\(\) could not start .*too many open files"):
            in_time(run_in_processpool_sync, os.getpid)
        with pytest.raises(WorkerProcessError, match=r"could not start .*too many open files"):
            in_time(warm_up_processpool_sync, 2)

    assert_ten_calls_work()


# The relay's socket


def connect() -> socket.socket:
    relay = _relay.current()
    assert relay is not None
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(relay.address[0])
    return connection


def test_connections_of_strangers_are_harmless(background: Backend) -> None:
    relay = _relay.current()
    assert relay is not None
    run_in_processpool_sync(os.getpid)
    silent, abrupt, garbage, impostor, half = [connect() for _ in range(5)]
    abrupt.close()
    garbage.sendall(b"\xff" * 100_000)
    impostor.sendall(relay.address[1] + os.getpid().to_bytes(4, "big"))
    half.sendall(relay.address[1][:3])

    with pytest.raises(WorkerProcessError):
        in_time(run_in_processpool_sync, misbehaving.die, 3)
    assert_ten_calls_work()
    for connection in (silent, garbage, impostor, half):
        connection.close()
    assert_ten_calls_work()


def test_a_lack_of_file_descriptors_passes(background: Backend) -> None:
    """While there are none, calls may fail; the relay must survive it."""
    run_in_processpool_sync(os.getpid)
    late = socket.socket(socket.AF_UNIX)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (misbehaving.descriptors() + 64, hard))
    spare: list[int] = []
    try:
        with suppress(OSError):  # too many open files
            while True:
                spare.append(os.dup(0))
        relay = _relay.current()
        assert relay is not None
        late.connect(relay.address[0])
        assert in_time(functions.echo, 1) == ((1,), {})
        in_time(wait_until_relay_idle)
    finally:
        for fd in spare:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    late.close()
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
            wait_until(lambda: not children(), "the worker lives on")
            wait_until_relay_has_looked()
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


def wait_until_relay_has_looked() -> None:
    """Wait until the relay has noted what has happened so far, though a handler blocks."""

    async def settled() -> None:
        relay = _relay.current()
        assert relay is not None
        await relay.settled(current_loop(), hears=False)

    run_in_eventloop_sync(settled)


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
    wait_until_relay_idle()

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

    assert kept.messages() == ["once", "again"]


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
    workers = {child.pid for child in children()}
    warm_up_processpool_sync(3)
    run_in_eventloop_sync(warm_up_processpool, 2)

    assert len(workers) == 3
    assert {child.pid for child in children()} == workers
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

    assert children() == []


def test_warming_up_cancelled_leaves_nothing(background: Backend) -> None:
    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(warm_up_processpool, 2)
            await wait_for_children(1)
            tasks.cancel_scope.cancel()
        assert len(children()) == 2

    anyio.run(main, backend=background[0], backend_options=background[1])
    wait_until(lambda: not children(), "a process is left")


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

    workers = {str(child.pid) for child in children()}
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


def test_a_package_with_relative_imports_is_told_what_to_write(tmp_path: Path, background: Backend) -> None:
    out, _ = run_program(tmp_path, USES_A_MODULE.format(imports="from .sibling import triple"), background, "package")

    assert out.startswith("error: ")
    assert "`python -m package` needs absolute imports in its `__main__.py`" in out


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


@pytest.mark.parametrize("error", [AttributeError, partial(OSError, errno.ENOSYS, "x")], ids=["no such name", "ENOSYS"])
def test_where_deaths_cannot_be_watched_no_call_is_made_twice(
    background: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: Callable[[], Exception]
) -> None:
    open_pidfd = os.pidfd_open

    def fail_in_relay(*args: int) -> int:
        if threading.current_thread().name == "unfazed-relay":
            raise error()
        return open_pidfd(*args)

    monkeypatch.setattr(os, "pidfd_open", fail_in_relay)
    assert_ten_calls_work()
    with pytest.raises(WorkerProcessError):
        in_time(run_in_processpool_sync, misbehaving.note_and_crash, tmp_path / "runs")

    assert (tmp_path / "runs").read_text() == "x"
    assert_ten_calls_work()


def test_a_timeout_ends_a_call_to_a_worker_that_has_been_stopped(
    background: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_processpool, "START_SECONDS", 0.1)
    pid = run_in_processpool_sync(os.getpid)
    os.kill(pid, signal.SIGSTOP)

    with pytest.raises(TimeoutError):
        in_time(in_processpool(os.getpid, timeout=0.05).sync)

    assert_ten_calls_work()
    wait_until(lambda: not psutil.pid_exists(pid), "the worker is left")


@pytest.mark.anyio
async def test_a_call_that_is_killed_before_it_has_begun_starts_no_worker() -> None:
    """On trio, tasks of one batch begin in any order: that of a call after its caller has been cancelled, too."""
    call = _processpool._Call("in_processpool", os.getpid, (), {}, _processpool.ProcessOptions(kill_on_cancel=True))
    try:
        call._kill()
        assert await call._send(current_loop()) == b""
    finally:
        call._give_back()

    assert not children()


def test_where_processes_are_not_supported_calls_fail(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    """Some event loops of others have none."""

    async def refuse(*args: object, **kwargs: object) -> NoReturn:
        raise NotImplementedError

    with monkeypatch.context() as patch:
        patch.setattr(anyio.to_process, "open_process", refuse)
        with pytest.raises(WorkerProcessError, match=r"getpid\(\) could not run it \(NotImplementedError"):
            in_time(run_in_processpool_sync, os.getpid)
        with pytest.raises(WorkerProcessError, match=r"could not start \(NotImplementedError: \); the next"):
            in_time(warm_up_processpool_sync, 2)

    assert_ten_calls_work()


def test_a_start_that_is_interrupted_is_tried_again_without_a_relay(
    background: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask = _processpool._ask
    asked: list[object] = []

    async def be_interrupted_once(*args: Any) -> object:
        asked.append(args)
        if len(asked) == 1:
            raise anyio.BrokenWorkerProcess("Error during worker process initialization") from KeyboardInterrupt()
        return await ask(*args)

    monkeypatch.setattr(_processpool, "_ask", be_interrupted_once)
    monkeypatch.setattr(_relay, "current", lambda: None)

    assert in_time(run_in_processpool_sync, abs, -1) == 1
    assert len(asked) == 2


def test_workers_that_end_before_they_are_ready_are_an_error(tmp_path: Path, background: Backend) -> None:
    """In a program of its own, for on trio anyio leaves them to Python's `subprocess`."""
    out, _ = run_program(
        tmp_path,
        """
import shutil, sys
from functools import partial
from unfazed.concurrency import *
if __name__ == "__main__":
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    python, sys.executable = sys.executable, shutil.which("true")
    for call in (partial(run_in_processpool_sync, abs, -1), partial(warm_up_processpool_sync, 2)):
        try:
            print(call())
        except WorkerProcessError as exc:
            print("error:", exc)
    sys.executable = python
    print(run_in_processpool_sync(abs, -1))
""",
        background,
    )

    *errors, value = out.splitlines()
    assert len(errors) == 2
    assert all(each.startswith("error: ") and "could not start: a script" in each for each in errors)
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

    assert out == "7\n"
    # asyncio, up to 3.11, says this where a worker has ended before anyio kills it
    assert [line for line in err.splitlines() if not line.startswith("Unknown child process")] == []


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

    wait_until(lambda: not psutil.pid_exists(int(out)), "the worker lives on")
