"""Defects that a review found."""

from __future__ import annotations

import abc
import asyncio
import copy
import gc
import inspect
import os
import subprocess
import sys
import threading
import typing
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, nullcontext
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import GRACE_SECONDS, IMPORTS_GO_FIRST, drops_at_once, let_others_run

from unfazed.concurrency import (
    contextmanager_in_threadpool,
    in_eventloop,
    in_executor,
    in_threadpool,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
    run_in_eventloop_sync,
    run_in_executor,
    run_in_threadpool,
)
from unfazed.concurrency._core._errors import CallTimeoutError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

Backend = tuple[str, dict[str, Any]]


async def _numbers() -> AsyncIterator[int]:
    for i in range(3):
        yield i


@pytest.mark.anyio
async def test_timeout_applies_after_the_cleanup_of_a_scope_within() -> None:
    @in_eventloop(timeout=0.2)
    async def func() -> None:
        with anyio.move_on_after(0.1):
            try:
                await anyio.sleep(10)
            finally:
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.2)
        await anyio.sleep(10)

    with anyio.fail_after(5), pytest.raises(CallTimeoutError):
        await func()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@pytest.mark.parametrize("what", ["next(it)", "it.close()", "cm.__exit__(None, None, None)"])
def test_forked_child_with_an_open_runner_does_not_hang(what: str) -> None:
    program = f"""if 1:
        import os
        from unfazed.concurrency import *
        async def numbers():
            yield 1
            yield 2
        class Manager:
            async def __aenter__(self): pass
            async def __aexit__(self, *exc_info): pass
        it = iterate_in_eventloop_sync(numbers()); next(it)
        cm = contextmanager_in_eventloop_sync(Manager()); cm.__enter__()
        if not os.fork():
            try: {what}
            except RuntimeError as exc: pass
            os._exit(0)
        assert os.wait()[1] == 0
        cm.__exit__(None, None, None)
        it.close()
    """
    subprocess.run([sys.executable, "-c", program], timeout=50, check=True)


@pytest.mark.parametrize("prefetch", [0, 2])
def test_cancelled_error_of_the_iterable_is_no_end(prefetch: int) -> None:
    def source() -> Iterator[int]:
        yield 1
        raise asyncio.CancelledError

    async def main() -> None:
        items = iterate_in_threadpool(source(), prefetch=prefetch)
        assert await items.__anext__() == 1
        with pytest.raises(asyncio.CancelledError):
            await items.__anext__()

    asyncio.run(main())


def test_cancellation_is_not_lost_on_the_start_of_a_runner() -> None:
    seen: list[str] = []
    started, go = threading.Event(), threading.Event()

    async def endless() -> AsyncIterator[int]:
        while True:
            await asyncio.sleep(0.01)
            yield 1

    def work() -> None:
        started.set()
        go.wait()
        for _ in iterate_in_eventloop_sync(endless()):
            pass

    def not_waiting() -> None:
        started.set()
        go.wait()
        assert list(iterate_in_eventloop_sync(_numbers())) == [0, 1, 2]
        try:
            run_in_eventloop_sync(asyncio.sleep, 0)
        except asyncio.CancelledError:
            seen.append("cancelled")

    async def main() -> None:
        for func in work, not_waiting:
            started.clear()
            go.clear()
            task = asyncio.create_task(run_in_threadpool(func))
            assert await asyncio.to_thread(started.wait, GRACE_SECONDS)
            task.cancel()
            await let_others_run()
            go.set()
            await asyncio.wait([task], timeout=GRACE_SECONDS)
            assert task.cancelled()

    asyncio.run(main())
    assert seen == ["cancelled"]


def test_annotations_are_those_of_the_function() -> None:
    @in_threadpool
    def func(x: int) -> str:
        return str(x)

    expected = {"x": int, "return": str}
    for dual in func, func.sync:
        assert typing.get_type_hints(dual) == expected
        assert set(inspect.get_annotations(dual)) == set(expected)
        assert set(dual.__annotations__) == set(expected)


def test_worker_does_not_take_itself_for_the_callers_library() -> None:
    async def tick() -> str:
        await anyio.sleep(0)
        return "done"

    def work() -> str:
        return asyncio.run(tick())

    async def main() -> None:
        with ThreadPoolExecutor(1) as executor:
            assert await run_in_executor(executor, work) == "done"
        assert await in_threadpool(work, context=copy_context())() == "done"

    pytest.importorskip("trio")
    anyio.run(main, backend="trio")


