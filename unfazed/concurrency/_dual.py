"""Dual callables: a function and where it runs, once and for all, to be called from async code and from sync code.

What a *place* is, the modules of the helpers say: each knows how to run a function there, with its options.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pickle
from reprlib import repr as short_repr
from types import CoroutineType, MethodType
from typing import TYPE_CHECKING, Any, Final, Generic, ParamSpec, Protocol, TypeVar, cast, final, overload

from anyio import CapacityLimiter

from ._core._checks import Dual, name_of, refuse_options, visible_names
from ._core._errors import NotSendableError, WrongFunctionError
from ._core._references import found_by_name, owner_of
from ._eventloops._background import EventloopPlace
from ._executors import ExecutorPlace
from ._processes import ProcessPlace
from ._threads._threadpool import ThreadPlace

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from concurrent.futures import Executor
    from contextvars import Context
    from types import CodeType
    from typing import Concatenate

    from typing_extensions import Self, TypedDict, Unpack

P = ParamSpec("P")
Q = ParamSpec("Q")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
Owner = TypeVar("Owner")


# What `inspect` and `asyncio` mark functions with that are to be taken for async ones.
_COROUTINE_FUNCTION_MARKS = ("_is_coroutine_marker", "_is_coroutine")


def _as_coroutine_function(func: Any) -> CodeType:
    code: CodeType = func.__code__
    return code.replace(co_flags=code.co_flags | inspect.CO_COROUTINE)


class _Place(Protocol):
    """Where a function runs, and how."""

    def check(self) -> None: ...

    def require(self, func: Callable[..., Any]) -> None: ...

    async def run(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any: ...

    def run_sync(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any: ...

    def _asdict(self) -> dict[str, Any]: ...


_PLACES: Final[dict[type, str]] = {
    ThreadPlace: "in_threadpool",
    ProcessPlace: "in_processpool",
    ExecutorPlace: "in_executor",
    EventloopPlace: "in_eventloop",
}


class _Twin(Generic[P, T]):
    """The `.sync` of a dual callable."""

    def __init__(self, dual: DualCallable[P, T]) -> None:
        self.__dict__.update(dual.__dict__)
        for mark in _COROUTINE_FUNCTION_MARKS:
            self.__dict__.pop(mark, None)
        self._dual = dual

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> T:
        result: T = self._dual._place.run_sync(self._dual._func, args, kwargs)
        return result

    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        """Bind the function as it would be without this. What has this method is a routine for `help`."""
        bind: Any = self._dual.__get__
        dual = bind(instance, owner)
        return self if dual is self._dual else _Twin(dual)

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        return f"{self._dual!r}.sync"

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self._dual, "sync")


class _SyncFace:
    """The same for sync code, which waits for the result."""

    # no `property`, which IPython describes in place of what it gives

    def __get__(self, dual: DualCallable[P, T] | None, owner: type | None = None) -> Any:
        return self if dual is None else _Twin(dual)


@final
class DualCallable(Dual, Generic[P, T]):
    """A function that knows where it runs, and can be called from async code and from sync code.

    Made by `in_threadpool`, `in_processpool`, `in_executor` and `in_eventloop`. It is a coroutine function, with the
    name, the docstring and the signature of the function that it wraps, which is its `__wrapped__`. As an attribute of
    a class it binds as that does. It can be pickled where what it wraps can, and shared by threads and forks.

    Example:
        `await read(path)` in async code, `read.sync(path)` in sync code
    """

    if TYPE_CHECKING:  # as in `Dual`
        __name__: str
        __qualname__: str
        _unbound: Any

    # not in the `__dict__`, which takes what the function has in its own
    __slots__ = ("_func", "_place", "_unbound")  # the last one: only if it is bound

    def __new__(cls, place: _Place | DualCallable[..., Any], func: Callable[P, Any]) -> Self:
        """Make one; or bind one, where it is called as the class of a method is: with a function and an object."""
        if type(place) in _PLACES:
            return super().__new__(cls)
        if not isinstance(place, DualCallable):
            raise WrongFunctionError(
                "DualCallable() expected what in_threadpool(), in_processpool(), in_executor() and in_eventloop() give "
                "it: call one of these"
            )
        dual: Any = cast("Any", place)
        bound: Self = dual.__get__(None, func) if isinstance(dual._func, classmethod) else dual.__get__(func)
        return bound

    def __init__(self, place: _Place | DualCallable[..., Any], func: Callable[P, Any]) -> None:
        if isinstance(place, DualCallable):
            return
        _copy_metadata(self, func)
        self._place = place
        self._func = func

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> CoroutineType[Any, Any, T]:
        """Call the function from async code and await its result."""
        coroutine: Any = self._place.run(self._func, args, kwargs)
        coroutine.__name__, coroutine.__qualname__ = self.__name__, self.__qualname__  # where it is never awaited
        return cast("CoroutineType[Any, Any, T]", coroutine)

    if TYPE_CHECKING:

        @property
        def sync(self) -> Callable[P, T]:
            """The same for sync code, which waits for the result."""
            ...

    else:
        sync = _SyncFace()

    # What a function has, and what compiled functions have to be taken for functions: so this is a coroutine function
    # for `inspect` and `asyncio` on every Python, without the marker that came with 3.12. Nobody runs this code.
    __code__: CodeType = _as_coroutine_function(__call__)
    __defaults__ = None
    __kwdefaults__ = None

    @overload
    def __get__(self, instance: None, owner: type, /) -> Self: ...
    @overload
    def __get__(
        self: DualCallable[Concatenate[Owner, Q], T], instance: Owner, owner: type | None = None, /
    ) -> DualCallable[Q, T]: ...
    def __get__(self, instance: object, owner: type | None = None, /) -> Any:
        """Bind the function as it would be without this."""
        bind = getattr(type(self._func), "__get__", None)
        if bind is None:
            return self
        func = bind(self._func, instance, owner)
        return self if func is self._func else self._rebound(func)

    # What a bound method has, so that `weakref.WeakMethod` takes it for one, and signals that use it (Django's) do. A
    # weak reference to what is bound would be dead at once.

    @property
    def __self__(self) -> object:
        """What the function is bound to."""
        bound: Any = self._func if self.__func__ is not None else None
        return bound.__self__

    @property
    def __func__(self) -> Any:
        """What has been bound."""
        return self._unbound

    if not TYPE_CHECKING:

        @property
        def __class__(self):
            """Pass for a method where it is bound, as mocks do: who documents a class leaves out what is bound then."""
            return MethodType if hasattr(self, "_unbound") and hasattr(self._func, "__self__") else DualCallable

    def __set_name__(self, owner: type, name: str) -> None:
        """Have `help` of a class say what each of its methods is."""
        if self.__qualname__ == f"{owner.__qualname__}.{name}":
            _add_line(self.__dict__, f"`await {name}(...)` in async code, `{name}.sync(...)` in sync code.")

    def _rebound(self, func: Any) -> Self:
        bound: Any = object.__new__(type(self))
        bound.__dict__.update(self.__dict__)
        bound.__dict__["__wrapped__"] = func
        bound._place = self._place
        bound._func = func
        bound._unbound = self
        rebound: Self = bound
        return rebound

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Copy what the function is bound to, as for a function: where it runs, with its limiter, is shared."""
        import copy  # which whoever calls this has loaded, and nobody else needs

        func = copy.deepcopy(self._func, memo)
        return self if func is self._func else self._rebound(func)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DualCallable) and self._place is other._place and bool(self._func == other._func)

    def __hash__(self) -> int:
        return hash((id(self._place), self._func))

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        func: Any = self._func
        name = name_of(func)
        if isinstance(func, (classmethod, staticmethod)):
            name = f"{'class' if isinstance(func, classmethod) else 'static'}method({name})"
        bound = f", of {short_repr(func.__self__)}" if isinstance(func, MethodType) else ""
        helper, first, options = _described(self._place)
        return f"<{helper}({', '.join([*first, name])}){''.join(f', {option}' for option in options)}{bound}>"

    def __reduce__(self) -> str | tuple[Any, ...]:
        func: Any = self._func
        found = found_by_name(func)
        if found is self:
            return cast("str", func.__qualname__)
        if found == self:  # a method: looked up, it is another one each time
            return getattr, (owner_of(func), func.__name__)
        for name, value in _options_of(self._place).items():
            if isinstance(value, CapacityLimiter) or not _can_be_pickled(value):
                raise NotSendableError(
                    f"{self!r} cannot be pickled with its `{name}`, which stays in this process: decorate a function "
                    f"at the top level of a module, which is pickled by its name, or wrap it where it is called"
                )
        return DualCallable, (self._place, self._func)


