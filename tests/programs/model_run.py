"""A tree of calls of `model.py`, made with the library."""

from __future__ import annotations

import threading
from collections import Counter
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
import anyio.lowlevel
from conftest import PYPY
from model import HANG_SECONDS, LONG_SECONDS, SHORT_SECONDS, Node, Outcome, as_outcome, blocks
from process_functions import NodeError, NodeExit, leaf, raise_end

from unfazed.concurrency import (
    CallTimeoutError,
    contextmanager_in_eventloop_sync,
    contextmanager_in_threadpool,
    in_eventloop,
    in_executor,
    in_processpool,
    in_threadpool,
    iterate_in_eventloop_sync,
    iterate_in_threadpool,
    run_in_eventloop,
    run_in_eventloop_sync,
    run_in_executor,
    run_in_executor_sync,
    run_in_processpool,
    run_in_processpool_sync,
    run_in_threadpool,
    run_in_threadpool_sync,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from concurrent.futures import ThreadPoolExecutor

path: ContextVar[tuple[int, ...]] = ContextVar("path", default=())  # position of the running node in the tree
trail: ContextVar[tuple[int, ...]] = ContextVar("trail", default=())  # siblings that have run in this context


def context_to_share() -> Context:
    context = copy_context()
    context.run(trail.set, ())
    return context


@dataclass
class Gate:
    """The events between a blocking call and the code that ends it."""

    started: threading.Event
    opened: threading.Event
    ended: threading.Event


class Run:
    """One tree of calls, made with the library."""

    def __init__(self, executor: ThreadPoolExecutor, asyncio_only: bool) -> None:
        self.executor = executor
        self.asyncio_only = asyncio_only
        self.limiters = {"one": anyio.CapacityLimiter(1), "two": anyio.CapacityLimiter(2)}
        self.running: Counter[str] = Counter()  # by limiter: nodes in threads, unless they wait in a call
        self.excused = 0  # may run beyond the limit: let in after a stall, or abandoned
        self.problems: list[str] = []
        self.lock = threading.Lock()
        self.gates: list[tuple[tuple[int, ...], Gate]] = []  # and the node that blocks there
        self.left: list[tuple[int, ...]] = []  # iterators that their consumer leaves early

    def problem(self, what: str) -> None:
        self.problems.append(what)

    def account(self, node: Node, change: int) -> None:
        """Count the nodes that run in threads under one of our own limiters, and compare with its total."""
        if node.place != "thread" or node.limiter not in self.limiters:
            return
        with self.lock:
            self.running[node.limiter] += change
            total = self.limiters[node.limiter].total_tokens
            if change > 0 and self.running[node.limiter] > total + self.excused:
                self.problem(f"{self.running[node.limiter]} run under {node.limiter}, excused {self.excused}")

    @contextmanager
    def inside(self, node: Node, where: tuple[int, ...], siblings: tuple[int, ...] | None) -> Iterator[None]:
        """Check and set the context variables around the body of a function."""
        if path.get() != where[:-1]:
            self.problem(f"{where} sees the context of {path.get()}")
        if siblings is not None and trail.get() != siblings:
            self.problem(f"{where} sees {trail.get()} of its siblings {siblings}")
        token = path.set(where)
        if siblings is not None:
            trail.set((*siblings, where[-1]))
        self.account(node, 1)
        try:
            yield
            if path.get() != where:
                self.problem(f"{where} ends in the context of {path.get()}")
        finally:
            self.account(node, -1)
            path.reset(token)

    @contextmanager
    def calling(self, node: Node) -> Iterator[None]:
        self.account(node, -1)
        try:
            yield
        finally:
            self.account(node, 1)

    # The functions of the nodes.

    def sync_function(
        self, node: Node, where: tuple[int, ...], gate: Gate | None, siblings: tuple[int, ...] | None
    ) -> Outcome:
        try:
            with self.inside(node, where, siblings):
                outcomes: list[Outcome] = []
                context, shared = context_to_share(), tuple[int, ...]()
                for number, child in enumerate(node.children):
                    with self.calling(node):
                        outcome, shared = self.call_sync(child, (*where, number), context, shared)
                    outcomes.append(outcome)
                    self.let_through(node, outcome)
                if gate is not None:
                    gate.started.set()
                    if node.waits_in_a_call:
                        with self.calling(node):
                            run_in_eventloop_sync(anyio.sleep, HANG_SECONDS)
                    elif not gate.opened.wait(HANG_SECONDS):
                        self.problem(f"{where} is never let go")
                raise_end(node.end, node.place)
                return ("value", node.place, tuple(outcomes))
        finally:
            if gate is not None:
                gate.ended.set()

    async def async_function(
        self, node: Node, where: tuple[int, ...], gate: Gate | None, siblings: tuple[int, ...] | None
    ) -> Outcome:
        try:
            with self.inside(node, where, siblings):
                outcomes = await self.call_children(node, where)
                if gate is not None:
                    gate.started.set()
                    try:
                        await anyio.sleep(HANG_SECONDS)
                    finally:
                        with anyio.CancelScope(shield=True):
                            for _ in range(3):
                                await anyio.lowlevel.checkpoint()
                raise_end(node.end, node.place)
                return ("value", node.place, outcomes)
        finally:
            if gate is not None:
                gate.ended.set()

    async def call_children(self, node: Node, where: tuple[int, ...]) -> tuple[Outcome, ...]:
        outcomes: list[Outcome] = [()] * len(node.children)
        if not node.at_once:
            context, shared = context_to_share(), tuple[int, ...]()
            for number, child in enumerate(node.children):
                outcomes[number], shared = await self.call(child, (*where, number), context, shared)
                self.let_through(node, outcomes[number])
            return tuple(outcomes)

        async def call_one(number: int, child: Node) -> None:
            outcomes[number], _ = await self.call(child, (*where, number), None, ())

        async with anyio.create_task_group() as tasks:
            for number, child in enumerate(node.children):
                tasks.start_soon(call_one, number, child)
        return tuple(outcomes)

    def let_through(self, node: Node, outcome: Outcome) -> None:
        if node.lets_through and outcome[0] in ("error", "exit"):
            raise_end(*outcome)

    # The calls.

    def options(self, node: Node, context: Context | None) -> dict[str, Any]:
        options: dict[str, Any] = {"timeout": SHORT_SECONDS if node.fate == "times out" else LONG_SECONDS}
        if node.place == "thread":
            options["limiter"] = self.limiters.get(node.limiter)
            options["abandon_on_cancel"] = node.fate == "abandoned"
        if context is not None and self.shares(node):
            options["context"] = context
        return options

    def shares(self, node: Node) -> bool:
        """Return whether a node runs in its siblings' context. A blocking one does not: abandoned, it would keep it."""
        return node.shares_context and node.place in ("thread", "loop") and not blocks(node)

    def needs_options(self, node: Node, context: Context | None) -> bool:
        return (
            node.with_options
            or node.fate in ("times out", "abandoned")
            or (node.place == "thread" and node.limiter != "default")
            or (context is not None and self.shares(node))
        )

    def gate_of(self, node: Node, where: tuple[int, ...]) -> Gate | None:
        if not blocks(node):
            return None
        gate = Gate(threading.Event(), threading.Event(), threading.Event())
        self.gates.append((where, gate))
        if any(where[: len(each)] == each for each in self.left.copy()):
            gate.opened.set()
        return gate

    def leave(self, where: tuple[int, ...]) -> None:
        """Let go what blocks in the items beyond the last one taken: closing an iterator cancels that, and waits."""
        self.left.append(where)  # first: `gate_of` adds its gate and then looks here
        for below, gate in self.gates.copy():
            if below[: len(where)] == where:
                gate.opened.set()

    def call_sync(
        self, node: Node, where: tuple[int, ...], context: Context, shared: tuple[int, ...]
    ) -> tuple[Outcome, tuple[int, ...]]:
        """Call *node* from sync code. Return its outcome, and the siblings that have shared the context so far."""
        gate = self.gate_of(node, where)
        siblings = shared if self.shares(node) else None
        try:
            outcome = self.make_sync_call(node, where, gate, context, siblings)
        except BaseException as exc:
            outcome = as_outcome(exc)
        self.check_the_end(node, where, gate)
        return outcome, shared if siblings is None else (*shared, where[-1])

    def make_sync_call(
        self,
        node: Node,
        where: tuple[int, ...],
        gate: Gate | None,
        context: Context,
        siblings: tuple[int, ...] | None,
    ) -> Outcome:
        arguments: tuple[Any, ...] = (node, where, gate, siblings)
        options = self.options(node, context) if self.needs_options(node, context) else None
        result: Outcome
        if node.place == "process":
            process_arguments = (node.end, node.place, HANG_SECONDS * blocks(node))
            if options is not None:
                return in_processpool(leaf, **options).sync(*process_arguments)
            return run_in_processpool_sync(leaf, *process_arguments)
        if node.place == "thread":
            if options is not None:
                return in_threadpool(self.sync_function, **options).sync(*arguments)
            return run_in_threadpool_sync(self.sync_function, *arguments)
        if node.place == "executor":
            if options is not None:
                return in_executor(self.executor, self.sync_function, **options).sync(*arguments)
            return run_in_executor_sync(self.executor, self.sync_function, *arguments)
        if node.place == "iterator":
            taken: list[Outcome] = []
            closed = threading.Event()
            steps = iterate_in_eventloop_sync(self.async_steps(node, where, closed))
            for outcome in steps:
                if len(taken) == node.taken:
                    break
                taken.append(outcome)
            if PYPY:
                steps.close()
            del steps  # which closes it on CPython
            if not closed.is_set():
                self.problem(f"{where} is not closed")
            return ("value", node.place, tuple(taken))
        if node.place == "context manager":
            left: list[Outcome] = []
            with contextmanager_in_eventloop_sync(self.async_manager(node, where, left)) as entered:
                pass
            return ("value", node.place, entered, tuple(left))
        if options is not None:
            result = in_eventloop(self.async_function, **options).sync(*arguments)
            return result
        return run_in_eventloop_sync(self.async_function, *arguments)

    async def call(
        self, node: Node, where: tuple[int, ...], context: Context | None, shared: tuple[int, ...]
    ) -> tuple[Outcome, tuple[int, ...]]:
        """Call *node* from async code. Return its outcome, and the siblings that have shared the context so far."""
        gate = self.gate_of(node, where)
        siblings = shared if context is not None and self.shares(node) else None
        call = partial(self.make_call, node, where, gate, context, siblings)
        if node.fate in ("runs", "times out"):
            outcome = await self.captured(call)
        else:
            assert gate is not None, "it blocks"
            outcome = await self.call_and_cancel(call, node, gate)
        self.check_the_end(node, where, gate)
        return outcome, shared if siblings is None else (*shared, where[-1])

    async def captured(self, call: Callable[[], Any]) -> Outcome:
        try:
            outcome: Outcome = await call()
        except (NodeError, NodeExit, CallTimeoutError) as exc:
            return as_outcome(exc)
        return outcome

    async def call_and_cancel(self, call: Callable[[], Any], node: Node, gate: Gate) -> Outcome:
        """Make a call, cancel it when its function runs, and let the function end."""
        outcomes: list[Outcome] = []
        done = anyio.Event()
        scope = anyio.CancelScope()
        natively = node.fate == "cancelled natively" and self.asyncio_only

        async def make() -> None:
            try:
                with scope:
                    outcomes.append(await self.captured(call))
                if scope.cancelled_caught:
                    outcomes.append(("cancelled",))
            finally:
                done.set()

        async def cancel_when_started(cancel: Callable[[], object]) -> None:
            while not gate.started.is_set() and not done.is_set():
                await anyio.sleep(0.001)
            cancel()
            if node.fate != "abandoned":
                gate.opened.set()  # the call waits for its function, unless it is abandoned

        if natively:
            import asyncio

            task = asyncio.ensure_future(make())
            await cancel_when_started(task.cancel)
            try:
                await task
            except asyncio.CancelledError:
                outcomes.append(("cancelled",))
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(make)
                await cancel_when_started(scope.cancel)
        return outcomes[-1] if outcomes else ()

    def check_the_end(self, node: Node, where: tuple[int, ...], gate: Gate | None) -> None:
        """After a call, check that its function has ended if the call had to wait for it. Then let the function end."""
        if gate is None:
            return
        waited_for = node.place in ("loop", "background") or node.fate in ("cancelled", "cancelled natively")
        if waited_for and gate.started.is_set() and not gate.ended.is_set():
            self.problem(f"{where} has not been waited for")
        if not waited_for and node.place == "thread":
            with self.lock:
                self.excused += 1
        gate.opened.set()

    async def make_call(
        self,
        node: Node,
        where: tuple[int, ...],
        gate: Gate | None,
        context: Context | None,
        siblings: tuple[int, ...] | None,
    ) -> Outcome:
        arguments: tuple[Any, ...] = (node, where, gate, siblings)
        options = self.options(node, context) if self.needs_options(node, context) else None
        if node.place == "process":
            process_arguments = (node.end, node.place, HANG_SECONDS * blocks(node))
            if options is not None:
                return await in_processpool(leaf, **options)(*process_arguments)
            return await run_in_processpool(leaf, *process_arguments)
        if node.place == "thread":
            if options is not None:
                return await in_threadpool(self.sync_function, **options)(*arguments)
            return await run_in_threadpool(self.sync_function, *arguments)
        if node.place == "executor":
            if options is not None:
                return await in_executor(self.executor, self.sync_function, **options)(*arguments)
            return await run_in_executor(self.executor, self.sync_function, *arguments)
        if node.place == "iterator":
            taken: list[Outcome] = []
            closed = threading.Event()
            items = iterate_in_threadpool(self.sync_steps(node, where, closed), prefetch=node.prefetch)
            async for outcome in items:
                if len(taken) == node.taken:
                    self.leave(where)
                    break
                taken.append(outcome)
            await items.aclose()
            if not closed.is_set():
                self.problem(f"{where} is not closed")
            return ("value", node.place, tuple(taken))
        if node.place == "context manager":
            left: list[Outcome] = []
            async with contextmanager_in_threadpool(self.sync_manager(node, where, left)) as entered:
                pass
            return ("value", node.place, entered, tuple(left))
        if node.place == "background":
            return await run_in_eventloop(self.async_function, *arguments)
        if options is not None:
            return await in_eventloop(self.async_function, **options)(*arguments)
        return await self.async_function(*arguments)

    # Iterators and context managers, which run their children in steps.

    def sync_steps(self, node: Node, where: tuple[int, ...], closed: threading.Event) -> Iterator[Outcome]:
        token = path.set(where)
        try:
            for number, child in enumerate(node.children):
                yield self.call_sync(child, (*where, number), context_to_share(), ())[0]
        finally:
            path.reset(token)
            closed.set()

    async def async_steps(self, node: Node, where: tuple[int, ...], closed: threading.Event) -> AsyncIterator[Outcome]:
        token = path.set(where)
        try:
            for number, child in enumerate(node.children):
                outcome, _ = await self.call(child, (*where, number), context_to_share(), ())
                yield outcome
        finally:
            path.reset(token)
            closed.set()

    @contextmanager
    def sync_manager(self, node: Node, where: tuple[int, ...], left: list[Outcome]) -> Iterator[tuple[Outcome, ...]]:
        token = path.set(where)
        calls = [
            partial(self.call_sync, child, (*where, number), context_to_share(), ())
            for number, child in enumerate(node.children)
        ]
        try:
            yield tuple([call()[0] for call in calls[:1]])
            left.extend([call()[0] for call in calls[1:]])
        finally:
            path.reset(token)

    @asynccontextmanager
    async def async_manager(
        self, node: Node, where: tuple[int, ...], left: list[Outcome]
    ) -> AsyncIterator[tuple[Outcome, ...]]:
        token = path.set(where)
        calls = [
            partial(self.call, child, (*where, number), context_to_share(), ())
            for number, child in enumerate(node.children)
        ]
        try:
            yield tuple([(await call())[0] for call in calls[:1]])
            left.extend([(await call())[0] for call in calls[1:]])
        finally:
            path.reset(token)
