"""Iterators across the border: a blocking one for async code, an async one for sync code.

Each iteration has a lane of its own, and so one thread, or one task, and one context for its whole life.
"""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, cast, final

from anyio import Event
from anyio.lowlevel import checkpoint

from .._core._checks import require_count, wrong_source
from .._core._errors import InUseError, LoopEndedError, LoopStateError, LoopThreadError
from .._core._futures import OneShotFuture
from .._core._taskcall import TaskCall
from .._eventloops._background import submit_to_background
from .._eventloops._loops import current_loop
from .._eventloops._loopthread import submit_here
from .._eventloops._synccalls import call_from_sync
from .._eventloops._waiting import cancelled_classes, set_from_anywhere, wait_shielded
from .._eventloops._workers import thread
from ._runners import TaskRunner, ThreadRunner

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, AsyncIterator, Generator, Iterable, Iterator

T = TypeVar("T")

CHECKPOINT_ITEMS: Final = 100  # after how many items that were there already other tasks get their turn; arbitrary


_END: Final = object()  # what follows the last item


class _Feed(Generic[T]):
    """A sync iterable in its thread, and the items that it has given. All but `_fetch` is for the loop's thread."""

    def __init__(self, iterable: Iterable[T], prefetch: int) -> None:
        self._iterable = iterable
        self._iterator: Iterator[T] | None = None
        self._ahead = max(1, prefetch)  # how many items to fetch at a time
        self._prefetch = prefetch
        self._items: deque[T | object] = deque()  # and `_END` after the last one
        self._error: BaseException | None = None  # what comes after the items; None: the end
        self._over = False  # whether no more items are to come
        self._paused = False  # whether to stop fetching after the current item
        self._closed = False
        self._busy = False
        self._at_hand = 0  # how many items in a row were there already
        self._runner: ThreadRunner[None] | None = None
        self._fetching: TaskCall[None] | None = None  # what fills the buffer behind the back of the consumer
        self._news: Event | None = None  # set when an item or the end has come
        self._idle: Event | None = None  # set when nothing is being fetched any more

    async def next(self) -> T:
        """Return the next item."""
        if self._busy:
            raise InUseError(
                "another task is waiting for the next item of this iterator: give each task one of its own"
            )
        if self._runner is not None and self._runner.loop.native is not current_loop().native:
            raise LoopStateError("this iterator belongs to another event loop: use it in the one where it was begun")
        self._busy = True
        try:
            try:
                if not self._items:
                    self._at_hand = 0
                    await self._get_more()
                elif self._at_hand < CHECKPOINT_ITEMS:
                    self._at_hand += 1
                else:
                    self._at_hand = 0
                    await checkpoint()
            finally:
                self._busy = False
        finally:
            self._busy = False  # a signal handler may have raised just before the first time
        if not self._items or self._items[0] is _END:
            self.drop()
            self._raise_end()
        item = cast("T", self._items.popleft())
        if self._prefetch and len(self._items) <= self._prefetch // 2:
            self._fetch_ahead()
        return item

    async def close(self) -> None:
        """Close the iterator and wait for that, whatever cancels us."""
        runner = self._runner
        if runner is not None:
            runner.heard = True
        self.drop()
        if runner is not None:
            await runner.left()

    def drop(self) -> None:
        """Close the iterator, in its thread, after the item that is being fetched. From any thread."""
        if self._closed:
            return
        self._over = self._paused = True
        fetching = self._fetching
        if fetching is not None:
            fetching.cancel()
        if self._runner is not None:
            self._runner.leave()
        self._closed = True  # not before: whoever is interrupted by a signal handler does it again

    def _raise_end(self) -> None:
        error, self._error = self._error, None
        try:
            if error is None:
                raise StopAsyncIteration
            if isinstance(error, StopAsyncIteration):  # which would end the iteration as if nothing had happened
                raise RuntimeError("the iterator raised StopAsyncIteration") from error
            raise error
        finally:
            del error, self

    async def _get_more(self) -> None:
        """Wait until there is an item, or the end."""
        if self._over:
            return
        if self._runner is None:
            self._runner = ThreadRunner("iterate_in_threadpool", self._close)
        if not self._prefetch:
            try:
                await self._runner.run(self._fetch)
            except LoopEndedError:
                if not self._over:  # else another task closed it while we waited for a slot: that is the end
                    raise
            return
        while not self._items and not self._over:
            self._news = news = Event()
            self._fetch_ahead()
            self._items.extend(())  # a step on the deque: what was added before is there, who adds later sees the event
            if self._items or self._over:
                return
            try:
                await news.wait()
                continue
            except BaseException as exc:
                cancellation = exc
            try:
                raise await self._pause(cancellation)
            finally:
                del cancellation

    async def _pause(self, cancellation: BaseException) -> BaseException:
        """Fetch no more, wait for the item that is being fetched, and return what to raise then."""
        fetching = self._fetching
        if fetching is not None:
            self._paused = True
            self._idle = idle = Event()
            fetching.cancel()
            cancellation = await wait_shielded(idle, cancellation)
        return cancellation

    def _fetch_ahead(self) -> None:
        """Have the buffer filled, unless it is being filled already."""
        if self._over:
            return
        assert self._runner is not None, "the first item has been asked for"
        if self._fetching is None:
            self._paused = False
            self._fetching = TaskCall(partial(self._runner.run, self._fetch), OneShotFuture(self._fetched))
        if not self._fetching.accepted:
            submit_here(self._fetching, copy_context())

    def _fetched(self) -> None:
        """Note that nothing is being fetched any more."""
        try:
            if self._fetching is not None:
                self._fetching.future.read()
        except BaseException as exc:  # it could not even be tried
            if not self._paused:
                self._over = True
                self._error = exc
                if isinstance(exc, cancelled_classes()):
                    self._error = LoopEndedError("the event loop of this iterator has ended")
                    self._error.__cause__ = exc
        self._fetching = None
        for event in (self._news, self._idle):
            if event is not None:
                event.set()

    def _fetch(self) -> None:
        """Fetch as many items as there is room for, in the thread."""
        items = self._items
        try:
            if self._iterator is None:
                self._iterator = iter(self._iterable)
            fetch = self._iterator.__next__
            while len(items) < self._ahead and not self._paused:
                try:
                    item = fetch()
                except StopIteration:
                    self._iterator = None  # so that it is not closed: it has not been left early
                    self._over = True
                    break
                items.append(item)
                if self._news is not None:
                    self._tell()
        except BaseException as exc:
            worker = thread.worker
            cancelled = worker is not None and worker.is_cancelled() and isinstance(exc, cancelled_classes())
            if not cancelled:  # else the async code that it waited for has been, with the consumer
                self._error = exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)
            self._over = True
        if self._over:
            items.append(_END)
        self._tell()

    def _tell(self) -> None:
        """Wake the consumer, from the thread."""
        news, self._news = self._news, None
        if news is not None and self._runner is not None:
            set_from_anywhere(self._runner.loop, news)

    def _close(self) -> None:
        """Close the iterator if it was left early, in the thread."""
        close = getattr(self._iterator, "close", None)
        self._iterator = None
        if close is not None:
            close()


