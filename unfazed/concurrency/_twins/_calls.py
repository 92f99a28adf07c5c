"""Calls of a twin. Any thread can make them. It waits for the result, which comes from the loop of the twin.

What runs where:

    constructors, methods, async or not    on the loop, so only one thread touches the async object
    properties, attributes, operators      in the calling thread, because they are quick; awaitables on the loop
    async generators                       on the loop, each in one task from its first step to its end
    `with`                                 on the loop, entered and left in one task
"""

from __future__ import annotations

from functools import partial
from inspect import isawaitable
from threading import get_ident
from types import CoroutineType
from typing import TYPE_CHECKING, Any, NamedTuple

from .._core._checks import is_async, name_of
from .._core._errors import InUseError, LoopEndedError, WrongFunctionError
from .._eventloops._background import _run_in_time
from .._eventloops._loopchecks import AwaitOnce
from .._eventloops._synccalls import call_from_sync, refuse_in_loop
from .._eventloops._timeouts import Timeout
from .._scoped._contextmanagers import InTask
from ._arguments import DEFAULT, converted_call, without_defaults
from ._family import Site
from ._members import is_maker
from ._values import LEAVES, to_async, to_sync

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from .._eventloops._loopthread import EventLoopThread
    from ._family import Family
    from ._state import TwinBase, TwinState

HELPER = "the twin of {}"
INSTEAD = "await {}(...)"


def call(twin: TwinBase, name: str, /, *args: object, **kwargs: object) -> Any:
    """Call the method *name* of the async object. Return its result, converted for sync code."""
    return run(twin, getattr(twin._unfazed_state.target, name), args, kwargs)


def call_without_defaults(twin: TwinBase, name: str, /, *args: object, **kwargs: object) -> Any:
    """Do what `call` does, without the keyword arguments that are the function's defaults."""
    func = getattr(twin._unfazed_state.target, name)
    return run(twin, func, args, without_defaults(func, kwargs))


def call_maker(twin: TwinBase, name: str, /, *args: object, **kwargs: object) -> Any:
    """Call a method that only makes an async generator or context manager, in the calling thread."""
    return run_direct(twin, getattr(twin._unfazed_state.target, name), args, kwargs)


def call_operator(twin: TwinBase, name: str, /, *args: object) -> Any:
    """Call an operator, in the calling thread."""
    target = twin._unfazed_state.target
    return converted(twin, getattr(target, name)(*map(to_async, args)))


