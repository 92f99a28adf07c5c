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
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from conftest import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

if "UNFAZED_TEST_DJANGO" not in os.environ:
    pytest.skip("`tox -e django` runs it", allow_module_level=True)

SITE = Path(__file__).parent.parent / "examples" / "django_site"
NAMES = [f"guest {number}" for number in range(1, 41)]
REQUESTS = 2_000  # to each server
DROPS = 200  # connections, of each kind
AT_A_TIME = 50
SECONDS = 60  # in which a server starts, answers and ends; only a hang takes that long

pytestmark = pytest.mark.timeout(180)


@dataclass
class Way:
    """A server as its users start it."""

    command: str
    address: str = "--bind 127.0.0.1:0"
    endless: str = "sync"  # the kind of an endless stream that it does not read to the end first
    threads: int = 1  # in which it calls the site
    ended: int = 0  # its exit status after SIGTERM


WAYS = {
    "gunicorn, prefork": Way("gunicorn --workers 2 guestbook.wsgi"),
    "gunicorn, loaded before the fork": Way("gunicorn --workers 2 --preload guestbook.wsgi"),
    "gunicorn, threads": Way("gunicorn --threads 8 guestbook.wsgi", threads=8),
    "uvicorn": Way("uvicorn guestbook.asgi:application", "--port 0", "async", ended=-signal.SIGTERM),
    "hypercorn": Way("hypercorn guestbook.asgi:application", endless="async"),
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


def visit(server: Server, number: int) -> None:
    """Make one of all kinds of requests, and check every word of the response."""
    visitor, entry = f"visitor {number}", number // 5 % len(NAMES)
    following = NAMES[entry + 1] if entry + 1 < len(NAMES) else None
    shown = {"visitor": visitor, "entry": NAMES[entry], "following": following}
    path, greeting, expected = (
        (f"/sync/{entry + 1}/", f"sync {visitor}", shown),
        (f"/async/{entry + 1}/", f"async {visitor}", shown),
        ("/sign/", "none", {"seen": 1, "kept": 0}),
        ("/stream/sync/", "none", NAMES),
        ("/stream/async/", "none", NAMES),
    )[number % 5]

    status, headers, body = server.get(path, visitor)

    assert status == 200, body
    assert (headers["Greeting"], headers["Entries"]) == (greeting, str(len(NAMES)))
    assert (body.splitlines() if "stream" in path else json.loads(body)) == expected


def left_over(server: Server, way: Way, database: str) -> list[Any]:
    """Return what is left over in the processes that serve the site."""
    found: list[Any] = []
    for process in server.processes():
        for descriptor in Path(f"/proc/{process.pid}/fd").iterdir():
            try:
                target = str(descriptor.readlink())
            except FileNotFoundError:  # closed meanwhile
                continue
            if target.startswith(database):
                found.append((process.pid, target))
    with ThreadPoolExecutor(AT_A_TIME) as executor:
        reports = [
            json.loads(body) for _, _, body in executor.map(lambda _: server.get("/report/"), range(way.threads + 3))
        ]
    workers = {each.pid for each in server.processes()[1:]} or {server.process.pid}
    if {report["process"] for report in reports} != workers:
        found.append("a worker that has not reported yet")
    for report in reports:
        threads = Counter(re.sub(r"\d+$", "", name) for name in report["threads"])
        found += threads.items()
    return found


def drop_all_kinds(server: Server, way: Way) -> None:
    """Drop connections: while a view runs, in the middle of a stream, and without a request."""


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_response_is_right_and_nothing_is_left_over(
    way: Way, environment: dict[str, str], tmp_path: Path
) -> None:
    with serving(f"{way.command} {way.address}", environment, tmp_path) as server:
        endless = f"/endless/{way.endless}/"
        with ThreadPoolExecutor(AT_A_TIME) as executor:
            calls = []
            for number in range(REQUESTS):
                calls.append(executor.submit(visit, server, number))
                if number % (REQUESTS // DROPS) == 0:
                    calls.append(executor.submit(server.drop, "/sync/1/"))
                    calls.append(executor.submit(server.drop, "/async/1/"))
                    calls.append(executor.submit(server.drop, endless, f"{NAMES[0]}\n".encode()))
            for call in calls:
                call.result()
        import time; time.sleep(3)
        print(left_over(server, way, environment["GUESTBOOK_DATABASE"]))
        processes = server.processes()
        server.process.terminate()
        status = server.process.wait(SECONDS)
        print(server.log()[-3000:])

        assert status == way.ended
        assert not psutil.wait_procs(processes, SECONDS)[1]
        assert "Traceback" not in server.log()
