"""Random trees of calls come out as a plain sequential program would have it, on every backend, from both callers."""

from __future__ import annotations

import gc
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextvars import Context
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
import pytest
from conftest import PYPY, drop_garbage
from hypothesis import HealthCheck, Phase, given, note, seed, settings
from hypothesis import strategies as st
from model import HANG_SECONDS, Node, Outcome, expected, fitted, trees
from model_run import Run, context_to_share

from unfazed.concurrency import run_in_eventloop_sync
from unfazed.concurrency._core import _contexts, _limits
from unfazed.concurrency._eventloops import _background
from unfazed.concurrency._threads import _standby, _threadcall

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


def call_for_real(tree: Node, backend: tuple[str, dict[str, Any]], limit: int, root: str) -> list[str]:
    """Run *tree* with *limit* threads in each loop, and return the problems."""
    asyncio_only = backend[0] == "asyncio"
    outcomes: list[Outcome] = []
    errors: list[BaseException] = []

    async def set_limit() -> None:
        anyio.to_thread.current_default_thread_limiter().total_tokens = limit

    async def main() -> None:
        await set_limit()
        outcomes.append((await run.call(tree, (0,), context_to_share(), ()))[0])

    def from_async_code() -> None:
        anyio.run(main, backend=backend[0], backend_options=backend[1])

    def from_sync_code() -> None:
        outcomes.append(run.call_sync(tree, (0,), context_to_share(), ())[0])

    def guarded() -> None:
        try:
            Context().run(from_async_code if root == "async" else from_sync_code)
        except BaseException as exc:
            errors.append(exc)

    tree = fitted(tree, parent_is_sync=root == "sync")
    relieve = _limits.Limit.relieve

    def count_those_let_in(self: _limits.Limit, now: float) -> list[_limits.Slot]:
        let_in = relieve(self, now)
        with run.lock:
            run.excused += len(let_in)
        return let_in

    with ThreadPoolExecutor(64) as executor:
        run = Run(executor, asyncio_only)
        _limits.Limit.relieve = count_those_let_in  # type: ignore[method-assign]
        try:
            run_in_eventloop_sync(set_limit)
            thread = threading.Thread(target=guarded, daemon=True, name="root of the tree")
            thread.start()
            thread.join(HANG_SECONDS)
            if thread.is_alive():
                executor.shutdown(wait=False)
                raise RuntimeError(f"hangs: {tree}")
        finally:
            _limits.Limit.relieve = relieve  # type: ignore[method-assign]
            run.leave(())
    if errors:
        raise errors[0]
    if outcomes != [expected(tree)]:
        run.problem(f"expected {expected(tree)}, got {outcomes}")
    run.problems += leftovers()
    return run.problems


def leftovers() -> list[str]:
    """Return what is still left after a while."""
    background = _background._background_thread

    def left() -> list[str]:
        found = [f"slots of {limit}" for limit in list(_limits.limits.values()) if limit.occupied or limit.running]
        found += ["leases"] * bool(_contexts._leases) + ["abandoned threads"] * bool(_threadcall._abandoned)
        if background is not None:
            calls = [getattr(call._work, "__self__", None) for call in background._calls.copy()]
            found += ["calls"] * sum(not isinstance(owner, _standby._StandbyThread) for owner in calls)
        return found

    deadline = time.monotonic() + HANG_SECONDS
    while left() and time.monotonic() < deadline:
        drop_garbage()
        time.sleep(0.001)
    return left()


@pytest.mark.timeout(60 + 3 * TREES)
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
