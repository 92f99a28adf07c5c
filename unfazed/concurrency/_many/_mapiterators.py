"""What the map functions return: iterators over the results, for async code and for sync code."""

from __future__ import annotations

from collections import deque
from collections.abc import Sized
from contextlib import suppress
from functools import partial
from itertools import chain
from operator import length_hint
from typing import TYPE_CHECKING, Any, Final, Generic, NoReturn, TypeVar, cast, final

from anyio.lowlevel import checkpoint

from .._core._checks import name_of, not_copied, visible_names
from .._core._errors import InUseError, LoopEndedError, LoopStateError, LoopThreadError
from .._core._finalizers import finalizers
from .._eventloops._background import submit_to_background
from .._eventloops._synccalls import Interrupts, call_from_sync
from .._scoped._taskrunner import TaskRunner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from .._eventloops._synccalls import Submit
    from ._mapcall import MapCall
    from ._maprun import MapRun

T = TypeVar("T")

CHECKPOINT_ITEMS: Final = 100  # after how many results that did not have to be awaited other tasks may run; arbitrary


class _Consumer:
    """Takes the results of a run, which does not refer to it."""

    def __init__(self, run: MapRun, iterables: tuple[Any, ...], func: object, helper: str) -> None:
        self.run = run
        self.iterables = iterables
        self.func = func
        self.helper = helper
        self.holds = False  # whether the call that was taken last is not delivered yet
        self.error: BaseException | None = None  # what follows its results
        self.taken = 0  # results
        self.busy = False
        self.over = False
        self.closed = False  # whether all has ended; set last, so that what was interrupted is done again

    def __repr__(self) -> str:
        state = "ended" if self.over else "not begun" if self.run.loop is None else "begun"
        return f"<{self.helper}({name_of(self.func)}, ...), {state}>"

    if TYPE_CHECKING:

        def left(self) -> int:
            """Return how many results are left that have been taken."""
            ...

        def _drop(self) -> None:
            """End the iteration, in any finalizer."""

    def drop(self) -> None:
        """End the iteration, if that is still to do, in any finalizer."""
        if not self.closed:
            self._drop()
            self.closed = True

    def length_hint(self) -> int:
        """Return how many results are to come, or `NotImplemented` unless all of the input has a length."""
        if self.over:
            return self.left()
        if not all(isinstance(each, Sized) for each in self.iterables):
            return cast("int", NotImplemented)
        return max(0, min(map(len, self.iterables)) - self.taken + self.left())

    def take(self) -> list[Any]:
        """Take the next call that is ready. Return its results. Its error, if it has one, comes after these."""
        call: MapCall = self.run.ready.popleft()
        self.holds = call.rest is None
        self.error = call.error
        self.taken += len(call.values)
        return call.values

    def end(self) -> BaseException | None:
        """End the iteration. Return the error to raise, if there is one."""
        self.over = True
        error = self.error or self.run.items.error
        self.error = self.run.items.error = None
        if not isinstance(error, (StopIteration, StopAsyncIteration)):
            return error
        stop = RuntimeError(f"a call of {name_of(self.func)}(), or the input, raised {type(error).__name__}")
        stop.__cause__ = error  # otherwise it would end the iteration as if nothing had happened
        return stop


class _Iterator:
    """What both iterators have in common."""

    _consumer: Any  # of the class that the iterator needs

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        return repr(self._consumer)

    def __reduce__(self) -> NoReturn:
        raise not_copied(self)

    def __length_hint__(self) -> int:
        """Return how many results are to come, where all of the input has a length."""
        hint: int = self._consumer.length_hint()
        return hint


