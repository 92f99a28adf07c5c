"""The pool of worker processes: who gets a worker, how workers end, and what blocks nobody."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from conftest import (
    GRACE_SECONDS,
    Gate,
    captured,
    captured_async,
    children,
    let_others_run,
    seen,
    wait_until,
    wait_until_none,
)
from interrupting import EVERY_STEP, Steps, numbers, raise_alarm
from processes import exists, is_dead
from test_worker import run_program, write

import unfazed.concurrency
from unfazed._worker import channel
from unfazed.concurrency import (
    CallTimeoutError,
    LoopStateError,
    WorkerProcessError,
    in_processpool,
    run_in_processpool,
    run_in_processpool_sync,
    warm_up_processpool_sync,
)
from unfazed.concurrency._core import _limits, _slots
from unfazed.concurrency._processes import _call, _packing, _pool, _waiting, _worker

if TYPE_CHECKING:
    from collections.abc import Callable

Backend = tuple[str, dict[str, Any]]

FOLDER = str(Path(unfazed.concurrency.__file__).parent)
STEPS = 15  # about how many bytecodes of each operation are tried; arbitrary


@pytest.fixture(params=[True, False], ids=["direct", "by its thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Have callers talk to workers themselves, or leave that to the workers' threads, as on Windows."""
    monkeypatch.setattr(_call, "DIRECT", request.param)
    direct: bool = request.param
    return direct


def in_loop(backend: Backend, afn: Any, *args: Any) -> Any:
    return anyio.run(afn, *args, backend=backend[0], backend_options=backend[1])


async def until(condition: Callable[[], object]) -> None:
    with anyio.fail_after(GRACE_SECONDS), anyio.CancelScope(shield=True):
        while not condition():
            await anyio.sleep(0.001)


slow_touch = in_processpool(functions.touch_then_wait_for, timeout=5)


# Both ways


def test_calls_of_all_kinds_come_back(background: Backend, way: bool) -> None:
    async def main() -> list[object]:
        return [await captured_async(partial(run_in_processpool, *call)) for call in calls]

    calls: list[tuple[Any, ...]] = [
        (functions.echo, 1),
        (functions.echo, b"x" * 100_000),
        (len, b"x" * 3_000_000),
        (bytes, 3_000_000),
        (misbehaving.log, "workers", (30, "x")),
        (functions.fail, ValueError("no")),
        (misbehaving.die, 3),  # coverage puts another function in the place of `os._exit`
        (functions.echo, 2),
    ]
    for _ in range(2):
        there = in_loop(background, main)
        assert [repr(error) for _, error in there if error] == [
            "ValueError('no')",
            "WorkerProcessError('die', 'ended with exit code 3 before it answered')",
        ]
        assert there[0][0] == ((1,), {})
        assert there[2][0] == 3_000_000
        assert there[7][0] == ((2,), {})
    assert run_in_processpool_sync(functions.echo, 3) == ((3,), {})
    with pytest.raises(WorkerProcessError, match="exit code 4"):
        run_in_processpool_sync(misbehaving.die, 4)


@pytest.mark.anyio
async def test_a_call_that_is_cancelled_with_its_worker_at_it_is_waited_for(way: bool, tmp_path: Path) -> None:
    pid = await run_in_processpool(os.getpid)
    may_end = tmp_path / "may end"
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_in_processpool, functions.touch_then_wait_for, tmp_path / "started", may_end)
        await until((tmp_path / "started").exists)
        tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await let_others_run()
            may_end.touch()
    assert may_end.exists()
    assert await run_in_processpool(os.getpid) == pid


