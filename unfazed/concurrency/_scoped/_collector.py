"""Whether the garbage collector is at work in this thread.

It runs finalizers amid any code, even code that holds a lock. So a finalizer that it runs must not wait for another
thread, which may need that lock. One collection at a time runs in an interpreter.
"""

from __future__ import annotations

import gc
from threading import get_ident
from typing import TYPE_CHECKING, Any, Final, final

if TYPE_CHECKING:
    from collections.abc import Callable


@final
class _Collector:
    """Knows which thread the collector works in."""

    def __init__(self) -> None:
        self._thread: int | None = None
        self._get_ident: Callable[[], int] = get_ident  # at exit, the names of this module may be gone
        callbacks: list[Any] = getattr(gc, "callbacks", [])  # PyPy has none
        callbacks.append(self._note)

    def is_at_work(self) -> bool:
        """Return whether the collector works in this thread. On PyPy nobody can tell: always false."""
        return self._thread == self._get_ident()

    def _note(self, phase: str, _: dict[str, int]) -> None:
        self._thread = self._get_ident() if phase == "start" else None


collector: Final = _Collector()
