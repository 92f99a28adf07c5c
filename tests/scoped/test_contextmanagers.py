"""Context managers across the border, in both directions."""

from __future__ import annotations

import asyncio
import contextvars
import subprocess
import sys
import threading
import traceback
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.abc
import anyio.lowlevel
import anyio.to_thread
import pytest
from conftest import (
    GRACE_SECONDS,
    Caller,
    Gate,
    captured,
    captured_async,
    end_background_eventloop,
    let_others_run,
    limit_threads,
    seen,
    wait_until,
)

from unfazed.concurrency import (
    EventLoopThread,
    InUseError,
    LoopEndedError,
    LoopThreadError,
    WrongFunctionError,
    WrongOptionError,
    contextmanager_in_eventloop_sync,
    contextmanager_in_threadpool,
    run_in_eventloop_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)
from unfazed.concurrency._scoped import _contextmanagers, _threadrunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from types import TracebackType

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


class Manager(AbstractContextManager["Manager", "bool | None"]):
    """Notes when it is entered and left, where, and with what."""

    def __init__(self, *, suppress: bool = False) -> None:
        self.suppress = suppress
        self.threads: list[int] = []
        self.times_entered = 0
        self.left_with: list[BaseException | None] = []
        self.left = threading.Event()

    def __enter__(self) -> Manager:
        self.threads.append(threading.get_ident())
        self.times_entered += 1
        return self

    def __exit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
        self.threads.append(threading.get_ident())
        self.left_with.append(exc)
        self.left.set()
        return self.suppress


class GatedManager(Manager):
    """Is held up at gates, on entering and on leaving."""

    def __init__(self, *, on_enter: bool = False, on_exit: bool = False) -> None:
        super().__init__()
        self.on_enter = Gate()
        self.on_exit = Gate()
        if not on_enter:
            self.on_enter.opened.set()
        if not on_exit:
            self.on_exit.opened.set()

    def __enter__(self) -> Manager:
        self.on_enter.wait()
        return super().__enter__()

    def __exit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
        self.on_exit.wait()
        return super().__exit__(exc_type, exc, tb)


def is_cancellation(error: object) -> bool:
    return type(error).__name__ in ("CancelledError", "Cancelled")


# A sync context manager, from async code


@pytest.mark.anyio
async def test_entered_and_left_in_one_thread_and_one_context() -> None:
    threads: set[int] = set()

    @contextmanager
    def manager() -> Iterator[str]:
        token = variable.set("inside")
        threads.add(threading.get_ident())
        try:
            yield variable.get()
        finally:
            threads.add(threading.get_ident())
            variable.reset(token)
            after.append(variable.get())

    after: list[str] = []
    variable.set("the caller's")
    async with contextmanager_in_threadpool(manager()) as value:
        variable.set("changed in the body")

    assert (value, after) == ("inside", ["the caller's"])
    assert len(threads) == 1
    assert threading.get_ident() not in threads


@pytest.mark.anyio
async def test_left_with_nothing_when_the_body_ends_well() -> None:
    manager = Manager()

    async with contextmanager_in_threadpool(manager) as value:
        assert value is manager

    assert manager.left_with == [None]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3), GeneratorExit()], ids=repr)
async def test_exceptions_are_passed_in_and_go_on(error: BaseException) -> None:
    manager = Manager()

    async def body() -> None:
        async with contextmanager_in_threadpool(manager):
            raise error

    assert await captured_async(body) == (None, error)
    assert manager.left_with == [error]


@pytest.mark.anyio
@pytest.mark.parametrize("error", [StopIteration(), StopAsyncIteration()], ids=repr)
async def test_stop_iterations_are_passed_in_and_do_not_hang(error: BaseException) -> None:
    manager = Manager(suppress=True)

    async with contextmanager_in_threadpool(manager):
        raise error

    assert manager.left_with == [error]


@pytest.mark.anyio
async def test_exceptions_can_be_suppressed() -> None:
    async with contextmanager_in_threadpool(Manager(suppress=True)):
        raise ValueError("no")


@pytest.mark.anyio
async def test_what_entering_raised_is_raised_with_its_traceback_and_nothing_is_left() -> None:
    class Failing(Manager):
        def __enter__(self) -> Manager:
            raise ValueError("entering")

    manager = Failing()

    with pytest.raises(ValueError, match="entering") as caught:
        async with contextmanager_in_threadpool(manager):
            pytest.fail("not entered")

    assert traceback.extract_tb(caught.tb)[-1].line == 'raise ValueError("entering")'
    assert manager.left_with == []


