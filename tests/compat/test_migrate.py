"""One file moves: what its imports and calls become, and what is left alone."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest
from unfazed_compat.migrate._mentions import mentions_in, names_of
from unfazed_compat.migrate._plan import Options
from unfazed_compat.migrate._source import Result, migrate

IMPORTS_ONLY = Options()
NATIVE = Options(native=True)
NO_AFFINITY = Options(native=True, no_affinity=True)
HEAD = "from asgiref.sync import sync_to_async\n"
ASYNC_HEAD = "from asgiref.sync import async_to_sync\n"


def migrated(source: str, options: Options = IMPORTS_ONLY) -> Result:
    """Migrate *source*, and see that a second time changes nothing."""
    result = migrate(dedent(source).encode(), options)

    assert not result.error
    again = migrate(result.new, options)
    assert again.new.decode() == result.new.decode()
    return result


def reasons(result: Result) -> str:
    return "\n".join(f"{line}: {reason}" for line, reason in result.findings)


IMPORTS = [
    ("from asgiref.sync import sync_to_async\n", "from unfazed_compat.asgiref import sync_to_async\n"),
    (
        "from asgiref.sync import sync_to_async as s  # why\n",
        "from unfazed_compat.asgiref import sync_to_async as s  # why\n",
    ),
    ("from asgiref.local import Local\n", "from unfazed_compat.asgiref import Local\n"),
    (
        "from channels.db import database_sync_to_async, aclose_old_connections\n",
        "from unfazed_compat.django import database_sync_to_async\nfrom channels.db import aclose_old_connections\n",
    ),
    (
        "from channels.db import aclose_old_connections, database_sync_to_async as d\n",
        "from channels.db import aclose_old_connections\nfrom unfazed_compat.django import database_sync_to_async as d\n",
    ),
    (
        "from asgiref.sync import (\n    async_to_sync,  # one\n    sync_to_async,\n)\n",
        "from unfazed_compat.asgiref import (\n    async_to_sync,  # one\n    sync_to_async,\n)\n",
    ),
    (
        "from channels.db import (\n    aclose_old_connections,  # one\n    database_sync_to_async,\n)\n",
        "from channels.db import (\n    aclose_old_connections,  # one\n)\n"
        "from unfazed_compat.django import (\n    database_sync_to_async,\n)\n",
    ),
    ("if 1: from asgiref.sync import sync_to_async\n", "if 1: from unfazed_compat.asgiref import sync_to_async\n"),
    (
        "import os; from channels.db import database_sync_to_async, x\n",
        "import os; from unfazed_compat.django import database_sync_to_async; from channels.db import x\n",
    ),
    (
        "def f():\n    from asgiref.sync import sync_to_async\n    return sync_to_async\n",
        "def f():\n    from unfazed_compat.asgiref import sync_to_async\n    return sync_to_async\n",
    ),
    (
        "if TYPE_CHECKING:\n    from asgiref.local import Local\n",
        "if TYPE_CHECKING:\n    from unfazed_compat.asgiref import Local\n",
    ),
    (
        "try:\n    from asgiref.sync import sync_to_async\nexcept ImportError:\n    sync_to_async = None\n",
        "try:\n    from unfazed_compat.asgiref import sync_to_async\nexcept ImportError:\n    sync_to_async = None\n",
    ),
    (
        "import asgiref.sync as s\ns.sync_to_async(f)\n",
        "import unfazed_compat.asgiref as s\ns.sync_to_async(f)\n",
    ),
    (
        "from asgiref import sync\nsync.sync_to_async(f)\n",
        "from unfazed_compat import asgiref as sync\nsync.sync_to_async(f)\n",
    ),
    (
        "from asgiref import local as storage, timeout\nstorage.Local()\n",
        "from unfazed_compat import asgiref as storage\nfrom asgiref import timeout\nstorage.Local()\n",
    ),
    (
        "import os, asgiref.sync\nasgiref.sync.sync_to_async(asgiref.local.Local)\n",
        "import os, unfazed_compat.asgiref\nunfazed_compat.asgiref.sync_to_async(unfazed_compat.asgiref.Local)\n",
    ),
    (
        "import asgiref.sync\nimport asgiref.timeout\nasgiref.sync.sync_to_async(asgiref.timeout.x)\n",
        "import unfazed_compat.asgiref\nimport asgiref.timeout\nunfazed_compat.asgiref.sync_to_async(asgiref.timeout.x)\n",
    ),
    ("import asgiref\nasgiref.local.Local()\n", "import unfazed_compat.asgiref\nunfazed_compat.asgiref.Local()\n"),
    (
        "import channels.db\nchannels.db.database_sync_to_async(f)\n",
        "import unfazed_compat.django\nunfazed_compat.django.database_sync_to_async(f)\n",
    ),
    ("\ufefffrom asgiref.sync import sync_to_async\r\n", "\ufefffrom unfazed_compat.asgiref import sync_to_async\r\n"),
]


@pytest.mark.parametrize(("before", "after"), IMPORTS)
def test_imports_move_in_the_form_that_they_have(before: str, after: str) -> None:
    result = migrated(before)

    assert result.new.decode() == after
    assert result.findings == ()


@pytest.mark.parametrize(
    "source",
    [
        "print('asgiref')\n",
        "from asgiref.typing import Scope\n",
        "from asgiref import timeout\n",
        "import asgiref.testing\n",
        "import asgiref\n",
        "import asgiref.testing as sync\n",
        "from .asgiref.sync import sync_to_async\n",
        "from unfazed_compat.asgiref import sync_to_async\n",
        "from home_grown import sync_to_async\nsync_to_async(list)(asgiref)\n",
    ],
)
def test_what_is_not_of_asgirefs_stays(source: str) -> None:
    result = migrated(source)

    assert result.new.decode() == source
    assert result.findings == ()


def test_another_encoding_stays() -> None:
    source = "# coding: latin-1\nfrom asgiref.sync import sync_to_async  # é\n".encode("latin-1")

    assert migrate(source, Options()).new == source.replace(b"asgiref.sync", b"unfazed_compat.asgiref")


REPORTED = [
    ("from asgiref.sync import *\n", "1: `from asgiref.sync import *` hides"),
    ("from asgiref.sync import launch_map\n", "1: `asgiref.sync.launch_map` has no counterpart"),
    ("import asgiref.sync\n", "1: nothing here uses `asgiref.sync`"),
    ("import asgiref.sync\nasgiref.sync.odd()\n", "`asgiref.sync.odd` is used, which has no counterpart"),
    ("import asgiref.sync\nasgiref.wsgi.x()\n", "`asgiref.wsgi.x` is used, which has no counterpart"),
    ("import asgiref.sync\nasgiref.sync.sync_to_async = f\n", "`asgiref.sync.sync_to_async` is assigned to"),
    ("import asgiref.sync\nx: 'asgiref.sync.SyncToAsync' = 1\n", "a string annotation names it"),
    ("import asgiref.sync\nasgiref = 1\nasgiref.sync.sync_to_async()\n", "`asgiref` is bound more than once"),
    ("import asgiref.sync\nfrom x import asgiref\nasgiref.sync.sync_to_async()\n", "`asgiref` is bound more than once"),
    (
        "from asgiref import sync\nmock.patch.object(sync, 'sync_to_async')\n",
        "`sync` is used, which has no counterpart",
    ),
    ("from asgiref import sync\nsync.odd()\n", "`sync.odd` is used, which has no counterpart"),
    ("from asgiref import sync\nsync.sync_to_async()\nsync = 1\n", "`sync` is bound more than once"),
    ("from asgiref import sync\nx: 'sync.SyncToAsync' = 1\n", "`sync` is used, which has no counterpart"),
    ("from asgiref.sync import SyncToAsync\nclass A(SyncToAsync): pass\n", "2: a class inherits from `SyncToAsync`"),
    (
        "from asgiref.sync import SyncToAsync\nSyncToAsync.threadlocal.x\n",
        "2: `SyncToAsync.threadlocal` is an internal",
    ),
    ("from asgiref.sync import SyncToAsync\nisinstance(x, SyncToAsync)\n", "2: `isinstance` asks for `SyncToAsync`"),
]


@pytest.mark.parametrize(("source", "reason"), REPORTED)
def test_imports_that_cannot_move_are_reported(source: str, reason: str) -> None:
    result = migrated(source)

    assert result.new.decode() == source
    assert reason in reasons(result)


HINTS = [
    ('@patch("x.tasks.async_to_sync")\ndef test(mock): pass\n', '1: "x.tasks.async_to_sync" names it by a string'),
    ('import_module("asgiref.sync")\n', '1: "asgiref.sync" names it by a string'),
    (
        f"{HEAD}async def f():\n    await sync_to_async(list)(queryset)\n",
        "3: `sync_to_async(list)` fetches all at once",
    ),
    (f"{HEAD}async def f():\n    await sync_to_async(next)(it)\n", "3: `sync_to_async(next)` is a step of an iterator"),
    (f"{HEAD}async def f(): pass\nsync_to_async(f)\n", "3: `sync_to_async` of an async function is an error"),
    (f"{HEAD}def f():\n    yield\nsync_to_async(f)\n", "4: `sync_to_async` of a generator runs nothing in the thread"),
    (f"{HEAD}@sync_to_async\ndef f():\n    yield\n", "2: `sync_to_async` of a generator runs nothing in the thread"),
    (f"{HEAD}@sync_to_async()\nasync def f():\n    pass\n", "2: `sync_to_async` of an async function is an error"),
    (
        f"{HEAD}class A:\n    async def f(self): pass\n    def g(self): return sync_to_async(self.f)\n",
        "4: `sync_to_async` of an async function is an error",
    ),
    (f"{ASYNC_HEAD}async def f():\n    async_to_sync(g)()\n", "3: `async_to_sync` in async code is an error"),
    (
        "import asgiref\ndef step():\n    try:\n        return next(it)\n    except StopIteration:\n"
        "        raise StopAsyncIteration\n",
        "2: an iterator bridge, by hand",
    ),
]


@pytest.mark.parametrize("options", [Options(), NATIVE, NO_AFFINITY], ids=["imports", "native", "no affinity"])
@pytest.mark.parametrize(("source", "reason"), HINTS)
def test_what_is_wrong_is_reported(source: str, reason: str, options: Options) -> None:
    assert reason in reasons(migrated(source, options))


@pytest.mark.parametrize(
    "source",
    [
        "from asgiref.sync import SyncToAsync, sync_to_async\nx: 'SyncToAsync' = call(SyncToAsync)\ny = [SyncToAsync]\n",
        '"""Uses asgiref.sync.sync_to_async."""\n',
        "from asgiref.sync import sync_to_async\ndef list(x): pass\nsync_to_async(list)\n",
        "from asgiref.sync import sync_to_async\n@decorate\nasync def f(): pass\nsync_to_async(f)\n",
        "from asgiref.sync import sync_to_async\nasync def f(): pass\nf = 1\nsync_to_async(f)\n",
        "from asgiref.sync import sync_to_async\nclass A:\n    async def f(self): pass\nsync_to_async(f)\n",
        "from asgiref.sync import sync_to_async\nclass A:\n    async def f(self): pass\n"
        "    def g(self):\n        return sync_to_async(other.f), sync_to_async(f)\n",
        "from asgiref.sync import sync_to_async\nasync def f(): pass\nmatch x:\n    case f: sync_to_async(f)\n",
        "from asgiref.sync import async_to_sync\nasync def f():\n    return lambda: async_to_sync(g)()\n",
        "from asgiref.sync import sync_to_async\ndef f():\n    def g():\n        yield\n    return sync_to_async(f)\n",
    ],
)
def test_what_is_not_surely_wrong_is_not_reported(source: str) -> None:
    assert reasons(migrated(source)) == ""


HELPER = "from unfazed.concurrency import run_in_threadpool\n"
CALLS = [
    (
        f"{HEAD}with Pool() as e, Pool() as p:\n    sync_to_async(lambda: x, thread_sensitive=False, executor=e)()\n",
        "from unfazed.concurrency import run_in_executor\nwith Pool() as e, Pool() as p:\n"
        "    run_in_executor(e, lambda: x)\n",
    ),
    (
        f"{HEAD}from pools import pool\ng = sync_to_async(f, thread_sensitive=False, executor=pool)\n",
        "from unfazed.concurrency import in_executor\nfrom pools import pool\ng = in_executor(pool, f)\n",
    ),
    (
        f"{HEAD}g = sync_to_async(executor=self.pool, thread_sensitive=False, func=f)\n",
        "from unfazed.concurrency import in_executor\ng = in_executor(self.pool, f)\n",
    ),
    (
        f"{HEAD}g = sync_to_async(func=f, thread_sensitive=False, executor=self.pool)\n",
        "from unfazed.concurrency import in_executor\ng = in_executor(self.pool, f)\n",
    ),
    (
        f"{HEAD}e = threading.Event()\ndef f(): e.set()\nsync_to_async(f, thread_sensitive=False)()\n",
        f"{HELPER}e = threading.Event()\ndef f(): e.set()\nrun_in_threadpool(f)\n",
    ),
    (
        f"{HEAD}v = Box()\ndef f(): v.set(1), w.set(1), f(), self.v.set(1)\nsync_to_async(f, thread_sensitive=False)()\n",
        f"{HELPER}v = Box()\ndef f(): v.set(1), w.set(1), f(), self.v.set(1)\nrun_in_threadpool(f)\n",
    ),
    (
        f"{ASYNC_HEAD}def f(x):\n    return async_to_sync(x)\ng = (async_to_sync(x), 1)\n",
        "from unfazed.concurrency import in_eventloop\ndef f(x):\n    return in_eventloop(x).sync\n"
        "g = (in_eventloop(x).sync, 1)\n",
    ),
    (
        f"{HEAD}async def m():\n    await sync_to_async(f, thread_sensitive=False)(1, k=2)\n",
        f"{HELPER}async def m():\n    await run_in_threadpool(f, 1, k=2)\n",
    ),
    (f"{HEAD}sync_to_async(func=f, thread_sensitive=False)()\n", f"{HELPER}run_in_threadpool(f)\n"),
    (
        f"{HEAD}sync_to_async(sum, thread_sensitive=False)(x for x in y)\n",
        f"{HELPER}run_in_threadpool(sum, (x for x in y))\n",
    ),
    (
        f"{HEAD}sync_to_async(lambda: 1, thread_sensitive=False)(*a, **k)\n",
        f"{HELPER}run_in_threadpool(lambda: 1, *a, **k)\n",
    ),
    (f"{HEAD}sync_to_async(list[int], thread_sensitive=False)(x)\n", f"{HELPER}run_in_threadpool(list[int], x)\n"),
    (
        f"{HEAD}sync_to_async(\n    f, thread_sensitive=False,\n)(\n    1,\n)\n",
        f"{HELPER}run_in_threadpool(\n    f,\n    1,\n)\n",
    ),
    (
        f"{HEAD}sync_to_async(f, thread_sensitive=False, executor=None, context=None)()\n",
        f"{HELPER}run_in_threadpool(f)\n",
    ),
    (
        f"{HEAD}sync_to_async(f, thread_sensitive=False, executor=pool)(1)\n",
        "from unfazed.concurrency import run_in_executor\nrun_in_executor(pool, f, 1)\n",
    ),
    (
        f"{HEAD}pool = Pool()\nsync_to_async(f, thread_sensitive=False, executor=pool)(1)\n",
        "from unfazed.concurrency import run_in_executor\npool = Pool()\nrun_in_executor(pool, f, 1)\n",
    ),
    (
        f"{HEAD}g = sync_to_async(f, thread_sensitive=False, context=c)\n",
        "from unfazed.concurrency import in_threadpool\ng = in_threadpool(f, context=c)\n",
    ),
    (
        f"{HEAD}g = sync_to_async(thread_sensitive=False, executor=pool, func=f)\nprint(g.__name__)\n",
        "from unfazed.concurrency import in_executor\ng = in_executor(pool, f)\nprint(g.__name__)\n",
    ),
    (
        f"{HEAD}g = sync_to_async(\n    f,\n    thread_sensitive=False,\n)\n",
        "from unfazed.concurrency import in_threadpool\ng = in_threadpool(\n    f,\n)\n",
    ),
    (
        f"{HEAD}h = sync_to_async(thread_sensitive=False)\n",
        "from unfazed.concurrency import in_threadpool\nh = in_threadpool()\n",
    ),
    (
        f"{HEAD}@sync_to_async(thread_sensitive=False)\ndef f(): pass\n",
        "from unfazed.concurrency import in_threadpool\n@in_threadpool\ndef f(): pass\n",
    ),
    (
        f"{HEAD}@sync_to_async(thread_sensitive=False, executor=pool)\ndef f(): pass\n",
        "from unfazed.concurrency import in_executor\n@in_executor(pool)\ndef f(): pass\n",
    ),
    (
        f"{HEAD}a = sync_to_async(f)(1)\nb = sync_to_async(f, thread_sensitive=False)(2)\n",
        "from unfazed_compat.asgiref import sync_to_async\nfrom unfazed.concurrency import run_in_threadpool\n"
        "a = sync_to_async(f)(1)\nb = run_in_threadpool(f, 2)\n",
    ),
    (
        "import asgiref.sync  # here\nasgiref.sync.sync_to_async(f, thread_sensitive=False)(1)\n",
        "from unfazed.concurrency import run_in_threadpool  # here\nrun_in_threadpool(f, 1)\n",
    ),
    (
        f"{HELPER}# why\n{HEAD}sync_to_async(f, thread_sensitive=False)()\n",
        f"{HELPER}# why\n{HELPER}run_in_threadpool(f)\n",
    ),
    (
        f"{HELPER}{HEAD}sync_to_async(f, thread_sensitive=False)()\n",
        f"{HELPER}run_in_threadpool(f)\n",
    ),
    (
        f"{HELPER}import asgiref.sync\nasgiref.sync.sync_to_async(f, thread_sensitive=False)()\n",
        f"{HELPER}run_in_threadpool(f)\n",
    ),
    (
        "from asgiref.sync import (\n    iscoroutinefunction,\n    sync_to_async,  # why\n)\n"
        "sync_to_async(f, thread_sensitive=False)(1)\n",
        "from unfazed_compat.asgiref import (\n    iscoroutinefunction,\n    sync_to_async,  # why\n)\n"
        "from unfazed.concurrency import run_in_threadpool\nrun_in_threadpool(f, 1)\n",
    ),
    (
        f'__all__ = ["sync_to_async"]\n{HEAD}sync_to_async(f, thread_sensitive=False)()\n',
        '__all__ = ["sync_to_async"]\nfrom unfazed_compat.asgiref import sync_to_async\n'
        f"{HELPER}run_in_threadpool(f)\n",
    ),
    (
        f"{ASYNC_HEAD}print(async_to_sync(f)(1, k=2))\n",
        "from unfazed.concurrency import run_in_eventloop_sync\nprint(run_in_eventloop_sync(f, 1, k=2))\n",
    ),
    (
        f"{ASYNC_HEAD}async_to_sync(f, force_new_loop=False)()\n",
        "from unfazed.concurrency import run_in_eventloop_sync\nrun_in_eventloop_sync(f)\n",
    ),
    (
        f"{ASYNC_HEAD}send = async_to_sync(layer.send)\nsend(1)\n",
        "from unfazed.concurrency import in_eventloop\nsend = in_eventloop(layer.send).sync\nsend(1)\n",
    ),
    (
        f"{ASYNC_HEAD}class A:\n    def __init__(self): self.send = async_to_sync(layer.send)\n",
        "from unfazed.concurrency import in_eventloop\nclass A:\n    def __init__(self): self.send = in_eventloop(layer.send).sync\n",
    ),
    (
        f"{ASYNC_HEAD}def main():\n    @async_to_sync\n    async def f(): pass\n    f()\n    call(f)\n",
        "from unfazed.concurrency import in_eventloop\ndef main():\n    @in_eventloop\n    async def f(): pass\n    f.sync()\n    call(f.sync)\n",
    ),
    (
        f"{ASYNC_HEAD}@async_to_sync()\nasync def _f(): pass\n_f()\n",
        "from unfazed.concurrency import in_eventloop\n@in_eventloop\nasync def _f(): pass\n_f.sync()\n",
    ),
    (
        "from asgiref.sync import async_to_sync, sync_to_async\n"
        "sync_to_async(f, thread_sensitive=False)()\nsync_to_async(f, executor=e, thread_sensitive=False)()\n"
        "async_to_sync(f)()\ng = async_to_sync(f)\n",
        "from unfazed.concurrency import (\n    in_eventloop,\n    run_in_eventloop_sync,\n    run_in_executor,\n"
        "    run_in_threadpool,\n)\n"
        "run_in_threadpool(f)\nrun_in_executor(e, f)\nrun_in_eventloop_sync(f)\ng = in_eventloop(f).sync\n",
    ),
    (
        "if 1: from asgiref.sync import async_to_sync, sync_to_async\n"
        "sync_to_async(f, thread_sensitive=False)()\nsync_to_async(f, executor=e, thread_sensitive=False)()\n"
        "async_to_sync(f)()\ng = async_to_sync(f)\n",
        "if 1: from unfazed.concurrency import in_eventloop, run_in_eventloop_sync, run_in_executor, run_in_threadpool\n"
        "run_in_threadpool(f)\nrun_in_executor(e, f)\nrun_in_eventloop_sync(f)\ng = in_eventloop(f).sync\n",
    ),
]


@pytest.mark.parametrize(("before", "after"), CALLS)
def test_calls_become_native(before: str, after: str) -> None:
    result = migrated(before, NATIVE)

    assert result.new.decode() == after
    assert result.findings == ()


AFFINE = [
    (f"{HEAD}sync_to_async(f)(1)\n", f"{HELPER}run_in_threadpool(f, 1)\n"),
    (f"{HEAD}sync_to_async(f, thread_sensitive=True)(1)\n", f"{HELPER}run_in_threadpool(f, 1)\n"),
    (
        f"{HEAD}@sync_to_async\ndef f(): pass\n",
        "from unfazed.concurrency import in_threadpool\n@in_threadpool\ndef f(): pass\n",
    ),
]


@pytest.mark.parametrize(("before", "after"), AFFINE)
def test_thread_sensitive_calls_become_native_where_no_affinity_is_said(before: str, after: str) -> None:
    assert migrated(before, NO_AFFINITY).new.decode() == after
    assert migrated(before, NATIVE).new.decode() == before.replace("asgiref.sync", "unfazed_compat.asgiref")
    assert migrated(before, NATIVE).counts["stays"] == 1


def test_calls_that_close_connections_stay() -> None:
    source = "from unfazed_compat.django import database_sync_to_async as d\nd(f, thread_sensitive=False)()\n"
    result = migrated(source, NO_AFFINITY)

    assert result.new.decode() == source
    assert result.counts == {"stays": 1}


LEFT = [
    (f"{HEAD}sync_to_async(f, thread_sensitive=flag)()\n", "depends on `flag`"),
    (f"{HEAD}sync_to_async(f, **options)()\n", "what `sync_to_async` is given cannot be told"),
    (f"{HEAD}sync_to_async(f, False)()\n", "what `sync_to_async` is given cannot be told"),
    (f"{HEAD}sync_to_async(f, wrong=1)()\n", "`sync_to_async` has no such option"),
    (f"{HEAD}sync_to_async(f, executor=e)()\n", "`executor=` needs `thread_sensitive=False`"),
    (f"{HEAD}sync_to_async(f, executor=e, context=c, thread_sensitive=False)()\n", "no helper takes both"),
    (f"{HEAD}sync_to_async(f(), executor=e(), thread_sensitive=False)()\n", "the executor would be made before"),
    (f"{HEAD}def g(e=None):\n    sync_to_async(f, executor=e, thread_sensitive=False)()\n", "`e` may be `None`"),
    (f"{HEAD}e = None\nsync_to_async(f, executor=e, thread_sensitive=False)()\n", "`e` may be `None`"),
    (f"{HEAD}e = E()\ne = F()\nsync_to_async(f, executor=e, thread_sensitive=False)()\n", "`e` may be `None`"),
    (f"{HEAD}e: E\nsync_to_async(f, executor=e, thread_sensitive=False)()\n", "`e` may be `None`"),
    (f"{HEAD}sync_to_async(f,  # why\n  thread_sensitive=False)()\n", "a comment is in the way"),
    (f"{HEAD}sync_to_async(  # why\n  thread_sensitive=False)(f)\n", "a comment is in the way"),
    (f"{HEAD}map(sync_to_async, fs)\n", "`sync_to_async` is passed on"),
    (f"{HEAD}@sync_to_async\nclass A: pass\n", "`sync_to_async` is passed on"),
    (f"{HEAD}sync_to_async = sync_to_async\nsync_to_async(f)()\n", "`sync_to_async` may be something else here"),
    (f"{HEAD}def g(sync_to_async):\n    def h(): sync_to_async(f)()\n", ""),
    (f"{HEAD}from x import *\nsync_to_async(f)()\n", "`sync_to_async` may be something else here"),
    (f"{HEAD}match x:\n    case sync_to_async: sync_to_async(f)()\n", "`sync_to_async` may be something else here"),
    (f"{HEAD}class A:\n    sync_to_async = sync_to_async(f)\n", "`sync_to_async` may be something else here"),
    (
        f"{HEAD}run_in_threadpool = 1\nsync_to_async(f, thread_sensitive=False)()\n",
        "`run_in_threadpool` is something else",
    ),
    (
        f"{HEAD}from starlette.concurrency import run_in_threadpool\nsync_to_async(f, thread_sensitive=False)()\n",
        "something else",
    ),
    (f"{HEAD}match x:\n    case [*run_in_threadpool]: sync_to_async(f, thread_sensitive=False)()\n", "something else"),
    (
        f"{HEAD}in_threadpool = 1\ng = sync_to_async(f, thread_sensitive=False)\n",
        "`in_threadpool` is something else here",
    ),
    (f"{HEAD}g = sync_to_async(f, thread_sensitive=False)\ng.func\n", "`g.func` is used"),
    (f"{HEAD}@sync_to_async(thread_sensitive=False)\ndef g(): pass\ng.func\n", "`g.func` is used"),
    (f"{HEAD}sync_to_async(f, thread_sensitive=False).func\n", "`sync_to_async.func` is used"),
    (
        f"{HEAD}v = ContextVar('v')\ndef f(): v.set(1)\nsync_to_async(f, thread_sensitive=False)()\n",
        "it sets context variables",
    ),
    (
        f"{HEAD}v: ContextVar[int] = contextvars.ContextVar[int]('v')\ndef f(): v.set(1)\ndef g(): f()\n"
        "sync_to_async(lambda: g(), thread_sensitive=False)()\n",
        "it sets context variables",
    ),
    (
        f"{HEAD}from x import v\n@sync_to_async(thread_sensitive=False)\ndef f(): v.set(1)\n",
        "it sets context variables",
    ),
    (f"{HEAD}@sync_to_async(thread_sensitive=False)\ndef f(): x.v.reset(t)\n", "it sets context variables"),
    (
        f"{HEAD}s = Local()\ndef f():\n    s.x = 1\n    f()\nsync_to_async(f, thread_sensitive=False)()\n",
        "it sets context variables",
    ),
    (f"{ASYNC_HEAD}async_to_sync(f, wrong=1)()\n", "`async_to_sync` has no such option"),
    (f"{ASYNC_HEAD}async_to_sync(f, force_new_loop=True)()\n", "no helper makes a loop for one call"),
    (f"{ASYNC_HEAD}async_to_sync()(f)()\n", "`async_to_sync` is passed on"),
    (f"{ASYNC_HEAD}run_in_eventloop_sync = 1\nasync_to_sync(f)()\n", "`run_in_eventloop_sync` is something else here"),
    (f"{ASYNC_HEAD}class A:\n    m = async_to_sync(f)\n", "may be called as a method"),
    (f"{ASYNC_HEAD}A.m = async_to_sync(f)\n", "may be called as a method"),
    (f"{ASYNC_HEAD}setattr(A, 'm', async_to_sync(f))\n", "may be called as a method"),
    (f"{ASYNC_HEAD}from x import v\nasync def f(): v.set(1)\nasync_to_sync(f)()\n", "it sets context variables"),
    (f"{ASYNC_HEAD}class A:\n    @async_to_sync\n    async def f(self): pass\n", "`f` is a method"),
    (f"{ASYNC_HEAD}@async_to_sync\nasync def f(): pass\n", "others may import `f`"),
    (f'{ASYNC_HEAD}__all__ = ["_f"]\n@async_to_sync\nasync def _f(): pass\n', "others may import `_f`"),
    (f"{ASYNC_HEAD}@command\n@async_to_sync\nasync def _f(): pass\n", "other decorators take `_f` as well"),
    (f"{ASYNC_HEAD}@async_to_sync\nasync def _f(): pass\n_f = 1\n", "`_f` may be something else"),
    (f"{ASYNC_HEAD}@async_to_sync\nasync def _f(): pass\nx: '_f' = 1\n", "`_f` may be something else"),
    (f"{ASYNC_HEAD}@async_to_sync\nasync def _f(): pass\n_f.awaitable\n", "attributes of `_f` are used"),
    (f"{ASYNC_HEAD}in_eventloop = 1\n@async_to_sync\nasync def _f(): pass\n", "`in_eventloop` is something else here"),
]


@pytest.mark.parametrize(("source", "reason"), LEFT)
def test_what_cannot_be_decided_is_left_alone(source: str, reason: str) -> None:
    result = migrated(source, NATIVE)

    assert result.new.decode() == source.replace("asgiref.sync", "unfazed_compat.asgiref")
    assert reason in reasons(result)


@pytest.mark.parametrize("inner", ["await sync_to_async(save)()", "await other()"])
def test_async_code_that_calls_thread_sensitive_code_stays_in_its_thread(inner: str) -> None:
    source = f"""\
        from asgiref.sync import async_to_sync, sync_to_async
        async def other():
            return await sync_to_async(save, thread_sensitive=True)()
        async def work():
            {inner}
        async_to_sync(work)()
        """

    assert "its function calls thread-sensitive code" in reasons(migrated(source, NATIVE))
    assert "run_in_eventloop_sync(work)" in migrated(source, NO_AFFINITY).new.decode()


@pytest.mark.parametrize(
    "of_orm",
    [
        "from shop.models import Order",
        "from .models.order import Order",
        "from . import models",
        "import shop.models",
        "from django.db import transaction",
        "import django.db.transaction as t",
        "from django.shortcuts import get_object_or_404",
        "from django.contrib.auth import get_user_model",
        "from django.test import TestCase",
        "from channels.db import database_sync_to_async",
        "from unfazed_compat.django import database_sync_to_async",
        "def orders(): return Order.objects.all()",
        "Order = apps.get_model('shop', 'Order')",
        "@pytest.mark.django_db\ndef test(): pass",
    ],
)
@pytest.mark.parametrize(
    "call",
    [
        "async_to_sync(notify)(1)",
        "notify_sync = async_to_sync(notify)",
        "def f():\n    @async_to_sync\n    async def inner(): pass\n    inner()",
    ],
)
def test_calls_of_async_code_stay_in_their_thread_where_it_may_have_a_transaction(of_orm: str, call: str) -> None:
    """The background event loop has threads of its own, in which the transaction is not seen."""
    source = f"from unfazed_compat.asgiref import async_to_sync\n{of_orm}\n{call}\n"
    result = migrated(source, NATIVE)

    assert call in result.new.decode()
    assert "this file uses Django's ORM: `async_to_sync` stays" in reasons(result)
    assert result.counts["in_orm"] == 1
    assert "unfazed.concurrency import" in migrated(source, NO_AFFINITY).new.decode()


@pytest.mark.parametrize(
    "other", ["from django.http import HttpResponse", "from shop import remodels", "import djangos.db", "x.object = 1"]
)
def test_what_is_not_of_the_orm_keeps_no_call(other: str) -> None:
    source = f"{ASYNC_HEAD}{other}\nasync_to_sync(notify)(1)\n"

    assert "run_in_eventloop_sync(notify, 1)" in migrated(source, NATIVE).new.decode()


def test_names_that_other_files_need_stay() -> None:
    source = "from asgiref.sync import sync_to_async\nsync_to_async(f, thread_sensitive=False)()\n"
    result = migrated(source, Options(native=True, patched=frozenset({"sync_to_async"})))

    assert result.new.decode() == source.replace("asgiref.sync", "unfazed_compat.asgiref")
    assert "other files name the `sync_to_async` of this one" in reasons(result)


def test_what_files_say_of_each_others_names_is_found() -> None:
    mentions = mentions_in(
        b'@patch("x.tasks.async_to_sync")\nfrom .views import (sync_to_async,\n x)\nfrom . import Local\n'
        b"from asgiref.sync import SyncToAsync\n"
    )

    assert mentions == {("x.tasks", "async_to_sync"), ("views", "sync_to_async"), ("", "Local")}
    assert names_of(Path("/a/x/tasks.py"), mentions) == {"async_to_sync"}
    assert names_of(Path("/a/views/__init__.py"), mentions) == {"sync_to_async", "Local"}
    assert names_of(Path("/a/tasks.py"), mentions) == frozenset()


STEP = """
def step(iterator):
    try:
        return next(iterator)
    except StopIteration:
        raise StopAsyncIteration