@final
class ThreadpoolIterator(Generic[T]):
    """An async iterator over a sync iterable, in a worker thread of its own. `iterate_in_threadpool` makes it.

    One task at a time may use it, in one event loop. When it is dropped, as `async for` does when it is left, what it
    iterates over is closed.
    """

    def __init__(self, iterable: Iterable[T], prefetch: int) -> None:
        self._feed = _Feed(iterable, prefetch)  # whose thread must not keep this object, so that it can be dropped

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
            del self  # the traceback of what is raised leads here, and must not keep what is to be dropped

    async def aclose(self) -> None:
        """Close the iterator, in its thread, and wait for that, whatever cancels the wait.

        Raises:
            BaseException: Whatever closing it raised.
        """
        await self._feed.close()

    def __del__(self) -> None:
        feed = getattr(self, "_feed", None)  # none where it could not even be made
        if feed is not None:
            feed.drop()


def iterate_in_threadpool(iterable: Iterable[T], /, *, prefetch: int = 0) -> ThreadpoolIterator[T]:
    """Iterate over a sync iterable that blocks, from async code.

    The whole iteration has one worker thread to itself, and one context, a copy of that of its first step. It holds a
    slot of anyio's default thread limiter while it fetches items, and none while it waits for its consumer: any number
    can be open at once.

    Args:
        iterable: An iterable, an iterator, or what a generator function returned.
        prefetch: How many items may be fetched in advance, from the first step on; with 0 each one is fetched when it
            is asked for. What is there is delivered, without waiting for more.

    Cancellation:
        As for `run_in_threadpool`: the item that is being fetched is waited for. It is not lost, but the next one to be
        delivered. Left early, by `break`, an exception or cancellation, the iterator is closed at once, on PyPy when
        it is collected: its `close()` is called, if there is one, in its thread, after the item that is being fetched.
        Nobody waits for that, unless
        with `aclose()`, or `async with aclosing(iterate_in_threadpool(...)) as items`.

    Returns:
        An async iterator, with `aclose`.

    Raises:
        WrongFunctionError: If *iterable* is none.
        WrongOptionError: If *prefetch* is no number of items.
        BaseException: From a step, whatever the iterable raised there; `StopAsyncIteration` as a `RuntimeError`.

    Example:
        `async for line in iterate_in_threadpool(file, prefetch=1000): ...`
    """
    kind: Any = type(iterable)
    if not (hasattr(kind, "__iter__") or hasattr(kind, "__getitem__")):
        raise wrong_source(iterable, "iterate_in_threadpool", "an iterable", "async for ... in", "__aiter__")
    require_count(prefetch, "prefetch", "iterate_in_threadpool")
    return ThreadpoolIterator(iterable, prefetch)


