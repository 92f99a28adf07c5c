"""Running event loops as other threads see them, once they are gone or about to be."""

from __future__ import annotations

import asyncio
import sys
import threading
import types
from contextvars import Context, copy_context
from functools import partial
from typing import Any, NoReturn, cast

import anyio
import pytest
from conftest import GRACE_SECONDS

from unfazed.concurrency import EventLoopThread, LoopEndedError
from unfazed.concurrency._core import _futures, _loop, _slots, _taskcall
from unfazed.concurrency._eventloops import _loops, _loopthread, _waiting


def ended_loop(backend: tuple[str, dict[str, Any]]) -> _loop.Loop:
    async def main() -> _loop.Loop:
        return _loops.current_loop()

    return anyio.run(main, backend=backend[0], backend_options=backend[1])


def test_a_loop_that_is_gone_says_so(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    loop = ended_loop(anyio_backend)

    with pytest.raises(LoopEndedError):
        loop.post(int)
    assert not _waiting.set_from_anywhere(loop, anyio.Event())
    assert loop.is_gone()


def test_a_call_that_is_cancelled_when_its_loop_is_gone_stays_quiet(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    async def never() -> None:
        pytest.fail("must not run")

    call = _taskcall.TaskCall(never, _futures.BlockingFuture[None]())
    call.loop = ended_loop(anyio_backend)

    call.cancel()


@pytest.mark.anyio
async def test_an_error_that_is_not_the_end_of_the_loop_is_not_hidden(
    anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """uvloop, and asyncio in debug mode, refuse anything but a function."""
    loop = _loops.current_loop()

    class Broken:
        def call_soon_threadsafe(self, *args: object, **kwargs: object) -> None:
            raise RuntimeError("something else")

        run_sync_soon = call_soon_threadsafe

        def is_closed(self) -> bool:
            return False

    broken = type(loop)(Broken())  # type: ignore[call-arg]

    with pytest.raises(RuntimeError, match="something else"):
        broken.post(int)


@pytest.mark.anyio
async def test_trio_refuses_new_tasks_when_its_main_task_has_ended(
    anyio_backend_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if anyio_backend_name != "trio":
        pytest.skip("asyncio has no such state")
    import trio

    def refuse(*args: object, **kwargs: object) -> None:
        raise RuntimeError("Nursery is closed to new arrivals")

    async def never() -> None:
        pytest.fail("must not run")

    future = _futures.BlockingFuture[None]()
    monkeypatch.setattr(trio.lowlevel, "spawn_system_task", refuse)
    _loops.current_loop().submit(_taskcall.TaskCall(never, future), copy_context())
    await anyio.to_thread.run_sync(future.ready.acquire)

    with pytest.raises(LoopEndedError):
        future.read()


@pytest.mark.anyio
async def test_a_slot_granted_before_the_wait_begins_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: the call is queued. 2: another thread gives a slot back and wakes it. 3: only now does it begin to wait."""
    limiter = anyio.CapacityLimiter(1)
    first = _slots.acquire(limiter, lambda: True)

    class LateEvent:
        def __init__(self) -> None:
            releaser = threading.Thread(target=_slots.release, args=(first,))
            releaser.start()
            releaser.join(GRACE_SECONDS)

        async def wait(self) -> None:
            pytest.fail("there is nothing to wait for")

        def set(self) -> None:
            pytest.fail("nobody waits")

    loop = _loops.current_loop()
    monkeypatch.setattr(type(loop), "new_event", lambda _: LateEvent())
    second = _slots.acquire(limiter)
    assert _waiting.take_or_queue(second, loop) is None

    assert second.held
    _slots.release(second)


@pytest.mark.parametrize("module", ["asyncio.events", "trio.lowlevel"])
def test_a_library_that_another_thread_is_importing_runs_no_loop_here(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, types.ModuleType(module))

    assert _loops.running_loop() is None


def test_a_library_whose_import_has_just_failed_runs_no_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    class Modules(dict[str, types.ModuleType]):
        def __contains__(self, name: object) -> bool:
            return True

    monkeypatch.setattr(_loops, "sys", types.SimpleNamespace(modules=Modules()))

    assert _loops.running_loop() is None


@pytest.mark.parametrize("loaded", [{}, {"trio": types.ModuleType("trio")}], ids=["absent", "half imported"])
def test_a_library_that_is_not_there_yet_cancels_nothing(
    loaded: dict[str, types.ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_waiting, "sys", types.SimpleNamespace(modules={"asyncio": asyncio, **loaded}))

    assert _waiting.cancelled_classes() == (asyncio.CancelledError,)


def test_a_call_that_was_given_up_before_it_was_submitted_never_runs(
    anyio_backend: tuple[str, dict[str, Any]],
) -> None:
    """1: Ctrl-C comes while a call is being submitted. 2: it is given up. 3: should it arrive after all, it is late."""

    async def never() -> None:
        pytest.fail("must not run")

    async def nothing() -> None:
        pass

    with EventLoopThread(*anyio_backend) as loop_thread:
        loop = loop_thread._loop
        assert loop is not None
        future = _futures.BlockingFuture[None]()
        call = _taskcall.TaskCall(never, future)
        call.loop = loop
        call.on_end = loop_thread._forget
        loop_thread._calls.add(call)

        assert call.cancel()
        assert future.ready.acquire(timeout=GRACE_SECONDS)
        loop.submit(call, copy_context())
        loop_thread.run_sync(nothing)

        assert not loop_thread._calls


def test_of_two_threads_for_one_loop_the_second_ends_at_once(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    with EventLoopThread(*anyio_backend) as loop_thread:
        first = loop_thread._thread
        loop_thread._main()

        assert loop_thread._thread is first
        assert loop_thread.is_running()


def test_a_loop_that_starts_while_the_interpreter_exits_ends_at_once(
    anyio_backend: tuple[str, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_loopthread, "_exiting", True)
    loop_thread = EventLoopThread(*anyio_backend)
    with pytest.raises(LoopEndedError, match="the interpreter is exiting"):
        loop_thread.start()

    thread = threading.Thread(target=loop_thread._main)
    thread.start()
    thread.join(GRACE_SECONDS)

    assert not thread.is_alive()
    assert not loop_thread.is_running()


@pytest.mark.anyio
async def test_a_task_that_dies_after_its_cancellation_was_posted_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: a call's task is made. 2: the call is cancelled. 3: a signal handler raises in the first step of the task."""
    monkeypatch.setattr(_waiting, "CHECK_SECONDS", 0.01)
    loop, died, waiting = _loops.current_loop(), list[bool](), anyio.Event()

    def submit(call: _taskcall.TaskCall[None], _: Context) -> None:
        call.set_loop(loop)
        call.taken = True
        call.task_has_ended = lambda: bool(died)
        waiting.set()

    async def let_it_die() -> None:
        await waiting.wait()
        scope.cancel()
        cancelled = anyio.Event()
        loop.post(cancelled.set)  # after what the cancellation has posted
        await cancelled.wait()
        died.append(True)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(let_it_die)
        with anyio.CancelScope() as scope:
            await _waiting.call_in(submit, anyio.sleep_forever, "work", loop)

    assert scope.cancelled_caught


@pytest.mark.anyio
@pytest.mark.parametrize("what", ["the call is begun again", "the loop has gone", "the wake-up is repeated"])
async def test_what_a_signal_handler_keeps_a_loop_from_is_found_out(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_waiting, "CHECK_SECONDS", 0.01)
    loop, calls = _loops.current_loop(), list[_taskcall.TaskCall[int]]()

    def submit(call: _taskcall.TaskCall[int], _: Context) -> None:
        calls.append(call)
        call.loop = cast("Any", _Gone()) if what == "the loop has gone" else loop
        if what == "the wake-up is repeated":
            call.future.on_done = None
        if what == "the wake-up is repeated" or len(calls) == 2:
            call.future.write(len(calls), None)

    async def never() -> int:
        raise AssertionError("must not run")

    call = partial(_waiting.call_in, submit, never, "work", loop, may_be_interrupted=True)

    if what == "the loop has gone":
        with pytest.raises(LoopEndedError):
            await call()
    else:
        assert await call() == len(calls) == (2 if "again" in what else 1)


class _Gone:
    def is_gone(self) -> bool:
        return True


@pytest.mark.anyio
async def test_a_call_that_cannot_be_submitted_is_not_waited_for() -> None:
    def refuse(call: _taskcall.TaskCall[None], _: Context) -> NoReturn:
        raise LookupError("no loop today")

    with pytest.raises(LookupError, match="no loop today"):
        await _waiting.call_in(refuse, anyio.sleep_forever, "work", _loops.current_loop())
