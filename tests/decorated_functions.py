"""Decorated functions that the tests send to other processes: their names lead to what wraps them."""

from __future__ import annotations

import os
from concurrent.futures import Executor, Future
from functools import partial
from typing import TYPE_CHECKING, Any

from unfazed.concurrency import in_eventloop, in_executor, in_processpool, in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable


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
