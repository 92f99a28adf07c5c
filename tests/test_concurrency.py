"""The public names, and what importing them costs."""

from __future__ import annotations

import ast
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import unfazed
import unfazed.concurrecy
import unfazed.concurrency

if TYPE_CHECKING:
    from types import ModuleType


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
    """Three times: for type checkers, for `import *`, and where they are."""
    source = Path(unfazed.concurrency.__file__).read_text(encoding="utf-8")
    (for_types,) = [node for node in ast.parse(source).body if isinstance(node, ast.If) and not node.orelse][:1]
    imported = {
        alias.name: each.module for each in for_types.body if isinstance(each, ast.ImportFrom) for alias in each.names
    }

    assert tuple(sorted(imported)) == unfazed.concurrency.__all__
    assert imported == unfazed.concurrency._HOMES


def test_what_is_looked_up_once_is_an_ordinary_global_name() -> None:
    for name in unfazed.concurrency.__all__:
        assert getattr(unfazed.concurrency, name) is vars(unfazed.concurrency)[name]


@pytest.mark.parametrize("module", [unfazed.concurrency, unfazed.concurrecy])
def test_dir_has_all_names(module: ModuleType) -> None:
    assert set(module.__all__) <= set(dir(module))


@pytest.mark.parametrize("module", [unfazed.concurrency, unfazed.concurrecy])
def test_dir_and_help_show_what_has_not_been_used_yet(module: ModuleType) -> None:
    source = f"""
import pydoc, {module.__name__} as module
assert set(module.__all__) <= set(dir(module))
text = pydoc.plain(pydoc.render_doc(module))
print(all(name in text for name in module.__all__))
"""

    assert python(source) == "True"


def test_import_of_everything_works_in_both_spellings() -> None:
    for module in "unfazed.concurrency", "unfazed.concurrecy":
        assert python(f"from {module} import *; import {module} as m; print(set(m.__all__) <= set(vars()))") == "True"


@pytest.mark.parametrize("module", [unfazed.concurrency, unfazed.concurrecy])
def test_a_name_that_does_not_exist_gets_the_usual_error(module: ModuleType) -> None:
    with pytest.raises(
        AttributeError, match=r"module 'unfazed.concurrency' has no attribute 'run_in_treadpool'"
    ) as info:
        module.run_in_treadpool  # noqa: B018
    assert info.value.name == "run_in_treadpool"
    with pytest.raises(ImportError, match="cannot import name 'run_in_treadpool'"):
        exec(f"from {module.__name__} import run_in_treadpool")


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
from unfazed.concurrency import *
assert threading.active_count() == 1
added = {name.partition('.')[0] for name in set(sys.modules) - before}
print(*sorted(added))
"""
    added = python(anyio_alone + report).split()

    assert set(added) <= {
        *("unfazed", "pickle", "_pickle", "_compat_pickle", "copyreg", "traceback", "atexit", "gc"),
        *("queue", "_queue", "heapq", "_heapq"),
        *("array", "socket", "_socket"),  # as soon as a loop runs, asyncio or trio needs the last one as well
    }


ROOMS = {  # what a first use imports, besides `_core` and `_eventloops`
    "LoopThreadError": "",
    "Handle": "",
    "EventLoopThread": "",
    "run_in_eventloop_sync": "",
    "run_in_threadpool": "_threads",
    "run_in_processpool_sync": "_processes",
    "run_in_executor": "_executors",
    "iterate_in_threadpool": "_scoped _threads",
    "iterate_in_eventloop_sync": "_scoped",
    "contextmanager_in_threadpool": "_scoped _threads",
    "CallGroup": "_many",
    "(group := CallGroup()).__enter__().start_in_threadpool(int).result()": "_many _threads",
    "map_in_threadpool": "_many _scoped _threads",
    "list(map_in_threadpool_sync(int, '12'))": "_many _scoped _threads",
    "list(map_in_executor_sync(ThreadPoolExecutor(1), int, '12'))": "_executors _many _scoped _threads",
    "in_threadpool(int).sync()": "_dual _threads",
    "in_eventloop(anyio.sleep).sync(0)": "_dual",
    "in_executor(ThreadPoolExecutor(1), int).sync()": "_dual _executors",
    "in_processpool(int)": "_dual _processes",
    "list(in_threadpool(int).map.sync('12'))": "_dual _many _scoped _threads",
    "sync_twin": "_twins",
    "observe": "",
    "statistics": "_executors _inside _processes _threads",
}


@pytest.mark.parametrize("use", ROOMS)
def test_a_first_use_imports_only_the_rooms_that_it_needs(use: str) -> None:
    source = f"""
import sys
import unfazed.concurrency
print("anyio" in sys.modules)
import anyio
from concurrent.futures import ThreadPoolExecutor
class Names(dict):
    def __missing__(self, name):
        if name in unfazed.concurrency.__all__:
            return getattr(unfazed.concurrency, name)
        raise KeyError(name)
eval({use!r}, vars(), Names())
rooms = {{name.split(".")[2] for name in sys.modules if name.startswith("unfazed.concurrency.")}}
print(*sorted(rooms - {{"_core", "_eventloops"}}))
"""

    assert python(source).split() == ["False", *ROOMS[use].split()]


def test_an_exit_handler_of_the_program_makes_calls_though_the_rooms_are_imported_after_it() -> None:
    source = """
import atexit, unfazed.concurrency
def call():
    print(unfazed.concurrency.run_in_threadpool_sync(int, "1"), unfazed.concurrency.run_in_processpool_sync(int, "2"))
atexit.register(call)
call()
"""

    assert python(source).split() == ["1", "2", "1", "2"]


def test_a_room_that_is_imported_after_the_end_starts_nothing() -> None:
    source = """
import atexit
def call():
    for function in unfazed.concurrency.run_in_threadpool_sync, unfazed.concurrency.run_in_processpool_sync:
        try:
            function(int)
        except unfazed.concurrency.LoopEndedError:
            print("refused")
atexit.register(call)
import unfazed.concurrency
"""

    assert python(source).split() == ["refused", "refused"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_handler_of_the_program_makes_calls_though_the_rooms_are_imported_after_it() -> None:
    source = """
import os, sys, unfazed.concurrency, warnings
warnings.simplefilter("ignore")  # of threads that a fork leaves behind
def call():
    print(unfazed.concurrency.run_in_threadpool_sync(int, "1"), unfazed.concurrency.run_in_processpool_sync(int, "2"))
os.register_at_fork(after_in_child=call)
call()
sys.stdout.flush()
child = os.fork()
if not child:
    sys.stdout.flush()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
"""

    assert python(source).split() == ["1", "2", "1", "2"]


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
