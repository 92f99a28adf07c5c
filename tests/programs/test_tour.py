"""The tour, run as a user would."""

from __future__ import annotations

import importlib
import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

TOUR = Path(__file__).parents[2] / "examples" / "tour.py"
HANG_SECONDS = 50

DEAF_NO_MORE = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

pytestmark = pytest.mark.skipif(importlib.util.find_spec("trio") is None, reason="the tour needs trio")


@pytest.fixture
def tour(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The tour as a module, which worker processes can import as well."""
    monkeypatch.syspath_prepend(TOUR.parent)
    return importlib.import_module("tour")


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        # Ctrl-C works whatever the tests were started by: what runs in the background of a shell is deaf to it
        [sys.executable, "-c", DEAF_NO_MORE, str(TOUR), *map(str, arguments)],
        env=dict(os.environ, COLUMNS="200", PYTHONUNBUFFERED="1"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def take(*arguments: object) -> tuple[int, str]:
    process = start(*arguments)
    out, err = process.communicate(timeout=HANG_SECONDS)
    assert err == ""
    return process.returncode, out


def test_all_ways_agree_on_every_file(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"{number} [red]").write_bytes(bytes([number]) * number * 1000)

    code, out = take(tmp_path)

    assert code == 0
    assert "All agree on 20 files." in out
    for way in ("async code, asyncio", "sync code, asyncio", "async code, trio", "sync code, trio"):
        assert way in out


def test_a_missing_directory_is_named(tmp_path: Path) -> None:
    code, out = take(tmp_path / "missing [bold]")

    assert code == 2
    assert out == f"{tmp_path / 'missing [bold]'} does not exist\n"


def test_a_file_in_place_of_a_directory_is_named() -> None:
    assert take(__file__) == (2, f"{__file__} is not a directory\n")


def test_too_many_arguments_show_the_usage() -> None:
    assert take(1, 2) == (2, "usage: tour.py [DIRECTORY]\n")


def test_help_says_what_it_does() -> None:
    code, out = take("--help")

    assert code == 0
    assert out.startswith("usage: tour.py [DIRECTORY]\n\nReads every file below DIRECTORY")
    assert take("--nonsense") == (2, "usage: tour.py [DIRECTORY]\n")


@pytest.mark.skipif(sys.platform == "win32", reason="there are no FIFOs")
def test_what_cannot_be_read_to_its_end_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "device").symlink_to("/dev/zero")
    with (tmp_path / "large").open("wb") as large:
        large.truncate(2**31 + 1)

    code, out = take(tmp_path)

    assert code == 0
    assert f"passed over {tmp_path / 'fifo'}: no regular file" in out
    assert f"passed over {tmp_path / 'device'}: no regular file" in out
    assert f"passed over {tmp_path / 'large'}: larger than 2 GiB" in out
    assert "All agree on 1 files." in out


def test_it_shows_what_the_library_is_for(tour: Any) -> None:
    from rich.console import Console

    console = Console(record=True, width=200)
    digests = {Path(str(number)): "1" for number in range(100)}
    runs = [
        tour.Run("async code, asyncio", digests=digests, seconds=0.5, held_up=0.003),
        tour.Run("blocking the loop", digests=digests, seconds=2.0, held_up=1.9),
    ]

    assert tour.report(runs, console)

    text = console.export_text()
    assert "400 \u2502          not at all (3 ms)" in text
    assert "100 \u2502               1.90 seconds" in text


def test_an_empty_directory_is_fine(tmp_path: Path) -> None:
    code, out = take(tmp_path)

    assert code == 0
    assert "All agree on 0 files." in out


def test_a_file_that_cannot_be_read_is_left_out_and_the_rest_goes_on(tmp_path: Path) -> None:
    (tmp_path / "readable").write_text("text")
    broken = tmp_path / "unreadable"
    # a file that root cannot read either: it opens, and reading it fails
    broken.symlink_to("/proc/self/mem")

    code, out = take(tmp_path)

    assert code == 0
    assert f"left out {broken}: " in out
    assert "All agree on 1 files." in out


def test_a_file_that_vanishes_in_between_is_left_out_and_the_rest_goes_on(tmp_path: Path, tour: Any) -> None:
    (tmp_path / "stays").write_text("text")
    paths = [tmp_path / "stays", tmp_path / "vanished"]

    from rich.console import Console

    console = Console(record=True, width=200)
    assert tour.report(tour.take_tour(paths, console), console)

    text = console.export_text()
    assert f"left out {tmp_path / 'vanished'}: " in text
    assert "No such file" in text
    assert "All agree on 1 files." in text


def test_a_file_that_changes_in_between_is_named(tour: Any) -> None:
    from rich.console import Console

    console = Console(record=True, width=200)
    runs = [tour.Run("one", digests={Path("a"): "1"}), tour.Run("two", digests={Path("a"): "2"})]

    assert not tour.report(runs, console)
    assert "changed meanwhile a (one: 1, two: 2)" in console.export_text()


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent in another way there")
def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    for number in range(5000):
        (tmp_path / str(number)).write_bytes(b"x" * 10)
    process = start(tmp_path)
    assert process.stdout is not None
    line = process.stdout.readline()
    assert line.startswith("5000 files")
    time.sleep(1)  # not for order: wherever it is by now, it must end
    process.send_signal(signal.SIGINT)

    out, err = process.communicate(timeout=HANG_SECONDS)

    assert (process.returncode, err) == (130, "")
    assert "Interrupted; all threads and processes have ended." in out
