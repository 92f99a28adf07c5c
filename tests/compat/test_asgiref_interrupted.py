"""What happens between any two bytecodes of the adapter: a signal handler raises or calls, or a finalizer runs.

Each operation is run again and again, and each time something happens at another bytecode: `interrupting.py` says how.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import signal
import sys
import threading
import traceback
from contextlib import suppress
from contextvars import copy_context
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import unfazed_compat
from asgiref_helpers import end_fallback_executor, end_threads
from conftest import GRACE_SECONDS, captured, in_plain_thread, wait_until
from interrupting import TRACES, Alarm, Steps, numbers
from unfazed_compat.asgiref import (
    AsyncSingleThreadContext,
    ThreadSensitiveContext,
    _currentthreadexecutor,
    _loopthreads,
    _shared,
    async_to_sync,
    sync_to_async,
)
from unfazed_compat.asgiref._singlethreadexecutor import SingleThreadExecutor

from unfazed.concurrency import ExecutorError, LoopEndedError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from concurrent.futures import Future

assert end_threads  # a fixture

FOLDER = str(Path(unfazed_compat.__file__).parent)
STEPS = 40  # about how many bytecodes of each operation are tried here; arbitrary

pytestmark = [
    *TRACES,
]


class Stop(BaseException):
    """What another one raises, which asyncio does not swallow."""


async def one() -> int:
    return 1


class Threads:
    """Threads that wait for the main thread's loop. Every one has to come back."""

    def __init__(self) -> None:
        self.begun, self.over = itertools.count(), itertools.count()
        self._begun, self._over = list[int](), list[int]()

    def call(self) -> int:
        self._begun.append(1)
        try:
            return async_to_sync(one)()
        finally:
            self._over.append(1)

    def are_back(self) -> bool:
        return len(self._begun) == len(self._over)


def run_in_loop(func: Callable[[], Awaitable[Any]]) -> Any:
    async def main() -> Any:
        asyncio.get_running_loop().set_exception_handler(lambda *_: None)  # of what we raise in callbacks
        return await func()

    return asyncio.run(main())


def from_sync_code(_: Threads) -> None:
    async_to_sync(one)()


def in_one_thread(_: Threads) -> None:
    with AsyncSingleThreadContext():
        async_to_sync(one)()


def in_a_new_loop(_: Threads) -> None:
    async_to_sync(one, force_new_loop=True)()


def back_into_the_main_thread(_: Threads) -> None:
    async def main() -> None:
        assert await sync_to_async(threading.current_thread)() is threading.main_thread()

    async_to_sync(main)()


def into_a_thread(_: Threads) -> None:
    run_in_loop(sync_to_async(threading.get_ident))


def into_any_thread(_: Threads) -> None:
    run_in_loop(sync_to_async(threading.get_ident, thread_sensitive=False))


def into_the_thread_of_a_context(_: Threads) -> None:
    async def main() -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(threading.get_ident)()

    run_in_loop(main)


def there_and_back(threads: Threads) -> None:
    run_in_loop(sync_to_async(threads.call))


def there_and_back_in_any_thread(threads: Threads) -> None:
    run_in_loop(sync_to_async(threads.call, thread_sensitive=False))


def back_and_there_and_back(threads: Threads) -> None:
    async def main() -> None:
        await sync_to_async(threads.call)()

    async_to_sync(main)()


def two_threads_that_wait_for_the_loop(threads: Threads) -> None:
    async def main() -> None:
        call = sync_to_async(threads.call, thread_sensitive=False)
        await asyncio.gather(call(), call(), sync_to_async(threads.call)())

    run_in_loop(main)


OPERATIONS = (
    from_sync_code,
    in_one_thread,
    in_a_new_loop,
    back_into_the_main_thread,
    into_a_thread,
    into_any_thread,
    into_the_thread_of_a_context,
    there_and_back,
    there_and_back_in_any_thread,
    back_and_there_and_back,
    two_threads_that_wait_for_the_loop,
)


class Guard:
    """Fail what hangs, with a signal: the main thread may be waiting anywhere."""

    def __enter__(self) -> Guard:
        self._before = signal.signal(signal.SIGALRM, self._handle)
        signal.setitimer(signal.ITIMER_REAL, GRACE_SECONDS + 5, 1)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, self._before)

    def _handle(self, *_: object) -> None:
        raise KeyboardInterrupt("it hangs")


