"""One-shot futures: a result or an error that is written once and read once, across threads.

Guarantees:

- A future is written in one step, by whoever comes first. No thread is ever between claiming it and writing it.
- `on_done` is called at least once after that, even if a signal handler raises in between. So it may be called twice.

Assumptions: `list.append` and reading `list[0]` are atomic, with and without a GIL (Python's documentation, "Thread
Safety Guarantees").
"""

from __future__ import annotations

from threading import Lock
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class OneShotFuture(Generic[T]):
    """A value and an error, one of them `None`. The first to write them wins.

    Args:
        on_done: Called when it is written, perhaps twice; `None` if nobody waits for it.
    """

    def __init__(self, on_done: Callable[[], object] | None = None) -> None:
        self._outcomes: list[list[Any]] = []  # the first one counts: value and error
        self.on_done = on_done

    @property
    def done(self) -> bool:
        """Whether it has been written."""
        return bool(self._outcomes)

    @property
    def error(self) -> BaseException | None:
        """The error that was written and not read yet; `None` for a value, or as long as nothing is written."""
        error: BaseException | None = self._outcomes[0][1] if self._outcomes else None
        return error

    def try_claim(self) -> bool:
        """Keep others from writing it. Return whether nobody had. It counts as done then; `on_done` is not called."""
        return self._write([None, None])

    def write(self, value: T | None, error: BaseException | None) -> bool:
        """Write it and call `on_done`, unless somebody was first. Return whether we were."""
        outcome = [value, error]  # a list, as equal constant tuples are one object
        try:
            first = self._write(outcome)
            if first and self.on_done is not None:
                self.on_done()
        except BaseException:  # raised by a signal handler: whoever waits must still be told
            ours = bool(self._outcomes) and self._outcomes[0] is outcome
            if ours and self.on_done is not None:  # pragma: no branch  otherwise there is nothing to tell
                self.on_done()
            raise
        return first

    def _write(self, outcome: list[Any]) -> bool:
        self._outcomes.append(outcome)
        if self._outcomes[0] is outcome:
            return True
        del self._outcomes[1:]  # do not keep what came too late
        return False

    def read(self) -> T:
        """Return the value or raise the error. Only once: keeping the error here would be a reference cycle."""
        outcome = self._outcomes[0]
        value, error = outcome
        outcome[1] = None
        if error is None:
            result: T = value
            return result
        try:
            raise error
        finally:
            del value, error, self


class BlockingFuture(OneShotFuture[T]):
    """A future that a thread waits for, by acquiring *ready*."""

    def __init__(self) -> None:
        self.ready = Lock()
        self.ready.acquire()
        super().__init__(self._wake)

    def _wake(self) -> None:
        if self.ready.locked():  # otherwise this is the second time
            self.ready.release()


_PREVENTED: Final[list[bool]] = [False]


class Start(list[list[bool]]):
    """Whether something begins or is kept from that: whoever says so first, from any thread.

    It is a list of what was said, and the first counts. Each call has one, and two objects would cost more.
    """

    __slots__ = ()

    def begin(self) -> bool:
        """Say that it begins. Return whether it may: only once, and not if it was prevented."""
        said = [True]  # a list, as equal constants are one object
        self.append(said)
        return self[0] is said

    def prevent(self) -> bool:
        """Keep it from beginning. Return `False` if it has begun."""
        self.append(_PREVENTED)
        return self[0] is _PREVENTED

    def is_prevented(self) -> bool:
        """Return whether it will never begin."""
        return bool(self) and self[0] is _PREVENTED

    def is_decided(self) -> bool:
        """Return whether it has begun or was prevented."""
        return bool(self)

    def has_begun(self) -> bool:
        """Return whether it has begun."""
        return bool(self) and self[0] is not _PREVENTED


def without_our_frame(exc: BaseException) -> BaseException:
    """Take the frame that caught *exc* off its traceback: it tells the user nothing, and refers back to *exc*."""
    return exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)
