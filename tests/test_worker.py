"""What runs inside a worker process, here called as a function."""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import sys
import threading
import time
import traceback
from typing import Any, NoReturn

import misbehaving_functions as misbehaving
import process_functions as functions
import pytest

from unfazed._worker import payloads, settling, trampoline


@pytest.fixture(autouse=True)
def settled_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """This process is no worker: it keeps its Ctrl-C, and does not end with its parent."""
    monkeypatch.setattr(settling, "_settled_in", True)


def packed(request: bytes, initializer: bytes | None = None) -> tuple[str, Any, str]:
    """Return what the outcome of a request says."""
    outcome = trampoline.run(1, request, initializer)[3]
    assert isinstance(outcome, bytes)
    said: tuple[str, Any, str] = pickle.loads(outcome)
    return said


def run(func: object, *args: object, **kwargs: object) -> tuple[str, Any, str]:
    return packed(pickle.dumps((func, args, kwargs)))


def test_a_value_comes_back() -> None:
    assert run(functions.echo, 1, a=2) == (trampoline.VALUE, ((1,), {"a": 2}), "")


@pytest.mark.parametrize("value", [None, True, 1, 1.5, "text", b"bytes"], ids=repr)
def test_a_small_and_plain_value_comes_back_as_it_is(value: object) -> None:
    assert trampoline.run(1, pickle.dumps((max, ([value],), {})))[3] == (value,)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_error_comes_back_with_the_text_of_its_traceback(error: BaseException) -> None:
    kind, caught, text = run(functions.fail, error)

    assert kind == trampoline.ERROR
    assert repr(caught) == repr(error)
    assert "in fail\n" in text
    assert "trampoline.py" not in text


def test_an_error_with_attributes_that_cannot_be_set_comes_back() -> None:
    kind, error, text = run(misbehaving.raise_frozen)

    assert (kind, error) == (trampoline.UNREADABLE_ERROR, "misbehaving_functions.FrozenError: 3")
    assert "in raise_frozen" in text


def test_an_error_of_which_no_text_can_be_made_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Python 3.13 and before."""

    def fail(*args: object) -> NoReturn:
        raise TypeError("'<' not supported")

    monkeypatch.setattr(traceback, "format_exception", fail)
    monkeypatch.setattr(traceback, "format_exception_only", fail)
    kind, error, text = run(misbehaving.raise_bad_syntax_error)

    assert (kind, type(error)) == (trampoline.ERROR, SyntaxError)
    assert "in raise_bad_syntax_error" in text
    assert text.endswith("SyntaxError")


def test_an_error_that_cannot_be_read_back_comes_as_text() -> None:
    kind, summary, text = run(functions.fail_with_two_arguments)

    assert (kind, summary) == (trampoline.UNREADABLE_ERROR, "process_functions.TwoArgumentError: 1 and 2")
    assert "in fail_with_two_arguments" in text


def test_a_value_that_cannot_be_pickled_comes_as_text() -> None:
    kind, summary, _ = run(functions.return_lambda)

    assert kind == trampoline.UNSENDABLE_VALUE
    assert summary.startswith("function: ")


def test_a_request_that_cannot_be_read_is_an_error() -> None:
    request = pickle.dumps((functions.echo, (), {})).replace(b"echo", b"ecco")

    kind, reason, text = packed(request)

    assert kind == trampoline.UNREADABLE_REQUEST
    assert "ecco" in reason
    assert "AttributeError" in text


def test_a_group_keeps_its_parts() -> None:
    _, caught, text = run(functions.fail_in_group)

    assert [type(each) for each in caught.exceptions] == [ValueError, KeyError]
    if sys.version_info >= (3, 11):
        assert "KeyError: 2" in text


def test_what_turns_out_to_be_async_is_said_to_be() -> None:
    assert run(functions.returns_coroutine) == (trampoline.COROUTINE, None, "")


def test_a_worker_settles_in_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "_settled_in", False)
    monkeypatch.setattr(settling, "_move_streams", lambda: None)
    watching: list[int] = []
    at_exit: list[object] = []
    monkeypatch.setattr(atexit, "register", lambda *args: at_exit.append(args))
    monkeypatch.setattr(settling, "_end_with", watching.append)
    before = signal.getsignal(signal.SIGINT)
    try:
        for _ in range(2):
            trampoline.run(1, pickle.dumps((functions.echo, (), {})))
        signal.raise_signal(signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)
    while not watching:
        time.sleep(0.001)

    assert watching == [os.getppid()]
    assert at_exit == [(time.sleep, settling.LAST_SECONDS)]


def test_a_worker_in_a_thread_leaves_the_signals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "_settled_in", False)
    monkeypatch.setattr(settling, "_move_streams", lambda: None)
    monkeypatch.setattr(settling, "_end_with", lambda parent: None)
    monkeypatch.setattr(atexit, "register", lambda *args: None)
    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(
        target=trampoline.run,
        args=(
            1,
            pickle.dumps((functions.echo, (), {})),
        ),
    )
    thread.start()
    thread.join()

    assert signal.getsignal(signal.SIGINT) is before


def test_an_orphan_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = [1, 1, 2]
    monkeypatch.setattr(settling, "ORPHAN_CHECK_SECONDS", 0)
    monkeypatch.setattr(os, "getppid", lambda: parents.pop(0))
    monkeypatch.setattr(os, "_exit", sys.exit)

    with pytest.raises(SystemExit):
        settling._end_with(1)
    assert parents == []


def test_an_initializer_is_called_once_and_again_if_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trampoline, "_initialized", set())
    monkeypatch.setattr(functions, "initialized", [])
    request = pickle.dumps((functions.echo, (), {}))

    def outcome(initializer: object) -> Any:
        return packed(request, pickle.dumps(initializer))

    for _ in range(2):
        assert outcome(functions.initialize)[0] == trampoline.VALUE
        assert outcome(functions.fail_with_two_arguments)[0] == trampoline.UNREADABLE_ERROR
    assert functions.initialized == [1]


def test_what_memory_does_not_suffice_for_is_the_error() -> None:
    elsewhere = pickle.dumps((functions.echo, (functions.TooLarge(os.getpid() + 1),), {}))

    for request in (elsewhere, pickle.dumps((functions.return_too_large, (False,), {}))):
        kind, error, _ = packed(request)

        assert kind == trampoline.ERROR
        assert isinstance(error, MemoryError)


def test_a_request_in_memory_that_cannot_be_opened_is_to_be_sent_again() -> None:
    request = payloads.SHARED + b"100"

    assert trampoline.run(1, request, memory=("/nothing/there", "label"))[3] == trampoline.UNREACHABLE


def test_a_worker_that_its_parent_does_not_hear_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settling, "_connect", lambda address: None)
    request = pickle.dumps((functions.echo, (), {}))

    assert trampoline.run(1, request, None, ("nobody", b""))[3] == trampoline.UNHEARD
    assert packed(request)[0] == trampoline.VALUE


def test_an_error_whose_text_fails_is_summed_up() -> None:
    kind, reason, _ = run(functions.return_unpicklable_with_bad_text)

    assert kind == trampoline.UNSENDABLE_VALUE
    assert "BadTextError" in reason
