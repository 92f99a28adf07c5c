"""The documented spelling of `unfazed.concurrency`: the very same objects, for good, without a warning."""

from unfazed.concurrency import *  # noqa: F403  re-exporting every public name is this file's only purpose
from unfazed.concurrency import __all__ as __all__