class _Steps(Generic[T]):
    """An async iterable in its task, step by step."""

    def __init__(self, aiterable: AsyncIterable[T]) -> None:
        self._aiterable = aiterable
        self._aiterator: AsyncIterator[T] | None = None
        self.over = False

    async def next(self) -> T:
        """Return the next item; at the end, say so in `over`."""
        if self._aiterator is None:
            self._aiterator = aiter(self._aiterable)
        try:
            return await anext(self._aiterator)
        except StopAsyncIteration:
            self._aiterator = None  # so that it is not closed: it has not been left early
            self.over = True
            return cast("T", None)

    async def close(self, cancellation: BaseException | None = None) -> None:
        """Close the iterator if it was left early, or has been cancelled meanwhile."""
        aclose = getattr(self._aiterator, "aclose", None)
        self._aiterator = None
        if aclose is not None:
            await aclose()


def iterate_in_eventloop_sync(aiterable: AsyncIterable[T], /) -> Generator[T, None, None]:
    """Iterate over an async iterable from sync code.

    The whole iteration runs in one task, and in one context, a copy of that of its first step: in the loop of the
    worker thread that takes the first step, elsewhere on the background event loop. Later steps may come from other
    threads, one at a time.

    Args:
        aiterable: An async iterable, an async iterator, or what an async generator function returned.

    Cancellation:
        As for `run_in_eventloop_sync`: in a worker thread a step is cancelled with the task that is waiting for the
        thread, elsewhere by Ctrl-C. Left early, by `break` or an exception, the iterator is closed at once, on PyPy
        when it is collected: its `aclose()` is awaited, if there is one, in its task. That is waited for, unless an
        event loop is running in the thread where the garbage collector ends the iteration.

    Returns:
        A generator, with `close`.

    Raises:
        WrongFunctionError: If *aiterable* is none.
        LoopThreadError: From a step, if an event loop is running in this thread, which it would block.
        LoopStartError: From a step, if the background event loop cannot start.
        LoopEndedError: From a step, if the event loop has ended, at exit for one.
        BaseException: From a step, whatever the iterable raised there; `StopIteration` as a `RuntimeError`.

    Example:
        `for row in iterate_in_eventloop_sync(connection.cursor("select 1")): ...`
    """
    if not hasattr(type(aiterable), "__aiter__"):
        helper = "iterate_in_eventloop_sync"
        raise wrong_source(aiterable, helper, "an async iterable", "for ... in", "__iter__")
    return _iterate(_Steps(aiterable), aiterable)


def _iterate(steps: _Steps[T], source: object) -> Generator[T, None, None]:
    runner = TaskRunner(steps.close)
    helper, instead = "iterate_in_eventloop_sync", "async for ... in {}(...)"
    try:
        try:
            call_from_sync(runner.start, source, helper, instead, submit_to_background)
            while True:
                try:
                    item = call_from_sync(steps.next, source, helper, instead, runner.take, always=True)
                except LoopEndedError:
                    if runner.outcome is not None:  # a scope that it holds open was cancelled
                        runner.outcome.read()
                    raise
                if steps.over:
                    return
                yield item
        finally:
            if not runner.over:  # as it is at the end of the interpreter, where nothing is there that a module imported
                with suppress(LoopEndedError):  # it has been closed then, or its start was interrupted
                    try:
                        finish = partial(runner.finish, steps.close)
                        call_from_sync(finish, source, helper, instead, runner.take, always=True)
                    except LoopThreadError:  # the garbage collector is at work, in the thread of a loop
                        runner.leave()
    finally:
        if not runner.over:  # a signal handler has raised in the `finally` above
            with suppress(LoopEndedError):
                runner.leave()
