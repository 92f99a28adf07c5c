"""What the tests send to worker processes, which find it by module and name."""

from __future__ import annotations

import importlib
import os
import signal
import sys
import time
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

from unfazed.concurrency import in_eventloop, in_executor, in_processpool, in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable
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
    """Be a call in a process, in a tree of the model."""
    time.sleep(seconds)
    raise_end(end, place)
    return ("value", place, ())


def kill_own_process() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("cannot be")


# Decorated: their names lead to what wraps them


class Elsewhere(Executor):
    """Hands everything on to an executor that a test sets."""

    there: Executor

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        return self.there.submit(fn, *args, **kwargs)


elsewhere = Elsewhere()


@in_processpool
def add(a: int, b: int = 1) -> tuple[int, int]:
    """Add two numbers, and say in which process."""
    return a + b, os.getpid()


@in_processpool(timeout=60)
def add_in_time(a: int, b: int = 1) -> tuple[int, int]:
    return a + b, os.getpid()


@in_executor(elsewhere)
def add_elsewhere(a: int, b: int = 1) -> tuple[int, int]:
    return a + b, os.getpid()


@in_threadpool
def add_in_thread(a: int, b: int = 1) -> tuple[int, int]:
    return a + b, os.getpid()


@in_eventloop
async def add_in_eventloop(a: int, b: int = 1) -> tuple[int, int]:
    return a + b, os.getpid()


class Number:
    def __init__(self, value: int) -> None:
        self.value = value

    @in_processpool
    def add(self, other: int) -> tuple[int, int]:
        return self.value + other, os.getpid()

    @in_processpool
    @classmethod
    def double(cls, value: int) -> tuple[str, int, int]:
        return cls.__name__, value * 2, os.getpid()

    @in_processpool
    @staticmethod
    def half(value: int) -> tuple[int, int]:
        return value // 2, os.getpid()

    @in_executor(elsewhere)
    def add_elsewhere(self, other: int) -> tuple[int, int]:
        return self.value + other, os.getpid()

    def __call__(self, other: int) -> tuple[int, int]:
        return self.value + other, os.getpid()

    class Inner:
        @in_processpool
        def add(self, other: int) -> tuple[int, int]:
            return 100 + other, os.getpid()


class OtherNumber(Number):
    pass


def plain_add(a: int, b: int = 1) -> tuple[int, int]:
    return a + b, os.getpid()


by_hand = in_processpool(plain_add)
of_a_partial = in_processpool(partial(plain_add, b=10))
of_an_object = in_processpool(Number(3))


@in_executor(elsewhere)
def decorated(number: int, *, power: int = 1) -> tuple[int, int]:
    return os.getpid(), number**power


class Decorated:
    def __init__(self, factor: int) -> None:
        self.factor = factor

    @in_executor(elsewhere)
    def times(self, number: int) -> int:
        return self.factor * number


def log_with(name: str, good: str, bad: str) -> None:
    import logging

    logging.getLogger(name).warning("x", extra={good: ValueError("x"), bad: Unpicklable()})