class FailsToLeave(Manager):
    def __exit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
        super().__exit__(exc_type, exc, tb)
        raise ValueError("leaving")


@pytest.mark.anyio
async def test_what_leaving_raised_is_raised() -> None:
    with pytest.raises(ValueError, match="leaving"):
        async with contextmanager_in_threadpool(FailsToLeave()):
            pass


@pytest.mark.anyio
async def test_what_leaving_raised_wins_over_what_the_body_raised() -> None:
    manager = FailsToLeave()
    error = KeyError("body")

    async def body() -> None:
        async with contextmanager_in_threadpool(manager):
            raise error

    with pytest.raises(ValueError, match="leaving"):
        await body()
    assert manager.left_with == [error]


@pytest.mark.anyio
async def test_what_leaving_raised_is_raised_however_fast_that_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: the runner is left. 2: its thread has ended. 3: only now does the loop get round to waiting for that."""
    leave = _threadrunner.ThreadRunner.leave

    def leave_and_let_it_end(runner: _threadrunner.ThreadRunner[Any]) -> None:
        leave(runner)
        wait_until(lambda: runner._outcome is not None, "the thread ends")

    monkeypatch.setattr(_threadrunner.ThreadRunner, "leave", leave_and_let_it_end)

    with pytest.raises(ValueError, match="leaving"):
        async with contextmanager_in_threadpool(FailsToLeave()):
            pass


@pytest.mark.anyio
async def test_an_entered_one_holds_no_slot_and_entering_takes_one() -> None:
    limit_threads(1)
    gate = Gate()

    async with contextmanager_in_threadpool(Manager()), contextmanager_in_threadpool(Manager()):
        assert await run_in_threadpool(int) == 0

    second = Manager()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, gate.wait)
        await gate.wait_until_reached()
        async with anyio.create_task_group() as entering:
            entering.start_soon(contextmanager_in_threadpool(second).__aenter__)
            await let_others_run()
            entering.cancel_scope.cancel()
        gate.opened.set()

    assert second.times_entered == 0


@pytest.mark.anyio
async def test_entering_takes_its_slot_of_the_limiter_that_is_given() -> None:
    limit_threads(1)
    own = anyio.CapacityLimiter(1)
    gate = Gate()
    first, second = GatedManager(on_enter=True), Manager()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_threadpool, gate.wait)
        await gate.wait_until_reached()
        async with anyio.create_task_group() as entering:
            entering.start_soon(contextmanager_in_threadpool(first, limiter=own).__aenter__)
            await first.on_enter.wait_until_reached()  # though the pool is exhausted
            entering.start_soon(contextmanager_in_threadpool(second, limiter=own).__aenter__)
            await let_others_run()
            entering.cancel_scope.cancel()
            first.on_enter.opened.set()
        gate.opened.set()

    assert (first.times_entered, second.times_entered) == (1, 0)


def test_what_is_no_limiter_is_refused_at_once() -> None:
    with pytest.raises(WrongOptionError, match=r"contextmanager_in_threadpool\(limiter=...\) must be an anyio"):
        contextmanager_in_threadpool(Manager(), limiter=3)  # type: ignore[arg-type]


@pytest.mark.anyio
async def test_leaving_waits_for_no_slot_though_the_pool_is_exhausted() -> None:
    limit_threads(1)
    gate = Gate()
    manager = Manager()

    async with anyio.create_task_group() as tasks:
        async with contextmanager_in_threadpool(manager):
            tasks.start_soon(run_in_threadpool, gate.wait)
            await gate.wait_until_reached()
        assert manager.left_with == [None]
        gate.opened.set()


@pytest.mark.anyio
async def test_a_hundred_entered_at_once_with_a_single_slot() -> None:
    limit_threads(1)
    managers = [Manager() for _ in range(100)]
    inside = 0
    all_inside = anyio.Event()

    async def use(manager: Manager) -> None:
        nonlocal inside
        async with contextmanager_in_threadpool(manager):
            inside += 1
            if inside == 100:
                all_inside.set()
            await all_inside.wait()

    async with anyio.create_task_group() as tasks:
        for manager in managers:
            tasks.start_soon(use, manager)

    assert all(manager.left_with == [None] and len(set(manager.threads)) == 1 for manager in managers)


@pytest.mark.anyio
async def test_cancelled_before_it_could_be_entered_it_is_neither_entered_nor_left() -> None:
    manager = Manager()

    async with anyio.create_task_group() as tasks:
        tasks.cancel_scope.cancel()
        async with contextmanager_in_threadpool(manager):
            pytest.fail("not entered")

    assert (manager.times_entered, manager.left_with) == (0, [])


@pytest.mark.anyio
async def test_cancelled_while_it_is_entered_it_is_waited_for_and_left_with_the_cancellation() -> None:
    manager = GatedManager(on_enter=True)
    left_when_raised: list[bool] = []

    async def use() -> None:
        try:
            async with contextmanager_in_threadpool(manager):
                pytest.fail("cancelled before the body")
        except anyio.get_cancelled_exc_class():
            left_when_raised.append(manager.left.is_set())
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        await manager.on_enter.wait_until_reached()
        tasks.cancel_scope.cancel()
        await let_others_run()
        assert left_when_raised == []
        manager.on_enter.opened.set()

    assert left_when_raised == [True]
    assert [is_cancellation(error) for error in manager.left_with] == [True]
    assert len(set(manager.threads)) == 1


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_by_asyncio_while_it_is_entered_it_is_left_with_the_cancellation() -> None:
    manager = GatedManager(on_enter=True)

    async def use() -> None:
        async with contextmanager_in_threadpool(manager):
            pytest.fail("cancelled before the body")

    task = asyncio.create_task(use())
    await manager.on_enter.wait_until_reached()
    for _ in range(2):
        task.cancel()
        await let_others_run()
        assert not task.done()
    manager.on_enter.opened.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert [is_cancellation(error) for error in manager.left_with] == [True]


@pytest.mark.anyio
async def test_cancelled_in_the_body_it_is_left_with_the_cancellation() -> None:
    manager = Manager()

    with anyio.CancelScope() as scope:
        async with contextmanager_in_threadpool(manager):
            scope.cancel()
            await anyio.sleep_forever()

    assert [is_cancellation(error) for error in manager.left_with] == [True]


@pytest.mark.anyio
async def test_cancelled_while_it_is_left_it_is_waited_for_and_the_cancellation_raised() -> None:
    manager = GatedManager(on_exit=True)
    left_when_raised: list[bool] = []

    async def use() -> None:
        try:
            async with contextmanager_in_threadpool(manager):
                pass
        except anyio.get_cancelled_exc_class():
            left_when_raised.append(manager.left.is_set())
            raise

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(use)
        await manager.on_exit.wait_until_reached()
        tasks.cancel_scope.cancel()
        await let_others_run()
        manager.on_exit.opened.set()

    assert left_when_raised == [True]
    assert manager.left_with == [None]


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_cancelled_by_asyncio_while_it_is_left_it_is_waited_for_and_the_cancellation_raised() -> None:
    manager = GatedManager(on_exit=True)

    async def use() -> None:
        async with contextmanager_in_threadpool(manager):
            pass

    task = asyncio.create_task(use())
    await manager.on_exit.wait_until_reached()
    for _ in range(2):
        task.cancel()
        await let_others_run()
        assert not task.done()
    manager.on_exit.opened.set()

    with pytest.raises(asyncio.CancelledError):
        await task
    assert manager.left_with == [None]


@pytest.mark.anyio
async def test_what_leaving_raised_wins_over_a_cancellation() -> None:
    gate = Gate()

    class Failing(Manager):
        def __exit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
            gate.wait()
            raise ValueError("leaving")

    outcomes: list[Any] = []

    async def use() -> None:
        async with contextmanager_in_threadpool(Failing()):
            pass

    async def capture() -> None:
        outcomes.append(await captured_async(use))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(capture)
        await gate.wait_until_reached()
        tasks.cancel_scope.cancel()
        await let_others_run()
        gate.opened.set()

    assert str(outcomes[0][1]) == "leaving"


@pytest.mark.anyio
async def test_entering_it_twice_at_once_is_refused() -> None:
    inner = Manager()
    manager = contextmanager_in_threadpool(inner)

    async with manager:
        with pytest.raises(InUseError, match="contextmanager_in_threadpool"):
            await manager.__aenter__()

    assert (inner.times_entered, inner.left_with) == (1, [None])


@pytest.mark.anyio
async def test_it_can_be_entered_again_when_it_has_been_left() -> None:
    inner = Manager()
    manager = contextmanager_in_threadpool(inner)

    for _ in range(3):
        async with manager as value:
            assert value is inner

    assert (inner.times_entered, inner.left_with) == (3, [None] * 3)


@pytest.mark.anyio
async def test_it_can_be_entered_again_when_entering_failed_or_was_cancelled() -> None:
    inner = Manager()
    manager = contextmanager_in_threadpool(inner)

    with anyio.CancelScope() as scope:
        scope.cancel()
        await manager.__aenter__()
    async with manager:
        pass

    assert inner.left_with == [None]


@pytest.mark.anyio
async def test_threads_that_cannot_be_started_give_their_error(monkeypatch: pytest.MonkeyPatch) -> None:
    async def no_more_threads(*args: object, **kwargs: object) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr("unfazed.concurrency._scoped._threadrunner.to_thread.run_sync", no_more_threads)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await contextmanager_in_threadpool(Manager()).__aenter__()

    assert await run_in_threadpool(int) == 0


@pytest.mark.anyio
async def test_entering_and_leaving_may_call_async_code_with_a_single_slot() -> None:
    limit_threads(1)

    async def add(number: int) -> int:
        return await run_in_threadpool(lambda: number + 1)

    @contextmanager
    def manager() -> Iterator[int]:
        yield run_in_eventloop_sync(add, 1)
        results.append(run_in_threadpool_sync(int, run_in_eventloop_sync(add, 2)))

    results: list[int] = []
    async with contextmanager_in_threadpool(manager()) as value:
        pass

    assert (value, results) == (2, [3])


def test_when_its_loop_ends_without_its_exit_it_is_left_in_its_thread_with_an_error(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_threadrunner, "GONE_CHECK_SECONDS", 0.01)
    inner = Manager()
    manager = contextmanager_in_threadpool(inner)
    backend, options = anyio_backend

    anyio.run(manager.__aenter__, backend=backend, backend_options=options)

    assert inner.left.wait(GRACE_SECONDS)
    assert isinstance(inner.left_with[0], LoopEndedError)
    assert len(set(inner.threads)) == 1


@asynccontextmanager
async def async_manager() -> AsyncIterator[int]:
    yield 1


@contextmanager
def sync_manager() -> Iterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (async_manager(), "`async with` without contextmanager_in_threadpool"),
        (sync_manager, r"`contextmanager_in_threadpool\(sync_manager\(...\)\)`"),
        (3, "expected a context manager, got 3"),
    ],
    ids=["async", "function", "3"],
)
def test_what_is_no_context_manager_is_refused_at_once(source: Any, message: str) -> None:
    with pytest.raises(WrongFunctionError, match=message):
        contextmanager_in_threadpool(source)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (sync_manager(), "`with` without contextmanager_in_eventloop_sync"),
        (async_manager, r"`contextmanager_in_eventloop_sync\(async_manager\(...\)\)`"),
        (3, "expected an async context manager, got 3"),
    ],
    ids=["sync", "function", "3"],
)
def test_what_is_no_async_context_manager_is_refused_at_once(source: Any, message: str) -> None:
    with pytest.raises(WrongFunctionError, match=message):
        contextmanager_in_eventloop_sync(source)


# An async context manager, from sync code


class AsyncManager(AbstractAsyncContextManager["AsyncManager", "bool | None"]):
    """Notes when it is entered and left, in which task and thread, and with what."""

    def __init__(self, *, suppress: bool = False) -> None:
        self.suppress = suppress
        self.tasks: list[int] = []
        self.threads: list[int] = []
        self.times_entered = 0
        self.left_with: list[BaseException | None] = []

    def note(self) -> None:
        self.tasks.append(anyio.get_current_task().id)
        self.threads.append(threading.get_ident())

    async def __aenter__(self) -> AsyncManager:
        self.note()
        await anyio.lowlevel.checkpoint()
        self.times_entered += 1
        return self

    async def __aexit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
        self.note()
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        self.left_with.append(exc)
        return self.suppress


def test_entered_and_left_in_one_task_and_one_context(sync_caller: Caller) -> None:
    tasks: set[int] = set()
    events: list[str] = []

    @asynccontextmanager
    async def manager() -> AsyncIterator[str]:
        token = variable.set("inside")
        with anyio.CancelScope():
            async with anyio.create_task_group() as group:
                group.start_soon(anyio.sleep_forever)
                tasks.add(anyio.get_current_task().id)
                yield variable.get()
                tasks.add(anyio.get_current_task().id)
                group.cancel_scope.cancel()
        variable.reset(token)
        events.append(variable.get())

    def use() -> str:
        variable.set("the caller's")
        with contextmanager_in_eventloop_sync(manager()) as value:
            variable.set("changed in the body")
        return value

    assert sync_caller.make(use) == "inside"
    assert events == ["the caller's"]
    assert len(tasks) == 1


@asynccontextmanager
async def task_group() -> AsyncIterator[anyio.abc.TaskGroup]:
    async with anyio.create_task_group() as tasks:
        yield tasks


def test_a_task_group_that_is_held_across_runs_what_the_body_gives_it(sync_caller: Caller) -> None:
    results: list[str] = []

    async def child() -> None:
        results.append("child")

    def use() -> None:
        with contextmanager_in_eventloop_sync(task_group()) as group:

            async def start() -> None:
                group.start_soon(child)

            run_in_eventloop_sync(start)

    sync_caller.make(use)

    assert results == ["child"]


def test_in_a_worker_it_is_entered_in_the_loop_of_that_worker(background: tuple[str, dict[str, Any]]) -> None:
    manager = AsyncManager()

    def use() -> None:
        with contextmanager_in_eventloop_sync(manager):
            pass

    for kind in ("our worker", "anyio's worker"):
        Caller(kind, background).make(use)

    assert set(manager.threads) == {threading.get_ident()}


def use_and_raise(manager: Any, error: BaseException) -> None:
    with contextmanager_in_eventloop_sync(manager):
        raise error


@pytest.mark.parametrize(
    "error",
    [ValueError("no"), SystemExit(3), KeyboardInterrupt(), StopIteration(), StopAsyncIteration(), GeneratorExit()],
    ids=repr,
)
def test_exceptions_are_passed_in_and_go_on_in_sync_code(sync_caller: Caller, error: BaseException) -> None:
    manager = AsyncManager()

    outcome = sync_caller.make(partial(captured, partial(use_and_raise, manager, error)))

    assert outcome == (None, error)
    assert manager.left_with == [error]
    assert len(set(manager.tasks)) == 1


def test_exceptions_can_be_suppressed_in_sync_code(sync_caller: Caller) -> None:
    sync_caller.make(partial(use_and_raise, AsyncManager(suppress=True), ValueError("no")))


def test_what_entering_raised_is_raised_in_sync_code_and_nothing_is_left(sync_caller: Caller) -> None:
    class Failing(AsyncManager):
        async def __aenter__(self) -> AsyncManager:
            raise ValueError("entering")

    manager = Failing()

    with pytest.raises(ValueError, match="entering") as caught:
        sync_caller.make(partial(use_and_raise, manager, KeyError()))

    assert traceback.extract_tb(caught.tb)[-1].line == 'raise ValueError("entering")'
    assert manager.left_with == []


def test_what_leaving_raised_is_raised_in_sync_code(sync_caller: Caller) -> None:
    class Failing(AsyncManager):
        async def __aexit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
            raise ValueError("leaving")

    with pytest.raises(ValueError, match="leaving"):
        sync_caller.make(partial(use_and_raise, Failing(), KeyError()))


def test_entering_it_twice_at_once_is_refused_in_sync_code(sync_caller: Caller) -> None:
    inner = AsyncManager()

    def use() -> None:
        manager = contextmanager_in_eventloop_sync(inner)
        with manager, pytest.raises(InUseError, match="contextmanager_in_eventloop_sync"):
            manager.__enter__()

    sync_caller.make(use)

    assert (inner.times_entered, inner.left_with) == (1, [None])


def test_it_can_be_entered_again_in_sync_code_when_it_has_been_left(sync_caller: Caller) -> None:
    inner = AsyncManager()

    def use() -> None:
        manager = contextmanager_in_eventloop_sync(inner)
        for _ in range(3):
            with manager as value:
                assert value is inner

    sync_caller.make(use)

    assert (inner.times_entered, inner.left_with) == (3, [None] * 3)


@pytest.mark.anyio
async def test_a_thread_with_a_running_loop_is_refused() -> None:
    manager = AsyncManager()

    with pytest.raises(LoopThreadError, match="async with"):
        contextmanager_in_eventloop_sync(manager).__enter__()
    assert manager.times_entered == 0


WORKERS = ("our worker", "anyio's worker")


class SleepyManager(AsyncManager):
    """Sleeps until it is cancelled, on entering or on leaving, and then cleans up."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.where = where
        self.sleeping = threading.Event()
        self.cleaned_up = False

    async def sleep(self, where: str) -> None:
        if self.where != where:
            return
        try:
            self.sleeping.set()
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
            self.cleaned_up = True

    async def __aenter__(self) -> AsyncManager:
        await self.sleep("enter")
        return await super().__aenter__()

    async def __aexit__(self, exc_type: object, exc: BaseException | None, tb: object) -> bool:
        await super().__aexit__(exc_type, exc, tb)
        await self.sleep("exit")
        return False


