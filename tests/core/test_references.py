"""Decorated functions on their way to other processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import resource_tracker
from typing import TYPE_CHECKING, Any

import decorated_functions as decorated
import pytest
from conftest import without_address

from unfazed.concurrency import in_executor, in_threadpool, run_in_executor
from unfazed.concurrency._core import _references

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from conftest import Caller

# One process for all of this one's life, of Python's own: it is no leak of the first test that needs it.
resource_tracker.ensure_running()


@pytest.fixture
def processes() -> Iterator[ProcessPoolExecutor]:
    # not forked: this process has threads
    with ProcessPoolExecutor(max_workers=1, mp_context=multiprocessing.get_context("spawn")) as executor:
        decorated.elsewhere.there = executor
        yield executor


def test_a_decorated_function_is_found_in_the_process_of_an_executor(
    caller: Caller, processes: ProcessPoolExecutor
) -> None:
    value, pid = caller.dual(decorated.add_elsewhere, 1, b=2)
    of_method, same_pid = caller.dual(decorated.Number(2).add_elsewhere, 3)

    assert (value, of_method) == (3, 5)
    assert pid == same_pid != os.getpid()


@pytest.mark.anyio
async def test_what_a_decorated_function_wraps_is_sent_to_any_executor(processes: ProcessPoolExecutor) -> None:
    dual = in_executor(processes, decorated.add.__wrapped__)

    assert (await run_in_executor(processes, decorated.add.__wrapped__, 1))[0] == 2
    assert (await dual(1))[0] == 2
    assert (await in_executor(processes, decorated.plain_add)(1))[0] == 2


def test_an_executor_in_this_process_runs_what_stands_for_the_function(background: Any) -> None:
    with ThreadPoolExecutor(max_workers=1) as executor:
        decorated.elsewhere.there = executor
        assert decorated.add_elsewhere.sync(a=1) == (2, os.getpid())


@pytest.mark.parametrize(
    "func",
    [
        decorated.add.__wrapped__,
        decorated.Number.add.__wrapped__,
        decorated.Number.half.__wrapped__,
        decorated.Number.Inner.add.__wrapped__,
    ],
    ids=lambda func: str(func.__qualname__),
)
def test_a_function_that_a_wrapper_hides_comes_back_as_itself(func: Any) -> None:
    sent: Any = _references.to_send(func)

    assert isinstance(sent, _references.Reference)
    assert arrived(func) is func


def arrived(func: Any) -> Any:
    """Return the function that the other process calls after *func* was sent."""
    return pickle.loads(pickle.dumps(_references.to_send(func)))._func


def test_bound_methods_come_back_bound_to_a_copy() -> None:
    func = decorated.Number(4).add.__wrapped__

    again = arrived(func)

    assert again.__func__ is func.__func__
    assert again.__self__.value == 4


def test_a_bound_class_method_comes_back_bound_to_its_class() -> None:
    func = decorated.OtherNumber.double.__wrapped__

    assert arrived(func) == func


@pytest.mark.parametrize(
    "func", [len, decorated.plain_add, decorated.Number(1), [].append, lambda: None], ids=without_address
)
def test_what_nothing_hides_is_sent_as_it_is(func: Any) -> None:
    assert _references.to_send(func) is func


def test_what_another_function_hides_is_sent_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then pickle complains."""
    func = decorated.plain_add
    monkeypatch.setattr(decorated, "plain_add", in_threadpool(len))

    assert _references.to_send(func) is func


@pytest.mark.parametrize(
    ("module", "name"), [("no_such_module", "func"), (__name__, "NoSuchClass.func"), (__name__, "no_such_func")]
)
def test_what_is_not_where_it_says_is_not_found(module: str, name: str) -> None:
    def func() -> None:
        pytest.fail("must not run")

    func.__module__, func.__qualname__, func.__name__ = module, name, name.rpartition(".")[2]

    assert _references.found_by_name(func) is None
    assert _references.to_send(func) is func


def run_program(folder: Path, source: str) -> tuple[str, str]:
    file = folder / "program.py"
    file.write_text(source)
    done = subprocess.run([sys.executable, str(file)], capture_output=True, text=True, timeout=60, check=False)
    return done.stdout, done.stderr


def test_decorated_functions_of_a_script_are_sent(tmp_path: Path, background: tuple[str, dict[str, Any]]) -> None:
    out, err = run_program(
        tmp_path,
        f"""
import os
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from unfazed.concurrency import *

@in_processpool
def pid(number):
    return number, os.getpid()

class Holder:
    @in_processpool
    def pid(self, number):
        return number, os.getpid()

if __name__ == "__main__":
    configure_background_eventloop(backend={background[0]!r}, backend_options={background[1]!r})
    one, other = pid.sync(1), Holder().pid.sync(2)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as executor:
        third = in_executor(executor, pid.__wrapped__).sync(3)
    print([number for number, _ in (one, other, third)], os.getpid() in (one[1], other[1], third[1]))
""",
    )

    assert (out, err) == ("[1, 2, 3] False\n", "")


def test_functions_are_looked_for_in_their_module_or_class() -> None:
    assert _references.owner_of(decorated.add.__wrapped__) is sys.modules["decorated_functions"]
    assert _references.owner_of(decorated.Number.Inner.add.__wrapped__) is decorated.Number.Inner
