"""Sync twins: a whole class for sync code, made from an async one.

    _command.py       the command `python -m unfazed.twins`, which writes one as a module
    _modules.py       what is in a generated module
    _attributes.py    the data that its classes declare
    _signatures.py    their methods
    _annotations.py   annotations of async code, as they are for sync code
    _imports.py       what a generated module imports
    _sources.py       async classes as their authors wrote them
    _building.py      how a twin class is made at run time
    _twin.py          the base of all twins
    _calls.py         calls of a twin
    _arguments.py     what is passed to an async method
    _values.py        values on their way between a twin and its async object
    _members.py       what a class has that its twin is to have
    _family.py        which twin belongs to which class, and which to which object
    _state.py         what each twin object has

`sync_twin` is in this file, and nothing else is imported before the first twin is made. A file imports from those
below it.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._eventloops._loopthread import EventLoopThread


def sync_twin(cls: type, /, *, loop: EventLoopThread | None = None, name: str | None = None) -> type[Any]:
    """Make a class for sync code from an async one, with the same public names.

    Async methods become methods, async generators generators, `async with` and `async for` on the object `with` and
    `for`, `@asynccontextmanager` methods context managers, awaiting the object `wait()`. Classmethods, staticmethods,
    properties, attributes, operators and sync methods stay. The twin of a derived class derives from that of its base.
    Objects of twinned classes come as their twins, also in lists, tuples, dicts and sets, and may be passed so.

    What a method gives to be awaited, a task included, is awaited. Where it expects an async callback, or an async
    iterable, a sync one will do: its annotations say so. The callback runs in a worker thread, and gets twins.

    Constructors and methods run on the loop, one at a time unless they wait, so any number of threads can share a twin.
    Properties and operators run in the calling thread. In a worker thread of an event loop, too, calls run on the loop
    of the twin, and are cancelled with the task that waits for the thread.

    Type checkers and editors know nothing of what is made while the program runs: for a library,
    `python -m unfazed.twins package.module:AsyncClient --output FILE` writes the same class as a module.

    Args:
        cls: The async class. Asked for again, with the same loop, it has the same twin.
        loop: Where the async objects live, started when it is needed; `None` for the background event loop.
        name: The name of the twin; `None` for that of *cls* without `Async`, or with `Sync` where there is none.
            The first one counts.

    Cancellation:
        As for `run_in_eventloop_sync`. `twin.with_timeout(5).method()` is cancelled after so many seconds.

    Returns:
        A class, derived from `unfazed.twins.SyncTwin`. Its `async_object` leads back to the async object.

    Raises:
        WrongFunctionError: If *cls* has no twin: it is no class, an exception, an enumeration, a metaclass, a twin; or
            if it has a public member that every twin has of its own.
        LoopThreadError: From a call, if an event loop is running in this thread, which it would block.
        LoopStartError: From a call, if the loop cannot start.
        LoopEndedError: From a call, if the loop of the object has ended, at exit for one, or was left behind by a fork.
        CallTimeoutError: From a call of `with_timeout`, if it has not ended in time.
        BaseException: From a call, whatever the method raised.

    Example:
        `Client = sync_twin(AsyncClient)`, and then `with Client() as client: client.get(url)`
    """
    from ._building import family_of, make_twin

    module: str = sys._getframe(1).f_globals.get("__name__", "__main__")
    return make_twin(cls, family_of(loop), name, module)
