"""What may be called where."""

from __future__ import annotations

import functools
import inspect
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from unfazed.concurrency._core import _checks

if TYPE_CHECKING:
    from collections.abc import Callable


class Example:
    def method(self) -> None:
        pass

    async def async_method(self) -> None:
        pass

    def __call__(self) -> None:
        pass


async def afn() -> None:
    pass


async def agen() -> Any:
    yield


class AsyncCallable:
    async def __call__(self) -> None:
        pass


@pytest.mark.parametrize(
    ("func", "name"),
    [
        (len, "len"),
        (Example, "Example"),
        (Example.method, "Example.method"),
        (Example().method, "Example.method"),
        (functools.partial(functools.partial(max, 1), 2), "max"),
        (Example(), "Example"),
        (lambda: None, "<lambda>"),
    ],
)
def test_names_are_what_the_author_would_say(func: object, name: str) -> None:
    assert _checks.name_of(func) == name


@pytest.mark.parametrize("func", [afn, agen, functools.partial(afn), Example().async_method, AsyncCallable()])
def test_async_is_seen(func: object) -> None:
    assert _checks.is_async(func)


@pytest.mark.parametrize("func", [len, Example, AsyncCallable, Example().method, Example(), functools.partial(len)])
def test_sync_is_not_taken_for_async(func: object) -> None:
    assert not _checks.is_async(func)
    _checks.require_sync(func, "helper")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("func", "error", "notes"),
    [
        (min, "min() got an unexpected keyword argument 'timeout'", 1),  # has no signature before Python 3.13
        (min, "bad operand", 0),
        (lambda **_: None, "of its own", 0),
        (lambda timeout: timeout, "of its own", 0),
        (lambda: None, "got an unexpected keyword argument 'timeout'", 1),
    ],
)
def test_an_option_gets_a_note_only_where_the_function_does_not_take_it(
    func: Callable[..., object], error: str, notes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_signature(func: object) -> NoReturn:
        raise ValueError

    if func is min:
        monkeypatch.setattr(inspect, "signature", no_signature)
    raised = TypeError(error)

    _checks.explain(raised, "run_in_threadpool", func, {"timeout": 5})

    assert len(getattr(raised, "__notes__", ())) == notes
