"""Payloads: objects as bytes for a pipe, and the large ones in memory that both its ends share.

Used by the parent and in its workers; standard library only, and knows neither calls nor pools. What is small, or
cannot be shared, is a plain pickle. What is large goes into a `Memory`, and only its size through the pipe:

- on Linux a memfd, which the parent keeps for later calls, since to make its pages takes longer than to fill them;
  a worker opens it through the parent's `/proc`. It ends with the last process that has it open;
- elsewhere a temporary file for each message, which the one who reads it removes as soon as it is open.

Nothing is mapped: who reads a mapping of what another process truncates is killed. A `Memory` serves one call at a
time: the parent writes, the worker reads, then writes, and the parent reads.
"""

from __future__ import annotations

import io
import itertools
import os
import pickle
import sys
import threading
from contextlib import suppress
from typing import Any, final

IN_MEMORY = sys.platform == "linux"
LARGE = 96 * 1024  # bytes of a pickle, from which on the pipe is slower; measured: at 64 KiB they are even
KEPT = 128 * 1024 * 1024  # bytes of pages in all free memories; otherwise arbitrary
MOST_FREE = 8  # as many memories are kept, each with a file descriptor; arbitrary
MOST_LENT = 64  # with more calls than that in flight, the others use the pipe; arbitrary
MOST_OPEN = 16  # as many memories a worker keeps open; arbitrary
PLAIN = frozenset((type(None), bool, int, float))
GLANCE = 1024  # characters or bytes, up to which a string is small; arbitrary
READ_AHEAD = 64 * 1024  # bytes, as many as a pickler writes at once
START = 3584  # where a pickle begins: an AMD copies at a third of its speed to page offsets just above the source's
HUGE = 4 * 1024 * 1024  # bytes, from which on an object gets huge pages, as in NumPy
PAGE = 4096  # bytes; where pages are larger, the kernel refuses the advice
MADV_HUGEPAGE = 14  # Linux's, as the next one
MADV_POPULATE_WRITE = 23
PROTOCOL = 5  # the first that knows bytearrays and buffers
SHARED = b"shared "  # what a packed object in memory begins with; a pickle begins with b"\x80"

Address = tuple[str, str]


class UnreachableError(OSError):
    """Raised in a worker that cannot open its parent's memory: it is to ask for the bytes of `to_plain` instead."""


@final
class Memory:
    """Memory for one call at a time, in the parent or, as another handle of the same, in the worker."""

    __slots__ = ("address", "fd", "size")

    def __init__(self, address: Address, fd: int | None = None) -> None:
        self.address = address  # a path, and what is found there: "" for a file that is new for each message
        self.fd = fd  # None: not opened, or not for long
        self.size = 0  # bytes that it takes up, as far as the parent knows

    def open(self, flags: int) -> int:
        """Return a file descriptor at the beginning of it, for *flags* to write or to read."""
        path, label = self.address
        fd = self.fd
        if not label:
            fd = os.open(path, flags | getattr(os, "O_BINARY", 0), 0o600)
        elif fd is None:
            fd = os.open(path, os.O_RDWR)
            try:
                if os.readlink(f"/proc/self/fd/{fd}") != label:  # noqa: PTH115  pathlib is slow to import
                    raise OSError(f"{path} is not {label} any more")
            except OSError:
                os.close(fd)
                raise
            self.fd = fd
        os.lseek(fd, START, os.SEEK_SET)
        return fd

    def open_to_write(self) -> int:
        return self.open(os.O_RDWR | os.O_CREAT | os.O_EXCL)

    def open_to_read(self) -> int:
        fd = self.open(os.O_RDONLY | getattr(os, "O_TEMPORARY", 0))
        self.remove()
        return fd

    def leave(self, fd: int, size: int) -> None:
        """Be done with *fd*, after *size* bytes were written or read."""
        if self.fd is None:
            os.close(fd)
        else:
            self.size = max(self.size, size)

    def remove(self) -> None:
        """Where it is a file, see to it that nothing of it is left when it is closed."""
        path, label = self.address
        if not label:
            with suppress(OSError):
                os.unlink(path)  # noqa: PTH108

    def truncate(self, size: int) -> None:
        if self.fd is not None:
            with suppress(OSError):
                os.ftruncate(self.fd, size)
            self.size = size

    def close(self) -> None:
        """Close this handle for ever; what is packed with it goes the plain way."""
        fd, self.fd, self.address = self.fd, None, ("", "")
        if fd is not None:
            os.close(fd)


