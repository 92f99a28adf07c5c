"""Who waits for whom: a call for a slot that others hold, a function for a call that it has made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .._core._calls import HANDLE
from .._core._taskcall import TaskCall
from ._lists import accounts

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .._core._calls import UserCall

MOST_CHAINS = 10  # that are shown; arbitrary


class Waits:
    """The waits among *calls*, by the numbers of the calls."""

    def __init__(self, calls: Mapping[int, UserCall], parents: Mapping[UserCall, UserCall]) -> None:
        self.calls = calls
        self._for_slots: dict[int, list[int]] = {}  # a call that queues: those that hold a slot
        self._for_calls: dict[int, list[int]] = {}  # a call: those that its function waits for
        for each in accounts():
            holders = [slot.call.number for slot in each.holders if slot.call is not None]
            self._for_slots.update((slot.call.number, holders) for slot in each.queue if slot.call is not None)
            for slot in each.holders:
                for wait in slot.waits:
                    handed = wait.carried if isinstance(wait, TaskCall) else None  # `result` of a handle, for one
                    if slot.call is not None and handed is not None and handed.number in calls:
                        self._add(slot.call, handed)
        for call in calls.values():
            above = parents.get(call)
            if above is not None and call.waiter != HANDLE and (call.waiter or above.place == "eventloop"):
                self._add(above, call)

    def _add(self, call: UserCall, waited_for: UserCall) -> None:
        numbers = self._for_calls.setdefault(call.number, [])
        if waited_for.number not in numbers:
            numbers.append(waited_for.number)

    def of(self, number: int) -> list[int]:
        """Return the calls that this one waits for."""
        return self._for_slots.get(number, []) or self._for_calls.get(number, [])

    def cycles(self) -> list[list[int]]:
        """Return the circles of calls that wait for each other, each once."""
        found: dict[frozenset[int], list[int]] = {}
        left: set[int] = set()  # calls from which all ways were followed to their end
        for number in self.calls:
            for cycle in self._follow(number, left):
                found.setdefault(frozenset(cycle), cycle)
        return list(found.values())

    def _follow(self, start: int, left: set[int]) -> Iterator[list[int]]:
        """Go every way from *start* once, without recursion: chains may be long. Yield the circles."""
        way: list[int] = []
        ahead: list[tuple[int, bool]] = [(start, False)]
        while ahead:
            number, is_done = ahead.pop()
            if is_done:
                left.add(way.pop())
            elif number in way:
                yield way[way.index(number) :]
            elif number not in left:
                way.append(number)
                ahead.append((number, True))
                ahead.extend((other, False) for other in self.of(number))

    def chains(self) -> list[tuple[list[int], int]]:
        """Return chains from calls for which nobody waits to one that waits for no call of ours.

        Each comes with the number of other calls that would begin the same chain.
        """
        waited_for = {other for number in self.calls for other in self.of(number)}
        alike: dict[tuple[int, ...], list[int]] = {}
        for number in self.calls:
            if number not in waited_for and self.of(number):
                alike.setdefault(tuple(self.of(number)), []).append(number)
        return [(self._chain(first), len(others)) for first, *others in list(alike.values())[:MOST_CHAINS]]

    def _chain(self, number: int) -> list[int]:
        chain = [number]
        while onward := [other for other in self.of(chain[-1]) if other not in chain]:
            chain.append(onward[0])
        return chain

    def arrow(self, number: int) -> str:
        """Return how a call waits for the next one of its chain."""
        return "waits for a slot that is held by" if number in self._for_slots else "waits for"
