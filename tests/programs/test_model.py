"""Random trees of calls come out as a plain sequential program would have it, on every backend, from both callers."""

from __future__ import annotations

import gc
import os
import random
from typing import TYPE_CHECKING, Any

import pytest
from conftest import PYPY
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st
from model import Node, call_for_real, expected, fitted, trees

if TYPE_CHECKING:
    from collections.abc import Iterator

SEED = int(os.environ.get("UNFAZED_FUZZ_SEED") or random.randrange(2**32))
TREES = int(os.environ.get("UNFAZED_FUZZ_TREES") or 60)  # for each backend and caller


@pytest.fixture(autouse=True)
def _thaw() -> Iterator[None]:
    """Have the garbage collector see everything: Hypothesis asks it who holds its random numbers."""
    if PYPY:  # where nothing is frozen
        yield
        return
    gc.unfreeze()
    yield
    gc.collect()
    gc.freeze()


@pytest.mark.timeout(60 + TREES)
@pytest.mark.parametrize("root", ["async", "sync"])
def test_random_trees_of_calls_come_out_as_a_sequential_program_would_have_it(
    root: str, background: tuple[str, dict[str, Any]]
) -> None:
    print(f"UNFAZED_FUZZ_SEED={SEED} UNFAZED_FUZZ_TREES={TREES}")
    trees_run = 0

    @seed(SEED)
    @settings(
        max_examples=TREES,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
        print_blob=True,
    )
    @given(tree=trees(), limit=st.integers(1, 3))
    def check(tree: Node, limit: int) -> None:
        nonlocal trees_run
        trees_run += 1
        note(f"fitted: {fitted(tree, root == 'sync')}")
        assert call_for_real(tree, background, limit, root) == []

    check()

    print(f"\nTREES_RUN={trees_run}")


def test_the_model_knows_a_wrong_outcome_from_a_right_one(background: tuple[str, dict[str, Any]]) -> None:
    """So that the test above can fail."""
    tree = Node("thread", (Node("loop", end="error"),), lets_through=True)

    assert expected(tree) == ("error", "loop")
    assert expected(Node("thread", (Node("loop", fate="times out"),))) == ("value", "thread", (("timeout", 0.03),))
    assert call_for_real(tree, background, 1, "sync") == []


def test_a_nested_call_in_a_shared_context_sees_the_context_of_its_caller(
    background: tuple[str, dict[str, Any]],
) -> None:
    """Found at random: on trio, the task that waits for a worker is entered in the context that was given to it."""
    tree = Node("loop", (Node("thread", (Node("thread"),)),), shares_context=True)

    assert call_for_real(tree, background, 1, "async") == []