"""
OUTER_STEP = STEP.lstrip()
BRIDGES = [
    """
    async def bridge(iterable):
        '''Yield all.'''
        iterator = iter(iterable)
        end = object()
        while True:
            item = await sync_to_async(next, thread_sensitive=False)(iterator, end)
            if item is end:
                return
            yield item
    """,
    """
    END = object()
    async def bridge(iterable):
        iterator = await sync_to_async(iter, thread_sensitive=False)(iterable)
        while (item := await sync_to_async(next, thread_sensitive=False)(iterator, END)) is not END:
            yield item
    """,
    """
    async def bridge(iterable):
        iterator = iter(iterable)
        def step():
            try:
                return next(iterator)
            except StopIteration:
                raise StopAsyncIteration()
        while True:
            try:
                yield await sync_to_async(step, thread_sensitive=False)()
            except StopAsyncIteration:
                break
    """,
    """
    async def bridge(iterable):
        iterator = iter(iterable)
        def step(it):
            try:
                return next(it)
            except StopIteration:
                raise StopAsyncIteration from None
        while 1:
            try:
                item = await sync_to_async(step, thread_sensitive=False)(iterator)
            except StopAsyncIteration:
                return
            yield item
    """,
]


@pytest.mark.parametrize("body", BRIDGES)
def test_iterators_by_hand_become_ours(body: str) -> None:
    result = migrated(HEAD + dedent(body), NATIVE)
    new = result.new.decode()

    assert "    async for item in iterate_in_threadpool(iterable):\n        yield item\n" in new
    assert "from unfazed.concurrency import iterate_in_threadpool\n" in new
    assert "asgiref" not in new
    assert "while" not in new
    assert result.findings == ()


GOOD = BRIDGES[0]
NEARLY_BRIDGES = [
    GOOD.replace("thread_sensitive=False", ""),
    GOOD.replace("thread_sensitive=False", "thread_sensitive=False, executor=e"),
    GOOD.replace("thread_sensitive=False", "*options"),
    GOOD.replace("yield item", "yield item  # why"),
    GOOD.replace("yield item", "yield other"),
    GOOD.replace("if item is end", "if other is end"),
    GOOD.replace("(iterator, end)", "(iterator, None)").replace("is end", "is None"),
    GOOD.replace("(iterator, end)", "(other, end)"),
    GOOD.replace("(iterator, end)", "(iterator, *end)"),
    GOOD.replace("is end", "is other"),
    GOOD.replace("end = object()", "print(end)"),
    GOOD.replace("end = object()", "def g(): pass"),
    GOOD.replace("end = object()", "end = object()\n        iterator = iter(iterable)"),
    GOOD.replace("iterable", "item"),
    GOOD.replace("iterator = iter(iterable)", "pass"),
    GOOD.replace("end = object()", "iterate_in_threadpool = object()"),
    GOOD.replace("next,", "other,"),
    f"iterate_in_threadpool = 1\n{dedent(GOOD)}",
    GOOD.replace("next,", "next, *more,"),
    GOOD.replace("end = object()", "end = None"),
    "async def bridge(): pass\nsync_to_async(next)",
    "async def bridge(): 'nothing'\nsync_to_async(next)",
    "async def bridge():\n    'nothing'\nsync_to_async(next)",
    BRIDGES[2].replace("(step,", "(other,"),
    BRIDGES[2].replace("(step,", "(lambda: step(),"),
    BRIDGES[2]
    .replace("def step", "def other")
    .replace("async def bridge", OUTER_STEP.replace("\n", "\n    ") + "\n    async def bridge"),
    BRIDGES[3].replace("(iterator)\n", "(other)\n"),
    BRIDGES[1].replace("END = object()", "END = None"),
    BRIDGES[1].replace("END = object()", "from x import END"),
    BRIDGES[1].replace("END = object()", ""),
]


@pytest.mark.parametrize("body", NEARLY_BRIDGES)
def test_what_is_no_more_than_like_an_iterator_is_reported(body: str) -> None:
    result = migrated(HEAD + dedent(body), NATIVE)

    assert "async for" not in result.new.decode()


def test_an_iterator_by_hand_stays_where_others_need_the_name() -> None:
    options = Options(native=True, patched=frozenset({"sync_to_async"}))

    assert "async for" not in migrated(HEAD + dedent(GOOD), options).new.decode()


def test_a_function_of_another_name_is_not_the_step() -> None:
    assert "iterator bridge, by hand" in reasons(migrated("import asgiref\n" + STEP, NATIVE))


@pytest.mark.parametrize(
    ("source", "error"),
    [
        (b"import asgiref\ndef\n", "line 2: it cannot be parsed"),
        (b"# coding: nonsense\nimport asgiref\n", "it cannot be parsed: unknown encoding"),
        (b"import asgiref\n'\xff'\n", "it cannot be parsed"),
    ],
)
def test_what_cannot_be_parsed_is_named(source: bytes, error: str) -> None:
    result = migrate(source, Options())

    assert error in result.error
    assert result.new == source
