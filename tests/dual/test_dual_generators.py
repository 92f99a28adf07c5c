"""Duals of generator functions and of context manager functions, made by `in_threadpool` and `in_eventloop`."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import threading
from contextlib import ExitStack, aclosing, asynccontextmanager, closing, contextmanager
from contextvars import ContextVar, copy_context
from typing import TYPE_CHECKING, Any

import anyio
import pytest
from conftest import GRACE_SECONDS, wait_for_event

from unfazed.concurrency import (
    DualCallable,
    DualContextManager,
    DualIterator,
    LoopThreadError,
    ThreadpoolIterator,
    WrongFunctionError,
    WrongOptionError,
    in_eventloop,
    in_threadpool,
    iterate_in_threadpool,
    run_in_threadpool,
    run_in_threadpool_sync,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Generator, Iterator

    from conftest import Caller

Backend = tuple[str, dict[str, Any]]
variable = ContextVar("variable", default="unset")
ended: list[str] = []


@in_threadpool
def rows(first: int, *, count: int = 3) -> Generator[int, None, None]:
    """Yield rows."""
    token = variable.set("in the generator")
    thread = threading.get_ident()
    try:
        for row in range(first, first + count):
            assert threading.get_ident() == thread
            yield row
    finally:
        variable.reset(token)
        ended.append("rows")


@in_threadpool
@contextmanager
def transaction(name: str) -> Iterator[str]:
    """Enter a transaction."""
    thread = threading.get_ident()
    try:
        yield f"in {name}"
    except LookupError:
        ended.append("rolled back")
    finally:
        assert threading.get_ident() == thread
        ended.append("transaction")


@in_eventloop
async def messages(first: int, *, count: int = 3) -> AsyncGenerator[int, None]:
    """Yield messages."""
    try:
        for message in range(first, first + count):
            await anyio.sleep(0)
            yield message
    finally:
        ended.append("messages")


@in_eventloop
@asynccontextmanager
async def connection(name: str) -> AsyncIterator[str]:
    """Enter a connection."""
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.sleep_forever)
        try:
            yield f"in {name}"
        except LookupError:
            ended.append("rolled back")
        tasks.cancel_scope.cancel()
    ended.append("connection")


ITERATORS: list[Any] = [rows, messages]
MANAGERS: list[Any] = [transaction, connection]
DUALS = [*ITERATORS, *MANAGERS]


def name_of_dual(dual: Any) -> str:
    return str(dual.__name__)


@pytest.fixture(autouse=True)
def _nothing_has_ended() -> None:
    ended.clear()


def items_of(caller: Caller, dual: Any, *args: Any, **kwargs: Any) -> list[Any]:
    """Iterate to the end, in the colour of *caller*."""

    async def in_async_code() -> list[Any]:
        return [item async for item in dual(*args, **kwargs)]

    def in_sync_code() -> list[Any]:
        return list(dual.sync(*args, **kwargs))

    result: list[Any] = caller.make(in_async_code if caller.kind == "async" else in_sync_code)
    return result


def enter(caller: Caller, dual: Any, *args: Any, error: BaseException | None = None) -> Any:
    async def in_async_code() -> Any:
        async with dual(*args) as value:
            if error is not None:
                raise error
        return value

    def in_sync_code() -> Any:
        with dual.sync(*args) as value:
            if error is not None:
                raise error
        return value

    return caller.make(in_async_code if caller.kind == "async" else in_sync_code)


# ---- what they do


@pytest.mark.parametrize("dual", ITERATORS, ids=name_of_dual)
def test_both_colours_iterate(caller: Caller, dual: Any) -> None:
    assert items_of(caller, dual, 5, count=4) == [5, 6, 7, 8]
    assert ended == [dual.__name__]


@pytest.mark.parametrize("dual", ITERATORS, ids=name_of_dual)
def test_leaving_early_closes(caller: Caller, dual: Any) -> None:
    async def in_async_code() -> Any:
        async with aclosing(dual(1)) as items:
            return await anext(items)

    def in_sync_code() -> Any:
        items = dual.sync(1)
        first = next(items)
        items.close()
        return first

    assert caller.make(in_async_code if caller.kind == "async" else in_sync_code) == 1
    assert ended == [dual.__name__]


@pytest.mark.parametrize("dual", MANAGERS, ids=name_of_dual)
def test_both_colours_enter_and_leave(caller: Caller, dual: Any) -> None:
    assert enter(caller, dual, "it") == "in it"
    assert ended == [dual.__name__]


@pytest.mark.parametrize("dual", MANAGERS, ids=name_of_dual)
def test_errors_are_passed_in_and_can_be_suppressed(caller: Caller, dual: Any) -> None:
    assert enter(caller, dual, "it", error=LookupError()) == "in it"
    assert ended == ["rolled back", dual.__name__]


@in_threadpool
def idents() -> Generator[int, None, None]:
    yield threading.get_ident()


def test_a_thread_runs_what_is_in_threads_whoever_calls(caller: Caller) -> None:
    async def in_async_code() -> list[int]:
        return [threading.get_ident(), *[ident async for ident in idents()]]

    def in_sync_code() -> list[int]:
        return [threading.get_ident(), *idents.sync()]

    here, there = caller.make(in_async_code if caller.kind == "async" else in_sync_code)
    assert here != there


@pytest.mark.anyio
async def test_async_code_gets_async_generators_as_they_are() -> None:
    items = messages(1)

    assert inspect.isasyncgen(items)
    assert [item async for item in items] == [1, 2, 3]
    assert isinstance(rows(1), ThreadpoolIterator)


@pytest.mark.anyio
async def test_a_limiter_bounds_both() -> None:
    limiter = anyio.CapacityLimiter(1)
    begun, may_end = threading.Event(), threading.Event()
    order: list[str] = []

    @in_threadpool(limiter=limiter)
    def first() -> Generator[int, None, None]:
        begun.set()
        assert may_end.wait(GRACE_SECONDS)
        order.append("first")
        yield 1

    @in_threadpool(limiter=limiter)
    @contextmanager
    def second() -> Iterator[None]:
        order.append("second")
        yield

    async def iterate() -> None:
        assert [item async for item in first()] == [1]

    async def enter_it() -> None:
        async with second():
            pass

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(iterate)
        await wait_for_event(begun)
        tasks.start_soon(enter_it)
        tasks.start_soon(run_in_threadpool, lambda: [None for _ in first.sync()])
        await anyio.wait_all_tasks_blocked()
        order.append("opened")
        may_end.set()

    assert order[:2] == ["opened", "first"]
    assert sorted(order[2:]) == ["first", "second"]


def test_iterate_in_threadpool_takes_the_limiter_as_well() -> None:
    with pytest.raises(WrongOptionError, match=r"iterate_in_threadpool\(limiter=\.\.\.\) must be"):
        iterate_in_threadpool([], limiter=3)  # type: ignore[arg-type]


@pytest.mark.anyio
@pytest.mark.parametrize("dual", DUALS, ids=name_of_dual)
async def test_the_sync_side_is_refused_in_a_loop_with_what_to_write(dual: Any) -> None:
    name = dual.__name__
    use, word = (next, "async for ... in") if dual in ITERATORS else (ExitStack().enter_context, "async with")
    bridged = dual.sync("a")

    with pytest.raises(LoopThreadError, match=rf"{name}.sync\(\) would block .*`{word} {name}\(\.\.\.\)`"):
        use(bridged)


@pytest.mark.parametrize("dual", DUALS, ids=name_of_dual)
def test_wrong_arguments_are_refused_at_once(dual: Any) -> None:
    for call in (dual, dual.sync):
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            call(1, colour="red")


# ---- what they look like


@pytest.mark.parametrize("dual", DUALS, ids=name_of_dual)
def test_the_metadata_is_the_functions(dual: Any) -> None:
    for face in (dual, dual.sync):
        assert face.__name__ == dual.__wrapped__.__name__
        assert face.__module__ == __name__
        assert face.__doc__.startswith(("Yield", "Enter"))
        assert inspect.signature(face) == inspect.signature(dual.__wrapped__)
        assert not inspect.iscoroutinefunction(face)
    kind = DualIterator if dual in ITERATORS else DualContextManager
    assert type(dual) is kind
    helper = "in_threadpool" if dual in (rows, transaction) else "in_eventloop"
    assert repr(dual) == f"<{helper}({dual.__name__})>"
    assert repr(dual.sync) == f"<{helper}({dual.__name__})>.sync"


def test_an_async_generator_function_stays_one_for_inspect() -> None:
    assert [inspect.isasyncgenfunction(dual) for dual in DUALS] == [False, True, False, False]
    assert not any(inspect.isgeneratorfunction(dual) for dual in DUALS)


@pytest.mark.parametrize("dual", DUALS, ids=name_of_dual)
def test_they_are_pickled_by_name_and_are_their_own_copies(dual: Any) -> None:
    assert pickle.loads(pickle.dumps(dual)) is dual
    assert pickle.loads(pickle.dumps(dual.sync))._dual is dual
    assert copy.copy(dual) is dual
    assert copy.deepcopy(dual) is dual
    assert dual not in (in_threadpool(rows.__wrapped__), in_eventloop(messages.__wrapped__))


class Store:
    def __init__(self, name: str) -> None:
        self.name = name

    @in_threadpool
    def rows(self, count: int) -> Generator[str, None, None]:
        yield from [self.name] * count

    @in_eventloop
    async def messages(self, count: int) -> AsyncGenerator[str, None]:
        for _ in range(count):
            yield self.name

    @in_threadpool
    @contextmanager
    def transaction(self, count: int) -> Iterator[str]:
        yield self.name * count

    @in_eventloop
    @asynccontextmanager
    async def connection(self, count: int) -> AsyncIterator[str]:
        yield self.name * count

    @in_threadpool
    @classmethod
    def rows_of_class(cls, count: int) -> Generator[str, None, None]:
        yield from [cls.__name__] * count

    @in_eventloop
    @staticmethod
    async def static_messages(count: int) -> AsyncGenerator[str, None]:
        for _ in range(count):
            yield "static"

    @in_eventloop
    @classmethod
    @asynccontextmanager
    async def connection_of_class(cls, count: int) -> AsyncIterator[str]:
        yield cls.__name__ * count


@pytest.mark.parametrize(
    ("name", "expected"),
    [("rows", "a"), ("messages", "a"), ("rows_of_class", "Store"), ("static_messages", "static")],
)
def test_methods_that_iterate(caller: Caller, name: str, expected: str) -> None:
    assert items_of(caller, getattr(Store("a"), name), 2) == [expected] * 2
    if expected == "a":
        assert items_of(caller, getattr(Store, name), Store("a"), 2) == [expected] * 2
    else:
        assert items_of(caller, getattr(Store, name), 2) == [expected] * 2


@pytest.mark.parametrize(
    ("name", "expected"), [("transaction", "a"), ("connection", "a"), ("connection_of_class", "Store")]
)
def test_methods_that_are_entered(caller: Caller, name: str, expected: str) -> None:
    assert enter(caller, getattr(Store("a"), name), 2) == expected * 2


def test_methods_bind_as_their_functions_do() -> None:
    store: Any = Store("a")

    assert store.rows == store.rows
    assert store.rows.__self__ is store
    assert store.rows.__func__ is Store.rows
    assert type(store.rows)(store.rows.__func__, store) == store.rows
    assert "`for ... in rows.sync(...)` in sync code" in str(Store.rows.__doc__)
    assert "`async with connection(...)` in async code" in str(Store.connection.__doc__)
    assert list(Store.rows.sync.__get__(store)(1)) == ["a"]


# ---- of what they are made


class CallableRows:
    def __call__(self, count: int) -> Iterator[int]:
        yield from range(count)


class CallableMessages:
    async def __call__(self, count: int) -> AsyncIterator[int]:
        for number in range(count):
            yield number


def test_partials_and_callable_objects_and_bound_methods(caller: Caller) -> None:
    assert items_of(caller, in_threadpool(functools.partial(rows.__wrapped__, 1), limiter=None), count=2) == [1, 2]
    assert items_of(caller, in_eventloop(functools.partial(messages.__wrapped__, 1)), count=2) == [1, 2]
    assert items_of(caller, in_threadpool(CallableRows()), 2) == [0, 1]
    assert items_of(caller, in_eventloop(CallableMessages()), 2) == [0, 1]
    assert items_of(caller, in_threadpool(CallableRows().__call__), 2) == [0, 1]


def test_functions_around_async_ones_count_as_these(caller: Caller) -> None:
    @functools.wraps(messages.__wrapped__)
    def logged(*args: Any, **kwargs: Any) -> Any:
        return messages.__wrapped__(*args, **kwargs)

    @functools.wraps(connection.__wrapped__)
    def logged_manager(*args: Any) -> Any:
        return connection.__wrapped__(*args)

    assert items_of(caller, in_eventloop(logged), 1) == [1, 2, 3]
    assert enter(caller, in_eventloop(logged_manager), "it") == "in it"


def test_functions_around_sync_ones_are_functions() -> None:
    @functools.wraps(rows.__wrapped__)
    def first(*args: Any) -> Any:
        with closing(rows.__wrapped__(*args)) as items:
            return next(items)

    @functools.wraps(messages.__wrapped__)
    async def collected(*args: Any) -> Any:
        return [item async for item in messages.__wrapped__(*args)]

    assert in_threadpool(first).sync(7) == 7
    assert in_eventloop(collected).sync(7) == [7, 8, 9]


def test_what_turns_out_not_to_be_one_is_refused() -> None:
    @functools.wraps(messages.__wrapped__)
    def wrong(*args: Any) -> Any:
        return 3

    @functools.wraps(connection.__wrapped__)
    def wrong_manager(*args: Any) -> Any:
        return 3

    with pytest.raises(WrongFunctionError, match=r"messages.sync\(\) expected an async iterable, got 3"):
        in_eventloop(wrong).sync(1)
    with pytest.raises(WrongFunctionError, match=r"connection.sync\(\) expected an async context manager, got 3"):
        in_eventloop(wrong_manager).sync(1)


def test_a_function_that_a_context_manager_decorates_is_a_function() -> None:
    @contextmanager
    def around() -> Iterator[None]:
        yield

    @around()
    def double(number: int) -> int:
        return 2 * number

    assert type(in_threadpool(double)) is DualCallable
    assert in_threadpool(double).sync(2) == 4


@pytest.mark.parametrize(
    ("wrap", "option", "value", "dual"),
    [
        (in_threadpool, "timeout", 1, rows),
        (in_threadpool, "abandon_on_cancel", True, rows),
        (in_threadpool, "context", copy_context(), transaction),
        (in_eventloop, "timeout", 1, messages),
        (in_eventloop, "context", copy_context(), connection),
    ],
)
def test_options_that_make_no_sense_are_refused(wrap: Any, option: str, value: Any, dual: Any) -> None:
    function = dual.__wrapped__
    what = "is a generator function" if dual in ITERATORS else "gives a context manager"
    match = rf"^{wrap.__name__}\({option}=\.\.\.\) is for functions, and {function.__name__}\(\) {what}: "
    for decorate in (functools.partial(wrap, **{option: value}), wrap(**{option: value})):
        with pytest.raises(WrongOptionError, match=match):
            decorate(function)


class AsyncClient:
    async def get(self) -> None: ...


class Client:
    def get(self) -> str:
        return "got"


class Awaitable:
    def __await__(self) -> Generator[Any, None, str]:
        yield from ()
        return "awaited"


def test_classes_are_refused_with_a_word_on_sync_twin() -> None:
    wrap: Any
    for wrap, cls in ((in_eventloop, AsyncClient), (in_eventloop, Client), (in_threadpool, AsyncClient)):
        for decorate in (wrap, wrap()):
            with pytest.raises(WrongFunctionError, match=rf"is a class: .*`sync_twin\({cls.__name__}\)`"):
                decorate(cls)


def test_classes_that_are_called_like_functions_are_not_refused(background: Backend) -> None:
    assert in_threadpool(Client).sync().get() == "got"
    assert in_threadpool(int).sync("3") == 3
    assert in_eventloop(Awaitable).sync() == "awaited"


def test_a_dual_within_a_dual(caller: Caller) -> None:
    assert items_of(caller, in_eventloop(messages), 1) == [1, 2, 3]
    assert run_in_threadpool_sync(lambda: list(rows.sync(1))) == [1, 2, 3]
