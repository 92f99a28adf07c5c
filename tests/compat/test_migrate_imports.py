"""One file moves: what its imports become, and what is reported."""

from __future__ import annotations

import pytest
from migrating import ASYNC_HEAD, HEAD, NATIVE, NO_AFFINITY, migrated, reasons
from unfazed_compat.migrate._plan import Options
from unfazed_compat.migrate._source import migrate

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
