"""`check_cancelled()`: a function in a thread ends of its own accord when nobody waits for it any more."""

from __future__ import annotations

import asyncio
import functools
import gc
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from conftest import GRACE_SECONDS, captured, captured_async, wait_for_event, wait_until

from unfazed.concurrency import (
    CallTimeoutError,
    check_cancelled,
    contextmanager_in_threadpool,
    count_abandoned_threads,
    in_threadpool,
    iterate_in_threadpool,
    run_in_eventloop_sync,
    run_in_executor_sync,
    run_in_processpool_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Caller

Backend = tuple[str, dict[str, Any]]


class Checking:
    """A function that runs until `check_cancelled` raises. It says when it has begun, and what was raised."""

    def __init__(self, cleanup: Callable[[], object] = bool) -> None:
        self.begun = threading.Event()
        self.ended = threading.Event()
        self.raised: BaseException | None = None
        self.cleaned_up: Any = None
        self._cleanup = cleanup

    def __call__(self) -> None:
        try:
            check_cancelled()
            self.begun.set()
            deadline = time.monotonic() + GRACE_SECONDS
            while time.monotonic() < deadline:
                check_cancelled()
                time.sleep(0.001)
        except BaseException as exc:
            self.raised = exc
            raise
        finally:
            self.cleaned_up = captured(self._cleanup)
            self.ended.set()

    def nested(self) -> None:
        """Make the call from a thread that waits for it."""
        run_in_threadpool_sync(self)

    def assert_cancelled(self, backend: Backend) -> None:
        assert self.ended.wait(GRACE_SECONDS)
        error, self.raised = self.raised, None
        assert type(error).__name__ == ("Cancelled" if backend[0] == "trio" else "CancelledError")
        assert type(error).__module__.partition(".")[0] == backend[0]


CALLS: dict[str, Callable[[Checking], Callable[[], Any]]] = {
    "plain": lambda function: functools.partial(run_in_threadpool, function),
    "with options": lambda function: in_threadpool(function, timeout=GRACE_SECONDS),
    "abandoned": lambda function: in_threadpool(function, abandon_on_cancel=True),
    "nested": lambda function: functools.partial(run_in_threadpool, function.nested),
    "of anyio's": lambda function: functools.partial(anyio.to_thread.run_sync, function),
}


@pytest.mark.anyio
@pytest.mark.parametrize("how", CALLS)
async def test_a_cancelled_caller_ends_the_function(anyio_backend: Backend, how: str) -> None:
    function = Checking()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(CALLS[how](function))
            await wait_for_event(function.begun)
            scope.cancel()

    assert scope.cancelled_caught
    function.assert_cancelled(anyio_backend)


@pytest.mark.parametrize("how", [how for how in CALLS if how != "of anyio's"])
def test_asyncios_own_cancellation_ends_the_function(how: str) -> None:
    async def main() -> None:
        function = Checking()
        task = asyncio.ensure_future(CALLS[how](function)())
        await wait_for_event(function.begun)
        task.cancel()
        await asyncio.wait([task])

        assert task.cancelled()
        function.assert_cancelled(("asyncio", {}))

    asyncio.run(main())


def test_a_caller_whose_time_is_up_ends_the_function(caller: Caller, capfd: pytest.CaptureFixture[str]) -> None:
    function = Checking()

    for seconds in (0.05, 0.5, 5):
        with pytest.raises(CallTimeoutError):
            caller.dual(in_threadpool(function, timeout=seconds))
        if function.begun.is_set():
            break
    function.assert_cancelled(caller.backend)

    wait_until(lambda: not count_abandoned_threads(), "the thread stays abandoned")
    gc.collect()
    assert capfd.readouterr() == ("", "")


@pytest.mark.anyio
async def test_a_function_that_was_abandoned_ends_without_a_word(
    anyio_backend: Backend, capfd: pytest.CaptureFixture[str]
) -> None:
    function = Checking()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_threadpool(function, abandon_on_cancel=True))
            await wait_for_event(function.begun)
            scope.cancel()
    function.assert_cancelled(anyio_backend)
    await anyio.sleep(0)
    gc.collect()

    assert capfd.readouterr() == ("", "")


class Interrupted(Exception):  # noqa: N818
    """What the signal handler raises."""


@pytest.fixture
def interrupt() -> Iterator[Callable[[Checking], None]]:
    """Have a signal handler raise in the main thread when a function has begun."""

    def raise_it(*args: object) -> None:
        raise Interrupted

    def when_begun(function: Checking) -> None:
        def send() -> None:
            assert function.begun.wait(GRACE_SECONDS)
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

        threading.Thread(target=send).start()

    before = signal.signal(signal.SIGUSR1, raise_it)
    yield when_begun
    signal.signal(signal.SIGUSR1, before)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("options", [{}, {"timeout": GRACE_SECONDS}])
