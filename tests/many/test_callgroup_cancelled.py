"""Groups of calls that are cancelled, from outside or by Ctrl-C."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import pytest
from anyio.lowlevel import checkpoint
from conftest import GRACE_SECONDS, Blocking, Gate, wait_until
from own_programs import Program
from test_callgroup import Waits, error_of, fail, texts

from unfazed.concurrency import (
    CallGroup,
    Handle,
    run_in_threadpool,
)
from unfazed.concurrency._eventloops import _waiting
from unfazed.concurrency._many import _callgroup

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


TIMEOUT = GRACE_SECONDS

pytestmark = pytest.mark.usefixtures("background")


@pytest.fixture
def backend(anyio_backend: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    return {"backend": anyio_backend[0], "backend_options": anyio_backend[1]}


def test_async_code_that_is_cancelled_cancels_its_calls(backend: dict[str, Any]) -> None:
    waits, blocking = Waits(), Blocking()

    async def main() -> None:
        with anyio.move_on_after(TIMEOUT) as scope:
            async with CallGroup() as group:
                group.start_in_eventloop(waits)
                group.start_in_threadpool(blocking)
                await blocking.wait_until_started()
                threading.Timer(0.01, blocking.may_end.set).start()
                scope.cancel()
                await anyio.sleep(TIMEOUT)
        assert scope.cancelled_caught
        assert blocking.ended
        assert waits.cleaned_up
        await checkpoint()

    anyio.run(main, **backend)


def test_while_it_is_left_as_well(backend: dict[str, Any]) -> None:
    waits = Waits()

    def cancel(scope: anyio.CancelScope, token: Any) -> None:
        assert waits.begun.wait(TIMEOUT)
        anyio.from_thread.run_sync(scope.cancel, token=token)

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with CallGroup() as group:
                group.start_in_eventloop(waits)
                group.start_in_threadpool(cancel, scope, anyio.lowlevel.current_token())
        assert scope.cancelled_caught
        assert waits.cleaned_up

    anyio.run(main, **backend)


def test_an_error_counts_for_more_than_the_cancellation_from_outside(backend: dict[str, Any]) -> None:
    async def fail_in_cleanup() -> None:
        try:
            begun.set()
            await anyio.sleep(TIMEOUT)
        finally:
            fail("in the cleanup")

    async def main() -> None:
        with anyio.CancelScope() as scope:
            async with CallGroup() as group:
                group.start_in_eventloop(fail_in_cleanup)
                await run_in_threadpool(begun.wait, TIMEOUT)
                scope.cancel()

    begun = threading.Event()
    assert texts(error_of(partial(anyio.run, main, **backend))) == ["in the cleanup"]


def test_a_group_in_a_worker_is_cancelled_with_its_task(backend: dict[str, Any]) -> None:
    waits = Waits()

    def with_group() -> None:
        with CallGroup() as group:
            handles.append(group.start_in_eventloop(waits))

    async def main() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run_in_threadpool, with_group)
            await run_in_threadpool(waits.begun.wait, TIMEOUT)
            tasks.cancel_scope.cancel()

    handles: list[Handle[None]] = []
    anyio.run(main, **backend)

    assert waits.cleaned_up
    assert handles[0].cancelled()


def test_asyncios_own_cancellation_cancels_the_calls() -> None:
    waits = Waits()

    async def with_group() -> None:
        async with CallGroup() as group:
            group.start_in_eventloop(waits)

    async def main() -> None:
        task = asyncio.ensure_future(with_group())
        await run_in_threadpool(waits.begun.wait, TIMEOUT)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert waits.cleaned_up

    asyncio.run(main())


CTRL_C = """
    async def clean_up():
        try:
            begun.set()
            await anyio.sleep(1000)
        finally:
            say("cleaned up")
    def work():
        working.set()
        may_end.wait()
        say("worked")
    def say_when_it_is_left():  # not before: Python itself loses what is raised in the first step of an `__exit__`
        while group._wake is None:
            time.sleep(0.01)
        say("waiting")
    begun, working, may_end = threading.Event(), threading.Event(), threading.Event()
    try:
        with CallGroup() as group:
            group.start_in_eventloop(clean_up)
            group.start_in_threadpool(work)
            begun.wait(), working.wait()
            {body}
    except KeyboardInterrupt:
        say("interrupted")
    say(all(handle.done() for handle in group._members.copy()))  # a call may end meanwhile
    may_end.set()
