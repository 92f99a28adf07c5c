"""asyncer's names, against asyncer's own where it is installed: the tox environment `asyncer` has it."""

from __future__ import annotations

import contextvars
import importlib
import importlib.util
import inspect
import os
import sys
import threading
import warnings
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread
import pytest
import unfazed_compat.asyncer as ours
from conftest import Blocking, captured, in_plain_thread, let_others_run, limit_threads
from starlette.responses import Response
from starlette.routing import Route

from unfazed.concurrency import LoopThreadError, WrongFunctionError, count_abandoned_threads, run_in_threadpool

if TYPE_CHECKING:
    from starlette.requests import Request

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


@pytest.fixture(params=["theirs", "ours"])
def names(request: pytest.FixtureRequest) -> Any:
    if request.param == "ours":
        return ours
    pytest.importorskip("asyncer")
    return importlib.import_module("asyncer")


@pytest.mark.parametrize("name", ours.__all__)
def test_the_parameters_are_the_same(name: str) -> None:
    pytest.importorskip("asyncer")
    mine, its = (
        inspect.signature(getattr(each, name)).parameters.values()
        for each in (ours, importlib.import_module("asyncer"))
    )

    assert [(each.name, each.kind, each.default) for each in mine] == [
        (each.name, each.kind, each.default) for each in its
    ]


def work(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Work."""
    return args, kwargs, variable.get(), threading.current_thread() is threading.main_thread()


async def async_work(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Work."""
    await anyio.lowlevel.checkpoint()
    return args, kwargs, variable.get(), threading.get_ident()


def test_the_functions_have_the_name_and_the_docstring_of_the_original(names: Any) -> None:
    for made in (names.asyncify(work), names.syncify(async_work), names.runnify(async_work)):
        assert made.__name__ in ("work", "async_work")
        assert made.__doc__ == "Work."
        assert made.__wrapped__ in (work, async_work)
    assert inspect.iscoroutinefunction(names.asyncify(work))


# asyncify


@pytest.mark.anyio
async def test_asyncify_runs_in_a_thread_with_the_arguments_and_the_context(names: Any) -> None:
    variable.set("set")

    assert await names.asyncify(work)(1, limiter=2, function=3) == ((1,), {"limiter": 2, "function": 3}, "set", False)
    with pytest.raises(ZeroDivisionError):
        await names.asyncify(divmod)(1, 0)


@pytest.mark.anyio
async def test_asyncify_runs_no_more_than_the_limiter_lets(names: Any) -> None:
    limiter = anyio.CapacityLimiter(1)
    running, most = 0, 0
    lock = threading.Lock()

    def count() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        anyio.from_thread.run(let_others_run)
        with lock:
            running -= 1

    async with anyio.create_task_group() as tasks:
        for _ in range(5):
            tasks.start_soon(names.asyncify(count, limiter=limiter))

    assert most == 1


@pytest.mark.parametrize("option", ["abandon_on_cancel", "cancellable"])
@pytest.mark.anyio
async def test_asyncify_leaves_its_thread_behind_where_that_is_the_option(names: Any, option: str) -> None:
    blocking = Blocking()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        call = names.asyncify(blocking, **{option: True})

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call)
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()
    assert not blocking.ended
    if names is ours:
        assert count_abandoned_threads() == 1
    blocking.may_end.set()


@pytest.mark.anyio
async def test_asyncify_waits_for_its_thread_otherwise(names: Any) -> None:
    blocking = Blocking()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(names.asyncify(blocking, abandon_on_cancel=False))
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()
        blocking.may_end.set()

    assert blocking.ended


def test_cancellable_warns_where_it_is_written(names: Any) -> None:
    with pytest.warns(DeprecationWarning, match="abandon_on_cancel=") as warned:
        names.asyncify(work, cancellable=False)

    assert [each.filename for each in warned] == [__file__]


def test_asyncify_refuses_async_functions() -> None:
    with pytest.raises(WrongFunctionError, match="write `await async_work"):
        ours.asyncify(async_work)


class Shop:
    def price(self, item: int) -> int:
        return 10 * item

    async_price = ours.asyncify(price)


@pytest.mark.anyio
async def test_asyncify_returns_a_real_async_function() -> None:
    """Frameworks ask for functions: Starlette's `Route` takes anything else for an ASGI application."""
    assert all(map(inspect.isfunction, (ours.asyncify(work), ours.asyncify(partial(work)))))
    assert ours.asyncify(partial(work, 1)).__name__ == "work"
    assert inspect.ismethod(Shop().async_price)
    assert await Shop().async_price(2) == 20


@pytest.mark.anyio
async def test_asyncify_makes_an_endpoint_of_a_sync_function() -> None:
    def show(request: Request) -> Response:
        return Response(request.url.path)

    route = Route("/shop", ours.asyncify(show))
    sent: list[Any] = []

    async def receive() -> Any:
        pytest.fail("nothing is to be read")

    async def send(message: Any) -> None:
        sent.append(message)

    await route.handle({"type": "http", "method": "GET", "path": "/shop", "headers": []}, receive, send)

    assert (sent[0]["status"], sent[1]["body"]) == (200, b"/shop")


# syncify