def test_a_sync_caller_that_is_interrupted_ends_the_function(
    background: Backend, interrupt: Callable[[Checking], None], options: dict[str, Any], nested: bool
) -> None:
    function = Checking()
    interrupt(function)

    with pytest.raises(Interrupted):
        in_threadpool(function.nested if nested else function, **options).sync()

    assert function.ended.is_set()  # it was waited for
    function.assert_cancelled(background)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_async_code_between_two_threads_passes_it_on(
    background: Backend, interrupt: Callable[[Checking], None]
) -> None:
    function = Checking()
    interrupt(function)

    with pytest.raises(Interrupted):
        run_in_eventloop_sync(run_in_threadpool, function)

    function.assert_cancelled(background)


@pytest.mark.anyio
async def test_sync_calls_in_the_cleanup_do_what_async_cleanup_does(anyio_backend: Backend) -> None:
    """asyncio cancels one wait, trio all."""
    function = Checking(lambda: run_in_eventloop_sync(captured_async, anyio.lowlevel.checkpoint))
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            # with an option: without one, trio cancels the calls of the thread by itself
            tasks.start_soon(in_threadpool(function, timeout=GRACE_SECONDS))
            await wait_for_event(function.begun)
            scope.cancel()
    function.assert_cancelled(anyio_backend)

    (_, seen_by_cleanup), error = function.cleaned_up
    assert error is None
    assert (seen_by_cleanup is not None) == (anyio_backend[0] == "trio")


@pytest.mark.anyio
async def test_it_raises_again_and_again(anyio_backend: Backend) -> None:
    function = Checking(lambda: [type(captured(check_cancelled)[1]).__name__ for _ in range(3)])
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_threadpool(function, abandon_on_cancel=True))
            await wait_for_event(function.begun)
            scope.cancel()
    function.assert_cancelled(anyio_backend)

    assert function.cleaned_up == (["Cancelled" if anyio_backend[0] == "trio" else "CancelledError"] * 3, None)


def test_where_nobody_waits_it_does_nothing(caller: Caller) -> None:
    assert caller.make(check_as_async if caller.kind == "async" else check_cancelled) is None


async def check_as_async() -> None:
    check_cancelled()


def test_where_the_caller_waits_it_does_nothing(caller: Caller) -> None:
    assert caller("threadpool", check_cancelled) is None


def test_in_executors_and_in_worker_processes_it_does_nothing() -> None:
    with ThreadPoolExecutor(1) as executor:
        assert run_in_executor_sync(executor, check_cancelled) is None
    assert run_in_processpool_sync(check_cancelled) is None


@pytest.mark.anyio
async def test_async_code_in_a_cancelled_thread_is_not_disturbed(anyio_backend: Backend) -> None:
    name, options = anyio_backend
    function = Checking(lambda: anyio.run(check_as_async, backend=name, backend_options=options))
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(in_threadpool(function, abandon_on_cancel=True))
            await wait_for_event(function.begun)
            scope.cancel()
    function.assert_cancelled(anyio_backend)

    assert function.cleaned_up == (None, None)


class Items:
    """A generator that runs until it is cancelled while it fetches the second item."""

    def __init__(self) -> None:
        self.function = Checking()

    def __iter__(self) -> Iterator[int]:
        yield 1
        self.function()
        yield pytest.fail("is never reached")


@pytest.mark.anyio
async def test_a_consumer_that_is_cancelled_ends_the_step(anyio_backend: Backend) -> None:
    source = Items()
    items = iterate_in_threadpool(source)
    assert await anext(items) == 1

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(captured_async, items.__anext__)
            await wait_for_event(source.function.begun)
            scope.cancel()

    source.function.assert_cancelled(anyio_backend)
    await items.aclose()


@pytest.mark.anyio
async def test_a_consumer_that_leaves_ends_what_is_fetched_in_advance(anyio_backend: Backend) -> None:
    source = Items()
    async with aclosing(iterate_in_threadpool(source, prefetch=5)) as items:
        assert await anext(items) == 1
        await wait_for_event(source.function.begun)

    source.function.assert_cancelled(anyio_backend)


@pytest.mark.anyio
async def test_leaving_a_context_manager_is_not_stopped() -> None:
    left = []

    @contextmanager
    def manager() -> Iterator[None]:
        yield
        check_cancelled()
        left.append("left")

    with anyio.CancelScope() as scope:
        async with contextmanager_in_threadpool(manager()):
            scope.cancel()

    assert left == ["left"]
