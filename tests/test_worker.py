"""What runs inside a worker process, here called as a function."""

from __future__ import annotations

import pickle
import sys
from typing import Any

import process_functions as functions
import pytest

from unfazed.concurrency import _worker


def run(func: object, *args: object, **kwargs: object) -> tuple[str, Any, str]:
    outcome: tuple[str, Any, str] = pickle.loads(_worker.run(pickle.dumps((func, args, kwargs))))
    return outcome


def test_a_value_comes_back() -> None:
    assert run(functions.echo, 1, a=2) == (_worker.VALUE, ((1,), {"a": 2}), "")


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_error_comes_back_with_the_text_of_its_traceback(error: BaseException) -> None:
    kind, caught, text = run(functions.fail, error)

    assert kind == _worker.ERROR
    assert repr(caught) == repr(error)
    assert "in fail\n" in text
    assert "_worker.py" not in text


def test_an_error_that_cannot_be_read_back_comes_as_text() -> None:
    kind, summary, text = run(functions.fail_with_two_arguments)

    assert (kind, summary) == (_worker.UNREADABLE_ERROR, "process_functions.TwoArgumentError: 1 and 2")
    assert "in fail_with_two_arguments" in text


def test_a_value_that_cannot_be_pickled_comes_as_text() -> None:
    kind, summary, _ = run(functions.return_lambda)

    assert kind == _worker.UNSENDABLE_VALUE
    assert summary.startswith("function: ")


def test_a_request_that_cannot_be_read_is_an_error() -> None:
    request = pickle.dumps((functions.echo, (), {})).replace(b"echo", b"ecco")

    _, caught, text = pickle.loads(_worker.run(request))

    assert isinstance(caught, AttributeError)
    assert "ecco" in text


def test_a_group_keeps_its_parts() -> None:
    _, caught, text = run(functions.fail_in_group)

    assert [type(each) for each in caught.exceptions] == [ValueError, KeyError]
    if sys.version_info >= (3, 11):
        assert "KeyError: 2" in text
