"""Dual callables: what they wrap, and that both sides run."""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import decorated_functions as decorated
import process_functions as functions
import pytest
from wrapping import WRAPPERS, class_of_four, fetch, fitting, func, place, read, wrap

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

assert func and place and wrap  # fixtures


# What they wrap


def test_async_functions_are_refused_where_sync_ones_run() -> None:
    for name, wrap in WRAPPERS.items():  # noqa: F402  not the fixture
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
    """Return a place in this process, where any function can run, and its wrapper."""
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

    dual = wrap(**options)(fitting(place, func))

    assert isinstance(dual, DualCallable)
    assert caller.dual(dual, 1) == 2
    assert caller.dual(wrap(dual.__wrapped__, **options), a=1) == 2


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
    duals: list[Any] = [decorated.add, decorated.add_in_time, decorated.by_hand, decorated.Number.half]
    for dual in duals:
        value, pid = caller.dual(dual, 2)
        assert value == (1 if dual == decorated.Number.half else 3)
        assert pid != os.getpid()


def test_decorated_methods_are_found_by_the_worker(caller: Caller) -> None:
    number: Any = decorated.OtherNumber(2)

    assert caller.dual(number.add, 3)[0] == 5
    assert caller.dual(decorated.Number.add, number, 3)[0] == 5
    assert caller.dual(decorated.Number.Inner().add, 3)[0] == 103
    assert caller.dual(number.double, 3)[:2] == ("OtherNumber", 6)
    assert caller.dual(decorated.Number.double, 3)[:2] == ("Number", 6)
    assert caller.dual(number.half, 6)[0] == 3


def test_partials_and_objects_are_sent(caller: Caller) -> None:
    assert caller.dual(decorated.of_a_partial, 2)[0] == 12
    assert caller.dual(decorated.of_an_object, 2)[0] == 5


@pytest.mark.anyio
async def test_a_dual_given_to_run_in_processpool_stands_for_what_it_wraps() -> None:
    async def pid_of(*args: Any) -> int:
        return int((await run_in_processpool(*args))[-1])

    (_, pid) = await decorated.add(1)

    duals: list[Any] = [decorated.add, decorated.by_hand, decorated.add_in_thread]
    for dual in duals:
        assert await pid_of(dual, 1) == pid
    assert await pid_of(decorated.Number(1).add, 1) == pid
    assert await pid_of(decorated.Number.double, 1) == pid


def test_a_dual_of_an_async_function_is_not_sent_to_a_process(caller: Caller) -> None:
    with pytest.raises(WrongFunctionError, match=r"add_in_eventloop\(\) is async"):
        caller("processpool", decorated.add_in_eventloop, 1)


def test_what_cannot_be_found_by_name_is_refused_when_it_is_called(caller: Caller) -> None:
    def local() -> None:
        pytest.fail("must not run")

    for dual in (in_processpool(local), in_processpool(lambda: None)):
        with pytest.raises(NotSendableError, match="top level of a module"):
            caller.dual(dual)


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