@pytest.mark.parametrize("raise_sync_error", [True, False])
@pytest.mark.anyio
async def test_syncify_runs_in_the_loop_of_the_worker_that_calls(names: Any, raise_sync_error: bool) -> None:
    variable.set("set")
    call = names.syncify(async_work, raise_sync_error)

    expected = (1,), {"raise_sync_error": 2}, "set", threading.get_ident()
    assert await names.asyncify(call)(1, raise_sync_error=2) == expected
    assert await anyio.to_thread.run_sync(partial(call, 1, raise_sync_error=2)) == expected


@pytest.mark.anyio
async def test_syncify_raises_what_the_function_raises(names: Any) -> None:
    async def fail() -> None:
        raise LookupError("nothing")

    with pytest.raises(LookupError, match="nothing"):
        await names.asyncify(names.syncify(fail))()


@pytest.mark.parametrize("run", [lambda call: call(), in_plain_thread], ids=["main thread", "plain thread"])
def test_syncify_is_an_error_elsewhere(names: Any, run: Any) -> None:
    _, error = run(partial(captured, names.syncify(async_work)))

    assert type(error) is anyio.NoEventLoopError


def test_the_error_of_syncify_says_what_to_write() -> None:
    with pytest.raises(RuntimeError, match=r"`run_in_eventloop_sync\(async_work, ...\)`"):
        ours.syncify(partial(async_work, 1))()


@pytest.mark.parametrize("run", [lambda call: call(), in_plain_thread], ids=["main thread", "plain thread"])
def test_syncify_starts_a_loop_elsewhere_where_that_is_the_option(names: Any, run: Any) -> None:
    call = names.syncify(async_work, raise_sync_error=False)

    def in_this_thread() -> bool:
        return bool(call(1, raise_sync_error=2) == ((1,), {"raise_sync_error": 2}, "unset", threading.get_ident()))

    assert run(in_this_thread)


@pytest.mark.anyio
async def test_a_thread_whose_loop_is_running_is_refused(names: Any) -> None:
    for call in (names.syncify(async_work), names.syncify(async_work, False), names.runnify(async_work)):
        _, error = captured(call)

        assert isinstance(error, RuntimeError)
        if names is ours:
            assert isinstance(error, LoopThreadError)
            assert "`await async_work(...)`" in str(error)


@pytest.mark.anyio
async def test_syncify_in_a_cancelled_worker_is_cancelled() -> None:
    """On asyncio, theirs waits for ever."""
    blocking = Blocking()
    errors: list[BaseException | None] = []

    def call() -> None:
        blocking()
        errors.append(captured(ours.syncify(anyio.sleep_forever))[1])

    async with anyio.create_task_group() as tasks:
        asyncified: Any = ours.asyncify(call)
        tasks.start_soon(asyncified)
        await blocking.wait_until_started()
        tasks.cancel_scope.cancel()
        blocking.may_end.set()

    (error,) = errors
    assert type(error) is anyio.get_cancelled_exc_class()


@pytest.mark.anyio
async def test_what_interrupts_the_look_for_a_loop_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(anyio.from_thread, "check_cancelled", interrupt)

    _, error = await run_in_threadpool(captured, ours.syncify(async_work))
    assert type(error) is KeyboardInterrupt


@pytest.mark.anyio
async def test_nested_calls_do_not_use_up_the_threads() -> None:
    limit_threads(1)

    async def deeper(levels: int) -> int:
        return 0 if levels == 0 else 1 + await ours.asyncify(ours.syncify(deeper))(levels - 1)

    assert await deeper(20) == 20


@pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="trio is not installed")
def test_syncify_works_in_workers_of_plain_trio() -> None:
    import trio

    async def main() -> object:
        return await trio.to_thread.run_sync(ours.syncify(async_work), 1)

    assert trio.run(main) == ((1,), {}, "unset", threading.get_ident())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.anyio
async def test_syncify_works_in_a_child_forked_by_a_worker() -> None:
    def in_child() -> int:
        pid = os.fork()
        if pid:
            return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        value, error = captured(partial(ours.syncify(async_work), 1))
        os._exit(0 if error is None and value[0] == (1,) else 1)

    assert await run_in_threadpool(in_child) == 0


# runnify


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_runnify_starts_a_loop_here_for_each_call(names: Any, backend: str) -> None:
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"{backend} is not installed")

    async def main(value: int, *, backend: int) -> tuple[Any, ...]:
        token = anyio.lowlevel.current_token()
        return value, backend, threading.get_ident(), token.native_token, token.backend_class.__name__

    call = names.runnify(main, backend, {})

    first, second = call(1, backend=2), call(1, backend=2)
    assert first[:3] == second[:3] == (1, 2, threading.get_ident())
    assert first[3] is not second[3]
    assert backend in first[4].lower()


def test_runnify_hands_its_options_on(names: Any) -> None:
    async def main() -> bool:
        import asyncio

        return asyncio.get_running_loop().get_debug()

    assert names.runnify(main, backend_options={"debug": True})()
    assert not names.runnify(main, backend_options={"debug": False})()


def test_runnify_knows_no_other_backend(names: Any) -> None:
    with pytest.raises(LookupError, match="curio"):
        names.runnify(async_work, "curio")()


def test_asyncer_itself_is_not_imported() -> None:
    assert "asyncer" not in vars(ours)
    if importlib.util.find_spec("asyncer") is None:
        assert "asyncer" not in sys.modules
