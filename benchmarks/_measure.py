"""How calls are measured: in batches of a few milliseconds, ours and the others' in turn.

What else the machine does falls on both alike then, and the ratio of two batches of one round hardly depends on it:
identical code reads 0.998 to 1.005 even on a busy machine.

What takes place in one process is measured on one CPU. With several, a call takes from 40 to 250 µs as it happens: so
long takes an idle CPU to wake up, above all on a virtual machine, and which threads share a CPU is a matter of chance.
"""

from __future__ import annotations

import gc
import os
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from statistics import median, quantiles
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator, Mapping

BATCH_SECONDS = 0.006  # with longer batches, the machine has time to change within a round
WARM_UP_CALLS = 3
MIN_ROUNDS = 5
OURS = "ours"


@contextmanager
def one_cpu() -> Iterator[None]:
    """Stay on one CPU meanwhile, with all threads, where the system lets us."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    cpus = os.sched_getaffinity(0)
    _move_threads({max(cpus)})  # those that start meanwhile are there as well
    try:
        yield
    finally:
        _move_threads(cpus)


def _move_threads(cpus: set[int]) -> None:
    for thread in threading.enumerate():
        with suppress(ProcessLookupError):  # it has ended
            os.sched_setaffinity(thread.native_id or 0, cpus)


@dataclass(frozen=True)
class Budget:
    """How long one row may take."""

    seconds: float
    max_rounds: int


@dataclass(frozen=True)
class Timing:
    """What one contender took, and what ours took for each second of it."""

    microseconds: float  # of one call, the median
    ratio: float  # the median of the ratios of each round
    low: float  # a quarter of the ratios is below
    high: float  # a quarter of them is above
    rounds: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


async def measure(
    calls: Mapping[str, Callable[[], Awaitable[object]]], budget: Budget, units: int = 1
) -> dict[str, Timing]:
    """Measure async *calls*, each of which does *units* of what is counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    counts = {}
    for name, call in calls.items():
        for _ in range(WARM_UP_CALLS if units == 1 else 1):
            await call()
        counts[name] = await _batch_size(call)
    gc.collect()
    end = perf_counter() + budget.seconds
    for number in range(budget.max_rounds):
        for name in sorted(calls, reverse=number % 2 == 1):
            if counts[name] > WARM_UP_CALLS:  # or else who comes after one with the same threads is better off
                await _batch(calls[name], WARM_UP_CALLS)
            seconds[name].append(await _batch(calls[name], counts[name]) / units)
        if number + 1 >= MIN_ROUNDS and perf_counter() > end:
            break
    return _compare(seconds)


def measure_sync(calls: Mapping[str, Callable[[], object]], budget: Budget, units: int = 1) -> dict[str, Timing]:
    """Measure sync *calls*; the same as `measure`."""
    running = measure({name: _as_async(call) for name, call in calls.items()}, budget, units)
    try:
        running.send(None)
    except StopIteration as stop:
        timings: dict[str, Timing] = stop.value
        return timings
    raise AssertionError("sync calls do not wait for a loop")


def _as_async(call: Callable[[], object]) -> Callable[[], Awaitable[object]]:
    async def as_async() -> object:
        return call()

    return as_async


async def _batch(call: Callable[[], Awaitable[object]], count: int) -> float:
    start = perf_counter()
    for _ in range(count):
        await call()
    return (perf_counter() - start) / count


async def _batch_size(call: Callable[[], Awaitable[object]]) -> int:
    """Return how many calls take `BATCH_SECONDS`, which the first ones do not tell."""
    count = 1
    while (seconds := await _batch(call, count)) * count < BATCH_SECONDS:
        count *= 2
    return max(1, round(BATCH_SECONDS / seconds))


def _compare(seconds: Mapping[str, list[float]]) -> dict[str, Timing]:
    timings = {}
    for name, theirs in seconds.items():
        ratios = [mine / other for mine, other in zip(seconds[OURS], theirs, strict=True)]
        low, middle, high = quantiles(ratios, n=4)
        timings[name] = Timing(median(theirs) * 1e6, middle, low, high, len(ratios))
    return timings
