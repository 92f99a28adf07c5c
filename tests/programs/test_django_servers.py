"""The site in `examples/django_site`, as its users run it: each server from the command line, over real connections.

Only the tox environments `django` and `django52` have the servers.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from threading import BoundedSemaphore
from typing import TYPE_CHECKING

import pytest
from conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

if "UNFAZED_TEST_DJANGO" not in os.environ:
    pytest.skip("`tox -e django` runs it", allow_module_level=True)

import psutil

SITE = Path(__file__).parents[2] / "examples" / "django_site"
NAMES = [f"guest {number}" for number in range(1, 41)]
DROP_EVERY = 10  # requests
KINDS = ("sign", *("sync", "async", "stream sync") * 2, "async", "sync", "stream async")
AT_A_TIME = 50
LOOP_THREADS = min(32, (os.cpu_count() or 1) + 4)  # that asyncio lets a loop have, and keeps
SECONDS = 60  # in which a server starts, answers and ends; only a hang takes that long

pytestmark = pytest.mark.timeout(180)


@dataclass
class Way:
    """A server as its users start it."""

    command: str
    address: str = "--bind 127.0.0.1:0"
    is_async: bool = False
    processes: int = 1  # in which it calls the site
    threads: int = 1  # in each
    requests: int = 1_500
    ended: int = 0  # its exit status after SIGTERM


WAYS = {
    "gunicorn, prefork": Way("gunicorn --workers 2 guestbook.wsgi", processes=2),
    "gunicorn, loaded before the fork": Way("gunicorn --workers 2 --preload guestbook.wsgi", processes=2, requests=400),
    "gunicorn, threads": Way("gunicorn --threads 8 guestbook.wsgi", threads=8),
    "uvicorn": Way("uvicorn guestbook.asgi:application", "--port 0", is_async=True, ended=-signal.SIGTERM),
    "hypercorn": Way("hypercorn guestbook.asgi:application", is_async=True),
}


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment of all commands, with a guest book that everybody in NAMES has signed."""
    database = tmp_path_factory.mktemp("site") / "guestbook.sqlite3"
    environment = {**os.environ, "GUESTBOOK_DATABASE": str(database)}
    manage(environment, "migrate")
    assert manage(environment, "sign", *NAMES) == f"{len(NAMES)} entries\n"
    return environment


