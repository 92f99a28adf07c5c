"""What runs inside a worker process, here called as functions; and how a worker starts, in programs of all kinds."""

from __future__ import annotations

import os
import pickle
import sys
import textwrap
import traceback
import zipfile
from typing import TYPE_CHECKING, Any, NoReturn

import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from running import outcome_of, run_program, write

from unfazed._worker import call, channel, main

if TYPE_CHECKING:
    from pathlib import Path


def run(func: object, *args: object, **kwargs: object) -> tuple[bytes, Any]:
    return outcome_of(pickle.dumps((func, args, kwargs)))


def failure(func: object, *args: object) -> tuple[str, Any, str]:
    kind, payload = run(func, *args)
    assert kind == channel.OUTCOME
    said: tuple[str, Any, str] = payload
    return said


# One call


@pytest.mark.parametrize(
    "value", [None, True, 1, 1.5, "text", b"bytes", b"x" * 300_000, [1]], ids=lambda v: repr(v)[:9]
)
def test_a_value_comes_back(value: object) -> None:
    assert run(functions.echo, value, a=2) == (channel.VALUE, ((value,), {"a": 2}))
    assert run(max, [value]) == (channel.VALUE, value)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), KeyboardInterrupt()], ids=repr)
def test_an_error_comes_back_with_the_text_of_its_traceback(error: BaseException) -> None:
    kind, (pickled, summary), text = failure(functions.fail, error)

    assert kind == call.ERROR
    assert repr(pickle.loads(pickled)) == repr(error)
    assert text.endswith(f"{summary}\n")
    assert "in fail\n" in text
    assert "call.py" not in text


@pytest.mark.skipif(sys.implementation.name == "pypy", reason="it can be pickled there")
def test_an_error_with_attributes_that_cannot_be_set_comes_back() -> None:
    kind, error, text = failure(misbehaving.raise_frozen)

    assert (kind, error) == (call.ERROR, (None, "misbehaving_functions.FrozenError: 3"))
    assert "in raise_frozen" in text


