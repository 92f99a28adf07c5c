"""A signal handler raises at any bytecode: every thread gets an answer, every slot comes back, calls still work.

`interrupting.py` says how.
"""

from __future__ import annotations

import contextvars
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from conftest import GRACE_SECONDS, captured, wait_until, wait_until_none
from interrupting import TRACES, Steps, numbers, raise_alarm

import unfazed.concurrency
from unfazed.concurrency import (
    CallTimeoutError,
    EventLoopThread,
    contextmanager_in_eventloop_sync,
    contextmanager_in_threadpool,
    count_abandoned_threads,
    in_eventloop,
    in_threadpool,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_executor,
    run_in_executor_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._core import _contexts, _limits, _slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

FOLDER = str(Path(unfazed.concurrency.__file__).parent)
STEPS = 15  # about how many bytecodes of each operation are tried; arbitrary

pytestmark = [
    *TRACES,
    pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning"),
]


async def one() -> int:
    return 1


async def two() -> int:
    await anyio.sleep(0)
    return 2


async def numbers_async() -> AsyncIterator[int]:
    for number in range(2):
        yield number


@contextmanager
def sync_manager() -> Iterator[None]:
    yield


@asynccontextmanager
async def async_manager() -> AsyncIterator[None]:
    yield


class Scene:
    """One run of an operation, with its event loops and the threads that wait for them."""

    executor: ThreadPoolExecutor

    def __init__(self, backend: tuple[str, dict[str, Any]]) -> None:
        self.backend = backend
        self.begun: list[None] = []
        self.over: list[None] = []

    def run(self, func: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        name, options = self.backend
        return anyio.run(func, *args, backend=name, backend_options=options)

    def in_a_worker(self, *calls: Callable[[], Any], start: Any = run_in_threadpool) -> None:
        """Make sync calls in a worker thread of a loop in the main thread."""
        self.run(start, self.worker(*calls))

    def worker(self, *calls: Callable[[], Any]) -> Callable[[], None]:
        def work() -> None:
            self.begun.append(None)
            try:
                for call in calls:
                    call()
            finally:
                self.over.append(None)

        return work


def in_a_thread(scene: Scene) -> None:
    scene.run(run_in_threadpool, int)


def a_worker_that_calls_back(scene: Scene) -> None:
    scene.in_a_worker(lambda: run_in_eventloop_sync(one), lambda: run_in_eventloop_sync(two))


def a_worker_of_anyios_that_calls_back(scene: Scene) -> None:
    scene.in_a_worker(lambda: run_in_eventloop_sync(two), start=anyio.to_thread.run_sync)


def use_what_is_async() -> None:
    with contextmanager_in_eventloop_sync(async_manager()):
        for _ in iterate_in_eventloop_sync(numbers_async()):
            pass


def a_worker_that_iterates(scene: Scene) -> None:
    scene.in_a_worker(use_what_is_async)


def a_worker_of_anyios_that_iterates(scene: Scene) -> None:
    scene.in_a_worker(use_what_is_async, start=anyio.to_thread.run_sync)


def calls_that_queue(scene: Scene) -> None:
    call = in_threadpool(int, limiter=anyio.CapacityLimiter(1))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(call)

    scene.run(main)


def with_options(scene: Scene) -> None:
    call = in_threadpool(int, timeout=30, context=contextvars.copy_context(), limiter=anyio.CapacityLimiter(1))
    scene.run(call)


def cancelled(scene: Scene) -> None:
    started, may_end = threading.Event(), threading.Event()

    def block() -> None:
        started.set()
        may_end.wait(GRACE_SECONDS)

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_threadpool, block)
            while not started.is_set():
                await anyio.sleep(0.001)
            threading.Timer(0.002, may_end.set).start()
            tasks.cancel_scope.cancel()

    try:
        scene.run(main)
    finally:
        may_end.set()


def cancelled_in_a_call(scene: Scene) -> None:
    started = threading.Event()
    work = scene.worker(started.set, lambda: run_in_eventloop_sync(anyio.sleep, 5))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_threadpool, work)
            while not started.is_set():
                await anyio.sleep(0.001)
            await anyio.sleep(0.002)
            tasks.cancel_scope.cancel()

    scene.run(main)


def abandoned(scene: Scene) -> None:
    may_end = threading.Event()
    call = in_threadpool(may_end.wait, timeout=0.01)

    async def main() -> None:
        with suppress(CallTimeoutError):
            await call(GRACE_SECONDS)

    try:
        scene.run(main)
    finally:
        may_end.set()


def from_sync_code(_: Scene) -> None:
    run_in_threadpool_sync(int)
    run_in_eventloop_sync(one)


def from_sync_code_with_options(_: Scene) -> None:
    in_threadpool(int, timeout=30, limiter=anyio.CapacityLimiter(1)).sync()
    in_eventloop(two, timeout=30, context=contextvars.copy_context()).sync()


def in_the_background(scene: Scene) -> None:
    scene.run(run_in_eventloop, two)