def run(twin: TwinBase, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:
    """Call *func*, a method of the async object or a function that uses it, on the loop."""
    state, timeout = twin._unfazed_state, twin._unfazed_timeout
    loop = state.loop or _event_loop(twin._unfazed_family, func)
    if loop._closed is not None:
        raise _ended(twin, loop)
    site = partial(Site, twin._unfazed_family, loop)
    work = partial(_call_and_convert, converted_call(func, args, kwargs, site), twin, loop)
    if timeout is not None:
        work = partial(_run_in_time, Timeout(timeout, name_of(func)), work)
    return call_from_sync(work, func, HELPER, INSTEAD, loop._submit, always=True)


def _event_loop(family: Family, func: object) -> EventLoopThread:
    """Start the loop for a call of *func*, and return it. Refuse the call first if it would block a loop."""
    refuse_in_loop(func, HELPER, INSTEAD)
    return family.event_loop()


def run_direct(twin: TwinBase, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:
    """Call *func*, which only makes an async generator or context manager, in the calling thread."""
    loop = belong(twin, func)
    site = Site(twin._unfazed_family, loop, twin._unfazed_timeout)
    return to_sync(converted_call(func, args, kwargs, lambda: site)(), site)


def original(twin: TwinBase, /) -> Any:
    """Return the async object behind a twin."""
    return twin._unfazed_state.target


def default() -> Any:
    """Return a placeholder for a default that cannot be written in a generated module."""
    return DEFAULT


def make(twin: TwinBase, /, *args: object, **kwargs: object) -> None:
    """Make the async object of *twin*, on the loop."""
    cls = twin._unfazed_class
    if cls is None:
        raise WrongFunctionError(
            f"{type(twin).__name__} is the base of sync twins: make one with sync_twin(AsyncClass)"
        )
    family = twin._unfazed_family
    family.remember(twin, _run_for_class(family, cls, args, kwargs).value, None)


def make_without_defaults(twin: TwinBase, /, *args: object, **kwargs: object) -> None:
    """Do what `make` does, without the keyword arguments that are the constructor's defaults."""
    cls = twin._unfazed_class
    assert cls is not None, "generated classes have one"
    make(twin, *args, **without_defaults(cls, kwargs))


def call_class(cls: type[TwinBase], name: str, /, *args: object, **kwargs: object) -> Any:
    """Call the classmethod or staticmethod *name* of the async class. Return its result, converted for sync code."""
    family = cls._unfazed_family
    value, loop = _run_for_class(family, getattr(cls._unfazed_class, name), args, kwargs)
    kind = family.nearest_twin_of(value.__class__)
    if kind is not None and issubclass(cls, kind):  # a user's subclass of a twin
        value = family.twin_of(value, cls, loop)
    return to_sync(value, Site(family, loop))


class _Made(NamedTuple):
    value: Any
    loop: EventLoopThread


def _run_for_class(family: Family, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> _Made:
    loop = _event_loop(family, func)
    work = partial(_call_and_await, converted_call(func, args, kwargs, partial(Site, family, loop)), family)
    return _Made(call_from_sync(work, func, HELPER, INSTEAD, loop._submit, always=True), loop)


def get_attribute(twin: TwinBase, name: str, /) -> Any:
    """Read an attribute or a property. Await an awaitable, and return an async function as a sync one."""
    value = getattr(twin._unfazed_state.target, name)
    if not _is_method(twin, value):
        return converted(twin, value)

    def method(*args: Any, **kwargs: Any) -> Any:
        return run(twin, value, args, kwargs)

    return method


def _is_method(twin: TwinBase, value: object) -> bool:
    """Return whether *value*, an attribute of the async object, is a method of it or an async function."""
    if not callable(value) or twin._unfazed_family.nearest_twin_of(type(value)) is not None:
        return False
    return getattr(value, "__self__", None) is twin._unfazed_state.target or is_async(value)


def set_attribute(twin: TwinBase, name: str, value: object, /) -> None:
    """Write an attribute or a property."""
    setattr(twin._unfazed_state.target, name, to_async(value))


def delete_attribute(twin: TwinBase, name: str, /) -> None:
    """Delete an attribute or a property."""
    delattr(twin._unfazed_state.target, name)


def converted(twin: TwinBase, value: Any) -> Any:
    """Convert a value that the async object gave in the calling thread. Await it if it is an awaitable."""
    if type(value) in LEAVES:
        return value
    family = twin._unfazed_family
    if _is_to_be_awaited(value, family):
        given = AwaitOnce(value, HELPER.format(name_of(value)))
        try:
            return run(twin, given, (), {})
        except BaseException:
            given.close()
            raise
    loop = twin._unfazed_state.loop or family.event_loop()
    return to_sync(value, Site(family, loop, twin._unfazed_timeout))


def belong(twin: TwinBase, func: object) -> EventLoopThread:
    """Bind *twin* to its loop, unless it is bound already. Return the loop."""
    state = twin._unfazed_state
    loop = state.loop
    if loop is None:
        loop = state.loop = _event_loop(twin._unfazed_family, func)
    if loop._closed is not None:
        raise _ended(twin, loop)
    return loop


def _ended(twin: TwinBase, loop: EventLoopThread) -> LoopEndedError:
    return LoopEndedError(f"this {type(twin).__name__} belongs to an event loop that has ended ({loop._closed})")


async def _call_and_convert(work: Callable[[], Any], twin: TwinBase, loop: EventLoopThread) -> Any:
    """Call a method, await its result and convert it: on the loop, so nothing else changes the result meanwhile."""
    value = work()
    family = twin._unfazed_family
    while _is_to_be_awaited(value, family):
        twin._unfazed_state.loop = loop  # awaiting may bind the object to the loop
        value = await value
    return value if type(value) in LEAVES else to_sync(value, Site(family, loop, twin._unfazed_timeout))


async def _call_and_await(work: Callable[[], Any], family: Family) -> Any:
    """Call an async class, or a classmethod or staticmethod, and await its result."""
    value = work()
    while _is_to_be_awaited(value, family):
        value = await value
    return value


def _is_to_be_awaited(value: object, family: Family) -> bool:
    kind: type[Any] = type(value)
    if kind is CoroutineType:
        return True
    return kind not in LEAVES and isawaitable(value) and family.nearest_twin_of(kind) is None


def enter(twin: TwinBase, /) -> Any:
    """Enter the async object, in a task that runs until it is left."""
    state = twin._unfazed_state
    manager: InTask[Any] = InTask(state.target, belong(twin, type(twin))._submit)
    entered = state.managers.setdefault(get_ident(), [])
    entered.append(manager)
    try:
        value = manager.__enter__()
    except BaseException:
        _forget(state, get_ident(), manager)
        raise
    return twin if value is state.target else converted(twin, value)


def leave(
    twin: TwinBase, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None, /
) -> bool | None:
    """Leave the last `with` block of this thread, or of another thread if this one is in none."""
    managers = twin._unfazed_state.managers
    ident = get_ident()
    if not managers.get(ident):
        ident = next((other for other, entered in managers.copy().items() if entered), ident)
    entered = managers.get(ident)
    if not entered:
        raise InUseError(f"this {type(twin).__name__} has not been entered: use it in a `with` block")
    manager = entered[-1]
    _forget(twin._unfazed_state, ident, manager)
    return manager.__exit__(exc_type, exc, traceback)


def _forget(state: TwinState, ident: int, manager: InTask[Any]) -> None:
    """Remove *manager* from the list of a thread, and the list if it is empty then."""
    entered = state.managers[ident]
    entered.remove(manager)
    if not entered:
        state.managers.pop(ident, None)


def iterate(twin: TwinBase, /) -> Any:
    """Return the iterator of the async object: the twin itself, if the async object is its own iterator."""
    target = twin._unfazed_state.target
    start = run_direct if is_maker(target.__aiter__) else run
    return start(twin, target.__aiter__, (), {})


def step(twin: TwinBase, /) -> Any:
    """Return the next item of the async object, which is an iterator."""
    target = twin._unfazed_state.target
    try:
        return run(twin, target.__anext__, (), {})
    except StopAsyncIteration:
        raise StopIteration from None


def wait(twin: TwinBase, /) -> Any:
    """Await the async object, and return its result."""
    target = twin._unfazed_state.target

    async def wait_for_it() -> Any:
        return await target

    return run(twin, wait_for_it, (), {})
