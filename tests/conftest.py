"""Fixtures and helpers for all tests: backends, kinds of callers, and a check that a test leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import itertools
import os
import re
import signal
import sys
import sysconfig
import threading
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from anyio.to_thread import run_sync as run_in_anyios_thread  # imported now, because tests patch it
from processes import children_of

import unfazed.concurrency
from unfazed.concurrency._core import _limits, _slots
from unfazed.concurrency._eventloops import _background
from unfazed.concurrency._executors._call import calls_in_executors
from unfazed.concurrency._processes import _pool
from unfazed.concurrency._threads import _standby

if TYPE_CHECKING:
    import weakref
    from collections.abc import Awaitable, Callable, Collection, Iterator

# Programs that tests start get Python's dev mode without asyncio's debug mode, which warns of slow callbacks on a busy
# machine.
if os.environ.pop("PYTHONDEVMODE", ""):
    os.environ.update(PYTHONWARNINGS="default", PYTHONFAULTHANDLER="1", PYTHONMALLOC="debug")

# What runs in the background of a shell ignores Ctrl-C, and so do its children. Tests send it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

COVERAGE_CONFIG = "COVERAGE_PROCESS_CONFIG"  # set by coverage for the processes that are to be measured
GRACE_SECONDS = 10  # for threads and processes to end after a test; only a leak takes that long

BACKENDS: dict[str, tuple[str, dict[str, Any]]] = {
    "asyncio": ("asyncio", {}),
    "uvloop": ("asyncio", {"use_uvloop": True}),
    "trio": ("trio", {}),
}


def _backends() -> list[str]:
    """Return the backends that the environment names, else those that are installed."""
    named = os.environ.get("UNFAZED_TEST_BACKENDS")
    if named:
        return named.split(",")
    return [name for name in BACKENDS if name == "asyncio" or importlib.util.find_spec(name)]


NO_GIL = "UNFAZED_TEST_NO_GIL" in os.environ  # whether the interpreter must have no GIL
PYPY = sys.implementation.name == "pypy"
# CPython without a GIL: what a thread has made and others drop goes when that thread goes on, or is collected.
FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))
# At exit, CPython 3.13 without a GIL takes away what libraries import before it drops what the variables of the program
# refer to, because modules are immortal there once a thread has started: https://github.com/python/cpython/issues/117783
IMPORTS_GO_FIRST = FREE_THREADED and sys.version_info < (3, 14)
drops_at_once = pytest.mark.skipif(PYPY, reason="only CPython ends at once what nobody holds any more")


def assert_no_gil() -> None:
    """Fail if a module has switched the GIL on and the environment demands that there is none."""
    if NO_GIL:
        assert not sys._is_gil_enabled(), "the GIL is on"  # type: ignore[attr-defined,unused-ignore]


# The tests of the migration need no event loop, so an environment for trio only skips them. libcst has no wheels for
# PyPy and for Python 3.13 without a GIL.
if _backends() == ["trio"] or ((PYPY or NO_GIL) and not importlib.util.find_spec("libcst")):
    collect_ignore_glob = ["compat/test_migrate*.py"]


# Most tests in these files start an interpreter. On PyPy that takes a second, so one backend must do.
ON_ONE_BACKEND_OF_PYPY = {
    *("test_fork.py", "test_exit.py", "test_ctrl_c_in_programs.py"),
    *("test_workers.py", "test_workers_end.py", "test_workers_block_nobody.py", "test_workers_interrupted.py"),
    *("test_worker_output.py", "test_worker_deaths.py", "test_worker_loops.py", "test_log_records.py"),
    *("test_worker_settings.py", "test_worker_programs.py"),
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """On PyPy, deselect slow tests on trio that test the same on asyncio."""
    if PYPY and "asyncio" in _backends():
        left_out = {each for each in items if each.path.name in ON_ONE_BACKEND_OF_PYPY and "trio" in each.name}
        config.hook.pytest_deselected(items=list(left_out))
        items[:] = [each for each in items if each not in left_out]


@pytest.fixture(params=_backends())
def anyio_backend(request: pytest.FixtureRequest) -> tuple[str, dict[str, Any]]:
    return BACKENDS[request.param]


freeze: Callable[[], object] = getattr(gc, "freeze", bool)  # PyPy has none
COLLECT_EVERY = 50  # tests, on PyPy: each collection takes longer than most tests


def pytest_collection_finish() -> None:
    """Keep the garbage collector from visiting, after each test, what existed before the tests."""
    for name in ("trio", "hypothesis"):  # each looks for referrers on its first import
        if importlib.util.find_spec(name):
            importlib.import_module(name)
    assert_no_gil()
    gc.collect()
    freeze()


def pytest_sessionfinish() -> None:
    """Look again, for what was imported by fixtures of the whole session."""
    assert_no_gil()


def drop_garbage() -> None:
    """Collect garbage, except on CPython with a GIL, which frees an object as soon as nobody refers to it.

    On PyPy what has a finalizer, and all that this refers to, is freed in the collection after it was called.
    """
    for _ in range(3 if PYPY else FREE_THREADED):
        gc.collect()


@pytest.fixture
def background(anyio_backend: tuple[str, dict[str, Any]]) -> tuple[str, dict[str, Any]]:
    """Have the background event loop run on the backend under test."""
    backend, options = anyio_backend
    unfazed.concurrency.configure_background_eventloop(backend=backend, backend_options=options)
    return anyio_backend


Outcome = tuple[Any, "BaseException | None"]


def captured(call: Callable[[], Any]) -> Outcome:
    """Make *call* and return its result or its exception. Not every exception may leave a loop or a thread."""
    try:
        return call(), None
    except BaseException as exc:
        return None, exc


async def captured_async(call: Callable[[], Awaitable[Any]]) -> Outcome:
    try:
        return await call(), None
    except BaseException as exc:
        return None, exc


def in_plain_thread(call: Callable[[], Any]) -> Any:
    """Make *call* in a thread that belongs to no loop."""
    outcomes: list[Any] = []
    thread = threading.Thread(target=lambda: outcomes.append(call()), daemon=True)
    thread.start()
    thread.join(GRACE_SECONDS)
    assert outcomes, "the call hangs"
    return outcomes.pop()


@dataclass
class Caller:
    """Calls our helpers from one kind of place that users call them from."""

    kind: str
    backend: tuple[str, dict[str, Any]]

    def run(self, afn: Callable[..., Any], *args: Any) -> Any:
        """Run an async function in an event loop of this thread."""
        backend, options = self.backend
        return anyio.run(afn, *args, backend=backend, backend_options=options)

    def __call__(self, place: str, func: Any, /, *args: Any, **kwargs: Any) -> Any:
        helper = getattr(unfazed.concurrency, f"run_in_{place}{'' if self.kind == 'async' else '_sync'}")
        return self.make(partial(helper, func, *args, **kwargs))

    def dual(self, dual: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call a dual callable."""
        return self.make(partial(dual if self.kind == "async" else dual.sync, *args, **kwargs))

    def make(self, call: Callable[[], Any]) -> Any:
        """Make any call from the place of this caller."""
        ways: dict[str, Callable[[], Outcome]] = {
            "async": lambda: self.run(captured_async, call),
            "main thread": lambda: captured(call),
            "plain thread": lambda: in_plain_thread(partial(captured, call)),
            "our worker": lambda: self.run(unfazed.concurrency.run_in_threadpool, captured, call),
            "anyio's worker": lambda: self.run(anyio.to_thread.run_sync, captured, call),
        }
        value, error = ways[self.kind]()
        if error is None:
            return value
        try:
            raise error
        finally:
            del error