def cancelled_in_a_worker(background: tuple[str, dict[str, Any]], manager: SleepyManager) -> list[str]:
    """Use *manager* in a worker, cancel that when it sleeps, and return what it raised there."""
    raised: list[str] = []

    async def sleep_in_the_body() -> None:
        await manager.sleep("body")

    def use() -> None:
        try:
            with contextmanager_in_eventloop_sync(manager):
                run_in_eventloop_sync(sleep_in_the_body)
        except BaseException as exc:
            raised.append(type(exc).__name__)
            raise

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_threadpool, use)
            await seen(manager.sleeping)
            tasks.cancel_scope.cancel()

    Caller("", background).run(main)
    return raised


def test_cancelled_while_it_is_entered_in_a_worker_it_is_not_left(background: tuple[str, dict[str, Any]]) -> None:
    manager = SleepyManager("enter")

    raised = cancelled_in_a_worker(background, manager)

    assert raised == ["CancelledError" if background[0] == "asyncio" else "Cancelled"]
    assert manager.cleaned_up
    assert manager.left_with == []


def test_cancelled_in_the_body_in_a_worker_it_is_left_with_the_cancellation(
    background: tuple[str, dict[str, Any]],
) -> None:
    manager = SleepyManager("body")

    raised = cancelled_in_a_worker(background, manager)

    assert raised == ["CancelledError" if background[0] == "asyncio" else "Cancelled"]
    assert [is_cancellation(error) for error in manager.left_with] == [True]
    assert len(set(manager.tasks)) == 1


