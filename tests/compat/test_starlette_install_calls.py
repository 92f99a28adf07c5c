"""`install()`: ours behind the thread calls that Starlette makes itself. `test_web_install.py` is about FastAPI."""

from __future__ import annotations

import ast
import contextvars
import gc
import itertools
import re
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import pytest
import starlette.concurrency
import unfazed_compat.starlette as ours
from conftest import GRACE_SECONDS, limit_threads
from connections import until
from installing import COMPRESSES_IN_THREADS, KINDS, app_of, gzip_middleware, responses_module
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette_helpers import Gauge, Recorded, installed, recorded, request
from unfazed_compat.starlette import _calls

from unfazed.concurrency import run_in_eventloop_sync, run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

assert installed and recorded  # fixtures

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


# ---- every thread call that Starlette makes

OF_OLD_ONES = {"http_exception"}  # what older ones call in addition
kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
pytestmark = pytest.mark.filterwarnings("ignore:starlette.middleware.wsgi is deprecated")


@kinds
@pytest.mark.anyio
async def test_all_that_starlette_calls_in_threads_is_called_by_ours(
    kind: Any, installed: None, recorded: Recorded, tmp_path: Path
) -> None:
    await kind(tmp_path)

    assert recorded.theirs == []
    assert set(recorded.ours) - OF_OLD_ONES == KINDS[kind]


@kinds
@pytest.mark.anyio
async def test_without_it_the_same_is_called_by_theirs(kind: Any, recorded: Recorded, tmp_path: Path) -> None:
    await kind(tmp_path)

    assert recorded.ours == []
    assert set(recorded.theirs) - OF_OLD_ONES == {"_next" if name == "iterate" else name for name in KINDS[kind]}


THREAD_CALLS = re.compile(
    r"(?:run|iterate|contextmanager)_in_threadpool\(|partial\(run_in_threadpool|to_thread\.\w+\(|run_sync\("
    r"|open_file\(|wrap_file\(|anyio\.Path\(|run_in_executor\(|Thread\(|ThreadPoolExecutor\("
)
ARE_NEW = COMPRESSES_IN_THREADS  # whether Starlette and FastAPI are those with the most calls


@pytest.mark.parametrize("library", ["starlette", "fastapi"])
def test_the_table_names_each_module_that_calls_threads(library: str) -> None:
    """What a new version adds fails here."""
    folder = Path(pytest.importorskip(library).__file__ or "").parent
    found = {
        ".".join((library, *file.relative_to(folder).with_suffix("").parts))
        for file in folder.rglob("*.py")
        if THREAD_CALLS.search(ast.unparse(ast.parse(file.read_text(encoding="utf-8"))))  # without comments
    }
    named = set(re.findall(rf"`({library}\.[\w.]+)`", ours.__doc__ or ""))

    assert found == named if ARE_NEW else found <= named  # older ones call less


# ---- what holds then


HAVE_THE_LIMIT = [kind for kind in KINDS if kind is not gzip_middleware]  # which brings its own