# Guards the names below; all in the parent. Reentrant, for the garbage collector may end a coroutine, which gives its
# memory back, on a thread that is in here already. A forked child starts without any memory, and closes what it got.
_lock = threading.RLock()
_lent: set[Memory] = set()
_free: list[Memory] = []  # the one that was used last comes last, and is lent first
_serials = itertools.count()

_opened: dict[Address, Memory] = {}  # in a worker, which has one call at a time: the one that was used last comes last


def borrow() -> Memory | None:
    """Return memory for one call, or None where there is none: then the plain way is left."""
    with _lock:
        if _free:
            memory = _free.pop()
        elif len(_lent) >= MOST_LENT:
            return None
        else:
            try:
                memory = _make()
            except OSError:
                return None
        _lent.add(memory)
        return memory


def give_back(memory: Memory, clean: bool) -> None:
    """Keep *memory* for the next call, unless a worker may still use it. Doing so twice is harmless."""
    with _lock:
        if memory not in _lent:
            return
        _lent.remove(memory)
        memory.remove()  # what nobody has read
        if clean and len(_free) < MOST_FREE:
            _free.append(memory)
            if memory.size:
                _truncate_the_oldest()
            return
    memory.truncate(0)  # a worker that has it open keeps nothing alive
    memory.close()


def _truncate_the_oldest() -> None:
    excess = sum(kept.size for kept in _free) - KEPT
    for kept in _free if excess > 0 else ():
        cut = min(excess, kept.size)
        excess -= cut
        kept.truncate(kept.size - cut)


def _make() -> Memory:
    name = f"unfazed-{os.getpid()}-{next(_serials)}"
    if not IN_MEMORY:
        from tempfile import gettempdir  # slow to import

        return Memory((f"{gettempdir()}{os.sep}{name}-{os.urandom(8).hex()}", ""))
    fd = os.memfd_create(name)
    path = f"/proc/{os.getpid()}/fd/{fd}"
    try:
        return Memory((path, os.readlink(path)), fd)  # noqa: PTH115
    except OSError:
        os.close(fd)
        raise


def open_at(address: Address) -> Memory:
    """Return the worker's own handle of the memory at *address*, which is opened when it is needed."""
    memory = _opened[address] = _opened.pop(address) if address in _opened else Memory(address)
    if len(_opened) > MOST_OPEN:
        _opened.pop(next(iter(_opened))).close()
    return memory


class _Sink:
    """The file that a pickler writes to. It is given large objects as they are, and writes them on without a copy."""

    __slots__ = ("chunks", "fd", "memory", "size", "written")

    def __init__(self, memory: Memory) -> None:
        self.memory: Memory | None = memory  # None: it cannot be written to
        self.fd: int | None = None  # of the memory, while that is written to
        self.written = 0  # bytes in the memory
        self.chunks: list[bytes] = []  # what is not in the memory
        self.size = 0  # bytes in all

    def write(self, chunk: bytes | bytearray | memoryview | pickle.PickleBuffer) -> None:
        if isinstance(chunk, pickle.PickleBuffer):
            chunk = chunk.raw()
        self.size += len(chunk)
        if self.size >= LARGE and self.memory is not None and self.fd is None:
            try:
                self.fd = self.memory.open_to_write()
            except OSError:
                self.memory = None
            else:
                chunks, self.chunks = self.chunks, []
                for earlier in chunks:
                    self.put(earlier)
        self.put(chunk)

    def put(self, chunk: bytes | bytearray | memoryview) -> None:
        if self.fd is None:
            self.chunks.append(bytes(chunk))  # a view may not outlive this call
            return
        view = memoryview(chunk)
        try:
            while view:
                done = os.write(self.fd, view)  # at most 2 GiB
                self.written += done
                view = view[done:]
        except OSError:  # there is no room left: take back what was written
            os.lseek(self.fd, START, os.SEEK_SET)
            self.chunks.append(_reader(self.fd).read(self.written))
            self.chunks.append(bytes(view))
            self.abandon()

    def finish(self) -> bytes:
        if self.fd is None or self.memory is None:
            return self.chunks[0] if len(self.chunks) == 1 else b"".join(self.chunks)
        self.memory.leave(self.fd, self.size)
        return b"%s%d" % (SHARED, self.size)

    def abandon(self) -> None:
        if self.fd is not None and self.memory is not None:
            self.memory.leave(self.fd, 0)
            self.memory.remove()
            self.memory.truncate(0)
        self.fd = self.memory = None


