"""What the tests of `install()` share.

A function for each kind of thread call that Starlette makes; what is patched; and a FastAPI of our own.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import threading
import zlib
from functools import partial
from tempfile import SpooledTemporaryFile
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
import starlette.concurrency
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool as imported_before
from starlette.datastructures import UploadFile
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette_helpers import request
from unfazed_compat.starlette import _install

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator
    from pathlib import Path

responses_module: Any = importlib.import_module("starlette.responses")
PARTIAL: Any = partial(
    starlette.concurrency.run_in_threadpool, threading.get_ident
)  # made before anything is installed


def app_of(endpoint: Any, **options: Any) -> Starlette:
    return Starlette(routes=[Route("/", endpoint)], **options)


async def endpoint_function(_: Path) -> None:
    def endpoint(request: Any) -> Response:
        return PlainTextResponse("hello")

    assert await request(app_of(endpoint)) == (200, b"hello")


async def endpoint_class(_: Path) -> None:
    class Endpoint(HTTPEndpoint):
        def get(self, request: Any) -> Response:
            return PlainTextResponse("hello")

    assert await request(app_of(Endpoint)) == (200, b"hello")


async def background_task(_: Path) -> None:
    done: list[str] = []

    def task(value: str, *, other: str) -> None:
        done.append(value + other)

    async def endpoint(request: Any) -> Response:
        return PlainTextResponse("hello", background=BackgroundTask(task, "so", other="meone"))

    assert await request(app_of(endpoint)) == (200, b"hello")
    assert done == ["someone"]


async def fail(request: Any) -> Response:
    raise LookupError("missing")


async def exception_handler(_: Path) -> None:
    def handler(request: Any, exc: Exception) -> Response:
        return PlainTextResponse(str(exc), 404)

    handlers: dict[Any, Any] = {LookupError: handler}
    assert await request(app_of(fail, exception_handlers=handlers)) == (404, b"missing")


async def error_handler(_: Path) -> None:
    def last_handler(request: Any, exc: Exception) -> Response:
        return PlainTextResponse(str(exc), 500)

    handlers: dict[Any, Any] = {Exception: last_handler}
    with pytest.raises(LookupError):
        await request(app_of(fail, exception_handlers=handlers))


async def file_response(folder: Path) -> None:
    (folder / "file").write_bytes(b"0123456789")

    async def endpoint(request: Any) -> Response:
        return FileResponse(folder / "file")

    assert await request(app_of(endpoint)) == (200, b"0123456789")
    assert await request(app_of(endpoint), headers={"Range": "bytes=3-5"}) == (206, b"345")


async def static_files(folder: Path) -> None:
    (folder / "file.txt").write_bytes(b"content")
    app = Starlette(routes=[Mount("/", StaticFiles(directory=folder))])
    assert await request(app, "/file.txt") == (200, b"content")
    assert (await request(app, "/missing"))[0] == 404


async def static_pages(folder: Path) -> None:
    (folder / "index.html").write_bytes(b"index")
    (folder / "404.html").write_bytes(b"missing")
    app = Starlette(routes=[Mount("/", StaticFiles(directory=folder, html=True))])
    assert await request(app, "/") == (200, b"index")
    assert await request(app, "/missing") == (404, b"missing")


async def streaming_response(_: Path) -> None:
    def lines() -> Iterator[str]:
        yield "one"
        yield "two"

    async def endpoint(request: Any) -> Response:
        return StreamingResponse(lines())

    assert await request(app_of(endpoint)) == (200, b"onetwo")


async def upload_file(_: Path) -> None:
    with SpooledTemporaryFile(max_size=1) as spooled:
        spooled.write(b"already on the disk")
        file = UploadFile(file=spooled, filename="name")  # type: ignore[arg-type]
        await file.seek(0)
        assert await file.read() == b"already on the disk"
        await file.write(b", and more")
        await file.close()


async def wsgi_middleware(_: Path) -> None:
    from starlette.middleware.wsgi import WSGIMiddleware

    def wsgi_app(environ: Any, start_response: Any) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    assert await request(WSGIMiddleware(wsgi_app), "/path") == (200, b"/path")


async def gzip_middleware(_: Path) -> None:
    async def endpoint(request: Any) -> Response:
        return PlainTextResponse("x" * 200_000)

    app = GZipMiddleware(app_of(endpoint))
    body = (await request(app, headers={"Accept-Encoding": "gzip"}))[1]
    assert zlib.decompress(body, 16 + zlib.MAX_WBITS) == b"x" * 200_000


async def programs_own_calls(_: Path) -> None:
    assert await starlette.concurrency.run_in_threadpool(str, 7) == "7"
    assert await imported_before(int, "7") == 7
    assert await PARTIAL() != threading.get_ident()
    assert [row async for row in starlette.concurrency.iterate_in_threadpool([1])] == [1]


COMPRESSES_IN_THREADS = "to_thread" in inspect.getsource(importlib.import_module("starlette.middleware.gzip"))

# what calls threads, and what is called there
KINDS: dict[Callable[[Path], Coroutine[Any, Any, None]], set[str]] = {
    endpoint_function: {"endpoint"},
    endpoint_class: {"get"},
    background_task: {"task"},
    exception_handler: {"handler"},
    error_handler: {"last_handler"},
    file_response: {"stat", "open", "read", "seek", "close"},
    static_files: {"stat", "lookup_path", "open", "read", "close"},
    static_pages: {"stat", "lookup_path", "open", "read", "close"},
    streaming_response: {"iterate"},
    upload_file: {"seek", "read", "write", "close"},
    wsgi_middleware: {"wsgi"},
    gzip_middleware: {"_compress_body"} if COMPRESSES_IN_THREADS else set(),
    programs_own_calls: {"str", "int", "get_ident", "iterate"},
}


def snapshot() -> dict[str, dict[str, Any]]:
    """Return the names in all modules of Starlette, and the code of their functions."""
    return {
        name: {key: (value, getattr(value, "__code__", None)) for key, value in vars(module).items()}
        for name, module in _install._loaded().items()
    }


def is_installed() -> bool:
    code = starlette.concurrency.run_in_threadpool.__code__
    return "unfazed_compat" in code.co_filename and responses_module.anyio is not anyio


FASTAPI = """
from contextlib import asynccontextmanager
from anyio.to_thread import run_sync
from starlette.concurrency import run_in_threadpool

@asynccontextmanager
async def contextmanager_in_threadpool(cm):
    value = await run_in_threadpool(cm.__enter__)
    try:
        yield value
    except Exception as exc:
        if not await run_sync(cm.__exit__, type(exc), exc, exc.__traceback__):
            raise
    else:
        await run_sync(cm.__exit__, None, None, None)
"""


@pytest.fixture
def fastapi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a package `fastapi` with only the module that ours replaces. Return its file."""
    before = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == "fastapi"}
    (tmp_path / "fastapi").mkdir()
    (tmp_path / "fastapi" / "__init__.py").touch()
    file = tmp_path / "fastapi" / "concurrency.py"
    file.write_text(FASTAPI)
    monkeypatch.syspath_prepend(tmp_path)
    yield file
    for name in [name for name in sys.modules if name.partition(".")[0] == "fastapi"]:
        del sys.modules[name]
    sys.modules.update(before)
