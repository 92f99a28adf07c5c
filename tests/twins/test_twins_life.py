"""Sync twins: loops, threads, time-outs, forks, exit, Ctrl-C, and callbacks."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import pytest
from conftest import GRACE_SECONDS, Caller, in_plain_thread

from unfazed.concurrency import (
    CallTimeoutError,
    EventLoopThread,
    InUseError,
    LoopEndedError,
    WrongOptionError,
    run_in_eventloop_sync,
    sync_twin,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Awaitable, Callable, Iterable
    from pathlib import Path


class Greeter(Protocol):
    async def __call__(self, name: str) -> str: ...


HANG_SECONDS = 50


class AsyncBox:
    def __init__(self) -> None:
        self.items: list[Any] = []
        self.lock = anyio.Lock()
        self.inside = 0
        self.scopes: dict[int, anyio.CancelScope] = {}  # by the task that has entered it, which must leave it
        self.ended = threading.Event()

    async def put(self, item: Any) -> int:
        async with self.lock:
            assert not self.inside
            self.inside += 1
            await anyio.sleep(0)
            self.items.append(item)
            self.inside -= 1
            return len(self.items)

    async def wait(self) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            self.ended.set()

    async def waits(self) -> AsyncGenerator[int, None]:
        yield 1
        await anyio.sleep_forever()

    async def thread(self) -> str:
        return threading.current_thread().name

    def sync_thread(self) -> str:
        return threading.current_thread().name

    async def greet(self, how: Callable[[AsyncBox, str], Awaitable[str]], name: str) -> str:
        return await how(self, name)

    async def greet_by_protocol(self, how: Greeter | None = None) -> str:
        return await how("sea") if how else "nobody"

    async def put_all(self, items: AsyncIterable[Any]) -> None:
        async for item in items:
            self.items.append(item)

    async def put_any(self, items: AsyncIterable[Any] | Iterable[Any]) -> None:
        self.items.append(type(items).__name__)
        if not isinstance(items, list):
            await self.put_all(items)  # type: ignore[arg-type]

    async def __aenter__(self) -> AsyncBox:
        self.scopes[anyio.get_current_task().id] = anyio.CancelScope().__enter__()
        self.items.append("entered")
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self.scopes.pop(anyio.get_current_task().id).__exit__(None, None, None)
        self.items.append("left")


class Unequal(AsyncBox):
    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # type: ignore[assignment]


Box: Any = sync_twin(AsyncBox)


def test_every_caller_reaches_the_same_loop(sync_caller: Caller) -> None:
    box = Box()
    name = run_in_eventloop_sync(AsyncBox().thread)

    assert sync_caller.make(box.thread) == sync_caller.make(box.sync_thread) == name
    assert sync_caller.make(lambda: box.put(1)) == 1


@pytest.mark.usefixtures("background")
def test_many_threads_share_one() -> None:
    box = Box()

    with ThreadPoolExecutor(16) as pool:
        counts = list(pool.map(box.put, range(200)))

    assert sorted(counts) == list(range(1, 201))
    assert sorted(box.items) == list(range(200))


@pytest.mark.usefixtures("background")
def test_many_threads_enter_one_and_each_leaves_what_it_has_entered() -> None:
    box = Box()
    both_are_in = threading.Barrier(2)

    def use(_: int) -> None:
        with box:
            both_are_in.wait(GRACE_SECONDS)

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(use, range(2)))
    assert box.items == ["entered", "entered", "left", "left"]
    assert not box._unfazed_state.managers


@pytest.mark.usefixtures("background")
def test_another_thread_can_leave_what_one_has_entered() -> None:
    box = Box()
    stack = ExitStack()
    stack.enter_context(box)

    in_plain_thread(stack.close)

    assert box.items == ["entered", "left"]
    with pytest.raises(InUseError, match="use it in a `with` block"):
        box.__exit__(None, None, None)


@pytest.mark.usefixtures("background")
def test_what_cannot_be_entered_is_not_left() -> None:
    class AsyncBroken:
        async def __aenter__(self) -> None:
            raise LookupError

        async def __aexit__(self, *exc_info: object) -> None:
            pytest.fail("must not run")

    broken = sync_twin(AsyncBroken)()
    with pytest.raises(LookupError), broken:
        pytest.fail("must not run")
    assert not broken._unfazed_state.managers
    with pytest.raises(InUseError):
        broken.__exit__(None, None, None)


def test_it_runs_on_a_loop_of_its_own(anyio_backend: tuple[str, dict[str, Any]]) -> None:
    backend, options = anyio_backend
    loop = EventLoopThread(backend, options, "its own loop")
    Own = sync_twin(AsyncBox, loop=loop)  # noqa: N806
    box = Own()

    assert Own is sync_twin(AsyncBox, loop=loop)
    assert Own is not Box
    assert box.thread() == box.sync_thread() == "its own loop"
    with box:
        pass
    loop.stop()
    for use in (box.thread, box.sync_thread, box.waits, lambda: box.__enter__(), Own):
        with pytest.raises(LoopEndedError, match="stopped"):
            use()


@pytest.mark.usefixtures("background")
def test_a_call_of_a_twin_with_a_timeout_is_cancelled_after_that() -> None:
    box = Box()
    quick = box.with_timeout(0.05)

    with pytest.raises(CallTimeoutError, match=r"AsyncBox.wait\(\) has not ended within 0.05 seconds"):
        quick.wait()
    assert box.ended.is_set()
    assert quick == box
    assert type(quick) is Box
    assert box.with_timeout(GRACE_SECONDS).put(1) == box.with_timeout(None).put(2) - 1 == 1
    waits = quick.waits()
    assert next(waits) == 1
    with pytest.raises(CallTimeoutError):
        next(waits)
    with quick as entered:
        assert entered is quick
    with pytest.raises(WrongOptionError, match="with_timeout"):
        box.with_timeout("5")


@pytest.mark.usefixtures("background")
def test_a_call_in_a_worker_is_cancelled_with_the_task_that_waits_for_it(anyio_backend: tuple[str, Any]) -> None:
    box = Box()
    backend, options = anyio_backend

    async def main() -> None:
        with anyio.move_on_after(0.05):
            await anyio.to_thread.run_sync(box.wait)
        assert box.ended.wait(GRACE_SECONDS)

    anyio.run(main, backend=backend, backend_options=options)


@pytest.mark.usefixtures("background")
def test_sync_callbacks_run_in_a_worker_thread_and_get_twins() -> None:
    box = Box()
    names: list[str] = []

    def hello(its_box: Any, name: str) -> str:
        names.append(threading.current_thread().name)
        assert its_box is box
        return f"{name} {its_box.put(name)}"

    async def hello_async(its_box: AsyncBox, name: str) -> str:
        assert type(its_box) is AsyncBox
        return name

    class Callable:
        def __call__(self, its_box: Any, name: str) -> str:
            return "called"

    assert box.greet(hello, "sea") == "sea 1"
    assert box.greet(name="sun", how=hello) == "sun 2"
    assert box.greet(hello_async, "sky") == "sky"
    assert box.greet(Callable(), "sky") == "called"
    assert names[0] not in (threading.current_thread().name, box.thread())
    assert box.greet_by_protocol() == "nobody"
    assert box.greet_by_protocol(str.upper) == "SEA"
    with pytest.raises(TypeError, match="argument"):
        box.greet(hello, "sea", "too", "many")


@pytest.mark.usefixtures("background")
def test_sync_iterables_are_taken_for_async_ones() -> None:
    box = Box()
    closed: list[str] = []

    def items() -> Any:
        try:
            yield 1
            yield box
        finally:
            closed.append("closed")

    async def async_items() -> AsyncGenerator[int, None]:
        yield 5

    box.put_all(items())
    box.put_all(iter([2]))
    box.put_all([3])
    box.put_all(async_items())
    assert box.async_object.items == [1, box.async_object, 2, 3, 5]
    assert closed == ["closed"]
    with pytest.raises(TypeError, match="async for"):
        box.put_all(len)
    box.items = []
    box.put_any([1])
    box.put_any(iter([4]))
    assert box.items == ["list", "ThreadpoolIterator", 4]


@pytest.mark.usefixtures("background")
def test_objects_without_hash_and_equality_are_told_apart() -> None:
    box = sync_twin(Unequal)()

    assert box != box
    with pytest.raises(TypeError, match="unhashable"):
        hash(box)
    assert box.put(1) == 1


def test_a_subclass_calls_super_first() -> None:
    class Mine(Box):  # type: ignore[misc]
        def __init__(self) -> None:
            self.put(1)

    with pytest.raises(AttributeError, match=r"super\(\).__init__\(\)"):
        Mine()


class AsyncPoint:
    def __init__(self, x: int) -> None:
        self.x = x

    async def read(self) -> int:
        return self.x


Point: Any = sync_twin(AsyncPoint)


class Named(Point):  # type: ignore[misc]
    _name: str
    _myself: Named


@pytest.mark.usefixtures("background")
def test_it_can_be_pickled_and_copied_as_its_object_can() -> None:
    import copy

    point = Point(3)

    assert pickle.loads(pickle.dumps(point)).read() == 3
    for copied in (copy.copy(point), copy.deepcopy(point)):
        copied.x = 4
        assert copied != point
        assert copied.read() == 4
    assert point.read() == 3


@pytest.mark.usefixtures("background")
def test_a_copy_has_what_a_subclass_of_the_twin_has_of_its_own() -> None:
    import copy

    point = Named(3)
    point._name = "corner"
    point._myself = point

    for copied in (copy.copy(point), copy.deepcopy(point), pickle.loads(pickle.dumps(point))):
        assert (type(copied), copied._name, copied.read()) == (Named, "corner", 3)


PROGRAM = """
import os, signal, sys, threading, warnings
import anyio
warnings.filterwarnings("ignore", ".*fork", DeprecationWarning)
from unfazed.concurrency import sync_twin, configure_background_eventloop
configure_background_eventloop(backend=sys.argv[1])

