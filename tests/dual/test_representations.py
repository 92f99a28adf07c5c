"""What objects say about themselves: `repr`, `help`, completion, documentation tools, mocks, weak references."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import pickle
import pydoc
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from unittest import mock

import anyio
import pytest

from unfazed.concurrency import (
    DualCallable,
    DualMethod,
    NotSendableError,
    contextmanager_in_eventloop_sync,
    contextmanager_in_threadpool,
    in_eventloop,
    in_executor,
    in_processpool,
    in_threadpool,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
    run_in_threadpool,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator


def read(path: str, *, size: int = 1) -> bytes:
    """Read a file."""
    return path[:size].encode()


async def fetch(url: str) -> str:
    """Fetch a page."""
    return url


never_used = ThreadPoolExecutor(max_workers=1)


@asynccontextmanager
async def connection() -> AsyncIterator[str]:
    yield pytest.fail("must not run")


# What things say of themselves


def rows() -> Iterator[int]:
    yield 1


async def messages() -> AsyncIterator[int]:
    yield 1


@contextmanager
def transaction() -> Iterator[int]:
    yield 1


class Archive:
    def __repr__(self) -> str:
        return "<Archive>"

    @in_threadpool(timeout=5)
    def load(self, name: str) -> str:
        """Load it."""
        return name

    @in_eventloop
    async def undocumented(self) -> None: ...

    @in_threadpool
    @classmethod
    def of_class(cls, name: str) -> str:
        """Say it."""
        return f"{cls.__name__} {name}"

    @in_threadpool
    @staticmethod
    def static(name: str) -> str:
        return name

    alias = in_threadpool(read)


REPRESENTATIONS: list[tuple[Callable[[], object], str]] = [
    (lambda: in_threadpool(read), "<in_threadpool(read)>"),
    (lambda: in_threadpool(read, timeout=5), "<in_threadpool(read), timeout=5>"),
    (lambda: in_threadpool(read, timeout=5).sync, "<in_threadpool(read), timeout=5>.sync"),
    (
        lambda: in_threadpool(read, limiter=anyio.CapacityLimiter(2), abandon_on_cancel=True),
        "<in_threadpool(read), limiter=CapacityLimiter(2), abandon_on_cancel=True>",
    ),
    (lambda: in_threadpool(timeout=5), "<in_threadpool(timeout=5)>"),
    (lambda: in_executor(never_used), "<in_executor(ThreadPoolExecutor)>"),
    (lambda: in_executor(never_used, read), "<in_executor(ThreadPoolExecutor, read)>"),
    (lambda: in_processpool(read, initializer=int), "<in_processpool(read), initializer=int>"),
    (lambda: in_eventloop(fetch), "<in_eventloop(fetch)>"),
    (lambda: Archive.load, "<in_threadpool(Archive.load), timeout=5>"),
    (lambda: Archive().load, "<in_threadpool(Archive.load), timeout=5, of <Archive>>"),
    (lambda: vars(Archive)["of_class"], "<in_threadpool(classmethod(Archive.of_class))>"),
    (lambda: vars(Archive)["static"], "<in_threadpool(staticmethod(Archive.static))>"),
    (lambda: iterate_in_threadpool(rows()), "<iterate_in_threadpool(rows(...)), not begun>"),
    (
        lambda: iterate_in_threadpool([1], prefetch=3),
        "<iterate_in_threadpool(<list object>, prefetch=3), not begun>",
    ),
    (
        lambda: contextmanager_in_threadpool(transaction()),
        "<contextmanager_in_threadpool(transaction(...)), not entered>",
    ),
    (
        lambda: contextmanager_in_eventloop_sync(connection()),
        "<contextmanager_in_eventloop_sync(connection(...)), not entered>",
    ),
]


@pytest.mark.parametrize(("make", "text"), REPRESENTATIONS, ids=[text for _, text in REPRESENTATIONS])
def test_the_representation_is_what_was_written(make: Callable[[], object], text: str) -> None:
    assert repr(make()) == text


def test_a_generator_that_iterates_in_the_event_loop_has_a_name() -> None:
    assert " iterate_in_eventloop_sync(messages(...)) " in repr(iterate_in_eventloop_sync(messages()))


@pytest.mark.anyio
async def test_the_representation_shows_the_state() -> None:
    manager = contextmanager_in_threadpool(transaction())
    async with manager:
        assert repr(manager).endswith(", entered>")
    items = iterate_in_threadpool(rows())
    assert await items.__anext__() == 1
    assert repr(items).endswith(", begun>")
    await items.aclose()
    assert repr(items).endswith(", closed>")


def test_the_representation_of_what_is_entered_in_a_loop_shows_the_state(background: Any) -> None:
    @asynccontextmanager
    async def entered() -> AsyncIterator[None]:
        yield

    manager = contextmanager_in_eventloop_sync(entered())
    with manager:
        assert repr(manager).endswith(", entered>")


@pytest.mark.parametrize(
    "dual", [in_threadpool(read), in_eventloop(fetch), in_processpool(read), Archive().load], ids=repr
)
def test_a_forgotten_await_names_the_users_function(dual: Any) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dual("a")
        gc.collect()

    assert any(f"coroutine '{dual.__qualname__}' was never awaited" in str(each.message) for each in caught)


def test_what_is_called_though_it_has_no_full_name_keeps_its_own(background: Any) -> None:
    class Named:
        __name__ = "ufunc"

        def __call__(self) -> int:
            return 1

    dual = in_threadpool(Named())

    assert (dual.__name__, dual.__qualname__) == ("ufunc", "ufunc")
    assert asyncio.run(dual()) == 1


MADE: list[Callable[[], object]] = [
    lambda: iterate_in_threadpool(rows()),
    lambda: contextmanager_in_threadpool(transaction()),
    lambda: contextmanager_in_eventloop_sync(connection()),
]


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("copy_it", [copy.copy, copy.deepcopy, pickle.dumps])
def test_what_has_a_thread_or_a_task_is_not_copied(make: Any, copy_it: Callable[[object], object]) -> None:
    with pytest.raises(NotSendableError, match="can be neither copied nor pickled"):
        copy_it(make())


@pytest.mark.parametrize(
    ("dual", "option"),
    [
        (in_threadpool(int, limiter=anyio.CapacityLimiter(1)), "limiter"),
        (in_executor(never_used, int), "executor"),
    ],
)
def test_pickling_names_the_option_that_cannot_go(dual: Any, option: str) -> None:
    with pytest.raises(
        NotSendableError, match=rf"> cannot be pickled with its `{option}`, which stays in this process"
    ):
        pickle.dumps(dual)
    assert copy.copy(dual) is dual


@pytest.mark.parametrize(
    "made",
    [
        in_threadpool(read),
        in_threadpool(read).sync,
        vars(Archive)["static"],
        in_threadpool(),
        *(each() for each in MADE),
    ],
    ids=repr,
)
def test_completion_shows_no_private_names(made: object) -> None:
    assert not [name for name in dir(made) if name.startswith("_") and not name.startswith("__")]
    assert "__class__" in dir(made)


def test_help_shows_the_signature_of_both_faces() -> None:
    for face in (in_threadpool(read), in_threadpool(read).sync, Archive().load.sync):
        text = pydoc.plain(pydoc.render_doc(face))

        assert all(f"{name}: " in text for name in inspect.signature(face).parameters)
        assert inspect.isroutine(face)


def test_the_sync_face_is_no_property_for_those_who_would_describe_that_instead() -> None:
    """As IPython does for `f.sync?`."""
    assert not isinstance(vars(DualCallable)["sync"], property)
    assert DualCallable.sync.__doc__ == "The same for sync code, which waits for the result."


def test_help_of_a_class_mentions_the_sync_face() -> None:
    text = pydoc.plain(pydoc.render_doc(Archive))

    assert "Load it." in text
    assert "`await load(...)` in async code, `load.sync(...)` in sync code." in text
    assert "`await undocumented(...)` in async code, `undocumented.sync(...)` in sync code." in text
    assert "`await of_class(...)` in async code, `of_class.sync(...)` in sync code." in text
    assert "alias.sync" not in text


def test_a_line_for_help_is_added_once() -> None:
    before = Archive.load.__doc__

    type("Archive", (), {"load": Archive.load, "__qualname__": "Archive"})

    assert Archive.load.__doc__ == before


def test_the_sync_face_binds_as_its_function_does(background: Any) -> None:
    holder: Any = type("Holder", (), {"load": Archive.load.sync, "bound": Archive().load.sync})

    assert holder().load("a") == holder().bound("a") == "a"


# Bound methods for signals


def test_a_weak_method_is_alive_as_long_as_its_object() -> None:
    """Django's signals keep bound methods this way."""
    make: Any = weakref.WeakMethod
    archives = [Archive()]
    method = make(archives[0].load)
    gc.collect()

    def is_alive() -> bool:
        again: Any = method()
        return again == archives[0].load and again.__self__ is archives[0] and again.__func__ is Archive.load

    assert is_alive()
    archives.clear()
    gc.collect()
    assert method() is None


