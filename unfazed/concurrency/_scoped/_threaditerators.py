"""Sync iterables for async code: each is iterated over in a worker thread of its own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, NoReturn, TypeVar, final

from .._core._checks import not_copied, require_count, require_limiter, visible_names, wrong_source
from .._core._finalizers import finalizers
from ._feed import Feed

if TYPE_CHECKING:
    from collections.abc import Iterable

    from anyio import CapacityLimiter

T = TypeVar("T")


@final
class ThreadpoolIterator(Generic[T]):
    """An async iterator over a sync iterable, in a worker thread of its own. `iterate_in_threadpool` makes it.

    One task at a time may use it, in one event loop. When it is garbage-collected, as after `async for`, the iterator
    underneath is closed.
    """

    def __init__(self, iterable: Iterable[T], prefetch: int, limiter: CapacityLimiter | None = None) -> None:
        self._feed = Feed(iterable, prefetch, limiter)  # refers not to us, so that its thread does not keep us alive
        self._finalizers = finalizers(self._feed.drop)

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        return f"<iterate_in_threadpool({self._feed.described()}>"

    def __reduce__(self) -> NoReturn:
        raise not_copied(self)

    def __aiter__(self) -> ThreadpoolIterator[T]:
        return self

    async def __anext__(self) -> T:
        """Return the next item.

        Raises:
            InUseError: If another task is waiting for one.
            LoopStateError: If it was begun in another event loop.
            StopAsyncIteration: At the end.
            BaseException: Whatever the iterable raised.
        """
        try:
            return await self._feed.next()
        finally:
            del self  # the traceback of an error refers to this frame, and must not keep us alive

    async def aclose(self) -> None:
        """Close the iterator in its thread, and wait for that despite cancellation.

        Raises:
            LoopStateError: If it was begun in another event loop. It is closed, and not waited for.
            BaseException: Whatever closing it raised.
        """
        await self._feed.close()


def iterate_in_threadpool(
    iterable: Iterable[T], /, *, prefetch: int = 0, limiter: CapacityLimiter | None = None
) -> ThreadpoolIterator[T]:
    """Iterate over a sync iterable that blocks, from async code.

    The whole iteration has a worker thread of its own, and one context: a copy of the one in which its first step is
    taken. It holds a slot while it fetches items, and none while it waits for its consumer. So any number of iterations
    can be open at once.

    Args:
        iterable: An iterable, an iterator, or what a generator function returned.
        prefetch: How many items may be fetched in advance, from the first step on. With 0, the default, each item is
            fetched when it is asked for. An item that has been fetched is delivered without waiting for more.
        limiter: Bounds how many fetch items at once, from any loop or thread; `None`, the default, is anyio's default
            thread limiter.

    Cancellation:
        As for `run_in_threadpool`, the wait ends when the current item has been fetched. That item is not lost: the
        next step delivers it. If the iteration is left early, by `break`, an exception or cancellation, the iterator is
        closed at once (on PyPy when it is collected): its `close()` is called, if there is one, in its thread, after
        the current item. Nobody waits for that, except with `aclose()`, or with
        `async with aclosing(iterate_in_threadpool(...)) as items`.

    Returns:
        An async iterator, with `aclose`.

    Raises:
        WrongFunctionError: If *iterable* is not an iterable.
        WrongOptionError: If *prefetch* is not a number of items, or *limiter* is not a limiter.
        BaseException: From a step, whatever the iterable raised there; `StopAsyncIteration` as a `RuntimeError`.

    Example:
        `async for line in iterate_in_threadpool(file, prefetch=1000): ...`
    """
    kind: Any = type(iterable)
    if not (hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")):
        raise wrong_source(iterable, "iterate_in_threadpool", "an iterable", "async for ... in", "__aiter__")
    require_count(prefetch, "prefetch", "iterate_in_threadpool")
    require_limiter(limiter, "iterate_in_threadpool")
    return ThreadpoolIterator(iterable, prefetch, limiter)