class AsyncThing:
    async def __aenter__(self):
        return self
    async def __aexit__(self, *exc_info):
        print("left", flush=True)
    async def ping(self):
        await anyio.sleep(0)
        return "pong"
    async def wait(self):
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await anyio.sleep_forever()
        finally:
            print("cleaned up", flush=True)
    async def numbers(self):
        yield 1
        yield 2

Thing = sync_twin(AsyncThing)
thing = Thing()
"""


def run(program: str, backend: str, tmp_path: Path) -> str:
    file = tmp_path / "program.py"
    file.write_text(PROGRAM + program, encoding="utf-8")
    command = [sys.executable, "-W", "error", str(file), backend]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.fixture
def backend(anyio_backend: tuple[str, dict[str, Any]]) -> str:
    return anyio_backend[0]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_forked_child_can_use_what_has_made_no_call_and_is_told_of_what_has(backend: str, tmp_path: Path) -> None:
    program = """
used = Thing()
used.ping()
if os.fork():
    assert os.wait()[1] == 0
    print(thing.ping(), used.ping())
else:
    print(thing.ping(), flush=True)
    try:
        used.ping()
    except RuntimeError as exc:
        print(exc, flush=True)
    os._exit(0)
"""
    first, second, last = run(program, backend, tmp_path).splitlines()

    assert (first, last) == ("pong", "pong pong")
    assert second.startswith("this Thing belongs to an event loop that has ended (the process has forked")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no signals")
def test_ctrl_c_cancels_the_call_and_waits_for_its_cleanup(backend: str, tmp_path: Path) -> None:
    program = """
try:
    thing.wait()
except KeyboardInterrupt:
    print("interrupted", thing.ping())
"""
    assert run(program, backend, tmp_path).split() == ["cleaned", "up", "interrupted", "pong"]


def test_what_is_left_open_at_exit_is_left_in_silence(backend: str, tmp_path: Path) -> None:
    program = """
thing.__enter__()
numbers = thing.numbers()
print(next(numbers), flush=True)
"""
    assert run(program, backend, tmp_path).split() == ["1", "left"]


def test_nothing_of_it_is_imported_before_it_is_used() -> None:
    program = "import sys, unfazed.concurrency; print([name for name in sys.modules if '_twins._' in name])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=50, check=True)

    assert done.stdout == "[]\n"
