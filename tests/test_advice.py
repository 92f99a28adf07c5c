"""Errors say what is wrong and what to write instead; objects say what they are."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import logging
import pickle
import pydoc
import subprocess
import sys
import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from unittest import mock

import anyio
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, Blocking, Caller, captured, in_plain_thread, until_begun, wait_until

from unfazed.concurrency import (
    CallTimeoutError,
    DualCallable,
    DualMethod,
    EventLoopThread,
    NotSendableError,
    RemoteError,
    WrongFunctionError,
    WrongOptionError,
    contextmanager_in_eventloop_sync,
    contextmanager_in_threadpool,
    count_abandoned_threads,
    in_eventloop,
    in_executor,
    in_processpool,
    in_threadpool,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
    run_in_eventloop_sync,
    run_in_threadpool,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def read(path: str, *, size: int = 1) -> bytes:
    """Read a file."""
    return path[:size].encode()


async def fetch(url: str) -> str:
    """Fetch a page."""
    return url


def notes(error: BaseException) -> str:
    return " ".join(getattr(error, "__notes__", ()))


never_used = ThreadPoolExecutor(max_workers=1)


# Time that is up before a call has begun


def test_a_call_that_waits_behind_abandoned_threads_says_so(caller: Caller, caplog: pytest.LogCaptureFixture) -> None:
    limiter = anyio.CapacityLimiter(1)
    blocking = Blocking()

    def sleepy() -> str:
        return blocking()

    try:
        for seconds in until_begun(blocking.started.is_set):
            with pytest.raises(CallTimeoutError):
                caller.dual(in_threadpool(sleepy, limiter=limiter, timeout=seconds))
        with pytest.raises(CallTimeoutError) as caught:
            caller.dual(in_threadpool(read, limiter=limiter, timeout=0.05), "a")
        with pytest.raises(CallTimeoutError):
            caller.dual(in_threadpool(sleepy, limiter=limiter, timeout=0.05))
    finally:
        blocking.may_end.set()
    wait_until(lambda: not count_abandoned_threads(), "the thread stays")

    assert "read() has not started within 0.05 seconds: it waited for " in str(caught.value)
    assert "a slot, but 1 of 1 are taken, by sleepy() (1, 1 of them abandoned)" in str(caught.value)
    (record,) = (each for each in caplog.records if each.name == "unfazed.concurrency")
    assert record.levelno == logging.WARNING
    assert "All slots of a limiter belong to abandoned threads" in record.getMessage()
    assert "sleepy() (1, 1 of them abandoned)" in record.getMessage()


@pytest.mark.anyio
async def test_a_call_that_waits_behind_others_names_them(caplog: pytest.LogCaptureFixture) -> None:
    limiter = anyio.CapacityLimiter(3)
    blocking = Blocking()

    @contextmanager
    def manager() -> Iterator[None]:
        blocking()
        yield

    async def enter() -> None:
        async with contextmanager_in_threadpool(manager(), limiter=limiter):
            pass

    async with anyio.create_task_group() as tasks, limiter:
        tasks.start_soon(enter)
        await blocking.wait_until_started()
        blocking.started.clear()
        tasks.start_soon(in_threadpool(blocking, limiter=limiter))
        await blocking.wait_until_started()
        with pytest.raises(CallTimeoutError) as caught:
            await in_threadpool(read, limiter=limiter, timeout=0.05)("a")
        blocking.may_end.set()

    assert "but 3 of 3 are taken, by " in str(caught.value)
    for taken in ("contextmanager_in_threadpool() (1)", "Blocking() (1)", "anyio's own calls (1)"):
        assert taken in str(caught.value)
    assert not caplog.records


def test_a_call_without_time_waits_for_a_thread(caller: Caller) -> None:
    with pytest.raises(CallTimeoutError, match=r"read\(\) has not started within 0 seconds: it waited for a thread"):
        caller.dual(in_threadpool(read, timeout=0), "a")


def test_a_call_to_a_process_says_what_it_waits_for(caller: Caller) -> None:
    limiter = anyio.CapacityLimiter(1)
    blocking = Blocking()
    thread = threading.Thread(target=in_threadpool(blocking, limiter=limiter).sync)
    thread.start()
    try:
        assert blocking.started.wait(GRACE_SECONDS)
        with pytest.raises(CallTimeoutError, match=r"abs\(\) has not started .* by Blocking\(\) \(1\)"):
            caller.dual(in_processpool(abs, limiter=limiter, timeout=0.05), -1)
    finally:
        blocking.may_end.set()
        thread.join()


def test_a_call_in_an_executor_says_what_it_waits_for(caller: Caller) -> None:
    blocking = Blocking()
    with ThreadPoolExecutor(max_workers=1) as executor:
        executor.submit(blocking)
        try:
            with pytest.raises(CallTimeoutError, match="it waited for its turn in the ThreadPoolExecutor"):
                caller.dual(in_executor(executor, read, timeout=0.05), "a")
        finally:
            blocking.may_end.set()


# Options among the arguments


PLACES: dict[str, Any] = {"threadpool": read, "processpool": functions.echo_of_one, "eventloop": fetch}
MISPLACED = [
    ("threadpool", "timeout", "`in_threadpool(read, timeout=5)`"),
    ("threadpool", "limiter", "`in_threadpool(read, limiter=5)`"),
    ("threadpool", "kill_on_cancel", "write `abandon_on_cancel=True`"),
    ("threadpool", "cancellable", "write `abandon_on_cancel=True`"),
    ("processpool", "timeout", "`in_processpool(echo_of_one, timeout=5)`"),
    ("processpool", "max_calls", "`in_processpool(echo_of_one, max_calls=5)`"),
    ("processpool", "abandon_on_cancel", "write `kill_on_cancel=True`"),
    ("eventloop", "timeout", "`in_eventloop(fetch, timeout=5)`"),
    ("eventloop", "limiter", "write `async with limiter:` in the function"),
]


@pytest.mark.parametrize(("place", "option", "note"), MISPLACED)
def test_an_option_among_the_arguments_gets_a_note(caller: Caller, place: str, option: str, note: str) -> None:
    func = PLACES[place]
    calls: list[Callable[[], Any]] = [partial(caller, place, func, "a", **{option: 5})]
    wraps: dict[str, Any]
    wraps = {"threadpool": in_threadpool, "processpool": in_processpool, "eventloop": in_eventloop}
    calls.append(partial(caller.dual, wraps[place](func), "a", **{option: 5}))
    for call in calls:
        with pytest.raises(TypeError, match=option) as caught:
            call()

        assert f"`{option}` was passed on to {func.__name__}()" in notes(caught.value)
        assert note in notes(caught.value)


def test_an_option_among_the_arguments_for_an_executor_gets_a_note(caller: Caller) -> None:
    with ThreadPoolExecutor() as executor, pytest.raises(TypeError) as caught:
        caller.dual(in_executor(executor, read), "a", timeout=5)

    assert "`in_executor(executor, read, timeout=5)`" in notes(caught.value)


def test_an_option_among_the_arguments_for_a_loop_thread_gets_a_note(sync_caller: Caller) -> None:
    call: Any = fetch

    async def from_async_code(loop: EventLoopThread) -> None:
        await loop.run(call, "a", timeout=5)

    with EventLoopThread() as loop:
        for make in (partial(loop.run_sync, call, "a", timeout=5), partial(sync_caller.run, from_async_code, loop)):
            _, error = captured(partial(in_plain_thread, partial(captured, make)))
            assert error is None
            _, error = in_plain_thread(partial(captured, make))

            assert "`in_eventloop(fetch, timeout=5)`" in notes(error)


def test_builtins_and_lambda_functions_get_the_note(caller: Caller) -> None:
    for func, name in ((len, "len"), (dict.fromkeys, "dict.fromkeys"), (lambda: None, "func")):
        with pytest.raises(TypeError) as caught:
            caller("threadpool", func, timeout=5)

        assert f"`in_threadpool({name}, timeout=5)`" in notes(caught.value)


def test_what_the_function_takes_or_passes_on_gets_no_note(caller: Caller) -> None:
    def takes(timeout: int) -> None:
        raise TypeError("its own")

    def passes_on(**kwargs: Any) -> None:
        read(**kwargs)

    def raises_another() -> None:
        raise WrongFunctionError("its own")

    def nonsense() -> None:
        pytest.fail("must not run")

    for func, kwargs in (
        (takes, {"timeout": 5}),
        (passes_on, {"timeout": 5}),
        (nonsense, {"nonsense": 5}),
        (raises_another, {}),
        (int, {"base": 5}),
        (dict, {"timeout": 5}),
    ):
        result, error = captured(partial(caller, "threadpool", func, **kwargs))

        assert result == {"timeout": 5} or isinstance(error, TypeError)
        assert error is None or not notes(error)


executor_place: Any = in_executor
OTHER_PLACES: list[tuple[Any, str, str]] = [
    (in_threadpool, "kill_on_cancel", "in_threadpool() has no option `kill_on_cancel`: a thread cannot be killed"),
    (in_threadpool, "cancellable", "write `abandon_on_cancel=True`"),
    (in_threadpool, "max_calls", "`in_processpool` has it"),
    (in_threadpool, "nonsense", "its options are `limiter`, `abandon_on_cancel`, `timeout`, `context`"),
    (in_processpool, "abandon_on_cancel", "write `kill_on_cancel=True`"),
    (in_processpool, "context", "pass what it holds as arguments"),
    (partial(executor_place, never_used), "limiter", "the executor says how many run at once"),
    (in_eventloop, "limiter", "write `async with limiter:` in the function"),
]


@pytest.mark.parametrize(("wrap", "option", "text"), OTHER_PLACES)
def test_an_option_of_another_place_is_refused_with_the_right_one(wrap: Any, option: str, text: str) -> None:
    for args in ((), (read,)):
        with pytest.raises(WrongOptionError) as caught:
            wrap(*args, **{option: True})

        assert text in str(caught.value)


# Functions that do not fit


def test_an_async_initializer_is_refused_with_what_to_write() -> None:
    initializer: Any = fetch
    not_callable: Any = 3

    with pytest.raises(WrongFunctionError) as caught:
        in_processpool(initializer=initializer)

    assert str(caught.value) == (
        "in_processpool(initializer=...) runs a sync function, and fetch() is async: write a `def` that calls "
        "`run_in_eventloop_sync(fetch)`"
    )
    with pytest.raises(WrongFunctionError, match=r"^in_processpool\(initializer=...\) expected a function, got 3"):
        in_processpool(initializer=not_callable)


@asynccontextmanager
async def connection() -> AsyncIterator[str]:
    yield pytest.fail("must not run")


def test_an_async_context_manager_function_is_sent_to_the_right_helper(caller: Caller) -> None:
    wrong: Any = connection
    hidden: Any = lambda: connection()  # noqa: E731
    wrap: Any = in_eventloop
    calls: list[Callable[[], Any]] = [partial(caller.dual, wrap(hidden))]
    calls += [partial(caller, "eventloop", each) for each in (wrong, hidden)]
    for call in calls:
        with pytest.raises(WrongFunctionError, match=r"\(\) gives an async context manager: enter it") as caught:
            call()

        assert "with contextmanager_in_eventloop_sync(" in str(caught.value)


def test_the_advice_for_a_sync_function_is_a_line_that_works(background: Any) -> None:
    wrong: Any = read
    with pytest.raises(WrongFunctionError, match=r"`run_in_threadpool_sync\(read, ...\)`, or just call it"):
        run_in_eventloop_sync(wrong, "a")
    with pytest.raises(WrongFunctionError, match=r"`in_threadpool\(read\)`"):
        in_eventloop(wrong).sync("a")
    wrong = lambda: 1  # noqa: E731
    with pytest.raises(WrongFunctionError, match=r"`run_in_threadpool_sync\(func, ...\)`"):
        run_in_eventloop_sync(wrong)


def test_dual_callables_are_made_by_the_helpers() -> None:
    make: Any = DualCallable
    with pytest.raises(WrongFunctionError, match=r"call one of these"):
        make(read, read)


# Entered and iterated over in the wrong way


@pytest.mark.anyio
async def test_with_in_the_wrong_colour_says_which_is_the_right_one() -> None:
    wrong: Any = contextmanager_in_threadpool(memoryview(b""))
    with pytest.raises(WrongFunctionError, match=r"is for async with: write `async with ...`"), wrong:
        pass
    wrong.__exit__()
    wrong = contextmanager_in_eventloop_sync(connection())
    with pytest.raises(WrongFunctionError, match=r"is for with: write `with ...`"):
        async with wrong:
            pass
    await wrong.__aexit__()


def test_what_has_been_bridged_is_not_bridged_again() -> None:
    wrong: Any = contextmanager_in_threadpool(memoryview(b""))
    with pytest.raises(WrongFunctionError, match="write `async with` without"):
        contextmanager_in_threadpool(wrong)
    wrong = contextmanager_in_eventloop_sync(connection())
    with pytest.raises(WrongFunctionError, match="write `with` without"):
        contextmanager_in_eventloop_sync(wrong)


# What things say of themselves


def rows() -> Iterator[int]:
    yield 1


async def messages() -> AsyncIterator[int]:
    yield 1


@contextmanager
def transaction() -> Iterator[int]:
    yield 1


class Archive:
    def __repr__(self) -> str:
        return "<Archive>"

    @in_threadpool(timeout=5)
    def load(self, name: str) -> str:
        """Load it."""
        return name

    @in_eventloop
    async def undocumented(self) -> None: ...

    @in_threadpool
    @classmethod
    def of_class(cls, name: str) -> str:
        """Say it."""
        return f"{cls.__name__} {name}"

    @in_threadpool
    @staticmethod
    def static(name: str) -> str:
        return name

    alias = in_threadpool(read)


REPRESENTATIONS: list[tuple[Callable[[], object], str]] = [
    (lambda: in_threadpool(read), "<in_threadpool(read)>"),
    (lambda: in_threadpool(read, timeout=5), "<in_threadpool(read), timeout=5>"),
    (lambda: in_threadpool(read, timeout=5).sync, "<in_threadpool(read), timeout=5>.sync"),
    (
        lambda: in_threadpool(read, limiter=anyio.CapacityLimiter(2), abandon_on_cancel=True),
        "<in_threadpool(read), limiter=CapacityLimiter(2), abandon_on_cancel=True>",
    ),
    (lambda: in_threadpool(timeout=5), "<in_threadpool(timeout=5)>"),
    (lambda: in_executor(never_used), "<in_executor(ThreadPoolExecutor)>"),
    (lambda: in_executor(never_used, read), "<in_executor(ThreadPoolExecutor, read)>"),
    (lambda: in_processpool(read, initializer=int), "<in_processpool(read), initializer=int>"),
    (lambda: in_eventloop(fetch), "<in_eventloop(fetch)>"),
    (lambda: Archive.load, "<in_threadpool(Archive.load), timeout=5>"),
    (lambda: Archive().load, "<in_threadpool(Archive.load), timeout=5, of <Archive>>"),
    (lambda: vars(Archive)["of_class"], "<in_threadpool(classmethod(Archive.of_class))>"),
    (lambda: vars(Archive)["static"], "<in_threadpool(staticmethod(Archive.static))>"),
    (lambda: iterate_in_threadpool(rows()), "<iterate_in_threadpool(rows(...)), not begun>"),
    (
        lambda: iterate_in_threadpool([1], prefetch=3),
        "<iterate_in_threadpool(<list object>, prefetch=3), not begun>",
    ),
    (
        lambda: contextmanager_in_threadpool(transaction()),
        "<contextmanager_in_threadpool(transaction(...)), not entered>",
    ),
    (
        lambda: contextmanager_in_eventloop_sync(connection()),
        "<contextmanager_in_eventloop_sync(connection(...)), not entered>",
    ),
]


@pytest.mark.parametrize(("make", "text"), REPRESENTATIONS, ids=[text for _, text in REPRESENTATIONS])
def test_the_representation_is_what_was_written(make: Callable[[], object], text: str) -> None:
    assert repr(make()) == text


def test_a_generator_that_iterates_in_the_event_loop_has_a_name() -> None:
    assert " iterate_in_eventloop_sync(messages(...)) " in repr(iterate_in_eventloop_sync(messages()))


@pytest.mark.anyio
async def test_the_representation_shows_the_state() -> None:
    manager = contextmanager_in_threadpool(transaction())
    async with manager:
        assert repr(manager).endswith(", entered>")
    items = iterate_in_threadpool(rows())
    assert await items.__anext__() == 1
    assert repr(items).endswith(", begun>")
    await items.aclose()
    assert repr(items).endswith(", closed>")


def test_the_representation_of_what_is_entered_in_a_loop_shows_the_state(background: Any) -> None:
    @asynccontextmanager
    async def entered() -> AsyncIterator[None]:
        yield

    manager = contextmanager_in_eventloop_sync(entered())
    with manager:
        assert repr(manager).endswith(", entered>")


@pytest.mark.parametrize(
    "dual", [in_threadpool(read), in_eventloop(fetch), in_processpool(read), Archive().load], ids=repr
)
def test_a_forgotten_await_names_the_users_function(dual: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dual("a")
        gc.collect()

    assert any(f"coroutine '{dual.__qualname__}' was never awaited" in str(each.message) for each in caught)


def test_what_is_called_though_it_has_no_full_name_keeps_its_own(background: Any) -> None:
    class Named:
        __name__ = "ufunc"

        def __call__(self) -> int:
            return 1

    dual = in_threadpool(Named())

    assert (dual.__name__, dual.__qualname__) == ("ufunc", "ufunc")
    assert asyncio.run(dual()) == 1


MADE: list[Callable[[], object]] = [
    lambda: iterate_in_threadpool(rows()),
    lambda: contextmanager_in_threadpool(transaction()),
    lambda: contextmanager_in_eventloop_sync(connection()),
]


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("copy_it", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_has_a_thread_or_a_task_is_not_copied(make: Any, copy_it: Callable[[object], object]) -> None:
    with pytest.raises(NotSendableError, match="can be neither copied nor pickled"):
        copy_it(make())


@pytest.mark.parametrize(
    ("dual", "option"),
    [
        (in_threadpool(int, limiter=anyio.CapacityLimiter(1)), "limiter"),
        (in_executor(never_used, int), "executor"),
    ],
)
def test_pickling_names_the_option_that_cannot_go(dual: Any, option: str) -> None:
    with pytest.raises(
        NotSendableError, match=rf"> cannot be pickled with its `{option}`, which stays in this process"
    ):
        pickle.dumps(dual)
    assert copy.copy(dual) is dual


@pytest.mark.parametrize(
    "made",
    [
        in_threadpool(read),
        in_threadpool(read).sync,
        vars(Archive)["static"],
        in_threadpool(),
        *(each() for each in MADE),
    ],
    ids=repr,
)
def test_completion_shows_no_private_names(made: object) -> None:
    assert not [name for name in dir(made) if name.startswith("_") and not name.startswith("__")]
    assert "__class__" in dir(made)


def test_help_shows_the_signature_of_both_faces() -> None:
    for face in (in_threadpool(read), in_threadpool(read).sync, Archive().load.sync):
        text = pydoc.plain(pydoc.render_doc(face))

        assert all(f"{name}: " in text for name in inspect.signature(face).parameters)
        assert inspect.isroutine(face)


def test_the_sync_face_is_no_property_for_those_who_would_describe_that_instead() -> None:
    """As IPython does for `f.sync?`."""
    assert not isinstance(vars(DualCallable)["sync"], property)
    assert DualCallable.sync.__doc__ == "The same for sync code, which waits for the result."


def test_help_of_a_class_mentions_the_sync_face() -> None:
    text = pydoc.plain(pydoc.render_doc(Archive))

    assert "Load it." in text
    assert "`await load(...)` in async code, `load.sync(...)` in sync code." in text
    assert "`await undocumented(...)` in async code, `undocumented.sync(...)` in sync code." in text
    assert "`await of_class(...)` in async code, `of_class.sync(...)` in sync code." in text
    assert "alias.sync" not in text


def test_a_line_for_help_is_added_once() -> None:
    before = Archive.load.__doc__

    type("Archive", (), {"load": Archive.load, "__qualname__": "Archive"})

    assert Archive.load.__doc__ == before


def test_the_sync_face_binds_as_its_function_does(background: Any) -> None:
    holder: Any = type("Holder", (), {"load": Archive.load.sync, "bound": Archive().load.sync})

    assert holder().load("a") == holder().bound("a") == "a"


# Bound methods for signals


def test_a_weak_method_is_alive_as_long_as_its_object() -> None:
    """Django's signals, and others, keep bound methods so."""
    make: Any = weakref.WeakMethod
    archives = [Archive()]
    method = make(archives[0].load)
    gc.collect()

    def is_alive() -> bool:
        again: Any = method()
        return again == archives[0].load and again.__self__ is archives[0] and again.__func__ is Archive.load

    assert is_alive()
    archives.clear()
    gc.collect()
    assert method() is None


