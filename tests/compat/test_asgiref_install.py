"""Installing behind asgiref's own classes, and what subclasses, patches and monitoring agents rely on."""

from __future__ import annotations

import asyncio
import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import anyio
import asgiref
import asgiref.sync
import pytest
import unfazed_compat.asgiref as ours
from asgiref.current_thread_executor import CurrentThreadExecutor
from asgiref_helpers import counts_references, current_native_loop, end_threads, this_thread
from conftest import GRACE_SECONDS, Blocking
from unfazed_compat.asgiref import _choose_thread, _shared, install, uninstall
from unfazed_compat.asgiref._singlethreadexecutor import SingleThreadExecutor

from unfazed.concurrency import UnfazedError

if TYPE_CHECKING:
    from collections.abc import Iterator

assert end_threads  # a fixture

NAMES = ("SyncToAsync", "AsyncToSync", "ThreadSensitiveContext", "AsyncSingleThreadContext")
CLASSES = [getattr(asgiref.sync, name) for name in NAMES if hasattr(asgiref.sync, name)]
variants = pytest.mark.parametrize("library", ["ours", "installed"], indirect=True)


@pytest.fixture
def library(request: pytest.FixtureRequest) -> Iterator[Any]:
    if request.param == "ours":
        yield ours
    else:
        with install():
            yield asgiref.sync


def snapshot() -> list[dict[str, Any]]:
    return [dict(vars(each)) for each in CLASSES]


# ---- install


