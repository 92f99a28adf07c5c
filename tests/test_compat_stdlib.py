"""The standard library's names, against the standard library's own."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import threading
from typing import Any

import pytest
from unfazed_compat import stdlib

variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


def work(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
    return args, kwargs, variable.get(), threading.current_thread() is threading.main_thread()


@pytest.mark.anyio
@pytest.mark.parametrize("to_thread", [asyncio.to_thread, stdlib.to_thread], ids=["original", "ours"])
async def test_to_thread_takes_all_arguments_and_the_context(to_thread: Any, anyio_backend_name: str) -> None:
    if to_thread is asyncio.to_thread and anyio_backend_name == "trio":
        pytest.skip("the original has no trio")
    variable.set("set")

    assert await to_thread(work, 1, func=2, self=3) == ((1,), {"func": 2, "self": 3}, "set", False)
    with pytest.raises(ZeroDivisionError):
        await to_thread(divmod, 1, 0)


def test_to_thread_has_the_same_parameters() -> None:
    ours, original = (inspect.signature(each).parameters for each in (stdlib.to_thread, asyncio.to_thread))

    assert [(each.name, each.kind) for each in ours.values()] == [(each.name, each.kind) for each in original.values()]
