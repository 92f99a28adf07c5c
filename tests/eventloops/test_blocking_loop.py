"""`allow_blocking_loop()`: sync calls wait where an event loop runs, and nothing waits for ever."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from conftest import GRACE_SECONDS, captured, wait_until_gone

from unfazed.concurrency import (
    CallTimeoutError,
    EventLoopThread,
    LoopThreadError,
    WrongOptionError,
    allow_blocking_loop,
    configure_background_eventloop,
    contextmanager_in_eventloop_sync,
    in_eventloop,
    in_threadpool,
    iterate_in_eventloop_sync,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_executor_sync,
    run_in_processpool_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
    sync_twin,
    warm_up_processpool_sync,
)
from unfazed.concurrency._core import _blockedloops
from unfazed.concurrency._eventloops._loops import current_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

web_is_demanded = "UNFAZED_TEST_WEB" in os.environ  # by the tox environment `web`
Backend = tuple[str, dict[str, Any]]


def run(backend: Backend, afn: Callable[..., Any], *args: Any) -> Any:
    name, options = backend
    return anyio.run(afn, *args, backend=name, backend_options=options)


@pytest.fixture(autouse=True)
def nothing_stands_still_at_the_end() -> Iterator[None]:
    yield
    configure_background_eventloop(allow_blocking_loop=False)
    assert not _blockedloops.blocked_loops


async def double(number: int) -> int:
    await anyio.sleep(0)
    return 2 * number


async def numbers() -> AsyncIterator[int]:
    yield await double(1)
    yield await double(2)


@asynccontextmanager
async def manager() -> AsyncIterator[int]:
    yield await double(3)


class AsyncThing:
    async def double(self, number: int) -> int:
        return await double(number)


Thing = sync_twin(AsyncThing)


def in_an_executor() -> Any:
    with ThreadPoolExecutor(1) as executor:
        return run_in_executor_sync(executor, int, "7")


def enter() -> int:
    with contextmanager_in_eventloop_sync(manager()) as value:
        return value


def in_a_loop_thread() -> int:
    with EventLoopThread() as loop:
        return loop.run_sync(double, 4)


CALLS: dict[str, tuple[Callable[[], Any], Any]] = {
    "threadpool": (lambda: run_in_threadpool_sync(int, "1"), 1),
    "processpool": (lambda: run_in_processpool_sync(int, "2"), 2),
    "executor": (in_an_executor, 7),
    "eventloop": (lambda: run_in_eventloop_sync(double, 1), 2),
    "dual threads": (lambda: in_threadpool(int, timeout=GRACE_SECONDS).sync("3"), 3),
    "dual loop": (lambda: in_eventloop(double, timeout=GRACE_SECONDS).sync(5), 10),
    "iterator": (lambda: list(iterate_in_eventloop_sync(numbers())), [2, 4]),
    "context manager": (enter, 6),
    "loop thread": (in_a_loop_thread, 8),
    "twin": (lambda: Thing().double(6), 12),
    "warming up": (lambda: warm_up_processpool_sync(1), None),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_sync_call_may_block_the_loop_in_the_block_alone(background: Backend, name: str) -> None:
    call, expected = CALLS[name]

    async def main() -> None:
        with pytest.raises(LoopThreadError, match="would block the event loop"):
            call()
        with allow_blocking_loop():
            assert call() == expected
        with pytest.raises(LoopThreadError, match="would block the event loop"):
            call()
        await anyio.sleep(0)  # the loop goes on

    run(background, main)


@pytest.mark.parametrize("name", CALLS)
def test_every_sync_call_may_block_the_loop_in_a_program_that_says_so(background: Backend, name: str) -> None:
    call, expected = CALLS[name]
    configure_background_eventloop(allow_blocking_loop=True)

    async def main() -> None:
        assert call() == expected
        await anyio.sleep(0)

    run(background, main)


def test_it_runs_on_the_background_event_loop(background: Backend) -> None:
    async def here() -> object:
        return current_loop().native

    async def main() -> None:
        with allow_blocking_loop():
            assert run_in_eventloop_sync(here) is await run_in_eventloop(here)

    run(background, main)


def test_the_program_may_be_told_at_any_time_and_keeps_its_backend(background: Backend) -> None:
    async def library() -> str:
        return type(current_loop()).__name__

    configure_background_eventloop(allow_blocking_loop=True)
    before = run_in_eventloop_sync(library)
    configure_background_eventloop(allow_blocking_loop=False)

    assert before == ("TrioLoop" if background[0] == "trio" else "AsyncioLoop")
    assert run_in_eventloop_sync(library) == before
    with pytest.raises(WrongOptionError, match=r"allow_blocking_loop=\.\.\.\) must be True or False"):
        configure_background_eventloop(allow_blocking_loop="yes")  # type: ignore[arg-type]


def test_backend_and_permission_may_be_given_together() -> None:
    configure_background_eventloop(backend="asyncio", allow_blocking_loop=True)

    async def main() -> None:
        assert run_in_eventloop_sync(double, 1) == 2

    run(("asyncio", {}), main)


# ---- who has the permission


def test_other_tasks_do_not_have_it_and_those_of_the_block_lose_it_at_its_end(background: Backend) -> None:
    outcomes: dict[str, Any] = {}

    async def call(name: str) -> None:
        outcomes[name] = captured(lambda: run_in_threadpool_sync(int))[1]

    async def call_when(name: str, event: anyio.Event) -> None:
        await event.wait()
        await call(name)

    async def main() -> None:
        entered, left = anyio.Event(), anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call_when, "other", entered)
            async with anyio.create_task_group() as children:
                with allow_blocking_loop():
                    with allow_blocking_loop():
                        await call("nested")
                    await call("after the inner one")
                    children.start_soon(call, "child")
                    children.start_soon(call_when, "child that outlives it", left)
                    entered.set()
                    await anyio.wait_all_tasks_blocked()
                left.set()

    run(background, main)

    assert {name: type(error).__name__ for name, error in outcomes.items()} == {
        "nested": "NoneType",
        "after the inner one": "NoneType",
        "child": "NoneType",
        "other": "LoopThreadError",
        "child that outlives it": "LoopThreadError",
    }


def test_a_block_around_the_loop_is_for_that_loop(background: Backend) -> None:
    async def main() -> int:
        return run_in_eventloop_sync(double, 1)

    with allow_blocking_loop():
        assert run(background, main) == 2
    with pytest.raises(LoopThreadError):
        run(background, main)


def test_a_block_that_ends_in_another_context_ends_all_the_same(background: Backend) -> None:
    async def main() -> None:
        stack = ExitStack()
        context = copy_context()
        context.run(stack.enter_context, allow_blocking_loop())
        assert context.run(run_in_threadpool_sync, int) == 0
        stack.close()
        with pytest.raises(LoopThreadError):
            context.run(run_in_threadpool_sync, int)

    run(background, main)


@pytest.mark.parametrize("everywhere", [False, True])
def test_our_own_loops_are_blocked_only_by_a_block_in_their_thread(background: Backend, everywhere: bool) -> None:
    async def call() -> int:
        return run_in_threadpool_sync(int)

    async def allow_and_call() -> int:
        with allow_blocking_loop():
            return run_in_threadpool_sync(int)

    configure_background_eventloop(allow_blocking_loop=everywhere)
    with EventLoopThread(*background) as loop, allow_blocking_loop():
        with pytest.raises(LoopThreadError, match="would block"):
            loop.run_sync(call)
        assert loop.run_sync(allow_and_call) == 0


@pytest.mark.parametrize("start", [run_in_threadpool, anyio.to_thread.run_sync])
def test_a_loop_within_a_worker_thread_may_be_blocked(background: Backend, start: Any) -> None:
    async def inner() -> tuple[int, int, int]:
        with allow_blocking_loop():
            run_in_eventloop_sync(anyio.sleep, 0)
            return run_in_threadpool_sync(int, "1"), run_in_eventloop_sync(double, 1), in_a_loop_thread()

    async def outer() -> None:
        assert await start(run, background, inner) == (1, 2, 8)

    run(background, outer)


def test_a_timeout_ends_the_wait(background: Backend) -> None:
    async def main() -> None:
        with allow_blocking_loop(), pytest.raises(CallTimeoutError):
            in_eventloop(anyio.sleep, timeout=0.01).sync(60)
        await anyio.sleep(0)

    run(background, main)


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such signals")
def test_an_interrupted_call_cancels_its_coroutine_and_the_loop_goes_on(background: Backend) -> None:
    class Interrupted(Exception):  # noqa: N818
        pass

    def raise_it(*args: object) -> None:
        raise Interrupted

    cleaned_up = []

    async def work() -> None:
        try:
            os.kill(os.getpid(), signal.SIGUSR1)
            await anyio.sleep_forever()
        finally:
            cleaned_up.append(True)

    async def main() -> None:
        with allow_blocking_loop(), pytest.raises(Interrupted):
            run_in_eventloop_sync(work)
        await anyio.sleep(0)

    before = signal.signal(signal.SIGUSR1, raise_it)
    try:
        run(background, main)
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert cleaned_up == [True]


def test_contexts_that_outlive_the_wait_do_not_keep_the_loop() -> None:
    contexts = []

    def keep() -> None:
        contexts.append(copy_context())

    async def main() -> Any:
        with allow_blocking_loop():
            run_in_threadpool_sync(keep)
        return weakref.ref(current_loop().native)

    wait_until_gone(run(("asyncio", {}), main))


# ---- frameworks that own the loop

SERVER = """
import sys
import threading
import time

