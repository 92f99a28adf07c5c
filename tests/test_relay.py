"""The line between a worker process and its parent, from both ends.

The workers here are stand-ins: programs that do what a worker does, and end by themselves. anyio kills the real ones.
"""

from __future__ import annotations

import contextvars
import errno
import io
import logging
import os
import re
import select
import signal
import socket
import subprocess
import sys
import threading
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn

import anyio
import misbehaving_functions as misbehaving
import pytest
from conftest import GRACE_SECONDS, Gate, let_others_run, wait_until

from unfazed._worker import logs, settling
from unfazed.concurrency import WorkerProcessError, _relay, run_in_processpool_sync, warm_up_processpool_sync
from unfazed.concurrency._loops import current_loop

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="there is no relay")

# Python 3.12 and later complain of a fork in a process that has threads.
PYTHON = (sys.executable, "-W", "ignore::DeprecationWarning")


@pytest.fixture
def relay() -> Iterator[_relay.Relay]:
    relay = _relay.Relay()
    yield relay
    relay.stop()


class Written:
    """What has been written to `sys.stderr` so far."""

    def __init__(self, captured: pytest.CaptureFixture[str]) -> None:
        self._captured = captured
        self._text = ""

    def getvalue(self) -> str:
        self._text += self._captured.readouterr().err
        return self._text


@pytest.fixture
def stderr(capsys: pytest.CaptureFixture[str]) -> Written:
    return Written(capsys)


def stand_in(
    source: str, address: settling.Address | None, talk: bytes = b"", *options: str
) -> subprocess.CompletedProcess[bytes]:
    """Run a program that has settled in as a worker does."""
    command = [*PYTHON, *options, "-c", start(address) + source]
    return subprocess.run(command, input=talk, capture_output=True, timeout=30, check=False)


def start(address: settling.Address | None) -> str:
    """Return the first lines of such a program."""
    return f"""
import os, sys
sys.stdin, sys.stdout, sys.stderr = open(os.devnull), open(os.devnull, "w"), open(os.devnull, "w")  # as anyio does
from unfazed._worker import settling, trampoline
settling.settle_in({address!r})
"""


class Loop:
    """Does at once what is posted."""

    native = None

    def post(self, func: Any, *args: object) -> None:
        func(*args)


def flight(relay: _relay.Relay, serial: int, context: contextvars.Context | None = None) -> _relay.Flight:
    lost = threading.Event()
    made = _relay.Flight(Loop(), context or contextvars.copy_context(), lost.set)  # type: ignore[arg-type]
    relay.flights[serial] = made
    return made


# Streams


@pytest.mark.parametrize("options", [(), ("-u",)], ids=["buffered", "unbuffered"])
def test_what_is_written_goes_to_the_parent_and_the_talk_goes_on(
    relay: _relay.Relay, stderr: Written, options: tuple[str, ...]
) -> None:
    done = stand_in(
        """
import subprocess
print("print")
os.write(1, b"descriptor 1\\n")
os.write(2, b"descriptor 2\\n")
subprocess.run(["echo", "child"])
assert subprocess.run(["cat"], capture_output=True).stdout == sys.stdin.read().encode() == b""
talk = sys.__stdin__.buffer.read()
sys.__stdout__.buffer.write(talk.upper())
sys.__stdout__.buffer.flush()
""",
        relay.address,
        b"talk",
        *options,
    )
    relay.stop()

    assert (done.stdout, done.stderr, done.returncode) == (b"TALK", b"", 0)
    assert sorted(stderr.getvalue().splitlines()) == ["child", "descriptor 1", "descriptor 2", "print"]


@pytest.mark.parametrize("address", [None, ("\0nobody listens here", b"token")], ids=["none", "gone"])
def test_without_a_parent_to_talk_to_it_is_silent(address: settling.Address | None) -> None:
    done = stand_in(
        """
import logging
assert trampoline.run(1, b"", None, None, {"": 10, " disabled": 0})[2] == 0
logging.error("nobody hears of it")
print("print"), os.write(2, b"descriptor 2")
""",
        address,
    )

    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


def test_streams_that_others_have_put_in_place_stay(relay: _relay.Relay, stderr: Written) -> None:
    done = stand_in(
        """
settling._settled_in = False
import io
sys.stdout = sys.stdin = io.StringIO()
sys.stderr = None
settling._line = None
settling.settle_in(None)
print("kept")
settling.end()
assert sys.stdout.getvalue() == "kept\\n"
""",
        relay.address,
    )

    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