@pytest.mark.anyio
async def test_there_is_one_limit_for_theirs_and_ours(
    installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without it, as many of theirs run as of ours."""
    limit_threads(4)
    gauge = Gauge(4)

    def count() -> None:
        with gauge.running_thread():
            pass

    monkeypatch.setattr(_calls, "boxed", gauge.counted(_calls.boxed))
    monkeypatch.setattr(_calls, "iterate", gauge.counted_steps(_calls.iterate))
    folders = [tmp_path / str(number) for number in range(200)]
    with anyio.fail_after(GRACE_SECONDS * 3):
        async with anyio.create_task_group() as tasks:
            for folder, kind in zip(folders, itertools.cycle(HAVE_THE_LIMIT), strict=False):
                folder.mkdir()
                tasks.start_soon(kind, folder)
                tasks.start_soon(run_in_threadpool, count)

    assert gauge.calls >= 2 * len(folders)
    assert gauge.most == 4


@pytest.mark.anyio
async def test_sync_in_async_in_sync_code_completes_with_one_thread(installed: None) -> None:
    limit_threads(1)

    async def call_a_thread() -> int:
        return await starlette.concurrency.run_in_threadpool(int, "7")

    def endpoint(request: Any) -> Response:
        return PlainTextResponse(str(run_in_eventloop_sync(call_a_thread)))

    with anyio.fail_after(GRACE_SECONDS):
        assert await request(app_of(endpoint)) == (200, b"7")


@pytest.mark.anyio
async def test_an_endpoint_may_call_back_and_sees_the_context(installed: None) -> None:
    async def loop_thread() -> int:
        return threading.get_ident()

    def endpoint(request: Any) -> Response:
        called_back = anyio.from_thread.run(loop_thread), anyio.from_thread.run_sync(threading.get_ident)
        return PlainTextResponse(f"{variable.get()} {set(called_back) == {loop}} {threading.get_ident() != loop}")

    loop = threading.get_ident()
    variable.set("set")

    assert await request(app_of(endpoint)) == (200, b"set True True")


@pytest.mark.anyio
async def test_an_http_exception_is_a_response(installed: None) -> None:
    def endpoint(request: Any) -> Response:
        raise HTTPException(418, "teapot")

    assert await request(app_of(endpoint)) == (418, b"teapot")


@pytest.mark.anyio
async def test_when_the_client_leaves_its_stream_ends_and_is_closed_when_it_is_collected(installed: None) -> None:
    closed, leaves = threading.Event(), anyio.Event()

    def lines() -> Iterator[str]:
        try:
            while True:
                yield "line"
                anyio.from_thread.run_sync(leaves.set)
        finally:
            closed.set()

    async def endpoint(request: Any) -> Response:
        return StreamingResponse(lines())

    with anyio.fail_after(GRACE_SECONDS):
        status, _ = await request(app_of(endpoint), client_leaves=leaves)
    assert status == 200
    gc.collect()
    await until(closed.is_set)


@pytest.mark.anyio
async def test_a_lifespan_has_threads(installed: None) -> None:
    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[dict[str, int]]:
        yield {"seven": await starlette.concurrency.run_in_threadpool(int, "7")}

    app = Starlette(lifespan=lifespan)
    async with app.router.lifespan_context(app) as state:
        assert state == {"seven": 7}


@pytest.mark.anyio
async def test_a_coroutine_that_a_sync_function_returns_comes_back(installed: None) -> None:
    """As it does without: a dependency may be one."""

    async def seven() -> int:
        return 7

    coroutine = await starlette.concurrency.run_in_threadpool(lambda: seven())

    assert await coroutine == 7


@pytest.mark.anyio
async def test_a_file_can_do_what_one_of_anyios_can(installed: None, recorded: Recorded, tmp_path: Path) -> None:
    anyio_of_starlette: Any = responses_module.anyio
    path = tmp_path / "file"
    async with await anyio_of_starlette.open_file(path, "wb+", limiter=anyio.CapacityLimiter(1)) as file:
        await file.write(b"one\ntwo\n")
        await file.seek(offset=0, whence=0)
        assert [line async for line in file] == [b"one\n", b"two\n"]
        assert await file.tell() == 8
    assert file.closed

    assert recorded.theirs == []
    assert recorded.ours == ["open", "write", "seek", "readline", "readline", "readline", "tell", "close"]


def test_what_stands_for_anyio_has_all_of_it(installed: None) -> None:
    stand_in: Any = responses_module.anyio

    assert stand_in is not anyio
    assert dir(stand_in) == dir(anyio)
    assert stand_in.Event is anyio.Event
    assert repr(stand_in) == repr(anyio)
    with pytest.raises(AttributeError, match="module 'anyio' has no attribute 'missing'"):
        _ = stand_in.missing