def test_it_names_what_was_patched_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function that calls the original, and an object, as monitoring agents have them."""
    handler: Any = asgiref.sync.SyncToAsync.thread_handler

    @functools.wraps(handler)
    def patched(*args: Any, **kwargs: Any) -> Any:
        return handler(*args, **kwargs)

    with install() as installed:
        assert installed.out_of_use == ()
    monkeypatch.setattr(asgiref.sync.SyncToAsync, "thread_handler", patched)
    monkeypatch.setattr(asgiref.sync.AsyncToSync, "__call__", functools.partial(int))
    with install() as installed:
        assert sorted(installed.out_of_use) == ["AsyncToSync.__call__", "SyncToAsync.thread_handler"]
        assert install().out_of_use == installed.out_of_use
    assert installed.out_of_use == ()


def test_installing_is_reversible_and_can_be_repeated() -> None:
    before = snapshot()
    with install():
        installed = snapshot()
        with install():
            assert snapshot() == installed
        assert snapshot() == installed
        assert vars(asgiref.sync.SyncToAsync)["__call__"] is vars(ours.SyncToAsync)["__call__"]
    assert snapshot() == before
    install()
    uninstall()
    uninstall()
    assert snapshot() == before


@pytest.mark.anyio
async def test_what_was_made_before_moves_too() -> None:
    class Subclass(asgiref.sync.SyncToAsync[Any, Any]):
        def thread_handler(self, *args: Any, **kwargs: Any) -> Any:
            return "by the subclass", super().thread_handler(*args, **kwargs)  # type: ignore[no-untyped-call]

    sync = asgiref.sync.sync_to_async(threading.current_thread)
    back = asgiref.sync.sync_to_async(asgiref.sync.async_to_sync(current_native_loop))
    subclassed = Subclass(int)
    with install():
        assert await sync() is not threading.current_thread()
        assert await back() == await current_native_loop()
        assert await subclassed("12") == ("by the subclass", 12)
        async with asgiref.sync.ThreadSensitiveContext():
            assert await sync() is await sync()


def test_what_was_made_before_keeps_its_loop() -> None:
    call = asgiref.sync.async_to_sync(this_thread)
    with install():
        assert call() is call()
    assert call() is not call()


def test_installing_is_safe_while_calls_are_running() -> None:
    async def main(change: Any) -> Any:
        blocking = Blocking()

        async def inner() -> str:
            return await asgiref.sync.sync_to_async(blocking)()

        task = asyncio.create_task(asgiref.sync.sync_to_async(asgiref.sync.async_to_sync(inner))())
        await blocking.wait_until_started()
        change()
        blocking.may_end.set()
        return await asyncio.wait_for(task, GRACE_SECONDS)

    try:
        assert asyncio.run(main(install)) == "a value that nobody waits for"
        assert asyncio.run(main(uninstall)) == "a value that nobody waits for"
    finally:
        uninstall()


def test_what_runs_in_asgirefs_way_can_be_cancelled_after_installing() -> None:
    """Its list of tasks is a plain one."""

    async def main() -> None:
        started, may_call = threading.Event(), threading.Event()
        running = asyncio.Event()

        async def inner() -> None:
            running.set()
            await asyncio.Event().wait()

        def outer() -> None:
            started.set()
            assert may_call.wait(GRACE_SECONDS)
            asgiref.sync.async_to_sync(inner)()

        task = asyncio.create_task(asgiref.sync.sync_to_async(outer)())
        await asyncio.to_thread(started.wait, GRACE_SECONDS)
        with install():
            may_call.set()
            await running.wait()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, GRACE_SECONDS)

    asyncio.run(main())


def test_what_others_have_patched_since_stays() -> None:
    theirs: Any = asgiref.sync.SyncToAsync
    original = theirs.thread_handler
    install()
    patched = ours.SyncToAsync.thread_handler

    def handler(*args: Any, **kwargs: Any) -> Any:
        return patched(*args, **kwargs)

    before = theirs.__call__
    theirs.thread_handler = handler
    try:
        uninstall()

        assert theirs.__call__ is not before
        assert theirs.thread_handler is handler
        assert asyncio.run(theirs(int)("12")) == 12
    finally:
        theirs.thread_handler = original


@pytest.mark.parametrize("version", ["3.7.2", "3.8.0", "3.14.0", "4.0"])
def test_another_version_is_refused(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgiref, "__version__", version)
    with pytest.raises(UnfazedError, match=f"knows asgiref 3.8.1 to 3.13, and not {version}"):
        install()


def test_without_asgiref_there_is_nothing_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_shared, "original", None)
    with pytest.raises(UnfazedError, match="not installed"):
        install()


@counts_references
def test_an_executor_that_is_used_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    own = SingleThreadExecutor()

    def replaced() -> bool:
        _shared.replace_unused_executor(own)
        return asgiref.sync.SyncToAsync.single_thread_executor is own

    with ThreadPoolExecutor(max_workers=1) as executor:
        monkeypatch.setattr(asgiref.sync.SyncToAsync, "single_thread_executor", executor)
        assert not replaced()  # this test holds it
        executor.submit(int).result()
        assert not replaced()
        with install():
            assert asyncio.run(asgiref.sync.sync_to_async(threading.current_thread)()) in executor._threads
    monkeypatch.setattr(asgiref.sync.SyncToAsync, "single_thread_executor", ThreadPoolExecutor(max_workers=1))
    assert replaced()


def test_thread_sensitive_work_keeps_its_thread_when_it_is_uninstalled() -> None:
    async def main() -> None:
        sync = asgiref.sync.sync_to_async(threading.current_thread)
        before = ours.SyncToAsync.single_thread_executor
        with install():
            thread = await sync()
        assert await sync() is thread
        assert ours.SyncToAsync.single_thread_executor is before

    asyncio.run(main())


# ---- what others rely on


@pytest.mark.anyio
@variants
async def test_thread_handler_gets_a_partial_with_the_users_arguments(library: Any) -> None:
    """New Relic adds an argument in `__call__`, and takes it out of `args[0].keywords` again."""
    seen: list[Any] = []

    class Agent(library.SyncToAsync):  # type: ignore[misc]
        async def __call__(self, *args: Any, **kwargs: Any) -> Any:
            kwargs["_nr_current_trace"] = "trace"
            return await super().__call__(*args, **kwargs)

        def thread_handler(self, loop: Any, exc_info: Any, task_context: Any, func: Any, *args: Any) -> Any:
            child = args[0]
            seen.append((type(child), child.func, child.args, child.keywords.pop("_nr_current_trace")))
            seen.append((isinstance(task_context, list), library.SyncToAsync.threadlocal is self.threadlocal))
            return super().thread_handler(loop, exc_info, task_context, func, *args)

    def func(value: int, *, other: int) -> int:
        return value + other

    assert await Agent(func)(1, other=2) == 3
    assert seen == [(functools.partial, func, (1,), "trace"), (True, True)]


@pytest.mark.anyio
@variants
async def test_main_wrap_is_a_coroutine_method_that_can_be_patched(library: Any, monkeypatch: Any) -> None:
    wrapped: list[Any] = []
    original = library.AsyncToSync.main_wrap

    def wrapper(*args: Any, **kwargs: Any) -> Any:
        running = original(*args, **kwargs)
        wrapped.append(asyncio.iscoroutine(running))
        return running

    monkeypatch.setattr(library.AsyncToSync, "main_wrap", wrapper)

    assert await library.sync_to_async(library.async_to_sync(current_native_loop))() == await current_native_loop()
    assert wrapped == [True]
    assert ours.iscoroutinefunction(original)


@pytest.mark.anyio
@variants
@pytest.mark.parametrize("thread_sensitive", [True, False])
async def test_a_main_wrap_that_fails_is_heard_of(library: Any, thread_sensitive: bool) -> None:
    class Broken(library.AsyncToSync):  # type: ignore[misc]
        async def main_wrap(self, *args: Any) -> None:
            args[-1].close()
            raise ValueError("broken")

    with anyio.fail_after(GRACE_SECONDS), pytest.raises(ValueError, match="broken"):
        await library.sync_to_async(Broken(this_thread), thread_sensitive=thread_sensitive)()


@pytest.mark.anyio
@variants
async def test_an_executor_can_be_put_into_a_context(library: Any) -> None:
    sync = library.SyncToAsync
    executor = ThreadPoolExecutor(max_workers=1)
    thread = executor.submit(threading.current_thread).result()
    async with library.ThreadSensitiveContext() as context:
        assert sync.thread_sensitive_context.get() is context
        sync.context_to_thread_executor[context] = executor
        assert await library.sync_to_async(threading.current_thread)() is thread

    assert sync.thread_sensitive_context.get(None) is None
    thread.join(GRACE_SECONDS)
    assert not thread.is_alive()


@pytest.mark.anyio
@variants
async def test_within_a_call_the_main_event_loop_is_known(library: Any) -> None:
    def known() -> Any:
        return getattr(library.SyncToAsync.threadlocal, "main_event_loop", None)

    loop = await library.sync_to_async(known)()

    assert loop == await current_native_loop() or loop.token is await current_native_loop()
    assert known() is None
    assert not library.SyncToAsync.deadlock_context.get(False)


@pytest.mark.anyio
@variants
async def test_the_executor_of_the_calling_thread_can_be_looked_at_and_cleared(library: Any) -> None:
    outside = []

    async def inner() -> threading.Thread:
        executor = library.AsyncToSync.executors.current
        assert isinstance(executor, CurrentThreadExecutor)
        library.AsyncToSync.executors.current = None
        thread: threading.Thread = await library.sync_to_async(threading.current_thread)()
        return thread

    def outer() -> Any:
        outside.append(threading.current_thread())
        return library.async_to_sync(inner)()

    assert await library.sync_to_async(outer, thread_sensitive=False)() not in outside


@variants
def test_a_loop_knows_the_executor_that_waits_for_all_it_does(library: Any) -> None:
    async def inner() -> tuple[bool, threading.Thread]:
        found = asyncio.get_running_loop() in library.AsyncToSync.loop_thread_executors
        library.AsyncToSync.executors.current = None
        return found, await library.sync_to_async(threading.current_thread)()

    assert library.async_to_sync(inner)() == (True, threading.current_thread())


@counts_references
def test_the_single_thread_executor_can_be_read() -> None:
    with install():
        thread = asyncio.run(asgiref.sync.sync_to_async(threading.current_thread)())

        assert thread in asgiref.sync.SyncToAsync.single_thread_executor._threads
        assert thread in ours.SyncToAsync.single_thread_executor._threads  # type: ignore[attr-defined]
        assert asgiref.sync.SyncToAsync.single_thread_executor is _choose_thread.fallback_executor


@pytest.mark.anyio
async def test_a_wrapper_that_is_bound_to_a_loop_runs_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with asgiref before 3.12."""
    monkeypatch.setattr(_shared, "binds_to_loop", True)
    bound = ours.async_to_sync(current_native_loop)
    with ThreadPoolExecutor(max_workers=1) as executor:
        call = ours.sync_to_async(lambda: executor.submit(bound).result(), thread_sensitive=False)
        assert await call() == await current_native_loop()
        bound.main_event_loop_pid = 0
        assert await call() != await current_native_loop()
