"""Ctrl-C in sync calls, whatever their form: the first one cancels and waits, the second one stops waiting."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import GRACE_SECONDS

from unfazed.concurrency import (
    EventLoopThread,
    contextmanager_in_eventloop_sync,
    in_eventloop,
    iterate_in_eventloop_sync,
    run_in_eventloop_sync,
    run_in_threadpool_sync,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent in another way there")


class Stubborn:
    """Async code that ignores its cancellation, and blocking code."""

    def __init__(self) -> None:
        self.begun = threading.Event()
        self.cancelled = threading.Event()
        self.may_end = threading.Event()

    async def run(self) -> None:
        self.begun.set()
        try:
            await anyio.sleep_forever()
        finally:
            self.cancelled.set()
            with anyio.CancelScope(shield=True):
                while not self.may_end.is_set():
                    await anyio.sleep(0.001)

    def block(self) -> None:
        self.begun.set()
        self.cancelled.set()  # nobody can tell it
        assert self.may_end.wait(GRACE_SECONDS)

    async def items(self) -> AsyncIterator[int]:
        await self.run()
        yield pytest.fail("is never reached")

    async def closing(self) -> AsyncIterator[int]:
        try:
            yield 1
        finally:
            await self.run()

    @asynccontextmanager
    async def entering(self) -> AsyncIterator[None]:
        await self.run()
        yield pytest.fail("is never reached")

    @asynccontextmanager
    async def leaving(self) -> AsyncIterator[None]:
        yield
        await self.run()


@pytest.fixture
def noticed() -> Iterator[threading.Event]:
    """Make Ctrl-C raise, however the tests were started, and record that it did."""
    event = threading.Event()

    def raise_it(*args: object) -> None:
        event.set()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, raise_it)
    yield event
    signal.signal(signal.SIGINT, before)


def interrupt_twice(stubborn: Stubborn, noticed: threading.Event) -> None:
    assert stubborn.begun.wait(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGINT)
    assert noticed.wait(GRACE_SECONDS)
    assert stubborn.cancelled.wait(GRACE_SECONDS)
    os.kill(os.getpid(), signal.SIGINT)


def iterate(stubborn: Stubborn) -> None:
    assert list(iterate_in_eventloop_sync(stubborn.items())) == []


def close(stubborn: Stubborn) -> None:
    items = iterate_in_eventloop_sync(stubborn.closing())
    assert next(items) == 1
    items.close()


def enter(stubborn: Stubborn) -> None:
    with contextmanager_in_eventloop_sync(stubborn.entering()):
        pytest.fail("is never reached")


def leave(stubborn: Stubborn) -> None:
    with contextmanager_in_eventloop_sync(stubborn.leaving()):
        pass


def run_in_a_loop_thread(stubborn: Stubborn) -> None:
    with EventLoopThread() as loop:
        loop.run_sync(stubborn.run)


FORMS: dict[str, Callable[[Stubborn], Any]] = {
    "eventloop": lambda stubborn: run_in_eventloop_sync(stubborn.run),
    "in_eventloop": lambda stubborn: in_eventloop(stubborn.run, timeout=60).sync(),
    "threadpool": lambda stubborn: run_in_threadpool_sync(stubborn.block),
    "iterating": iterate,
    "closing": close,
    "entering": enter,
    "leaving": leave,
    "a loop thread": run_in_a_loop_thread,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_second_ctrl_c_stops_waiting(form: str, noticed: threading.Event, background: Any) -> None:
    stubborn = Stubborn()
    sender = threading.Thread(target=interrupt_twice, args=(stubborn, noticed))
    sender.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            FORMS[form](stubborn)
        sender.join(GRACE_SECONDS)
        assert not sender.is_alive()
    finally:
        stubborn.may_end.set()


def test_the_first_ctrl_c_waits_for_the_cleanup(noticed: threading.Event, background: Any) -> None:
    ended = threading.Event()
    begun = threading.Event()

    async def clean_up() -> AsyncIterator[int]:
        begun.set()
        try:
            await anyio.sleep_forever()
            yield pytest.fail("is never reached")
        finally:
            ended.set()

    def interrupt() -> None:
        assert begun.wait(GRACE_SECONDS)
        os.kill(os.getpid(), signal.SIGINT)

    sender = threading.Thread(target=interrupt)
    sender.start()
    with pytest.raises(KeyboardInterrupt):
        list(iterate_in_eventloop_sync(clean_up()))

    assert ended.is_set()
    assert noticed.is_set()
    sender.join()


@pytest.mark.parametrize("call", ["run_in_threadpool_sync", "run_in_processpool_sync", "run_in_eventloop_sync"])
def test_the_first_one_says_on_a_terminal_what_is_waited_for(call: str, tmp_path: Path) -> None:
    import pty

    program = tmp_path / "program.py"
    program.write_text(PROGRAM.format(call=call), encoding="utf-8")
    reader, terminal = pty.openpty()
    running = subprocess.Popen([sys.executable, program], stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    said = ""

    def read_until(text: str) -> None:
        nonlocal said
        while text not in said:
            said += os.read(reader, 1000).decode()

    try:
        read_until("begun")
        running.send_signal(signal.SIGINT)
        read_until("stop waiting")

        assert "Ctrl-C: waiting for stay() to end; press it again to stop waiting" in said
        assert "Traceback" not in said
        running.send_signal(signal.SIGINT)
        assert running.wait(GRACE_SECONDS) != 0
    finally:
        running.kill()
        running.wait()
        os.close(reader)


PROGRAM = """
import signal, sys, time
import anyio
from unfazed.concurrency import *

def stay():
    print("begun", file=sys.stderr, flush=True)
    time.sleep(60)

async def stay_async():
    print("begun", file=sys.stderr, flush=True)
    while True:
        try:
            await anyio.sleep(60)
        except anyio.get_cancelled_exc_class():
            pass

stay_async.__qualname__ = "stay"

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    {call}(stay_async if "{call}" == "run_in_eventloop_sync" else stay)
"""
