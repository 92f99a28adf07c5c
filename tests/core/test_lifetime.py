"""What rooms do when the interpreter exits, and in a forked child."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from unfazed.concurrency._core import _lifetime

if TYPE_CHECKING:
    from collections.abc import Callable

CALLED: list[str] = []


def fail() -> None:
    CALLED.append("one that fails")
    raise KeyboardInterrupt


@pytest.fixture(autouse=True)
def nothing_registered(monkeypatch: pytest.MonkeyPatch) -> None:
    CALLED.clear()
    monkeypatch.setattr(_lifetime, "_at_exit", [])
    monkeypatch.setattr(_lifetime, "_in_child", [])
    monkeypatch.setattr(_lifetime, "_exiting", False)


def call(name: str) -> Callable[[], None]:
    return lambda: CALLED.append(name)


def test_at_exit_the_last_room_ends_first_and_all_end_though_one_raises() -> None:
    for end in call("first"), fail, call("last"):
        _lifetime.at_exit(end)

    with pytest.raises(KeyboardInterrupt):
        _lifetime.end_all()

    assert CALLED == ["last", "one that fails", "first"]


def test_a_room_that_comes_after_the_exit_has_begun_is_ended_at_once_and_each_once() -> None:
    _lifetime.at_exit(call("first"))
    _lifetime.at_exit(lambda: _lifetime.at_exit(call("imported by what ends")))
    _lifetime.end_all()
    _lifetime.at_exit(call("late"))
    _lifetime.end_all()

    assert CALLED == ["imported by what ends", "first", "late"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_in_a_forked_child_the_first_room_comes_first_and_all_come_though_one_raises() -> None:
    for reset in call("first"), fail, call("last"):
        _lifetime.in_forked_child(reset)

    with pytest.raises(KeyboardInterrupt):
        _lifetime._reset()

    assert CALLED == ["first", "one that fails", "last"]