@pytest.mark.parametrize(
    "mishap",
    [
        "os.close(0), os.close(1)",
        "os.dup2(os.open(os.devnull, os.O_RDWR), 1)",
        "sys.stdin.close(), sys.stdout.close(), sys.stderr.close()",
        "sys.stdin = sys.stdout = sys.stderr = None",
    ],
    ids=["closed", "led elsewhere", "streams closed", "streams gone"],
)
def test_what_a_call_does_to_the_streams_is_undone_before_the_next(
    relay: _relay.Relay, stderr: Written, mishap: str
) -> None:
    done = stand_in(
        f"""
settling.begin(1, None)
{mishap}
settling.end()
settling.begin(2, None)
import subprocess
assert sys.stdin.read().encode() == os.read(0, 1) == b""
assert subprocess.run(["cat"], capture_output=True, check=True).stdout == b""
print("print")
print("stderr", file=sys.stderr)
os.write(1, b"descriptor 1\\n")
os.write(2, b"descriptor 2\\n")
""",
        relay.address,
    )
    relay.stop()

    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)
    assert sorted(stderr.getvalue().splitlines()) == ["descriptor 1", "descriptor 2", "print", "stderr"]


def test_what_a_call_closes_leads_nowhere_where_there_is_no_parent_to_talk_to() -> None:
    done = stand_in(
        """
settling.begin(1, None)
os.close(1)
settling.begin(2, None)
print("dropped"), os.write(1, b"dropped")
assert os.path.samestat(os.fstat(1), os.stat(os.devnull))
""",
        None,
    )

    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


def test_a_line_comes_as_a_whole_and_the_rest_at_the_end(relay: _relay.Relay, stderr: Written) -> None:
    done = stand_in(
        """
import time
for part in (b"a", b"b", b"\\xff\\nprogress\\rwithout an end"):
    os.write(1, part)
""",
        relay.address,
    )
    assert done.returncode == 0
    wait_until(lambda: stderr.getvalue().endswith("end\n"), "the rest comes")

    assert stderr.getvalue() == "ab\\xff\nprogress\rwithout an end\n"


def test_what_has_no_end_of_line_comes_when_it_is_long(relay: _relay.Relay, stderr: Written) -> None:
    length = _relay.LINE_BYTES + 2
    process = subprocess.Popen(
        [
            *PYTHON,
            "-c",
            start(relay.address) + f"os.write(1, b'x' * {length})\nsys.__stdin__.read()",
        ],
        stdin=subprocess.PIPE,
    )
    wait_until(lambda: len(stderr.getvalue()) == length, "it comes")
    process.communicate()


