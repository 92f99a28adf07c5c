"""One map: which calls have begun, which results are ready, and what ends it. It belongs to one event loop.

The life of a `MapCall`, and where it is:

    state      where                    goes on as
    ---------  -----------------------  -----------------------------------------------------------------------------
    waiting    `_calls`, `_waiting`     begun, when there is room
    begun      `_calls`, `_to_make`     ready; its `rest`, if it has one, begins then
    ready      `ready`                  delivered. In order: only when no call is before it in `_calls`
    delivered  -                        when its consumer has had all its results, `delivered` makes room for another

A call and its `rest` count as one: `delivered` is called for the last part only.

A *map task* makes one call after another. There are at most as many as calls may have begun.

Who wakes whom: a map task wakes the consumer, which waits in `more`, by `_news`. Whoever makes room or brings items
wakes a map task, in `fill`. Other threads have the loop call `fill` (`poke`).

Guarantees:

- At most `limit` calls have begun and are not delivered. Nothing is read from the input before a call for it may begin.
- After `stop`, no call begins. `stop` is safe in any thread and any finalizer, and waits for nothing. `finish` waits.
- What a signal handler raises in the midst of this ends the map: its consumer gets it. asyncio drops callbacks that it
  interrupts. So whoever waits, for a result or for the end, repeats, once a second, what the loop may have missed
  (`_look`, `finish`).

Assumptions: each method of `deque`, `set.add` and `set.copy` is atomic. All state is for the loop's thread, except
`ready`, `_returned`, `_poked`, `stopped` and `_map_tasks`.
"""

from __future__ import annotations

from collections import deque
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, final

from .._core._errors import LoopEndedError
from .._core._futures import OneShotFuture
from .._core._taskcall import TaskCall
from .._eventloops._loops import current_loop
from .._eventloops._loopthread import submit_here
from .._eventloops._waiting import wait_and_check, wait_shielded
from ._mapcall import MapCall, ended_if_cancelled
from ._mapinput import items_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextvars import Context

    from .._core._loop import Event, Loop
    from ._mapinput import Items
    from ._mapplaces import Calls


class _MapTask:
    """A task that makes one call after another."""

    def __init__(self) -> None:
        self.task: TaskCall[None]


