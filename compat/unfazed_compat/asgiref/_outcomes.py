"""What a call comes to: a future, but one that finalizers and signal handlers cannot block or break.

`concurrent.futures.Future` takes a lock for each step. Here the first outcome is stored in one step
(`dict.setdefault`), and `on_done` is called after that, each time that somebody has an outcome to offer: whoever was
interrupted before it had told others can be made to do it again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Outcome(Generic[T]):
    """The result or the error of a call; the first one counts. For one who waits, and reads it once."""

    __slots__ = ("_written", "on_done")

    def __init__(self) -> None:
        self._written: dict[str, tuple[Any, BaseException | None]] = {}
        self.on_done: Callable[[], object] | None = None  # tells the one who waits; from any thread, more than once

    def done(self) -> bool:
        return bool(self._written)

    def set_result(self, value: T) -> None:
        self._written.setdefault("outcome", (value, None))
        self._announce()

    def set_exception(self, error: BaseException) -> None:
        self._written.setdefault("outcome", (None, error))
        self._announce()

    def _announce(self) -> None:
        if self.on_done is not None:
            self.on_done()

    def result(self) -> T:
        """Return or raise it. Only once: an error kept here would be a reference cycle."""
        value, error = self._written["outcome"]
        if error is None:
            return cast("T", value)
        self._forget()
        try:
            raise error
        finally:
            del error, self

    def _forget(self) -> None:
        self._written["outcome"] = None, None
