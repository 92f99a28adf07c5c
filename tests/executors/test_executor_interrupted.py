"""A signal handler raises in sync code that waits for an executor."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import GRACE_SECONDS
from forcing import once_before
from interrupting import Alarm, raise_alarm

from unfazed.concurrency import in_executor, run_in_executor, run_in_executor_sync
from unfazed.concurrency._executors import _call


class Work:
    """A function that runs until it is released."""

    def __init__(self) -> None:
        self.started, self.released = threading.Event(), threading.Event()
        self.has_ended = False

    def __call__(self) -> None:
        self.started.set()
        assert self.released.wait(GRACE_SECONDS)
        self.has_ended = True

    def interrupt(self) -> None:
        assert self.started.wait(GRACE_SECONDS)
        raise_alarm()


def test_a_function_that_runs_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    monkeypatch.setattr(_call.ExecutorCall, "_wait", once_before(_call.ExecutorCall._wait, work.interrupt))
    monkeypatch.setattr(_call, "say_that_we_wait", lambda *args: work.released.set())
    with ThreadPoolExecutor(1) as executor, pytest.raises(Alarm):
        run_in_executor_sync(executor, work)

    assert work.has_ended


def test_it_is_waited_for_no_longer_than_the_timeout(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    monkeypatch.setattr(_call.ExecutorCall, "_wait", once_before(_call.ExecutorCall._wait, work.interrupt))
    with ThreadPoolExecutor(1) as executor:
        call = in_executor(executor, work, timeout=0.2)
        with pytest.raises(Alarm):
            call.sync()
        assert not work.has_ended
        work.released.set()


def test_the_second_time_it_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    work = Work()
    monkeypatch.setattr(_call.ExecutorCall, "_wait", lambda *args: work.interrupt())
    with ThreadPoolExecutor(1) as executor:
        with pytest.raises(Alarm):
            run_in_executor_sync(executor, work)
        assert not work.has_ended
        work.released.set()


def test_a_function_that_has_not_begun_never_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Work(), Work()
    with ThreadPoolExecutor(1) as executor:
        executor.submit(first)
        monkeypatch.setattr(_call.ExecutorCall, "_wait", lambda *args: first.interrupt())
        with pytest.raises(Alarm):
            run_in_executor_sync(executor, second)
        first.released.set()

    assert not second.started.is_set()


def test_a_call_whose_end_is_interrupted_is_not_counted_as_running(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_call.ExecutorCall, "note_end", lambda self, exc: raise_alarm())
    with ThreadPoolExecutor(1) as executor, pytest.raises(Alarm):
        run_in_executor_sync(executor, int)

    assert not _call.calls_in_executors()


@pytest.mark.anyio
async def test_a_call_that_was_kept_from_leaving_the_list_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_call.ExecutorCall, "leave", lambda _: None)
    with ThreadPoolExecutor(1) as executor:
        assert await run_in_executor(executor, int, "5") == 5
    assert _call._live

    assert not _call.calls_in_executors()
    assert not _call._live