def check(threads: Threads, when: str) -> None:
    """Check that all is as before."""
    assert sys.exc_info()[1] is None, when
    wait_until(threads.are_back, f"a thread waits for ever, after {when}")
    assert getattr(_shared.executors, "current", None) is None, when
    assert "main_event_loop" not in vars(_shared.threadlocal), when
    assert _shared.thread_sensitive_context.get(None) is None, when
    assert _shared.async_single_thread_context.get(None) is None, when
    own = _loopthreads.loop_thread_of_this_thread()
    assert own is not None, when
    assert not own._calls_by_thread, when
    wait_until(lambda: not _shared.loop_thread_executors, f"a loop still runs a call, after {when}")
    assert async_to_sync(one)() == 1, when
    assert in_plain_thread(async_to_sync(one)) == 1, when
    assert asyncio.run(sync_to_async(threading.get_ident)()) != threading.get_ident(), when


def what_raises(error: type[BaseException]) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


@pytest.fixture(autouse=True)
def no_thread_dies(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail if a thread dies, and make the threads check their calls more often."""
    monkeypatch.setattr(_currentthreadexecutor, "CHECK_SECONDS", 0.05)
    dead: list[str] = []

    def note(args: threading.ExceptHookArgs) -> None:
        if not isinstance(
            args.exc_value, (Alarm, Stop, ExecutorError, LoopEndedError)
        ):  # an error of a call that nobody waits for
            dead.append("".join(traceback.format_exception(args.exc_value)))

    monkeypatch.setattr(threading, "excepthook", note)

    yield

    gc.collect()  # tracebacks in cycles hold what has a thread
    assert not dead, "\n".join(dead)


@pytest.mark.parametrize("error", [Alarm, Stop])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_signal_handler_may_raise_at_any_bytecode(
    operation: Callable[[Threads], None], error: type[BaseException]
) -> None:
    for step in numbers(lambda: operation(Threads()), FOLDER, STEPS):
        threads, steps = Threads(), Steps(what_raises(error), step, FOLDER)
        outcome: Any = None
        with Guard():
            with suppress(Alarm, Stop, RuntimeError, asyncio.CancelledError), steps:
                outcome = copy_context().run(captured, lambda: operation(threads))  # noqa: B023
            assert not isinstance(outcome and outcome[1], KeyboardInterrupt), steps.where
            copy_context().run(check, threads, steps.where)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_signal_handler_may_call_at_any_bytecode(operation: Callable[[Threads], None]) -> None:
    for step in numbers(lambda: operation(Threads()), FOLDER, STEPS):
        threads, outcomes = Threads(), list[Any]()
        steps = Steps(lambda: outcomes.append(captured(async_to_sync(one))), step, FOLDER)  # noqa: B023
        with Guard():
            with steps:
                copy_context().run(operation, threads)
            copy_context().run(check, threads, steps.where)

        for value, error in outcomes:
            assert value == 1 or "same thread as an async event loop" in str(error), steps.where


def finalize() -> None:
    """Do what a finalizer could do."""
    with suppress(RuntimeError):  # a loop runs in this thread
        assert async_to_sync(one)() == 1
    current = getattr(_shared.executors, "current", None)
    if current is not None:
        with suppress(RuntimeError):  # it is this very thread's
            current.submit(int)
    _loopthreads.LoopThread().submit(int)
    executor = SingleThreadExecutor()
    future: Future[int] = executor.submit(int)
    assert future.result(GRACE_SECONDS) == 0
    executor.shutdown(wait=False)
    SingleThreadExecutor().submit(int)
    sync_to_async(int)().close()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_finalizer_may_run_at_any_bytecode_of_any_thread(operation: Callable[[Threads], None]) -> None:
    for step in numbers(lambda: operation(Threads()), FOLDER, STEPS, everywhere=True):
        threads, errors = Threads(), list[BaseException | None]()
        steps = Steps(lambda: errors.append(captured(finalize)[1]), step, FOLDER, everywhere=True)  # noqa: B023
        with Guard():
            with steps:
                copy_context().run(operation, threads)
            copy_context().run(check, threads, steps.where)

        assert errors in ([], [None]), steps.where
        end_fallback_executor()  # so that the next operation starts a thread as well
        _loopthreads.end_loop_threads(GRACE_SECONDS)