def manage(environment: dict[str, str], *arguments: str) -> str:
    """Run a command of the site, and return what it says."""
    command = [sys.executable, "-W", "error", "manage.py", *arguments]
    done = subprocess.run(
        command, cwd=SITE, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


class Server:
    """A server that runs."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log
        wait_until(self._find_port, "the server does not start")

    def _find_port(self) -> bool:
        found = re.search(r"http://127\.0\.0\.1:(\d+)", self.log())
        assert found or self.process.poll() is None, self.log()
        self.port = int(found[1]) if found else 0
        return bool(found)

    def log(self) -> str:
        return self._log.read_text(encoding="utf-8")

    def processes(self) -> list[psutil.Process]:
        this = psutil.Process(self.process.pid)
        return [this, *this.children(recursive=True)]

    def get(self, path: str, visitor: str = "nobody") -> tuple[int, dict[str, str], str]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=SECONDS)
        try:
            connection.request("GET", path, headers={"Visitor": visitor})
            response = connection.getresponse()
            return response.status, {k.title(): v for k, v in response.getheaders()}, response.read().decode()
        finally:
            connection.close()

    def drop(self, path: str, expected: bytes = b"") -> None:
        """Make a request, and tear the connection down when *expected* has come."""
        with socket.create_connection(("127.0.0.1", self.port), SECONDS) as connection:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            received = b""
            while expected not in received:
                data = connection.recv(65536)
                assert data, received
                received += data


@contextmanager
def serving(command: str, environment: dict[str, str], folder: Path) -> Iterator[Server]:
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *command.split()],
            cwd=SITE,
            env={**environment, "HOME": str(folder)},  # gunicorn leaves a socket there
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield Server(process, log)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


signing = BoundedSemaphore(4)  # SQLite lets one of many writers wait for ever


def visit(server: Server, number: int) -> None:
    """Make one of all kinds of requests, and check every word of the response."""
    visitor, entry = f"visitor {number}", number % len(NAMES)
    following = NAMES[entry + 1] if entry + 1 < len(NAMES) else None
    shown = {"visitor": visitor, "entry": NAMES[entry], "following": following}
    path, greeting, expected = {
        "sign": ("/sign/", "none", {"seen": 1, "kept": 0}),
        "sync": (f"/sync/{entry + 1}/", f"sync {visitor}", shown),
        "async": (f"/async/{entry + 1}/", f"async {visitor}", shown),
        "stream sync": ("/stream/sync/", "none", NAMES),
        "stream async": ("/stream/async/", "none", NAMES),
    }[KINDS[number % len(KINDS)]]

    with signing if path == "/sign/" else nullcontext():
        status, headers, body = server.get(path, visitor)

    assert status == 200, server.log()
    assert (headers["Greeting"], headers["Entries"]) == (greeting, str(len(NAMES)))
    assert (body.splitlines() if "stream" in path else json.loads(body)) == expected


def left_over(server: Server, way: Way, database: str, clean: set[int]) -> list[object]:
    """Return what is left over, and add to *clean* the process that says there is nothing."""
    processes = server.processes()
    left: list[object] = [
        (process.pid, target) for process in processes for target in open_files(process) if target.startswith(database)
    ]
    report = json.loads(server.get("/report/")[2])
    threads = Counter(re.sub(r"\d+$", "", name) for name in report["threads"])
    allowed = Counter(
        {
            "MainThread": 1,
            "ThreadPoolExecutor-0_": way.threads,  # gunicorn's
            "unfazed-async-to-sync-": 0 if way.is_async else way.threads,
            "unfazed-thread-sensitive-": int(way.is_async),  # of the report
            "asyncio_": LOOP_THREADS * way.threads,
            "uvloop_": LOOP_THREADS if way.is_async else 0,
        }
    )
    left += [*(threads - allowed), *(["a stream"] * report["streams"])]
    if not left:
        clean.add(report["process"])
    missing = way.processes - len(clean)
    return [*left, *([f"{missing} processes have not said that they are clean"] if missing else [])]


def open_files(process: psutil.Process) -> Iterator[str]:
    for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            yield str(descriptor.readlink())


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_response_is_right_and_nothing_is_left_over(
    way: Way, environment: dict[str, str], tmp_path: Path
) -> None:
    """Though connections are dropped: before a view has answered, and in the middle of a stream."""
    with serving(f"{way.command} {way.address}", environment, tmp_path) as server:
        with ThreadPoolExecutor(AT_A_TIME) as executor:
            calls: list[Future[None]] = []
            for number in range(way.requests):
                calls.append(executor.submit(visit, server, number))
                if number % DROP_EVERY == 0:
                    calls += [executor.submit(server.drop, f"/{kind}/1/") for kind in ("sync", "async")]
                    endless = f"/endless/{'async' if way.is_async else 'sync'}/"
                    calls.append(executor.submit(server.drop, endless, f"{NAMES[0]}\n".encode()))
            for call in calls:
                call.result()
        inside = json.loads(server.get("/calls/")[2])
        assert inside["dump"][0].startswith("Calls of process ")
        assert "limiters" in inside["statistics"]

        left: list[object] = []
        clean: set[int] = set()

        def nothing_is_left() -> bool:
            left[:] = left_over(server, way, environment["GUESTBOOK_DATABASE"], clean)
            return not left

        with suppress(AssertionError):
            wait_until(nothing_is_left, "")
        assert left == []

        processes = server.processes()
        server.process.terminate()
        assert server.process.wait(SECONDS) == way.ended
        assert not psutil.wait_procs(processes, SECONDS)[1]
        assert "Traceback" not in server.log()


def test_djangos_handler_does_not_run_on_trio(environment: dict[str, str], tmp_path: Path) -> None:
    """It starts asyncio's tasks for each request. When it does no more, this is to become one of the ways above."""
    command = "hypercorn --worker-class trio --bind 127.0.0.1:0 guestbook.asgi:application"
    with serving(command, environment, tmp_path) as server:
        assert server.get("/async/1/")[0] == 500

        # the newest Django, and 5.2
        reasons = r"RuntimeError: no running event loop|TypeError: trio\.run received .* <_GatheringFuture"
        wait_until(lambda: re.search(reasons, server.log()), "it fails for another reason")
        server.process.terminate()
        assert server.process.wait(SECONDS) == 0


def test_the_commands_of_the_site_work(environment: dict[str, str]) -> None:
    """One of them calls async code."""
    assert manage(environment, "check", "--fail-level", "WARNING").startswith("System check identified no issues")
    assert manage(environment, "makemigrations", "--check") == "No changes detected\n"
    assert manage(environment, "sign", "Ada", "Grace") == f"{len(NAMES) + 2} entries\n"
