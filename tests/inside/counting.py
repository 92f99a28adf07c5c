"""What the tests of statistics and dumps share."""

from __future__ import annotations

import io
import re
from dataclasses import asdict

from unfazed.concurrency import LimiterStatistics, PlaceStatistics, dump_calls, statistics

PLACES = ("threadpool", "processpool", "executor", "eventloop")


def calls_in(place: str) -> PlaceStatistics:
    found: PlaceStatistics = getattr(statistics().calls, place)
    return found


class Counted:
    """What has been counted since it was made."""

    def __init__(self) -> None:
        self._before = asdict(statistics().calls)

    def __call__(self, place: str) -> dict[str, int]:
        """Return the totals of *place* that have changed, and by how much."""
        now = asdict(statistics().calls)[place]
        changes = {name: now[name] - self._before[place][name] for name in now}
        return {name: change for name, change in changes.items() if change}


def of(limiter: object) -> LimiterStatistics:
    (found,) = (each for each in statistics().limiters if each.limiter_id == id(limiter))
    return found


async def identity(value: int) -> int:
    return value


async def fail_async(error: BaseException) -> None:
    raise error


def dumped() -> str:
    file = io.StringIO()
    dump_calls(file)
    return file.getvalue()


def lines_of(text: str, *patterns: str) -> None:
    """Check that *text* has lines that match *patterns*, in that order."""
    left = text.splitlines()
    for pattern in patterns:
        while left and not re.search(pattern, left[0]):
            left.pop(0)
        assert left, f"no line matches {pattern} at its place in\n{text}"
