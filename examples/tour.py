"""A tour of unfazed-concurrency on real files.

    python examples/tour.py [DIRECTORY]

Reads every file below DIRECTORY (by default Python's own standard library) in worker threads and hashes it in worker
processes: from async code and from sync code, on asyncio and on trio, and at last without this library. All must
agree. Meanwhile a clock ticks in the event loop and notes how late it ever was: that is how long the loop, and all else
in the program, stood still. What is no regular file, or larger than 2 GiB, is passed over.
"""

from __future__ import annotations

import hashlib
import os
import stat
import sys
import sysconfig
import time
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.to_process

from unfazed.concurrency import (
    EventLoopThread,
    run_in_processpool,
    run_in_processpool_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
    warm_up_processpool,
)

try:
    import trio as trio
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.table import Table
except ImportError as exc:
    sys.exit(f"tour.py needs {exc.name}; install it with: pip install 'unfazed-concurrency[examples]'")

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TICK_SECONDS = 0.005
STILL_SECONDS = 0.05  # up to which nobody would say that the loop stood still; a busy machine takes some of it itself
CALLERS = 8  # tasks in the async rows, and threads in the sync ones; enough to keep the worker processes busy
LARGEST = 2**31  # bytes of a file, all of which are in memory at once


@dataclass
class Run:
    """What one way of doing the work came to."""

    name: str
    digests: dict[Path, str] = field(default_factory=dict)
    problems: dict[Path, str] = field(default_factory=dict)
    seconds: float = 0.0
    held_up: float = 0.0  # seconds, the longest that the event loop did not get round to anything else


def digest(data: bytes) -> str:
    """Do the CPU-bound part: a hash that is slow on purpose, as those for passwords are."""
    return hashlib.pbkdf2_hmac("sha256", data, b"tour", 2000).hex()


def why_passed_over(path: Path) -> str:
    """Return why *path* is not to be read: reading it may never end, or take too much memory. Else nothing."""
    try:
        found = path.stat()
    except OSError:  # which whoever reads it will report
        return ""
    if not stat.S_ISREG(found.st_mode):
        return "no regular file"
    return "larger than 2 GiB" if found.st_size > LARGEST else ""


def find_files(directory: Path) -> tuple[list[Path], dict[Path, str]]:
    """Return the files below *directory*, but for what is installed or cached there; and what is passed over, and why.

    What a link leads to counts.
    """
    found: list[Path] = []
    for folder, subfolders, names in os.walk(directory):
        subfolders[:] = [name for name in subfolders if name not in ("site-packages", "__pycache__")]
        found += [Path(folder, name) for name in names]
    reasons = {path: why_passed_over(path) for path in sorted(found)}
    return [path for path, reason in reasons.items() if not reason], {path: why for path, why in reasons.items() if why}


async def hash_from_async(paths: Iterator[Path], run: Run, advance: Callable[[], None]) -> None:
    for path in paths:
        try:
            data = await run_in_threadpool(path.read_bytes)
            run.digests[path] = await run_in_processpool(digest, data)
        except OSError as exc:
            run.problems[path] = str(exc)
        advance()


def hash_from_sync(paths: Iterator[Path], run: Run, advance: Callable[[], None]) -> None:
    for path in paths:
        try:
            data = run_in_threadpool_sync(path.read_bytes)
            run.digests[path] = run_in_processpool_sync(digest, data)
        except OSError as exc:
            run.problems[path] = str(exc)
        advance()


def hash_blocking(paths: Iterator[Path], run: Run, advance: Callable[[], None]) -> None:
    for path in paths:
        try:
            run.digests[path] = digest(path.read_bytes())
        except OSError as exc:
            run.problems[path] = str(exc)
        advance()


async def watch(run: Run) -> None:
    """Tick, and note the longest delay of a tick."""
    while True:
        due = time.perf_counter() + TICK_SECONDS
        try:
            await anyio.sleep(TICK_SECONDS)
        finally:
            run.held_up = max(run.held_up, time.perf_counter() - due)