@final
class DualMethod(Generic[P, T]):
    """A dual callable for a `classmethod` or a `staticmethod`, from where it is looked up on."""

    def __init__(self, dual: Any) -> None:
        self.__dict__.update(dual.__dict__)
        self.__isabstractmethod__: bool = getattr(
            dual.__wrapped__, "__isabstractmethod__", False
        )  # no copy in a `__dict__`
        self._dual = dual

    if TYPE_CHECKING:  # what it is where it is looked up: protocols ask here

        @property
        def sync(self) -> Callable[P, T]: ...
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> CoroutineType[Any, Any, T]: ...

    else:

        @property
        def __class__(self):
            """Pass for what it is in its class, for those who document that."""
            return type(self._dual._func)

        @property
        def __func__(self):
            return self._dual._func.__func__

    def __set_name__(self, owner: type, name: str) -> None:
        """Have `help` of a class say what each of its methods is."""
        self._dual.__set_name__(owner, name)
        self.__dict__["__doc__"] = self._dual.__doc__

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        return repr(self._dual)

    def __get__(self, instance: object, owner: type | None = None, /) -> DualCallable[P, T]:
        """Bind the method as it would be without this."""
        bound: Any = self._dual.__get__(instance, owner)
        return cast("DualCallable[P, T]", bound)


