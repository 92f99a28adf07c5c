"""One-shot futures: the first outcome counts, and the one who waits reads it once.

Guarantees:

- A future is written in one step. A finalizer or a signal handler can neither block it nor find it half written.
- Each write calls `on_done`, also one that came too late. If a signal handler has raised after the writing and before
  `on_done`, whoever repairs that writes again.

Assumption: `dict.setdefault` with a string as the key is atomic, with and without a GIL (Python's documentation,
"Thread Safety Guarantees").

`concurrent.futures.Future` gives neither guarantee: it takes a lock for each step. `main_wrap` may get one of those
instead, from asgiref's own wrapper, so the methods here have its names.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Generic, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class OneShotFuture(Generic[T]):
    """The result or the error of a call."""

    __slots__ = ("_written", "on_done")

    def __init__(self) -> None:
        self._written: dict[str, tuple[Any, BaseException | None]] = {}
        self.on_done: Callable[[], object] | None = None  # called from any thread, perhaps more than once

    def done(self) -> bool:
        return bool(self._written)

    def set_result(self, value: T) -> None:
        self._written.setdefault("outcome", (value, None))
        self._call_on_done()

    def set_exception(self, error: BaseException) -> None:
        self._written.setdefault("outcome", (None, error))
        self._call_on_done()

    def _call_on_done(self) -> None:
        if self.on_done is not None:
            self.on_done()

    def result(self) -> T:
        """Return the result or raise the error. Only once: keeping the error here would be a reference cycle."""
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
