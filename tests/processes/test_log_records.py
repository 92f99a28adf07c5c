"""Log records of worker processes: handled in order, before the call returns, at the parent's levels."""

from __future__ import annotations

import logging
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from conftest import GRACE_SECONDS, Gate, wait_until
from mishaps import LOGGER, Output, assert_ten_calls_work, call, configured, in_time, output, run_program

from unfazed.concurrency import WorkerProcessError, configure_processpool, in_processpool, run_in_processpool_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

assert call and configured and output  # fixtures

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers elsewhere are silent")
variable: ContextVar[str] = ContextVar("variable", default="unset")

Backend = tuple[str, dict[str, Any]]


class Keeper(logging.Handler):
    """Keeps what it gets."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []
        self.seen: list[str] = []  # of the context variable
        self.on_record: Callable[[logging.LogRecord], object] = bool

    def emit(self, record: logging.LogRecord) -> None:
        self.seen.append(variable.get())
        self.records.append(record)
        self.on_record(record)

    def messages(self) -> list[str]:
        return [record.getMessage() for record in self.records]


@pytest.fixture
def kept() -> Iterator[Keeper]:
    keeper = Keeper()
    logger = logging.getLogger(LOGGER)
    logger.addHandler(keeper)
    logger.setLevel(logging.INFO)
    yield keeper
    logger.removeHandler(keeper)
    logger.setLevel(logging.NOTSET)
    logger.propagate = True
    logger.disabled = False
    logger.filters.clear()
    logging.disable(logging.NOTSET)


EVERY_LEVEL = tuple((level, logging.getLevelName(level)) for level in (10, 20, 30, 40))


def test_records_are_there_once_and_in_order_when_the_call_returns(call: Callable[..., Any], kept: Keeper) -> None:
    for _ in range(3):
        kept.records.clear()
        call(misbehaving.log_many, LOGGER, 200)
        assert kept.messages() == [str(number) for number in range(200)]
    assert_ten_calls_work(call)


def test_records_say_where_they_come_from(background: Backend, kept: Keeper) -> None:
    pid = run_in_processpool_sync(misbehaving.log, LOGGER, (30, "a %s"), extra={"color": "red"})

    (record,) = kept.records
    assert (record.process, record.processName) == (pid, f"unfazed-worker-{pid}")
    assert record.color == "red"  # type: ignore[attr-defined]
    assert record.levelname == "WARNING"
    assert record.funcName == "log"


def test_the_levels_are_those_of_the_parent_at_the_time_of_the_call(background: Backend, kept: Keeper) -> None:
    logger = logging.getLogger(LOGGER)
    got: list[list[str]] = []

    def log(name: str = LOGGER) -> None:
        kept.records.clear()
        run_in_processpool_sync(misbehaving.log, name, *EVERY_LEVEL)
        got.append(kept.messages())

    log()
    logger.setLevel(logging.DEBUG)
    log()
    log(f"{LOGGER}.child")
    logging.getLogger(f"{LOGGER}.child").setLevel(logging.ERROR)
    log(f"{LOGGER}.child")
    logging.getLogger(f"{LOGGER}.child").setLevel(logging.NOTSET)
    log(f"{LOGGER}.child")
    logging.disable(logging.WARNING)
    log()
    logging.disable(logging.NOTSET)
    logger.setLevel(logging.NOTSET)  # the root's
    log()

    names = [name for _, name in EVERY_LEVEL]
    root = [name for level, name in EVERY_LEVEL if level >= logging.root.level]
    assert got == [names[1:], names, names, names[3:], names, names[3:], root]


def test_loggers_that_take_nothing_get_nothing(background: Backend, kept: Keeper) -> None:
    logger = logging.getLogger(LOGGER)
    child = logging.getLogger(f"{LOGGER}.child")

    child.propagate = False
    run_in_processpool_sync(misbehaving.log, child.name, *EVERY_LEVEL)
    child.propagate = True
    child.disabled = True
    run_in_processpool_sync(misbehaving.log, child.name, *EVERY_LEVEL)
    child.disabled = False
    assert kept.messages() == []

    logger.addFilter(lambda record: record.levelno == logging.WARNING)
    run_in_processpool_sync(misbehaving.log, LOGGER, *EVERY_LEVEL)
    assert kept.messages() == ["WARNING"]


def test_a_logged_traceback_arrives(background: Backend, kept: Keeper) -> None:
    run_in_processpool_sync(misbehaving.log_error, LOGGER)

    (record,) = kept.records
    text = logging.Formatter().format(record)
    assert text.startswith("with its traceback\nTraceback")
    assert "ValueError: logged" in text


def test_records_of_a_call_that_crashes_arrive(call: Callable[..., Any], kept: Keeper) -> None:
    with pytest.raises(WorkerProcessError):
        call(misbehaving.log_and_die, LOGGER)

    assert kept.messages() == ["0", "1", "2"]
    assert_ten_calls_work(call)


def test_records_are_handled_before_the_call_returns_though_its_worker_ends(background: Backend, kept: Keeper) -> None:
    gate = Gate()
    kept.on_record = lambda record: gate.wait() if record.getMessage() == "0" else None
    with ThreadPoolExecutor(1) as threads:
        future = threads.submit(in_processpool(misbehaving.log_many, max_calls=1).sync, LOGGER, 100)
        assert gate.reached.wait(GRACE_SECONDS)
        try:
            assert not future.done()
        finally:
            gate.opened.set()
        future.result(GRACE_SECONDS)

    assert kept.messages() == [str(number) for number in range(100)]
    assert_ten_calls_work()


def test_a_timeout_ends_the_wait_for_handlers(background: Backend, kept: Keeper) -> None:
    gate = Gate()
    kept.on_record = lambda record: gate.wait()
    try:
        with pytest.raises(TimeoutError):
            in_time(in_processpool(misbehaving.log_many, timeout=0.5).sync, LOGGER, 1)
    finally:
        gate.opened.set()

    assert_ten_calls_work()


def test_records_with_bad_texts_arrive_and_harm_nobody(background: Backend, kept: Keeper) -> None:
    run_in_processpool_sync(misbehaving.log_bad_texts, LOGGER)

    assert kept.messages() == ["<BadTextError> ()", "bad syntax"]
    assert "SyntaxError" in str(kept.records[1].exc_text)  # on some Pythons that is all that can be said


def test_the_terminal_is_not_configured_twice(background: Backend, kept: Keeper, output: Output) -> None:
    run_in_processpool_sync(misbehaving.configure_logging_and_log, LOGGER)
    run_in_processpool_sync(misbehaving.print_everywhere, "last")

    output.wait_for("last printed")
    assert kept.messages() == ["once"]
    assert "doubled" not in output.text()


def test_records_of_a_thread_left_behind_arrive(background: Backend, kept: Keeper, tmp_path: Path) -> None:
    run_in_processpool_sync(misbehaving.log_from_thread_left_behind, LOGGER, tmp_path / "awaited")
    (tmp_path / "awaited").touch()

    wait_until(lambda: kept.messages() == ["left behind"], "the record does not arrive")
    assert_ten_calls_work()


def test_records_that_are_wrong_or_do_not_pickle_arrive_all_the_same(background: Backend, kept: Keeper) -> None:
    in_time(run_in_processpool_sync, misbehaving.log_wrong_format, LOGGER)
    in_time(run_in_processpool_sync, misbehaving.log_what_does_not_pickle, LOGGER)

    assert kept.messages() == ["%d ('no number',)", "with extra"]
    assert "lambda" in kept.records[1].here  # type: ignore[attr-defined]
    assert_ten_calls_work()


def test_records_of_the_functions_of_the_module_are_handled_once(
    background: Backend, kept: Keeper, output: Output
) -> None:
    """`logging.warning` adds a handler where there is none."""
    kept.addFilter(lambda record: record.name == "root")  # and not asyncio, which tells of what takes long
    logging.getLogger().addHandler(kept)
    try:
        run_in_processpool_sync(logging.warning, "of the root")
    finally:
        logging.getLogger().removeHandler(kept)
    run_in_processpool_sync(print, "printed")
    output.wait_for("printed")

    assert kept.messages() == ["of the root"]
    assert "of the root" not in output.text()


def test_a_file_handler_of_the_function_works(background: Backend, kept: Keeper, tmp_path: Path) -> None:
    run_in_processpool_sync(misbehaving.log_to_file, LOGGER, str(tmp_path / "log"))

    assert (tmp_path / "log").read_text() == "to a file\n"
    assert kept.messages() == ["to a file"]


def test_handlers_see_the_context_of_the_caller(call: Callable[..., Any], kept: Keeper) -> None:
    token = variable.set("the caller's")
    try:
        call(misbehaving.log, LOGGER, (30, "x"))
    finally:
        variable.reset(token)
    call(misbehaving.log, LOGGER, (30, "x"))

    assert kept.seen == ["the caller's", "unset"]


def test_records_can_be_switched_off(background: Backend, kept: Keeper, configured: None) -> None:
    configure_processpool(logs=False)
    run_in_processpool_sync(misbehaving.log, LOGGER, (30, "dropped"))
    configure_processpool()
    run_in_processpool_sync(misbehaving.log, LOGGER, (30, "kept"))

    assert kept.messages() == ["kept"]


def test_a_level_that_was_disabled_is_enabled_when_records_are_switched_off(
    background: Backend, output: Output, kept: Keeper, configured: None
) -> None:
    logging.disable(logging.CRITICAL)
    run_in_processpool_sync(misbehaving.log, LOGGER, (30, "disabled"))
    logging.disable(logging.NOTSET)
    configure_processpool(logs=False)
    run_in_processpool_sync(misbehaving.log, LOGGER, (30, "the worker's own"))

    output.wait_for("the worker's own")


@pytest.mark.parametrize("error", [ValueError("h"), SystemExit(1), KeyboardInterrupt()], ids=repr)
def test_a_handler_that_raises_is_harmless(
    background: Backend, kept: Keeper, error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(record: logging.LogRecord) -> None:
        raise error

    told: list[object] = []
    monkeypatch.setattr(sys, "excepthook", lambda *args: told.append(args[1]))
    kept.on_record = fail

    in_time(run_in_processpool_sync, misbehaving.log_many, LOGGER, 3)
    kept.on_record = bool

    assert told == [error] * 3
    assert_ten_calls_work()


def test_a_handler_that_logs_itself_is_harmless(background: Backend, kept: Keeper) -> None:
    def log_again(record: logging.LogRecord) -> None:
        if record.levelno < logging.ERROR:
            logging.getLogger(LOGGER).error("again")

    kept.on_record = log_again
    in_time(run_in_processpool_sync, misbehaving.log, LOGGER, (30, "once"))

    # Python 3.13.4 and 3.13.5 drop the second one: https://github.com/python/cpython/issues/91555
    assert kept.messages() == ["once"] + ["again"] * (not hasattr(logging.Logger, "_is_disabled"))


@pytest.mark.parametrize("nested", ["echo", "log", "die", "write"])
def test_a_handler_may_make_calls(background: Backend, kept: Keeper, nested: str) -> None:
    made: list[object] = []
    what: dict[str, tuple[Any, ...]] = {
        "echo": (functions.echo, 1),
        "log": (misbehaving.log, LOGGER, (30, "inner")),
        "die": (misbehaving.die, 1),
        "write": (misbehaving.write_megabyte,),
    }

    def make_call(record: logging.LogRecord) -> None:
        if record.getMessage() == "outer":
            try:
                made.append(run_in_processpool_sync(*what[nested]))
            except Exception as exc:
                made.append(exc)

    kept.on_record = make_call
    in_time(run_in_processpool_sync, misbehaving.log, LOGGER, (30, "outer"))

    assert len(made) == 1
    assert isinstance(made[0], WorkerProcessError) == (nested == "die")
    assert_ten_calls_work()


def test_a_handler_that_blocks_holds_up_calls_that_log_alone(background: Backend, kept: Keeper) -> None:
    may_end = threading.Event()
    reached = threading.Event()

    def block(record: logging.LogRecord) -> None:
        reached.set()
        assert may_end.wait(GRACE_SECONDS)

    kept.on_record = block
    with ThreadPoolExecutor(1) as threads:
        logging_call = threads.submit(run_in_processpool_sync, misbehaving.log, LOGGER, (30, "blocks"))
        assert reached.wait(GRACE_SECONDS)
        try:
            assert_ten_calls_work()
            assert not logging_call.done()
        finally:
            may_end.set()
        logging_call.result(GRACE_SECONDS)


def test_a_forked_child_that_logs_mixes_up_no_records(background: Backend, kept: Keeper) -> None:
    in_time(run_in_processpool_sync, misbehaving.log_from_fork, LOGGER, 20)

    assert [message.split()[0] for message in kept.messages()] == [str(number) for number in range(20)]
    assert_ten_calls_work()


def test_logging_is_imported_by_no_worker_that_does_not_need_it(background: Backend, tmp_path: Path) -> None:
    out, err = run_program(
        tmp_path,
        """
import sys
import silent

if __name__ == "__main__":
    import logging
    from unfazed.concurrency import configure_background_eventloop, run_in_processpool_sync
    logging.basicConfig(format="%(message)s from %(processName).14s", stream=sys.stdout)
    configure_background_eventloop(backend=BACKEND, backend_options=OPTIONS)
    print(run_in_processpool_sync(silent.is_logging_imported))
    run_in_processpool_sync(silent.log)
""",
        background,
        silent="""
import sys
def is_logging_imported():
    return "logging" in sys.modules
def log():
    import logging
    logging.warning("imported late")
""",
    )

    assert (out, err) == ("False\nimported late from unfazed-worker\n", "")
