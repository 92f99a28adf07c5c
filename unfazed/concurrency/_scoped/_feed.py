"""A sync iterable in its worker thread, and the items that wait for their async consumer.

Two threads share a `Feed`: the loop's, whose consumer takes items from `_items`, and the worker's, which runs `_fetch`
and adds them.

    what           who writes it                    who reads it
    -------------  -------------------------------  ----------------------------------
    `_items`       the worker adds, the loop takes  both
    `_over`        both                             both
    `_error`       both: the worker before `_over`  the loop, after the last item
    `_paused`      the loop, and `drop`             the worker, before each item
    `_news`        the loop sets, the worker takes  both
    `_iterator`    the worker                       the worker
    all the rest   the loop                         the loop

Guarantees:

- The consumer is woken for each item that comes while it waits. It makes `_news` before it looks at `_items` again; the
  worker adds an item before it looks for `_news`. Both take a step on `_items` in between.
- No item is lost if the consumer is cancelled: it gets the item at its next step.
- The iterator is closed once if it was left early, in its thread, after the current item. `drop` is safe in any thread
  and may be called again after a signal handler interrupted it.

Assumption: each method of a deque is atomic.
"""

from __future__ import annotations

from collections import deque
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Final, Generic, TypeVar, cast

from anyio.lowlevel import checkpoint

from .._core._checks import in_brief
from .._core._errors import InUseError, LoopEndedError, LoopStateError
from .._core._futures import OneShotFuture
from .._core._taskcall import TaskCall
from .._eventloops._loopthread import submit_here
from .._eventloops._waiting import cancelled_classes, set_from_anywhere, wait_and_check, wait_shielded
from .._eventloops._workers import thread
from ._threadrunner import ThreadRunner

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anyio import CapacityLimiter

    from .._core._loop import Event

T = TypeVar("T")

CHECKPOINT_ITEMS: Final = 100  # after how many items that did not have to be awaited other tasks may run; arbitrary

_END: Final = object()  # what follows the last item


class Feed(Generic[T]):
    """A sync iterable in its thread, and the items that it has given."""

    def __init__(self, iterable: Iterable[T], prefetch: int, limiter: CapacityLimiter | None = None) -> None:
        self._iterable = iterable
        self._limiter = limiter
        self._iterator: Iterator[T] | None = None
        self._ahead = max(1, prefetch)  # how many items to fetch at a time
        self._prefetch = prefetch
        self._items: deque[T | object] = deque()  # and `_END` after the last one
        self._error: BaseException | None = None  # what to raise after the items; None: StopAsyncIteration
        self._over = False  # whether no more items come
        self._paused = False  # whether to stop fetching after the current item
        self._closed = False
        self._busy = False
        self._at_hand = 0  # how many items in a row did not have to be awaited
        self._runner: ThreadRunner[None] | None = None
        self._fetching: TaskCall[None] | None = None  # fetches ahead, in a task of its own
        self._news: Event | None = None  # set when an item or the end has come
        self._idle: Event | None = None  # set when `_fetching` has ended

    def described(self) -> str:
        """Return what is iterated over, the option, and the state, for people."""
        prefetch = f", prefetch={self._prefetch}" if self._prefetch else ""
        state = "closed" if self._closed else "not begun" if self._runner is None else "begun"
        return f"{in_brief(self._iterable)}{prefetch}), {state}"

    async def next(self) -> T:
        """Return the next item."""
        if self._busy:
            raise InUseError(
                "another task is waiting for the next item of this iterator: give each task one of its own"
            )
        if self._runner is not None and not self._runner.loop.runs_here():
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
            self._busy = False  # again: a signal handler may have raised in the first `finally`
        if not self._items or self._items[0] is _END:
            self.drop()
            self._raise_end()
        item = cast("T", self._items.popleft())
        if self._prefetch and len(self._items) <= self._prefetch // 2:
            self._fetch_ahead()
        return item

    async def close(self) -> None:
        """Close the iterator, and wait for that despite cancellation."""
        runner = self._runner
        if runner is not None:
            runner.announce_waiter()
        self.drop()
        if runner is not None:
            await runner.wait_until_ended()

    def drop(self) -> None:
        """Close the iterator in its thread, after the current item. From any thread; returns at once."""
        if self._closed:
            return
        self._over = self._paused = True
        fetching = self._fetching
        if fetching is not None:
            fetching.cancel()
        if self._runner is not None:
            self._runner.leave()
        self._closed = True  # last: if a signal handler interrupts us, the next call does it all again

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
            self._runner = ThreadRunner("iterate_in_threadpool", self._close, self._limiter)
        if not self._prefetch:
            try:
                await self._runner.run(self._fetch)
            except LoopEndedError:
                if not self._over:  # otherwise another task closed it while we waited for a slot: that is the end
                    raise
            return
        while not self._items and not self._over:
            self._news = news = self._runner.loop.new_event()
            self._fetch_ahead()
            self._items.extend(())  # our step: we see what was added before, and who adds after it sees the event
            if self._items or self._over:
                return
            try:
                await wait_and_check(news, self._look_after_fetching)
                continue
            except BaseException as exc:
                cancellation = exc
            try:
                raise await self._pause(self._runner, cancellation)
            finally:
                del cancellation

    async def _pause(self, runner: ThreadRunner[None], cancellation: BaseException) -> BaseException:
        """Stop fetching ahead, wait for the current item despite *cancellation*, and return what to raise."""
        fetching = self._fetching
        if fetching is not None:
            self._paused = True
            self._idle = idle = runner.loop.new_event()
            fetching.cancel()
            cancellation = await wait_shielded(idle, cancellation, check=fetching.go_on)
        return cancellation

    def _look_after_fetching(self) -> None:
        """Find out whether signal handlers have ended the task that fetches ahead, or kept us from noting its end."""
        if self._fetching is None:
            self._fetched()
        else:
            self._fetching.fail_if_lost()

    def _fetch_ahead(self) -> None:
        """Have a task fill the buffer, unless one does."""
        if self._over:
            return
        assert self._runner is not None, "the first item has been asked for"
        if self._fetching is None:
            self._paused = False
            self._fetching = TaskCall(partial(self._runner.run, self._fetch), OneShotFuture(self._fetched))
            self._fetching.title = "iterate_in_threadpool: fetches ahead"
        if not self._fetching.taken:
            submit_here(self._fetching, copy_context())

    def _fetched(self) -> None:
        """Note that `_fetching` has ended."""
        try:
            if self._fetching is not None:
                self._fetching.future.read()
        except BaseException as exc:  # `_fetch` was not called
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
                    self._iterator = None  # at its end an iterator is not closed
                    self._over = True
                    break
                items.append(item)
                if self._news is not None:
                    self._tell()
        except BaseException as exc:
            worker = thread.worker
            cancelled = worker is not None and worker.is_cancelled() and isinstance(exc, cancelled_classes())
            if not cancelled:  # otherwise the consumer was, and with it the async code that the iterator waited for
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
        """Close the iterator in the thread, if it was left early."""
        close = getattr(self._iterator, "close", None)
        self._iterator = None
        if close is not None:
            close()
