"""A gallery of photos: FastAPI with blocking code on all sides, under any ASGI server, on asyncio or trio.

    uvicorn --app-dir examples fastapi_app:app
    hypercorn --worker-class trio examples/fastapi_app:app

    POST /photos                    stores a photo, and a thumbnail that a worker process computes
    GET  /photos/{number}           its name and size, from a sync endpoint that calls async code
    GET  /photos/{number}/thumbnail
    GET  /photos                    all of them, line by line, as they come from the database
    GET  /state                     what is open and running just now
    GET  /calls                     what goes on inside: numbers and the dump as JSON, or the dump as text for browsers

It needs `pip install unfazed-concurrency fastapi pillow`. The database is where `PHOTOS` says, else `photos.sqlite`.
"""

from __future__ import annotations

import io
import json
import os
import queue
import sqlite3
from collections.abc import AsyncIterator, Iterator  # noqa: TC003  FastAPI looks at the annotations
from contextlib import aclosing, asynccontextmanager, closing, contextmanager
from dataclasses import asdict
from typing import Annotated

import anyio
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from PIL import Image
from unfazed_compat.starlette import contextmanager_in_threadpool, iterate_in_threadpool, run_in_threadpool

from unfazed.concurrency import (
    count_abandoned_threads,
    dump_calls,
    run_in_eventloop_sync,
    run_in_processpool,
    statistics,
)

CONNECTIONS = 4  # fewer than there are threads: requests wait for each other here


class Database:
    """A pool of connections, of the usual kind: it blocks who wants one until another request gives one back."""

    def __init__(self, path: str) -> None:
        self.idle: queue.SimpleQueue[sqlite3.Connection] = queue.SimpleQueue()
        for _ in range(CONNECTIONS):
            self.idle.put(sqlite3.connect(path, check_same_thread=False, timeout=30))
        with self.connection() as connection:
            connection.execute("create table if not exists photos (name text, width int, height int, thumbnail blob)")

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        connection = self.idle.get()
        try:
            with connection:  # a transaction
                yield connection
        finally:
            self.idle.put(connection)

    def close(self) -> None:
        for _ in range(CONNECTIONS):
            self.idle.get().close()


@contextmanager
def open_database() -> Iterator[Database]:
    with closing(Database(os.environ.get("PHOTOS", "photos.sqlite"))) as database:
        yield database


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with contextmanager_in_threadpool(open_database()) as app.state.database:
        yield


app = FastAPI(lifespan=lifespan)


async def connect(request: Request) -> AsyncIterator[sqlite3.Connection]:
    """Have a connection for as long as the request lasts, in a transaction that is committed or rolled back."""
    async with contextmanager_in_threadpool(request.app.state.database.connection()) as connection:
        yield connection


Connection = Annotated[sqlite3.Connection, Depends(connect)]


def shrink(photo: bytes, size: int) -> tuple[int, int, bytes]:
    """Return the size of a photo, and its thumbnail. It computes: it runs in a worker process."""
    image = Image.open(io.BytesIO(photo))
    width, height = image.size
    image.thumbnail((size, size))
    thumbnail = io.BytesIO()
    image.save(thumbnail, "png")
    return width, height, thumbnail.getvalue()


@app.post("/photos", status_code=201)
async def store(name: str, request: Request, connection: Connection) -> dict[str, int | None]:
    width, height, thumbnail = await run_in_processpool(shrink, await request.body(), size=32)
    row = (name, width, height, thumbnail)
    cursor = await run_in_threadpool(connection.execute, "insert into photos values (?, ?, ?, ?)", row)
    return {"number": cursor.lastrowid}


def find(connection: sqlite3.Connection, number: int) -> tuple[str, int, int, bytes]:
    rows: list[tuple[str, int, int, bytes]] = connection.execute(
        "select name, width, height, thumbnail from photos where rowid = ?", (number,)
    ).fetchall()
    if not rows:
        raise HTTPException(404)
    return rows[0]


async def appraise(width: int, height: int) -> int:
    """Ask an async client, say, what a photo is worth."""
    await anyio.sleep(0.001)
    return width * height


@app.get("/photos/{number}")
def show(number: int, connection: Connection) -> dict[str, object]:
    """A sync endpoint, which Starlette runs in a thread: from there, the server's own loop is a call away."""
    name, width, height, _ = find(connection, number)
    return {"name": name, "worth": run_in_eventloop_sync(appraise, width, height)}


@app.get("/photos/{number}/thumbnail")
async def show_thumbnail(number: int, connection: Connection) -> Response:
    *_, thumbnail = await run_in_threadpool(find, connection, number)
    return Response(thumbnail, media_type="image/png")


async def read_lines(connection: Connection, times: int = 1) -> AsyncIterator[AsyncIterator[str]]:
    """Read line by line, in one thread, as fast as the client does, and end with the request, however that ends."""

    def lines() -> Iterator[str]:
        for _ in range(times):
            for number, name in connection.execute("select rowid, name from photos order by rowid"):
                yield json.dumps({"number": number, "name": name}) + "\n"

    async with aclosing(iterate_in_threadpool(lines())) as opened:
        yield opened


@app.get("/photos")
async def list_photos(lines: Annotated[AsyncIterator[str], Depends(read_lines)]) -> StreamingResponse:
    return StreamingResponse(lines, media_type="application/x-ndjson")


@app.get("/state")
async def show_state(request: Request) -> dict[str, int]:
    database: Database = request.app.state.database
    return {"connections in use": CONNECTIONS - database.idle.qsize(), "abandoned threads": count_abandoned_threads()}


@app.get("/calls")
async def show_calls(request: Request) -> Response:
    """Show what goes on inside. In production, keep this page from strangers."""
    dump = io.StringIO()
    dump_calls(dump)
    if "text/" in request.headers.get("accept", ""):
        return PlainTextResponse(dump.getvalue())
    return JSONResponse({"statistics": asdict(statistics()), "dump": dump.getvalue().splitlines()})