def test_an_error_of_which_no_text_can_be_made_comes_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Python 3.13 and before."""

    def fail(*args: object) -> NoReturn:
        raise TypeError("'<' not supported")

    monkeypatch.setattr(traceback, "format_exception", fail)
    monkeypatch.setattr(traceback, "format_exception_only", fail)
    kind, (pickled, summary), text = failure(misbehaving.raise_bad_syntax_error)

    assert (kind, type(pickle.loads(pickled)), summary) == (call.ERROR, SyntaxError, "SyntaxError")
    assert "in raise_bad_syntax_error" in text
    assert text.endswith("SyntaxError")


def test_an_error_that_cannot_be_read_back_comes_as_text() -> None:
    kind, error, text = failure(functions.fail_with_two_arguments)

    assert (kind, error) == (call.ERROR, (None, "process_functions.TwoArgumentError: 1 and 2"))
    assert "in fail_with_two_arguments" in text


def test_a_value_that_cannot_be_pickled_comes_as_text() -> None:
    kind, summary, _ = failure(functions.return_lambda)

    assert kind == call.UNSENDABLE_VALUE
    assert summary.startswith("function: ")


def test_an_error_whose_text_fails_is_summed_up() -> None:
    kind, reason, _ = failure(functions.return_unpicklable_with_bad_text)

    assert kind == call.UNSENDABLE_VALUE
    assert "BadTextError" in reason


@pytest.mark.parametrize("size", [1, 300_000])
def test_a_request_that_cannot_be_read_is_an_error_and_is_read_to_its_end(size: int) -> None:
    request = pickle.dumps((functions.echo, (b"x" * size,), {})).replace(b"echo", b"ecco")
    reader = channel.Reader(-1, request + b"the next")
    reader.left = len(request)

    future = channel.Reader(-1, b"".join(call.run(reader)))
    future.next()
    kind, reason, text = pickle.loads(future.take())

    assert kind == call.UNREADABLE_REQUEST
    assert "ecco" in reason
    assert "AttributeError" in text
    assert reader.data == b"the next"


def test_a_group_keeps_its_parts() -> None:
    _, (pickled, _), text = failure(functions.fail_in_group)

    assert [type(each) for each in pickle.loads(pickled).exceptions] == [ValueError, KeyError]
    if sys.version_info >= (3, 11):
        assert "KeyError: 2" in text


def test_what_turns_out_to_be_async_is_said_to_be() -> None:
    assert failure(functions.returns_coroutine) == (call.COROUTINE, None, "")


def test_an_initializer_is_called_once_and_again_if_it_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call, "_initialized", set())
    monkeypatch.setattr(functions, "initialized", [])
    request = pickle.dumps((functions.echo, (), {}))

    for _ in range(2):
        assert outcome_of(request, pickle.dumps(functions.initialize))[0] == channel.VALUE
        kind, payload = outcome_of(request, pickle.dumps(functions.fail_with_two_arguments))
        assert (kind, payload[0]) == (channel.OUTCOME, call.INITIALIZER_ERROR)
    assert functions.initialized == [1]


def test_what_memory_does_not_suffice_for_is_the_error() -> None:
    elsewhere = pickle.dumps((functions.echo, (functions.TooLarge(os.getpid() + 1),), {}))

    for request in (elsewhere, pickle.dumps((functions.return_too_large, (False,), {}))):
        kind, (pickled, _), _ = outcome_of(request)[1]

        assert kind == call.ERROR
        assert isinstance(pickle.loads(pickled), MemoryError)


def test_an_orphan_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    parents = [1, 1, 2]
    monkeypatch.setattr(main, "ORPHAN_CHECK_SECONDS", 0)
    monkeypatch.setattr(os, "getppid", lambda: parents.pop(0))
    monkeypatch.setattr(os, "_exit", sys.exit)

    with pytest.raises(SystemExit):
        main._end_with(1)
    assert parents == []


# The pipes


class SignalledError(Exception):
    """What a signal handler raises."""


def pipe() -> tuple[int, int]:
    return os.pipe()


def test_a_frame_that_is_begun_is_written_to_its_end_whatever_is_raised_meanwhile(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, into = pipe()
    write = channel.write_once

    def write_little_and_raise(fd: int, data: Any, written: list[int]) -> None:
        write(fd, data[:3], written)
        raise SignalledError

    monkeypatch.setattr(channel, "write_once", write_little_and_raise)
    with pytest.raises(SignalledError):
        channel.write_all(into, [b"0123456", b"789"])

    assert os.read(out, 100) == b"0123456789"
    os.close(out)
    os.close(into)


def test_a_frame_that_is_not_begun_is_not_written_where_something_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    out, into = pipe()
    times = [1, 2]
    write = channel.write_once

    def raise_first(fd: int, data: Any, written: list[int]) -> None:
        if times:
            times.pop()
            raise TimeoutError("of a signal handler; it is an OSError")
        write(fd, data, written)

    monkeypatch.setattr(channel, "write_once", raise_first)
    with pytest.raises(TimeoutError):
        channel.write_all(into, [b"never"])
    with pytest.raises(TimeoutError):
        channel.write_all(into, [b"must be"], begun=True)

    assert os.read(out, 100) == b"must be"
    os.close(out)
    with pytest.raises(BrokenPipeError):
        channel.write_all(into, [b"to nobody"], begun=True)
    os.close(into)


def test_what_comes_in_parts_is_put_together() -> None:
    out, into = pipe()
    reader = channel.Reader(out)
    os.write(into, channel.frame(b"A", b"first")[:7])
    os.write(into, channel.frame(b"A", b"first")[7:] + channel.frame(b"B", b"line\nrest"))

    assert reader.next() == (b"A", 5)
    assert reader.take() == b"first"
    assert reader.next() == (b"B", 9)
    assert (reader.readline(), reader.read(), reader.readline()) == (b"line\n", b"rest", b"")
    os.write(into, channel.HEADER.pack(b"C", 10) + b"half")
    os.close(into)
    assert reader.next() == (b"C", 10)
    for read in (reader.take, reader.next):
        with pytest.raises(channel.PipeEndError):
            read()
    os.close(out)


def test_large_bytes_are_not_copied_and_what_their_owner_may_change_is() -> None:
    data, changing = b"x" * 500_000, bytearray(b"y" * 500_000)
    pieces = channel.pickle_in_pieces((data, changing, pickle.PickleBuffer(changing)))
    changing[:] = b"z" * 500_000

    assert any(piece is data for piece in pieces)
    assert pickle.loads(b"".join(pieces))[1:] == (b"y" * 500_000, b"y" * 500_000)
    channel.pickle_in_pieces(data, 1000)
    with pytest.raises(channel.TooMuchError):
        channel.pickle_in_pieces(changing, 1000)
    with pytest.raises(channel.TooMuchError):
        channel.pickle_in_pieces([*range(100_000)], 1000)


# Programs

SAYS_WHERE = """
    import os, sys
    from unfazed.concurrency import *
    def where(): return sys.argv, os.getcwd(), [*sys.flags], sys.path, sys.warnoptions, sys._xoptions, main().__name__
    def main(): return sys.modules["__main__"]
    if __name__ == "__main__":
        there = run_in_processpool_sync(where)
        here = where()
        for name, one, other in zip(("argv", "cwd", "flags", "path", "warnings", "X"), here, there):
            if name == "path":
                one = [os.path.abspath(each) for each in one]
            if one != other:
                print(name, one, other)
        print("main is", there[6])