@pytest.mark.anyio
async def test_a_call_in_a_task_that_is_cancelled_already_never_begins(way: bool, tmp_path: Path) -> None:
    await run_in_processpool(int)
    never = tmp_path / "never"
    ways: list[Any] = [lambda *args: run_in_processpool(functions.touch_then_wait_for, *args), slow_touch]
    for call in ways:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await call(tmp_path / "ran", never)

    assert not (tmp_path / "ran").exists()


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.skipif(sys.version_info < (3, 11), reason="that cannot be seen there")
async def test_a_task_that_has_cancelled_itself_makes_no_call(tmp_path: Path) -> None:
    async def call() -> None:
        current = asyncio.current_task()
        assert current is not None
        current.cancel()
        await run_in_processpool(functions.touch_then_wait_for, tmp_path / "ran", tmp_path / "never")

    await run_in_processpool(int)
    with pytest.raises(asyncio.CancelledError):
        await asyncio.create_task(call())

    assert not (tmp_path / "ran").exists()


# Who gets a worker


def test_who_no_longer_waits_for_a_worker_leaves_it_to_the_next(background: Backend, tmp_path: Path) -> None:
    """However often that happens while it starts, no second one does."""

    async def main() -> int:
        for _ in range(10):
            with anyio.move_on_after(0):
                await run_in_processpool(functions.touch_then_wait_for, tmp_path / "ran", tmp_path / "never")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(
                    run_in_processpool, functions.touch_then_wait_for, tmp_path / "ran", tmp_path / "never"
                )
                await let_others_run()
                tasks.cancel_scope.cancel()
        return await run_in_processpool(os.getpid)

    pid = in_loop(background, main)

    assert children() == {pid}
    assert not (tmp_path / "ran").exists()


def test_idle_workers_beyond_the_first_few_end(background: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_worker, "IDLE_SECONDS", 0.05)
    warm_up_processpool_sync(4)

    wait_until(lambda: len(children()) == _worker.KEPT, "idle workers stay")
    assert run_in_processpool_sync(os.getpid) in children()


def test_an_idle_worker_that_is_killed_is_forgotten_at_once(background: Backend) -> None:
    pid = run_in_processpool_sync(os.getpid)

    os.kill(pid, signal.SIGKILL)

    wait_until(lambda: not _pool.pool.workers, "it is taken for a worker")
    assert not exists(pid), "nobody has read its status"


def test_a_worker_that_has_answered_is_not_killed_on_account_of_that_call(background: Backend) -> None:
    """1: the thread gives the worker back. 2: the caller, whose time is up, kills it, in another call."""
    run_in_processpool_sync(int)
    (worker,) = _pool.pool.workers
    call, future = _call.ProcessCall("in_processpool", os.getpid, (), {}), _waiting._Answer()
    call.slot = _slots.acquire(anyio.CapacityLimiter(1))
    call.expect(future)
    call.hand_over([])
    future.wait(call)
    assert not call.end(), "the thread has ended it before it gave the worker back"

    call.kill()
    _slots.release(call.slot)

    assert run_in_processpool_sync(os.getpid) == worker.pid


def test_a_call_that_comes_when_its_worker_has_been_told_to_end_is_told(background: Backend) -> None:
    """A signal handler has come in between."""
    run_in_processpool_sync(int)
    (worker,) = _pool.pool.workers
    assert _pool.pool.take(worker)
    worker.retire()
    wait_until(lambda: not _pool.pool.workers, "it does not end")
    call, future = _call.ProcessCall("in_processpool", os.getpid, (), {}), _waiting._Answer()
    call.slot = _slots.acquire(anyio.CapacityLimiter(1))

    call.expect(future)
    call.hand_over([worker])

    with pytest.raises(WorkerProcessError, match="was about to end"):
        future.read()
    _slots.release(call.slot)


def test_a_finalizer_amid_the_start_of_a_worker_cannot_wait_for_one(background: Backend) -> None:
    errors: list[BaseException] = []

    def finalize() -> None:
        try:
            run_in_processpool_sync(int)
        except BaseException as exc:
            errors.append(exc)
        told.set()

    told = threading.Event()
    run_in_processpool_sync(int)
    _pool.pool._events.put(finalize)

    assert told.wait(GRACE_SECONDS)
    assert [type(error) for error in errors] == [LoopStateError]


