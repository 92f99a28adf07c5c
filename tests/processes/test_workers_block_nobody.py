"""Output, log records and large arguments of worker processes: what blocks nobody else."""

from __future__ import annotations

import logging
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, Gate, captured_async, let_others_run, until_begun, wait_for_event, wait_until
from ways import in_loop

from unfazed._worker import channel
from unfazed.concurrency import (
    CallTimeoutError,
    WorkerProcessError,
    in_processpool,
    run_in_processpool,
    run_in_processpool_sync,
)
from unfazed.concurrency._processes import _packing, _pool

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

Backend = tuple[str, dict[str, Any]]


# What blocks nobody


def test_a_stderr_that_blocks_holds_up_its_own_output_alone(
    background: Backend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    gate = Gate()

    class Blocked:
        def write(self, text: str) -> None:
            gate.wait()

        def flush(self) -> None:
            pass

    with monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Blocked())
        run_in_processpool_sync(print, "x")
        assert gate.reached.wait(GRACE_SECONDS)
        try:
            for _ in range(3):
                with pytest.raises(WorkerProcessError, match="exit code 3"):
                    run_in_processpool_sync(misbehaving.die, 3)
            with ThreadPoolExecutor(1) as threads:
                flood = threads.submit(
                    run_in_processpool_sync, misbehaving.flood_until, tmp_path / "started", tmp_path / "ended"
                )
                assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})
                assert sum(len(worker.output._line) for worker in _pool.pool.workers if worker.output) < 300_000
                gate.opened.set()
                (tmp_path / "ended").touch()
                flood.result(GRACE_SECONDS)
        finally:
            gate.opened.set()


class Handler(logging.Handler):
    def __init__(self, on_record: Callable[[logging.LogRecord], object]) -> None:
        super().__init__()
        self._on_record = on_record

    def emit(self, record: logging.LogRecord) -> None:
        self._on_record(record)


@pytest.fixture
def handle() -> Any:
    added: list[logging.Handler] = []

    def add(on_record: Callable[[logging.LogRecord], object]) -> None:
        added.append(Handler(on_record))
        logging.getLogger("workers").addHandler(added[0])

    yield add
    for handler in added:
        logging.getLogger("workers").removeHandler(handler)


def test_a_handler_that_blocks_has_the_worker_wait(background: Backend, handle: Any, tmp_path: Path) -> None:
    gate = Gate()
    handle(lambda record: gate.wait())
    with ThreadPoolExecutor(1) as threads:
        call = threads.submit(run_in_processpool_sync, misbehaving.log_and_note, "workers", 8_000, tmp_path / "said")
        assert gate.reached.wait(GRACE_SECONDS)
        wait_until(lambda: quiet(tmp_path / "said"), "it goes on logging")
        said = (tmp_path / "said").stat().st_size
        gate.opened.set()
        call.result(60)

    assert said < 8_000  # of some hundred bytes each, as many as a pipe holds


def quiet(path: Path) -> bool:
    """Return whether a file that grows by a byte for each record has stopped growing."""
    before = path.stat().st_size
    time.sleep(0.2)
    return path.stat().st_size == before


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_a_handler_may_make_a_call_though_there_is_but_one_slot(background: Backend, handle: Any, kind: str) -> None:
    limiter = anyio.CapacityLimiter(1)
    answers: list[object] = []
    handle(lambda record: answers.append(in_processpool(functions.echo, limiter=limiter).sync(1)))
    log = in_processpool(misbehaving.log, limiter=limiter)

    if kind == "sync":
        log.sync("workers", (30, "x"))
    else:
        in_loop(background, log, "workers", (30, "x"))

    assert answers == [((1,), {})]


def test_the_records_of_a_call_that_a_handler_makes_are_handled_by_the_same_one(
    background: Backend, handle: Any
) -> None:
    """Which has its lock while it waits for the call."""
    messages: list[str] = []

    def call_again(record: logging.LogRecord) -> None:
        messages.append(record.getMessage())
        if record.getMessage() == "outer":
            run_in_processpool_sync(misbehaving.log, "workers", (30, "inner"), (30, "second"))
            messages.append("answered")

    handle(call_again)
    run_in_processpool_sync(misbehaving.log, "workers", (30, "outer"))

    logged_by_handlers = ["inner", "second"] if takes_what_a_handler_logs() else []
    assert messages == ["outer", *logged_by_handlers, "answered"]