@final
class MapRun:
    """The calls of one map."""

    loop: Loop | None = None  # set when it begins
    _context: Context
    _limit: int
    _new_event: Callable[[], Event]
    _all_ended: Event

    def __init__(
        self,
        calls: Calls,
        iterables: tuple[Any, ...],
        limit: int | Callable[[], int],
        *,
        ordered: bool,
        sync: bool,
    ) -> None:
        self._make = calls
        self._find_limit = limit
        self._ordered = ordered
        self.items: Items = items_of(iterables, self.poke, sync=sync)
        self.ready: deque[MapCall] = deque()
        self._returned: deque[None] = deque()  # one for each call that was delivered in another thread
        self._calls: list[MapCall] = []  # those that are not ready, in order
        self._waiting: list[MapCall] = []
        self._to_make: deque[MapCall] = deque()  # those that have begun, and that no map task has taken yet
        self._read = 0  # how many items have been read
        self._outstanding = 0  # how many calls have begun and are not delivered
        self._failed = False  # whether a call has failed: no further items are read
        self._map_tasks: set[_MapTask] = set()
        self._idle: list[Event] = []  # one for each map task that waits until there is a call, or the end
        self._news: Event | None = None  # set when there is a result, or the end
        self._poked = False  # whether the loop is to call `_fill_when_poked`
        self.stopped: bool = False

    def begin(self) -> None:
        """Begin, in the current loop and in a copy of the current context."""
        self._limit = self._find_limit if isinstance(self._find_limit, int) else self._find_limit()
        self._context = self.items.context = copy_context()
        loop = current_loop()
        self._new_event = loop.new_event
        self._all_ended = self._new_event()
        self.loop = loop  # last: from here on, others post to it and `finish` waits

    async def more(self) -> bool:
        """Wait until a result is ready, or the end has come. Return whether there is a result."""
        self.fill()
        while not self.ready and not self._is_over():
            self._news = self._new_event()
            await wait_and_check(self._news, self._look)
        return bool(self.ready)

    def delivered(self) -> None:
        """Note that a call was delivered. In the loop's thread."""
        self._outstanding -= 1
        self.fill()

    def delivered_elsewhere(self) -> None:
        """Note that a call was delivered. From any thread."""
        self._returned.append(None)
        self.poke()

    def poke(self) -> None:
        """Have the loop call `fill`. From any thread."""
        # Either we see that `_poked` is false, or the `fill` to come sees what was done before: both take a step on one
        # deque, we before we look at `_poked`, and the loop after it has set that.
        self._returned.extend(())
        if not self._poked and self.loop is not None:
            try:
                self._poked = True
                self.loop.post(self._fill_when_poked)
            except LoopEndedError:
                pass
            except BaseException:  # raised by a signal handler: the next poke must not rely on this one
                self._poked = False
                raise

    def _fill_when_poked(self) -> None:
        self._poked = False
        self._returned.extend(())
        try:
            self.fill()
        except BaseException as exc:  # raised by a signal handler, or there is no memory left
            self._break(exc)

    def _is_over(self) -> bool:
        return self.stopped or (not self._calls and (self._failed or self.items.is_over()))

    def fill(self) -> None:
        """Begin as many calls as there is room for. In the loop's thread."""
        while self._returned:
            self._returned.popleft()
            self._outstanding -= 1
        while self._outstanding < self._limit and not self.stopped:
            call = self._next_call()
            if call is None:
                break
            self._outstanding += 1
            self._begin_call(call)
        if self._is_over():
            self._end()
        self._look_for_the_end()

    def _next_call(self) -> MapCall | None:
        """Return the next call that may begin, or `None` if none is there."""
        size = self._size()
        if self._waiting:
            call = min(self._waiting, key=lambda waiting: waiting.first)  # others may wait behind it
            self._waiting.remove(call)
        else:
            items = [] if self._failed else self.items.take(size, size * (self._limit - self._outstanding))
            if not items:
                return None
            call = MapCall(items, self._read)
            self._read += len(items)
            self._calls.append(call)
        return self._divided(call, size)

    def _divided(self, call: MapCall, size: int) -> MapCall:
        """Return *call*. If it has too many items, the last of them have to wait."""
        most = min(size, call.most or size)
        if len(call.items) > most:
            rest = call.split(most)
            self._calls.insert(self._calls.index(call) + 1, rest)
            self._waiting.append(rest)
        return call

    def _size(self) -> int:
        """Return how many items may travel together: fewer towards the end, so that all have something to do."""
        make = self._make
        left = self.items.left() if make.size > make.least else None
        return make.size if left is None else max(make.least, min(make.size, left // (4 * self._limit)))

    def _begin_call(self, call: MapCall) -> None:
        self._to_make.append(call)  # a map task takes the first one: trio runs new tasks in any order
        if self._idle:
            self._idle.pop().set()
            return
        map_task = _MapTask()
        map_task.task = TaskCall(self._make_calls, OneShotFuture(partial(self._note_end_of, map_task)))
        map_task.task.title = "unfazed: makes the calls of a map"
        self._map_tasks.add(map_task)
        submit_here(map_task.task, self._context.copy())
        if self.stopped:  # after it was added: `stop` sets this before it looks at the tasks
            map_task.task.cancel()

    async def _make_calls(self) -> None:
        while not self._is_over():
            if self._to_make:
                call = self._to_make.popleft()
                await self._make.run(call)
                self._note_result(call)
            else:
                idle = self._new_event()
                self._idle.append(idle)
                await idle.wait()

    def _note_result(self, call: MapCall) -> None:
        calls, ready, rest = self._calls, self.ready, call.rest
        call.done = True
        if call.error is not None:
            self._failed = True
        elif rest is not None and not self.stopped:
            # It begins instead of *call*, whether there is room or not: others wait behind it.
            calls.insert(calls.index(call) + 1, rest)
            self._begin_call(self._divided(rest, self._size()))
        if rest is not None and not call.values:  # there is nothing to deliver
            calls.remove(call)
        elif not self._ordered:
            calls.remove(call)
            ready.append(call)
        while self._ordered and calls and calls[0].done:
            ready.append(calls.pop(0))
        if ready or self._is_over():
            self._tell()

    def _tell(self) -> None:
        if self._news is not None:
            self._news.set()

    def _end(self) -> None:
        """Let the map tasks that have nothing to do end, and the consumer go on."""
        for idle in self._idle:
            idle.set()
        self._tell()

    def _note_end_of(self, map_task: _MapTask) -> None:
        """Note that *map_task* has ended: there is nothing to do, it was cancelled, or interrupted."""
        error: BaseException | None = None
        try:
            map_task.task.future.read()
        except BaseException as exc:
            error = exc
        if not self.stopped and (error is not None or not self._is_over()):
            # Without an error, this is the second time: a signal handler raised in the first one.
            self._break(error or LoopEndedError("a signal handler has ended this iterator"))
        self._map_tasks.discard(map_task)
        self._look_for_the_end()
        del error

    def _look_for_the_end(self) -> None:
        """Note the end, if we are stopped and nothing runs any more. In the loop's thread."""
        if not self.stopped:
            return
        for map_task in self._map_tasks.copy():
            if map_task.task.loop is None:  # a signal handler raised before it was submitted
                self._map_tasks.discard(map_task)
        if not self._map_tasks and self.items.is_closed():
            self._all_ended.set()

    def _look(self) -> None:
        """Look after what the loop had to do, while the consumer waits."""
        try:
            self._do_again()
        except BaseException as exc:  # raised by a signal handler
            self._break(exc)

    def _do_again(self) -> None:
        """Do again what a signal handler may have kept the loop from doing."""
        for map_task in self._map_tasks.copy():
            if map_task.task.future.done:
                self._note_end_of(map_task)
            else:
                map_task.task.go_on()
        if self.stopped:
            self.items.stop()
        self.items.do_again()
        self._poked = False
        self.fill()
        if self.ready:
            self._tell()

    def _break(self, error: BaseException) -> None:
        """End with *error*, which no call has raised."""
        broken = MapCall([], self._read)
        broken.error = ended_if_cancelled(error)
        self.ready.append(broken)
        self.stop()
        self._tell()

    def stop(self) -> None:
        """Begin nothing any more, and cancel what runs. From any thread."""
        self.stopped = True
        self.items.stop()
        for map_task in self._map_tasks.copy():
            map_task.task.cancel()
        self.poke()  # a consumer may be waiting, if another one closes the iterator

    async def finish(self, cancellation: BaseException | None = None) -> None:
        """Stop, and wait for what runs, despite cancellation. Then raise that."""
        self.stop()
        if self.loop is None:
            return
        self._look_for_the_end()
        try:
            if cancellation is None:
                try:
                    await wait_and_check(self._all_ended, self._do_again)
                    return
                except BaseException as exc:
                    cancellation = exc
            raise await wait_shielded(self._all_ended, cancellation, check=self._do_again)
        finally:
            del cancellation