if TYPE_CHECKING:
    # What checkers see of a decorated function in a class. They know it by the name of its first parameter, and get
    # its type without that one: or else no subclass could override it for them, and no protocol would know it.

    class _TakesSelf(Protocol[P, T_co]):
        def __call__(
            _me,  # noqa: N805
            self: Any,
            *args: P.args,
            **kwargs: P.kwargs,
        ) -> T_co: ...

    class _TakesCls(Protocol[P, T_co]):
        def __call__(
            _me,  # noqa: N805
            cls: Any,
            *args: P.args,
            **kwargs: P.kwargs,
        ) -> T_co: ...

    class _Method(Generic[P, T]):
        """A dual callable for a method, from where it is looked up on."""

        @property
        def sync(self) -> Callable[P, T]: ...
        def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> CoroutineType[Any, Any, T]: ...
        @overload
        def __get__(self, instance: None, owner: type, /) -> DualCallable[Concatenate[Any, P], T]: ...
        @overload
        def __get__(self, instance: object, owner: type | None = None, /) -> DualCallable[P, T]: ...
        def __get__(self, instance: object, owner: type | None = None, /) -> Any: ...


def _copy_metadata(dual: DualCallable[..., Any], func: Any) -> None:
    """Give *dual* the name, the docstring and the attributes of *func*."""
    inner = func
    while isinstance(inner, functools.partial):
        inner = inner.func
    if hasattr(inner, "__name__"):
        functools.update_wrapper(dual, inner)
        dual.__annotations__ = _annotations_of(inner)
        dual.__dict__.setdefault("__qualname__", dual.__name__)
    else:  # an object that can be called; its attributes are its own
        dual.__annotations__ = _annotations_of(type(inner).__call__)
        dual.__doc__ = inner.__doc__
        dual.__module__ = type(inner).__module__
        dual.__dict__["__qualname__"] = dual.__dict__["__name__"] = name_of(inner)
    dual.__wrapped__ = func


def _annotations_of(func: object) -> dict[str, Any]:
    """Return the annotations of *func*, without which a lookup finds those of the class of its wrapper.

    Since Python 3.14 they are worked out when somebody asks, and may name what is not there yet.
    """
    try:
        annotations: dict[str, Any] = getattr(func, "__annotations__", {})
    except NameError:  # pragma: no cover  before Python 3.14 they were there already
        library = importlib.import_module("annotationlib")
        annotations = library.get_annotations(func, format=library.Format.FORWARDREF)
    return annotations


def _add_line(attributes: dict[str, Any], line: str) -> None:
    doc: str | None = attributes["__doc__"]
    if doc is None or line not in doc:
        attributes["__doc__"] = f"{inspect.cleandoc(doc)}\n\n{line}" if doc else line


def _options_of(place: Any) -> dict[str, Any]:
    """Return the options of *place* that are not as they are by default."""
    defaults = place._field_defaults
    return {name: value for name, value in place._asdict().items() if value is not defaults.get(name, place)}