"""


IN_THE_BODY = "say('waiting'); time.sleep(1000)"
WHILE_IT_IS_LEFT = "threading.Thread(target=say_when_it_is_left).start()"


@pytest.mark.parametrize("body", [IN_THE_BODY, WHILE_IT_IS_LEFT])
def test_ctrl_c_cancels_and_waits(body: str, tmp_path: Path, anyio_backend: tuple[str, dict[str, Any]]) -> None:
    source = CTRL_C.format(body=f"threading.Timer(1, may_end.set).start(); {body}")
    code, out, err = Program(tmp_path, anyio_backend, source).interrupt("waiting")

    assert (code, err) == (0, "")
    assert sorted(out.split("\n")) == ["", "True", "cleaned up", "interrupted", "waiting", "worked"]
    assert out.index("worked") < out.index("interrupted")


@pytest.mark.parametrize("body", [IN_THE_BODY, WHILE_IT_IS_LEFT])
def test_a_second_ctrl_c_stops_waiting(body: str, tmp_path: Path, anyio_backend: tuple[str, dict[str, Any]]) -> None:
    code, out, err = Program(tmp_path, anyio_backend, CTRL_C.format(body=body)).interrupt("waiting", "cleaned up")

    assert (code, err) == (0, "")
    assert out.startswith("waiting\ncleaned up\ninterrupted\nFalse\n")


def test_what_is_no_exception_leaves_the_body_as_itself(backend: dict[str, Any]) -> None:
    async def fail_in_cleanup() -> None:
        try:
            begun.set()
            await anyio.sleep(TIMEOUT)
        finally:
            fail("in the cleanup")

    def in_sync_code() -> None:
        with CallGroup() as group:
            group.start_in_eventloop(fail_in_cleanup)
            assert begun.wait(TIMEOUT)
            raise SystemExit(3)

    async def in_async_code() -> None:
        begun.clear()
        async with CallGroup() as group:
            group.start_in_eventloop(fail_in_cleanup)
            assert begun.wait(TIMEOUT)
            raise SystemExit(3)

    begun = threading.Event()
    for call in (in_sync_code, partial(captured_in_loop, in_async_code, backend)):
        error = error_of(call)
        assert isinstance(error, SystemExit)
        assert error.__cause__ is not None
        assert texts(error.__cause__) == ["in the cleanup"]


def captured_in_loop(afn: Callable[[], Any], backend: dict[str, Any]) -> None:
    async def main() -> BaseException | None:
        try:
            await afn()
        except BaseException as exc:
            return exc
        return None

    error = anyio.run(main, **backend)
    assert error is not None
    raise error


def test_ctrl_c_just_before_the_wait_cancels_and_waits_too(monkeypatch: pytest.MonkeyPatch) -> None:
    waits, group = Waits(), CallGroup()
    close, times = group._close, iter([KeyboardInterrupt])

    def interrupted() -> bool:
        for error in times:
            raise error
        return close()

    monkeypatch.setattr(group, "_close", interrupted)

    def run() -> None:
        with group:
            group.start_in_eventloop(waits)
            assert waits.begun.wait(TIMEOUT)

    assert isinstance(error_of(run), KeyboardInterrupt)
    assert waits.cleaned_up


@pytest.mark.parametrize("in_the_body", [False, True])
def test_a_second_one_just_before_the_wait_leaves_at_once(in_the_body: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    group, gate = CallGroup(), Gate()

    def interrupted() -> bool:
        raise KeyboardInterrupt

    def run() -> None:
        with group:
            group.start_in_threadpool(gate.wait)
            assert gate.reached.wait(TIMEOUT)
            if in_the_body:
                raise KeyboardInterrupt

    monkeypatch.setattr(group, "_close", interrupted)
    assert isinstance(error_of(run), KeyboardInterrupt)
    assert group._members
    gate.opened.set()
    wait_until(lambda: not group._members, "it never ends")


def test_a_call_that_ends_just_before_the_wait_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """1: one has not ended. 2: it ends. 3: the group begins to wait."""
    group = CallGroup()
    close, times = group._close, iter([False])
    monkeypatch.setattr(group, "_close", lambda: next(times, None) is not False and close())

    with group:
        pass

    assert repr(group) == "<CallGroup, left, 0 calls>"


@pytest.mark.anyio
async def test_a_call_that_ends_just_before_a_cancelled_group_waits_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    group = CallGroup()
    close, times = group._close, iter([False])
    monkeypatch.setattr(group, "_close", lambda: next(times, None) is not False and close())

    with anyio.CancelScope() as scope:
        async with group:
            scope.cancel()
            await checkpoint()

    assert scope.cancelled_caught
    assert repr(group) == "<CallGroup, left, 0 calls>"


@pytest.mark.anyio
@pytest.mark.parametrize("when", ["before it enters its scope", "after that", "before it leaves it"])
async def test_a_group_that_is_interrupted_leaves_its_cancel_scope(when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise ZeroDivisionError

    class Interrupted:
        def __init__(self) -> None:
            self._scope = anyio.CancelScope()
            self.__exit__ = self._scope.__exit__

        def __enter__(self) -> None:
            if when == "after that":
                self._scope.__enter__()
            interrupt()

    if when == "before it leaves it":
        monkeypatch.setattr(CallGroup, "_leave", interrupt)
    else:
        monkeypatch.setattr(_callgroup, "CancelScope", Interrupted)
    with anyio.CancelScope() as scope:
        with pytest.raises(ZeroDivisionError):
            async with CallGroup():
                pass
        scope.cancel()
        await checkpoint()

    assert scope.cancelled_caught


def test_a_loop_that_is_gone_ends_the_wait() -> None:
    async def main() -> None:
        group = CallGroup()
        async with group:
            group.start_in_threadpool(gate.wait)
            waiting: Any = group._wait_for_all()
            waiting.send(None)
            waiting.close()  # as the garbage collector does
            assert group._failed
            gate.opened.set()

    gate = Gate()
    asyncio.run(main())


def test_a_group_that_was_not_woken_finds_out_that_all_calls_have_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler has raised in the thread that was to wake it."""
    monkeypatch.setattr(_callgroup, "set_from_anywhere", lambda *_: None)
    monkeypatch.setattr(_waiting, "CHECK_SECONDS", 0.001)
    group, gate = CallGroup(), Gate()

    with group:
        group.start_in_threadpool(gate.wait)
        threading.Timer(0.05, gate.opened.set).start()

    assert repr(group) == "<CallGroup, left, 0 calls>"


