"""Read all files and migrate them in several processes. The results keep the order of the files."""

from __future__ import annotations

import gc
import os
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from unfazed.concurrency import run_in_processpool_sync

from ._mentions import has_words, mentions_in, names_of
from ._plan import Options
from ._source import Result, migrate

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

# Starting a worker process takes about as long as migrating ten files. For fewer files it is not worth it.
FEWEST_FOR_PROCESSES = 24
FILES_IN_CALL = 2  # one large file takes as long as ten small ones

Job = tuple[bytes, Options]


class Request(NamedTuple):
    """The options for all files."""

    native: bool = False
    no_affinity: tuple[Path, ...] = ()

    def options(self, path: Path, mentions: Iterable[tuple[str, str]]) -> Options:
        """Return the options for one file."""
        no_affinity = any(path.is_relative_to(each.resolve()) for each in self.no_affinity)
        return Options(self.native, no_affinity, names_of(path, mentions))


def read_all(paths: Iterable[Path]) -> Iterator[tuple[Path, bytes | OSError]]:
    """Yield the content of each file that may need changes, or the error if it cannot be read."""
    for path in paths:
        try:
            source = path.read_bytes()
        except OSError as exc:
            yield path, exc
        else:
            if has_words(source):
                yield path, source


def migrate_all(sources: dict[Path, bytes], request: Request) -> Iterator[tuple[Path, Result]]:
    """Yield each file with its result, in the order of *sources*."""
    mentions: set[tuple[str, str]] = set()
    if request.native:
        mentions.update(*map(mentions_in, sources.values()))
    jobs = [(source, request.options(path, mentions)) for path, source in sources.items()]
    yield from zip(sources, _results(jobs), strict=True)


def migrate_some(jobs: Sequence[Job]) -> list[Result]:
    """Migrate a few files. This is one call in a worker process."""
    gc.disable()  # a collection visits thousands of nodes and finds no garbage
    try:
        return [migrate(source, options) for source, options in jobs]
    finally:
        gc.enable()


def _migrate_in_process(jobs: Sequence[Job]) -> list[Result]:
    return run_in_processpool_sync(migrate_some, jobs)


def _results(jobs: list[Job]) -> Iterator[Result]:
    if len(jobs) < FEWEST_FOR_PROCESSES:
        for job in jobs:
            yield migrate(*job)
        return
    batches = [jobs[start : start + FILES_IN_CALL] for start in range(0, len(jobs), FILES_IN_CALL)]
    with ThreadPoolExecutor(os.cpu_count(), "unfazed-migrate") as threads:
        try:
            for results in threads.map(_migrate_in_process, batches):
                yield from results
        except BaseException:  # Ctrl-C included: do not begin more calls
            threads.shutdown(wait=False, cancel_futures=True)
            raise
