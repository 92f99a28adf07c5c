"""How worker processes end, and how programs with worker processes do."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import TYPE_CHECKING, Any

import misbehaving_functions as misbehaving
import process_functions as functions
import pytest
from conftest import wait_until
from processes import is_dead
from running import run_program, write

from unfazed.concurrency import WorkerProcessError, run_in_processpool_sync

if TYPE_CHECKING:
    from pathlib import Path

Backend = tuple[str, dict[str, Any]]

ENDS = """
    import os, signal, sys, threading, time
    from unfazed.concurrency import *
    def die(): os._exit(3)
    if __name__ == "__main__":
        {before}
        for _ in range(5):
            try:
                run_in_processpool_sync(die)
            except WorkerProcessError as exc:
                print(exc.reason)
"""
REAPS = """def reap():
            while True:
                try: os.waitpid(-1, 0)
                except ChildProcessError: time.sleep(0.0001)
        threading.Thread(target=reap, daemon=True).start()"""


@pytest.mark.parametrize("before", ["signal.signal(signal.SIGCHLD, signal.SIG_IGN)", REAPS], ids=["ignored", "reaped"])
def test_where_the_program_reaps_children_an_end_is_unknown_and_never_a_wrong_one(tmp_path: Path, before: str) -> None:
    out, err = run_program(tmp_path, write(tmp_path / "program.py", ENDS.format(before=before)))

    reasons = set(out.splitlines())
    assert err == ""
    assert reasons <= {f"ended {how} before it answered" for how in ("for an unknown reason", "with exit code 3")}
    assert "ended for an unknown reason before it answered" in reasons


def test_a_worker_that_closes_its_pipes_is_ended(background: Backend) -> None:
    with pytest.raises(WorkerProcessError, match="as it closed what connects it with this process"):
        run_in_processpool_sync(misbehaving.close_all_and_wait)

    assert run_in_processpool_sync(functions.echo, 1) == ((1,), {})


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_program_leaves_no_worker_though_a_child_that_it_has_forked_lives_on(
    tmp_path: Path, busy: bool
) -> None:
    out, _ = run_program(
        tmp_path,
        write(
            tmp_path / "program.py",
            f"""
            import os, signal, sys, threading, time
            from unfazed.concurrency import *
            if __name__ == "__main__":
                worker = run_in_processpool_sync(os.getpid)
                if {busy}:
                    threading.Thread(target=run_in_processpool_sync, args=(time.sleep, 60), daemon=True).start()
                    time.sleep(0.1)
                child = os.fork()
                if not child:
                    for fd in (0, 1, 2):
                        os.close(fd)
                    time.sleep(60)
                print(worker, child, flush=True)
                os.kill(os.getpid(), signal.SIGKILL)
            """,
        ),
    )
    killed = time.monotonic()
    worker, child = map(int, out.split())

    wait_until(lambda: is_dead(worker), "the worker lives on")
    seconds = time.monotonic() - killed
    assert not is_dead(child)
    os.kill(child, signal.SIGKILL)
    assert seconds < 5  # promised is one, on a machine that is not busy


EXITS = {
    "a blocked handler": """
        class Blocking(logging.Handler):
            def handle(self, record): reached.set(); time.sleep(60)  # without the lock, which `logging` takes at exit
        reached = threading.Event()
        logging.getLogger().addHandler(Blocking())
        threading.Thread(target=call, args=(log,), daemon=True).start()
        reached.wait()""",
    "a blocked stderr": """
        class Blocked:
            def write(self, text): reached.set(); time.sleep(60)
            def flush(self): pass
        reached = threading.Event()
        sys.stderr = Blocked()
        call(print, "x")
        reached.wait()
        sys.stderr = sys.__stderr__""",
    "a busy worker": "threading.Thread(target=call, args=(time.sleep, 60), daemon=True).start(); time.sleep(0.1)",
    "a worker that starts": "threading.Thread(target=call, args=(int,), daemon=True).start()",
    "a child with the output": "call(fork)",
    "a worker that hangs at exit": "call(hang_at_exit)",
    "a worker that is dead": "call(os._exit, 1); os.kill(call(os.getpid), 9)",
}


@pytest.mark.parametrize("state", EXITS.values(), ids=EXITS.keys())
def test_the_program_ends_soon_and_in_silence(tmp_path: Path, state: str) -> None:
    name = write(
        tmp_path / "program.py",
        f"""
    import atexit, logging, os, subprocess, sys, threading, time
    from unfazed.concurrency import *
    def log(): logging.warning("x")
    def fork(): subprocess.Popen(["sleep", "20"], stdout=subprocess.DEVNULL).returncode = 0
    def hang_at_exit(): atexit.register(time.sleep, 60)
    def call(*args):
        try: return run_in_processpool_sync(*args)
        except Exception: pass
    if __name__ == "__main__":
        {state.strip()}
        print("done")
    """,
    )
    environment = dict(os.environ, PYTHONWARNINGS="error", PYTHONPATH=os.pathsep.join(sys.path))
    begin = time.monotonic()

    out, err = run_program(tmp_path, name, env=environment)

    assert (out, err) == ("done\n", "")
    assert time.monotonic() - begin < 15