def test_an_end_that_was_not_noted_is_noted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal handler has raised in the thread that was to note it."""
    group, gate = CallGroup(), Gate()
    note, times = group._note_end, iter([ZeroDivisionError])

    def interrupted(handle: Any) -> None:
        for error in times:
            raise error
        note(handle)

    monkeypatch.setattr(group, "_note_end", interrupted)
    with group:
        handle = group.start_in_threadpool(gate.wait)
        threading.Timer(0.05, gate.opened.set).start()

    assert handle.result(0) is None


@pytest.mark.parametrize("where", ["in its body", "at its end"])
def test_a_group_whose_loop_has_gone_cancels_its_calls(where: str) -> None:
    """The loop is closed in the midst of it, as by a program that stops it. Its coroutine is closed later."""
    handles: list[Handle[None]] = []

    async def use() -> None:
        async with CallGroup() as group:
            handles.append(group.start_in_eventloop(anyio.sleep, 1000))
            if where == "in its body":
                await asyncio.sleep(1000)

    async def begin() -> None:
        begun.append(asyncio.ensure_future(use()))
        while not (handles and handles[0].running()):
            await asyncio.sleep(0.001)

    begun: list[Any] = []
    loop = asyncio.new_event_loop()
    loop.run_until_complete(begin())
    loop.close()
    begun[0]._log_destroy_pending = False
    begun[0].get_coro().close()

    wait_until(handles[0].cancelled, "its call goes on")