@final
class AsyncMapIterator(_Iterator, Generic[T]):
    """An async iterator over the results of many calls. `map_in_threadpool` and its like make it.

    One task at a time may use it, in one event loop. When it is garbage-collected, as after `break`, no further calls
    begin.
    """

    def __init__(self, run: MapRun, iterables: tuple[Any, ...], func: object, helper: str) -> None:
        self._consumer: _AsyncConsumer = _AsyncConsumer(run, iterables, func, helper)
        self._finalizers = finalizers(self._consumer.drop)
        self._results: deque[T] = self._consumer.results
        self._at_hand = 0  # how many results in a row did not have to be awaited

    def __aiter__(self) -> AsyncMapIterator[T]:
        return self

    async def __anext__(self) -> T:
        """Return the next result.

        Raises:
            InUseError: If another task is waiting for one.
            LoopStateError: If it was begun in another event loop.
            StopAsyncIteration: At the end.
            BaseException: Whatever the function or the input raised.
        """
        if self._results and self._at_hand < CHECKPOINT_ITEMS:
            self._at_hand += 1
        else:
            self._at_hand = await self._consumer.get_more(self._at_hand)
        return self._results.popleft()

    async def aclose(self) -> None:
        """End the iteration: no further calls begin, what runs is waited for, and the input is closed.

        A cancellation meanwhile is raised at the end. What closing an async input raises goes to
        `threading.excepthook`.

        Raises:
            BaseException: Whatever closing another input raised.
        """
        self._consumer.over = True
        self._results.clear()
        await _finish_all(self._consumer.run)
        self._consumer.closed = True


class _AsyncConsumer(_Consumer):
    """Takes the results for async code."""

    def __init__(self, run: MapRun, iterables: tuple[Any, ...], func: object, helper: str) -> None:
        super().__init__(run, iterables, func, helper)
        self.results: deque[Any] = deque()

    def left(self) -> int:
        return len(self.results)

    def _drop(self) -> None:
        self.run.stop()

    async def get_more(self, at_hand: int) -> int:
        """Wait for results, or raise what follows the last one. Return the new *at_hand*."""
        run = self.run
        if self.over:
            raise StopAsyncIteration
        if self.busy:
            raise InUseError("another task is waiting for the next result of this iterator: make one for each task")
        if run.loop is None:
            run.begin()
        elif not run.loop.runs_here():
            raise LoopStateError("this iterator belongs to another event loop: use it in the one where it was begun")
        self.busy = True
        cancellation: BaseException | None = None
        try:
            try:
                try:
                    at_hand = await self._wait(at_hand)
                except BaseException as exc:
                    self.over = True
                    cancellation = exc
                if cancellation is None and self.results:
                    return at_hand
                error = self.end()
                await run.finish(cancellation)
                self.closed = True
            finally:
                self.busy = False
                del cancellation
        finally:
            self.busy = False  # again: a signal handler may have raised in the first `finally`
        try:
            raise error or StopAsyncIteration
        finally:
            del error

    async def _wait(self, at_hand: int) -> int:
        run = self.run
        if at_hand >= CHECKPOINT_ITEMS:
            at_hand = 0
            await checkpoint()
        if self.results:
            return at_hand
        if self.holds:
            self.holds = False
            run.delivered()
        if self.error is not None:
            return at_hand
        at_hand += 1
        if not run.ready:
            at_hand = 0
            if not await run.more():
                return at_hand
        self.results.extend(self.take())
        if self.holds and len(self.results) == 1:
            self.holds = False
            run.delivered()
        return at_hand


class MapIterator(_Iterator, chain[T]):
    """An iterator over the results of many calls. `map_in_threadpool_sync` and its like make it.

    One thread at a time may use it. When it is garbage-collected, as after `break`, no further calls begin.
    """

    # A `chain`, because no iterator is faster: of results that came together, all but the first cost no Python code.

    _consumer: _SyncConsumer

    def close(self) -> None:
        """End the iteration: no further calls begin, what runs is waited for, and the input is closed.

        Raises:
            BaseException: Whatever closing the input raised.
        """
        self._consumer.close()


def sync_iterator(run: MapRun, iterables: tuple[Any, ...], func: object, helper: str) -> MapIterator[Any]:
    """Return an iterator over the results of *run*."""
    consumer = _SyncConsumer(run, iterables, func, helper)
    iterator: Any = MapIterator.from_iterable(consumer)
    iterator._consumer = consumer
    iterator._finalizers = finalizers(consumer.drop)
    return cast("MapIterator[Any]", iterator)


