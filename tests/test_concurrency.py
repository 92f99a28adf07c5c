"""The public names, and what importing them costs."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys

import unfazed
import unfazed.concurrecy
import unfazed.concurrency


def python(source: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", source],
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},  # which imports much
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout.strip()


def test_both_spellings_give_the_same_objects_without_a_warning() -> None:
    assert unfazed.concurrecy.__all__ is unfazed.concurrency.__all__
    for name in unfazed.concurrency.__all__:
        assert getattr(unfazed.concurrecy, name) is getattr(unfazed.concurrency, name)
    assert python("import unfazed.concurrecy") == ""


def test_all_public_names_are_listed_in_order() -> None:
    public = {
        name
        for name, value in vars(unfazed.concurrency).items()
        if not name.startswith("_") and not inspect.ismodule(value)
    }

    assert tuple(sorted(public)) == unfazed.concurrency.__all__


def test_each_sync_twin_has_the_same_parameters() -> None:
    for name in unfazed.concurrency.__all__:
        if name.startswith(("run_in_", "map_in_")) and name.endswith("_sync"):
            twin = getattr(unfazed.concurrency, name.removesuffix("_sync"))
            expected = [*inspect.signature(twin).parameters]
            assert [*inspect.signature(getattr(unfazed.concurrency, name)).parameters] == expected


def test_every_public_name_has_a_docstring_with_its_sections() -> None:
    for name in unfazed.concurrency.__all__:
        value = getattr(unfazed.concurrency, name)
        docstring = inspect.getdoc(value)
        assert docstring, name
        assert docstring.splitlines()[0].endswith("."), name
        if re.match("run_in_|start_in_|map_in_|in_|iterate_in_|contextmanager_in_", name):
            headings = [line for line in docstring.splitlines() if line.endswith(":") and not line.startswith(" ")]
            assert headings == ["Args:", "Cancellation:", "Returns:", "Raises:", "Example:"], name


def test_every_exception_that_a_docstring_names_exists() -> None:
    for name in unfazed.concurrency.__all__:
        docstring = inspect.getdoc(getattr(unfazed.concurrency, name)) or ""
        if "Raises:\n" in docstring:
            block = docstring.split("Raises:\n")[1].split("\n\n")[0]
            raised = [line.split(":")[0].strip() for line in block.splitlines() if line[4:5].isupper()]
            assert raised, name
            for error in raised:
                assert error in {*unfazed.concurrency.__all__, "BaseException", "ExceptionGroup"}, (name, error)


def test_the_version_is_a_version() -> None:
    major, minor, patch = unfazed.__version__.split(".")

    assert all(part.isdecimal() for part in (major, minor, patch))


def test_importing_starts_nothing_and_stays_light() -> None:
    anyio_alone = """
import sys, anyio, anyio.from_thread, anyio.to_process, anyio.to_thread
before = set(sys.modules)
"""
    report = """
import os, threading
import unfazed.concurrency
assert threading.active_count() == 1
added = {name.partition('.')[0] for name in set(sys.modules) - before}
print(*sorted(added))
"""
    added = python(anyio_alone + report).split()

    assert set(added) <= {
        *("unfazed", "pickle", "_pickle", "_compat_pickle", "copyreg", "traceback", "atexit"),
        *("queue", "_queue", "heapq", "_heapq"),
        *("array", "socket", "_socket"),  # as soon as a loop runs, asyncio or trio needs the last one as well
    }


def test_importing_the_package_imports_nothing() -> None:
    assert python("import sys; import unfazed; print('anyio' in sys.modules, unfazed.__doc__ != '')") == "False True"


def test_a_worker_process_imports_no_more_than_it_needs() -> None:
    """A worker does not import the parent's helpers, unless the main module does."""
    source = """
if __name__ == "__main__":
    from unfazed.concurrency import run_in_processpool_sync
    modules = "sorted(__import__('sys').modules)"
    unneeded = ["anyio", "asyncio", "trio", "logging", "tempfile", "unfazed.concurrency"]
    if __import__("sys").implementation.name == "cpython":  # PyPy's own modules import it
        unneeded.append("traceback")
    loaded = run_in_processpool_sync(eval, modules)
    print([name for name in (*unneeded, "unfazed._worker.main") if name in loaded])
"""

    assert python(source) == "['unfazed._worker.main']"
