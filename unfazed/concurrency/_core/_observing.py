"""Who observes the calls of this process, and how it is told.

Guarantees:

- What an observer raises reaches nobody's call. It is logged once for each observer.
- A call that an observer makes while it is told something is not observed: it would observe itself for ever.
- Whoever begins to observe is told about the calls that are made from then on, each from its beginning.

Assumption: setting and popping an item of a dict, and copying the dict, are atomic, with and without a GIL (Python's
documentation, "Thread Safety Guarantees").
"""

from __future__ import annotations

import time
from contextvars import ContextVar
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Literal, TypeAlias, final

from ._errors import WrongOptionError

if TYPE_CHECKING:
    from types import TracebackType

CallPlace: TypeAlias = Literal["threadpool", "processpool", "executor", "eventloop"]
CallWaiter: TypeAlias = Literal["async", "sync", "handle"]
CallOutcome: TypeAlias = Literal["returned", "raised", "cancelled", "timed out", "abandoned", "worker died"]

observers: dict[Observation, None] = {}
"""Who observes. If it is empty, a call takes no more than one look at it."""

_is_telling: ContextVar[bool] = ContextVar("unfazed_is_telling", default=False)


@final
class ObservedCall:
    """One call, as observers see it: one object for the whole life of the call. Its attributes are only for reading.

    Attributes:
        number: Its number. No other call of this process has it.
        parent: The number of the call on whose behalf it was made: the one whose function made it, in whatever thread
            or task. `None` if no call of ours did, or if that has ended.
        place: Where it runs: "threadpool", "processpool", "executor" or "eventloop".
        function: The name of the function.
        helper: The name of the helper that was called, such as "run_in_threadpool".
        caller: Who waits for it: "async" or "sync" code, or the "handle" of a call that was started.
        seconds_waited: How long it waited before its function began, or for its whole life; `None` until then.
        seconds_run: How long its function ran; `None` until its end, and if it never began.
        outcome: How it ended: "returned", "raised", "cancelled", "timed out", "abandoned" (cancelled, and its thread
            runs on) or "worker died"; `None` until then.
    """

    __slots__ = (
        "_begun",
        "_queued",
        "_told",
        "caller",
        "function",
        "helper",
        "number",
        "outcome",
        "parent",
        "place",
        "seconds_run",
        "seconds_waited",
    )

    def __init__(
        self, number: int, parent: int | None, place: CallPlace, function: str, helper: str, caller: CallWaiter
    ) -> None:
        self.number: int = number
        self.parent: int | None = parent
        self.place: CallPlace = place
        self.function: str = function
        self.helper: str = helper
        self.caller: CallWaiter = caller
        self.seconds_waited: float | None = None
        self.seconds_run: float | None = None
        self.outcome: CallOutcome | None = None
        self._told = observers.copy()
        self._queued = time.perf_counter()
        self._begun: float | None = None

    def __repr__(self) -> str:
        ended = f", {self.outcome}" if self.outcome else ""
        return f"<call {self.number}: {self.helper}({self.function}), for {self.caller}{ended}>"

    def tell_begun(self) -> None:
        """Tell that its function is about to begin, unless it is over or has begun before, in a worker that died."""
        if self.outcome is None and self._begun is None:
            self._begun = time.perf_counter()
            self.seconds_waited = self._begun - self._queued
            self._tell("begun")

    def tell_ended(self, outcome: CallOutcome, error: BaseException | None) -> None:
        """Tell how it has ended."""
        now = time.perf_counter()
        if self._begun is None:
            self.seconds_waited = now - self._queued
        else:
            self.seconds_run = now - self._begun
        self.outcome = outcome
        self._tell("ended", error)

    def _tell(self, event: str, *details: object) -> None:
        for observation in self._told:
            if observation in observers:
                observation.tell(event, self, *details)


class CallObserver:
    """Observes the calls of this process. Inherit it and override what you want to be told; then `observe` it.

    Each method is called at once, in the thread where it happens, with the caller waiting: so return soon. What a
    method raises is logged once and harms nobody. A call that a method makes is not observed.

    Example:
        `class Slow(CallObserver): def ended(self, call, error): ...`
    """

    def queued(self, call: ObservedCall) -> None:
        """Called when a call is made, in the thread and context of whoever makes it."""

    def begun(self, call: ObservedCall) -> None:
        """Called just before the function begins.

        For threads and event loops this is in the thread and the context where it runs: a context variable that is set
        here is seen by the function alone. In executors of other processes, a call has begun when it is submitted.
        """

    def ended(self, call: ObservedCall, error: BaseException | None) -> None:
        """Called when whoever waits for the call goes on, in their thread, with what the call raised, if anything.

        A call that was started ends when its handle is done, in the thread that settles it.
        """


@final
class Observation:
    """An observer's time of observing, from `observe` until `stop` or the end of the `with` block."""

    def __init__(self, observer: CallObserver) -> None:
        self._observer = observer
        self._has_failed = False

    def __repr__(self) -> str:
        return f"<observe({short_repr(self._observer)}), {'observing' if self in observers else 'stopped'}>"

    def __enter__(self) -> Observation:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Observe no longer. Calls that have not ended are not told about any more."""
        observers.pop(self, None)

    def tell(self, event: str, call: ObservedCall, *details: object) -> None:
        """Tell the observer that *event* has happened."""
        token = _is_telling.set(True)
        try:
            getattr(self._observer, event)(call, *details)
        except Exception as exc:
            self._report(event, exc)
        finally:
            _is_telling.reset(token)

    def _report(self, event: str, exc: Exception) -> None:
        if self._has_failed:
            return
        self._has_failed = True
        import logging  # which is slow to import, and rarely needed

        logging.getLogger("unfazed.concurrency").error(
            "%s.%s() raised an error; that harms no call, and further errors of this observer are not reported",
            type(self._observer).__qualname__,
            event,
            exc_info=exc,
        )


def observe(observer: CallObserver, /) -> Observation:
    """Have *observer* told about each call that is made in this process from now on, by whatever thread.

    It observes until `stop()`, or for a `with` block. Several can observe at once. What goes on inside worker processes
    is not observed, only the calls to them. A forked child goes on observing.

    Args:
        observer: An object of a class that inherits `CallObserver`.

    Returns:
        The observation: a context manager, with `stop`.

    Raises:
        WrongOptionError: If *observer* is not a `CallObserver`.

    Example:
        `with observe(Metrics()): ...`
    """
    _require_observer(observer)
    observation = Observation(observer)
    observers[observation] = None
    return observation


def _require_observer(observer: object) -> None:
    if not isinstance(observer, CallObserver):
        raise WrongOptionError(
            f"observe() expected an object of a class that inherits CallObserver, got {short_repr(observer)}: "
            "write `class Metrics(CallObserver): ...` and `observe(Metrics())`"
        )


def observe_call(
    number: int, parent: int | None, place: CallPlace, function: str, helper: str, caller: CallWaiter
) -> ObservedCall | None:
    """Tell the observers that a call is made. Return it as they see it, or `None` if one of them makes it."""
    if _is_telling.get():
        return None
    call = ObservedCall(number, parent, place, function, helper.format(function), caller)
    call._tell("queued")
    return call
