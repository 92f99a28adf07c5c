"""Sending calls to executors, ours or anybody's.

    `ExecutorCall`   the call that `Executor.submit` makes: a function and its `concurrent.futures.Future`
    `CallExecutor`   what our executors have in common: they can be sent any `QueuedCall`
    `send`           sends a call to any executor

An `ExecutorCall` runs at most once, because whoever takes the function out of it decides what happens to it. So it may
wait in two queues at the same time.
"""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import Executor, Future, InvalidStateError
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, final

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._threads import QueuedCall

P = ParamSpec("P")
T = TypeVar("T")


@final
class ExecutorCall(Generic[T]):
    """A function that an executor's thread calls, and the future of its result."""

    __slots__ = ("_func", "future")

    def __init__(self, func: Callable[[], T]) -> None:
        self.future: Future[T] = Future()
        self._func: list[Callable[[], T]] = [func]  # empty: somebody has decided what happens to it

    def run(self) -> None:
        try:
            func = self._func.pop()
        except IndexError:
            return
        if self.future.set_running_or_notify_cancel():
            try:
                result = func()
            except BaseException as exc:
                self.future.set_exception(exc)
            else:
                self.future.set_result(result)

    def end_with(self, future: Future[Any]) -> None:
        """Cancel the call if another executor, which was to run it, has cancelled its own *future* for it."""
        if future.cancelled():
            self.future.cancel()

    def fail_unless_begun(self, error: BaseException) -> None:
        try:
            self._func.pop()
        except IndexError:
            return
        if self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)

    def fail(self, error: BaseException) -> None:
        self._func.clear()
        with suppress(InvalidStateError):  # it has an outcome
            self.future.set_exception(error)


class CallExecutor(Executor):
    """An executor that can be sent a `QueuedCall` as it is, without a future."""

    @abstractmethod
    def send(self, call: QueuedCall) -> None:
        """Have the thread make *call*; raise a `RuntimeError` if it takes no more calls."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Have the thread call *fn*."""
        call = ExecutorCall(lambda: fn(*args, **kwargs))
        self.send(call)
        return call.future


def send(executor: Executor, call: Any) -> None:
    """Have *executor* make *call*, a `ThreadCall` or `ExecutorCall`. Raise a `RuntimeError` if it takes no more."""
    if isinstance(executor, CallExecutor):
        executor.send(call)
    else:
        executor.submit(call.run).add_done_callback(call.end_with)