import httpx
import uvicorn
import anyio
from unfazed.concurrency import configure_background_eventloop, run_in_eventloop_sync, run_in_threadpool_sync

async def fetch():
    await anyio.sleep(0.01)
    return b"fetched"

def plugin():  # which knows nothing of loops
    return run_in_eventloop_sync(fetch) + b" in " + run_in_threadpool_sync(threading.current_thread().name.encode)

async def app(scope, receive, send):
    assert scope["type"] == "http"
    try:
        body, status = plugin(), 200
    except RuntimeError as exc:
        body, status = str(exc).encode(), 500
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})

server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan="off", log_level="error", loop=sys.argv[1]))
serving = threading.Thread(target=server.run, name="serving")
serving.start()
while not server.started:
    time.sleep(0.01)
port = server.servers[0].sockets[0].getsockname()[1]
with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
    print(client.get("/").text[:45])
    configure_background_eventloop(allow_blocking_loop=True)
    print(client.get("/").text, client.get("/").status_code)
server.should_exit = True
serving.join()
"""


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_under_uvicorn(loop: str, tmp_path: Path) -> None:
    if not web_is_demanded:
        for name in ("uvicorn", "httpx", loop):
            pytest.importorskip(name)
    program = tmp_path / "program.py"
    program.write_text(SERVER)

    done = subprocess.run([sys.executable, str(program), loop], capture_output=True, text=True, timeout=50, check=False)

    assert (done.stderr, done.returncode) == ("", 0)
    assert done.stdout == "run_in_eventloop_sync() would block the event\nfetched in serving 200\n"
