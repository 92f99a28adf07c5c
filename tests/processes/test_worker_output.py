"""What functions do to the streams of their worker process: the next ten calls give the right answers."""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import misbehaving_functions as misbehaving
import pytest
from conftest import GRACE_SECONDS, wait_until
from mishaps import Output, assert_ten_calls_work, call, configured, in_time, output

from unfazed.concurrency import WorkerProcessError, WrongOptionError, configure_processpool, run_in_processpool_sync
from unfazed.concurrency._processes import _pool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

assert call and configured and output  # fixtures

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers elsewhere are silent")

Backend = tuple[str, dict[str, Any]]


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
    printed = "dropped printed\ndropped to stderr\ndropped to 1\ndropped to 2\ndropped without an end"
    wait_until(lambda: taken() == len(printed) + 1001, "the output is not read")  # the end of the last line as well
    configure_processpool()
    run_in_processpool_sync(misbehaving.print_everywhere, "shown")

    output.wait_for("shown printed")
    assert "dropped" not in output.text()


def taken() -> int:
    """Return how much of the workers' output has been passed on."""
    return sum(worker.output.taken for worker in _pool.pool.workers if worker.output is not None)


@pytest.mark.parametrize("wrong", [1, None, "yes"])
def test_wrong_settings_are_refused(wrong: Any) -> None:
    with pytest.raises(WrongOptionError, match="output"):
        configure_processpool(output=wrong)
    with pytest.raises(WrongOptionError, match="logs"):
        configure_processpool(logs=wrong)


class BadStream:
    """Fails as no file would."""

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
