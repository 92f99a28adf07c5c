"""asgiref's names in programs of their own: after a fork, and without asgiref."""

from __future__ import annotations

import os
import subprocess

import pytest
from asgiref_helpers import counts_references, end_threads, run_program

assert end_threads  # a fixture

HANG_SECONDS = 3.0  # after which the original hangs; arbitrary


# ---- after a fork


FORK = """
import asyncio, os, sys
from {library} import ThreadSensitiveContext, async_to_sync, sync_to_async

async def use() -> int:
    return await sync_to_async(os.getpid)()

assert async_to_sync(use)() == os.getpid()
assert asyncio.run(use()) == os.getpid()

def fork_and_use():
    child = os.fork()
    if child == 0:
        try:
            assert async_to_sync(use)() == os.getpid()
            assert asyncio.run(use()) == os.getpid()
        except BaseException as exc:
            print(exc, flush=True)
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

async def fork_in_context():
    async with ThreadSensitiveContext():
        return await sync_to_async(fork_and_use)()

print(fork_and_use(), asyncio.run(sync_to_async(fork_and_use)()), asyncio.run(fork_in_context()))
assert async_to_sync(use)() == os.getpid()
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_forked_child_can_make_calls() -> None:
    done = run_program(FORK.format(library="unfazed_compat.asgiref"), "-W", "ignore::DeprecationWarning")

    assert (done.stdout, done.stderr) == ("0 0 0\n", "")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.xfail(reason="the original hangs", raises=subprocess.TimeoutExpired)
def test_a_forked_child_hangs_with_the_original() -> None:
    run_program(FORK.format(library="asgiref.sync"), "-W", "ignore::DeprecationWarning", seconds=HANG_SECONDS)


END_OF_CHILD = """
import asyncio, multiprocessing, threading
from unfazed_compat.asgiref import sync_to_async

running, may_end = threading.Event(), threading.Event()

def work():
    running.set()
    may_end.wait()
    print("done", flush=True)

async def main():
    task = asyncio.create_task(sync_to_async(work)())
    while not running.is_set():
        await asyncio.sleep(0.001)
    task.cancel()

def child():
    asyncio.run(main())
    threading.Thread(target=go_on).start()

def go_on():
    threading.main_thread().join()
    may_end.set()
    asyncio.run(sync_to_async(print)("from another thread", flush=True))

child_process = multiprocessing.get_context("fork").Process(target=child)
child_process.start()
child_process.join()
print(child_process.exitcode)
"""


@counts_references
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_runs_at_the_end_of_a_child_of_multiprocessing_may_end() -> None:
    done = run_program(END_OF_CHILD, "-W", "ignore::DeprecationWarning")

    assert (done.stdout, done.stderr) == ("done\nfrom another thread\n0\n", "")


FORK_LATE = """
import asyncio, os, threading
from asgiref.sync import sync_to_async
asyncio.run(sync_to_async(int)())  # before anybody has heard of us
import unfazed_compat.asgiref
{install}
child = os.fork()
if child == 0:
    threads = []
    barrier = threading.Barrier(4)
    def use():
        barrier.wait()
        threads.append(asyncio.run(sync_to_async(threading.get_ident)()))
    users = [threading.Thread(target=use) for _ in range(4)]
    for each in users:
        each.start()
    for each in users:
        each.join()
    os._exit(0 if len(threads) == 4 and len(set(threads)) == 1 else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("install", ["", "unfazed_compat.asgiref.install()"], ids=["import", "install"])
def test_a_forked_child_can_make_calls_though_asgirefs_own_thread_has_been_used(install: str) -> None:
    done = run_program(FORK_LATE.format(install=install), "-W", "ignore::DeprecationWarning")

    assert (done.stdout, done.stderr) == ("0\n", "")


# ---- without asgiref


WITHOUT = """
import sys
sys.modules["asgiref"] = None
import asyncio, threading
import unfazed_compat.asgiref as ours
from unfazed_compat.asgiref import AsyncToSync, SyncToAsync, ThreadSensitiveContext, async_to_sync, sync_to_async

variable = __import__("contextvars").ContextVar("variable", default=0)

async def inner():
    assert AsyncToSync.executors.current is not None
    variable.set(1)
    return await sync_to_async(threading.current_thread)()

assert async_to_sync(inner)() is threading.current_thread()
assert variable.get() == 1

async def main():
    thread = await sync_to_async(threading.current_thread)()
    assert thread in SyncToAsync.single_thread_executor._threads
    async with ThreadSensitiveContext():
        assert await sync_to_async(threading.current_thread)() is not thread
    del AsyncToSync.executors.current

asyncio.run(main())
for call in (lambda: ours.Local, ours.install):
    try:
        call()
    except (ImportError, RuntimeError, Exception) as exc:
        print(type(exc).__name__, exc)
try:
    ours.nothing
except AttributeError as exc:
    print(exc)
"""


def test_it_works_without_asgiref_but_for_local() -> None:
    done = run_program(WITHOUT, "-W", "error")

    assert done.stderr == ""
    local, install, nothing = done.stdout.splitlines()
    assert local.startswith("ImportError Local is asgiref's own")
    assert install.startswith("UnfazedError install() needs asgiref")
    assert "has no attribute 'nothing'" in nothing
