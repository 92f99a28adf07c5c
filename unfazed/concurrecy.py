"""The documented spelling of `unfazed.concurrency`: the very same objects, for good, without a warning."""

from typing import TYPE_CHECKING

from . import concurrency as _concurrency
from .concurrency import __all__ as __all__

if TYPE_CHECKING:
    from .concurrency import *  # noqa: F403  re-exporting every public name is this file's only purpose
else:

    def __getattr__(name: str) -> object:
        return getattr(_concurrency, name)

    def __dir__() -> list[str]:
        return dir(_concurrency)
