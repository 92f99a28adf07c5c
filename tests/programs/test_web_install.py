"""`install()` with FastAPI: in this process, and under real servers that are started as their users do.

The tox environment `web` has what it takes, and demands it.
"""

import itertools
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import anyio
import anyio.to_thread
import pytest

if "UNFAZED_TEST_WEB" not in os.environ:
    for name in ("fastapi", "httpx", "hypercorn", "PIL", "trio", "uvicorn"):
        pytest.importorskip(name)

import httpx
from conftest import GRACE_SECONDS, limit_threads, wait_until
from connections import Connections, until
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException, Request, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.formparsers import MultiPartParser
from starlette.staticfiles import StaticFiles
from starlette_helpers import Gauge, Recorded, installed, recorded
from test_web import Server, all_at_once, gallery, two_requests, with_client
from unfazed_compat.starlette import _calls, install

assert installed and recorded  # fixtures

TESTS = Path(__file__).parent
SPOOLED_BYTES = MultiPartParser.spool_max_size


# ---- every thread call that FastAPI makes


async def get(app: FastAPI, path: str = "/") -> httpx.Response:
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
        return await client.get(path)


async def endpoint_function() -> None:
    app = FastAPI()

    @app.get("/")
    def endpoint() -> dict[str, int]:
        return {"seven": 7}

    assert (await get(app)).json() == {"seven": 7}


async def endpoint_object() -> None:
    class Endpoint:
        def __call__(self) -> int:
            return 7

    app = FastAPI()
    app.get("/", response_model=None)(Endpoint())
    assert (await get(app)).json() == 7


async def dependency() -> None:
    def seven() -> int:
        return 7

    app = FastAPI()

    @app.get("/")
    async def endpoint(number: int = Depends(seven)) -> int:
        return number

    assert (await get(app)).json() == 7


async def dependency_with_yield() -> None:
    threads: set[int] = set()

    def seven() -> Iterator[int]:
        threads.add(threading.get_ident())
        yield 7
        threads.add(threading.get_ident())

    app = FastAPI()

    @app.get("/")
    async def endpoint(number: int = Depends(seven)) -> int:
        return number

    assert (await get(app)).json() == 7
    assert threading.get_ident() not in threads


async def exception_handler() -> None:
    app = FastAPI()

    @app.exception_handler(LookupError)
    def handler(request: Request, exc: Exception) -> JSONResponse:
        return JSONResponse(str(exc), 404)

    @app.get("/")
    async def endpoint() -> None:
        raise LookupError("missing")

    assert (await get(app)).json() == "missing"


async def background_tasks() -> None:
    app = FastAPI()
    done: list[int] = []

    def task(number: int) -> None:
        done.append(number)

    @app.get("/")
    async def endpoint(tasks: BackgroundTasks) -> None:
        tasks.add_task(task, 7)

    assert (await get(app)).status_code == 200
    assert done == [7]


async def stream() -> None:
    app = FastAPI()

    @app.get("/", response_class=StreamingResponse)
    def endpoint() -> Any:
        return StreamingResponse(iter(["one", "two"]))

    assert (await get(app)).text == "onetwo"


# what calls threads, and what is called there, if not more: what the response model says is checked there as well
KINDS: dict[Callable[[], Any], set[str]] = {
    endpoint_function: {"endpoint"},
    endpoint_object: {"endpoint"},
    dependency: {"seven"},
    dependency_with_yield: set(),
    exception_handler: {"handler"},
    background_tasks: {"task"},
    stream: {"endpoint", "iterate"},
}


def names(recorded: list[str]) -> set[str]:
    """Return what has been called, by the names above: newer ones call endpoints by way of a function of theirs."""
    return {"endpoint" if name in ("_run_sync_endpoint", "Endpoint") else name for name in recorded}


kinds = pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)


@kinds
@pytest.mark.anyio
async def test_all_that_fastapi_calls_in_threads_is_called_by_ours(
    kind: Any, installed: None, recorded: Recorded
) -> None:
    await kind()

    assert recorded.theirs == []
    assert names(recorded.ours) >= KINDS[kind]
    assert bool(recorded.ours) == bool(KINDS[kind])


