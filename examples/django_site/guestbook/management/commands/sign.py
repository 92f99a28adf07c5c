"""`python manage.py sign Ada Grace`: a command that uses async code."""

from __future__ import annotations

import asyncio
from typing import Any

from asgiref.sync import async_to_sync
from django.core.management.base import BaseCommand, CommandParser

from ...models import Entry


class Command(BaseCommand):
    """Sign the guest book for each of the names."""

    help = __doc__

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("names", nargs="+")

    def handle(self, *, names: list[str], **_: Any) -> None:
        count = async_to_sync(self.sign)(names)
        self.stdout.write(f"{count} entries")

    async def sign(self, names: list[str]) -> int:
        await asyncio.gather(*(Entry.objects.acreate(name=name) for name in names))
        return await Entry.objects.acount()
