"""The loops of sync code, one for each thread: how they start, end, and what they survive."""

from __future__ import annotations

import asyncio
import contextvars
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import asgiref.sync
import pytest
from asgiref_helpers import counts_references, end_threads, run_program, this_thread, wait_for_the_end
from conftest import GRACE_SECONDS, Blocking, captured, in_plain_thread, wait_until
from unfazed_compat.asgiref import (
    AsyncSingleThreadContext,
    AsyncToSync,
    SyncToAsync,
    _looprunner,
    _loopthreads,
    _shared,
    async_to_sync,
    sync_to_async,
)
from unfazed_compat.asgiref._currentthreadexecutor import CurrentThreadExecutor

from unfazed.concurrency import LoopEndedError

assert end_threads  # a fixture


async def raise_in_another_task() -> None:
    async def leave() -> None:
        raise SystemExit(3)

    task = asyncio.create_task(leave())
    await asyncio.Event().wait()
    del task


def test_a_loop_thread_ends_with_its_thread() -> None:
    wait_for_the_end(in_plain_thread(async_to_sync(this_thread)))


def test_system_exit_of_another_task_reaches_the_caller_and_the_next_call_works() -> None:
    error = captured(async_to_sync(raise_in_another_task))[1]

    assert isinstance(error, SystemExit)
    assert error.code == 3
    assert async_to_sync(this_thread)().is_alive()


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals")
def test_a_signal_handler_can_call_while_its_thread_waits() -> None:
    outcomes: list[Any] = []

    def handle(*_: object) -> None:
        outcomes.append(async_to_sync(this_thread)())

    async def main() -> threading.Thread:
        signal.raise_signal(signal.SIGUSR1)
        while not outcomes:
            await asyncio.sleep(0)
        return threading.current_thread()

    def both_ways() -> None:
        assert async_to_sync(main)() not in outcomes
        outcomes.clear()
        with AsyncSingleThreadContext():
            assert async_to_sync(main)() not in outcomes

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        contextvars.copy_context().run(both_ways)
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_what_the_default_executor_does_is_waited_for() -> None:
    """As `asyncio.run` does, which asgiref calls."""
    call, cancelled = Blocking(), Blocking()
    ran_in_loop: list[bool] = []

    async def note() -> None:
        ran_in_loop.append(True)

    async def main() -> None:
        loop = asyncio.get_running_loop()

        def work() -> None:
            call()
            asyncio.run_coroutine_threadsafe(note(), loop).result(GRACE_SECONDS)

        loop.run_in_executor(None, work)
        task = asyncio.create_task(sync_to_async(cancelled, thread_sensitive=False)())
        await cancelled.wait_until_started()
        task.cancel()
        loop.call_soon(call.may_end.set)
        loop.call_soon(cancelled.may_end.set)

    async_to_sync(main)()

    assert ran_in_loop == [True]
    assert cancelled.ended


@pytest.mark.parametrize("spoil", ["shut down", "replaced"])
def test_a_call_cannot_spoil_the_default_executor_of_the_next(spoil: str) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        if spoil == "shut down":
            await loop.shutdown_default_executor()
        else:
            with ThreadPoolExecutor() as executor:
                loop.set_default_executor(executor)

    async_to_sync(main)()

    assert async_to_sync(sync_to_async(lambda: 42, thread_sensitive=False))() == 42


def test_what_a_call_has_set_of_its_loop_is_put_back() -> None:
    def settings(loop: asyncio.AbstractEventLoop) -> tuple[object, ...]:
        return loop.get_debug(), loop.get_task_factory(), loop.get_exception_handler()

    async def change() -> tuple[object, ...]:
        loop = asyncio.get_running_loop()
        before = settings(loop)
        loop.set_debug(not loop.get_debug())
        loop.set_task_factory(lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options))
        loop.set_exception_handler(lambda *_: None)
        assert settings(loop) != before
        return before

    assert async_to_sync(change)() == async_to_sync(change)()


def test_plain_threads_know_of_no_loop_after_a_call() -> None:
    """Some ask whether there is `main_event_loop`, and not what it is."""
    assert not in_plain_thread(lambda: async_to_sync(this_thread)() and vars(_shared.threadlocal))


def test_a_loop_in_one_of_several_threads_is_no_deadlock(monkeypatch: pytest.MonkeyPatch) -> None:
    with ThreadPoolExecutor(max_workers=2) as executor:
        monkeypatch.setattr(SyncToAsync, "single_thread_executor", executor)
        call = executor.submit(lambda: asyncio.run(sync_to_async(threading.current_thread)()))

        assert call.result(GRACE_SECONDS) in executor._threads


def test_threads_that_share_a_context_share_one_loop_thread() -> None:
    def main() -> set[threading.Thread]:
        with AsyncSingleThreadContext(), ThreadPoolExecutor(4) as threads:
            barrier = threading.Barrier(4)

            def use() -> threading.Thread:
                barrier.wait(GRACE_SECONDS)
                return async_to_sync(this_thread)()

            contexts = [contextvars.copy_context() for _ in range(4)]
            return {each.result() for each in [threads.submit(context.run, use) for context in contexts]}

    before = len(_looprunner.runners)
    assert len(contextvars.copy_context().run(main)) == 1
    wait_until(lambda: len(_looprunner.runners) <= before, "a loop thread is left")


