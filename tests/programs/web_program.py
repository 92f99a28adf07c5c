"""A program for FastAPI that knows nothing of ours but one line; `test_web_install.py` runs it under real servers.

With `DJANGO` in the environment it has a Django site in it, whose views use the adapter for asgiref.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator  # noqa: TC003  FastAPI looks at the annotations
from contextlib import asynccontextmanager
from typing import Annotated, Any

import anyio.from_thread
import anyio.to_thread
import unfazed_compat.starlette
from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from fastapi.responses import FileResponse, StreamingResponse

unfazed_compat.starlette.install()

THREADS = 4
CONNECTIONS = 1  # fewer than threads, and far fewer than requests

free = threading.BoundedSemaphore(CONNECTIONS)
held = threading.Event()  # by the test: an endpoint that waits for it has begun
tasks_done: list[int] = []


@asynccontextmanager
async def lifespan(app: FastAPI) -> Any:
    anyio.to_thread.current_default_thread_limiter().total_tokens = THREADS
    yield


app = FastAPI(lifespan=lifespan)


def connect() -> Iterator[str]:
    """A dependency of the usual kind, which blocks until another request gives a connection back."""
    with free:
        yield "connected"


def double(number: int) -> int:
    """A dependency without `yield`."""
    return 2 * number


@app.get("/items/{number}")
def show(
    number: int, doubled: Annotated[int, Depends(double)], connected: Annotated[str, Depends(connect)]
) -> dict[str, Any]:
    return {"doubled": doubled, "connected": connected, "sum": anyio.from_thread.run(add, number, doubled)}


async def add(one: int, other: int) -> int:
    await anyio.sleep(0)
    return one + other


@app.get("/lines")
def lines(connected: Annotated[str, Depends(connect)]) -> StreamingResponse:
    return StreamingResponse(f"{number}\n" for number in range(100))


@app.get("/file")
def file() -> FileResponse:
    return FileResponse(__file__)


@app.get("/task")
def task(background: BackgroundTasks, number: int) -> None:
    background.add_task(tasks_done.append, number)


@app.get("/missing")
def missing(connected: Annotated[str, Depends(connect)]) -> None:
    raise HTTPException(404, "missing")


@app.get("/slow")
def slow(connected: Annotated[str, Depends(connect)]) -> str:
    """Run until the server is told to end; the server waits for this call."""
    sys.stdout.write("a request is running\n")
    sys.stdout.flush()
    anyio.from_thread.run(anyio.sleep, 1)
    return "done"


if "DJANGO" in os.environ:
    import unfazed_compat.asgiref
    from django.conf import settings

    unfazed_compat.asgiref.install()
    settings.configure(ALLOWED_HOSTS=["*"], ROOT_URLCONF=__name__, SECRET_KEY="secret")

    from asgiref.sync import async_to_sync, sync_to_async
    from django.core.asgi import get_asgi_application
    from django.http import HttpResponse
    from django.urls import path

    def sync_view(request: Any) -> Any:
        return HttpResponse(f"{async_to_sync(add)(3, 4)}")

    async def async_view(request: Any) -> Any:
        return HttpResponse(f"{await sync_to_async(double)(21)}")

    urlpatterns = [path("sync", sync_view), path("async", async_view)]
    app.mount("/django", get_asgi_application())
