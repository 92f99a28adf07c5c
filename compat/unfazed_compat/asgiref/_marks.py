"""`iscoroutinefunction` and `markcoroutinefunction`: Python's own since 3.12, and asgiref's way before that."""

from __future__ import annotations

import asyncio
import inspect
import sys
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:
    from collections.abc import Callable

F = TypeVar("F", bound="Callable[..., object]")


def _mark(func: F) -> F:
    """Have `iscoroutinefunction` say that *func* is one, before Python 3.12."""
    marked, coroutines = cast("Any", func), cast("Any", asyncio.coroutines)
    marked._is_coroutine = coroutines._is_coroutine
    return func


iscoroutinefunction: Callable[[object], bool]
iscoroutinefunction = (inspect if sys.version_info >= (3, 12) else cast("Any", asyncio)).iscoroutinefunction
if TYPE_CHECKING:

    def markcoroutinefunction(func: F) -> F:
        """Have `iscoroutinefunction` say that *func* is one."""
        ...
else:
    markcoroutinefunction = getattr(inspect, "markcoroutinefunction", _mark)