def test_at_the_end_the_rest_of_a_line_comes(relay: _relay.Relay, stderr: Written) -> None:
    process = subprocess.Popen(
        [
            *PYTHON,
            "-c",
            start(relay.address)
            + """
os.write(1, b"the rest")
sys.__stdout__.write("written")
sys.__stdout__.flush()
sys.__stdin__.read()
""",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.read(7) == b"written"
    relay.stop()
    relay.stop()
    process.communicate()

    assert stderr.getvalue() == "the rest\n"


@pytest.mark.parametrize("stream", [None, SimpleNamespace()], ids=["none", "closed"])
def test_without_a_stderr_output_is_dropped(
    relay: _relay.Relay, monkeypatch: pytest.MonkeyPatch, stream: object
) -> None:
    if stream is not None:
        stream = io.StringIO()
        stream.close()
    monkeypatch.setattr(sys, "stderr", stream)

    assert stand_in("print('dropped')", relay.address).returncode == 0
    relay.stop()


# Log records


@pytest.fixture
def records() -> Iterator[list[logging.LogRecord]]:
    """What the logger `elsewhere` has handled, from the level INFO on."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append  # type: ignore[assignment]
    logger = logging.getLogger("elsewhere")
    logger.addHandler(handler)
    logger.propagate = False
    logger.setLevel(logging.INFO)
    yield found
    logger.removeHandler(handler)
    logger.propagate = True
    logger.setLevel(logging.NOTSET)


def messages(found: list[logging.LogRecord]) -> list[str]:
    return [record.getMessage() for record in found]


LEVELS = "{'': 30, 'elsewhere': 20, ' disabled': 0}"


def test_records_at_the_levels_of_the_parent_are_handled_by_its_loggers(
    relay: _relay.Relay, records: list[logging.LogRecord]
) -> None:
    done = stand_in(
        f"""
import io, logging
on_import = io.StringIO()
logging.basicConfig(stream=on_import)  # as a main module does
settling.begin(7, {LEVELS})
log = logging.getLogger("elsewhere.deeper")
class Local:
    def __repr__(self): return "local"
log.debug("below")
log.info("first %d", 1)
try:
    1 / 0
except ZeroDivisionError:
    log.exception("second", extra={{"tags": {{"a"}}, "local": Local()}})
log.warning("%d", "no number")
logging.getLogger("other").info("below")
assert settling.end() == 3, settling._records
assert on_import.getvalue() == ""
""",
        relay.address,
    )
    relay.stop()

    assert (done.stderr, done.returncode) == (b"", 0)
    assert messages(records) == ["first 1", "second", "%d ('no number',)"]
    record: Any = records[1]
    assert (record.levelname, record.name, record.funcName, record.tags, record.local) == (
        *("ERROR", "elsewhere.deeper", "<module>"),
        {"a"},
        "local",
    )
    assert "ZeroDivisionError" in record.exc_text
    assert record.processName == f"unfazed-worker-{record.process}"
    assert record.process != os.getpid()


def test_logging_that_is_imported_later_is_forwarded_from_then_on(
    relay: _relay.Relay, records: list[logging.LogRecord]
) -> None:
    done = stand_in(
        f"""
assert "logging" not in sys.modules
for serial in (1, 2):
    settling.begin(serial, {LEVELS})
settling.begin(3, None)
import colorsys  # which nobody has imported before
settling.begin(4, {LEVELS})
import logging
logging.getLogger("elsewhere").info("later")
assert settling.end() == 1
""",
        relay.address,
    )
    relay.stop()

    assert (done.stderr, done.returncode) == (b"", 0)
    assert messages(records) == ["later"]


def test_levels_are_those_of_the_call(relay: _relay.Relay, records: list[logging.LogRecord]) -> None:
    done = stand_in(
        f"""
import logging
log = logging.getLogger("elsewhere")
settling.begin(1, {LEVELS})
log.info("one")
settling.begin(2, {{'': 30, ' disabled': 0}})
assert not log.isEnabledFor(20)
log.warning("two")
settling.begin(3, {{'': 30, 'elsewhere': 10, ' disabled': 40}})
log.error("disabled")
logging.disable(0)
log.error("disabled there")
settling.begin(4, None)
log.critical("not wanted")
assert log.isEnabledFor(30) and not log.isEnabledFor(20)
settling.begin(5, {LEVELS})
log.info("five")
""",
        relay.address,
    )
    relay.stop()

    assert (done.stderr, done.returncode) == (b"", 0)
    assert messages(records) == ["one", "two", "five"]


def test_the_levels_of_a_process_are_those_that_are_set() -> None:
    logger = logging.getLogger("elsewhere.levels.set")
    logger.setLevel(logging.INFO)
    try:
        found = logs.levels()
    finally:
        logger.setLevel(logging.NOTSET)

    assert found.items() >= {"": logging.root.level, logs.DISABLED: 0, "elsewhere.levels.set": logging.INFO}.items()
    assert "elsewhere.levels" not in found


def test_a_forked_child_leaves_the_line_to_the_worker(
    relay: _relay.Relay, records: list[logging.LogRecord], stderr: Written
) -> None:
    done = stand_in(
        f"""
import logging
settling.begin(1, {LEVELS})
pid = os.fork()
if not pid:
    logging.getLogger("elsewhere").warning("of the child")
    assert sys.__stdin__.buffer.read() == b""
    sys.__stdout__.write("lost")
    settling.end()
    sys.exit(0)
os.waitpid(pid, 0)
logging.getLogger("elsewhere").info("of the worker")
assert sys.__stdin__.buffer.read() == b"talk"
""",
        relay.address,
        b"talk",
    )
    relay.stop()

    assert (done.stdout, done.returncode) == (b"", 0)
    assert messages(records) == ["of the worker"]
    assert stderr.getvalue() == "of the child\n"


def test_where_nothing_can_be_done_after_a_fork_a_worker_settles_in() -> None:
    done = subprocess.run(
        [*PYTHON, "-c", "import os\ndel os.register_at_fork\n" + start(None)],
        input=b"",
        capture_output=True,
        timeout=GRACE_SECONDS,
        check=False,
    )

    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


def test_a_forked_child_holds_up_nobody_who_waits_for_the_end_of_the_worker() -> None:
    """Not even where the worker has inherited each of its ends twice, as on uvloop."""
    may_end, told = os.pipe()
    try:
        done = subprocess.run(
            [
                *PYTHON,
                "-c",
                "import os\nfor number in (0, 1, 2): os.dup(number)\n"
                + start(None)
                + f"""
if not os.fork():
    os.close({told})
    os.read({may_end}, 1)  # what it waits for comes after the end of the worker
    os._exit(0)
""",
            ],
            input=b"",
            capture_output=True,
            pass_fds=(may_end, told),
            timeout=GRACE_SECONDS,
            check=False,
        )
    finally:
        os.close(may_end)
        os.close(told)

    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


def test_streams_stay_open_where_the_output_of_workers_leads_to_the_same_device() -> None:
    source = start(None) + "assert sys.stdin.read() == ''\nprint('dropped')\nsettling.end()"
    done = subprocess.run(
        [*PYTHON, "-c", source],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        timeout=GRACE_SECONDS,
        check=False,
    )

    assert (done.stdout, done.returncode) == (b"", 0)


def test_what_has_neither_a_pickle_nor_a_text_comes_by_its_class(
    relay: _relay.Relay, records: list[logging.LogRecord]
) -> None:
    stand_in(
        f"""
import logging
class Odd:
    def __reduce__(self): raise SystemExit
    def __repr__(self): raise ValueError
settling.begin(1, {LEVELS})
logging.getLogger("elsewhere").info("one", extra={{"odd": Odd()}})
""",
        relay.address,
    )
    relay.stop()

    assert vars(records[0])["odd"] == "<Odd>"


def test_a_traceback_of_which_no_text_can_be_made_comes_by_its_class(
    relay: _relay.Relay, records: list[logging.LogRecord]
) -> None:
    """As `misbehaving.raise_bad_syntax_error`, on Python 3.13 and before."""
    done = stand_in(
        f"""
import logging, traceback
def fail(*args, **kwargs): raise TypeError("'<' not supported")
traceback.print_exception = fail
settling.begin(1, {LEVELS})
try:
    1 / 0
except ZeroDivisionError:
    logging.getLogger("elsewhere").exception("one")
""",
        relay.address,
    )
    relay.stop()

    assert (done.stderr, done.returncode) == (b"", 0)
    assert [(record.getMessage(), record.exc_text) for record in records] == [("one", "<class 'ZeroDivisionError'>")]


def test_handlers_that_a_function_adds_work(relay: _relay.Relay, records: list[logging.LogRecord]) -> None:
    done = stand_in(
        f"""
import io, logging
settling.begin(1, {LEVELS})
handler = logging.StreamHandler(io.StringIO())
log = logging.getLogger("elsewhere")
log.addHandler(handler)
log.info("both")
settling.begin(2, None)
log.warning("here alone")
assert handler.stream.getvalue() == "both\\nhere alone\\n"
""",
        relay.address,
    )
    relay.stop()

    assert (done.stderr, done.returncode) == (b"", 0)
    assert messages(records) == ["both"]


def test_handlers_are_configured_by_a_function_alone_and_not_by_the_first_record(
    relay: _relay.Relay, records: list[logging.LogRecord]
) -> None:
    done = stand_in(
        f"""
import io, logging
settling.begin(1, {LEVELS})
logging.warning("of the root")
assert not logging.root.handlers
stream = io.StringIO()
logging.basicConfig(stream=stream, format="%(message)s")
logging.getLogger("elsewhere").info("both")
assert stream.getvalue() == "both\\n"
logging.root.handlers.clear()
settling.begin(2, None)
logging.warning("here alone")
assert logging.root.handlers
""",
        relay.address,
    )
    relay.stop()

    assert (done.stderr, done.returncode) == (b"", 0)
    assert messages(records) == ["both"]


def test_a_process_name_of_the_function_s_own_is_kept(relay: _relay.Relay, records: list[logging.LogRecord]) -> None:
    stand_in(
        f"""
import logging, multiprocessing
multiprocessing.current_process().name = "own"
settling.begin(1, {LEVELS})
logging.getLogger("elsewhere").info("one")
""",
        relay.address,
    )
    relay.stop()

    assert [record.processName for record in records] == ["own"]


def test_a_record_is_handled_in_the_context_of_its_call(relay: _relay.Relay, records: list[logging.LogRecord]) -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")
    seen: list[str] = []

    def note(record: logging.LogRecord) -> bool:
        seen.append(variable.get())
        return True

    logging.getLogger("elsewhere").handlers[0].addFilter(note)
    context = contextvars.copy_context()
    context.run(variable.set, "of the call")
    flying = flight(relay, 5, context)
    stand_in(
        f"""
import logging
settling.begin(5, {LEVELS})
logging.getLogger("elsewhere").info("one")
settling.begin(6, {LEVELS})
logging.getLogger("elsewhere").info("two")
""",
        relay.address,
    )
    relay.stop()

    assert seen == ["of the call", "unset"]
    assert flying.records >= 1


def test_a_handler_that_raises_is_reported_and_the_next_record_handled(
    relay: _relay.Relay, records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    reported: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: reported.append(args[0]))

    def refuse(record: logging.LogRecord) -> bool:
        return bool(1 / (record.getMessage() != "one"))

    logging.getLogger("elsewhere").handlers[0].addFilter(refuse)
    stand_in(
        f"""
import logging
settling.begin(5, {LEVELS})
logging.getLogger("elsewhere").info("one")
logging.getLogger("elsewhere").info("two")
""",
        relay.address,
    )
    relay.stop()

    assert reported == [ZeroDivisionError]
    assert messages(records) == ["two"]


def test_what_only_the_worker_can_read_comes_as_text(relay: _relay.Relay, records: list[logging.LogRecord]) -> None:
    stand_in(
        f"""
import logging, types
module = sys.modules["there"] = types.ModuleType("there")
exec("class Thing: pass", module.__dict__)
settling.begin(5, {LEVELS})
logging.getLogger("elsewhere").info("one", extra={{"thing": module.Thing()}})
""",
        relay.address,
    )
    relay.stop()

    assert re.match("<there.Thing object", vars(records[0])["thing"])


@pytest.mark.anyio
async def test_who_waits_for_records_is_woken_by_the_last_one_or_the_end(relay: _relay.Relay) -> None:
    flying = _relay.Flight(current_loop(), contextvars.copy_context(), int)
    relay.flights[1] = flying
    await flying.heard(relay, 0)
    heard: list[str] = []

    async def hear() -> None:
        await flying.heard(relay, 2)
        heard.append("two")

    with anyio.fail_after(GRACE_SECONDS):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hear)
            await let_others_run()
            flying.record_handled()
            await let_others_run()
            assert heard == []
            flying.record_handled()
        assert heard == ["two"]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(flying.heard, relay, 10)
            await let_others_run()
            await anyio.to_thread.run_sync(relay.stop)
        another = _relay.Flight(current_loop(), contextvars.copy_context(), int)
        await another.heard(relay, 1)
        await relay.settled(current_loop(), hears=True)


# How workers end


@pytest.mark.parametrize(
    ("end", "status"),
    [
        ("os._exit(3)", "with exit code 3"),
        ("os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("sys.exit(settling.end())", "with exit code 0"),
    ],
    ids=["exit", "signal", "after it has answered"],
)
def test_a_call_is_told_how_its_worker_has_ended(relay: _relay.Relay, end: str, status: str) -> None:
    flying = flight(relay, 5)
    stand_in(f"settling.begin(5, None)\n{end}", relay.address)
    relay.stop()

    # `subprocess` may read the status first
    assert flying.begun
    assert flying.status in (status, "for an unknown reason")


@contextmanager
def worker(relay: _relay.Relay, source: str) -> Iterator[subprocess.Popen[bytes]]:
    """Start a program that has settled in as a worker does, and then runs what it reads."""
    source = start(relay.address) + source + "\nsys.__stdout__.write('ready')\nsys.__stdout__.flush()\n"
    command = [*PYTHON, "-c", source + "exec(sys.__stdin__.read())"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.read(5) == b"ready"
            yield process
        finally:
            process.kill()


class Hold:
    """Holds up a relay's thread, and then shows it the deaths of workers before all else that has happened."""

    def __init__(self, relay: _relay.Relay, monkeypatch: pytest.MonkeyPatch) -> None:
        self._gate = Gate()
        self._relay = relay
        self._select = relay._selector.select
        self.together: list[int] = []  # how many events there were with each death
        monkeypatch.setattr(relay._selector, "select", self._select_deaths_first)

    def __enter__(self) -> None:
        self._relay._when_idle(self._gate.wait)
        assert self._gate.reached.wait(GRACE_SECONDS)

    def __exit__(self, *exc_info: object) -> None:
        self._gate.opened.set()

    def _select_deaths_first(self, timeout: float | None) -> list[Any]:
        found = sorted(self._select(timeout), key=lambda event: not self._is_death(event))
        if found and self._is_death(found[0]):
            self.together.append(len(found))
        return found

    def _is_death(self, event: Any) -> bool:
        called: object = getattr(event[0].data, "func", None)
        return called == self._relay._ended


def test_what_has_happened_to_a_worker_along_with_its_death_is_harmless(
    relay: _relay.Relay, stderr: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever sees its death takes in all the rest, and closes what other events are about."""
    hold = Hold(relay, monkeypatch)
    flying = flight(relay, 5)
    with worker(relay, "settling.begin(5, None)") as process:
        with hold:
            process.communicate(b"print('the last')", timeout=GRACE_SECONDS)
        wait_until(lambda: flying.begun, "its death is not noticed")
    relay.stop()

    assert stderr.getvalue() == "the last\n"
    assert hold.together == [3]


def test_a_worker_whose_child_writes_without_end_is_seen_to_have_died(
    relay: _relay.Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_relay.settings, "output", False)
    monkeypatch.setattr(_relay, "LAST_CHUNKS", 1)  # so that there is more, however fast it writes
    hold = Hold(relay, monkeypatch)
    flying = flight(relay, 5)
    with worker(relay, "settling.begin(5, None)") as process:
        with hold:
            flood = b"os.write(1, b'begun')\nif not os.fork():\n  while True: os.write(1, b'x' * 4096)"
            process.communicate(flood, timeout=GRACE_SECONDS)
        wait_until(lambda: flying.begun, "its death is not noticed")


def test_a_worker_that_hangs_up_is_there_for_a_while(relay: _relay.Relay) -> None:
    done = stand_in("settling.LAST_SECONDS = 0\ntrampoline.retire()", relay.address)

    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


@pytest.mark.parametrize(
    ("code", "number", "text"),
    [
        (os.CLD_EXITED, 3, "with exit code 3"),
        (os.CLD_KILLED, signal.SIGTERM, "killed by SIGTERM"),
        (os.CLD_DUMPED, signal.SIGSEGV, "killed by SIGSEGV"),
        (os.CLD_KILLED, 99, "killed by signal 99"),
    ],
)
def test_an_end_in_words(code: int, number: int, text: str) -> None:
    assert _relay._status(SimpleNamespace(si_code=code, si_status=number)) == text
    assert _relay._status(None) is None


@pytest.mark.parametrize("error", [AttributeError, ProcessLookupError], ids=["not on Linux", "it has ended"])
def test_without_a_way_to_watch_it_a_worker_is_heard_all_the_same(
    relay: _relay.Relay, stderr: Written, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    open_pidfd = os.pidfd_open

    def fail_in_relay(*args: int) -> int:
        if threading.current_thread().name == "unfazed-relay":
            raise error
        return open_pidfd(*args)  # for Python's own `subprocess`

    monkeypatch.setattr(os, "pidfd_open", fail_in_relay)
    flying = flight(relay, 5)
    stand_in("print('heard')", relay.address)
    relay.stop()

    assert stderr.getvalue() == "heard\n"
    assert not flying.begun


def test_a_call_whose_loop_is_gone_is_told_nothing(relay: _relay.Relay) -> None:
    class Gone(Loop):
        def post(self, func: Any, *args: object) -> None:
            raise RuntimeError("gone")

    flying = _relay.Flight(Gone(), contextvars.copy_context(), pytest.fail)  # type: ignore[arg-type]
    flying.lose("with exit code 1")

    assert flying.begun


# Who else connects


def connect(relay: _relay.Relay) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(GRACE_SECONDS)
    connection.connect(relay.address[0])
    return connection


@pytest.mark.parametrize("hello", [b"", b"no token", bytes(20)])
def test_who_does_not_know_the_token_is_sent_away(relay: _relay.Relay, stderr: Written, hello: bytes) -> None:
    with connect(relay) as connection:
        if hello:
            socket.send_fds(connection, [hello], [0, 1])
        else:
            connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""

    assert stand_in("print('heard')", relay.address).returncode == 0
    relay.stop()
    assert stderr.getvalue() == "heard\n"


def test_another_user_is_sent_away(relay: _relay.Relay, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with connect(relay) as connection:
        assert connection.recv(1) == b""


def test_who_says_nothing_holds_up_nobody(relay: _relay.Relay, stderr: Written) -> None:
    with connect(relay):
        assert stand_in("print('heard')", relay.address).returncode == 0
        wait_until(lambda: stderr.getvalue() == "heard\n", "the other one is heard")


@pytest.mark.parametrize("welcome", [b"", b"?"])
def test_a_worker_that_is_not_taken_in_is_silent(welcome: bytes) -> None:
    name = f"\0unfazed-test-{os.getpid()}-{welcome!r}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(name)
        listener.listen()

        def answer() -> None:
            connection, _ = listener.accept()
            with connection:
                connection.recv(100)
                connection.sendall(welcome)

        thread = threading.Thread(target=answer)
        thread.start()
        done = stand_in("assert not settling.is_connected()\nprint('dropped')", (name, b"token"))
        thread.join()

    assert (done.stdout, done.stderr, done.returncode) == (b"", b"", 0)


def test_a_worker_that_goes_away_without_listening_is_heard_all_the_same(relay: _relay.Relay, stderr: Written) -> None:
    output, writing = os.pipe()
    memory = os.memfd_create("serial")
    os.ftruncate(memory, settling.SERIAL_BYTES)
    with connect(relay) as connection:
        hello = relay.address[1] + os.getpid().to_bytes(4, "big")
        socket.send_fds(connection, [hello], [output, memory])
        # What comes is not read, and so the relay's next look at the connection fails.
        wait_until(lambda: select.select([connection], [], [], 0)[0], "it is not welcome")
    os.write(writing, b"heard\n")
    for fd in (output, writing, memory):
        os.close(fd)
    wait_until(lambda: stderr.getvalue() == "heard\n", "it is not heard")

    assert stand_in("print('another')", relay.address).returncode == 0
    relay.stop()
    assert stderr.getvalue() == "heard\nanother\n"


def test_without_a_memfd_a_file_tells_which_call_runs(relay: _relay.Relay) -> None:
    flying = flight(relay, 5)
    done = subprocess.run(
        [*PYTHON, "-c", "import os\ndel os.memfd_create\n" + start(relay.address) + "settling.begin(5, None)"],
        input=b"",
        capture_output=True,
        check=False,
    )
    relay.stop()

    assert done.returncode == 0
    assert flying.begun


# Without a relay


def test_a_relay_that_cannot_be_made_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(family: int) -> NoReturn:
        raise OSError(errno.EMFILE, "too many")

    monkeypatch.setattr(socket, "socket", fail)

    with pytest.raises(OSError, match="too many"):
        _relay.Relay()


@pytest.mark.parametrize("error", [OSError, RuntimeError])
def test_where_there_can_be_no_relay_calls_work(
    background: Any, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    def fail() -> None:
        raise error

    monkeypatch.setattr(_relay, "Relay", fail)

    warm_up_processpool_sync(1)
    assert run_in_processpool_sync(abs, -1) == 1


def test_where_there_is_no_relay_a_death_is_told_and_the_next_call_works(
    background: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_relay, "current", lambda: None)

    with pytest.raises(WorkerProcessError, match=r"die\(\) ended for an unknown reason before it answered"):
        run_in_processpool_sync(misbehaving.die, 3)
    assert run_in_processpool_sync(abs, -1) == 1


def test_a_worker_that_finds_nobody_at_the_address_runs_the_call_unheard(
    background: Any, relay: _relay.Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.address = "\0nobody listens here", b"token"
    monkeypatch.setattr(_relay, "current", lambda: relay)

    assert [run_in_processpool_sync(abs, -number) for number in range(3)] == [0, 1, 2]


def test_elsewhere_than_on_linux_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_relay, "sys", SimpleNamespace(platform="darwin"))

    assert _relay.current() is None


def test_a_record_counts_for_the_call_with_whose_number_it_is_sent(
    relay: _relay.Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread that the last call has left behind may be at it as the next call begins."""
    line = settling._Line(relay.address)
    begun = threading.Event()

    def begin() -> None:
        line.begin(2)
        begun.set()

    class SlowSocket:
        def sendall(self, data: bytes) -> None:
            threading.Thread(target=begin).start()
            assert not begun.wait(0.05)  # it is not to come in between

    sockets, line.socket = line.socket, SlowSocket()  # type: ignore[assignment]
    line.begin(1)
    line.send(b"record")
    assert begun.wait(GRACE_SECONDS)

    assert line.end() == 0
    sockets.close()
    os.close(line.output)


def test_records_for_a_parent_that_is_gone_are_dropped_and_so_are_those_that_wait(relay: _relay.Relay) -> None:
    line = settling._Line(relay.address)
    relay.stop()

    class Interrupted:
        def sendall(self, data: bytes) -> None:
            line.send(b"of a signal handler")
            connection.sendall(data)

    connection, line.socket = line.socket, Interrupted()  # type: ignore[assignment]
    line.begin(1)
    line.send(b"record")

    assert line._waiting == []
    assert line.end() == 0
    connection.close()
    os.close(line.output)


@pytest.mark.parametrize("error", ["TimeoutError", "KeyError"])
def test_a_signal_handler_that_raises_amid_a_record_is_heard_and_the_next_call_connects_anew(
    relay: _relay.Relay, records: list[logging.LogRecord], stderr: Written, error: str
) -> None:
    done = stand_in(
        f"""
import logging
class Interrupted:
    def sendall(self, data):
        raise {error}
    def close(self):
        line.close()
settling.begin(1, {LEVELS})
line, settling._line.socket = settling._line.socket, Interrupted()
try:
    logging.getLogger("elsewhere").info("lost")
except {error}:
    print("raised")
logging.getLogger("elsewhere").info("dropped")
assert settling.end() == 0
settling.settle_in({relay.address!r})
settling.begin(2, {LEVELS})
logging.getLogger("elsewhere").info("heard")
assert settling.end() == 1
print("printed")
""",
        relay.address,
    )
    relay.stop()

    assert (done.stderr, done.returncode) == (b"", 0)
    assert messages(records) == ["heard"]
    assert stderr.getvalue() == "raised\nprinted\n"


def test_a_signal_handler_may_log_amid_a_record(relay: _relay.Relay, records: list[logging.LogRecord]) -> None:
    done = stand_in(
        f"""
import logging
class Interrupted:
    def sendall(self, data):
        if b"first" in data:
            logging.getLogger("elsewhere").info("second")
        line.sendall(data)
settling.begin(1, {LEVELS})
line, settling._line.socket = settling._line.socket, Interrupted()
logging.getLogger("elsewhere").info("first")
assert settling.end() == 2
""",
        relay.address,
    )
    relay.stop()

    assert (done.stderr, done.returncode) == (b"", 0)
    assert messages(records) == ["first", "second"]


LOG = f"""
import logging
settling.begin(1, {LEVELS})
logging.getLogger("elsewhere").info("heard")
"""


def test_where_no_thread_can_be_started_records_are_handled_all_the_same(
    relay: _relay.Relay, records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def fail(thread: threading.Thread) -> None:
        if thread.name == "unfazed-logs":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", fail)
    stand_in(
        f"import logging; settling.begin(1, {LEVELS}); logging.getLogger('elsewhere').info('heard')", relay.address
    )
    relay.stop()

    assert messages(records) == ["heard"]


def test_a_stream_that_raises_just_anything_does_not_end_the_relay(
    relay: _relay.Relay, records: list[logging.LogRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bad:
        def write(self, text: str) -> None:
            raise SystemExit

    monkeypatch.setattr(sys, "stderr", Bad())
    stand_in(f"print('x'); import logging; settling.begin(1, {LEVELS}); print('x')", relay.address)
    stand_in(
        f"import logging; settling.begin(1, {LEVELS}); logging.getLogger('elsewhere').info('heard')", relay.address
    )
    relay.stop()

    assert messages(records) == ["heard"]
