"""Dual callables that are pickled or copied."""

from __future__ import annotations

import copy
import pickle
import threading
from typing import Any

import anyio
import decorated_functions as decorated
import process_functions as functions
import pytest
from wrapping import is_coroutine_function

from unfazed.concurrency import in_threadpool

PICKLED = {
    "decorated": decorated.add,
    "decorated with options": decorated.add_in_time,
    "in an executor": decorated.add_elsewhere,
    "in a thread": decorated.add_in_thread,
    "in an event loop": decorated.add_in_eventloop,
    "class method": decorated.OtherNumber.double,
    "static method": decorated.Number.half,
    "unbound method": decorated.Number.add,
    "of an inner class": decorated.Number.Inner.add,
}


@pytest.mark.parametrize("name", PICKLED)
@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_decorated_ones_are_pickled_by_name(name: str, protocol: int) -> None:
    dual: Any = PICKLED[name]

    assert pickle.loads(pickle.dumps(dual, protocol)) == dual
    assert copy.copy(dual) == copy.deepcopy(dual) == dual


@pytest.mark.parametrize("dual", [decorated.by_hand, decorated.of_a_partial, decorated.of_an_object], ids=repr)
def test_those_wrapped_by_hand_are_pickled_with_their_function(background: Any, dual: Any) -> None:
    again = pickle.loads(pickle.dumps(dual))

    assert again.sync(2)[0] == dual.sync(2)[0]
    assert again.__name__ == dual.__name__
    assert is_coroutine_function(again) == (True, True)


def test_options_are_pickled(background: Any) -> None:
    dual = in_threadpool(functions.echo, timeout=12, abandon_on_cancel=True)

    assert repr(pickle.loads(pickle.dumps(dual))) == repr(dual)


def test_bound_methods_are_pickled_with_their_object(background: Any) -> None:
    dual = decorated.Number(4).add

    again = pickle.loads(pickle.dumps(dual))

    assert again.sync(3)[0] == 7
    assert again.__wrapped__.__self__.value == 4


@pytest.mark.parametrize("dual", [decorated.add, decorated.by_hand, decorated.Number.half], ids=repr)
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
