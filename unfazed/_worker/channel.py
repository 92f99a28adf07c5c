"""What goes through the two pipes between a worker process and its parent: frames, and pickles in pieces.

A frame is a header (its kind, and how many bytes follow) and its payload. Used at both ends; standard library only.

Guarantees, which hold even if a signal handler raises at any bytecode of the thread that calls:

- what `write_once` and `read_once` have done is in the list that they were given, neither lost nor doubled: a builtin
  calls another one, and no bytecode runs in between;
- a frame of at most `ATOMIC` bytes is written as a whole or not at all.

Assumption: one thread at a time reads a pipe. Frames of more than `ATOMIC` bytes need a lock among those that write.
"""

from __future__ import annotations

import errno
import io
import os
import pickle
import struct
from typing import Any, final

BROKEN = (errno.EPIPE, errno.EBADF, errno.EINVAL)  # the last one is what Windows says
HEADER = struct.Struct("<cQ")
HEADER_BYTES = HEADER.size
CHUNK_BYTES = (1 << 16) + (1 << 12)  # read at a time: 64 KiB and what belongs to them
ATOMIC = 4096 if os.name == "posix" and os.uname().sysname == "Linux" else 512  # PIPE_BUF: Linux's, and POSIX's least
PROTOCOL = 5  # the first that knows bytearrays and buffers
JOINED_BYTES = 1 << 17  # up to which a frame is joined to be written in one step; arbitrary
PICKLER_BYTES = 1 << 17  # more than that in one piece is an object that the pickler passes on as it is

# From the parent
LEVELS = b"L"  # of its loggers, pickled
INITIALIZER = b"I"  # a pickled function
CALL = b"C"  # a pickled (func, args, kwargs)
FLUSH = b"F"  # send the log records that threads have left behind, and answer with the same

# From the worker
HELLO = b"\0unfazed worker\0"  # no frame: what comes before it was printed while the interpreter started
READY = b"R"  # it can take calls
UNPREPARED = b"U"  # it cannot, and ends: pickled, why, and whether a missing guard is the cause
BEGUN = b"B"  # a call has come, and nothing of it has been run
RECORD = b"G"  # a log record, pickled
VALUE = b"V"  # what the function returned, pickled
OUTCOME = b"O"  # what else a call came to: a pickled (kind, about, text)

BEGUN_FRAME = HEADER.pack(BEGUN, 0)


def read_header(data: bytes, offset: int = 0) -> tuple[bytes, int]:
    """Return the kind and the size of the frame that begins there."""
    kind: bytes
    size: int
    kind, size = HEADER.unpack_from(data, offset)
    return kind, size


class PipeEndError(EOFError):
    """Raised where a pipe ends: amid a frame, or where one is waited for."""


def frame(kind: bytes, payload: bytes = b"") -> bytes:
    return HEADER.pack(kind, len(payload)) + payload


def write_once(fd: int, data: Any, written: list[int]) -> None:
    """Write to *fd* once, and add to *written* how many bytes that was."""
    written.extend(map(os.write, (fd,), (data,)))


def read_once(fd: int, received: list[bytes]) -> None:
    """Read from *fd* once, and add to *received* what came: nothing at the end."""
    received.extend(map(os.read, (fd,), (CHUNK_BYTES,)))


def is_broken(exc: BaseException) -> bool:
    """Return whether *exc* says that nobody is at the other end, and is none of a signal handler's own."""
    return isinstance(exc, OSError) and exc.errno in BROKEN


def write_all(fd: int, pieces: list[bytes], *, begun: bool = False) -> None:
    """Write *pieces* to *fd*, however long that takes. What a signal handler raises meanwhile comes out at the end.

    Before the first byte is written it comes out at once, and nothing is written, unless that has *begun*.
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
    """Reads frames from a pipe, and is the file from which an unpickler reads the payload of one."""

    def __init__(self, fd: int, data: bytes = b"") -> None:
        self.fd = fd
        self.data = data  # has been read, and not been taken
        self.left: int = 0  # bytes of the payload that have not been taken
        self._file: io.FileIO | None = None

    def next(self) -> tuple[bytes, int]:
        """Return the kind of the next frame and the size of its payload. Raises `PipeEndError` at the end."""
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

    def readline(self) -> bytes:  # for old protocols, which an object may have pickled a part of it with
        line = bytearray()
        while self.left and not line.endswith(b"\n"):
            line += self.read(1)
        return bytes(line)

    def skip(self) -> None:
        """Take the rest of the payload, and drop it."""
        while self.left:
            self.read(min(self.left, CHUNK_BYTES))


class TooMuchError(Exception):
    """Raised where more was to be pickled than is allowed."""


@final
class Pieces:
    """The file that a pickler writes to. Large `bytes` stay what they are: nobody copies them."""

    def __init__(self, most: float) -> None:
        self.pieces: list[bytes] = []
        self._left = most  # bytes that may be made

    def write(self, data: Any) -> None:
        if type(data) is not bytes:
            data = bytes(data.raw() if isinstance(data, pickle.PickleBuffer) else data)  # whose owner may change it
            self._left -= len(data)
        elif len(data) < PICKLER_BYTES:
            self._left -= len(data)
        if self._left < 0:
            raise TooMuchError
        self.pieces.append(data)


def pickle_in_pieces(obj: object, most: float = float("inf")) -> list[bytes]:
    """Pickle *obj*. Raises whatever pickle raises, and `TooMuchError` where more than *most* bytes had to be made."""
    made = Pieces(most)
    pickle.Pickler(made, PROTOCOL).dump(obj)
    return made.pieces


def in_frame(kind: bytes, pieces: list[bytes]) -> list[bytes]:
    """Return *pieces* with a header in front; as one piece, if that is small."""
    size = sum(map(len, pieces))
    header = HEADER.pack(kind, size)
    return [header + b"".join(pieces)] if size <= JOINED_BYTES else [header, *pieces]
