"""Django's async methods on both backends, with its own asgiref behind them."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from asgiref_helpers import end_threads, run_async
from django_helpers import model
from unfazed_compat.asgiref import async_to_sync, install

if TYPE_CHECKING:
    from collections.abc import Iterator

assert end_threads  # a fixture

assert model  # another one

Backend = tuple[str, dict[str, Any]]


@pytest.fixture(autouse=True)
def installed() -> Iterator[None]:
    with install():
        yield


async def close() -> None:
    from asgiref.sync import sync_to_async
    from django.db import connections

    await sync_to_async(connections.close_all)()


def test_the_async_methods_of_models_work(anyio_backend: Backend, model: Any) -> None:
    async def main() -> list[str]:
        assert (await model.objects.aget(name="earth")).name == "earth"
        mars = await model.objects.acreate(name="mars")
        names = [planet.name async for planet in model.objects.order_by("name")]
        await mars.adelete()
        assert await model.objects.acount() == 1
        await close()
        return names

    assert run_async(anyio_backend, main) == ["earth", "mars"]


def test_a_transaction_of_sync_code_is_seen_by_the_async_code_that_it_calls(model: Any) -> None:
    from django.db import connection, transaction

    async def count() -> int:
        number: int = await model.objects.acount()
        return number

    try:
        with transaction.atomic():
            model.objects.create(name="pluto")
            assert async_to_sync(count)() == 2
            transaction.set_rollback(True)
        assert async_to_sync(count)() == 1
    finally:
        connection.close()


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})])  # Django gathers them with asyncio
def test_signals_reach_async_receivers(anyio_backend: Backend, model: Any) -> None:
    from django.dispatch import Signal

    signal, received = Signal(), []

    async def receiver(**_: Any) -> None:
        received.append(threading.current_thread())

    signal.connect(receiver)
    signal.send(sender=None)

    async def main() -> None:
        from asgiref.sync import sync_to_async

        await sync_to_async(signal.send)(sender=None)

    run_async(anyio_backend, main)

    assert len(received) == 2
