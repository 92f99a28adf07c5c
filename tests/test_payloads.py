"""Large arguments and results, there and back through memory that two processes share."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from unfazed._worker import payloads
from unfazed._worker.payloads import LARGE, Memory, UnreachableError, borrow, give_back, open_at, pack, unpack

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

assert ctypes  # opens a file for good when it is imported: now, and not in a test that counts them

BIG = 3 * LARGE
HUGE = payloads.HUGE + 12345

linux = pytest.mark.skipif(sys.platform != "linux", reason="there is no memfd")


def empty_the_pool() -> None:
    for memory in (*payloads._lent, *payloads._free):
        memory.remove()
        memory.close()
    for memory in payloads._opened.values():
        memory.close()
    payloads._lent.clear()
    payloads._free.clear()
    payloads._opened.clear()


@pytest.fixture(autouse=True)
def pool(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Each test begins without any memory, and leaves neither a file descriptor nor a file behind."""
    empty_the_pool()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = count_fds()
    yield
    empty_the_pool()

    assert count_fds() == before
    assert not list(tmp_path.iterdir())


@pytest.fixture(params=["memory", "file"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where large payloads are: in memory, as on Linux, or in files, as elsewhere."""
    if request.param == "file":
        monkeypatch.setattr(payloads, "IN_MEMORY", False)
    elif sys.platform != "linux":
        pytest.skip("there is no memfd")
    way: str = request.param
    return way


def count_fds() -> int:
    return len(list(Path("/proc/self/fd").iterdir())) if sys.platform == "linux" else 0


def lend() -> tuple[Memory, Memory]:
    """Return memory as the parent has it, and as the worker has."""
    memory = borrow()
    assert memory is not None
    return memory, open_at(memory.address)


def there_and_back(value: object, *, large: bool | None = None) -> Any:
    """Send *value* as a call's argument and then as its result."""
    memory, workers = lend()
    request = pack(value, memory)
    response = pack(unpack(request, workers), workers)
    result = unpack(response, memory)
    give_back(memory, clean=True)
    if large is not None:
        assert [packed.startswith(payloads.SHARED) for packed in (request, response)] == [large, large]
    return result


VALUES: dict[str, Callable[[], object]] = {
    "bytes": lambda: os.urandom(BIG),
    "bytearray": lambda: bytearray(os.urandom(BIG)),
    "huge bytes": lambda: os.urandom(HUGE),
    "huge bytearray": lambda: bytearray(os.urandom(HUGE)),
    "str": lambda: "ä€𐍈" * LARGE,
    "surrogates": lambda: "\udc80" * LARGE,
    "nested": lambda: {"a": [os.urandom(LARGE), (bytearray(BIG),)], "b": (os.urandom(100_000), {1: b"x" * 70_000})},
    "many small ones": lambda: [os.urandom(1000) for _ in range(1000)],
    "many middling ones": lambda: [os.urandom(65_000 + n) for n in range(0, 2000, 100)],
    "numbers": lambda: list(range(200_000)),
    "readable buffer": lambda: pickle.PickleBuffer(b"x" * BIG),
    "writable buffer": lambda: pickle.PickleBuffer(bytearray(BIG)),
}


@pytest.mark.parametrize("make", VALUES.values(), ids=VALUES)
def test_a_large_object_survives(make: Callable[[], object], way: str) -> None:
    value = make()
    expected = pickle.loads(pickle.dumps(value, 5))

    result = there_and_back(value, large=True)

    assert type(result) is type(expected)
    assert result == expected


@pytest.mark.parametrize("value", [None, b"", bytearray(), "", [], 7, {"a": (1, 2.5)}], ids=repr)
def test_a_small_object_survives(value: object, way: str) -> None:
    assert there_and_back(value, large=False) == value


def test_a_small_object_is_a_plain_pickle() -> None:
    memory, _ = lend()

    assert pack([1, "a"], memory) == pack([1, "a"], None) == pickle.dumps([1, "a"], 5)


@pytest.mark.parametrize("extra", range(-40, 40))
def test_an_object_around_the_threshold_survives(extra: int) -> None:
    value = os.urandom(LARGE + extra)

    assert there_and_back(value) == value


def test_small_pieces_go_the_plain_way_until_they_are_large() -> None:
    value = [b"x" * 70_000, b"y" * 20_000]
    memory, workers = lend()

    data = pack(value, memory)

    assert data == pickle.dumps(value, 5)
    assert unpack(data, workers) == value


def test_what_was_writable_is_writable(way: str) -> None:
    result = there_and_back(bytearray(BIG), large=True)
    result += b"more"
    result[0] = 1

    assert len(result) == BIG + 4


def test_arrays_survive(way: str) -> None:
    numpy = pytest.importorskip("numpy")
    array = numpy.arange(BIG, dtype="f8").reshape(3, -1)
    frozen = array[0].copy()
    frozen.flags.writeable = False
    value = {"c": array, "fortran": numpy.asfortranarray(array), "sliced": array[:, ::2], "frozen": frozen}

    result = there_and_back(value, large=True)

    for name, sent in value.items():
        assert (result[name] == sent).all()
        assert result[name].dtype == sent.dtype
        assert result[name].flags.writeable == sent.flags.writeable
        assert result[name].flags.f_contiguous == pickle.loads(pickle.dumps(sent, 5)).flags.f_contiguous


def test_an_unpickler_of_ones_own_finds_the_classes(way: str) -> None:
    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str, /) -> Any:
            return len if name == "print" else super().find_class(module, name)

    memory, workers = lend()

    for value in ((print, b"x" * BIG), (print, b"x")):
        assert unpack(pack(value, memory), workers, Unpickler) == (len, value[1])


@linux
def test_memory_is_used_again() -> None:
    fds = set()
    for size in (BIG, 10, 2 * BIG, HUGE, BIG, 0):
        assert there_and_back(bytes(size)) == bytes(size)
        fds.add(payloads._free[-1].fd)

    assert len(fds) == len(payloads._free) == len(payloads._opened) == 1
    assert payloads._free[0].size > HUGE


def test_threads_do_not_share_memory(way: str) -> None:
    barrier = threading.Barrier(4, timeout=20)

    def send(number: int) -> bool:
        barrier.wait()
        for size in range(BIG, BIG + 20):
            value = bytes([number]) * size
            memory = borrow()
            assert memory is not None
            workers = Memory(memory.address)  # each has its own
            back = unpack(pack(unpack(pack(value, memory), workers), workers), memory)
            give_back(memory, clean=True)
            workers.close()
            if back != value:
                return False
        return True

    with ThreadPoolExecutor(4) as executor:
        assert all(executor.map(send, range(4)))
    assert len(payloads._free) <= 4


class Unpicklable:
    def __reduce__(self) -> NoReturn:
        raise OSError("I cannot be pickled")


@pytest.mark.parametrize("value", [Unpicklable(), [b"x" * BIG, Unpicklable()]], ids=["small", "large"])
def test_an_object_that_cannot_be_pickled_raises_what_pickle_raises(value: object, way: str) -> None:
    memory, workers = lend()

    for handle in (memory, workers):
        with pytest.raises(OSError, match="I cannot be pickled"):
            pack(value, handle)
        assert unpack(pack(b"y" * BIG, handle), workers if handle is memory else memory) == b"y" * BIG


class Unreadable:
    def __init__(self) -> None:
        self.ballast = b"x" * BIG

    def __setstate__(self, state: object) -> NoReturn:
        raise OSError("I cannot be read")


def test_an_object_that_cannot_be_read_raises_what_it_raises(way: str) -> None:
    memory, workers = lend()

    with pytest.raises(OSError, match="I cannot be read") as caught:
        unpack(pack(Unreadable(), memory), workers)

    assert type(caught.value) is OSError
    assert unpack(pack(b"y" * BIG, workers), memory) == b"y" * BIG


def test_no_memory_left_is_a_memory_error(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    memory, workers = lend()
    data = pack(bytes(BIG), memory)

    def no_memory(fd: int) -> NoReturn:
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(payloads, "_reader", no_memory)
        with pytest.raises(MemoryError):
            unpack(data, workers)
    assert unpack(pack(b"y" * BIG, workers), memory) == b"y" * BIG


def fail(*args: object, **kwargs: object) -> NoReturn:
    raise OSError(errno.EMFILE, "too many")


@linux
@pytest.mark.parametrize("missing", ["memfd_create", "readlink"])
def test_without_memfd_or_proc_there_is_no_memory(missing: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, missing, fail)

    assert borrow() is None
    assert unpack(pack(b"x" * BIG, None), None) == b"x" * BIG


def test_what_cannot_be_opened_to_write_is_left_alone(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    memory, workers = lend()
    monkeypatch.setattr(os, "open", fail)
    value = [b"x" * 100, b"y" * BIG, bytearray(BIG), pickle.PickleBuffer(b"z" * BIG)]

    data = pack(value, workers)

    assert len(data) > 3 * BIG
    assert unpack(data, memory) == pickle.loads(pickle.dumps(value, 5))


@pytest.mark.parametrize("room", [0, 1, LARGE, BIG - 100, BIG + 100, 2 * BIG])
def test_where_the_room_ends_the_plain_way_is_taken(room: int, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    memory, workers = lend()
    value = [b"a", b"x" * BIG, bytearray(b"y") * BIG, pickle.PickleBuffer(b"z" * BIG), "b"]
    left = room
    write = os.write

    def write_a_little(fd: int, data: memoryview) -> int:
        nonlocal left
        if not left:
            raise OSError(errno.ENOSPC, "full")
        done = write(fd, data[: min(left, 10_000)])
        left -= done
        return done

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", write_a_little)
        data = pack(value, memory)

    assert unpack(data, None) == pickle.loads(pickle.dumps(value, 5))
    assert memory.size == 0
    assert unpack(pack(b"y" * BIG, memory), workers) == b"y" * BIG


def test_a_limit_of_the_size_of_files_is_no_error(way: str) -> None:
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BIG // 2, hard))
    try:
        assert there_and_back(b"x" * BIG, large=False) == b"x" * BIG
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_worker_that_cannot_open_the_memory_gets_the_plain_bytes(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    memory, workers = lend()
    value = [b"x" * BIG, 1]
    data = pack(value, memory)
    with monkeypatch.context() as patched:
        patched.setattr(os, "open", fail)
        with pytest.raises(UnreachableError, match="too many"):
            unpack(data, workers)

    plain = payloads.to_plain(data, memory)

    assert unpack(plain, workers) == value
    assert payloads.to_plain(plain, memory) is plain


@linux
def test_a_number_that_was_used_again_is_noticed() -> None:
    memory, _ = lend()
    data, fd, address = pack(b"x" * BIG, memory), memory.fd, memory.address
    give_back(memory, clean=False)
    another, _ = lend()
    pack(b"y" * BIG, another)

    assert another.fd == fd
    with pytest.raises(UnreachableError, match="any more"):
        unpack(data, Memory(address))
    assert len(pack(b"z" * BIG, Memory(address))) > BIG
    assert unpack(data, open_at(another.address)) == b"y" * BIG


def test_memory_that_a_worker_may_still_use_is_not_used_again(way: str) -> None:
    memory, workers = lend()
    address = memory.address
    pack(b"x" * BIG, memory)
    give_back(memory, clean=False)

    assert not payloads._free
    assert not payloads._lent
    with pytest.raises(UnreachableError):
        unpack(b"shared 5", workers)
    assert lend()[0].address != address


def test_what_nobody_has_read_is_not_in_the_way(way: str) -> None:
    memory, _ = lend()
    pack(b"x" * BIG, memory)
    give_back(memory, clean=True)

    assert there_and_back(b"y" * BIG, large=True) == b"y" * BIG


@linux
def test_a_worker_that_has_it_open_keeps_nothing_alive() -> None:
    memory, workers = lend()
    unpack(pack(b"x" * BIG, memory), workers)
    assert workers.fd is not None

    give_back(memory, clean=False)

    assert os.fstat(workers.fd).st_blocks == 0


def test_memory_is_given_back_once() -> None:
    memory, _ = lend()
    for _ in range(2):
        give_back(memory, clean=True)

    assert payloads._free == [memory]


def test_closed_memory_leaves_the_plain_way(way: str) -> None:
    memory, _ = lend()
    give_back(memory, clean=False)

    assert unpack(pack(b"x" * BIG, memory), None) == b"x" * BIG


@linux
def test_free_memories_keep_few_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "KEPT", 2 * BIG)
    memories = [lend()[0] for _ in range(4)]
    for memory in memories:
        pack(bytes(BIG), memory)
    for memory in memories:
        give_back(memory, clean=True)

    sizes = [memory.size for memory in payloads._free]
    assert sum(sizes) == 2 * BIG
    assert sizes[0] == sizes[1] == 0
    assert sizes[3] > BIG
    blocks = [os.fstat(memory.fd).st_blocks * 512 for memory in payloads._free if memory.fd is not None]
    assert sum(blocks) <= 2 * BIG + 4 * payloads.PAGE


def test_few_memories_are_kept_and_few_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    lent = [borrow() for _ in range(payloads.MOST_LENT)]
    assert None not in lent
    assert borrow() is None
    for memory in lent:
        assert memory is not None
        give_back(memory, clean=True)

    assert len(payloads._free) == payloads.MOST_FREE
    assert not payloads._lent


@linux
def test_a_worker_keeps_few_open() -> None:
    handles = [lend() for _ in range(payloads.MOST_OPEN + 3)]
    first = handles[0][0]
    before = count_fds()
    for memory, _ in handles:
        assert unpack(pack(b"x" * BIG, memory), open_at(memory.address)) == b"x" * BIG

    assert count_fds() - before == len(payloads._opened) == payloads.MOST_OPEN
    assert unpack(pack(b"x" * BIG, first), open_at(first.address)) == b"x" * BIG


def test_a_file_that_cannot_be_removed_is_not_written_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payloads, "IN_MEMORY", False)
    memory, workers = lend()
    data = pack(b"x" * BIG, memory)
    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", fail)
        assert unpack(data, workers) == b"x" * BIG

    assert len(pack(b"y" * BIG, workers)) > BIG


@linux
def test_without_ctypes_pages_are_made_singly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ctypes", None)

    assert there_and_back(b"x" * HUGE, large=True) == b"x" * HUGE


@linux
def test_what_grows_while_it_is_read_gets_no_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    advised = []
    monkeypatch.setattr(payloads, "_advise", lambda buffer, advice: advised.append(advice))
    memory, _ = lend()
    fd = memory.open_to_read()
    source = payloads._Source(fd, closefd=False)

    for size in (100, payloads.HUGE, 2 * payloads.HUGE):
        source.readinto(bytearray(size))

    assert advised == [payloads.MADV_HUGEPAGE, payloads.MADV_POPULATE_WRITE]


def run_program(program: str, *args: str) -> str:
    """Run *program* in another process and return what it prints."""
    prelude = "import os, sys\nfrom unfazed._worker.payloads import *\nfrom unfazed._worker import payloads\n"
    root = str(Path(payloads.__file__).parent.parent.parent)
    done = subprocess.run(
        [sys.executable, "-c", prelude + program, *args],
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )

    assert not done.stderr
    return done.stdout.strip()


ANSWER = """
memory = open_at((sys.argv[1], sys.argv[2]))
value = unpack(sys.argv[3].encode(), memory)
print(pack(value + value, memory).decode())
"""


def test_another_process_reads_and_writes(way: str) -> None:
    memory, _ = lend()
    for _ in range(2):
        value = os.urandom(10) * BIG
        request = pack(value, memory).decode()

        response = run_program(ANSWER, *memory.address, request)

        assert unpack(response.encode(), memory) == value + value


FORK = """
free, memory = borrow(), borrow()
give_back(free, clean=True)
fds = [free.fd, memory.fd]
data = pack(b"x" * 10**6, memory)
pid = os.fork()
if not pid:
    for fd in fds:
        try:
            os.fstat(fd)
        except OSError:
            pass
        else:
            os._exit(1)
    give_back(memory, clean=True)
    plain = pack(b"y" * 10**6, memory)
    new = borrow()
    ok = new is not memory and new is not free and not payloads._free and len(plain) > 10**6
    ok = ok and unpack(pack(b"z" * 10**6, new), new) == b"z" * 10**6
    os._exit(0 if ok else 2)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), unpack(data, memory) == b"x" * 10**6)
"""


@linux
def test_a_forked_child_has_its_own_memory() -> None:
    assert run_program(FORK) == "0 True"


KILL = """
memory = borrow()
data = pack(b"x" * 10**6, memory)
print(memory.fd, os.readlink(memory.address[0]), flush=True)
sys.stdin.read(1)
"""


@linux
def test_a_killed_parent_leaves_nothing() -> None:
    root = str(Path(payloads.__file__).parent.parent.parent)
    program = "import os, sys\nfrom unfazed._worker.payloads import *\n" + KILL
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": root},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as parent:
        assert parent.stdout is not None
        fd, label = parent.stdout.readline().split(" ", 1)
        address = (f"/proc/{parent.pid}/fd/{fd}", label.strip())
        parent.kill()
        parent.wait(20)

    with pytest.raises(UnreachableError):
        unpack(b"shared 1000000", Memory(address))
    assert not [path for path in Path("/dev/shm").iterdir() if path.name.startswith(f"unfazed-{parent.pid}")]
