"""What the tests send to worker processes, which find it by module and name. It imports little: each worker does it."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from pathlib import Path

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup


class TwoArgumentError(Exception):
    """Pickles, and cannot be read back."""

    def __init__(self, first: int, second: int) -> None:
        super().__init__(f"{first} and {second}")


class OwnBaseError(BaseException):
    pass


def echo(*args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def has_gil_after(*imports: str) -> bool:
    """Return whether this process has a GIL when it has imported these modules."""
    for name in imports:
        importlib.import_module(name)
    return bool(sys._is_gil_enabled())  # type: ignore[attr-defined,unused-ignore]


def fail(error: BaseException) -> NoReturn:
    raise error


def fail_with_two_arguments() -> NoReturn:
    raise TwoArgumentError(1, 2)


def fail_with_local_class() -> NoReturn:
    class LocalError(Exception):
        pass

    raise LocalError("of a class that only the worker has")


def fail_in_group() -> NoReturn:
    raise ExceptionGroup("group", [ValueError(1), KeyError(2)])


class WorkerOnlyError(Exception):
    def __reduce__(self) -> tuple[object, ...]:
        return _only_in_process, (os.getpid(),)


class NotAnErrorError(Exception):
    def __reduce__(self) -> tuple[object, ...]:
        return str, ("no error",)


def raise_what_unpickles_as_a_string() -> NoReturn:
    raise NotAnErrorError("what it says")


def raise_worker_only() -> NoReturn:
    raise WorkerOnlyError("what it says")


def raise_group() -> NoReturn:
    inner = ExceptionGroup("some of them", [TwoArgumentError(3, 4), KeyError("key")])
    raise ExceptionGroup("all of them", [ValueError(1), TwoArgumentError(1, 2), inner, WorkerOnlyError("of a group")])


def local_object() -> object:
    class Local:
        pass

    return Local()


def echo_of_one(value: object) -> object:
    return value


def returns_coroutine() -> object:
    return async_function()


def return_lambda() -> object:
    return lambda: None


class WorkerOnly:
    def __reduce__(self) -> tuple[object, ...]:
        return _only_in_process, (os.getpid(),)


def _only_in_process(pid: int) -> None:
    if os.getpid() != pid:
        raise LookupError(f"of process {pid} alone")


def return_worker_only() -> object:
    return WorkerOnly()


class TooLarge:
    """There is not enough memory to pickle it, or to read it elsewhere than in process *pid*."""

    def __init__(self, pid: int | None = None) -> None:
        self.pid = pid

    def __reduce__(self) -> tuple[Any, ...]:
        if self.pid is None:
            raise MemoryError
        return _make_too_large, (self.pid,)


def _make_too_large(pid: int) -> TooLarge:
    if pid != os.getpid():
        raise MemoryError
    return TooLarge(pid)


def return_too_large(readable: bool) -> TooLarge:
    return TooLarge(os.getpid() if readable else None)


initialized: list[int] = []


def initialize() -> None:
    initialized.append(1)


class BadTextError(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class Unpicklable:
    def __reduce__(self) -> NoReturn:
        raise BadTextError


def return_unpicklable_with_bad_text() -> Unpicklable:
    return Unpicklable()


def end_at_once(code: int) -> NoReturn:
    os._exit(code)


def touch_then_wait_for(touched: Path, awaited: Path) -> str:
    touched.touch()
    while not awaited.exists():
        time.sleep(0.001)
    return "a value that nobody waits for"


async def async_function() -> None:
    raise AssertionError("must not run")


class NodeError(Exception):
    """Raised by nodes."""


class NodeExit(SystemExit):
    """Raised by nodes, and no `Exception`."""


def raise_end(end: str, place: str) -> None:
    if end == "error":
        raise NodeError(place)
    if end == "exit":
        raise NodeExit(place)


def leaf(end: str, place: str, seconds: float) -> tuple[object, ...]:
    """Do what a leaf of a random tree of calls does (`programs/model.py`)."""
    time.sleep(seconds)
    raise_end(end, place)
    return ("value", place, ())


def kill_own_process() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("cannot be")


def log_with(name: str, good: str, bad: str) -> None:
    import logging

    logging.getLogger(name).warning("x", extra={good: ValueError("x"), bad: Unpicklable()})
