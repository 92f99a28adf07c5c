"""Type aliases that `twins_odd_library` uses as attributes of this module."""

# ruff: noqa
# mypy: ignore-errors

from collections.abc import Awaitable, Callable
from typing import Union

import twins_odd_library
from twins_library import T

Hook = Callable[["twins_odd_library.AsyncPart"], Awaitable[int]]
Parts = Union["twins_odd_library.AsyncPart", int]
