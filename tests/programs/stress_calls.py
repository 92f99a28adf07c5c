"""The calls of `stress.py`: in all places, from async code and from sync code. Each returns 1, or raises an error.

Some end early, fail, are cancelled, or are left to the garbage collector, which may run in any thread.
"""

from __future__ import annotations

import importlib.util
import random
import sys
import time
from collections import Counter
from concurrent.futures import CancelledError, ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

import unfazed.concurrency
from unfazed.concurrency import (
    CallGroup,
    CallTimeoutError,
    EventLoopThread,
    Handle,
    LoopEndedError,
    LoopThreadError,
    allow_blocking_loop,
    contextmanager_in_eventloop_sync,
    contextmanager_in_threadpool,
    in_processpool,
    in_threadpool,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_executor,
    run_in_executor_sync,
    run_in_processpool,
    run_in_processpool_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator


BACKENDS = ["asyncio", *(["trio"] if importlib.util.find_spec("trio") else [])]

# Whether the signal handler raises. PyPy runs it between any two bytecodes, also before the first one of a `finally`:
# no code is safe from that.
ALARMS = sys.implementation.name == "cpython"


class Alarm(Exception):  # noqa: N818
    """What the signal handler raises."""


class Failure(Exception):  # noqa: N818
    """What a call raises that is to fail."""


Expected = (Alarm, Failure, CallTimeoutError, LoopEndedError)
counts: Counter[str] = Counter()
executor = ThreadPoolExecutor(2)


async def one(value: int = 1) -> int:
    return value


async def slow(value: int) -> int:
    await anyio.sleep(0.001)
    return value


def nested(depth: int) -> int:
    async def below() -> int:
        return await run_in_threadpool(nested, depth - 1)

    return 0 if depth == 0 else 1 + run_in_eventloop_sync(below)


@contextmanager
def sync_manager() -> Iterator[int]:
    yield 1


@asynccontextmanager
async def async_manager() -> AsyncIterator[int]:
    yield await slow(1)


async def numbers(count: int = 5) -> AsyncIterator[int]:
    for number in range(count):
        yield await one(number)


def fail() -> None:
    raise Failure


class Garbage:
    """A reference cycle that holds an unfinished call until the garbage collector finds it."""

    def __init__(self, held: object) -> None:
        self.held = held
        self.me = self


limiters: list[anyio.CapacityLimiter] = []


def a_limiter() -> anyio.CapacityLimiter:
    return random.choice(limiters)


# What to pass to `start_in_...` and `map_in_...` of each place, before the items: a function that returns its argument.
FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "threadpool": (int,),
    "processpool": (int,),
    "executor": (executor, int),
    "eventloop": (slow,),
}


def start(where: Any = unfazed.concurrency) -> Handle[int]:
    """Start a call in any place, perhaps in a group."""
    place = random.choice([*FUNCTIONS, "limited"])
    if place != "limited":
        handle: Handle[int] = getattr(where, f"start_in_{place}")(*FUNCTIONS[place], 1)
        return handle
    handle = in_threadpool(int, limiter=a_limiter()).start("1")
    return handle if where is unfazed.concurrency else where.add(handle)


def start_several(group: CallGroup) -> list[Handle[int]]:
    return [start(group) for _ in range(random.randrange(4))]


def start_what_fails(group: CallGroup) -> None:
    group.start_in_eventloop(anyio.sleep, 1000)
    start(group)
    group.start_in_threadpool(fail)


ITEMS = 20


def a_map(suffix: str = "") -> Any:
    """Return an iterator over the results of a map in any place: the numbers below `ITEMS`, in any order."""
    place = random.choice([*FUNCTIONS, "limited"])
    # at hand, read by a thread, or read by a task
    items: Any = random.choice([range(ITEMS), map(int, range(ITEMS)), range(ITEMS) if suffix else numbers(ITEMS)])
    options: Any = {"limit": random.choice([None, 1, 3]), "ordered": random.random() < 0.5}
    if place == "limited":
        limited = in_threadpool(int, limiter=a_limiter()).map
        return (limited.sync if suffix else limited)(items, **options)
    return getattr(unfazed.concurrency, f"map_in_{place}{suffix}")(*FUNCTIONS[place], items, **options)


async def drop_a_call() -> int:
    """Create a call that is never awaited, and leave it to the garbage collector, which may run in any thread."""
    call: Any = in_threadpool(time.sleep, limiter=a_limiter())(0.0001)
    Garbage(call)
    return 1


async def with_a_manager() -> int:
    async with contextmanager_in_threadpool(sync_manager(), limiter=a_limiter()) as value:
        return value


async def over_an_iterator() -> int:
    async for number in iterate_in_threadpool(iter(range(10)), prefetch=random.randrange(4)):
        if number == 1:
            return 1
    raise AssertionError("unreachable")


async def late() -> int:
    with suppress(CallTimeoutError):
        await in_threadpool(time.sleep, timeout=0.001, limiter=a_limiter())(0.004)
    return 1


async def cancelled() -> int:
    with anyio.move_on_after(random.random() * 0.004):
        await in_threadpool(nested, limiter=a_limiter())(2)
    return 1


