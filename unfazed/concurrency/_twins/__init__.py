"""Sync twins: a whole class for sync code, made from an async one.

    _command.py       the command `python -m unfazed.twins`, which writes twin classes as a module
    _modules.py       writes a generated module
    _attributes.py    finds the data attributes that its classes declare
    _signatures.py    writes their methods
    _annotations.py   translates annotations of async code for sync code
    _imports.py       collects the imports of a generated module
    _sources.py       reads the source code of async classes
    _building.py      makes a twin class at run time
    _twin.py          the base of all twins
    _calls.py         calls of a twin
    _arguments.py     converts the arguments of a call
    _values.py        converts values between a twin and its async object
    _members.py       the members of an async class that its twin gets
    _family.py        which twin belongs to which class, and which to which object
    _state.py         the state of each twin object

No call is made in a way of its own here: a method of a twin runs as `run_in_eventloop_sync`, iterators and context
managers are those of `_scoped`. Single functions with both faces are in `_dual`. This file has only `sync_twin`, and
imports the others when the first twin is made. A file imports only from the files below it in this list.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .._eventloops._loopthread import EventLoopThread


def sync_twin(cls: type, /, *, loop: EventLoopThread | None = None, name: str | None = None) -> type[Any]:
    """Make a class for sync code from an async one, with the same public names.

    Async methods become methods. Async generators become generators, and `@asynccontextmanager` methods become context
    managers. The object supports `with` instead of `async with`, `for` instead of `async for`, and `wait()` instead of
    `await`. Classmethods, staticmethods, properties, attributes, operators and sync methods stay. The twin of a derived
    class derives from the twin of its base. Methods return objects of twinned classes as their twins, also in lists,
    tuples, dicts, sets and iterators. You can pass twins in the same way.

    If a method returns an awaitable, such as a task, the twin awaits it. If the annotations of a method ask for an
    async callback or an async iterable, you can also pass a sync one. The callback runs in a worker thread, and gets
    twins.

    Constructors and methods run on the loop, one at a time except while they wait. So any number of threads can share a
    twin. Properties and operators run in the calling thread. In a worker thread of an event loop, calls still run on
    the loop of the twin, and are cancelled with the task that waits for the thread.

    Type checkers and editors cannot see a class that is made at run time. For a library,
    `python -m unfazed.twins package.module:AsyncClient --output FILE` writes the same class as a module.

    Args:
        cls: The async class. It always has the same twin for the same loop.
        loop: The loop that the async objects belong to. It is started when it is needed. `None` for the background
            event loop.
        name: The name of the twin. `None` for the name of *cls* without `Async`, or with `Sync` in front if it has no
            `Async`. Only the first call for *cls* and *loop* sets it.

    Cancellation:
        As for `run_in_eventloop_sync`. `twin.with_timeout(5).method()` is cancelled after five seconds.

    Returns:
        A class derived from `unfazed.twins.SyncTwin`. The `async_object` of a twin is the async object behind it.

    Raises:
        WrongFunctionError: If *cls* cannot have a twin: it is not a class, or it is an exception, an enumeration, a
            metaclass, a twin, a builtin class or a `TypedDict`, or it has a public member with the name of a member of
            every twin.
        LoopThreadError: From a call, if an event loop is running in this thread, which the call would block.
        LoopStartError: From a call, if the loop cannot start.
        LoopEndedError: From a call, if the loop of the object has ended, for example at exit, or does not run in this
            forked process.
        CallTimeoutError: From a call of a twin made by `with_timeout`, if it has not ended in time.
        BaseException: From a call, whatever the method raised.

    Example:
        `Client = sync_twin(AsyncClient)`, and then `with Client() as client: client.get(url)`
    """
    from ._building import family_of, make_twin

    module: str = sys._getframe(1).f_globals.get("__name__", "__main__")
    return make_twin(cls, family_of(loop), name, module)