def test_an_event_that_fails_does_not_end_the_thread_of_the_pool(
    background: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[object] = []

    def fail() -> None:
        raise MemoryError

    monkeypatch.setattr(sys, "excepthook", lambda *args: told.append(args[0]))
    run_in_processpool_sync(int)
    _pool.pool._events.put(fail)

    with ThreadPoolExecutor(2) as threads:
        assert [*threads.map(run_in_processpool_sync, [functions.echo] * 6, range(6))]
    assert told == [MemoryError]


# How workers end

ENDS = """
    import os, signal, sys, threading, time
    from unfazed.concurrency import *
    def die(): os._exit(3)
    if __name__ == "__main__":
        {before}
        for _ in range(5):
            try:
                run_in_processpool_sync(die)
            except WorkerProcessError as exc:
                print(exc.reason)
"""
REAPS = """def reap():
            while True:
                try: os.waitpid(-1, 0)
                except ChildProcessError: time.sleep(0.0001)
        threading.Thread(target=reap, daemon=True).start()"""


@pytest.mark.parametrize("before", ["signal.signal(signal.SIGCHLD, signal.SIG_IGN)", REAPS], ids=["ignored", "reaped"])
def test_where_the_program_reaps_children_an_end_is_unknown_and_never_a_wrong_one(tmp_path: Path, before: str) -> None:
    out, err = run_program(tmp_path, write(tmp_path / "program.py", ENDS.format(before=before)))

    reasons = set(out.splitlines())
    assert err == ""
    assert reasons <= {f"ended {how} before it answered" for how in ("for an unknown reason", "with exit code 3")}
    assert "ended for an unknown reason before it answered" in reasons


def test_a_worker_that_closes_its_pipes_is_ended(background: Backend) -> None:
    with pytest.raises(WorkerProcessError, match="as it closed what connects it with this process"):
        run_in_processpool_sync(misbehaving.close_all_and_wait)

    assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_program_leaves_no_worker_though_a_child_that_it_has_forked_lives_on(
    tmp_path: Path, busy: bool
) -> None:
    out, _ = run_program(
        tmp_path,
        write(
            tmp_path / "program.py",
            f"""
            import os, signal, sys, threading, time
            from unfazed.concurrency import *
            if __name__ == "__main__":
                worker = run_in_processpool_sync(os.getpid)
                if {busy}:
                    threading.Thread(target=run_in_processpool_sync, args=(time.sleep, 60), daemon=True).start()
                    time.sleep(0.1)
                child = os.fork()
                if not child:
                    for fd in (0, 1, 2):
                        os.close(fd)
                    time.sleep(60)
                print(worker, child, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            """,
        ),
    )
    killed = time.monotonic()
    worker, child = map(int, out.split())

    wait_until(lambda: is_dead(worker), "the worker lives on")
    seconds = time.monotonic() - killed
    assert not is_dead(child)
    os.kill(child, signal.SIGKILL)
    assert seconds < 5  # promised is one, on a machine that is not busy


EXITS = {
    "a blocked handler": """
        class Blocking(logging.Handler):
            def handle(self, record): reached.set(); time.sleep(60)  # without the lock, which `logging` takes at exit
        reached = threading.Event()
        logging.getLogger().addHandler(Blocking())
        threading.Thread(target=call, args=(log,), daemon=True).start()
        reached.wait()""",
    "a blocked stderr": """
        class Blocked:
            def write(self, text): reached.set(); time.sleep(60)
            def flush(self): pass
        reached = threading.Event()
        sys.stderr = Blocked()
        call(print, "x")
        reached.wait()
        sys.stderr = sys.__stderr__""",
    "a busy worker": "threading.Thread(target=call, args=(time.sleep, 60), daemon=True).start(); time.sleep(0.1)",
    "a worker that starts": "threading.Thread(target=call, args=(int,), daemon=True).start()",
    "a child with the output": "call(fork)",
    "a worker that hangs at exit": "call(hang_at_exit)",
    "a worker that is dead": "call(os._exit, 1); os.kill(call(os.getpid), 9)",
}


@pytest.mark.parametrize("state", EXITS.values(), ids=EXITS.keys())
def test_the_program_ends_soon_and_in_silence(tmp_path: Path, state: str) -> None:
    name = write(
        tmp_path / "program.py",
        f"""
    import atexit, logging, os, subprocess, sys, threading, time
    from unfazed.concurrency import *
    def log(): logging.warning("x")
    def fork(): subprocess.Popen(["sleep", "20"], stdout=subprocess.DEVNULL).returncode = 0
    def hang_at_exit(): atexit.register(time.sleep, 60)
    def call(*args):
        try: return run_in_processpool_sync(*args)
        except Exception: pass
    if __name__ == "__main__":
        {state.strip()}
        print("done")
    """,
    )
    environment = dict(os.environ, PYTHONWARNINGS="error", PYTHONPATH=os.pathsep.join(sys.path))
    begin = time.monotonic()

    out, err = run_program(tmp_path, name, env=environment)

    assert (out, err) == ("done\n", "")
    assert time.monotonic() - begin < 15


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
    """What is large, and takes its time to be pickled."""

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
        await seen(slow.reached)
        await let_others_run()
        slow.go_on.set()

    assert lengths == [100_000]


@pytest.mark.anyio
@pytest.mark.parametrize("options", [{}, {"timeout": 1}, {"kill_on_cancel": True}], ids=str)
async def test_a_call_does_not_return_before_its_arguments_are_pickled(slow: Slow, options: dict[str, Any]) -> None:
    """Its caller may change them then."""
    outcome: list[BaseException | None] = []
    await run_in_processpool(int)  # so that there is a worker before the time is up

    async def call() -> None:
        outcome.append((await captured_async(partial(in_processpool(len, **options), slow)))[1])  # type: ignore[arg-type]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await seen(slow.reached)
        if "timeout" in options:
            await anyio.sleep(1.1)
        else:
            tasks.cancel_scope.cancel()
        with anyio.CancelScope(shield=True):
            await let_others_run()
            returned_early = bool(outcome)
            slow.go_on.set()

    assert not returned_early
    assert isinstance(outcome[0], CallTimeoutError if "timeout" in options else anyio.get_cancelled_exc_class())


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


# Signals, forks, and systems that lack something


def test_a_signal_handler_that_raises_anywhere_loses_no_worker(tmp_path: Path) -> None:
    source = """
        import os, signal, sys, time
        from unfazed.concurrency import *
        from unfazed.concurrency._core import _limits
        from unfazed.concurrency._processes import _pool
        class Now(Exception): pass
        interrupts = 0
        def raise_now(*args):
            global interrupts
            interrupts += 1
            raise Now
        call = in_processpool(int)
        def call_until_interrupted(number):
            signal.setitimer(signal.ITIMER_REAL, 0.0001 + number % 100 * 0.00001)
            while interrupts == number:
                assert call.sync(str(number)) == number
        if __name__ == "__main__":
            signal.signal(signal.SIGALRM, raise_now)
            sys.unraisablehook = lambda _: None
            assert call.sync("1") == 1
            for number in range(500):
                try:
                    call_until_interrupted(number)
                except Now:
                    pass
            deadline = time.monotonic() + 10
            while len(_pool.pool._idle) < len(_pool.pool.workers) and time.monotonic() < deadline:
                time.sleep(0.001)
            taken = [limit for limit in _limits.limits.values() if limit.holders or limit.queue]
            print(interrupts, len(_pool.pool._idle) == len(_pool.pool.workers), taken)
    """
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)

    out, err = run_program(tmp_path, write(tmp_path / "program.py", source), env=environment)

    assert (out, err) == ("500 True []\n", "")


