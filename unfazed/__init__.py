"""Write a call once, say where it runs, and make it from async code or from sync code.

The helpers are in `unfazed.concurrency`. This file holds the version and imports nothing.
"""

__version__ = "0.2.0"
