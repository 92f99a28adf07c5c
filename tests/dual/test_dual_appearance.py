"""Dual callables: names, docstrings, signatures, equality."""

from __future__ import annotations

import abc
import inspect
import sys
import typing
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from wrapping import class_of_four, fetch, fitting, func, is_coroutine_function, place, read, wrap

from unfazed.concurrency import in_eventloop, in_threadpool

if TYPE_CHECKING:
    from collections.abc import Callable

assert func and place and wrap  # fixtures


@pytest.fixture
def four(place: str, wrap: Callable[..., Any]) -> type[Any]:
    return class_of_four(place, wrap)


def test_the_name_the_docstring_and_the_module_are_the_functions(
    wrap: Callable[..., Any], func: Callable[..., Any]
) -> None:
    for each in (wrap(func), wrap(func).sync, wrap()(func)):
        assert (each.__name__, each.__qualname__) == (func.__name__, func.__qualname__)
        assert (each.__doc__, each.__module__) == ("Read a file.", read.__module__)
        assert each.__wrapped__ is func


def test_attributes_of_the_function_are_the_wrappers_too(place: str, wrap: Callable[..., Any]) -> None:
    func: Any = fitting(place, lambda: None)
    func.route = "/"

    assert wrap(func).route == wrap(func).sync.route == "/"


def test_the_signature_and_the_type_hints_are_the_functions(wrap: Callable[..., Any], func: Callable[..., Any]) -> None:
    for each in (wrap(func), wrap(func).sync):
        assert inspect.signature(each) == inspect.signature(func)
        assert typing.get_type_hints(each) == {"path": str, "size": int, "return": bytes}


def test_annotations_may_name_what_comes_later() -> None:
    """Python 3.14 evaluates annotations on first use. Earlier versions, and this file, keep them as text."""
    source = "@wrap\ndef func(a: Later) -> int: ...\n\nclass Later: pass\n"
    if sys.version_info < (3, 14):
        source = "from __future__ import annotations\n" + source
    namespace: dict[str, Any] = {"wrap": in_threadpool, "__name__": __name__}
    exec(compile(source, "source", "exec", dont_inherit=True), namespace)

    hints = {"a": namespace["Later"], "return": int}

    assert typing.get_type_hints(namespace["func"]) == hints
    assert typing.get_type_hints(namespace["func"].sync) == hints


def test_builtins_have_no_annotations_and_need_none() -> None:
    assert typing.get_type_hints(in_threadpool(len)) == {}


@pytest.mark.parametrize("name", ["method", "of_class", "static"])
def test_bound_ones_have_the_signature_without_self(four: type[Any], name: str) -> None:
    bound = getattr(four(), name)

    for each in (bound, bound.sync):
        assert list(inspect.signature(each).parameters) == ["a", "b"]
        assert each.__doc__ == "Say what came."


def test_the_unbound_method_has_the_signature_with_self(four: type[Any]) -> None:
    assert list(inspect.signature(four.method).parameters) == ["self", "a", "b"]
    assert list(inspect.signature(four.method.sync).parameters) == ["self", "a", "b"]


def test_they_are_coroutine_functions_and_their_sync_sides_are_not(
    wrap: Callable[..., Any], func: Callable[..., Any], four: type[Any]
) -> None:
    duals = [wrap(func), wrap()(func), wrap(partial(func, "a")), four.method, four().method, four.of_class, four.static]
    duals += [four().of_class, four().static]

    for dual in duals:
        assert is_coroutine_function(dual) == (True, True)
        assert is_coroutine_function(partial(dual))[0]
        assert is_coroutine_function(dual.sync) == (False, False)


@pytest.mark.skipif(sys.version_info < (3, 12), reason="the marker is new in 3.12")
def test_the_sync_side_of_a_function_marked_as_async_is_not(background: Any) -> None:
    def marked() -> Any:
        return fetch("a")

    marker: Any = inspect
    dual = in_eventloop(marker.markcoroutinefunction(marked))

    assert is_coroutine_function(dual) == (True, True)
    assert is_coroutine_function(dual.sync) == (False, False)


def test_calling_one_gives_a_coroutine(wrap: Callable[..., Any], func: Callable[..., Any]) -> None:
    coroutine = wrap(func)("a")

    assert inspect.iscoroutine(coroutine)
    coroutine.close()


def test_an_object_that_can_be_called_gives_its_types_name_and_its_own_docstring(
    place: str, wrap: Callable[..., Any]
) -> None:
    class Reader:
        """Reads files."""

        async def fetch(self, path: str) -> bytes:
            pytest.fail("must not run")

        __call__ = fetch if place == "eventloop" else lambda self, path: b""

    dual = wrap(Reader())

    assert dual.__name__.rpartition(".")[2] == "Reader"
    assert dual.__doc__ == "Reads files."
    assert list(inspect.signature(dual).parameters) == ["path"]
    assert is_coroutine_function(dual) == (True, True)


def test_a_partial_gives_the_name_of_its_function(wrap: Callable[..., Any], func: Callable[..., Any]) -> None:
    dual = wrap(partial(partial(func, "a"), size=2))

    assert (dual.__name__, dual.__doc__) == (func.__name__, "Read a file.")
    assert list(inspect.signature(dual).parameters) == ["size"]


def test_bound_ones_are_equal_where_the_bound_methods_are(four: type[Any]) -> None:
    one, other = four(), four()

    assert one.method == one.method
    assert hash(one.method) == hash(one.method)
    assert one.of_class == other.of_class
    assert hash(one.of_class) == hash(four.of_class)
    assert one.static == other.static
    assert one.method != other.method
    assert one.method != one.of_class
    assert one.method != one.method.__wrapped__


def test_two_wrappers_of_one_function_are_not_equal(wrap: Callable[..., Any], func: Callable[..., Any]) -> None:
    assert wrap(func) != wrap(func)


def test_abstract_methods_stay_abstract(place: str, wrap: Callable[..., Any]) -> None:
    def method(self: object) -> None:
        pytest.fail("must not run")

    def members() -> dict[str, Any]:
        return {
            name: wrap(kind(abc.abstractmethod(fitting(place, method))))
            for name, kind in (("a", lambda func: func), ("b", classmethod), ("c", staticmethod))
        }

    abstract: Any = abc.ABCMeta("Abstract", (), members())

    assert abstract.__abstractmethods__ == {"a", "b", "c"}
    with pytest.raises(TypeError, match="abstract"):
        abstract()


def test_the_representation_names_the_decorator_and_the_function(
    wrap: Callable[..., Any], func: Callable[..., Any]
) -> None:
    assert repr(wrap(func)).startswith("<in_")
    assert func.__name__ in repr(wrap(func))
    assert repr(wrap(func).sync).endswith(".sync")
