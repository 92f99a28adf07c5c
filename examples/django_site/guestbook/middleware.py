"""One middleware is async only, the other one sync only. Django brings them together, with asgiref."""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING

from django.utils.decorators import async_only_middleware, sync_only_middleware

from .models import Entry

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from django.http import HttpRequest, HttpResponse

visitor: ContextVar[str] = ContextVar("visitor", default="nobody")
greeting: ContextVar[str] = ContextVar("greeting", default="none")  # set by the views


@async_only_middleware
def name_the_visitor(
    get_response: Callable[[HttpRequest], Awaitable[HttpResponse]],
) -> Callable[[HttpRequest], Awaitable[HttpResponse]]:
    """Tell the views who the visitor is, and the visitor what they have said."""

    async def middleware(request: HttpRequest) -> HttpResponse:
        visitor.set(request.headers.get("Visitor", "nobody"))
        greeting.set("none")  # a server's thread takes its context from request to request
        response = await get_response(request)
        response["Greeting"] = greeting.get()
        return response

    return middleware


@sync_only_middleware
def count_the_entries(get_response: Callable[[HttpRequest], HttpResponse]) -> Callable[[HttpRequest], HttpResponse]:
    """Tell the visitor how many entries there are at least."""

    def middleware(request: HttpRequest) -> HttpResponse:
        count = Entry.objects.count()
        response = get_response(request)
        response["Entries"] = str(count)
        return response

    return middleware
