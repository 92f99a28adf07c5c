"""Measure everything, or what is asked for.

    python -m benchmarks                    all of it, in about a quarter of an hour
    python -m benchmarks --quick            less of it, in under a minute
    python -m benchmarks --only processpool the rows whose names have this in them, and no more than the table
    python -m benchmarks --pages            nothing: write the pages anew from the results that are there

Every loop has a process of its own, for there is one background event loop in each.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import anyio

from benchmarks import _growth, _report, _starts
from benchmarks._measure import OURS, Budget, Timing, measure, measure_sync, one_cpu
from benchmarks._rows import Row, is_quick
from benchmarks._rows_many import ROWS
from unfazed.concurrency import configure_background_eventloop

BACKENDS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio", "backend_options": {}},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio", "backend_options": {}},
}
QUICK = Budget(seconds=0.3, max_rounds=12)
THOROUGH = Budget(seconds=6.0, max_rounds=200)


def measure_rows(backend: str, only: str) -> list[dict[str, Any]]:
    """Measure the rows of one loop, in this process."""
    configure_background_eventloop(**BACKENDS[backend])
    rows = [
        row for row in ROWS if backend in row.backends and only in row.name and (row.in_quick_run or not is_quick())
    ]
    return [_as_dict(row, backend, _measure(row, backend)) for row in rows]


def _measure(row: Row, backend: str) -> dict[str, Timing]:
    budget = QUICK if is_quick() else THOROUGH
    units = row.quick_units if is_quick() else row.units
    print(f"{backend:8} {row.name}", file=sys.stderr)

    async def main() -> dict[str, Timing]:
        with ExitStack() as stack:
            return await measure(await row.make(stack), budget, units)

    with one_cpu() if row.on_one_cpu else nullcontext():
        if row.is_async:
            return anyio.run(main, **BACKENDS[backend])
        with ExitStack() as stack:
            return measure_sync(row.make(stack, BACKENDS[backend]), budget, units)


def _as_dict(row: Row, backend: str, timings: dict[str, Timing]) -> dict[str, Any]:
    ours = timings.pop(OURS)
    return {
        "name": row.name,
        "backend": backend,
        "ours": ours.as_dict(),
        "others": {name: timing.as_dict() for name, timing in timings.items()},
        "limits": row.limits | (row.trio_limits if backend == "trio" else {}),
    }


def main() -> None:
    """Measure what the command line asks for, and write or show it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description="Measure against others, side by side.")
    parser.add_argument("--quick", action="store_true", help="less of everything, in under a minute")
    parser.add_argument("--only", default="", metavar="TEXT", help="the rows whose names have this in them")
    parser.add_argument("--backend", choices=BACKENDS, help="measure on this loop alone, and print the rows as JSON")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="where results.json goes")
    parser.add_argument("--pages", action="store_true", help="write the pages from the last results; measure nothing")
    options = parser.parse_args()
    if options.pages:
        _report.write(_report.RESULTS, json.loads((_report.RESULTS / "results.json").read_text(encoding="utf-8")))
        return
    if options.quick:
        os.environ["UNFAZED_BENCH_QUICK"] = "1"
    if options.backend:
        json.dump(measure_rows(options.backend, options.only), sys.stdout)
        return
    results = _report.circumstances()
    results["rows"] = [
        row
        for backend in BACKENDS
        for row in json.loads(
            subprocess.run(
                [sys.executable, "-m", "benchmarks", "--backend", backend, "--only", options.only],
                stdout=subprocess.PIPE,
                check=True,
            ).stdout
        )
    ]
    rounds = 3 if is_quick() else 15
    everything = not (options.only or is_quick())
    results["import_seconds"] = _starts.import_seconds(rounds) if not options.only else {}
    results["first_call_seconds"] = _starts.first_call_seconds(rounds) if not options.only else {}
    results["memory_bytes"] = _starts.memory_bytes() if everything else {}
    with one_cpu():
        results["callers"] = _growth.against_callers() if everything else {}
        results["limits"] = _growth.against_limits() if everything else {}
    if options.output:
        _report.write(options.output, results)
    print(_report.markdown(results))


if __name__ == "__main__":  # each worker process imports this file
    main()