def test_deepcopy_shares_the_place() -> None:
    class Owner:
        def method(self) -> Owner:
            return self

    with ThreadPoolExecutor(1) as executor:
        owner = Owner()
        dual = in_executor(executor, owner.method)
        copied = copy.deepcopy({"owner": owner, "dual": dual})
        assert copied["dual"].sync() is copied["owner"]  # type: ignore[attr-defined]
        func = in_executor(executor, lambda: 1)
        assert copy.deepcopy(func) is func


def test_abstract_classmethod_stays_abstract() -> None:
    class Base(abc.ABC):
        @in_threadpool
        @classmethod
        @abc.abstractmethod
        def make(cls) -> None: ...

    assert inspect.isabstract(Base)


@pytest.mark.anyio
async def test_cancelled_scope_does_not_start_an_executor_call() -> None:
    ran: list[int] = []
    with ThreadPoolExecutor(1) as executor, anyio.CancelScope() as scope:
        scope.cancel()
        await run_in_executor(executor, ran.append, 1)
    assert ran == []


@drops_at_once
@pytest.mark.anyio
async def test_timeout_in_a_context_leaves_no_cycle() -> None:
    class Thing:
        pass

    refs: list[weakref.ref[Thing]] = []

    async def func() -> None:
        thing = Thing()
        refs.append(weakref.ref(thing))
        await anyio.sleep(10)

    gc.disable()
    try:
        with pytest.raises(CallTimeoutError):
            await in_eventloop(func, timeout=0.5, context=copy_context())()
        await anyio.sleep(0.05)
        assert refs[0]() is None
    finally:
        gc.enable()


def test_open_iterator_at_exit_says_nothing() -> None:
    pytest.importorskip("trio")
    program = """if 1:
        from unfazed.concurrency import *
        configure_background_eventloop(backend="trio")
        async def numbers():
            yield 1
            yield 2
        it = iterate_in_eventloop_sync(numbers()); next(it)
    """
    done = subprocess.run([sys.executable, "-c", program], timeout=50, check=True, capture_output=True, text=True)
    assert done.stderr == ""


def test_tasks_dropped_with_their_loop_end_in_silence() -> None:
    program = """if 1:
        import asyncio, gc, time
        from concurrent.futures import ThreadPoolExecutor
        from unfazed.concurrency import *
        async def main():
            executor = ThreadPoolExecutor(1)
            global coroutine, other
            coroutine = run_in_executor(executor, time.sleep, 0.3)
            other = in_threadpool(time.sleep, abandon_on_cancel=True)(0.3)
            for each in coroutine, other:
                each.send(None)
            await asyncio.sleep(0.1)
        loop = asyncio.new_event_loop()
        loop.run_until_complete(main())
        loop.close()
        coroutine.close()
    """
    if IMPORTS_GO_FIRST:
        program += "    del other"
    done = subprocess.run([sys.executable, "-c", program], timeout=50, check=True, capture_output=True, text=True)
    assert done.stderr == ""


async def _use_in_thread() -> None:
    await run_in_threadpool(int)


async def _use_in_executor() -> None:
    with ThreadPoolExecutor(1) as executor:
        await run_in_executor(executor, int)


async def _iterate() -> None:
    async with aclosing(iterate_in_threadpool([1])) as items:
        await anext(items)


async def _iterate_ahead() -> None:
    async with aclosing(iterate_in_threadpool([1], prefetch=1)) as items:
        await anext(items)


async def _enter() -> None:
    async with contextmanager_in_threadpool(nullcontext()):
        pass


@pytest.mark.parametrize("turns", range(8))
@pytest.mark.parametrize(
    "use",
    [
        _use_in_thread,
        _use_in_executor,
        _iterate,
        _iterate_ahead,
        _enter,
    ],
    ids=lambda use: use.__name__,
)
def test_loop_that_ends_at_any_moment_of_a_call_does_not_hang(use: Callable[[], Awaitable[None]], turns: int) -> None:
    """asyncio cancels the task that the call waits for, before it has begun."""

    async def main() -> None:
        task = asyncio.ensure_future(use())
        for _ in range(turns):
            await asyncio.sleep(0)
        task.add_done_callback(ended.append)

    ended: list[object] = []
    asyncio.run(main())

    assert ended
