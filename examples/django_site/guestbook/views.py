"""Views of both kinds. Each uses the database, and code of the other kind."""

from __future__ import annotations

import asyncio
import io
import os
import threading
import time
from dataclasses import asdict
from typing import TYPE_CHECKING

from asgiref.sync import async_to_sync, sync_to_async
from django.db import transaction
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.views.decorators.csrf import csrf_exempt
from unfazed_compat.django import database_sync_to_async

from unfazed.concurrency import dump_calls, statistics

from .middleware import greeting, visitor
from .models import Entry

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


def show_sync(request: HttpRequest, number: int) -> JsonResponse:
    """Show an entry and the one after it, which async code looks up."""
    entry = Entry.objects.get(id=number)
    following = async_to_sync(find_following)(number)
    greeting.set(f"sync {visitor.get()}")
    return JsonResponse({"visitor": visitor.get(), "entry": entry.name, "following": following})


async def show_async(request: HttpRequest, number: int) -> JsonResponse:
    """Show the same: two look-ups at a time, one of them in any thread, with a connection of its own."""
    entry, following = await asyncio.gather(
        sync_to_async(Entry.objects.get)(id=number),
        database_sync_to_async(find_following_sync, thread_sensitive=False)(number),
    )
    greeting.set(f"async {visitor.get()}")
    return JsonResponse({"visitor": visitor.get(), "entry": entry.name, "following": following})


async def find_following(number: int) -> str | None:
    entry = await Entry.objects.filter(id__gt=number).afirst()
    return entry.name if entry else None


def find_following_sync(number: int) -> str | None:
    entry = Entry.objects.filter(id__gt=number).first()
    return entry.name if entry else None


@csrf_exempt
def sign(request: HttpRequest) -> JsonResponse:
    """Make an entry and take it back: the async code within sees what is not committed, and nobody else does."""
    with transaction.atomic():
        entry = Entry.objects.create(name=visitor.get())
        seen = async_to_sync(Entry.objects.filter(id=entry.id, name=visitor.get()).acount)()
        transaction.set_rollback(True)
    return JsonResponse({"seen": seen, "kept": Entry.objects.filter(name=visitor.get()).count()})


def stream_sync(request: HttpRequest) -> StreamingHttpResponse:
    """Show all names, one by one."""
    return StreamingHttpResponse(f"{entry.name}\n" for entry in Entry.objects.iterator())


async def stream_async(request: HttpRequest) -> StreamingHttpResponse:
    """Show the same."""

    async def names() -> AsyncIterator[str]:
        async for entry in Entry.objects.aiterator():
            yield f"{entry.name}\n"

    return StreamingHttpResponse(names())


open_streams: set[object] = set()  # the endless ones; changes in one step each


def endless_sync(request: HttpRequest) -> StreamingHttpResponse:
    """Show the first name until the visitor has gone."""

    def names() -> Iterator[str]:
        open_streams.add(stream := object())
        try:
            while True:
                yield f"{Entry.objects.all()[0].name}\n"
                time.sleep(0.01)
        finally:
            open_streams.remove(stream)

    return StreamingHttpResponse(names())


async def endless_async(request: HttpRequest) -> StreamingHttpResponse:
    """Show the same."""

    async def names() -> AsyncIterator[str]:
        open_streams.add(stream := object())
        try:
            while True:
                yield f"{(await Entry.objects.afirst()).name}\n"
                await asyncio.sleep(0.01)
        finally:
            open_streams.remove(stream)

    return StreamingHttpResponse(names())


async def report(request: HttpRequest) -> HttpResponse:
    """Show what is left over."""
    names = sorted(thread.name for thread in threading.enumerate())
    return JsonResponse({"process": os.getpid(), "threads": names, "streams": len(open_streams)})


async def show_calls(request: HttpRequest) -> HttpResponse:
    """Show what goes on inside: as JSON, or as text for browsers. In production, keep this page from strangers."""
    dump = io.StringIO()
    dump_calls(dump)
    if "text/" in request.headers.get("accept", ""):
        return HttpResponse(dump.getvalue(), content_type="text/plain; charset=utf-8")
    return JsonResponse({"statistics": asdict(statistics()), "dump": dump.getvalue().splitlines()})
