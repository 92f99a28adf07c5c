"""The garbage collector ends a blocking of a loop while another call looks at all loops that are blocked."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import PYPY
from own_programs import HANG_SECONDS

PROGRAM = """
import gc
from unfazed.concurrency._core import _blockedloops

class Garbage:
    def __init__(self, blocked):
        self.blocked, self.cycle = blocked, self
    def __del__(self):
        for each in self.blocked:
            each.end()

kept = []
for objects in range(1, 300):  # after how many the collector runs: one of them is the copy
    gc.collect()
    gc.set_threshold(100_000)
    blocked = [_blockedloops.BlockedLoop(object(), "helper", "instead") for _ in range(8)]
    for each in blocked:
        each.begin()
    Garbage(blocked)
    kept += [[] for _ in range(100)]  # until then, lists that were deleted are used again
    gc.set_threshold(objects)
    _blockedloops.waits_for(object(), [])
    gc.collect()
    assert not _blockedloops.blocked_loops
print("alive")
"""


@pytest.mark.skipif(PYPY, reason="its collector cannot be told to run after so many objects")
def test_a_finalizer_that_ends_a_blocking_disturbs_nobody_who_looks_at_it() -> None:
    """CPython before 3.12 crashes when a finalizer empties a list that is being copied."""
    command = [sys.executable, "-c", PROGRAM]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)

    assert (ended.returncode, ended.stdout) == (0, "alive\n"), ended.stderr
