"""One file moves with `--native`: what its calls become, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import pytest
from migrating import ASYNC_HEAD, HEAD, NATIVE, NO_AFFINITY, migrated, reasons
from unfazed_compat.migrate._mentions import mentions_in, names_of
from unfazed_compat.migrate._plan import Options

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