def test_a_weak_class_method_is_alive_as_long_as_its_class(background: Any) -> None:
    make: Any = weakref.WeakMethod
    method = make(Archive.of_class)
    gc.collect()

    assert method().sync("a") == "Archive a"


def test_methods_are_documented_by_their_own_signatures() -> None:
    """Sphinx leaves out the first parameter, unless it sees a bound method, or a static method in the class."""
    for bound in (Archive().load, Archive.of_class, Archive().of_class):
        assert inspect.ismethod(bound)
        assert [*inspect.signature(bound).parameters] == ["name"]
    assert isinstance(vars(Archive)["static"], staticmethod)
    assert isinstance(vars(Archive)["of_class"], classmethod)
    assert vars(Archive)["of_class"].__func__.__name__ == "of_class"
    for other in (Archive.load, Archive.static, in_threadpool(len)):
        assert not inspect.ismethod(other)
        assert isinstance(other, DualCallable)
    assert isinstance(Archive().load, DualCallable)
    assert isinstance(vars(Archive)["static"], DualMethod)


def test_what_is_not_bound_has_no_self() -> None:
    for dual in (in_threadpool(len), Archive.load, Archive().static):
        assert not hasattr(dual, "__self__")


# Mocks


@pytest.mark.anyio
async def test_mocks_with_a_specification_have_both_faces() -> None:
    made = mock.create_autospec(in_threadpool(read))
    made.return_value, made.sync.return_value = b"async", b"sync"

    assert await made("a") == b"async"
    assert await run_in_threadpool(made.sync, "a") == b"sync"
    made.assert_awaited_once_with("a")
    made.sync.assert_called_once_with("a")
    with pytest.raises(AttributeError):
        made.snyc("a")


@pytest.mark.anyio
async def test_mocks_of_classes_and_patches_have_both_faces() -> None:
    archive = mock.create_autospec(Archive)()
    archive.load.return_value, archive.load.sync.return_value = "async", "sync"

    assert await archive.load("a") == "async"
    assert archive.load.sync("a") == "sync"
    with mock.patch.object(Archive, "load", autospec=True) as load:
        load.sync.return_value = "patched"
        assert Archive().load.sync("a") == "patched"
    assert await Archive().load("a") == "a"
