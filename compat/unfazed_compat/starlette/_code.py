"""The code that `install()` gives to functions of Starlette and FastAPI.

It runs with the global names of the original's module, and not with those of this one: it imports what it needs.
"""

from __future__ import annotations

from typing import Any


async def run_in_threadpool(func: Any, *args: Any, **kwargs: Any) -> Any:
    import unfazed_compat.starlette._calls as ours

    return await ours.call(func, args, kwargs)


def iterate_in_threadpool(iterator: Any) -> Any:
    import unfazed_compat.starlette._calls as ours

    return ours.iterate(iterator)


async def contextmanager_in_threadpool(cm: Any) -> Any:
    import unfazed_compat.starlette._calls as ours

    async with ours.enter(cm) as (value,):
        yield value
