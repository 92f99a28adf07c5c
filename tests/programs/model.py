"""Random trees of calls: compare the library with a plain sequential program.

A `Node` is one call: where it runs, which children it calls, and how it ends. `expected` computes its outcome without
concurrency. `Run`, in `model_run.py`, makes the calls with the library. A node in a thread calls its children from
sync code. A node in an event loop calls them from async code, at the same time if `at_once` is set.

A node that depends on another node waits for an event. It fails after a timeout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from process_functions import NodeError, NodeExit

from unfazed.concurrency import CallTimeoutError

HANG_SECONDS = 20.0  # only a deadlock takes that long
SHORT_SECONDS = 0.03  # a timeout that must expire
LONG_SECONDS = 600.0  # a timeout that must not expire

# Where a node runs. The last two run their children in the steps of an iterator, or when they are entered and left.
PLACES = ("thread", "loop", "executor", "background", "process", "iterator", "context manager")
ENDS = ("value", "error", "exit")
# What happens to the call while its function blocks, or waits in its own call. Most calls just run.
FATES = ("runs", "times out", "cancelled", "cancelled natively", "abandoned")
LIMITS = ("default", "one", "two")

Outcome = tuple[Any, ...]


@dataclass(frozen=True)
class Node:
    """One call."""

    place: str
    children: tuple[Node, ...] = ()
    at_once: bool = False  # whether an async node calls its children at the same time
    end: str = "value"
    lets_through: bool = False  # whether it fails with its first child that fails, as without `try`
    fate: str = "runs"
    waits_in_a_call: bool = False  # how it blocks, if it blocks: in a call, or for an event
    limiter: str = "default"
    with_options: bool = False  # whether it is called through a wrapper without need
    shares_context: bool = False  # with its siblings
    prefetch: int = 0
    taken: int = 99  # how many items the consumer of an iterator takes


def is_sync(node: Node) -> bool:
    return node.place in ("thread", "executor", "process")


def blocks(node: Node) -> bool:
    return node.fate != "runs"


def fitted(node: Node, parent_is_sync: bool) -> Node:
    """Return *node* with only the options that are possible under its parent, and the same for its children."""
    place, fate, changes = node.place, node.fate, dict[str, Any]()
    if fate == "abandoned" and place != "thread":
        fate = "cancelled"
    if (
        place in ("iterator", "context manager")
        or (parent_is_sync and fate != "times out")
        or (place == "process" and fate != "times out")
        or (place == "background" and fate == "times out")  # no timeout option
    ):
        fate = "runs"
    if place in ("iterator", "context manager"):
        changes = {"at_once": False, "end": "value", "lets_through": False}
    elif place == "process":
        changes = {"children": ()}
    elif place == "executor":
        changes = {"waits_in_a_call": False}  # its threads belong to no loop, so nothing cancels their calls
    node = Node(**{**vars(node), **changes, "fate": fate})
    if blocks(node):  # it must begin to block before it times out
        node = Node(**{**vars(node), "lets_through": False, "children": node.children * (node.fate != "times out")})
    # An iterator and a context manager called from async code run their children in sync code, and the reverse.
    inner_is_sync = is_sync(node) if node.place not in ("iterator", "context manager") else not parent_is_sync
    children = tuple(fitted(child, inner_is_sync) for child in node.children)
    return Node(**{**vars(node), "children": children, "at_once": node.at_once and not inner_is_sync})


def trees(max_leaves: int = 12) -> st.SearchStrategy[Node]:
    options = {
        "place": st.sampled_from(("thread", "thread", "loop", "loop", *PLACES)),
        "at_once": st.booleans(),
        "end": st.sampled_from(("value", "value", *ENDS)),
        "lets_through": st.booleans(),
        "fate": st.sampled_from(("runs", "runs", "runs", *FATES)),
        "waits_in_a_call": st.booleans(),
        "limiter": st.sampled_from(LIMITS),
        "with_options": st.booleans(),
        "shares_context": st.booleans(),
        "prefetch": st.sampled_from((0, 1, 3)),
        "taken": st.sampled_from((99, 99, 0, 1, 2)),
    }
    leaves = st.builds(Node, **options)
    return st.recursive(
        leaves,
        lambda below: st.builds(Node, children=st.lists(below, min_size=1, max_size=4).map(tuple), **options),
        max_leaves=max_leaves,
    )


# The outcome in a plain sequential program.


def expected(node: Node) -> Outcome:
    """Return the outcome of a call: a value with the outcomes of the children, or how it failed."""
    if node.fate == "times out":
        return ("timeout", SHORT_SECONDS)
    if blocks(node):
        return ("cancelled",)
    if node.place == "iterator":
        taken = [expected(child) for child in node.children][: node.taken]
        return ("value", node.place, tuple(taken))
    outcomes = tuple(expected(child) for child in node.children)
    if node.place == "context manager":
        return ("value", node.place, outcomes[:1], outcomes[1:])
    if node.lets_through and not node.at_once:
        for outcome in outcomes:
            if outcome[0] in ("error", "exit"):
                return outcome
    return ("value", node.place, outcomes) if node.end == "value" else (node.end, node.place)


def as_outcome(exc: BaseException) -> Outcome:
    if isinstance(exc, CallTimeoutError):
        return ("timeout", exc.seconds)
    if isinstance(exc, NodeError):
        return ("error", *exc.args)
    if isinstance(exc, NodeExit):
        return ("exit", *exc.args)
    if type(exc).__name__ in ("CancelledError", "Cancelled"):
        return ("cancelled",)
    raise exc
