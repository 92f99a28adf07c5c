"""The example for FastAPI, under real servers that are started as their users do; and FastAPI in this process.

The tox environment `web` has what it takes, and demands it.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
import unfazed_compat.starlette as ours
from conftest import GRACE_SECONDS, limit_threads, wait_until
from connections import Connections, until

if "UNFAZED_TEST_WEB" not in os.environ:
    for name in ("fastapi", "httpx", "hypercorn", "PIL", "psutil", "trio", "uvicorn"):
        pytest.importorskip(name)

import httpx
import psutil
from fastapi import Depends, FastAPI
from PIL import Image

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Sequence

EXAMPLES = Path(__file__).parents[2] / "examples"
SCRIPTS = Path(sys.executable).parent

PHOTOS = 24
REQUESTS = 300
CLIENTS = 100  # more at once than there are threads and connections to the database

COMMANDS = {
    "uvicorn": f"uvicorn --port 0 --app-dir {EXAMPLES} fastapi_app:app",
    "hypercorn on asyncio": f"hypercorn --bind 127.0.0.1:0 {EXAMPLES}/fastapi_app:app",
    "hypercorn on trio": f"hypercorn --worker-class trio --bind 127.0.0.1:0 {EXAMPLES}/fastapi_app:app",
}


class Server:
    """A server in a process of its own, with its children in a group of their own."""

    def __init__(self, command: str, folder: Path) -> None:
        self._log = folder / "log"
        program, *options = command.split()
        with self._log.open("wb") as log:
            self.process = psutil.Popen(
                [SCRIPTS / program, *options],
                env={**os.environ, "PHOTOS": str(folder / "photos.sqlite"), "PYTHONWARNINGS": "default"},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        wait_until(lambda: self.address or self.process.poll() is not None, f"it does not start: {self.log}")
        assert self.address, self.log

    @property
    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    @property
    def address(self) -> str | None:
        found = re.search(r"unning on (http://127.0.0.1:\d+)", self.log)
        return found and found[1]

    def end(self, by: signal.Signals) -> None:
        """End it as its users do, and check that it leaves nothing behind."""
        processes = [self.process, *self.process.children(recursive=True)]
        if by is signal.SIGINT:  # Ctrl-C in a terminal, for the whole group
            os.killpg(self.process.pid, by)
        else:
            self.process.send_signal(by)
        assert self.process.wait(GRACE_SECONDS) in (0, -by, 128 + by), self.log
        wait_until(lambda: not any(each.is_running() for each in processes), f"a process is left: {processes}")
        assert not re.search("Traceback|Warning|Error|Exception", self.log), self.log

    def kill(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(GRACE_SECONDS)


@pytest.fixture(params=COMMANDS)
def server(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    server = Server(COMMANDS[request.param], tmp_path)
    yield server
    server.kill()
    print(server.log)  # which pytest shows where the test has failed


def photo(number: int) -> bytes:
    """Return a photo that differs from all others, in its size too."""
    data = io.BytesIO()
    Image.effect_mandelbrot((100 + number, 80 + number), (-2.0, -1.5, 1.0, 1.5), 20 + number).save(data, "png")
    return data.getvalue()


def thumbnail(data: bytes) -> bytes:
    image = Image.open(io.BytesIO(data))
    image.thumbnail((32, 32))
    out = io.BytesIO()
    image.save(out, "png")
    return out.getvalue()


async def all_at_once(calls: Sequence[Callable[[], Any]]) -> None:
    """Make the calls, so many at once as there are clients."""
    clients = anyio.CapacityLimiter(CLIENTS)

    async def make(call: Callable[[], Any]) -> None:
        async with clients:
            await call()

    async with anyio.create_task_group() as tasks:
        for call in calls:
            tasks.start_soon(make, call)


def with_client(server: Server, use: Callable[[httpx.AsyncClient], Any]) -> None:
    async def main() -> None:
        # a connection for each request: one that is kept may be closed by the server as it is used again
        limits = httpx.Limits(max_connections=CLIENTS, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=str(server.address), timeout=GRACE_SECONDS * 3, limits=limits) as client:
            await use(client)

    anyio.run(main)


async def store_photos(client: httpx.AsyncClient) -> dict[int, int]:
    """Store photos, and return which is which by their numbers in the database."""
    stored: dict[int, int] = {}

    async def store(number: int) -> None:
        response = await client.post("/photos", params={"name": f"photo {number}"}, content=photo(number))
        assert response.status_code == 201, response.text
        stored[response.json()["number"]] = number

    await all_at_once([partial(store, number) for number in range(PHOTOS)])

    assert sorted(stored) == list(range(1, PHOTOS + 1))
    assert sorted(stored.values()) == list(range(PHOTOS))
    return stored


async def wait_until_idle(client: httpx.AsyncClient) -> None:
    """Wait until the server has put everything away: a dependency ends after its response."""
    with anyio.fail_after(GRACE_SECONDS):
        while (await client.get("/state")).json() != {"connections in use": 0, "abandoned threads": 0}:
            await anyio.sleep(0.01)


async def use_everything(client: httpx.AsyncClient) -> None:
    stored = await store_photos(client)
    lines = [{"number": number, "name": f"photo {stored[number]}"} for number in sorted(stored)]
    thumbnails = {number: thumbnail(photo(number)) for number in range(PHOTOS)}

    async def show(number: int) -> None:
        which = stored[number]
        answer = (await client.get(f"/photos/{number}")).json()
        assert answer == {"name": f"photo {which}", "worth": (100 + which) * (80 + which)}

    async def show_thumbnail(number: int) -> None:
        response = await client.get(f"/photos/{number}/thumbnail")
        assert response.headers["content-type"] == "image/png"
        assert response.content == thumbnails[stored[number]]

    async def list_photos(number: int) -> None:
        async with client.stream("GET", "/photos", params={"times": 2}) as response:
            assert [json.loads(line) async for line in response.aiter_lines()] == lines * 2

    async def leave(number: int) -> None:
        """Drop the connection in the midst of a response that would go on for minutes."""
        async with client.stream("GET", "/photos", params={"times": 100_000}) as response:
            assert json.loads(await anext(response.aiter_lines())) == lines[0]

    async def miss(number: int) -> None:
        assert (await client.get(f"/photos/{number + PHOTOS}")).status_code == 404

    async def show_calls(number: int) -> None:
        inside = (await client.get("/calls")).json()
        assert inside["statistics"]["calls"]["processpool"]["returned"] >= PHOTOS
        assert inside["dump"][0].startswith("Calls of process ")
        text = await client.get("/calls", headers={"Accept": "text/html"})
        assert text.headers["content-type"] == "text/plain; charset=utf-8"
        assert text.text.startswith("Calls of process ")

    order = random.Random(3)
    kinds = [show, show_thumbnail, list_photos, leave, miss, show_calls]
    calls = [partial(order.choice(kinds), order.randint(1, PHOTOS)) for _ in range(REQUESTS)]
    await all_at_once(calls)
    await wait_until_idle(client)


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT], ids=["terminated", "Ctrl-C"])
def test_every_response_is_right_and_nothing_is_left(server: Server, by: signal.Signals) -> None:
    with_client(server, use_everything)

    server.end(by)


# In this process: dependencies that wait for each other


def gallery(whose: str, connections: Connections) -> FastAPI:
    """Return an app whose one endpoint has a connection, and uses it in a thread."""
    app = FastAPI()

    def connect(name: str) -> Iterator[str]:
        with connections.connection(name) as connection:
            yield connection

    async def connect_with_ours(name: str) -> AsyncIterator[str]:
        async with ours.contextmanager_in_threadpool(connections.connection(name)) as connection:
            yield connection

    connection = Depends(connect if whose == "theirs" else connect_with_ours)

    async def let_the_second_come(name: str, connection: str = connection) -> str:
        if name == "the first":
            connections_seen.set()
            await until(connections.wanted.is_set)
        return connection

    connections_seen = threading.Event()
    app.state.first_has_it = connections_seen

    def query(name: str, connection: str = Depends(let_the_second_come)) -> str:
        connections.query(name)
        return connection

    async def query_with_ours(name: str, connection: str = Depends(let_the_second_come)) -> str:
        await ours.run_in_threadpool(connections.query, name)
        return connection

    app.get("/")(query_with_ours if whose == "ours alone" else query)
    return app


async def two_requests(app: FastAPI, while_the_second_waits: Callable[[], Any]) -> None:
    """Make a request that has the connection, and then one that wants it."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        httpx.AsyncClient(transport=transport, base_url="http://gallery") as client,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(partial(client.get, "/", params={"name": "the first"}))
        await until(app.state.first_has_it.is_set)
        tasks.start_soon(partial(client.get, "/", params={"name": "the second"}))
        await while_the_second_waits()


@pytest.mark.anyio
async def test_dependencies_of_fastapi_starve_the_request_that_they_wait_for() -> None:
    limit_threads(1)
    connections = Connections()

    async def see_them_wait_for_each_other() -> None:
        limiter = anyio.to_thread.current_default_thread_limiter()
        await until(lambda: limiter.statistics().tasks_waiting == 1)
        assert connections.events == ["the first has it"]
        connections.broken.set()  # else they would wait for ever

    await two_requests(gallery("theirs", connections), see_them_wait_for_each_other)

    assert "the second has it" not in connections.events


@pytest.mark.parametrize("whose", ["ours alone", "ours, and an endpoint of theirs"])
@pytest.mark.anyio
async def test_dependencies_that_use_ours_do_not(whose: str) -> None:
    limit_threads(1)
    connections = Connections()

    with anyio.fail_after(GRACE_SECONDS):  # if it hangs
        await two_requests(gallery(whose, connections), anyio.lowlevel.checkpoint)

    assert connections.events == [
        f"the {which} {does}" for which in ("first", "second") for does in ("has it", "queries", "gives it back")
    ]
