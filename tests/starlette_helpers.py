"""What the tests of `unfazed_compat.starlette.install()` share, with Starlette and with FastAPI."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.to_thread
import pytest
from conftest import GRACE_SECONDS
from unfazed_compat.starlette import _calls, install

from unfazed.concurrency._core import _limits
from unfazed.concurrency._eventloops._limiters import NO_LIMIT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

T = TypeVar("T")

MOMENT_SECONDS = 0.1  # in which a thread that the limit does not hold back surely begins; arbitrary


@pytest.fixture
def installed() -> Iterator[None]:
    with install():
        yield


class Recorded:
    """The functions that were called in our threads and in theirs."""

    def __init__(self) -> None:
        self.ours: list[str] = []
        self.theirs: list[str] = []


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> Recorded:
    """Record the functions that run in threads, by our calls and by anyio's. Ours call anyio's without a limit."""
    recorded = Recorded()
    get_async_backend: Any = vars(anyio.to_thread)["get_async_backend"]
    boxed, iterate = _calls.boxed, _calls.iterate

    def name_of(func: Any) -> str:
        while isinstance(func, partial):
            func = func.func
        return str(getattr(func, "__name__", type(func).__name__))

    def our_call(func: Any, args: Any, kwargs: Any) -> Any:
        slot = _limits.current_slot.get()
        assert slot is not None and slot.held
        recorded.ours.append(name_of(func))
        return boxed(func, args, kwargs)

    def backend() -> Any:
        backend = get_async_backend()

        def their_call(func: Any, args: Any, *, limiter: Any, **options: Any) -> Any:
            if limiter is not NO_LIMIT:
                recorded.theirs.append(name_of(func))
            return backend.run_sync_in_worker_thread(func, args, limiter=limiter, **options)

        class Recording:
            run_sync_in_worker_thread = staticmethod(their_call)

            def __getattr__(self, name: str) -> Any:
                return getattr(backend, name)

        return Recording()

    def our_iteration(iterator: Any) -> Any:
        recorded.ours.append("iterate")
        return iterate(iterator)

    monkeypatch.setattr(_calls, "boxed", our_call)
    monkeypatch.setattr(_calls, "iterate", our_iteration)
    monkeypatch.setattr(anyio.to_thread, "get_async_backend", backend)
    return recorded


async def request(
    app: Any, path: str = "/", headers: dict[str, str] | None = None, *, client_leaves: anyio.Event | None = None
) -> tuple[int, bytes]:
    """Make a request as a server does, and return the status and the body."""
    sent: list[Any] = []
    asked: list[bool] = []

    async def receive() -> dict[str, Any]:
        if asked:
            await (anyio.Event() if client_leaves is None else client_leaves).wait()
            return {"type": "http.disconnect"}
        asked.append(True)
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in (headers or {}).items()],
        "server": ("server", 80),
        "client": ("client", 1),
    }
    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], body


class Gauge:
    """Counts how many threads run at the same time. The first *total* wait for each other, and for one more."""

    def __init__(self, total: int) -> None:
        self.most = self.running = self.calls = 0
        self._total = total
        self._lock = threading.Lock()
        self._together = threading.Barrier(total)
        self._one_more = threading.Event()

    @contextmanager
    def running_thread(self) -> Iterator[None]:
        with self._lock:
            self.calls += 1
            is_early = self.calls <= self._total
            self.running += 1
            self.most = max(self.most, self.running)
            if self.most > self._total:
                self._one_more.set()
        if is_early:
            self._together.wait(GRACE_SECONDS)
            self._one_more.wait(MOMENT_SECONDS)
        try:
            yield
        finally:
            with self._lock:
                self.running -= 1

    def counted(self, call: Callable[..., T]) -> Callable[..., T]:
        """Return *call*, counted while it runs."""

        def counted_call(*args: Any) -> T:
            with self.running_thread():
                return call(*args)

        return counted_call

    def counted_steps(self, iterate: Callable[[Iterable[T]], AsyncIterator[T]]) -> Callable[..., AsyncIterator[T]]:
        """Return *iterate*, with each step of the iterable counted while it runs."""

        def steps(iterable: Iterable[T]) -> Iterator[T]:
            iterator = iter(iterable)
            step = self.counted(next)
            end = object()
            while (item := step(iterator, end)) is not end:
                yield item

        return lambda iterable: iterate(steps(iterable))
