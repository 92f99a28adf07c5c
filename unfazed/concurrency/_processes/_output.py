"""What worker processes print, on its way to `sys.stderr`: in whole lines, by a thread for each worker.

Guarantees: a `sys.stderr` that blocks holds up this thread, and the worker as soon as its pipe is full, which is all
the memory that this takes; nothing else waits for it. Lines of several workers do not get mixed.

The thread ends with the pipe: with the worker, or with the last of its children that has inherited it.
"""

from __future__ import annotations

import codecs
import os
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, final

from ..._worker import channel

if TYPE_CHECKING:
    from collections.abc import Callable

LINE_BYTES: Final = 1 << 16  # of output without an end of line that are kept back; arbitrary


class _Settings:
    output = True
    logs = True


settings = _Settings()
_writing = threading.Lock()  # held while a line is written; made anew in a forked child


@final
class Output:
    """The output of one worker."""

    def __init__(self, fd: int, attention: bytes, on_attention: Callable[[], object]) -> None:
        self._fd = fd
        self._attention = attention  # is no output: the worker wants to be asked for something
        self._on_attention = on_attention
        self._line = bytearray()
        self._decode = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        self.taken = 0  # bytes that have been dealt with

    def pass_on(self, noise: bytes) -> None:
        """Pass on *noise*, and what is printed until the end; in a thread of its own."""
        data = noise
        with suppress(OSError):  # we are in a forked child
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
            with _writing, suppress(BaseException):  # there is none, it is closed, or anything that users put there
                sys.stderr.write(text)
                sys.stderr.flush()
        self.taken += len(data)


def _reset_after_fork() -> None:
    global _writing
    _writing = threading.Lock()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_reset_after_fork)