def test_an_executor_that_asgiref_has_put_into_a_context_is_used() -> None:
    def main() -> None:
        with AsyncSingleThreadContext() as context:
            with ThreadPoolExecutor(max_workers=1) as executor:
                AsyncToSync.context_to_thread_executor[context] = executor
                thread = executor.submit(threading.current_thread).result()

                assert async_to_sync(this_thread)() is thread
                assert async_to_sync(sync_to_async(threading.current_thread))() is threading.current_thread()
            with pytest.raises(RuntimeError, match="shutdown"):
                async_to_sync(this_thread)()

    contextvars.copy_context().run(main)


def test_asgirefs_own_wrappers_and_these_share_threads() -> None:
    def main() -> None:
        theirs = asgiref.sync.sync_to_async(threading.current_thread)
        mine = sync_to_async(threading.current_thread)

        async def both() -> list[threading.Thread]:
            return [await theirs(), await mine()]

        here = threading.current_thread()
        assert async_to_sync(both)() == [here, here]
        assert asgiref.sync.async_to_sync(both)() == [here, here]
        alone = asyncio.run(both())
        assert alone[0] is alone[1] is not here

    assert in_plain_thread(lambda: captured(main)) == (None, None)


class Leaking:
    """What asgiref 3.8 has for a `Local`: one value for all contexts that were copied from one."""

    def __init__(self) -> None:
        self._value: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("leaking")

    def __getattr__(self, name: str) -> Any:
        try:
            return self._value.get({})[name]
        except KeyError:
            raise AttributeError(name) from None

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "_value":
            super().__setattr__(name, value)
        else:
            values = self._value.get({})
            values[name] = value
            self._value.set(values)

    def __delattr__(self, name: str) -> None:
        del self._value.get({})[name]


def test_contexts_are_kept_apart_where_asgiref_does_not() -> None:
    leaking = Leaking()
    executors = contextvars.copy_context().run(_shared._isolated, leaking)
    ours, others, theirs = (CurrentThreadExecutor(None) for _ in range(3))

    def main() -> None:
        assert executors.current is None
        executors.current = ours
        contextvars.copy_context().run(setattr, executors, "current", others)
        assert leaking.current is others
        assert executors.current is ours
        object.__setattr__(theirs, "__class__", _shared.CurrentThreadExecutorBase)
        leaking.current = theirs
        assert executors.current is theirs
        del executors.current
        assert executors.current is None

    contextvars.copy_context().run(main)


def test_no_loop_thread_starts_when_the_interpreter_is_exiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_loopthreads, "_exiting", True)
    with pytest.raises(LoopEndedError, match="exiting"):
        in_plain_thread(lambda: captured(async_to_sync(this_thread)))[1].__class__ and async_to_sync(this_thread)()


def test_no_loop_thread_starts_when_no_thread_can(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    _loopthreads.end_loop_threads(GRACE_SECONDS)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(LoopEndedError, match="the thread of an event loop could not be started: can't start new"):
        async_to_sync(this_thread)()


def test_a_loop_thread_that_is_told_to_end_while_it_runs_cancels_the_call() -> None:
    started = threading.Event()

    async def forever() -> None:
        started.set()
        await asyncio.Event().wait()

    outcomes: list[Any] = []
    caller = threading.Thread(target=lambda: outcomes.append(captured(async_to_sync(forever))))
    caller.start()
    assert started.wait(GRACE_SECONDS)
    _loopthreads.end_loop_threads(GRACE_SECONDS)
    caller.join(GRACE_SECONDS)

    assert isinstance(outcomes[0][1], asyncio.CancelledError)


def test_a_call_that_comes_while_its_loop_thread_ends_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """By another thread, which ends as well."""
    thread = async_to_sync(this_thread)()
    loop_thread = _loopthreads.loop_thread_of_this_thread()
    assert loop_thread is not None
    loop_thread.shutdown()
    assert not thread.is_alive()
    monkeypatch.setattr(_loopthreads.LoopThread, "takes_no_more_calls", lambda _: False)  # it was not, a moment ago
    next_thread = async_to_sync(this_thread)()
    next_thread.join(GRACE_SECONDS)

    assert not next_thread.is_alive()


EXIT = """
import asyncio, atexit, contextlib, os, threading
from unfazed_compat.asgiref import SyncToAsync, async_to_sync, sync_to_async

def say(text):  # whole lines, from threads that go on while the interpreter ends
    os.write(1, f"{text}\\n".encode())

async def main():
    return await sync_to_async(len)("four")

def late():
    say(async_to_sync(main)())

atexit.register(late)
say(async_to_sync(main)())
started = threading.Event()

async def forever():
    try:
        started.set()
        await asyncio.Event().wait()
    finally:
        say("cleaned up")

def wait_for_it():
    with contextlib.suppress(asyncio.CancelledError):
        async_to_sync(forever)()

threading.Thread(target=wait_for_it, daemon=True).start()
started.wait()
asyncio.run(sync_to_async(say)("in a thread"))

async def save():
    await asyncio.sleep(0.2)
    return "saved"

def save_late():
    async_to_sync(main)()  # for Python 3.12 starts no threads at exit
    started.set()
    may_save.wait()
    say(async_to_sync(save)())

may_save = threading.Event()
started.clear()
SyncToAsync.single_thread_executor.submit(save_late)
started.wait()
atexit.register(may_save.set)
"""


@counts_references
def test_the_interpreter_ends_and_what_runs_cleans_up() -> None:
    done = run_program(EXIT, "-W", "error")

    assert (done.returncode, done.stderr) == (0, "")
    assert sorted(done.stdout.splitlines()) == sorted(["4", "in a thread", "4", "cleaned up", "saved"])