def test_cancelled_while_it_is_left_in_a_worker_its_cleanup_is_waited_for(
    background: tuple[str, dict[str, Any]],
) -> None:
    manager = SleepyManager("exit")

    raised = cancelled_in_a_worker(background, manager)

    assert raised == ["CancelledError" if background[0] == "asyncio" else "Cancelled"]
    assert manager.cleaned_up
    assert manager.left_with == [None]


def test_when_the_background_loop_has_ended_it_has_been_left_and_says_so(background: Any) -> None:
    inner = AsyncManager()
    manager = contextmanager_in_eventloop_sync(inner)
    manager.__enter__()
    end_background_eventloop()

    with pytest.raises(LoopEndedError):
        manager.__exit__(None, None, None)
    assert [type(error) for error in inner.left_with] == [LoopEndedError]
    assert len(set(inner.tasks)) == 1


def test_when_its_event_loop_thread_is_stopped_meanwhile_it_is_left_with_an_error(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    inner = AsyncManager()
    manager = contextmanager_in_eventloop_sync(inner)
    entered = threading.Event()
    gate = Gate()
    errors: list[BaseException | None] = []

    def use() -> None:
        manager.__enter__()
        entered.set()
        gate.wait()
        errors.append(captured(partial(manager.__exit__, None, None, None))[1])

    async def work() -> None:
        await run_in_threadpool(use)

    backend, options = anyio_backend
    loop = EventLoopThread(backend, options)
    with loop:
        caller = threading.Thread(target=lambda: captured(partial(loop.run_sync, work)))
        caller.start()
        assert entered.wait(GRACE_SECONDS)
        stopping = threading.Thread(target=loop.stop)
        stopping.start()
        wait_until(lambda: inner.left_with, "it is left")
        gate.opened.set()
        stopping.join(GRACE_SECONDS)
        caller.join(GRACE_SECONDS)

    assert [type(error) for error in inner.left_with] == [LoopEndedError]
    if backend == "asyncio":  # where only the first wait of a cancelled worker is cancelled
        assert [type(error) for error in errors] == [LoopEndedError]
    else:
        assert is_cancellation(errors[0])


def test_a_loop_that_ends_with_it_entered_leaves_it(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    inner = AsyncManager()
    backend, options = anyio_backend
    kept: list[Any] = []

    def enter() -> None:
        manager = contextmanager_in_eventloop_sync(inner)
        kept.append(manager)
        manager.__enter__()

    anyio.run(run_in_threadpool, enter, backend=backend, backend_options=options)

    assert len(inner.left_with) == 1
    assert len(set(inner.tasks)) == 1


PROGRAM = """
import anyio, sys
from unfazed.concurrency import contextmanager_in_eventloop_sync, contextmanager_in_threadpool
from unfazed.concurrency import iterate_in_eventloop_sync, iterate_in_threadpool, run_in_threadpool
from contextlib import asynccontextmanager, contextmanager

@asynccontextmanager
async def async_manager():
    try:
        yield
    finally:
        print("async left", flush=True)

@contextmanager
def sync_manager():
    try:
        yield
    finally:
        print("sync left", flush=True)

kept = []

def enter():
    kept.append(contextmanager_in_eventloop_sync(async_manager()))
    kept[-1].__enter__()

async def main():
    kept.append(contextmanager_in_threadpool(sync_manager()))
    await kept[-1].__aenter__()
    await run_in_threadpool(enter)

enter()
anyio.run(main, backend=sys.argv[1])
print("end", flush=True)
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_program_ends_though_some_are_still_entered(backend: str) -> None:
    pytest.importorskip(backend)

    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, backend], capture_output=True, text=True, timeout=30, check=False
    )

    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n").count("async left") == 2, done.stdout + done.stderr


def test_abandoned_is_an_error_that_says_so() -> None:
    kind, error, _ = _contextmanagers._loop_ended()

    assert kind is LoopEndedError
    assert "has ended" in str(error)


# A scope that the manager holds open, and that is cancelled while the body runs.


class HeldScope:
    """Holds a cancel scope open, which another call cancels; and makes of that what it is told to."""

    def __init__(self, outcome: BaseException | None) -> None:
        self.outcome = outcome
        self.left = threading.Event()
        self.scope: anyio.CancelScope | None = None

    async def __aenter__(self) -> HeldScope:
        self.scope = anyio.CancelScope()
        self.scope.__enter__()
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool:
        assert self.scope is not None
        suppressed = self.scope.__exit__(exc_type, exc, traceback)
        self.left.set()
        if self.outcome is not None:
            raise self.outcome
        return bool(suppressed)

    def cancel_and_wait(self) -> None:
        async def cancel() -> None:
            assert self.scope is not None
            self.scope.cancel()

        run_in_eventloop_sync(cancel)
        assert self.left.wait(GRACE_SECONDS), "it is never left"


def test_a_held_scope_that_was_cancelled_raises_what_it_made_of_that(sync_caller: Caller) -> None:
    def use() -> None:
        manager = HeldScope(TimeoutError("of the scope"))
        with contextmanager_in_eventloop_sync(manager):
            manager.cancel_and_wait()

    value, error = sync_caller.make(partial(captured, use))

    assert value is None
    assert str(error) == "of the scope"


def test_a_held_scope_that_was_cancelled_and_is_content_raises_nothing(sync_caller: Caller) -> None:
    def use() -> str:
        manager = HeldScope(None)
        with contextmanager_in_eventloop_sync(manager):
            manager.cancel_and_wait()
        return "done"

    assert sync_caller.make(partial(captured, use)) == ("done", None)


def test_what_the_body_raised_goes_on_though_a_held_scope_was_cancelled(sync_caller: Caller) -> None:
    def use() -> None:
        manager = HeldScope(None)
        with contextmanager_in_eventloop_sync(manager):
            manager.cancel_and_wait()
            raise LookupError("of the body")

    assert str(sync_caller.make(partial(captured, use))[1]) == "of the body"


def test_a_task_that_fails_in_a_group_that_is_held_fails_the_group(sync_caller: Caller) -> None:
    failed = threading.Event()

    async def failing() -> None:
        failed.set()
        raise LookupError("of the child")

    def use() -> None:
        with contextmanager_in_eventloop_sync(task_group()) as tasks:
            call_in_the_loop(tasks.start_soon, failing)
            assert failed.wait(GRACE_SECONDS)

    error: Any = sync_caller.make(partial(captured, use))[1]

    assert [str(each) for each in error.exceptions] == ["of the child"]


def call_in_the_loop(func: Callable[..., object], *args: object) -> None:
    async def call() -> None:
        func(*args)

    run_in_eventloop_sync(call)
