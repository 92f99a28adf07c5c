"""The conversion of values between sync code and an async object.

    from sync code                          to the async object
    a twin                                  its async object
    a twin class                            its async class
    containers of these                     copies with the converted items
    an iterator over these                  a generator of the converted items

    from the async object                   to sync code
    an object of a twinned class            its twin
    a twinned class                         its twin class
    an async generator                      a generator
    what `@asynccontextmanager` makes       a context manager
    others for `async with`, `async for`    a twin, of a twin class that is made for them
    containers of these                     copies with the converted items
    an iterator over these                  a generator of the converted items

Containers are lists, tuples, named tuples, dicts and their views, sets and frozensets. Iterators are generators, and
those of builtins and `itertools`. Any other object is passed on unchanged.
"""

from __future__ import annotations

import operator
from contextlib import AbstractContextManager, asynccontextmanager, suppress
from functools import partial
from itertools import chain
from types import AsyncGeneratorType
from typing import TYPE_CHECKING, Any, final

from .._core._checks import name_of
from .._core._errors import WrongFunctionError
from .._eventloops._background import _run_in_time
from .._eventloops._timeouts import Timeout
from .._scoped._contextmanagers import InTask
from .._scoped._taskiterators import Steps, iterate_steps
from . import _family
from ._state import TwinBase

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterable, Callable, Generator, Iterable
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

    from ._family import Convert, Family, Site

LEAVES = frozenset((type(None), bool, int, float, complex, str, bytes, bytearray))
_EMPTY: dict[Any, Any] = {}
# Views are copied as views of a new dict.
_VIEWS: dict[type[Any], Callable[[Iterable[Any]], Any]] = {
    type(_EMPTY.keys()): lambda items: dict.fromkeys(items).keys(),
    type(_EMPTY.values()): lambda items: dict(enumerate(items)).values(),
    type(_EMPTY.items()): lambda items: dict(items).items(),
}
CONTAINERS = frozenset((list, tuple, dict, set, frozenset, *_VIEWS))
MAX_DEPTH = 8  # how deep containers may nest; arbitrary, and the limit for one that contains itself


def to_async(value: Any, depth: int = 0) -> Any:
    """Convert a value that sync code passes to the async object."""
    kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]  a container of anything
    if kind in LEAVES:
        return value
    if isinstance(value, TwinBase):
        return value._unfazed_state.target
    if _is_container(kind):
        return _rebuilt(value, to_async, depth)
    if issubclass(kind, type):
        return (issubclass(value, TwinBase) and value._unfazed_class) or value
    return converted_items(value, to_async) if _is_iterator(kind) else value


def to_sync(value: Any, site: Site, depth: int = 0) -> Any:
    """Convert a value that the async object gives to sync code."""
    kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]  a container of anything
    if kind in LEAVES:
        return value
    if _is_container(kind):
        return _rebuilt(value, lambda item, depth: to_sync(item, site, depth), depth)
    converters = site.family.converters
    try:
        convert = converters[kind]
    except KeyError:
        convert = converters[kind] = _converter_for(kind, site.family)
    return value if convert is None else convert(site, value)


def _converter_for(kind: type[Any], family: Family) -> Convert | None:
    """Return how to convert the objects of a class that is neither in `LEAVES` nor a container."""
    twin = family.nearest_twin_of(kind)
    if twin is not None:
        return partial(_convert_to, twin)
    if issubclass(kind, type):
        return _convert_class
    if issubclass(kind, AsyncGeneratorType):
        return _iterate
    if issubclass(kind, _GENERATED):
        return ManagerTwin
    if _is_iterator(kind):
        return _convert_items
    if hasattr(kind, "__aenter__") or hasattr(kind, "__aiter__"):
        with suppress(WrongFunctionError):  # it cannot have a twin
            return partial(_convert_to, _family.make_twin(kind, family))
    return None


def _convert_to(twin: type[TwinBase], site: Site, value: Any) -> TwinBase:
    return site.family.twin_of(value, twin, site.loop)


def _convert_class(site: Site, value: type) -> type:
    return site.family.exact_twin_of(value) or value


def _convert_items(site: Site, items: Iterable[Any]) -> Generator[Any, None, None]:
    return converted_items(items, partial(to_sync, site=site))


def _is_iterator(kind: type[Any]) -> bool:
    return kind.__module__ in ("builtins", "itertools") and hasattr(kind, "__next__")


def _is_container(kind: type[Any]) -> bool:
    return kind in CONTAINERS or (kind.__base__ is tuple and hasattr(kind, "_make"))


def _rebuilt(value: Any, convert: Callable[[Any, int], Any], depth: int) -> Any:
    """Return a copy of the container *value* with its items converted, or *value* itself if nothing changes."""
    kind: type[Any] = type(value)  # pyright: ignore[reportUnknownVariableType]  a container of anything
    parts: list[Iterable[Any]] = [value, value.values()] if kind is dict else [value]
    if depth == MAX_DEPTH or all(LEAVES.issuperset(map(type, part)) for part in parts):  # the common case
        return value
    converted = [[convert(item, depth + 1) for item in part] for part in parts]
    if all(map(operator.is_, chain.from_iterable(parts), chain.from_iterable(converted))):
        return value
    if kind is dict:
        return dict(zip(*converted, strict=True))
    make: Callable[[Iterable[Any]], Any] = _VIEWS.get(kind) or (kind if kind in CONTAINERS else value._make)
    return make(converted[0])


def converted_items(items: Iterable[Any], convert: Callable[[Any], Any]) -> Generator[Any, None, None]:
    """Yield the converted items. In the end close the iterator, if it can be closed."""
    iterator = iter(items)
    try:
        for item in iterator:
            yield convert(item)
    finally:
        close = getattr(iterator, "close", None)
        if close is not None:
            close()


@asynccontextmanager
async def _nothing() -> AsyncGenerator[None, None]:
    yield  # pragma: no cover  never entered: we only need its class


_GENERATED = type(_nothing())


class _TimedSteps(Steps[Any]):
    """An async iterable in its own task, with a timeout for each step."""

    def __init__(self, aiterable: AsyncIterable[Any], seconds: float, name: str) -> None:
        super().__init__(aiterable)
        self._seconds = seconds
        self._name = name

    async def next(self) -> Any:
        return await _run_in_time(Timeout(self._seconds, self._name), super().next)


def _iterate(site: Site, aiterable: AsyncIterable[Any]) -> Generator[Any, None, None]:
    name = name_of(aiterable)
    steps = Steps(aiterable) if site.timeout is None else _TimedSteps(aiterable, site.timeout, name)
    return _convert_items(site, iterate_steps(steps, aiterable, site.loop._submit, always=True))


@final
class ManagerTwin(AbstractContextManager[Any, "bool | None"]):
    """The sync context manager for an object that `@asynccontextmanager` makes."""

    def __init__(self, site: Site, manager: AbstractAsyncContextManager[Any, bool | None]) -> None:
        self._site = site
        self._manager = InTask(manager, site.loop._submit)

    def __enter__(self) -> Any:
        return to_sync(self._manager.__enter__(), self._site)

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        return self._manager.__exit__(exc_type, exc, traceback)