class _SyncConsumer(_Consumer):
    """Takes the results for sync code: an iterator over iterators over results."""

    def __init__(self, run: MapRun, iterables: tuple[Any, ...], func: object, helper: str) -> None:
        super().__init__(run, iterables, func, helper)
        name = name_of(func)
        twin = helper.removesuffix(".sync").removesuffix("_sync")
        self._instead = f"async for ... in {twin}({'...' if twin.startswith(f'{name}.') else f'{name}, ...'})"
        self._runner = TaskRunner(partial(_finish, run), helper)
        self._interrupts = Interrupts()
        self._values: list[Any] = []  # of the call that was taken last
        self._results: Iterator[Any] = iter(())  # those of them that are left
        self._misused = False

    def left(self) -> int:
        return length_hint(self._results)

    def __iter__(self) -> _SyncConsumer:
        return self

    def __next__(self) -> Iterator[Any]:
        """Wait for results, or raise what follows the last one.

        Raises:
            InUseError: If another thread is waiting for a result.
            LoopThreadError: If an event loop is running in this thread, which waiting would block.
            LoopStartError: If the background event loop cannot start.
            LoopEndedError: If the event loop has ended, for example because the interpreter is exiting.
            StopIteration: At the end.
            BaseException: Whatever the function or the input raised.
        """
        if self.over:
            raise StopIteration
        if self.busy:
            self._misused = True
            raise _in_use()
        self.busy = True
        try:
            self._wait()
            if self._misused:  # what was raised in the other thread has ended the `chain`
                raise _in_use()
        except BaseException:
            self.over = True
            self._leave(_finish)
            raise
        finally:
            self.busy = False
        if self._values:
            return self._results
        error = self.end()
        try:
            raise error or StopIteration
        finally:
            del error, self

    def _wait(self) -> None:
        """Take the results of the next call that is ready. There are none at the end, or before an error."""
        run = self.run
        self._values = []
        if self.holds:
            self.holds = False
            run.delivered_elsewhere()
        if self.error is None:
            if not run.ready:
                if run.loop is None:
                    self._call(partial(_begin, run, self._runner), always=False)
                if not self._call(partial(_more, run, self._runner)):
                    self.closed = True
                    return
            self._values = self.take()
            self._results = iter(self._values)
        if not self._values:
            self._leave(_finish)
        elif self.holds and len(self._values) == 1:
            self.holds = False
            run.delivered_elsewhere()

    def _call(self, work: Callable[[], Awaitable[Any]], *, always: bool = True) -> Any:
        """Run *work* in the loop of the run, or if not *always*, find a loop for it."""
        submit: Submit = self._runner.take if always else submit_to_background
        options: dict[str, Any] = {"always": always, "interrupts": self._interrupts}
        return call_from_sync(work, self.func, self.helper, self._instead, submit, counted=False, **options)

    def _leave(self, finish: Callable[[MapRun], Awaitable[None]]) -> None:
        """Begin nothing any more, and wait for what runs, unless Ctrl-C was pressed twice."""
        self.run.stop()
        with suppress(LoopEndedError):  # it has ended, or has not begun
            if not self._interrupts.is_over:
                with suppress(LoopThreadError):
                    self._call(partial(self._runner.finish, partial(finish, self.run)))
                    self.closed = True
                    return
            self._runner.leave()

    def close(self) -> None:
        """End the iteration, and wait for what runs."""
        self.over = True
        self._values.clear()  # which ends the iterator over them
        self._leave(_finish_all)

    def _drop(self) -> None:
        self.run.stop()
        with suppress(LoopEndedError):
            self._runner.leave()


def _in_use() -> InUseError:
    return InUseError("another thread is waiting for the next result of this iterator: make one for each thread")


async def _begin(run: MapRun, runner: TaskRunner) -> None:
    run.begin()
    await runner.start()


async def _more(run: MapRun, runner: TaskRunner) -> bool:
    """Wait for a result. At the end, end the runner as well. Return whether there is a result."""
    if await run.more():
        return True
    await runner.finish(run.finish)
    return False


async def _finish(run: MapRun, cancellation: BaseException | None = None) -> None:
    await run.finish()


async def _finish_all(run: MapRun) -> None:
    await run.finish()
    await run.items.closed()
