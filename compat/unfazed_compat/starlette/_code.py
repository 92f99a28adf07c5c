"""The code that `install()` gives to functions of Starlette and FastAPI.

The code runs with the globals of the original's module, not with those of this one. So each function imports what it
needs. Each is of the same kind as its original, a coroutine function or an async generator function: Python 3.13
deprecates replacing `__code__` by code of another kind.
"""

from __future__ import annotations

from typing import Any


async def run_in_threadpool(func: Any, *args: Any, **kwargs: Any) -> Any:
    import unfazed_compat.starlette._calls as ours

    (result,) = await ours.run_in_threadpool(ours.boxed, func, args, kwargs)
    return result


async def iterate_in_threadpool(iterator: Any) -> Any:
    import unfazed_compat.starlette._calls as ours

    async for item in ours.iterate(iterator):  # which is closed in its thread when this is closed or collected
        yield item


async def contextmanager_in_threadpool(cm: Any) -> Any:
    import unfazed_compat.starlette._calls as ours

    manager = ours.enter(cm)
    (value,) = await manager.__aenter__()
    # Like FastAPI, leave it without noticing a cancellation that is pending: the response may still be sent.
    try:
        yield value
    except BaseException as exc:
        suppressed: bool | None = False
        with ours.CancelScope(shield=True):
            suppressed = await manager.__aexit__(type(exc), exc, exc.__traceback__)
        if not suppressed:
            raise
    else:
        with ours.CancelScope(shield=True):
            await manager.__aexit__(None, None, None)
