"""The standard library's names, against the standard library's own."""

from __future__ import annotations

import asyncio
import contextvars
import importlib.util
import inspect
import sys
import threading
from concurrent.futures import CancelledError, Future, wait
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import pytest
from conftest import GRACE_SECONDS, PYPY, Gate, drop_garbage
from unfazed_compat import stdlib

from unfazed.concurrency import EventLoopThread, LoopEndedError, LoopStateError, WrongFunctionError, WrongOptionError

if TYPE_CHECKING:
    from collections.abc import Iterator

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def work(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return args, kwargs, variable.get(), threading.current_thread() is threading.main_thread()


@pytest.mark.anyio
@pytest.mark.parametrize("to_thread", [asyncio.to_thread, stdlib.to_thread], ids=["original", "ours"])
async def test_to_thread_takes_all_arguments_and_the_context(to_thread: Any, anyio_backend_name: str) -> None:
    if to_thread is asyncio.to_thread and anyio_backend_name == "trio":
        pytest.skip("the original has no trio")
    if to_thread is asyncio.to_thread and PYPY:
        pytest.skip("the original does not take all names on PyPy")
    variable.set("set")

    assert await to_thread(work, 1, func=2, self=3) == ((1,), {"func": 2, "self": 3}, "set", False)
    with pytest.raises(ZeroDivisionError):
        await to_thread(divmod, 1, 0)


@pytest.mark.parametrize("name", stdlib.__all__)
def test_the_parameters_are_the_same(name: str) -> None:
    ours, original = (inspect.signature(getattr(each, name)).parameters for each in (stdlib, asyncio))

    assert [(each.name, each.kind) for each in ours.values()] == [(each.name, each.kind) for each in original.values()]


# run_coroutine_threadsafe


class Target:
    """A loop that runs in another thread, and one of the ways to name it."""

    def __init__(self, kind: str, loop_thread: EventLoopThread, submit: Any) -> None:
        self.loop_thread = loop_thread
        self._submit = submit
        token = loop_thread.run_sync(current_token)
        self.loop = {"native": token.native_token, "token": token, "thread": loop_thread}[kind]

    def submit(self, coro: Any) -> Future[Any]:
        future: Future[Any] = self._submit(coro, self.loop)
        return future


async def current_token() -> anyio.lowlevel.EventLoopToken:
    return anyio.lowlevel.current_token()


@pytest.fixture(params=["original", "native", "token", "thread"])
def target(request: pytest.FixtureRequest, anyio_backend: tuple[str, dict[str, Any]]) -> Iterator[Target]:
    backend, options = anyio_backend
    if request.param == "original" and backend == "trio":
        pytest.skip("the original has no trio")
    with EventLoopThread(backend, options) as loop_thread:
        if request.param == "original":
            yield Target("native", loop_thread, asyncio.run_coroutine_threadsafe)
        else:
            yield Target(request.param, loop_thread, stdlib.run_coroutine_threadsafe)


async def report(value: int) -> tuple[int, str, threading.Thread]:
    await anyio.lowlevel.checkpoint()
    return value, variable.get(), threading.current_thread()


def test_the_result_of_a_coroutine_is_that_of_the_future(target: Target) -> None:
    thread = target.loop_thread.run_sync(current_thread)
    context = contextvars.copy_context()
    context.run(variable.set, "set")

    future = context.run(target.submit, report(1))

    assert type(future) is Future
    assert future.result(GRACE_SECONDS) == (1, "set", thread)
    assert future.done()
    assert not future.cancel()


async def current_thread() -> threading.Thread:
    return threading.current_thread()


def test_what_a_coroutine_raises_is_raised_by_the_future(target: Target) -> None:
    error = LookupError("nothing")

    async def fail() -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    assert target.submit(fail()).exception(GRACE_SECONDS) is error


def test_what_a_coroutine_sets_stays_in_its_own_context(target: Target) -> None:
    async def change() -> None:
        variable.set("changed")

    target.submit(change()).result(GRACE_SECONDS)

    assert variable.get() == "unset"


class Sleeper:
    """A coroutine that waits until it is cancelled, and records how it ended."""

    def __init__(self, *, returns: bool = False) -> None:
        self.started = threading.Event()
        self.ended = threading.Event()
        self.error: BaseException | None = None
        self._returns = returns

    async def __call__(self) -> str:
        self.started.set()
        try:
            await anyio.sleep_forever()
        except BaseException as exc:
            self.error = exc.with_traceback(None)
            if not self._returns:
                raise
        finally:
            self.ended.set()
        return "a value that nobody waits for"


@pytest.mark.parametrize("returns", [False, True], ids=["raises", "returns"])
def test_cancelling_the_future_cancels_the_task(target: Target, returns: bool) -> None:
    sleeper = Sleeper(returns=returns)
    future = target.submit(sleeper())
    assert sleeper.started.wait(GRACE_SECONDS)

    assert future.cancel()

    assert future.cancelled()
    assert sleeper.ended.wait(GRACE_SECONDS)
    assert type(sleeper.error).__name__ in ("CancelledError", "Cancelled")
    with pytest.raises(CancelledError):
        future.result(GRACE_SECONDS)
    assert wait([future], GRACE_SECONDS).done == {future}
    assert target.submit(report(1)).result(GRACE_SECONDS)[0] == 1


def test_cancelled_before_it_has_begun_it_gets_no_further_than_its_first_await(target: Target) -> None:
    sleeper, gate = Sleeper(), Gate()

    async def block() -> None:
        gate.wait()

    blocking = target.submit(block())
    assert gate.reached.wait(GRACE_SECONDS)
    future = target.submit(sleeper())
    future.cancel()
    gate.opened.set()

    blocking.result(GRACE_SECONDS)
    assert wait([future], GRACE_SECONDS).done == {future}
    assert target.submit(report(1)).result(GRACE_SECONDS)[0] == 1  # which comes after it
    if sleeper.started.is_set():
        assert "asyncio" in repr(target.loop_thread)
        assert sys.version_info < (3, 14)
        assert sleeper.ended.wait(GRACE_SECONDS)
        assert type(sleeper.error).__name__ == "CancelledError"


def test_a_task_that_the_end_of_its_loop_cancels_cancels_the_future(target: Target) -> None:
    sleeper = Sleeper()
    future = target.submit(sleeper())
    assert sleeper.started.wait(GRACE_SECONDS)

    target.loop_thread.stop()

    assert sleeper.ended.is_set()
    with pytest.raises(CancelledError):
        future.result(GRACE_SECONDS)


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")  # with the original
def test_a_loop_that_has_ended_is_an_error(target: Target) -> None:
    target.loop_thread.stop()

    with pytest.raises(RuntimeError):
        target.submit(report(1))
    drop_garbage()  # here, where the warning is ignored


@pytest.mark.parametrize("kind", ["native", "token", "thread"])
def test_a_loop_that_has_ended_leaves_no_coroutine(kind: str, anyio_backend: tuple[str, dict[str, Any]]) -> None:
    with EventLoopThread(*anyio_backend) as loop_thread:
        target = Target(kind, loop_thread, stdlib.run_coroutine_threadsafe)
    coro = report(1)

    with pytest.raises(LoopEndedError):
        target.submit(coro)

    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


def test_what_is_no_coroutine_is_a_type_error(target: Target) -> None:
    with pytest.raises(TypeError, match="coroutine"):
        target.submit(report)


def test_the_errors_say_what_to_write() -> None:
    submit: Any = stdlib.run_coroutine_threadsafe
    with pytest.raises(WrongFunctionError, match=r"write `run_coroutine_threadsafe\(report\(...\), loop\)`"):
        submit(report, EventLoopThread())
    with pytest.raises(WrongOptionError, match=r"must be an asyncio loop, a trio token, .*, not 3"):
        submit(report(1), 3)
    with pytest.raises(LoopStateError, match="has not been started"):
        submit(report(1), EventLoopThread())


@pytest.mark.anyio
async def test_it_can_be_called_from_a_thread_with_a_loop_and_for_that_loop(target: Target) -> None:
    future = target.submit(report(1))
    while not future.done():
        await anyio.lowlevel.checkpoint()
    assert future.result()[0] == 1

    own: Future[Any] = stdlib.run_coroutine_threadsafe(report(2), anyio.lowlevel.current_token())
    while not own.done():
        await anyio.lowlevel.checkpoint()
    assert own.result()[2] is threading.current_thread()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.anyio
async def test_the_coroutine_knows_which_library_runs_it(backend: str) -> None:
    sniffio = pytest.importorskip("sniffio")
    pytest.importorskip(backend)

    async def library() -> str:
        await anyio.sleep(0)
        return str(sniffio.current_async_library())

    with EventLoopThread(backend) as loop_thread:
        future = stdlib.run_coroutine_threadsafe(library(), loop_thread)
        while not future.done():
            await anyio.lowlevel.checkpoint()

        assert future.result() == backend


def test_a_loop_that_does_not_run_yet_runs_it_then() -> None:
    loop = asyncio.new_event_loop()
    future = stdlib.run_coroutine_threadsafe(report(1), loop)

    loop.run_until_complete(asyncio.wrap_future(future, loop=loop))
    loop.close()

    assert future.result()[0] == 1


def test_what_a_loop_says_that_has_not_ended_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("not now")

    loop = asyncio.new_event_loop()
    monkeypatch.setattr(loop, "call_soon_threadsafe", refuse)

    with pytest.raises(RuntimeError, match="not now"):
        stdlib.run_coroutine_threadsafe(report(1), loop)
    loop.close()


@pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="trio is not installed")
@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()], ids=["SystemExit", "KeyboardInterrupt"])
def test_on_trio_what_would_end_the_program_is_the_futures_alone(error: BaseException) -> None:
    async def leave() -> None:
        raise error

    with EventLoopThread("trio") as loop_thread:
        assert stdlib.run_coroutine_threadsafe(leave(), loop_thread).exception(GRACE_SECONDS) is error
        assert loop_thread.run_sync(report, 1)[0] == 1


@pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="trio is not installed")
def test_on_trio_what_comes_when_the_main_task_has_ended_is_cancelled() -> None:
    import trio

    futures: list[Future[Any]] = []
    coro = report(1)

    async def outlive() -> None:
        token = trio.lowlevel.current_trio_token()
        try:
            await trio.sleep_forever()
        finally:  # the main task has ended, and the loop has not
            futures.append(stdlib.run_coroutine_threadsafe(coro, token))
            with trio.CancelScope(shield=True):
                await trio.testing.wait_all_tasks_blocked()

    async def main() -> None:
        trio.lowlevel.spawn_system_task(outlive)
        await trio.testing.wait_all_tasks_blocked()

    trio.run(main)

    assert futures[0].cancelled()
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


class Ending:
    """A trio token whose loop is ending: earlier callbacks still run, but no task can start."""

    def __init__(self) -> None:
        self.functions: list[Any] = []

    def run_sync_soon(self, sync_fn: Any) -> None:
        import trio

        if self.functions:
            raise trio.RunFinishedError
        self.functions.append(sync_fn)


@pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="trio is not installed")
def test_on_trio_what_comes_when_the_loop_has_all_but_ended_is_cancelled() -> None:
    coro, token = report(1), Ending()
    future = stdlib.run_coroutine_threadsafe(coro, token)

    token.functions[0]()  # here, where none can start either

    assert wait([future], GRACE_SECONDS).done == {future}
    assert future.cancelled()
    assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED


@pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="trio is not installed")
def test_on_trio_a_future_can_be_cancelled_when_the_loop_has_ended() -> None:
    coro = report(1)
    future = stdlib.run_coroutine_threadsafe(coro, Ending())

    assert future.cancel()
    coro.close()


def test_a_task_that_cancels_itself_cancels_the_future() -> None:
    async def cancel_itself() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    with EventLoopThread() as loop_thread, pytest.raises(CancelledError):
        stdlib.run_coroutine_threadsafe(cancel_itself(), loop_thread).result(GRACE_SECONDS)