def test_a_weak_class_method_is_alive_as_long_as_its_class(background: Any) -> None:
    make: Any = weakref.WeakMethod
    method = make(Archive.of_class)
    gc.collect()

    assert method().sync("a") == "Archive a"


def test_methods_are_documented_by_their_own_signatures() -> None:
    """Sphinx leaves out the first parameter, unless it sees a bound method, or a static method in the class."""
    for bound in (Archive().load, Archive.of_class, Archive().of_class):
        assert inspect.ismethod(bound)
        assert [*inspect.signature(bound).parameters] == ["name"]
    assert isinstance(vars(Archive)["static"], staticmethod)
    assert isinstance(vars(Archive)["of_class"], classmethod)
    assert vars(Archive)["of_class"].__func__.__name__ == "of_class"
    for other in (Archive.load, Archive.static, in_threadpool(len)):
        assert not inspect.ismethod(other)
        assert isinstance(other, DualCallable)
    assert isinstance(Archive().load, DualCallable)
    assert isinstance(vars(Archive)["static"], DualMethod)


def test_what_is_not_bound_has_no_self() -> None:
    for dual in (in_threadpool(len), Archive.load, Archive().static):
        assert not hasattr(dual, "__self__")


# Mocks


@pytest.mark.anyio
async def test_mocks_with_a_specification_have_both_faces() -> None:
    made = mock.create_autospec(in_threadpool(read))
    made.return_value, made.sync.return_value = b"async", b"sync"

    assert await made("a") == b"async"
    assert await run_in_threadpool(made.sync, "a") == b"sync"
    made.assert_awaited_once_with("a")
    made.sync.assert_called_once_with("a")
    with pytest.raises(AttributeError):
        made.snyc("a")