def a_call_of_sync_code(_: Backend) -> None:
    run_in_processpool_sync(functions.echo, 1)


def calls_of_sync_code_with_options(_: Backend) -> None:
    in_processpool(functions.echo, timeout=30, limiter=anyio.CapacityLimiter(1)).sync(1)
    in_processpool(functions.echo, kill_on_cancel=True).sync(1)


def a_large_answer_to_sync_code(_: Backend) -> None:
    run_in_processpool_sync(bytes, 300_000)


def a_call_of_async_code(backend: Backend) -> None:
    in_loop(backend, run_in_processpool, functions.echo, 1)


def a_large_call_of_async_code(backend: Backend) -> None:
    in_loop(backend, in_processpool(functions.echo, timeout=30), [*range(200_000)])


OPERATIONS = (
    a_call_of_sync_code,
    calls_of_sync_code_with_options,
    a_large_answer_to_sync_code,
    a_call_of_async_code,
    a_large_call_of_async_code,
)


@pytest.mark.skipif(sys.implementation.name != "cpython", reason="needs the bytecodes of CPython")
@pytest.mark.timeout(3600 if EVERY_STEP else 120)
@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning")  # lost before its assignment
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_signal_handler_that_raises_at_a_bytecode_loses_no_worker(
    background: Backend, way: bool, operation: Callable[[Backend], None]
) -> None:
    operation(background)
    for number in numbers(lambda: operation(background), FOLDER, STEPS):
        with Steps(raise_alarm, number, FOLDER) as steps:
            captured(lambda: operation(background))
        where = f"{steps.where}, number {number}"
        wait_until(lambda: len(_pool.pool._idle) == len(_pool.pool.workers), f"{where}: a worker is lost")
        wait_until_none(lambda: [limit for limit in list(_limits.limits.values()) if limit.holders or limit.queue])
        assert run_in_processpool_sync(functions.echo, 1) == ((1,), {}), where
        assert len(_pool.pool.workers) == 1, where


