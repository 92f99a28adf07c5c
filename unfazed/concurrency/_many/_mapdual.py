"""`.map` and `.map.sync` of dual callables, and what all map functions do first."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar, final, overload

from .._core._checks import called, name_of, require_count, require_flag, visible_names
from .._core._errors import WrongOptionError
from ._mapcall import How
from ._mapinput import require_iterables
from ._mapiterators import AsyncMapIterator, MapIterator, sync_iterator
from ._mapplaces import calls_in, default_limit
from ._maprun import MapRun

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Iterable
    from typing import Literal

    from ._mapplaces import Place

P = ParamSpec("P")
T = TypeVar("T")


def new_run(
    place: Place,
    func: Callable[..., Any],
    iterables: tuple[Any, ...],
    helper: str,
    limit: int | None,
    ordered: bool,
    return_exceptions: bool,
    chunk: int | None = None,
    *,
    sync: bool,
    elsewhere: bool = False,
) -> MapRun:
    """Check what the caller passed, and return the run, which has not begun."""
    plain = called(helper).removesuffix("()")
    if limit is not None:
        require_count(limit, "limit", plain, at_least=1)
    require_flag(ordered, "ordered", plain)
    require_flag(return_exceptions, "return_exceptions", plain)
    if chunk is not None:
        if place.decorator != "in_processpool":
            raise WrongOptionError(
                f"{plain}() has no option `chunk`: only worker processes get several items in a call"
            )
        require_count(chunk, "chunk", plain, at_least=1)
    require_iterables(iterables, plain, sync=sync)
    how = How(plain, len(iterables) > 1, return_exceptions)
    calls = calls_in(place, func, how, chunk, elsewhere=elsewhere)
    return MapRun(calls, iterables, limit or partial(default_limit, place), ordered=ordered, sync=sync)


@final
class DualMap(Generic[P, T]):
    """The `.map` of a dual callable: one call for each item. `.map(...)` for async, `.map.sync(...)` for sync code."""

    def __init__(self, dual: Any) -> None:
        self._dual = dual

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        return f"{self._dual!r}.map"

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._dual, "map")

    @overload
    def __call__(
        self,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        limit: int | None = None,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        chunk: int | None = None,
    ) -> AsyncMapIterator[T]: ...
    @overload
    def __call__(
        self,
        *iterables: Iterable[Any] | AsyncIterable[Any],
        limit: int | None = None,
        ordered: bool = True,
        return_exceptions: bool,
        chunk: int | None = None,
    ) -> AsyncMapIterator[T | Exception]: ...
    def __call__(
        self,
        *iterables: Any,
        limit: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        chunk: int | None = None,
    ) -> AsyncMapIterator[Any]:
        """Call the function for each item of *iterables*, with the options of the wrapper.

        `map_in_threadpool` and its like document the arguments, the cancellation and the errors.
        """
        helper, place, func = f"{name_of(self._dual)}.map", self._dual._place, self._dual._func
        run = new_run(place, func, iterables, helper, limit, ordered, return_exceptions, chunk, sync=False)
        return AsyncMapIterator(run, iterables, func, helper)

    @overload
    def sync(
        self,
        *iterables: Iterable[Any],
        limit: int | None = None,
        ordered: bool = True,
        return_exceptions: Literal[False] = False,
        chunk: int | None = None,
    ) -> MapIterator[T]: ...
    @overload
    def sync(
        self,
        *iterables: Iterable[Any],
        limit: int | None = None,
        ordered: bool = True,
        return_exceptions: bool,
        chunk: int | None = None,
    ) -> MapIterator[T | Exception]: ...
    def sync(
        self,
        *iterables: Any,
        limit: int | None = None,
        ordered: bool = True,
        return_exceptions: bool = False,
        chunk: int | None = None,
    ) -> MapIterator[Any]:
        """Do the same for sync code."""
        helper, place, func = f"{name_of(self._dual)}.map.sync", self._dual._place, self._dual._func
        run = new_run(place, func, iterables, helper, limit, ordered, return_exceptions, chunk, sync=True)
        return sync_iterator(run, iterables, func, helper)
