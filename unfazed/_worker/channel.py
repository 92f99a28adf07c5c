"""What goes through the two pipes between a worker process and its parent: frames, and pickles in pieces.

A frame is a header (its kind, and how many bytes follow) and a payload. Both ends use this file. It imports the
standard library only.

Guarantees, even if a signal handler raises at any bytecode of the calling thread:

- `write_once` and `read_once` record what they did in the list that they are given. Nothing is lost or recorded twice,
  because one builtin calls another and no bytecode runs in between.
- A frame of at most `ATOMIC` bytes is written as a whole or not at all.

Assumptions: one thread at a time reads a pipe. Threads that write frames of more than `ATOMIC` bytes share a lock.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import struct
from typing import Any, final

BROKEN = (errno.EPIPE, errno.EBADF, errno.EINVAL)  # EINVAL is for Windows
HEADER = struct.Struct("<cQ")
HEADER_BYTES = HEADER.size
CHUNK_BYTES = (1 << 16) + (1 << 12)  # how much to read at once: 64 KiB, headers and the rest of a pickle
ATOMIC = 4096 if os.name == "posix" and os.uname().sysname == "Linux" else 512  # PIPE_BUF of Linux; POSIX's minimum
PROTOCOL = 5  # the first with bytearrays and buffers
JOINED_BYTES = 1 << 17  # up to this size the pieces of a frame are joined; arbitrary
PICKLER_BYTES = 1 << 17  # a larger piece is the user's object itself, not a copy

# From the parent
LEVELS = b"L"  # the levels of its loggers, pickled
INITIALIZER = b"I"  # a pickled function
CALL = b"C"  # a pickled (func, args, kwargs)
FLUSH = b"F"  # send the log records that are kept, then answer FLUSH

# From the worker
HELLO = b"\0unfazed worker\0"  # not a frame: bytes before it were printed at startup
READY = b"R"  # it can take calls
UNPREPARED = b"U"  # it cannot, and ends: pickled (reason, refused, server)
BEGUN = b"B"  # a call has arrived, and nothing of it has run yet
RECORD = b"G"  # a log record, pickled
VALUE = b"V"  # what the function returned, pickled
OUTCOME = b"O"  # any other end of a call: a pickled (kind, about, text)

BEGUN_FRAME = HEADER.pack(BEGUN, 0)


def read_header(data: bytes, offset: int = 0) -> tuple[bytes, int]:
    """Return the kind and the payload size of the frame that begins at *offset*."""
    kind: bytes
    size: int
    kind, size = HEADER.unpack_from(data, offset)
    return kind, size


class PipeEndError(EOFError):
    """Raised if the pipe ends inside a frame, or while the reader waits for one."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


def write_once(fd: int, data: Any, written: list[int]) -> None:
    """Write to *fd* once, and append the number of written bytes to *written*."""
    written.extend(map(os.write, (fd,), (data,)))


def read_once(fd: int, received: list[bytes]) -> None:
    """Read from *fd* once, and append the bytes to *received*: empty bytes at the end of the pipe."""
    received.extend(map(os.read, (fd,), (CHUNK_BYTES,)))


def is_broken(exc: BaseException) -> bool:
    """Return whether *exc* says that the other end is closed. Other exceptions come from signal handlers."""
    return isinstance(exc, OSError) and exc.errno in BROKEN


def write_all(fd: int, pieces: list[bytes], *, begun: bool = False) -> None:
    """Write all *pieces* to *fd*, however long that takes. Then raise what a signal handler has raised meanwhile.

    If it raises before the first byte, nothing is written and the exception leaves at once, unless *begun* is true. If
    the other end is closed, that error is raised at once.
    """
    interruption: BaseException | None = None
    for piece in pieces:
        view = memoryview(piece)
        while view:
            written: list[int] = []
            try:
                write_once(fd, view, written)
            except BaseException as exc:
                if is_broken(exc) or not (begun or written):
                    raise
                interruption = exc
            if written:
                begun = True
                view = view[written[0] :]
    if interruption is not None:
        raise interruption


@final
class Reader:
    """Reads frames from a pipe. It is also the file object from which an unpickler reads one payload."""

    def __init__(self, fd: int, data: bytes = b"") -> None:
        self.fd = fd
        self.data = data  # read from the pipe, but not taken yet
        self.left: int = 0  # bytes of the current payload that are not taken yet
        self._file: io.FileIO | None = None

    def next(self) -> tuple[bytes, int]:
        """Return the kind and the payload size of the next frame. Raises `PipeEndError` if the pipe has ended."""
        while len(self.data) < HEADER_BYTES:
            self._fill()
        kind, size = read_header(self.data)
        self.left = size
        self.data = self.data[HEADER_BYTES:]
        return kind, size

    def take(self) -> bytes:
        """Return the rest of the payload."""
        return self.read(self.left)

    def _fill(self) -> None:
        more = os.read(self.fd, CHUNK_BYTES)
        if not more:
            raise PipeEndError
        self.data = self.data + more if self.data else more

    def read(self, size: int = -1) -> bytes:
        size = self.left if size < 0 else min(size, self.left)
        if len(self.data) < size:
            buffer = bytearray(size)
            self.readinto(buffer)
            return bytes(buffer)
        taken, self.data = self.data[:size], self.data[size:]
        self.left -= size
        return taken

    def readinto(self, buffer: Any) -> int:
        view: memoryview = memoryview(buffer)[: self.left]
        size = len(view)
        ready = min(size, len(self.data))
        if ready:
            view[:ready] = self.data[:ready]
            self.data = self.data[ready:]
            view = view[ready:]
        while view:
            if self._file is None:
                self._file = io.FileIO(self.fd, closefd=False)
            count: int | None = self._file.readinto(view)
            if not count:
                raise PipeEndError
            view = view[count:]
        self.left -= size
        return size

    def readline(self) -> bytes:  # for old pickle protocols, which an object may use inside
        line = bytearray()
        while self.left and not line.endswith(b"\n"):
            line += self.read(1)
        return bytes(line)

    def skip(self) -> None:
        """Read and drop the rest of the payload."""
        while self.left:
            self.read(min(self.left, CHUNK_BYTES))


class TooMuchError(Exception):
    """Raised if a pickle becomes larger than is allowed."""


@final
class Pieces:
    """The file object that a pickler writes to. It keeps large `bytes` as they are, without a copy."""

    def __init__(self, most: float) -> None:
        self.pieces: list[bytes] = []
        self._left = most  # how many more bytes may be made

    def write(self, data: Any) -> None:
        if type(data) is not bytes:
            data = bytes(data.raw() if isinstance(data, pickle.PickleBuffer) else data)  # a copy: it can change
            self._left -= len(data)
        elif len(data) < PICKLER_BYTES:
            self._left -= len(data)
        if self._left < 0:
            raise TooMuchError
        self.pieces.append(data)


def pickle_in_pieces(obj: object, most: float = float("inf")) -> list[bytes]:
    """Pickle *obj*. Raises whatever pickle raises, and `TooMuchError` if that makes more than *most* bytes."""
    made = Pieces(most)
    pickle.Pickler(made, PROTOCOL).dump(obj)
    return made.pieces


def in_frame(kind: bytes, pieces: list[bytes]) -> list[bytes]:
    """Return *pieces* with a header in front, joined to one piece if they are small."""
    size = sum(map(len, pieces))
    header = HEADER.pack(kind, size)
    whole = [header, *pieces]
    return [b"".join(whole)] if size <= JOINED_BYTES else whole