async def started() -> int:
    return await start()


async def dropped() -> int:
    Garbage(start())
    return 1


async def in_a_group() -> int:
    async with CallGroup() as group:
        handles = start_several(group)
    return min([await handle for handle in handles], default=1)


async def in_a_group_that_fails() -> int:
    async with CallGroup() as group:
        start_what_fails(group)
    raise AssertionError("unreachable")


async def over_a_map() -> int:
    results, found, count = a_map(), list[int](), random.randrange(1, 2 * ITEMS)
    async for number in results:
        found.append(number)
        if len(found) == count:
            break
    else:
        assert sorted(found) == list(range(ITEMS))
    if random.random() < 0.5:
        await results.aclose()
    return 1


async def blocking() -> int:
    try:
        with allow_blocking_loop():
            return random.choice(SYNC)()
    except Exception as exc:
        if not is_refused(exc):
            raise
        return 1


def is_refused(exc: BaseException) -> bool:
    """Return whether tasks of the loop that a call blocks hold what the call waits for. Alarms may be in its group."""
    members: tuple[BaseException, ...] = getattr(exc, "exceptions", ())
    if members:
        return all(is_refused(member) or only_expected(member) for member in members)
    return isinstance(exc, LoopThreadError)


ASYNC: list[Callable[[], Awaitable[int]]] = [
    lambda: run_in_threadpool(int, "1"),
    lambda: in_threadpool(int, limiter=a_limiter())("1"),
    lambda: in_threadpool(nested, limiter=a_limiter())(1),
    lambda: run_in_eventloop(slow, 1),
    lambda: run_in_executor(executor, int, "1"),
    lambda: run_in_processpool(int, "1"),
    lambda: in_processpool(int, limiter=a_limiter())("1"),
    drop_a_call,
    with_a_manager,
    over_an_iterator,
    late,
    cancelled,
    started,
    dropped,
    in_a_group,
    in_a_group_that_fails,
    over_a_map,
    blocking,
]


def sync_with_a_manager() -> int:
    with contextmanager_in_eventloop_sync(async_manager()) as value:
        return value


def sync_over_an_iterator() -> int:
    steps = iterate_in_eventloop_sync(numbers())
    for number in steps:
        if number == 1:
            if sys.implementation.name == "pypy":  # collected amid a queue's own code, it would wait for that queue
                steps.close()
            return number
    raise AssertionError("unreachable")


def sync_in_a_loop_of_its_own() -> int:
    with EventLoopThread(random.choice(BACKENDS)) as loop:
        return loop.run_sync(slow, 1)


def sync_cancelled() -> int:
    handle = start()
    handle.cancel()
    with suppress(CancelledError):
        return handle.result()
    return 1


def sync_in_a_group() -> int:
    with CallGroup() as group:
        handles = start_several(group)
    return min([handle.result() for handle in handles], default=1)


def sync_in_a_group_that_fails() -> int:
    with CallGroup() as group:
        start_what_fails(group)
    raise AssertionError("unreachable")


def sync_over_a_map() -> int:
    results, found, count = a_map("_sync"), list[int](), random.randrange(1, 2 * ITEMS)
    for number in results:
        found.append(number)
        if len(found) == count:
            break
    else:
        assert sorted(found) == list(range(ITEMS))
    if random.random() < 0.5:
        results.close()
    return 1


SYNC: list[Callable[[], int]] = [
    lambda: run_in_threadpool_sync(int, "1"),
    lambda: in_threadpool(int, limiter=a_limiter()).sync("1"),
    lambda: run_in_eventloop_sync(slow, 1),
    lambda: run_in_executor_sync(executor, int, "1"),
    lambda: run_in_processpool_sync(int, "1"),
    lambda: nested(1),
    sync_with_a_manager,
    sync_over_an_iterator,
    lambda: start().result(),
    sync_cancelled,
    sync_in_a_group,
    sync_in_a_group_that_fails,
    sync_over_a_map,
]
ASYNC += [lambda: run_in_threadpool(random.choice(SYNC)), lambda: anyio.to_thread.run_sync(random.choice(SYNC))]
RARELY = 0.02  # the share of sync calls that start their own loop


def sync_call() -> None:
    call = sync_in_a_loop_of_its_own if random.random() < RARELY else random.choice(SYNC)
    try:
        assert call() == 1
        counts["calls"] += 1
    except Exception as exc:
        if not only_expected(exc):
            raise
        counts["calls that raised"] += 1


async def async_call() -> None:
    try:
        assert await random.choice(ASYNC)() == 1
        counts["calls"] += 1
    except Exception as exc:
        if not only_expected(exc):
            raise
        counts["calls that raised"] += 1


def only_expected(exc: BaseException) -> bool:
    """Return whether a call may raise *exc*, or an event loop end with it: the handler raised there, for one."""
    members: tuple[BaseException, ...] = getattr(exc, "exceptions", ())
    if members:
        return all(map(only_expected, members))
    return isinstance(exc, Expected) or isinstance(exc.__cause__, Expected) or type(exc).__name__ == "TrioInternalError"