CALLERS = ("async", "main thread", "plain thread", "our worker", "anyio's worker")


@pytest.fixture(params=CALLERS)
def caller(request: pytest.FixtureRequest, background: tuple[str, dict[str, Any]]) -> Caller:
    if request.param == "plain thread":
        have_a_thread_stand_by()
    return Caller(request.param, background)


@pytest.fixture(params=[kind for kind in CALLERS if kind != "async"])
def sync_caller(request: pytest.FixtureRequest, background: tuple[str, dict[str, Any]]) -> Caller:
    if request.param == "plain thread":
        have_a_thread_stand_by()
    return Caller(request.param, background)


def have_a_thread_stand_by() -> None:
    """Make sure that the next call from a plain thread finds an idle worker thread and need not wake the loop."""
    for _ in range(2):
        assert unfazed.concurrency.run_in_threadpool_sync(int) == 0
    wait_until(lambda: _standby._idle, "no thread stands by")


class Blocking:
    """A function that blocks until `may_end` is set, and says when it has started."""

    def __init__(self) -> None:
        self.started = threading.Event()
        self.may_end = threading.Event()
        self.ended = False

    def __call__(self) -> str:
        self.started.set()
        assert self.may_end.wait(GRACE_SECONDS)
        self.ended = True
        return "a value that nobody waits for"

    async def wait_until_started(self) -> None:
        await wait_for_event(self.started)


