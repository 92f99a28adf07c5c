"""Dual callables: what they look like, that both sides run, and the options."""

from __future__ import annotations

import abc
import asyncio
import copy
import functools
import inspect
import os
import pickle
import sys
import threading
import typing
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
import process_functions as functions
import pytest

from unfazed.concurrency import (
    DualCallable,
    LoopThreadError,
    NotSendableError,
    WrongFunctionError,
    WrongOptionError,
    in_eventloop,
    in_executor,
    in_processpool,
    in_threadpool,
    run_in_eventloop_sync,
    run_in_processpool,
    run_in_threadpool,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import Caller

never_used = ThreadPoolExecutor(max_workers=1)


def read(path: str, *, size: int = 1) -> bytes:
    """Read a file."""
    pytest.fail("must not run")


async def fetch(path: str, *, size: int = 1) -> bytes:
    """Read a file."""
    pytest.fail("must not run")


WRAPPERS: dict[str, Callable[..., Any]] = {
    "threadpool": in_threadpool,
    "processpool": in_processpool,
    "executor": lambda *args, **options: in_executor(never_used, *args, **options),
    "eventloop": in_eventloop,
}


@pytest.fixture(params=WRAPPERS)
def place(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def wrap(place: str) -> Callable[..., Any]:
    return WRAPPERS[place]


def fitting(place: str, func: Callable[..., Any]) -> Callable[..., Any]:
    """Return *func*, or an async function that does the same where the place is for those."""
    if place != "eventloop":
        return func

    @functools.wraps(func)
    async def async_func(*args: Any, **kwargs: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return func(*args, **kwargs)

    return async_func


@pytest.fixture
def func(place: str) -> Callable[..., Any]:
    return fetch if place == "eventloop" else read


def class_of_four(place: str, wrap: Callable[..., Any]) -> type[Any]:
    """Return a class with a method, a class method, a static method, and one that is abstract."""

    def method(self: object, a: int, b: int = 2) -> Any:
        """Say what came."""
        return self, a, b

    def static(a: int, b: int = 2) -> Any:
        """Say what came."""
        return a, b

    method, static = fitting(place, method), fitting(place, static)
    members = {
        "method": wrap(method),
        "of_class": wrap(classmethod(method)),
        "static": wrap(staticmethod(static)),
        "__module__": __name__,
    }
    return type("Four", (), members)


@pytest.fixture
def four(place: str, wrap: Callable[..., Any]) -> type[Any]:
    return class_of_four(place, wrap)


# What they look like


def is_coroutine_function(func: object) -> tuple[bool, bool]:
    """Return what inspect says and what asyncio says, which it deprecates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        said = asyncio.iscoroutinefunction(func) if hasattr(asyncio, "iscoroutinefunction") else None
    inspected = inspect.iscoroutinefunction(func)
    return inspected, inspected if said is None else said


def test_the_name_the_docstring_and_the_module_are_the_functions(
    wrap: Callable[..., Any], func: Callable[..., Any]
) -> None:
    for each in (wrap(func), wrap(func).sync, wrap()(func)):
        assert (each.__name__, each.__qualname__) == (func.__name__, func.__qualname__)
        assert (each.__doc__, each.__module__) == ("Read a file.", __name__)
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
    """From Python 3.14 on they are worked out when somebody asks; before, and here, they are text."""
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


# What they wrap


def test_async_functions_are_refused_where_sync_ones_run() -> None:
    for name, wrap in WRAPPERS.items():
        if name != "eventloop":
            method: Any = fetch
            funcs: list[Any] = [fetch, partial(fetch), staticmethod(fetch), classmethod(method), in_eventloop(fetch)]
            for func in funcs:
                with pytest.raises(WrongFunctionError, match=rf"in_{name}\(\) runs sync functions"):
                    wrap(func)


def test_async_generators_are_refused(place: str, wrap: Callable[..., Any]) -> None:
    async def generate() -> Any:
        yield pytest.fail("must not run")

    if place == "eventloop":  # makes a dual of it
        return
    with pytest.raises(WrongFunctionError, match="async generator"):
        wrap(generate)
    with pytest.raises(WrongFunctionError, match="async generator"):
        wrap()(generate)


def test_what_cannot_be_called_is_refused(wrap: Callable[..., Any]) -> None:
    with pytest.raises(WrongFunctionError, match="got 3"):
        wrap(3)
    with pytest.raises(WrongFunctionError, match="got 3"):
        wrap()(3)


def test_what_is_no_executor_is_refused() -> None:
    with pytest.raises(WrongFunctionError, match=r"concurrent.futures.Executor"):
        in_executor(read)  # type: ignore[call-overload]


@pytest.mark.anyio
async def test_the_sync_side_is_refused_in_a_loop_with_what_to_write(
    wrap: Callable[..., Any], func: Callable[..., Any]
) -> None:
    with pytest.raises(LoopThreadError, match=rf"{func.__name__}.sync\(\) would block .* `await {func.__name__}"):
        wrap(func).sync("a")


# That both sides run


@pytest.fixture(params=["threadpool", "executor", "eventloop"])
def here(request: pytest.FixtureRequest) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Return a place in this process, where anything runs, and the wrapper for it."""
    name = str(request.param)
    with ThreadPoolExecutor(max_workers=1) as executor:
        wrap: Any = in_executor
        yield name, partial(wrap, executor) if name == "executor" else WRAPPERS[name]


Here = tuple[str, "Callable[..., Any]"]
NAMES = ("self", "func", "args", "kwargs", "timeout", "limiter", "context", "executor", "place", "instance", "owner")


def test_all_arguments_reach_the_function_whatever_their_names(caller: Caller, here: Here) -> None:
    place, wrap = here
    dual = wrap(fitting(place, functions.echo))
    kwargs = dict.fromkeys(NAMES, 1)

    assert caller.dual(dual, 1, 2, **kwargs) == ((1, 2), kwargs)


@pytest.mark.parametrize("options", [{}, {"timeout": 60}], ids=["no options", "options"])
def test_decorators_make_the_same_as_wrappers(caller: Caller, here: Here, options: dict[str, Any]) -> None:
    place, wrap = here

    def func(a: int) -> int:
        return a + 1

    decorated = wrap(**options)(fitting(place, func))

    assert isinstance(decorated, DualCallable)
    assert caller.dual(decorated, 1) == 2
    assert caller.dual(wrap(decorated.__wrapped__, **options), a=1) == 2


def test_methods_bind_as_they_would_without_the_wrapper(caller: Caller, here: Here) -> None:
    four = class_of_four(*here)
    subclass: Any = type("Sub", (four,), {})
    instance = four()

    assert caller.dual(instance.method, 1) == (instance, 1, 2)
    assert caller.dual(four.method, instance, 1, b=3) == (instance, 1, 3)
    assert caller.dual(instance.of_class, 1) == (four, 1, 2)
    assert caller.dual(subclass.of_class, a=1) == (subclass, 1, 2)
    assert caller.dual(instance.static, 1) == caller.dual(four.static, 1) == (1, 2)


def test_lambdas_partials_and_objects_run_and_do_not_bind_where_they_did_not(caller: Caller, here: Here) -> None:
    place, wrap = here

    class Adder:
        def __init__(self, a: int) -> None:
            self.a = a

        def add(self, b: int) -> int:
            return self.a + b

        __call__ = fitting(place, add)

    class Holder:
        adder = wrap(Adder(1))
        of_partial = wrap(partial(fitting(place, lambda a, b: a + b), 1))

    assert caller.dual(wrap(Adder(1)), 2) == 3
    assert caller.dual(Holder().adder, 2) == 3
    assert caller.dual(wrap(fitting(place, lambda a: a + 1)), 2) == 3
    assert caller.dual(wrap(partial(fitting(place, lambda a, b: a + b), 1)), b=2) == 3
    assert caller.dual(Holder.of_partial, 2) == 3


def test_an_attribute_in_a_class_is_found_by_super(caller: Caller, here: Here) -> None:
    four = class_of_four(*here)

    class Sub(four):  # type: ignore[misc, valid-type]
        def overridden(self) -> Any:
            return super().method

    instance = Sub()

    assert caller.dual(instance.overridden(), 1) == (instance, 1, 2)


def test_errors_come_back_as_themselves(caller: Caller, here: Here) -> None:
    place, wrap = here
    error = ValueError("no")

    with pytest.raises(ValueError, match="no") as caught:
        caller.dual(wrap(fitting(place, functions.fail)), error)

    assert caught.value is error


def test_a_function_that_turns_out_to_be_async_is_refused(caller: Caller, here: Here) -> None:
    place, wrap = here
    if place == "eventloop":
        with pytest.raises(WrongFunctionError, match="in_eventloop"):
            caller.dual(wrap(lambda: 3))
    else:
        with pytest.raises(WrongFunctionError, match=rf"in_{place}\(\) runs sync functions"):
            caller.dual(wrap(lambda: functions.async_function()))


@pytest.mark.anyio
async def test_a_dual_async_function_runs_in_the_current_task() -> None:
    @in_eventloop
    async def current() -> int:
        return anyio.get_current_task().id

    assert await current() == anyio.get_current_task().id


def test_the_sync_side_runs_in_the_loop_of_its_worker(background: tuple[str, dict[str, Any]]) -> None:
    @in_eventloop
    async def loop_thread() -> int:
        return threading.get_ident()

    async def main() -> tuple[int, int]:
        return await run_in_threadpool(loop_thread.sync), await loop_thread()

    there, here = anyio.run(main, backend=background[0], backend_options=background[1])

    assert there == here


def test_duals_are_called_within_each_other(caller: Caller) -> None:
    @in_eventloop
    async def inner(value: int) -> int:
        return await outer_twin(value) + 1

    @in_threadpool(limiter=anyio.CapacityLimiter(1))
    def outer_twin(value: int) -> int:
        return value * 10

    @in_threadpool(limiter=anyio.CapacityLimiter(1))
    def outer(value: int) -> int:
        return inner.sync(value)

    assert caller.dual(outer, 1) == 11


def test_other_helpers_take_the_sync_side_for_a_function(caller: Caller) -> None:
    dual = in_eventloop(fitting("eventloop", functions.echo))

    assert caller("threadpool", dual.sync, 1) == ((1,), {})
    with pytest.raises(WrongFunctionError, match=r"is async: write `" + ("await " if caller.kind == "async" else "")):
        caller("threadpool", dual, 1)


def test_a_dual_is_an_async_function_for_the_event_loop(background: Any) -> None:
    dual = in_threadpool(functions.echo)

    assert run_in_eventloop_sync(dual, 1) == ((1,), {})


# In processes


def test_decorated_functions_are_found_by_the_worker(caller: Caller) -> None:
    duals: list[Any] = [functions.add, functions.add_in_time, functions.by_hand, functions.Number.half]
    for dual in duals:
        value, pid = caller.dual(dual, 2)
        assert value == (1 if dual == functions.Number.half else 3)
        assert pid != os.getpid()


def test_decorated_methods_are_found_by_the_worker(caller: Caller) -> None:
    number: Any = functions.OtherNumber(2)

    assert caller.dual(number.add, 3)[0] == 5
    assert caller.dual(functions.Number.add, number, 3)[0] == 5
    assert caller.dual(functions.Number.Inner().add, 3)[0] == 103
    assert caller.dual(number.double, 3)[:2] == ("OtherNumber", 6)
    assert caller.dual(functions.Number.double, 3)[:2] == ("Number", 6)
    assert caller.dual(number.half, 6)[0] == 3


def test_partials_and_objects_are_sent(caller: Caller) -> None:
    assert caller.dual(functions.of_a_partial, 2)[0] == 12
    assert caller.dual(functions.of_an_object, 2)[0] == 5


@pytest.mark.anyio
async def test_a_dual_given_to_run_in_processpool_stands_for_what_it_wraps() -> None:
    async def pid_of(*args: Any) -> int:
        return int((await run_in_processpool(*args))[-1])

    (_, pid) = await functions.add(1)

    duals: list[Any] = [functions.add, functions.by_hand, functions.add_in_thread]
    for dual in duals:
        assert await pid_of(dual, 1) == pid
    assert await pid_of(functions.Number(1).add, 1) == pid
    assert await pid_of(functions.Number.double, 1) == pid


def test_a_dual_of_an_async_function_is_not_sent_to_a_process(caller: Caller) -> None:
    with pytest.raises(WrongFunctionError, match=r"add_in_eventloop\(\) is async"):
        caller("processpool", functions.add_in_eventloop, 1)


def test_what_cannot_be_found_by_name_is_refused_when_it_is_called(caller: Caller) -> None:
    def local() -> None:
        pytest.fail("must not run")

    for dual in (in_processpool(local), in_processpool(lambda: None)):
        with pytest.raises(NotSendableError, match="top level of a module"):
            caller.dual(dual)


# Pickled


PICKLED = {
    "decorated": functions.add,
    "decorated with options": functions.add_in_time,
    "in an executor": functions.add_elsewhere,
    "in a thread": functions.add_in_thread,
    "in an event loop": functions.add_in_eventloop,
    "class method": functions.OtherNumber.double,
    "static method": functions.Number.half,
    "unbound method": functions.Number.add,
    "of an inner class": functions.Number.Inner.add,
}


@pytest.mark.parametrize("name", PICKLED)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_decorated_ones_are_pickled_by_name(name: str, protocol: int) -> None:
    dual: Any = PICKLED[name]

    assert pickle.loads(pickle.dumps(dual, protocol)) == dual
    assert copy.copy(dual) == copy.deepcopy(dual) == dual


@pytest.mark.parametrize("dual", [functions.by_hand, functions.of_a_partial, functions.of_an_object], ids=repr)
def test_those_wrapped_by_hand_are_pickled_with_their_function(background: Any, dual: Any) -> None:
    again = pickle.loads(pickle.dumps(dual))

    assert again.sync(2)[0] == dual.sync(2)[0]
    assert again.__name__ == dual.__name__
    assert is_coroutine_function(again) == (True, True)


def test_options_are_pickled(background: Any) -> None:
    dual = in_threadpool(functions.echo, timeout=12, abandon_on_cancel=True)

    assert repr(pickle.loads(pickle.dumps(dual))) == repr(dual)


def test_bound_methods_are_pickled_with_their_object(background: Any) -> None:
    dual = functions.Number(4).add

    again = pickle.loads(pickle.dumps(dual))

    assert again.sync(3)[0] == 7
    assert again.__wrapped__.__self__.value == 4


@pytest.mark.parametrize("dual", [functions.add, functions.by_hand, functions.Number.half], ids=repr)
def test_the_sync_side_is_pickled(background: Any, dual: Any) -> None:
    assert pickle.loads(pickle.dumps(dual.sync))(2)[0] == dual.sync(2)[0]


def test_a_copy_is_a_wrapper_in_the_same_place(background: Any) -> None:
    dual = in_threadpool(functions.echo, limiter=anyio.CapacityLimiter(1))

    assert copy.copy(dual) == dual
    assert copy.copy(dual).sync(1) == ((1,), {})


def test_what_cannot_be_pickled_makes_a_wrapper_that_cannot() -> None:
    for func in (lambda: None, threading.Lock().acquire):
        with pytest.raises((pickle.PicklingError, AttributeError, TypeError)):
            pickle.dumps(in_threadpool(func))


# Wrong options


WRONG_OPTIONS: list[tuple[str, str, object]] = [
    *((place, "timeout", value) for place in WRAPPERS for value in (-1, "1", True, float("nan"))),
    *((place, "limiter", value) for place in ("threadpool", "processpool") for value in (1, anyio.Semaphore)),
    ("threadpool", "abandon_on_cancel", 1),
    ("processpool", "kill_on_cancel", None),
    *((place, "context", value) for place in ("threadpool", "eventloop") for value in ("context", True)),
]


@pytest.mark.parametrize(("place", "option", "value"), WRONG_OPTIONS)
def test_wrong_options_are_refused_at_once(place: str, option: str, value: object) -> None:
    for make in (partial(WRAPPERS[place], functions.echo), WRAPPERS[place]):
        with pytest.raises(WrongOptionError, match=rf"\({option}=...\) must be"):
            make(**{option: value})


def test_options_of_another_place_are_refused(wrap: Callable[..., Any], func: Callable[..., Any]) -> None:
    with pytest.raises(TypeError, match="nonsense"):
        wrap(func, nonsense=1)
    with pytest.raises(TypeError, match="kill_on_cancel"):
        WRAPPERS["threadpool"](read, kill_on_cancel=True)