def in_an_executor(scene: Scene) -> None:
    scene.run(run_in_executor, scene.executor, int)
    run_in_executor_sync(scene.executor, int)


def over_an_iterator(scene: Scene) -> None:
    async def main() -> None:
        async for _ in iterate_in_threadpool([1, 2]):
            pass
        async for _ in iterate_in_threadpool(iter([1, 2, 3]), prefetch=2):
            break

    scene.run(main)


def over_an_async_iterator(_: Scene) -> None:
    for _number in iterate_in_eventloop_sync(numbers_async()):
        pass
    for _number in iterate_in_eventloop_sync(numbers_async()):
        break


def with_managers(scene: Scene) -> None:
    async def main() -> None:
        async with contextmanager_in_threadpool(sync_manager()):
            pass

    scene.run(main)
    with contextmanager_in_eventloop_sync(async_manager()):
        pass


def in_a_loop_of_its_own(scene: Scene) -> None:
    loop = EventLoopThread(*scene.backend)
    try:
        with loop:
            loop.run_sync(one)
    finally:
        loop.stop()  # for the handler that raises as `with` is about to do it


OPERATIONS = (
    in_a_thread,
    a_worker_that_calls_back,
    a_worker_of_anyios_that_calls_back,
    a_worker_that_iterates,
    a_worker_of_anyios_that_iterates,
    calls_that_queue,
    with_options,
    cancelled,
    cancelled_in_a_call,
    abandoned,
    from_sync_code,
    from_sync_code_with_options,
    in_the_background,
    in_an_executor,
    over_an_iterator,
    over_an_async_iterator,
    with_managers,
    in_a_loop_of_its_own,
)


@pytest.fixture(scope="module", autouse=True)
def executor() -> Iterator[None]:
    with ThreadPoolExecutor(1) as Scene.executor:
        Scene.executor.submit(int).result(GRACE_SECONDS)
        yield


def what_is_taken() -> list[str]:
    limits = [
        f"a limit with {limit.occupied} slots taken and {len(limit.queue)} calls queued"
        for limit in list(_limits.limits.values())
        if limit.holders or limit.queue or limit.occupied or limit.running
    ]
    abandoned = count_abandoned_threads()
    if abandoned:
        limits.append(f"{abandoned} abandoned threads")
    if limits or _contexts._leases:
        gc.collect()
    return [*limits, *map(str, _contexts._leases)]


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_signal_handler_that_raises_leaves_nothing_taken_and_nobody_waiting(
    operation: Callable[[Scene], None], anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    assert run_in_threadpool_sync(int) == 0
    for number in numbers(lambda: operation(Scene(anyio_backend)), FOLDER, STEPS):
        scene = Scene(anyio_backend)
        with Steps(raise_alarm, number, FOLDER) as steps:
            captured(lambda scene=scene: operation(scene))  # type: ignore[misc]
        where = f"{steps.where}, number {number}"
        wait_until(lambda scene=scene: len(scene.begun) == len(scene.over), f"{where}: a thread waits")  # type: ignore[misc]
        wait_until_none(what_is_taken)
        wait_until(lambda: not _slots._owner, f"{where}: a thread counts as inside the lock")  # the watcher may be
        assert run_in_threadpool_sync(int) == 0, where
        assert run_in_eventloop_sync(one) == 1, where
        assert scene.run(run_in_threadpool, int) == 0, where


class Dropped:
    """Gives a slot back and starts calls when it is collected, as forgotten iterators and coroutines do."""

    def __init__(self, seen: list[BaseException | None], slot: _limits.Slot) -> None:
        self._seen = seen
        self._slot = slot
        self._items = iterate_in_threadpool([1])

    def __del__(self) -> None:
        _slots.release(self._slot)
        self._items = None  # type: ignore[assignment]
        self._seen.append(captured(lambda: run_in_threadpool_sync(int))[1])


@pytest.mark.parametrize("operation", [in_a_thread, calls_that_queue, from_sync_code, a_worker_that_calls_back])
def test_a_finalizer_amid_a_call_changes_nothing_there(
    operation: Callable[[Scene], None], anyio_backend: tuple[str, dict[str, Any]]
) -> None:
    """A finalizer may make calls. A call that would wait for the interrupted code gets an error."""
    limiter = anyio.CapacityLimiter(1)
    assert run_in_threadpool_sync(int) == 0
    for number in numbers(lambda: operation(Scene(anyio_backend)), FOLDER, STEPS):
        seen: list[BaseException | None] = []
        dropped = [Dropped(seen, _slots.acquire(limiter))]
        scene = Scene(anyio_backend)
        with Steps(dropped.clear, number, FOLDER) as steps:
            operation(scene)
        dropped.clear()
        where = f"{steps.where}, number {number}"
        assert all(isinstance(error, (RuntimeError, type(None))) for error in seen), (where, seen)
        wait_until_none(what_is_taken)
        slot = _slots.acquire(limiter)
        assert slot.held, where
        _slots.release(slot)