"""


@pytest.mark.parametrize("options", [[], ["-O"], ["-W", "ignore::UserWarning"], ["-X", "utf8"], ["-B", "-s"]], ids=str)
def test_a_worker_has_the_arguments_the_folder_the_path_and_the_options_of_the_program(
    tmp_path: Path, options: list[str]
) -> None:
    name = write(tmp_path / "program.py", SAYS_WHERE)

    assert run_program(tmp_path, *options, name, "--an", "argument") == ("main is __mp_main__\n", "")


@pytest.mark.parametrize("how", ["-c", "stdin", "package", "folder", "zipapp"])
def test_programs_without_a_main_module_that_can_be_loaded_have_an_empty_one(tmp_path: Path, how: str) -> None:
    """And never one of another file that is found by chance."""
    relative = "from .there import where" if how == "package" else "from there import where"
    source = textwrap.dedent(SAYS_WHERE.replace("def where", "def unused"))
    source = source.replace("import os", f"{relative}\nimport os")
    lines = [line.strip() for line in SAYS_WHERE.splitlines()]
    there = "\n".join(["import os, sys", *(line for line in lines if line.startswith("def "))])
    write(tmp_path / "__main__.py", "open('ran by chance', 'w')")
    ways = {
        "-c": ["-c", source],
        "stdin": ["-", "x"],
        "package": ["-m", "package"],
        "folder": ["app"],
        "zipapp": ["app.pyz"],
    }
    for folder in {"package": ["package"], "folder": ["app"]}.get(how, ["."]):
        write(tmp_path / folder / "there.py", there)
        if folder != ".":
            write(tmp_path / folder / "__init__.py", "")
            write(tmp_path / folder / "__main__.py", source)
    if how == "zipapp":
        with zipfile.ZipFile(tmp_path / "app.pyz", "w") as archive:
            archive.writestr("__main__.py", source)
            archive.writestr("there.py", there)

    out, err = run_program(tmp_path, *ways[how], source=source if how == "stdin" else "")

    assert (out, err) == ("main is __main__\n", "")
    assert not (tmp_path / "ran by chance").exists()


@pytest.mark.parametrize("guarded", [True, False])
def test_a_frozen_program_starts_itself(tmp_path: Path, guarded: bool) -> None:
    """Whose executable runs the program, and `multiprocessing.freeze_support` takes over in a worker."""
    write(
        tmp_path / "program.py",
        f"""
        import multiprocessing.spawn, sys
        from unfazed.concurrency import *
        sys.frozen = True
        sys.executable = sys.path[0] + "/app"
        if __name__ == "__main__":
            if {guarded}:
                multiprocessing.spawn.freeze_support()  # as tools that freeze programs have the other one do
            try:
                print([run_in_processpool_sync(abs, -number) for number in range(3)])
            except WorkerProcessError as exc:
                print(exc)
        """,
    )
    app = tmp_path / "app"
    app.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{tmp_path}/program.py" "$@"\n')
    app.chmod(0o755)

    out, err = run_program(tmp_path, "program.py")

    assert err == ""
    if guarded:
        assert out == "[0, 1, 2]\n"
    else:
        assert "ended with exit code 0 before it was ready; a frozen program that uses worker processes needs" in out


def test_what_is_printed_while_the_interpreter_starts_is_output(tmp_path: Path) -> None:
    write(tmp_path / "sitecustomize.py", "print('from sitecustomize', flush=True)")
    name = write(
        tmp_path / "program.py",
        """
        from unfazed.concurrency import *
        if __name__ == "__main__":
            print(run_in_processpool_sync(abs, -1))
        """,
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join([str(tmp_path), *sys.path]))

    out, err = run_program(tmp_path, name, env=environment)

    assert out == "from sitecustomize\n1\n"
    assert err == "from sitecustomize\n"


FAILS_TO_START = """
    import multiprocessing, sys
    from unfazed.concurrency import *
    {before}
    if __name__ == "__main__":
        {how}
        try:
            run_in_processpool_sync(abs, -1)
        except WorkerProcessError as exc:
            print(exc)
