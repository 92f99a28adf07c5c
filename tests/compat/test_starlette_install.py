"""`install()`: ours behind the thread calls that Starlette makes itself. `test_web_install.py` is about FastAPI."""

from __future__ import annotations

import ast
import contextvars
import functools
import gc
import importlib
import importlib.metadata
import importlib.util
import inspect
import itertools
import re
import subprocess
import sys
import threading
import zlib
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from importlib.machinery import ModuleSpec
from pathlib import Path
from tempfile import SpooledTemporaryFile
from types import FunctionType
from typing import TYPE_CHECKING, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
import starlette.concurrency
import unfazed_compat.starlette as ours
from conftest import GRACE_SECONDS, Blocking, limit_threads
from connections import Connections, until
from connections import request as connect_and_query
from interrupting import Alarm, Steps, raise_alarm
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool as imported_before
from starlette.datastructures import UploadFile
from starlette.endpoints import HTTPEndpoint
from starlette.exceptions import HTTPException
from starlette.middleware.gzip import GZipMiddleware
from starlette.responses import FileResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette_helpers import Recorded, installed, recorded, request
from unfazed_compat.starlette import _calls, _install, install, uninstall

from unfazed.concurrency import UnfazedError, run_in_eventloop_sync, run_in_threadpool
from unfazed.concurrency._core import _limits

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

responses_module: Any = importlib.import_module("starlette.responses")
FOLDER = str(Path(_install.__file__).parent)
PARTIAL: Any = partial(
    starlette.concurrency.run_in_threadpool, threading.get_ident
)  # made before anything is installed

assert installed and recorded  # fixtures

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


