"""Rare moments inside a worker process, its log records and its answers: each is forced."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from forcing import once_before, raising
from interrupting import Alarm, raise_alarm
from running import outcome_of

from unfazed._worker import call as worker_call
from unfazed._worker import channel, main
from unfazed.concurrency import WorkerProcessError, run_in_processpool_sync
from unfazed.concurrency._core._futures import OneShotFuture
from unfazed.concurrency._processes import _call, _handling, _packing, _pool, _waiting, _worker

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Backend = tuple[str, dict[str, Any]]


# Inside a worker, here in this process


class Pipe:
    def __init__(self) -> None:
        self.out, self.into = os.pipe()

    def close(self, *names: str) -> None:
        for name in names or ("out", "into"):
            with contextlib.suppress(OSError):  # it is closed already
                os.close(getattr(self, name))
            setattr(self, name, -1)

    def read(self) -> bytes:
        os.set_blocking(self.out, False)
        with contextlib.suppress(BlockingIOError):
            return os.read(self.out, channel.CHUNK_BYTES)
        return b""


@pytest.fixture
def calls() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def frames() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def output() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    pipe.close()


@pytest.fixture
def records(frames: Pipe, output: Pipe) -> main._Records:
    records = main._Records(frames.into, b"!")
    os.dup2(output.into, records._output)
    os.close(output.into)
    output.into = records._output
    return records


def sent(frames: Pipe) -> list[bytes]:
    reader = channel.Reader(-1, frames.read())
    found = []
    while reader.data:
        reader.next()
        found.append(reader.take())
    return found


def test_records_of_no_call_wait_and_the_parent_is_told_once(
    records: main._Records, frames: Pipe, output: Pipe
) -> None:
    records.send(b"1")
    records.send(b"2")
    assert sent(frames) == []
    assert output.read() == b"!"

    records.run()
    records.send(b"3")

    assert sent(frames) == [b"1", b"2", b"3"]
    records.end()
    records.remind()
    assert output.read() == b""
    records.send(b"4")
    records.remind()
    assert output.read() == b"!!"


def test_a_thread_that_logs_without_end_waits_for_the_next_call(
    records: main._Records, frames: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(main, "MOST_WAITING", 1)
    monkeypatch.setattr(main, "time", SimpleNamespace(sleep=lambda _: records.flush()))

    records.send(b"1")
    assert sent(frames) == []
    records.send(b"2")

    assert sent(frames) == [b"1"]
    assert len(records._waiting) == 1


def test_a_record_of_a_signal_handler_amid_the_sending_of_another_one_comes_next(
    records: main._Records, frames: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "write_all", once_before(channel.write_all, lambda: records.send(b"2")))
    records.run()

    records.send(b"1")

    assert sent(frames) == [b"1", b"2"]


def test_a_record_for_a_parent_that_is_gone_is_dropped(records: main._Records, frames: Pipe) -> None:
    frames.close("out")
    records.run()

    records.send(b"1")

    assert records._waiting == []


def test_what_a_signal_handler_raises_amid_a_record_comes_out_of_the_function(
    records: main._Records, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(channel, "write_all", once_before(channel.write_all, raising(TimeoutError())))
    records.run()

    with pytest.raises(TimeoutError):
        records.send(b"1")


def test_a_signal_handler_that_a_function_has_left_behind_does_not_end_the_worker(
    records: main._Records, calls: Pipe, frames: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """1: it raises as the worker waits for a call. 2: as it answers."""
    monkeypatch.setattr(channel, "read_once", once_before(channel.read_once, raise_alarm))
    monkeypatch.setattr(channel, "write_once", once_before(channel.write_once, raise_alarm))
    os.write(calls.into, channel.frame(channel.FLUSH))
    calls.close("into")

    with pytest.raises(channel.PipeEndError):
        main._Worker(calls.out, frames.into, records).serve()

    assert frames.read() == channel.frame(channel.READY) + channel.frame(channel.FLUSH)


def test_a_worker_ends_where_a_function_has_closed_its_pipes(records: main._Records, calls: Pipe, frames: Pipe) -> None:
    worker = main._Worker(calls.out, frames.into, records)
    calls.close("out")
    with pytest.raises(channel.PipeEndError):
        worker.serve()

    frames.close("into")
    with pytest.raises(channel.PipeEndError):
        worker.serve()


def test_what_a_signal_handler_raises_between_two_functions_is_the_error_of_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(worker_call, "_initialize", once_before(worker_call._initialize, raise_alarm))

    kind, (about, (pickled, _), _) = outcome_of(pickle.dumps((int, (), {})))

    assert (kind, about, type(pickle.loads(pickled))) == (channel.OUTCOME, worker_call.ERROR, Alarm)


def test_a_value_for_which_memory_does_not_suffice_is_an_error() -> None:
    packed = worker_call.unsendable(functions.TooLarge())
    assert packed is not None

    kind, (pickled, _), _ = pickle.loads(packed)
    assert (kind, type(pickle.loads(pickled))) == (worker_call.ERROR, MemoryError)


def test_what_a_signal_handler_raises_while_an_error_is_read_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_packing, "load", once_before(pickle.loads, raise_alarm))

    with pytest.raises(Alarm):
        _packing._load_exception(pickle.dumps(ValueError(1)), "ValueError: 1")


def test_a_call_whose_worker_died_before_it_claimed_it_can_be_taken_again() -> None:
    call = _call.ProcessCall("helper", int, (), {})
    call.expect(OneShotFuture())

    assert call.take_over()
    call.return_claim()
    assert call.take_over()
    assert not call.is_decided()


# Log records


class Kept(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


@pytest.fixture
def kept() -> Iterator[list[logging.LogRecord]]:
    handler = Kept()
    logging.getLogger("forced").addHandler(handler)
    yield handler.records
    logging.getLogger("forced").removeHandler(handler)


def test_what_a_record_carries_arrives(background: Backend, kept: list[logging.LogRecord]) -> None:
    extra = {"group": ValueError("x"), "only there": functions.Unpicklable()}

    run_in_processpool_sync(functions.log_with, "forced", "group", "only there")

    (record,) = kept
    assert repr(record.__dict__["group"]) == repr(extra["group"])
    assert "Unpicklable" in record.__dict__["only there"]


def test_logging_to_a_file_in_a_worker_does_as_it_says(background: Backend, tmp_path: Path) -> None:
    path = tmp_path / "log"
    run_in_processpool_sync(partial(logging.basicConfig, filename=str(path)))

    run_in_processpool_sync(misbehaving.log, "forced", (40, "in the file"))

    assert "in the file" in path.read_text()


def test_a_record_that_cannot_be_read_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: told.append(args[0]))

    _handling.handle(b"no pickle", _worker._call)

    assert told in ([pickle.UnpicklingError], [KeyError])  # CPython's, PyPy's


def test_a_worker_whose_records_cannot_be_taken_for_want_of_memory_is_ended(
    background: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object) -> None:
        raise MemoryError

    with monkeypatch.context() as patch:
        patch.setattr(_worker, "handle", fail)
        with pytest.raises(WorkerProcessError, match="killed by SIGKILL"):
            run_in_processpool_sync(misbehaving.log, "forced", (40, "x"))

    assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})


def test_a_record_is_dropped_whose_caller_has_gone_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second Ctrl-C has come; the worker's thread looks now and then."""

    class OneShotFuture(_waiting._HandlingFuture):
        looks = iter((False, True))
        done = property(lambda self: next(self.looks))

    monkeypatch.setattr(_waiting, "INTERRUPT_CHECK_SECONDS", 0.001)
    done: list[None] = []

    OneShotFuture().do(lambda: done.append(None))

    assert done == []


def test_an_answer_may_come_in_any_pieces(monkeypatch: pytest.MonkeyPatch, frames: Pipe) -> None:
    monkeypatch.setattr(_pool.Pool, "return_from", lambda self, lease: lease.clear())
    future = channel.BEGUN_FRAME + channel.frame(channel.VALUE, pickle.dumps("an answer"))
    for first in range(channel.HEADER_BYTES, len(future)):
        call = _call.ProcessCall("run_in_processpool_sync", int, (), {})
        worker: Any = SimpleNamespace(out=frames.out, initialized=set())
        os.write(frames.into, future[:first])
        assert call.receive([worker]) is None
        os.write(frames.into, future[first:])

        received = call.receive([worker])

        assert received is not None
        assert call.read(*received) == "an answer"