def takes_what_a_handler_logs() -> bool:
    """Return whether `logging` does. From some 3.13 on it does not, in one and the same thread."""
    logger = logging.getLogger("workers.again")
    messages: list[str] = []

    def log_again(record: logging.LogRecord) -> None:
        messages.append(record.getMessage())
        if len(messages) == 1:
            logger.error("again")

    handler = Handler(log_again)
    logger.addHandler(handler)
    logger.propagate = False
    logger.error("once")
    logger.removeHandler(handler)
    logger.propagate = True
    return messages == ["once", "again"]


# Large arguments


class Slow:
    """A large object that pickles slowly."""

    reached = threading.Event()
    go_on = threading.Event()

    def __init__(self) -> None:
        self.parts = [str(number) for number in range(100_000)]

    def __reduce__(self) -> tuple[Any, ...]:
        if threading.current_thread().name.startswith("unfazed-worker"):
            self.reached.set()
            assert self.go_on.wait(GRACE_SECONDS)
        return list, (self.parts,)


@pytest.fixture
def slow() -> Slow:
    Slow.reached.clear()
    Slow.go_on.clear()
    return Slow()


@pytest.mark.anyio
async def test_large_arguments_are_pickled_while_the_loop_goes_on(slow: Slow) -> None:
    lengths: list[int] = []

    async def call() -> None:
        lengths.append(await run_in_processpool(len, slow))  # type: ignore[arg-type]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await wait_for_event(slow.reached)
        await let_others_run()
        slow.go_on.set()

    assert lengths == [100_000]


@pytest.mark.anyio
@pytest.mark.parametrize("options", [{}, {"kill_on_cancel": True}], ids=str)
async def test_a_call_does_not_return_before_its_arguments_are_pickled(slow: Slow, options: dict[str, Any]) -> None:
    """After the call, its caller may change the arguments."""
    outcome: list[BaseException | None] = []

    async def call() -> None:
        outcome.append((await captured_async(partial(in_processpool(len, **options), slow)))[1])  # type: ignore[arg-type]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await wait_for_event(slow.reached)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await let_others_run()
            returned_early = bool(outcome)
            slow.go_on.set()

    assert not returned_early
    assert isinstance(outcome[0], anyio.get_cancelled_exc_class())


@pytest.mark.anyio
async def test_a_call_that_is_late_does_not_return_before_its_arguments_are_pickled(slow: Slow) -> None:
    outcome: list[BaseException | None] = []
    await run_in_processpool(int)  # so that there is a worker before the time is up

    async def call(seconds: float) -> None:
        late: Any = in_processpool(len, timeout=seconds)
        outcome.append((await captured_async(partial(late, slow)))[1])

    for seconds in until_begun(slow.reached.is_set):
        outcome.clear()
        slow.go_on.clear()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call, seconds)
            await anyio.sleep(seconds + 0.1)
            await let_others_run()
            returned_early = slow.reached.is_set() and bool(outcome)
            slow.go_on.set()

        assert not returned_early
        assert isinstance(outcome[0], CallTimeoutError)


@pytest.mark.anyio
async def test_large_arguments_that_cannot_be_pickled_are_refused() -> None:
    with pytest.raises(TypeError, match="cannot send the arguments of len"):
        await run_in_processpool(len, [*map(str, range(200_000)), lambda: None])


@pytest.mark.anyio
@pytest.mark.parametrize("large", ["x" * 400_000, bytearray(400_000), [*range(200_000)]], ids=type)
async def test_what_is_large_is_not_pickled_on_the_loop(large: Any) -> None:
    with pytest.raises(channel.TooMuchError):
        _packing.pack(len, (large,), {}, "helper", at_once=True)

    assert await run_in_processpool(len, large) == len(large)