def _described(place: Any) -> tuple[str, list[str], list[str]]:
    """Return a helper's name, what it takes before the function, and its options, as the user has written them."""
    options = _options_of(place)
    executor = options.pop("executor", None)
    said = [f"{name}={_said(value)}" for name, value in options.items()]
    return _PLACES[type(place)], [] if executor is None else [type(executor).__name__], said


def _said(value: Any) -> str:
    if isinstance(value, CapacityLimiter):
        return f"CapacityLimiter({value.total_tokens:g})"
    return name_of(value) if callable(value) else short_repr(value)


def _can_be_pickled(value: object) -> bool:
    try:
        pickle.dumps(value)
    except Exception:
        return False
    return True


def _make(place: _Place, func: Any, others: dict[str, object]) -> Any:
    """Return the dual callable for *func*, or the decorator that makes one of what it is given."""
    if others:
        refuse_options(_PLACES[type(place)], others)
    place.check()
    return _Decorator(place) if func is None else _wrap(place, func)


def _wrap(place: _Place, func: Any) -> Any:
    is_method = issubclass(type(func), (classmethod, staticmethod))
    place.require(func.__func__ if is_method else func)
    make: Any = DualCallable
    dual = make(place, func)
    return cast("Any", DualMethod(dual)) if is_method else dual


class _Decorator:
    """Makes dual callables that run in one place, with the same options."""

    def __init__(self, place: _Place) -> None:
        self._place = place

    @overload
    def __call__(self, func: _TakesSelf[P, T], /) -> _Method[P, T]: ...  # pyright: ignore[reportOverlappingOverload]
    @overload
    def __call__(self, func: _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T], /) -> DualMethod[P, T]: ...
    @overload
    def __call__(self, func: Callable[P, T], /) -> DualCallable[P, T]: ...
    def __call__(self, func: Any, /) -> Any:
        return _wrap(self._place, func)

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        helper, first, options = _described(self._place)
        return f"<{helper}({', '.join([*first, *options])})>"


if TYPE_CHECKING:

    class _AsyncDecorator(Protocol):
        """The same for async functions."""

        @overload
        def __call__(  # pyright: ignore[reportOverlappingOverload]
            self, func: _TakesSelf[P, Awaitable[T]], /
        ) -> _Method[P, T]: ...
        @overload
        def __call__(
            self,
            func: _TakesCls[P, Awaitable[T]] | classmethod[Any, P, Awaitable[T]] | staticmethod[P, Awaitable[T]],
            /,
        ) -> DualMethod[P, T]: ...
        @overload
        def __call__(self, func: Callable[P, Awaitable[T]], /) -> DualCallable[P, T]: ...

    class _ThreadOptions(TypedDict, total=False):
        limiter: CapacityLimiter | None
        abandon_on_cancel: bool
        timeout: float | None
        context: Context | None

    class _ProcessOptions(TypedDict, total=False):
        limiter: CapacityLimiter | None
        kill_on_cancel: bool
        timeout: float | None
        initializer: Callable[[], object] | None
        max_calls: int | None

    class _ExecutorOptions(TypedDict, total=False):
        timeout: float | None

    class _EventloopOptions(TypedDict, total=False):
        timeout: float | None
        context: Context | None


