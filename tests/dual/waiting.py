"""Wait until calls run, or queue."""

from __future__ import annotations

from typing import TYPE_CHECKING

import anyio
from conftest import GRACE_SECONDS

from unfazed.concurrency._core import _limits

if TYPE_CHECKING:
    from pathlib import Path


async def wait_for(path: Path) -> None:
    with anyio.fail_after(GRACE_SECONDS):
        while not path.exists():
            await anyio.sleep(0.001)


def occupied(limiter: anyio.CapacityLimiter) -> int:
    return _limits.limits[id(limiter)].occupied


def queued(limiter: anyio.CapacityLimiter) -> int:
    return len(_limits.limits[id(limiter)].queue)