"""


@pytest.mark.parametrize(
    ("how", "before", "says"),
    [
        ("multiprocessing.set_executable('/nowhere/python')", "", "could not start with '/nowhere/python'"),
        ("multiprocessing.set_executable('/bin/cat')", "", "before it was ready; if that is not Python, say what is"),
        ("multiprocessing.set_executable('')", "", "Python's executable is not known"),
        ("pass", "if __name__ != '__main__': raise LookupError('x')", "not import the main module (LookupError: x)"),
        ("pass", "if __name__ != '__main__': sys.exit(3)", "could not import the main module (SystemExit: 3)"),
        ("pass", "if __name__ != '__main__': __import__('os')._exit(3)", "ended with exit code 3 before it was ready"),
        ("pass", "import os, signal\n    if __name__ != '__main__': os.kill(os.getpid(), 9)", "killed by SIGKILL"),
        ("pass", "if __name__ != '__main__': run_in_processpool_sync(abs, -1)", "needs its own calls behind `if __n"),
    ],
)  # fmt: skip
def test_a_worker_that_cannot_start_says_why(tmp_path: Path, how: str, before: str, says: str) -> None:
    name = write(tmp_path / "program.py", FAILS_TO_START.format(how=how, before=before))

    out, err = run_program(tmp_path, name)

    assert says in out
    assert ("`if __n" in out) == ("`if __n" in says)
    assert "Traceback" not in err


def test_a_program_that_prints_without_end_is_no_worker(tmp_path: Path) -> None:
    flood = tmp_path / "flood"
    flood.write_text("#!/bin/sh\nexec yes\n")
    flood.chmod(0o755)
    name = write(
        tmp_path / "program.py", FAILS_TO_START.format(how=f"multiprocessing.set_executable({str(flood)!r})", before="")
    )

    out, _ = run_program(tmp_path, name)

    assert "before it was ready" in out