@overload
def in_threadpool(  # pyright: ignore[reportOverlappingOverload]
    func: _TakesSelf[P, T], /, **options: Unpack[_ThreadOptions]
) -> _Method[P, T]: ...
@overload
def in_threadpool(
    func: _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T],
    /,
    **options: Unpack[_ThreadOptions],
) -> DualMethod[P, T]: ...
@overload
def in_threadpool(func: Callable[P, T], /, **options: Unpack[_ThreadOptions]) -> DualCallable[P, T]: ...
@overload
def in_threadpool(**options: Unpack[_ThreadOptions]) -> _Decorator: ...
def in_threadpool(
    func: Any = None,
    /,
    *,
    limiter: CapacityLimiter | None = None,
    abandon_on_cancel: bool = False,
    timeout: float | None = None,
    context: Context | None = None,
    **others: object,
) -> Any:
    """Make a dual callable that runs a sync function in a worker thread; also a decorator.

    Called as `await f(...)` it does what `run_in_threadpool` does, called as `f.sync(...)` what
    `run_in_threadpool_sync` does, with these options.

    Args:
        func: A sync function, a method, anything that can be called, a `classmethod` or a `staticmethod`. Left out,
            a decorator is returned.
        limiter: Bounds how many calls run at once, of all wrappers that share it, from any loop or thread; `None` is
            anyio's default thread limiter, 40 for each event loop.
        abandon_on_cancel: Whether a call that is cancelled stops waiting for its thread, which runs on unseen.
        timeout: After how many seconds, waiting for a slot included, to abandon the thread and raise
            `CallTimeoutError`; `None` for no limit.
        context: The context to run in, as it is, one call at a time; `None` for a copy of the caller's.

    Cancellation:
        As for `run_in_threadpool`: a function that has not started never starts; one that runs is waited for, but no
        longer than the timeout, nor with `abandon_on_cancel`. An abandoned thread keeps its slot and its context
        until it ends, and is counted by `count_abandoned_threads`; the async code that it waits for is cancelled.

    Returns:
        A `DualCallable`; for a `classmethod` or a `staticmethod`, what becomes one where it is looked up.

    Raises:
        WrongFunctionError: If *func* is async, or cannot be called; when it is called, if it returns a coroutine.
        WrongOptionError: If an option is not what it should be.
        CallTimeoutError: When it is called, if it has not ended in time.
        InUseError: When it is called, if *context* is in use.

    Example:
        `read = in_threadpool(read_file, limiter=disk, timeout=5)`
    """
    return _make(ThreadPlace(limiter, abandon_on_cancel, timeout, context), func, others)


@overload
def in_processpool(  # pyright: ignore[reportOverlappingOverload]
    func: _TakesSelf[P, T], /, **options: Unpack[_ProcessOptions]
) -> _Method[P, T]: ...
@overload
def in_processpool(
    func: _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T],
    /,
    **options: Unpack[_ProcessOptions],
) -> DualMethod[P, T]: ...
@overload
def in_processpool(func: Callable[P, T], /, **options: Unpack[_ProcessOptions]) -> DualCallable[P, T]: ...
@overload
def in_processpool(**options: Unpack[_ProcessOptions]) -> _Decorator: ...
def in_processpool(
    func: Any = None,
    /,
    *,
    limiter: CapacityLimiter | None = None,
    kill_on_cancel: bool = False,
    timeout: float | None = None,
    initializer: Callable[[], object] | None = None,
    max_calls: int | None = None,
    **others: object,
) -> Any:
    """Make a dual callable that runs a sync function in a worker process; also a decorator.

    Called as `await f(...)` it does what `run_in_processpool` does, called as `f.sync(...)` what
    `run_in_processpool_sync` does, with these options. The worker finds a decorated function by its name.

    Args:
        func: A sync function at the top level of a module, or a method of an object that can be pickled, or a
            `classmethod` or a `staticmethod`. Left out, a decorator is returned.
        limiter: Bounds how many calls run at once, of all wrappers that share it, from any loop or thread; `None` is
            anyio's default process limiter, as many as CPU cores for each event loop.
        kill_on_cancel: Whether a call that is cancelled kills its worker process.
        timeout: After how many seconds, waiting for a slot included, to kill the worker process and raise
            `CallTimeoutError`; `None` for no limit.
        initializer: A function without arguments (`functools.partial` gives it some) that each worker process calls
            once, before its first such call; what it raises is raised by that call, and the next one tries again.
        max_calls: After how many calls, of whatever function, to replace the worker process, against what leaks there;
            `None` for never.

    Cancellation:
        As for `run_in_processpool`: a call that has not been sent never is; one that runs is waited for, but no
        longer than the timeout, nor with `kill_on_cancel`: then its worker process is killed, and the next call that
        needs one starts another.

    Returns:
        A `DualCallable`; for a `classmethod` or a `staticmethod`, what becomes one where it is looked up.

    Raises:
        WrongFunctionError: If *func* or *initializer* is async, or cannot be called; when it is called, if *func*
            returns a coroutine.
        NotSendableError: If *initializer* cannot be pickled; when it is called, as for `run_in_processpool`.
        WrongOptionError: If an option is not what it should be.
        CallTimeoutError: When it is called, if it has not ended in time.

    Example:
        `digest = in_processpool(hash_file, kill_on_cancel=True)`
    """
    return _make(ProcessPlace(limiter, kill_on_cancel, timeout, initializer, max_calls), func, others)