@pytest.mark.anyio
async def test_mocks_of_classes_and_patches_have_both_faces() -> None:
    archive = mock.create_autospec(Archive)()
    archive.load.return_value, archive.load.sync.return_value = "async", "sync"

    assert await archive.load("a") == "async"
    assert archive.load.sync("a") == "sync"
    with mock.patch.object(Archive, "load", autospec=True) as load:
        load.sync.return_value = "patched"
        assert Archive().load.sync("a") == "patched"
    assert await Archive().load("a") == "a"


# From worker processes


def test_members_of_a_group_that_pickle_badly_show_their_texts(caller: Caller) -> None:
    with pytest.raises(Exception, match="all of them") as caught:
        caller("processpool", functions.raise_group)

    error: Any = caught.value
    first, bad, inner, unknown = error.exceptions
    assert type(error).__name__ == "ExceptionGroup"
    assert isinstance(first, ValueError)
    assert (type(bad), str(bad)) == (RemoteError, "process_functions.TwoArgumentError: 1 and 2")
    assert [type(each) for each in inner.exceptions] == [RemoteError, KeyError]
    assert "cannot be read in this process" in str(unknown)


def test_what_is_local_gets_the_advice_that_functions_get(caller: Caller) -> None:
    class Local:
        def method(self) -> None:
            pytest.fail("must not run")

    for func, args in ((print, (Local(),)), (print, (Local,)), (Local().method, ()), (Local, ())):
        with pytest.raises(NotSendableError, match="at the top level of a module"):
            caller("processpool", func, *args)
    with pytest.raises(NotSendableError, match=r"cannot send the arguments of print\(\)") as refused:
        caller("processpool", print, threading.Lock())
    assert "top level" not in str(refused.value)
    with pytest.raises(NotSendableError, match=r"returned cannot be sent back .* at the top level of a module"):
        caller("processpool", functions.local_object)


def test_a_server_without_a_guard_is_told_what_to_write(tmp_path: Any) -> None:
    """As `uvicorn.run(app)` does: it ends the worker that imports it, for the address is taken."""
    (tmp_path / "server_library.py").write_text("import sys\ndef run(): sys.exit(3)\n")
    program = tmp_path / "server.py"
    program.write_text(
        "import server_library\nfrom unfazed.concurrency import *\n"
        "def main():\n"
        "    try: print(run_in_processpool_sync(abs, -1))\n"
        "    except WorkerProcessError as exc: print(exc)\n"
        "if __name__ != '__main__': server_library.run()\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, timeout=50, check=True)

    assert "it has run the main module, which ended (SystemExit: 3)" in done.stdout
    assert done.stdout.count("`if __name__ == '__main__':`") == 1
