"""Functions that misbehave in a worker process. It imports little: each worker does it."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

PATIENCE_SECONDS = 10  # what waits here for a file gives up then
initialized = 0


def wait_for(path: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not path.exists():
        if time.monotonic() > deadline:
            raise TimeoutError(str(path))
        time.sleep(0.001)


def pid_after(started: Path, awaited: Path) -> int:
    """Tell when it runs, and end when told."""
    (started / str(os.getpid())).touch()
    wait_for(awaited)
    return os.getpid()


def run_echo() -> str:
    import subprocess

    subprocess.run(["echo", "from echo"], check=True)
    return "done"


def run_cat() -> str:
    import subprocess

    subprocess.run(["cat"], check=True)
    return "done"


def read_stdin() -> str:
    assert sys.stdin.read() == ""
    assert os.read(0, 1) == b""
    return "done"


def write_megabyte() -> str:
    for _ in range(16):
        os.write(2, b"y" * 65535 + b"\n")
    return "done"


def close_streams() -> str:
    for number in (0, 1, 2):
        os.close(number)
    return "done"


def lose_streams() -> str:
    sys.stdin = sys.stdout = sys.stderr = None
    return "done"


def close_all_and_wait() -> None:
    """As programs do that turn themselves into daemons."""
    os.closerange(3, 1000)
    time.sleep(PATIENCE_SECONDS)


class _BadStream:
    def flush(self) -> NoReturn:
        raise LookupError("of a stream")


def put_bad_stream() -> str:
    sys.stdout = _BadStream()
    return "done"


def close_output() -> str:
    sys.stdout.close()
    sys.stderr.close()
    return "done"


def open_and_print(path: Path) -> None:
    with path.open("w") as file:
        print("printed", flush=True)  # noqa: T201
        print("to stderr", file=sys.stderr, flush=True)  # noqa: T201
        file.write("data")


def print_euros(count: int) -> None:
    print("€" * count)  # noqa: T201


class FrozenError(Exception):
    """Refuses to have its attributes set, as a frozen dataclass does."""

    def __init__(self, number: int) -> None:
        self.__dict__["number"] = number

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(name)


def raise_frozen() -> NoReturn:
    raise FrozenError(3)


def raise_bad_syntax_error() -> NoReturn:
    """Its line number is text; `traceback` expects a number."""
    place: Any = ("file.py", 1, "x", "text")
    raise SyntaxError("bad", place)


class BadTextError(Exception):
    def __str__(self) -> NoReturn:
        raise LookupError("of a text")


def log_bad_texts(name: str) -> None:
    logger = __import__("logging").getLogger(name)
    logger.warning(BadTextError())
    try:
        raise_bad_syntax_error()
    except SyntaxError:
        logger.exception("bad syntax")


def configure_logging_and_log(name: str) -> None:
    logging = __import__("logging")
    logging.basicConfig(level=logging.INFO, format="doubled %(message)s")
    logging.getLogger(name).warning("once")


def note_and_crash(path: Path) -> NoReturn:
    with path.open("a") as file:
        file.write("x")
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("killed")


def leave_thread_that_writes_megabyte(awaited: Path, ended: Path) -> str:
    def write() -> None:
        wait_for(awaited)
        write_megabyte()
        ended.touch()

    threading.Thread(target=write, daemon=True).start()
    return "done"


def print_everywhere(word: str) -> None:
    print(f"{word} printed")  # noqa: T201
    print(f"{word} to stderr", file=sys.stderr)  # noqa: T201
    os.write(1, f"{word} to 1\n".encode())
    os.write(2, f"{word} to 2\n".encode())
    print(f"{word} without an end", end="")  # noqa: T201


def print_slowly(word: str, ready: Path, others: Path) -> None:
    """Print lines in pieces, while another worker does."""
    ready.touch()
    wait_for(others)
    for _ in range(100):
        for letter in word:
            sys.stdout.write(letter)
            sys.stdout.flush()
        sys.stdout.write("\n")


def flood_until(started: Path, awaited: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    line = b"z" * 4095 + b"\n"
    while not awaited.exists() and time.monotonic() < deadline:
        for _ in range(100):
            os.write(2, line)
        started.touch()


def fail_with_note() -> NoReturn:
    exc = ValueError("noted")
    exc.__notes__ = ["a note from the worker"]
    raise exc


def die(code: int) -> NoReturn:
    os._exit(code)


def kill_by(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(PATIENCE_SECONDS)


def note_then_die(path: Path) -> NoReturn:
    with path.open("a") as file:
        file.write("x")
    os._exit(3)


def note_then_die_amid_the_answer(path: Path, size: int) -> bytes:
    from unfazed._worker import channel

    def write_half(fd: int, pieces: list[bytes], *, begun: bool) -> None:
        data = b"".join(pieces)
        os.write(fd, data[: len(data) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    with path.open("a") as file:
        file.write("x")
    channel.write_all = write_half  # type: ignore[assignment]
    return bytes(size)


def fork(awaited: Path) -> int:
    """Have a child that keeps what it inherited until told."""
    pid = os.fork()
    if not pid:
        try:
            wait_for(awaited)
        finally:
            os._exit(0)
    return pid


def fork_and_die(awaited: Path, code: int) -> NoReturn:
    fork(awaited)
    os._exit(code)


def leave_thread_that_dies(awaited: Path) -> None:
    def die_when_told() -> None:
        wait_for(awaited)
        os._exit(5)

    threading.Thread(target=die_when_told, daemon=True).start()


class EndsThePickler:
    def __reduce__(self) -> NoReturn:
        raise SystemExit(4)


def return_what_ends_the_pickler() -> object:
    return EndsThePickler()


class WithoutTextError(Exception):
    def __str__(self) -> NoReturn:
        raise LookupError("no text")


class FailsWithoutText:
    def __reduce__(self) -> NoReturn:
        raise WithoutTextError


def return_what_fails_without_text() -> object:
    return FailsWithoutText()


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


# Log records


def log(name: str, *records: tuple[int, str], **kwargs: Any) -> int:
    import logging

    for level, message in records:
        logging.getLogger(name).log(level, message, **kwargs)
    return os.getpid()


def log_many(name: str, count: int) -> None:
    import logging

    for number in range(count):
        logging.getLogger(name).warning("%d", number)


def log_and_note(name: str, count: int, path: Path) -> None:
    """Log, and write a byte for each record, which tells how far it has come."""
    import logging

    with path.open("wb", buffering=0) as file:
        for number in range(count):
            logging.getLogger(name).warning("%d", number)
            file.write(b"x")


def log_error(name: str) -> None:
    import logging

    try:
        raise ValueError("logged")
    except ValueError:
        logging.getLogger(name).exception("with %s", "its traceback")


def log_and_die(name: str) -> NoReturn:
    import logging

    for number in range(3):
        logging.getLogger(name).warning("%d", number)
    os._exit(7)


def log_wrong_format(name: str) -> None:
    import logging

    logging.getLogger(name).warning("%d", "no number")


def log_what_does_not_pickle(name: str) -> None:
    import logging

    logging.getLogger(name).warning("with %s", "extra", extra={"here": lambda: None, "ends": EndsThePickler()})


def log_from_thread_left_behind(name: str, awaited: Path) -> None:
    import logging

    def log_when_told() -> None:
        wait_for(awaited)
        logging.getLogger(name).warning("left behind")

    threading.Thread(target=log_when_told, daemon=True).start()


def log_to_file(name: str, path: str) -> None:
    import logging

    logger = logging.getLogger(name)
    handler = logging.FileHandler(path)
    logger.addHandler(handler)
    logger.warning("to a file")
    logger.removeHandler(handler)
    handler.close()


def log_from_fork(name: str, count: int) -> None:
    """Log here and in a child at once, large records, which must not get mixed."""
    import logging

    text = "t" * 300_000
    pid = os.fork()
    try:
        for number in range(count):
            logging.getLogger(name).warning("%d %s", number, text)
    finally:
        if not pid:
            os._exit(0)
    os.waitpid(pid, 0)


def is_logging_imported() -> bool:
    return "logging" in sys.modules


# Initializers


def initialize(folder: Path) -> None:
    global initialized
    initialized += 1
    (folder / f"{os.getpid()} {initialized}").touch()


class Initializer:
    """An object that takes no weak references."""

    __slots__ = ("folder", "settings")

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.settings = 0

    def __call__(self) -> None:
        initialize(self.folder)


def initialize_with(folder: Path, settings: object) -> None:
    initialize(folder)


def initialize_unless(path: Path) -> None:
    """Fail as long as there is a file."""
    if path.exists():
        raise LookupError("cannot initialize")
    initialize(path.parent)


def times_initialized() -> int:
    return initialized


def block_sigterm_and_wait(started: Path, awaited: Path) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    started.touch()
    wait_for(awaited)


def apply(func: Callable[..., Any], *args: Any) -> Any:
    return func(*args)


def fork_and_return() -> int:
    return os.fork()
