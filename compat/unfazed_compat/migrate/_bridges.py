"""Rewrite "bridges" to `iterate_in_threadpool`.

A bridge is a hand-written async generator that fetches each item of a sync iterator in a thread. It is rewritten if it
does nothing else: it makes an iterator, fetches the next item in a loop, and yields it. To find the end, it calls
`next` with a sentinel, or a function that turns `StopIteration` into `StopAsyncIteration`. Bridges of any other form
are reported.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import libcst as cst
import libcst.matchers as m

from ._bindings import Use, certain
from ._module import full_name, has_comment
from ._wrappings import read

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._bindings import Binding
    from ._plan import Plan

_HELPER = "iterate_in_threadpool"

_RAISES_END = m.ExceptHandler(
    type=m.Name("StopIteration"),
    body=m.IndentedBlock(
        [m.SimpleStatementLine([m.Raise(exc=m.Name("StopAsyncIteration") | m.Call(m.Name("StopAsyncIteration"), []))])]
    ),
)
_STEP = m.FunctionDef(
    asynchronous=None,
    decorators=[],
    body=m.IndentedBlock(
        [
            m.Try(
                body=m.IndentedBlock([m.SimpleStatementLine([m.Return(m.Call(m.Name("next"), [m.Arg(m.Name())]))])]),
                handlers=[_RAISES_END],
                orelse=None,
                finalbody=None,
            )
        ]
    ),
)
_SENTINEL = m.SimpleStatementLine(
    [m.Assign([m.AssignTarget(m.SaveMatchedNode(m.Name(), "sentinel"))], m.Call(m.Name("object"), []))]
)
_ITERATOR = m.SimpleStatementLine(
    [
        m.Assign(
            [m.AssignTarget(m.SaveMatchedNode(m.Name(), "iterator"))],
            m.OneOf(
                m.Call(m.Name("iter"), [m.Arg(m.SaveMatchedNode(m.DoNotCare(), "iterable"), keyword=None, star="")]),
                m.Await(
                    m.SaveMatchedNode(
                        m.Call(
                            m.Call(args=[m.Arg(m.Name("iter")), m.ZeroOrMore()]),
                            [m.Arg(m.SaveMatchedNode(m.DoNotCare(), "iterable"), keyword=None, star="")],
                        ),
                        "call",
                    )
                ),
            ),
        )
    ]
)
_LEAVES = m.IndentedBlock([m.SimpleStatementLine([m.Break() | m.Return(value=None)])])
_YIELDS = m.SimpleStatementLine([m.Expr(m.Yield(m.SaveMatchedNode(m.Name(), "yielded")))])
_FETCH = m.SaveMatchedNode(m.Await(m.Call(m.Call())), "fetch")
_FETCHES = m.SimpleStatementLine([m.Assign([m.AssignTarget(m.SaveMatchedNode(m.Name(), "item"))], _FETCH)])
_YIELDS_FETCH = m.SimpleStatementLine([m.Expr(m.Yield(_FETCH))])


def _is(operator: m.BaseCompOpMatchType, left: m.BaseExpressionMatchType) -> m.Comparison:
    return m.Comparison(left, [m.ComparisonTarget(operator, m.SaveMatchedNode(m.Name(), "end"))])


_ENDED = m.If(_is(m.Is(), m.SaveMatchedNode(m.Name(), "compared")), _LEAVES, orelse=None)
_CAUGHT = m.ExceptHandler(type=m.Name("StopAsyncIteration"), name=None, body=_LEAVES)


def _tried(body: m.BaseSuiteMatchType) -> m.Try:
    return m.Try(body=body, handlers=[_CAUGHT], orelse=None, finalbody=None)


_FOREVER = m.Name("True") | m.Integer("1")
_LOOPS: tuple[m.While, ...] = (
    m.While(_FOREVER, m.IndentedBlock([_FETCHES, _ENDED, _YIELDS]), orelse=None),
    m.While(
        _is(m.IsNot(), m.NamedExpr(m.SaveMatchedNode(m.Name(), "item"), _FETCH)),
        m.IndentedBlock([_YIELDS]),
        orelse=None,
    ),
    m.While(_FOREVER, m.IndentedBlock([_tried(m.IndentedBlock([_YIELDS_FETCH]))]), orelse=None),
    m.While(_FOREVER, m.IndentedBlock([_tried(m.IndentedBlock([_FETCHES, _YIELDS]))]), orelse=None),
    m.While(_FOREVER, m.IndentedBlock([_tried(m.IndentedBlock([_FETCHES])), _YIELDS]), orelse=None),
)


@dataclass
class _Bridge:
    """The parts of a bridge that can be rewritten."""

    iterable: cst.BaseExpression
    item: str
    uses: list[Use]


def plan_bridges(plan: Plan, bindings: Sequence[Binding]) -> None:
    """Plan how to rewrite bridges, and report those of any other form."""
    module = plan.module
    uses: dict[cst.CSTNode, Use] = {
        use.node: use for binding in bindings if not binding.problem for use in binding.uses if certain(module, use)
    }
    if plan.options.native:
        for function in module.async_defs:
            bridge = _bridge(plan, function, uses)
            if bridge is not None:
                _rewrite(plan, function, bridge)
    for handler in module.end_handlers:
        step = module.enclosing_function(handler)
        if isinstance(step, cst.FunctionDef) and not step.asynchronous and step not in plan.left_out:
            plan.report(step, "an iterator bridge, by hand: write `iterate_in_threadpool(iterable)` in its place")


def _rewrite(plan: Plan, function: cst.FunctionDef, bridge: _Bridge) -> None:
    body = cst.ensure_type(function.body, cst.IndentedBlock)
    docstring = body.body[: _has_docstring(function)]
    call = cst.Call(cst.Name(_HELPER), [cst.Arg(bridge.iterable)])
    loop = cst.For(
        cst.Name(bridge.item),
        call,
        cst.IndentedBlock([cst.SimpleStatementLine([cst.Expr(cst.Yield(cst.Name(bridge.item)))])]),
        asynchronous=cst.Asynchronous(),
    )
    plan.replace(body, lambda updated: updated.with_changes(body=[*docstring, loop]))
    plan.left_out.update(each for each in body.body if isinstance(each, cst.FunctionDef))
    for use in bridge.uses:
        plan.gone.add(use)
        plan.helpers[use.binding].add(_HELPER)
    plan.counts["iterators"] += 1


def _has_docstring(function: cst.FunctionDef) -> bool:
    return function.get_docstring() is not None


def _bridge(plan: Plan, function: cst.FunctionDef, uses: dict[cst.CSTNode, Use]) -> _Bridge | None:
    """Return the parts of *function* if it is a bridge and does nothing else."""
    if not isinstance(function.body, cst.IndentedBlock):
        return None
    lines = list(function.body.body[_has_docstring(function) :])
    if not lines:
        return None
    loop = lines.pop()
    found = next(filter(None, (m.extract(loop, each) for each in _LOOPS)), None)
    if found is None:
        return None
    if has_comment(function.body):
        return None
    fetch = cst.ensure_type(cst.ensure_type(found["fetch"], cst.Await).expression, cst.Call)
    end = full_name(_one(found.get("end")))
    item = full_name(_one(found.get("item"))) or "item"
    names = {full_name(_one(found.get(each))) for each in ("compared", "yielded")} - {""}
    if names - {item}:
        return None
    ours = [_wrapped(plan, fetch, uses)]
    iterator, sentinel, step = "", "", ""
    iterable: cst.CSTNode | None = None
    for line in lines:
        made = m.extract(line, _ITERATOR)
        marked = m.extract(line, _SENTINEL)
        if isinstance(line, cst.FunctionDef) and m.matches(line, _STEP) and not step:
            step = line.name.value
        elif marked is not None and not sentinel:
            sentinel = full_name(_one(marked["sentinel"]))
        elif made is not None and iterable is None:
            iterator = full_name(_one(made["iterator"]))
            iterable = _one(made["iterable"])
            if "call" in made:
                ours.append(_wrapped(plan, cst.ensure_type(made["call"], cst.Call), uses))
        else:
            return None
    if not isinstance(iterable, cst.BaseExpression) or not all(ours) or not _steps(plan, fetch, iterator, end, step):
        return None
    if end and sentinel != end and not _is_object(plan, fetch, end):
        return None
    if item in {each.value for each in m.findall(iterable, m.Name()) if isinstance(each, cst.Name)}:
        return None
    if not plan.is_free(_HELPER, *(each for each in ours if each is not None)):
        return None
    return _Bridge(iterable, item, [each for each in ours if each is not None])


def _one(node: cst.CSTNode | Sequence[cst.CSTNode] | None) -> cst.CSTNode | None:
    return node if isinstance(node, cst.CSTNode) else None


def _wrapped(plan: Plan, call: cst.Call, uses: dict[cst.CSTNode, Use]) -> Use | None:
    """Return the `sync_to_async` in *call*, if the function may run in any thread."""
    inner = cst.ensure_type(call.func, cst.Call)
    use = uses.get(inner.func)
    if use is None or use.name != "sync_to_async" or use.name in plan.options.patched:
        return None
    given = read(use.name, inner)
    if given is None or given.function is None or given.options.keys() - {"thread_sensitive"}:
        return None
    sensitive = given.options.get("thread_sensitive")
    free = sensitive is not None and full_name(sensitive.value) == "False"
    return use if free or plan.options.no_affinity else None


def _steps(plan: Plan, fetch: cst.Call, iterator: str, end: str, step: str) -> bool:
    """Return whether *fetch* gets the next item of *iterator* and signals the end as its loop expects."""
    function = cst.ensure_type(fetch.func, cst.Call).args[0].value
    given = [full_name(each.value) for each in fetch.args if each.keyword is None and not each.star]
    if len(given) != len(fetch.args):
        return False
    if plan.module.is_builtin(function, frozenset({"next"})):
        return bool(end) and given == [iterator, end]
    if end or not isinstance(function, cst.Name):
        return False
    definition = plan.module.definition(function, function.value)
    if not isinstance(definition, cst.FunctionDef) or not m.matches(definition, _STEP):
        return False
    if step and function.value != step:
        return False
    parameters = [each.name.value for each in definition.params.params]
    asked = m.findall(definition.body, m.Call(m.Name("next")))
    name = full_name(cst.ensure_type(asked[0], cst.Call).args[0].value)
    return (parameters == [name] and given == [iterator]) or (not parameters and not given and name == iterator)


def _is_object(plan: Plan, node: cst.CSTNode, name: str) -> bool:
    """Return whether *name* is bound to a fresh `object()`, and so can serve as a sentinel."""
    definition = plan.module.definition(node, name)
    if definition is None or not plan.module.is_code(definition):
        return False
    return any(m.matches(each, _SENTINEL) for each in plan.module.ancestors(definition))