def test_what_some_systems_lack_is_not_needed(tmp_path: Path) -> None:
    source = """
        import asyncio, fcntl, logging, os, sys  # asyncio itself needs the first one in order to be imported
        for module, name in (
            (os, "register_at_fork"), (os, "pidfd_open"), (os, "memfd_create"), (fcntl, "F_SETPIPE_SZ")
        ):
            if hasattr(module, name):
                delattr(module, name)
        import anyio
        from unfazed.concurrency import *
        def chatty(n):
            logging.getLogger("x").warning("%d", n)
            print("printed", n)
            return n
        def die():
            os._exit(3)
        async def main():
            return [await run_in_processpool(chatty, 2), await run_in_processpool(len, b"x" * 1_000_000)]
        if __name__ == "__main__":
            logging.basicConfig(stream=sys.stdout, format="%(message)s")
            print(run_in_processpool_sync(chatty, 1), anyio.run(main))
            try:
                run_in_processpool_sync(die)
            except WorkerProcessError as exc:
                print(exc.reason)
    """

    out, err = run_program(tmp_path, write(tmp_path / "program.py", source))

    assert out == "1\n2\n1 [2, 1000000]\nended with exit code 3 before it answered\n"
    assert err == "printed 1\nprinted 2\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no affinity")
def test_the_default_limit_counts_the_cpus_that_this_process_may_use(tmp_path: Path) -> None:
    source = """
        import os, anyio
        from anyio.to_process import current_default_process_limiter
        os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])
        from unfazed.concurrency import *
        async def main(total):
            if total:
                current_default_process_limiter().total_tokens = total
            await run_in_processpool(int)
            return current_default_process_limiter().total_tokens
        if __name__ == "__main__":
            print(anyio.run(main, 0), anyio.run(main, 7))
    """

    assert run_program(tmp_path, write(tmp_path / "program.py", source)) == ("1 7\n", "")
