"""Copies what worker processes print to `sys.stderr`, in whole lines. Each worker has a thread for that.

Guarantees:

- If `sys.stderr` blocks, only this thread waits, and the worker once its pipe is full. No more memory is used than the
  pipe holds.
- Lines of several workers are never mixed.

The thread ends when the pipe ends: with the worker, or with the last child process that inherited the pipe from it.
"""

from __future__ import annotations

import codecs
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

from ..._worker import channel
from .._core._lifetime import in_forked_child

if TYPE_CHECKING:
    from collections.abc import Callable

LINE_BYTES: Final = 1 << 16  # how much of an unfinished line is kept back; arbitrary


class _Settings:
    output = True
    logs = True


settings = _Settings()
_writing = threading.Lock()  # held while lines are written; replaced in a forked child


@final
class Output:
    """The output of one worker. *on_attention* is called when the worker prints *attention*."""

    def __init__(self, fd: int, attention: bytes, on_attention: Callable[[], object]) -> None:
        self._fd = fd
        self._attention = attention  # not output: it asks the parent to look after the worker
        self._on_attention = on_attention
        self._line = bytearray()
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        self.taken = 0  # bytes that have been processed

    def pass_on(self, noise: bytes) -> None:
        """Write *noise*, and then all that the worker prints, until its pipe ends. Runs in a thread of its own."""
        data = noise
        with suppress(OSError):  # in a forked child the pipe is closed
            while data or (data := os.read(self._fd, channel.CHUNK_BYTES)):
                self._take(data)
                data = b""
        if self._line:
            self._take(b"\n")

    def _take(self, data: bytes) -> None:
        line = self._line
        line += data
        while (place := line.find(self._attention)) >= 0:
            del line[place : place + len(self._attention)]
            self._on_attention()
        end = max(line.rfind(b"\n"), line.rfind(b"\r")) + 1
        if not end and len(line) > LINE_BYTES:
            end = len(line)
        text = self._decode(line[:end])
        del line[:end]
        if text and settings.output:
            with _writing, suppress(BaseException):  # `sys.stderr` may be None, closed, or a user's object
                sys.stderr.write(text)
                sys.stderr.flush()
        self.taken += len(data)


def _reset_after_fork() -> None:
    global _writing
    _writing = threading.Lock()


in_forked_child(_reset_after_fork)
