"""The command: which files it takes, what it writes, and what it leaves as it was."""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import libcst as cst
import pytest
from pages import DOCS, read
from unfazed_compat.migrate import _command, _run, _source, _writing
from unfazed_compat.migrate._plan import Options

from unfazed.concurrency import run_in_processpool_sync

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

OLD = "from asgiref.sync import sync_to_async\n"
NEW = "from unfazed_compat.asgiref import sync_to_async\n"
BROKEN = "import asgiref\ndef\n"
PATHS = [str(Path(each).resolve()) for each in sys.path]
PAGE = DOCS / "how-to" / "migrate-asgiref.md"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Be in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(name: str, text: str = OLD) -> Path:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode())
    return path


def changed() -> set[str]:
    """Return the files that have moved."""
    return {name for name in files() if Path(name).read_text("utf-8") == NEW}


def files() -> set[str]:
    return {path.as_posix() for path in Path().rglob("*") if path.is_file() and ".hypothesis" not in path.parts}


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run the command as a user does."""
    return python("-m", "unfazed_compat.migrate", *arguments, stdin=stdin)


def python(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS)}
    command = [sys.executable, *arguments]
    return subprocess.run(command, input=stdin, env=environment, capture_output=True, check=False, timeout=50)


def test_nothing_is_written_unless_it_is_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.py")
    write("b.py", NEW)

    assert _command.main(["."]) == 1
    assert changed() == {"b.py"}
    assert capsys.readouterr().out == (
        "--- a.py\n+++ a.py\n@@ -1 +1 @@\n-from asgiref.sync import sync_to_async\n"
        "+from unfazed_compat.asgiref import sync_to_async\n1 file of 2 to change: 1 imported name\n"
    )


def test_a_terminal_gets_colours_and_progress(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    write("a.py")
    _command.main(["."])

    output, errors = capsys.readouterr()
    assert "\x1b[32m+from unfazed_compat.asgiref" in output
    assert "migrating" in errors


def test_all_is_written(capsys: pytest.CaptureFixture[str]) -> None:
    names = {"a.py", "b/c.pyi", "b/d.pyw"}
    for name in names:
        write(name)
    write("b/e.txt")

    write("b/f.py", "print()\n")

    assert _command.main(["--write", "."]) == 0
    assert changed() == names
    assert files() == {*names, "b/e.txt", "b/f.py"}
    assert capsys.readouterr().out == "3 files of 4 changed: 3 imported names\n"
    assert _command.main(["."]) == 0


def test_findings_are_named_by_file_and_line(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.py", f"{OLD}\nsync_to_async(list)\nsync_to_async(f)()\nsync_to_async(g)()\n")
    _command.main(["--native", "--write", "."])

    output = capsys.readouterr().out
    assert "a.py:3: `sync_to_async(list)` fetches all at once" in output
    assert "2 thread-sensitive calls left to the adapter: --no-affinity" in output
    assert output.endswith("1 place left alone, named above\n")


def test_calls_that_stay_beside_the_orm_are_listed_and_counted(capsys: pytest.CaptureFixture[str]) -> None:
    head = "from unfazed_compat.asgiref import async_to_sync\nfrom shop.models import Order\n"
    write("a.py", f"{head}async_to_sync(f)()\nasync_to_sync(g)()\n")
    write("b.py", f"{head}async_to_sync(f)()\n")
    _command.main(["--native", "--write", "."])

    output = capsys.readouterr().out
    assert "a.py:3: this file uses Django's ORM: `async_to_sync` stays" in output
    assert "3 calls of `async_to_sync` in files that use Django's ORM left to the adapter: --no-affinity" in output
    assert output.endswith("3 places left alone, named above\n")


def test_no_affinity_is_for_its_paths() -> None:
    for name in ("a/b.py", "c.py", "d.py"):
        write(name, f"{OLD}sync_to_async(f)()\n")
    _command.main(["--native", "--write", "--no-affinity", "a", "--no-affinity", "c.py", "."])

    assert {name for name in files() if "run_in_threadpool" in Path(name).read_text("utf-8")} == {"a/b.py", "c.py"}


def test_names_that_tests_patch_stay_where_they_are() -> None:
    source = "from asgiref.sync import async_to_sync\nasync_to_sync(f)()\n"
    write("x/tasks.py", source)
    write("x/others.py", source)
    write("test.py", '@patch("x.tasks.async_to_sync")\ndef test(mock): pass\n')
    _command.main(["--native", "--write", "."])

    assert "async_to_sync(f)" in Path("x/tasks.py").read_text("utf-8")
    assert "run_in_eventloop_sync(f)" in Path("x/others.py").read_text("utf-8")


def test_what_git_ignores_is_left_out() -> None:
    Path(".git/info").mkdir(parents=True)
    write(".gitignore", "build\n*.pyi\n!kept.pyi\n")
    write(".git/info/exclude", "mine.py\n")
    write("sub/.gitignore", "!build\nlocal.py\n")
    names = ("build/a.py", "sub/build/a.py", "a.pyi", "kept.pyi", "mine.py", "local.py", "sub/local.py")
    left_out = ("venv/a.py", ".tox/a.py", "node_modules/a.py")
    for name in (*names, *left_out):
        write(name)
    write("venv/pyvenv.cfg", "")

    assert _command.main(["--write", "sub"]) == 0
    assert changed() == {"sub/build/a.py"}
    assert _command.main(["--write", ".", "a.pyi", "a.pyi"]) == 0
    assert changed() == {"sub/build/a.py", "kept.pyi", "local.py", "a.pyi"}


def test_links_are_not_followed_into_but_their_files_are_written() -> None:
    write("elsewhere/a.py")
    Path("tree").mkdir()
    Path("tree/link").symlink_to(Path("elsewhere").resolve())
    Path("tree/a.py").symlink_to(Path("elsewhere/a.py").resolve())

    assert _command.main(["--write", "tree"]) == 0
    assert changed() == set()
    assert _command.main(["--write", "tree/a.py"]) == 0
    assert Path("elsewhere/a.py").read_text("utf-8") == NEW
    assert Path("tree/a.py").is_symlink()


def test_permissions_stay() -> None:
    write("a.py").chmod(0o751)
    _command.main(["--write", "a.py"])

    assert stat.S_IMODE(Path("a.py").stat().st_mode) == 0o751


def test_one_that_cannot_be_parsed_keeps_all_from_being_written(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.py")
    write("b.py", BROKEN)

    assert _command.main(["--write", "."]) == 2
    assert changed() == set()
    assert "b.py: line 2: it cannot be parsed" in capsys.readouterr().err
    assert _command.main(["."]) == 2


def test_one_that_cannot_be_read_is_named(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write("a.py")

    def refuse(self: Path) -> bytes:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert _command.main(["--write", "."]) == 2
    assert "a.py: Permission denied" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["mkstemp", "copystat", "copy2", "replace", "access", "meanwhile"])
def test_one_that_cannot_be_written_leaves_all_as_they_were(
    step: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"a.py", "b.py", "c.py"}
    for name in names:
        write(name)
    module: Any = {"mkstemp": tempfile, "replace": os, "access": os}.get(step, shutil)
    original = getattr(module, step, None)
    calls: list[object] = []

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        if len(calls) != 3:
            return original(*args, **kwargs)  # type: ignore[misc]
        if step == "access":
            return False
        raise OSError(28, "No space left on device")

    def change(files: Any) -> None:
        write("c.py", OLD + "# by another\n")
        _writing.write_all(files)

    with monkeypatch.context() as patched:
        if step == "meanwhile":
            patched.setattr(_command, "write_all", change)
        else:
            patched.setattr(module, step, fail)
        assert _command.main(["--write", "."]) == 2

    assert changed() == set()
    assert files() == names
    reason = {"access": "it is read-only", "meanwhile": "it has been changed meanwhile"}.get(step, "No space left")
    errors = capsys.readouterr().err
    assert f".py: {reason}" in errors
    assert "nothing is written" in errors


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Have Ctrl-C come through: what runs in the background of a shell is deaf to it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_while_files_are_replaced_comes_when_all_are(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.py", "b.py"):
        write(name)
    original = os.replace

    def interrupted(*args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        original(*args)

    monkeypatch.setattr(os, "replace", interrupted)

    assert _command.main(["--write", "."]) == 130
    assert changed() == files() == {"a.py", "b.py"}


@pytest.mark.usefixtures("hears_ctrl_c")
def test_ctrl_c_before_that_leaves_all_as_they_were(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.py")

    def interrupted(*args: Any) -> None:
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(_writing, "_beside", interrupted)

    assert _command.main(["--write", "."]) == 130
    assert changed() == set()
    assert "interrupted" in capsys.readouterr().err


def test_it_runs_in_other_threads_too() -> None:
    from conftest import in_plain_thread

    write("a.py")

    assert in_plain_thread(lambda: _command.main(["--write", "."])) == 0
    assert changed() == {"a.py"}


def test_many_files_are_moved_by_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {f"{index}.py" for index in range(30)}
    for name in names:
        write(name)
    called: list[int] = []
    original = run_in_processpool_sync

    def counted(func: Any, jobs: Sequence[Any]) -> Any:
        called.append(len(jobs))
        return original(func, jobs)

    monkeypatch.setattr(_run, "run_in_processpool_sync", counted)

    assert _command.main(["--write", "."]) == 0
    assert changed() == names
    assert sum(called) == 30
    assert len(called) > 1


def test_some_files_are_moved_at_a_time() -> None:
    options = Options()

    (result,) = _run.migrate_some([(OLD.encode(), options)])

    assert result.new == NEW.encode()


def test_an_error_among_many_files_ends_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for index in range(30):
        write(f"{index}.py")

    def interrupted(func: Any, jobs: Sequence[Any]) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(_run, "run_in_processpool_sync", interrupted)

    assert _command.main(["--write", "."]) == 130
    assert changed() == set()


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["-", "a.py"], "- stands alone"),
        (["--no-affinity", "a", "a"], "give --native as well"),
        ([], "PATH"),
    ],
)
def test_wrong_arguments_are_named(arguments: list[str], problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as raised:
        _command.main(arguments)

    assert raised.value.code == 2
    assert problem in capsys.readouterr().err


def test_missing_paths_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    write("a.py")

    assert _command.main(["--write", "a.py", "b.py"]) == 2
    assert changed() == set()
    assert capsys.readouterr().err == "b.py: there is no such file or folder\n"


def test_files_elsewhere_are_named_by_their_whole_path(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    write("a/b.py")
    Path("c").mkdir()
    monkeypatch.chdir("c")
    _command.main([".."])

    assert f"+++ {tmp_path.resolve()}/a/b.py\n" in capsys.readouterr().out


class _Stdin:
    def __init__(self, source: bytes) -> None:
        import io

        self.buffer = io.BytesIO(source)


def test_stdin_is_shown_and_written_to_stdout(
    capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    for source, arguments, code in (
        (OLD, ["-"], 1),
        (NEW, ["-"], 0),
        (OLD, ["--write", "-"], 0),
        (BROKEN, ["--write", "-"], 2),
    ):
        monkeypatch.setattr(sys, "stdin", _Stdin(source.encode()))
        assert _command.main(arguments) == code

        output, errors = capsysbinary.readouterr()
        assert output.startswith(
            NEW.encode() if code == 0 and "--write" in arguments else {0: b"0 files", 1: b"--- -\n"}.get(code, b"")
        )
        assert (b"-: line 2: it cannot be parsed" in errors) == (code == 2)


def test_the_command_runs_as_a_module() -> None:
    write("a.py")
    done = run("--write", ".")

    assert (done.stdout, done.stderr, done.returncode) == (b"1 file of 1 changed: 1 imported name\n", b"", 0)
    assert run("--write", "-", stdin=OLD.encode()).stdout == NEW.encode()


def test_what_is_missing_is_named() -> None:
    program = (
        "import importlib.util, runpy, sys\n"
        "found = importlib.util.find_spec\n"
        "importlib.util.find_spec = lambda name, *args: None if name == 'libcst' else found(name, *args)\n"
        "sys.argv = ['migrate', '.']\n"
        "runpy.run_module('unfazed_compat.migrate', run_name='__main__', alter_sys=True)\n"
    )
    done = python("-c", program)

    assert done.returncode == 2
    assert done.stderr.decode() == "The migration needs libcst: `pip install 'unfazed-concurrency[migrate]'`\n"


def test_a_worker_that_runs_the_command_anew_does_nothing() -> None:
    module = importlib.import_module("unfazed_compat.migrate.__main__")

    assert not hasattr(module, "main")


def test_an_error_of_the_migration_itself_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write("a.py")
    monkeypatch.setattr(_source, "plan_imports", lambda *args: 1 / 0)

    assert _command.main(["--write", "."]) == 2
    assert "a.py: an error of the migration itself, to be reported: ZeroDivisionError" in capsys.readouterr().err


def test_what_libcst_does_not_give_back_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    original = cst.parse_module
    monkeypatch.setattr(cst, "parse_module", lambda source: original(source + b"# more\n"))

    assert _source.migrate(OLD.encode(), Options()).error == "libcst does not give it back as it is"


def test_what_this_python_cannot_parse_is_parsed_by_libcst(monkeypatch: pytest.MonkeyPatch) -> None:
    def too_new(source: bytes) -> None:
        raise SyntaxError

    monkeypatch.setattr(ast, "parse", too_new)

    assert _source.migrate(OLD.encode(), Options()).new == NEW.encode()


SESSIONS = [
    session
    for session in re.findall(r"^```console\n(.*?)^```\n", read(PAGE), re.MULTILINE | re.DOTALL)
    if "unfazed_compat.migrate" in session
]


@pytest.mark.parametrize("session", SESSIONS, ids=range(len(SESSIONS)))
def test_the_documentation_shows_what_the_command_prints(session: str) -> None:
    code = 0
    for line, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", session, re.MULTILINE):
        command = shlex.split(line)
        if command[0] == "cat" and not Path(command[1]).exists():
            write(command[1], output)
        elif command[0] == "cat":
            assert Path(command[1]).read_text("utf-8") == output
        elif command[0] == "echo":
            assert f"{code}\n" == output
        else:
            assert command[:3] == ["python", "-m", "unfazed_compat.migrate"]
            done = run(*command[3:])
            code = done.returncode

            assert (done.stdout + done.stderr).decode() == output