def is_small(value: object) -> bool:
    """Return whether *value* can be told at a glance to be small, and plain: its pickle needs no memory."""
    kind = type(value)
    return kind in PLAIN or (isinstance(value, (str, bytes)) and len(value) <= GLANCE and kind in (str, bytes))


def pack(obj: object, memory: Memory | None) -> bytes:
    """Pickle *obj*, into *memory* if it is large, and return what is to be sent. Raises whatever pickle raises."""
    if memory is None:
        return pickle.dumps(obj, PROTOCOL)
    sink = _Sink(memory)
    try:
        pickle.Pickler(sink, PROTOCOL).dump(obj)
        return sink.finish()
    except BaseException:
        sink.abandon()
        raise


def unpack(data: bytes, memory: Memory | None, unpickler_class: type[pickle.Unpickler] = pickle.Unpickler) -> Any:
    """Return the object that was packed. Raises whatever the unpickler raises, and `UnreachableError`."""
    if not data.startswith(SHARED):
        if unpickler_class is pickle.Unpickler:
            return pickle.loads(data)  # the same, and faster
        return unpickler_class(io.BytesIO(data)).load()
    fd, memory = _open_packed(memory)
    try:
        return unpickler_class(_reader(fd)).load()
    finally:
        memory.leave(fd, int(data[len(SHARED) :]))


def to_plain(data: bytes, memory: Memory | None) -> bytes:
    """Return what `pack` would have without memory, for a worker that cannot open it."""
    if not data.startswith(SHARED):
        return data
    fd, memory = _open_packed(memory)
    size = int(data[len(SHARED) :])
    try:
        return _reader(fd).read(size)
    finally:
        memory.leave(fd, size)


def _open_packed(memory: Memory | None) -> tuple[int, Memory]:
    assert memory is not None, "what was packed into memory comes with it"
    try:
        return memory.open_to_read(), memory
    except OSError as exc:
        raise UnreachableError(*exc.args) from exc


def _reader(fd: int) -> io.BufferedReader:
    """Return a file that fills large objects directly."""
    return io.BufferedReader(_Source(fd, closefd=False), READ_AHEAD)


class _Source(io.FileIO):
    """The file that an unpickler reads from, in which new objects of many pages are given huge ones."""

    last = 0

    def readinto(self, buffer: Any) -> int:
        # From Python 3.15 on, an object is read in parts, each as large as all before, and moved: huge pages slowly.
        size, last, self.last = len(buffer), self.last, len(buffer)
        if size >= HUGE and IN_MEMORY:
            _advise(buffer, MADV_HUGEPAGE if size > 4 * last else MADV_POPULATE_WRITE)
        return super().readinto(buffer)


def _advise(buffer: memoryview, advice: int) -> None:
    """Have the kernel make the pages of *buffer* many at a time: to make them singly takes longer than to fill them."""
    with suppress(ImportError, AttributeError, OSError):  # without it is well, too
        import ctypes  # slow to import

        address = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
        begin = -(-address // PAGE) * PAGE
        size = (address + len(buffer)) // PAGE * PAGE - begin
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(size), advice)


def _start_afresh() -> None:
    global _lock
    _lock = threading.RLock()
    for memory in (*_lent, *_free, *_opened.values()):
        memory.close()
    _lent.clear()
    _free.clear()
    _opened.clear()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_start_afresh)