async def watched(run: Run, kind: str, paths: list[Path], advance: Callable[[], None]) -> None:
    """Do the work in one of three ways, and watch the event loop meanwhile."""
    if kind != "blocking":  # started now, the worker processes do not count as work
        limiter = anyio.to_process.current_default_process_limiter()
        await warm_up_processpool(int(min(CALLERS, limiter.total_tokens)))
    todo = iter(paths)
    async with anyio.create_task_group() as watching:
        watching.start_soon(watch, run)
        await anyio.sleep(0)
        started = time.perf_counter()
        if kind == "blocking":
            hash_blocking(todo, run, advance)
        else:
            in_a_thread = partial(run_in_threadpool, hash_from_sync, todo, run, advance)
            work = partial(hash_from_async, todo, run, advance) if kind == "async" else in_a_thread
            async with anyio.create_task_group() as callers:
                for _ in range(CALLERS):
                    callers.start_soon(work)
        run.seconds = time.perf_counter() - started
        watching.cancel_scope.cancel()


WAYS = (
    ("async code, asyncio", "async", "asyncio"),
    ("sync code, asyncio", "sync", "asyncio"),
    ("async code, trio", "async", "trio"),
    ("sync code, trio", "sync", "trio"),
    ("blocking the loop", "blocking", "asyncio"),
)


def take_tour(paths: list[Path], console: Console) -> list[Run]:
    """Do the work in all ways, one after the other."""
    columns = (TextColumn("{task.description:20}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    runs = []
    with Progress(*columns, console=console) as progress:
        for name, kind, backend in WAYS:
            bar = progress.add_task(name, total=len(paths))
            run = Run(name)
            with EventLoopThread(backend) as loop:
                loop.run_sync(watched, run, kind, paths, lambda bar=bar: progress.advance(bar))  # type: ignore[call-overload]
            runs.append(run)
    return runs


def stood_still(run: Run) -> str:
    if run.held_up > STILL_SECONDS:
        return f"[red]{run.held_up:.2f} seconds[/]"
    return f"[green]not at all[/] ({run.held_up * 1000:.0f} ms)"


def report(runs: list[Run], console: Console) -> bool:
    """Show what came of it. Return whether all agree on every file that all could read."""
    table = Table(title="Reading and hashing every file")
    for heading in ("from", "files", "seconds", "calls per second", "the event loop stood still"):
        table.add_column(heading, justify="left" if heading == "from" else "right")
    for run in runs:
        rate = 2 * len(run.digests) / run.seconds if run.seconds else 0  # one call to read, one to hash
        table.add_row(run.name, f"{len(run.digests)}", f"{run.seconds:.2f}", f"{rate:,.0f}", stood_still(run))
    console.print(table)

    problems = {path: problem for run in runs for path, problem in run.problems.items()}
    for path, problem in problems.items():
        console.print(f"[yellow]left out[/] {escape(str(path))}: {escape(problem)}")
    first, *others = ({path: digest for path, digest in run.digests.items() if path not in problems} for run in runs)
    differing = [path for path in first if any(other.get(path) != first[path] for other in others)]
    for path in differing:
        ways = ", ".join(f"{run.name}: {run.digests.get(path, 'not seen')[:8]}" for run in runs)
        console.print(f"[red]changed meanwhile[/] {escape(str(path))} ({ways})")
    if not differing:
        console.print(f"[green]All agree[/] on {len(first)} files.")
    return not differing


def main(arguments: list[str]) -> int:
    console = Console(highlight=False)
    usage = "usage: tour.py [DIRECTORY]"
    if {"-h", "--help"} & {*arguments}:
        console.print(f"{usage}\n\n{(__doc__ or '').partition('[DIRECTORY]')[2].strip()}", markup=False)
        return 0
    if len(arguments) > 1 or (arguments and arguments[0].startswith("-")):
        console.print(usage, markup=False)
        return 2
    directory = Path(arguments[0] if arguments else sysconfig.get_path("stdlib"))
    if not directory.is_dir():
        reason = "is not a directory" if directory.exists() else "does not exist"
        console.print(f"{escape(str(directory))} [red]{reason}[/]")
        return 2
    paths, passed_over = find_files(directory)
    console.print(f"{len(paths)} files below {escape(str(directory))}")
    for path, reason in passed_over.items():
        console.print(f"[yellow]passed over[/] {escape(str(path))}: {reason}")
    try:
        return 0 if report(take_tour(paths, console), console) else 1
    except KeyboardInterrupt:
        console.print("[yellow]Interrupted[/]; all threads and processes have ended.")
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
