"""The one implementation, for async code. Its twins in `_sync.py` are written from it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unfazed.concurrency import run_in_threadpool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from typing_extensions import Self


@dataclass
class AsyncReport:
    """The weather in one city.

    Args:
        service: Where it comes from.
        city: The name of the city.
        text: The weather, in a word.
    """

    service: AsyncWeather
    city: str
    text: str

    async def refresh(self) -> bool:
        """Read the report again, and return whether it has changed."""
        before, self.text = self.text, (await self.service.report(self.city)).text
        return self.text != before


class AsyncWeather:
    """Weather reports, from a folder that has a file for each city.

    Args:
        folder: The folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    async def report(self, city: str) -> AsyncReport:
        """Return the report of a city."""
        text = await run_in_threadpool((self.folder / f"{city}.txt").read_text, encoding="utf-8")
        return AsyncReport(self, city, text.strip())

    async def reports(self, *cities: str) -> list[AsyncReport]:
        """Return the reports of some cities."""
        return [await self.report(city) for city in cities]

    async def cities(self) -> AsyncIterator[str]:
        """Yield the names of all cities, in order."""
        for path in sorted(await run_in_threadpool(list, self.folder.glob("*.txt"))):
            yield path.stem

    @asynccontextmanager
    async def editing(self, city: str) -> AsyncIterator[list[str]]:
        """Write the words of the list as the report of a city, unless the block raises."""
        words: list[str] = []
        yield words
        await run_in_threadpool((self.folder / f"{city}.txt").write_text, " ".join(words), encoding="utf-8")

    async def find(self, is_wanted: Callable[[AsyncReport], Awaitable[bool]]) -> AsyncReport | None:
        """Return the first report that *is_wanted*."""
        async for city in self.cities():
            report = await self.report(city)
            if await is_wanted(report):
                return report
        return None

    async def close(self) -> None:
        """Give back what is held; `async with` does it."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()