@kinds
@pytest.mark.anyio
async def test_without_it_the_same_is_called_by_theirs(kind: Any, recorded: Recorded) -> None:
    await kind()

    assert recorded.ours == []
    assert names(recorded.theirs) >= {"_next" if name == "iterate" else name for name in KINDS[kind]}
    assert recorded.theirs


def test_telemetry_is_sent_by_ours(installed: None) -> None:
    runtime = pytest.importorskip("fastapi.telemetry._runtime")

    assert runtime.run_sync is _calls.run_sync


# ---- one limit


@pytest.mark.anyio
async def test_there_is_one_limit_for_requests_of_all_kinds(
    installed: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """More dependencies than threads wait for a connection. They hold up nobody, and nothing else exceeds the limit."""
    limit_threads(4)
    gauge, free, wanted = Gauge(4), threading.Semaphore(0), itertools.count(1)
    many_wait = threading.Event()
    app = FastAPI()
    (tmp_path / "file.txt").write_bytes(b"content")
    app.mount("/static", StaticFiles(directory=tmp_path))

    def connection() -> Iterator[str]:
        if next(wanted) == 20:
            many_wait.set()
        with free:
            yield "connected"

    @app.get("/connected")
    def connected(connection: Annotated[str, Depends(connection)]) -> str:
        return connection

    @app.post("/upload")
    def upload(file: UploadFile) -> int:
        return len(file.file.read())

    async def ask_for_a_connection() -> None:
        assert (await get(app, "/connected")).json() == "connected"

    async def ask_for_a_file() -> None:
        assert (await get(app, "/static/file.txt")).content == b"content"

    async def send_a_file() -> None:
        content = b"0" * (SPOOLED_BYTES + 1)  # so that it is written to disk, in a thread
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as client:
            assert (await client.post("/upload", files={"file": content})).json() == len(content)

    async def release_the_connection() -> None:
        await until(many_wait.is_set)
        free.release()

    monkeypatch.setattr(_calls, "boxed", gauge.counted(_calls.boxed))
    monkeypatch.setattr(_calls, "iterate", gauge.counted_steps(_calls.iterate))
    each = [*KINDS, *[ask_for_a_connection] * 3, ask_for_a_file, send_a_file]
    with anyio.fail_after(GRACE_SECONDS * 3):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(release_the_connection)
            for kind in itertools.islice(itertools.cycle(each), 200):
                tasks.start_soon(kind)

    assert gauge.most == 4


# ---- dependencies that wait for each other


async def starve(connections: Connections) -> None:
    """Make two requests, of which the second one waits for the connection in the only thread."""

    async def see_them_wait_for_each_other() -> None:
        limiter = anyio.to_thread.current_default_thread_limiter()
        with anyio.fail_after(GRACE_SECONDS):
            while limiter.statistics().tasks_waiting != 1:
                await anyio.sleep(0.001)
        assert connections.events == ["the first has it"]
        connections.broken.set()  # else they would wait for ever

    await two_requests(gallery("theirs", connections), see_them_wait_for_each_other)


@pytest.mark.parametrize("when", ["before the app is made", "after the app is made"])
@pytest.mark.anyio
async def test_dependencies_with_yield_starve_nobody_and_the_program_stays_as_it_is(when: str) -> None:
    limit_threads(1)
    without = Connections()
    await starve(without)
    assert "the second has it" not in without.events

    connections = Connections()
    app = gallery("theirs", connections) if when == "after the app is made" else None
    with install(), anyio.fail_after(GRACE_SECONDS):  # if it hangs
        await two_requests(app or gallery("theirs", connections), anyio.lowlevel.checkpoint)
    assert connections.events == [
        f"the {which} {does}" for which in ("first", "second") for does in ("has it", "queries", "gives it back")
    ]


@pytest.mark.anyio
async def test_a_dependency_is_told_of_the_http_exception_and_may_raise_another(installed: None) -> None:
    app = FastAPI()
    told: list[Any] = []

    def dependency() -> Iterator[None]:
        try:
            yield
        except HTTPException as exc:
            told.append(exc.detail)
            raise HTTPException(409, "conflict") from exc

    @app.get("/", dependencies=[Depends(dependency)])
    def endpoint() -> None:
        raise HTTPException(404, "missing")

    response = await get(app)
    assert (response.status_code, response.json()) == (409, {"detail": "conflict"})
    assert told == ["missing"]


@pytest.mark.anyio
async def test_a_dependency_may_return_a_coroutine(installed: None) -> None:
    app = FastAPI()

    async def fetch() -> int:
        return 7

    def dependency() -> Any:
        return fetch()

    def with_yield() -> Any:
        yield fetch()

    @app.get("/")
    async def endpoint(one: Annotated[Any, Depends(dependency)], other: Annotated[Any, Depends(with_yield)]) -> int:
        result: int = await one + await other
        return result

    assert (await get(app)).json() == 14


# ---- in real servers

COMMANDS = {
    "uvicorn": f"uvicorn --loop asyncio --port 0 --app-dir {TESTS} web_program:app",
    "uvicorn on uvloop": f"uvicorn --loop uvloop --port 0 --app-dir {TESTS} web_program:app",
    "hypercorn on asyncio": f"hypercorn --bind 127.0.0.1:0 {TESTS}/web_program:app",
    "hypercorn on uvloop": f"hypercorn --worker-class uvloop --bind 127.0.0.1:0 {TESTS}/web_program:app",
    "hypercorn on trio": f"hypercorn --worker-class trio --bind 127.0.0.1:0 {TESTS}/web_program:app",
}
REQUESTS = 200


@pytest.fixture(params=COMMANDS)
def server(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    if "uvloop" in request.param:
        pytest.importorskip("uvloop")
    if "trio" not in request.param:  # on which Django does not run
        monkeypatch.setenv("DJANGO", "yes")
    server = Server(COMMANDS[request.param], tmp_path)
    server.has_django = "trio" not in request.param  # type: ignore[attr-defined]
    yield server
    server.kill()
    sys.stdout.write(server.log)  # which pytest shows where the test has failed


async def use_everything(client: httpx.AsyncClient, *, django: bool) -> None:
    async def item(number: int) -> None:
        answer = (await client.get(f"/items/{number}")).json()
        assert answer == {"doubled": 2 * number, "connected": "connected", "sum": 3 * number}

    async def lines(number: int) -> None:
        assert (await client.get("/lines")).text.split() == [str(each) for each in range(100)]

    async def file(number: int) -> None:
        assert (await client.get("/file")).content == (TESTS / "web_program.py").read_bytes()

    async def task(number: int) -> None:
        assert (await client.get("/task", params={"number": number})).status_code == 200

    async def missing(number: int) -> None:
        assert (await client.get("/missing")).status_code == 404

    async def sync_view(number: int) -> None:
        assert (await client.get("/django/sync")).text == "7"

    async def async_view(number: int) -> None:
        assert (await client.get("/django/async")).text == "42"

    order = random.Random(3)
    kinds = [item, lines, file, task, missing, *([sync_view, async_view] if django else [])]
    await all_at_once([partial(order.choice(kinds), number) for number in range(REQUESTS)])


def test_every_response_is_right_and_nothing_is_left(server: Server) -> None:
    with_client(server, partial(use_everything, django=server.has_django))  # type: ignore[attr-defined]

    server.end(signal.SIGTERM)


def test_requests_that_run_are_answered_when_the_server_is_told_to_end(server: Server) -> None:
    responses: list[httpx.Response] = []

    def make_request() -> None:
        responses.append(httpx.get(f"{server.address}/slow", timeout=GRACE_SECONDS * 3))

    thread = threading.Thread(target=make_request)
    thread.start()
    wait_until(lambda: "a request is running" in server.log, "no request is running")
    server.end(signal.SIGTERM)
    thread.join(GRACE_SECONDS)

    assert [(each.status_code, each.json()) for each in responses] == [(200, "done")]