@overload
def in_executor(  # pyright: ignore[reportOverlappingOverload]
    executor: Executor, func: _TakesSelf[P, T], /, **options: Unpack[_ExecutorOptions]
) -> _Method[P, T]: ...
@overload
def in_executor(
    executor: Executor,
    func: _TakesCls[P, T] | classmethod[Any, P, T] | staticmethod[P, T],
    /,
    **options: Unpack[_ExecutorOptions],
) -> DualMethod[P, T]: ...
@overload
def in_executor(
    executor: Executor, func: Callable[P, T], /, **options: Unpack[_ExecutorOptions]
) -> DualCallable[P, T]: ...
@overload
def in_executor(executor: Executor, /, **options: Unpack[_ExecutorOptions]) -> _Decorator: ...
def in_executor(executor: Executor, func: Any = None, /, *, timeout: float | None = None, **others: object) -> Any:
    """Make a dual callable that runs a sync function in an executor; also a decorator.

    Called as `await f(...)` it does what `run_in_executor` does, called as `f.sync(...)` what `run_in_executor_sync`
    does, with these options.

    Args:
        executor: Any `concurrent.futures.Executor`: it decides where the function runs, and how many run at once.
        func: A sync function, a method, anything that can be called, a `classmethod` or a `staticmethod`. Left out,
            a decorator is returned.
        timeout: After how many seconds, waiting in the executor's queue included, to stop waiting and raise
            `CallTimeoutError`; `None` for no limit.

    Cancellation:
        As for `run_in_executor`: a function that the executor has not started never starts; one that runs is waited
        for, but no longer than the timeout. Then it runs on unseen.

    Returns:
        A `DualCallable`; for a `classmethod` or a `staticmethod`, what becomes one where it is looked up.

    Raises:
        WrongFunctionError: If *executor* is none, or *func* is async, or cannot be called.
        WrongOptionError: If an option is not what it should be.
        CallTimeoutError: When it is called, if it has not ended in time.

    Example:
        `query = in_executor(one_thread, connection.execute, timeout=5)`
    """
    return _make(ExecutorPlace(executor, timeout), func, others)


@overload
def in_eventloop(  # pyright: ignore[reportOverlappingOverload]
    func: _TakesSelf[P, Awaitable[T]], /, **options: Unpack[_EventloopOptions]
) -> _Method[P, T]: ...
@overload
def in_eventloop(
    func: _TakesCls[P, Awaitable[T]] | classmethod[Any, P, Awaitable[T]] | staticmethod[P, Awaitable[T]],
    /,
    **options: Unpack[_EventloopOptions],
) -> DualMethod[P, T]: ...
@overload
def in_eventloop(func: Callable[P, Awaitable[T]], /, **options: Unpack[_EventloopOptions]) -> DualCallable[P, T]: ...
@overload
def in_eventloop(**options: Unpack[_EventloopOptions]) -> _AsyncDecorator: ...
def in_eventloop(
    func: Any = None, /, *, timeout: float | None = None, context: Context | None = None, **others: object
) -> Any:
    """Make a dual callable of an async function; also a decorator.

    Called as `await f(...)` it simply runs in the current task; called as `f.sync(...)` it does what
    `run_in_eventloop_sync` does: with these options.

    Args:
        func: An async function, a method, anything that gives something to await, a `classmethod` or a
            `staticmethod`. Left out, a decorator is returned.
        timeout: After how many seconds to cancel the function, wait for its cleanup, and raise `CallTimeoutError`;
            `None` for no limit.
        context: The context to run in, as it is, one call at a time; `None` for the caller's own in async code, and
            for a copy of it in sync code.

    Cancellation:
        In async code that of any awaited function; in sync code as for `run_in_eventloop_sync`. The function's
        cleanup is awaited, however long it takes.

    Returns:
        A `DualCallable`; for a `classmethod` or a `staticmethod`, what becomes one where it is looked up.

    Raises:
        WrongFunctionError: If *func* is an async generator, or cannot be called; when it is called, if it gives
            nothing to await.
        WrongOptionError: If an option is not what it should be.
        CallTimeoutError: When it is called, if it has not ended in time.
        InUseError: When it is called, if *context* is in use.

    Example:
        `fetch = in_eventloop(client.get, timeout=5)`
    """
    return _make(EventloopPlace(timeout, context), func, others)