class Gate:
    """Blocks threads until it is opened, and says when the first one has come."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self.opened = threading.Event()

    def wait(self) -> None:
        self.reached.set()
        assert self.opened.wait(GRACE_SECONDS), "the gate stays shut"

    async def wait_until_reached(self) -> None:
        await wait_for_event(self.reached)


async def wait_for_event(event: threading.Event) -> None:
    with anyio.CancelScope(shield=True):
        # its own limiter: the default one may have no free token
        waiting = run_in_anyios_thread(event.wait, GRACE_SECONDS, limiter=anyio.CapacityLimiter(1))
        assert await waiting, "it never happens"


async def let_others_run() -> None:
    with anyio.CancelScope(shield=True):
        for _ in range(10):
            await anyio.lowlevel.checkpoint()


def without_address(value: object) -> str:
    """Return what a test calls this parameter: the same in each process that runs tests."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def limit_threads(total: int) -> None:
    anyio.to_thread.current_default_thread_limiter().total_tokens = total


def wait_until(condition: Callable[[], object], what: str) -> None:
    """Wait until *condition* is true. Fail with *what* if that takes too long."""
    deadline = time.monotonic() + GRACE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.001)


def wait_until_none(left: Callable[[], Collection[object]]) -> None:
    """Wait until *left* returns nothing. Fail with what is left if that takes too long."""
    deadline = time.monotonic() + GRACE_SECONDS
    while rest := left():
        assert time.monotonic() < deadline, f"the test has left behind: {rest}"
        time.sleep(0.001)


def wait_until_gone(*references: weakref.ref[Any]) -> None:
    """Wait until nothing keeps what *references* refer to."""

    def left() -> list[weakref.ref[Any]]:
        gc.collect()
        return [each for each in references if each() is not None]

    wait_until_none(left)


def until_begun(has_begun: Callable[[], object]) -> Iterator[float]:
    """Yield longer and longer timeouts, until a call has begun before its timeout. A busy machine needs long ones."""
    seconds = 0.05
    while True:
        yield seconds
        if has_begun():
            return
        seconds *= 4


def end_background_eventloop() -> None:
    """End the background event loop, so that the next call starts a new one."""
    running = _background._background_thread
    if running is not None:
        running.stop(GRACE_SECONDS)
    _background._background_thread = None
    _background._successors.clear()
    _background._settings = None


def end_workers() -> None:
    """End all worker processes, so that the next call starts a new one."""
    events = _pool.pool._events
    _pool.pool.stop(GRACE_SECONDS)
    _pool.pool.reset()
    events.put(bool)


_tests = itertools.count()  # tests that have run
_earlier: set[int] = set()  # children from before the test: Python's resource tracker


def children() -> set[int]:
    """Return the child processes that the test has started."""
    return children_of(os.getpid()) - _earlier


@pytest.fixture(autouse=True)
def measure_one_backend(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have coverage measure worker processes on one backend only, because that takes twice as long as their start."""
    config = os.environ.get(COVERAGE_CONFIG)
    callspec = getattr(request.node, "callspec", None)
    if config is None or callspec is None or callspec.params.get("anyio_backend", _backends()[0]) == _backends()[0]:
        yield
        return
    del os.environ[COVERAGE_CONFIG]
    yield
    os.environ[COVERAGE_CONFIG] = config


@pytest.fixture(autouse=True)
def leave_nothing_behind() -> Iterator[None]:
    """Fail a test that leaves a thread, a child process, a slot or an un-awaited coroutine behind."""
    threads = set(threading.enumerate())
    _earlier.clear()
    _earlier.update(children_of(os.getpid(), recursive=True))

    yield

    end_background_eventloop()
    end_workers()
    running_loop = asyncio.events._get_running_loop()
    assert running_loop is None, "the test left an event loop running in the main thread"
    # trio's threads stay in its cache for ten idle seconds
    wait_until_none(
        lambda: [new for new in threading.enumerate() if new not in threads and not new.name.startswith("Trio thread")]
    )
    wait_until_none(lambda: children_of(os.getpid(), recursive=True) - _earlier)
    # an abandoned thread of trio's gives its slot back shortly after its function has ended
    wait_until_none(lambda: [limit for limit in list(_limits.limits.values()) if limit.occupied or limit.running])
    wait_until_none(lambda: _slots._watched)
    wait_until_none(calls_in_executors)
    assert_no_gil()
    if not PYPY or next(_tests) % COLLECT_EVERY == 0:
        gc.collect()  # warnings of finalizers come here
        freeze()  # later collections need not visit what is left
