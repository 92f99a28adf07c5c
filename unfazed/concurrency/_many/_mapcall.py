"""One call of a map: its items, and then their results."""

from __future__ import annotations

import sys
from reprlib import repr as short_repr
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from .._core._errors import LoopEndedError
from .._eventloops._waiting import cancelled_classes

if TYPE_CHECKING:
    from collections.abc import Callable

# Types whose `repr` is quick and tells something. That of other objects could do anything: Django's fetches rows.
_TELLING: Final = (str, bytes, int, float, complex, bool, type(None))


class How(NamedTuple):
    """What all calls of a map have in common."""

    helper: str  # what the user called
    star: bool  # whether each item is a tuple of arguments
    keep_going: bool  # whether exceptions are results

    def arguments(self, item: Any) -> tuple[Any, ...]:
        """Return the positional arguments of the call for *item*."""
        return tuple(item) if self.star else (item,)


class MapCall:
    """One call for some *items*. The first of them has the number *first*."""

    __slots__ = ("done", "error", "first", "items", "most", "rest", "values")

    def __init__(self, items: list[Any], first: int, most: int | None = None) -> None:
        self.items: list[Any] = items
        self.first: int = first
        self.most: int | None = most  # how many items may travel together; None: as many as the place says
        self.values: list[Any] = []  # of the items, before the one that failed
        self.error: BaseException | None = None  # how the next one failed
        self.rest: MapCall | None = None  # the items that have not begun after all
        self.done: bool = False

    def split(self, count: int) -> MapCall:
        """Keep the first *count* items. Return a call for the others."""
        rest = MapCall(self.items[count:], self.first + count, self.most)
        self.items = self.items[:count]
        return rest

    def settle(self, read: Callable[[], Any], how: How) -> None:
        """Note the result of the only item, or its error, which *read* returns or raises."""
        try:
            value = read()
        except BaseException as exc:
            self.fail(exc, how)
        else:  # not above: a signal handler may raise when it has been added
            self.values.append(value)

    def fail(self, error: BaseException, how: How) -> None:
        """Note that the item after those that have a value failed."""
        number = len(self.values)
        add_note(error, f"raised for item {self.first + number}, {_described(self.items[number])}, of {how.helper}()")
        if how.keep_going and isinstance(error, Exception):
            self.values.append(error)
        else:
            self.error = error


def _described(item: Any) -> str:
    if issubclass(type(item), tuple):
        return f"({', '.join(map(_described, item[:4]))}{', ...' if len(item) > 4 else ''})"
    if isinstance(item, _TELLING) or type(item).__module__.startswith("pathlib"):
        return short_repr(item)
    return f"<{type(item).__qualname__} object>"


def add_note(error: BaseException, note: str) -> None:
    if sys.version_info >= (3, 11):
        error.add_note(note)
    else:  # pragma: no cover  `exceptiongroup`, which anyio needs on 3.10, shows notes in tracebacks
        error.__notes__ = [*getattr(error, "__notes__", ()), note]


def ended_if_cancelled(error: BaseException | None) -> BaseException | None:
    """Return *error*, or what to say if a task was cancelled, and not by us."""
    if not isinstance(error, cancelled_classes()):
        return error
    ended = LoopEndedError("the event loop of this iterator has ended")
    ended.__cause__ = error
    return ended