# ---- every thread call that Starlette makes


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
KINDS: dict[Callable[[Path], Awaitable[None]], set[str]] = {
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


class Gauge:
    """Counts how many threads run at the same time. The first *total* wait for each other."""

    def __init__(self, total: int) -> None:
        self.most = self.running = self.calls = 0
        self._total = total
        self._lock = threading.Lock()
        self._together = threading.Barrier(total)

    @contextmanager
    def running_thread(self) -> Iterator[None]:
        with self._lock:
            self.calls += 1
            is_early = self.calls <= self._total
            self.running += 1
            self.most = max(self.most, self.running)
        if is_early:
            self._together.wait(GRACE_SECONDS)
        try:
            yield
        finally:
            with self._lock:
                self.running -= 1


@pytest.mark.anyio
async def test_there_is_one_limit_for_theirs_and_ours(
    installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Without it, as many of theirs run as of ours."""
    limit_threads(4)
    gauge = Gauge(4)
    boxed = _calls.boxed

    def counted(func: Any, args: Any, kwargs: Any) -> Any:
        with gauge.running_thread():
            return boxed(func, args, kwargs)

    def count() -> None:
        with gauge.running_thread():
            pass

    def lines() -> Iterator[str]:
        for _ in range(3):
            count()
            yield "line"

    async def stream(request: Any) -> Response:
        return StreamingResponse(lines())

    monkeypatch.setattr(_calls, "boxed", counted)
    kinds: list[Any] = [endpoint_function, endpoint_class, background_task, exception_handler, file_response]
    folders = [tmp_path / str(number) for number in range(200)]
    with anyio.fail_after(GRACE_SECONDS * 3):
        async with anyio.create_task_group() as tasks:
            for folder, kind in zip(folders, itertools.cycle(kinds), strict=False):
                folder.mkdir()
                tasks.start_soon(kind, folder)
                tasks.start_soon(run_in_threadpool, count)
                tasks.start_soon(request, app_of(stream))

    assert gauge.calls > 1000
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


# ---- installing


def snapshot() -> dict[str, dict[str, Any]]:
    """Return what all modules of Starlette have, and the code of their functions."""
    return {
        name: {key: (value, getattr(value, "__code__", None)) for key, value in vars(module).items()}
        for name, module in _install._loaded().items()
    }


def is_installed() -> bool:
    code = starlette.concurrency.run_in_threadpool.__code__
    return "unfazed_compat" in code.co_filename and responses_module.anyio is not anyio


def test_installing_is_reversible_and_can_be_repeated() -> None:
    before, finders = snapshot(), list(sys.meta_path)
    with install():
        after = snapshot()
        assert is_installed()
        with install():
            assert snapshot() == after
        assert snapshot() == after
    assert (snapshot(), sys.meta_path) == (before, finders)
    install()
    uninstall()
    uninstall()
    assert (snapshot(), sys.meta_path) == (before, finders)


@pytest.mark.anyio
async def test_installing_is_safe_while_calls_are_running() -> None:
    async def run_while(change: Callable[[], object]) -> Any:
        blocking = Blocking()
        results: list[Any] = []

        async def call() -> None:
            results.append(await starlette.concurrency.run_in_threadpool(blocking))

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(call)
            await blocking.wait_until_started()
            change()
            blocking.may_end.set()
        return results

    try:
        assert await run_while(install) == ["a value that nobody waits for"]
        assert await run_while(uninstall) == ["a value that nobody waits for"]
    finally:
        uninstall()


@pytest.mark.anyio
async def test_what_was_made_and_not_begun_before_goes_on(recorded: Recorded) -> None:
    began_with_theirs = starlette.concurrency.run_in_threadpool(int, "1")
    with install():
        began_with_ours = starlette.concurrency.run_in_threadpool(int, "2")
        assert await began_with_theirs == 1
    assert await began_with_ours == 2


def test_what_others_have_patched_since_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    function: Any = starlette.concurrency.run_in_threadpool
    monkeypatch.setattr(responses_module, "anyio", anyio)  # so that they are put back
    monkeypatch.setattr(function, "__code__", function.__code__)
    others: Any = object()
    with install():
        setattr(responses_module, "anyio", others)  # noqa: B010  of which nothing is known
        function.__code__ = of_others.__code__

    assert responses_module.anyio is others
    assert function.__code__ is of_others.__code__


@pytest.mark.anyio
async def test_what_others_have_patched_before_stays_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """As monitoring agents do it."""
    original: Any = starlette.concurrency.run_in_threadpool
    seen: list[Any] = []

    @functools.wraps(original)
    async def agent(func: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(func)
        return await original(func, *args, **kwargs)

    monkeypatch.setattr(starlette.concurrency, "run_in_threadpool", agent)
    with install():
        assert await starlette.concurrency.run_in_threadpool(has_a_slot)
    assert seen == [has_a_slot]


def has_a_slot() -> bool:
    slot = _limits.current_slot.get()
    return slot is not None and slot.held


async def of_others(func: Any, more: Any) -> Any:
    """Take other parameters."""


def of_another_kind(func: Any, *args: Any, **kwargs: Any) -> Any:
    """Take the same parameters."""


def in_starlette(function: Any) -> FunctionType:
    return FunctionType(function.__code__, vars(starlette.concurrency))


@pytest.mark.parametrize(
    "function",
    [in_starlette(of_others), in_starlette(of_another_kind), of_another_kind, partial(int), None],
    ids=["parameters", "kind", "somebody else's", "no function", "none"],
)
def test_functions_that_it_does_not_know_are_refused(function: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = snapshot()
    with monkeypatch.context() as patched:
        patched.setattr(starlette.concurrency, "run_in_threadpool", function)
        with pytest.raises(UnfazedError, match=r"does not find the run_in_threadpool\(\) .* in starlette.concurrency"):
            install()
    assert snapshot() == before
    assert _install._finder not in sys.meta_path


def test_a_second_install_that_fails_takes_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    with install():
        with monkeypatch.context() as patched:
            patched.setattr(starlette.concurrency, "run_in_threadpool", None)
            with pytest.raises(UnfazedError, match="does not find"):
                install()
        assert is_installed()


@pytest.mark.parametrize(
    ("library", "version", "known"),
    [
        ("starlette", "0.39.2", "starlette 0.40 to 1.x, and not 0.39.2"),
        ("starlette", "2.0.0", "starlette 0.40 to 1.x, and not 2.0.0"),
        ("fastapi", "0.117.1", "fastapi 0.118 to 0.x, and not 0.117.1"),
        ("fastapi", "1.0", "fastapi 0.118 to 0.x, and not 1.0"),
    ],
)
def test_another_version_is_refused(library: str, version: str, known: str, monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"starlette": "0.40.0", "fastapi": "0.118.0", library: version}
    monkeypatch.setattr(importlib.metadata, "version", versions.__getitem__)
    with pytest.raises(UnfazedError, match=f"knows {known}"):
        install()
    assert not is_installed()


def not_there(library: str) -> str:
    raise importlib.metadata.PackageNotFoundError(library)


def test_it_needs_starlette(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", not_there)
    with pytest.raises(UnfazedError, match="needs Starlette, which is not installed"):
        install()


def test_it_does_without_fastapi(monkeypatch: pytest.MonkeyPatch) -> None:
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: (not_there if name == "fastapi" else version)(name))
    with install():
        assert is_installed()


# ---- what is imported when


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
    """A FastAPI that has nothing but the file of which ours is, so that what it takes is known; return the file."""
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


when = pytest.mark.parametrize("when", ["before", "after"])


@when
@pytest.mark.anyio
async def test_a_context_manager_takes_no_slot_whenever_it_is_imported(
    when: str, fastapi: Path, recorded: Recorded
) -> None:
    """Requests that wait for a connection do not starve the one that has it, which needs the only slot."""
    limit_threads(1)
    connections = Connections()
    if when == "before":
        importlib.import_module("fastapi.concurrency")
    with install(), anyio.fail_after(GRACE_SECONDS):
        theirs = importlib.import_module("fastapi.concurrency")
        first_has_it = anyio.Event()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connect_and_query, connections, theirs, "the first", first_has_it.set)
            await first_has_it.wait()
            tasks.start_soon(connect_and_query, connections, theirs, "the second", None)

        assert theirs.run_sync is _calls.run_sync
    assert theirs.run_sync is not _calls.run_sync
    assert recorded.theirs == []
    assert connections.events == [
        f"the {which} {does}" for which in ("first", "second") for does in ("has it", "queries", "gives it back")
    ]


@pytest.mark.anyio
async def test_a_context_manager_is_told_of_exceptions_and_can_suppress_them(fastapi: Path) -> None:
    @contextmanager
    def returning(value: Any) -> Iterator[Any]:
        with suppress(LookupError):
            yield value

    async def seven() -> int:
        return 7

    with install():
        theirs = importlib.import_module("fastapi.concurrency")
        async with theirs.contextmanager_in_threadpool(returning(seven())) as coroutine:
            assert await coroutine == 7
            raise LookupError
        with pytest.raises(ZeroDivisionError):
            async with theirs.contextmanager_in_threadpool(returning(0)):
                raise ZeroDivisionError


@pytest.mark.anyio
async def test_a_cancellation_that_is_pending_as_a_context_manager_is_left_does_not_interrupt_the_response(
    fastapi: Path,
) -> None:
    left: list[Any] = []

    @contextmanager
    def manager() -> Iterator[None]:
        yield
        left.append(threading.get_ident())

    with install(), anyio.CancelScope() as scope:
        theirs = importlib.import_module("fastapi.concurrency")
        async with theirs.contextmanager_in_threadpool(manager()):
            scope.cancel()
        left.append("goes on")
    assert left[1:] == ["goes on"]


def test_a_module_is_loaded_as_without_it(fastapi: Path) -> None:
    without: Any = importlib.import_module("fastapi.concurrency")
    del sys.modules["fastapi.concurrency"]
    with install():
        spec = importlib.util.find_spec("fastapi.concurrency")
        assert spec is not None
        loader: Any = spec.loader
        assert loader.get_source("fastapi.concurrency") == FASTAPI
        module: Any = importlib.import_module("fastapi.concurrency")
        assert type(module.__loader__) is type(module.__spec__.loader) is type(without.__loader__)
        assert importlib.reload(module).run_sync is _calls.run_sync
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module("fastapi.missing")
    assert module.run_sync is not _calls.run_sync
    assert _install._finder.find_spec("fastapi.concurrency") is None


def test_other_finders_are_asked_as_without_it(fastapi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder:
        """Finds one module, which has no loader of the kind that can be followed."""

        def find_spec(self, name: str, path: Any, target: Any = None) -> ModuleSpec | None:
            return ModuleSpec(name, None) if name == "fastapi.special" else None

    monkeypatch.setattr(sys, "meta_path", [object(), Finder(), *sys.meta_path])  # the first one is of an old kind
    with install():
        spec = importlib.util.find_spec("fastapi.special")
        assert spec is not None
        assert spec.loader is None
        assert importlib.import_module("fastapi.concurrency").run_sync is _calls.run_sync


def test_what_is_loaded_after_it_has_been_uninstalled_is_left_alone(fastapi: Path) -> None:
    with install():
        spec = importlib.util.find_spec("fastapi.concurrency")
        assert spec is not None
    module: Any = importlib.util.module_from_spec(spec)
    assert spec.loader is not None
    spec.loader.exec_module(module)

    assert module.run_sync is anyio.to_thread.run_sync


def test_a_version_that_comes_later_and_does_not_fit_is_refused_as_it_is_imported(fastapi: Path) -> None:
    fastapi.write_text(FASTAPI.replace("threadpool(cm)", "threadpool(cm, more)"))
    with install(), pytest.raises(UnfazedError, match=r"contextmanager_in_threadpool\(\) .* in fastapi.concurrency"):
        importlib.import_module("fastapi.concurrency")


@pytest.mark.parametrize("fails", [False, True], ids=["loaded", "failed"])
def test_it_waits_for_what_another_thread_is_importing(
    fails: bool, fastapi: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else that would miss it: its loader is not ours, and its names are not there yet."""
    begun, may_end = threading.Event(), threading.Event()
    monkeypatch.setattr(sys, "begun", begun, raising=False)
    monkeypatch.setattr(sys, "may_end", may_end, raising=False)
    waiting = f"import sys\nsys.begun.set()\nassert sys.may_end.wait({GRACE_SECONDS})\n"
    fastapi.write_text(waiting + FASTAPI + ("raise LookupError\n" if fails else ""))
    results: list[Any] = []

    def import_it() -> None:
        try:
            results.append(importlib.import_module("fastapi.concurrency").run_sync)
        except LookupError as exc:
            results.append(exc)

    importing = threading.Thread(target=import_it)
    installing = threading.Thread(target=install)
    importing.start()
    assert begun.wait(GRACE_SECONDS)
    installing.start()
    try:
        while "import_module" not in names_of_frames(installing):
            assert installing.is_alive()
        may_end.set()
        installing.join(GRACE_SECONDS)
        importing.join(GRACE_SECONDS)
        assert not installing.is_alive()
        assert is_installed()
        if not fails:
            assert sys.modules["fastapi.concurrency"].run_sync is _calls.run_sync
    finally:
        may_end.set()
        uninstall()
    assert len(results) == 1


def names_of_frames(thread: threading.Thread) -> list[str]:
    names = []
    frame = sys._current_frames().get(thread.ident or 0)
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


PROGRAM = """
import sys
{0}
import anyio, threading
from starlette.concurrency import run_in_threadpool
import starlette.staticfiles
{1}
from unfazed.concurrency._core import _limits
print(anyio.run(run_in_threadpool, _limits.current_slot.get) is not None, starlette.staticfiles.anyio is not anyio)
"""
INSTALL = "import unfazed_compat.starlette as ours; ours.install(); "
IMPORTED_NOTHING = "assert not {'starlette', 'fastapi'} & set(sys.modules)"


@pytest.mark.parametrize("lines", [(INSTALL + IMPORTED_NOTHING, ""), ("", INSTALL)], ids=["first", "last"])
def test_it_may_come_first_or_last_in_a_program(lines: tuple[str, str]) -> None:
    program = [sys.executable, "-c", PROGRAM.format(*lines)]
    done = subprocess.run(program, capture_output=True, text=True, timeout=GRACE_SECONDS * 3, check=False)

    assert (done.stdout, done.stderr) == ("True True\n", "")


# ---- what comes between


def test_an_interrupted_install_can_be_undone(fastapi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever a signal handler raises, and wherever: uninstalling puts all back."""
    names = ("fastapi.concurrency", "starlette.concurrency", "starlette.responses")
    few = {name: importlib.import_module(name) for name in names}  # or else it takes minutes
    monkeypatch.setattr(_install, "_loaded", lambda: few)
    before, finders = snapshot(), list(sys.meta_path)
    when, reached = 0, True
    while reached:
        when += 1 + when // 20  # each of the first ones, and samples of those that are repeated
        reached = False
        # Python looks for signals after calls and jumps, and so not between a `with` and its lock, as this does
        monkeypatch.setattr(_install, "_lock", threading.RLock())
        for change in (install, uninstall):
            with Steps(raise_alarm, when, FOLDER) as steps, suppress(Alarm):
                change()
            reached = reached or steps.reached
        uninstall()
        assert (snapshot(), sys.meta_path) == (before, finders), steps.where


@pytest.mark.anyio
async def test_requests_are_served_while_threads_install_and_uninstall(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {name: sys.modules[name] for name in ("starlette.concurrency", "starlette.responses")}  # and so more often
    monkeypatch.setattr(_install, "_loaded", lambda: few)
    before = snapshot()

    def change() -> None:
        for _ in range(30):
            with install():
                pass
            install()
            uninstall()

    threads = [threading.Thread(target=change) for _ in range(2)]
    for thread in threads:
        thread.start()
    kinds: list[Any] = [endpoint_function, background_task, file_response, streaming_response, upload_file]
    try:
        for number in itertools.count():
            async with anyio.create_task_group() as tasks:
                for kind in kinds:
                    folder = tmp_path / f"{number}-{kind.__name__}"
                    folder.mkdir()
                    tasks.start_soon(kind, folder)
            if not any(thread.is_alive() for thread in threads):
                break
    finally:
        for thread in threads:
            thread.join(GRACE_SECONDS)
        uninstall()
    assert snapshot() == before
