"""What the tests of maps send to worker processes. It imports little, because each worker imports it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

import process_functions as functions

if TYPE_CHECKING:
    from pathlib import Path


def double(value: Any) -> Any:
    return value * 2


def fail_at(number: int) -> int:
    if number == 30:
        raise LookupError("thirty")
    return number


def wait_at(number: int, seconds: float) -> int:
    if number > 100:
        time.sleep(seconds)
    return number


def add_all(*numbers: int) -> int:
    return sum(numbers)


def end_at(number: int) -> int:
    if number == 7:
        os._exit(3)
    return number


def give_odd_values(number: int) -> Any:
    return (lambda: None) if number % 2 else number


def give_coroutine(number: int) -> Any:
    return functions.async_function() if number == 2 else number


def stop(number: int) -> None:
    raise StopIteration(number)


def leave(number: int) -> None:
    raise SystemExit(number)


def append_line(path: Path, number: int) -> int:
    with path.open("a", encoding="utf-8") as file:
        file.write(f"{number}\n")
    return number
