"""Rewrite calls, stored wrappers and decorators to the native helpers, if that is safe.

Thread-sensitive calls stay with the adapter, unless `--no-affinity` names the path.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import libcst as cst
from libcst.metadata import Assignment, ClassScope, GlobalScope

from ._bindings import Binding, Use, certain, certain_name
from ._findings import wrong_for_thread
from ._functions import function_of, sets_context, uses_any
from ._module import full_name
from ._wrappings import EXECUTOR, LOOP, THREAD, Place, Wrapping, is_simple, loses_comment, make_call, make_wrapper, read

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from libcst.metadata import BaseAssignment

    from ._functions import Function
    from ._plan import Plan

_WRAPPERS = ("sync_to_async", "database_sync_to_async", "async_to_sync")

# Attributes that asgiref's wrappers have and ours do not.
_ATTRIBUTES = frozenset({"_executor", "_thread_sensitive", "awaitable", "context", "force_new_loop", "func"})

_MAY_BE_IN_TRANSACTION = (
    "this file uses Django's ORM: `async_to_sync` stays, for it keeps thread-sensitive code in the calling thread, and "
    "so in its transaction"
)
_SETS_CONTEXT = "it sets context variables, which native helpers do not bring back"


class _Site:
    """One use of a wrapper: called, stored, passed on, or used as a decorator."""

    def __init__(self, plan: Plan, use: Use) -> None:
        module = plan.module
        self.use = use
        self.node: cst.CSTNode = use.node
        self.wrapping: Wrapping | None = Wrapping(None, {})
        self.call: cst.Call | None = None
        parent = module.parent(self.node)
        if isinstance(parent, cst.Call) and parent.func is self.node:
            self.node = self.call = parent
            self.wrapping = read(use.name, parent)
            parent = module.parent(parent)
        self.outer = parent if isinstance(parent, cst.Call) and parent.func is self.node else None
        self.decorated: cst.FunctionDef | None = None
        if isinstance(parent, cst.Decorator):
            holder = module.parent(parent)
            self.decorated = holder if isinstance(holder, cst.FunctionDef) else None
        self.is_passed_on = self.call is None and self.decorated is None

    @property
    def function(self) -> cst.BaseExpression | cst.FunctionDef | None:
        """The wrapped function or the expression for it; `None` if the code does not show it."""
        if self.decorated is not None:
            return self.decorated
        if self.wrapping is None or self.wrapping.function is None:
            return None
        return self.wrapping.function.value


def _sites(plan: Plan, bindings: Sequence[Binding]) -> Iterator[_Site]:
    for binding in bindings:
        for use in binding.uses:
            if use.name in _WRAPPERS:
                yield _Site(plan, use)


def plan_calls(plan: Plan, bindings: Sequence[Binding]) -> None:
    """Report wrong calls, and plan the native form of those that have one."""
    sites = list(_sites(plan, bindings))
    affine: set[cst.CSTNode] = {site.use.node for site in sites if _is_affine(site)}
    for site in sites:
        if site.use in plan.gone:
            continue
        if not certain(plan.module, site.use):
            if plan.options.native:
                plan.report(site.use.node, f"`{site.use.name}` may be something else here")
            continue
        problem = _problem(plan, site)
        if not problem and plan.options.native and not site.use.binding.problem:
            problem = _plan_native(plan, site, affine)
        if problem:
            plan.report(site.use.node, problem)


def _is_affine(site: _Site) -> bool:
    """Return whether the function is thread-sensitive, or may be."""
    if site.use.name == "async_to_sync":
        return False
    option = None if site.wrapping is None else site.wrapping.options.get("thread_sensitive")
    return option is None or full_name(option.value) != "False" or site.use.name == "database_sync_to_async"


def _problem(plan: Plan, site: _Site) -> str:
    """Return what is wrong at *site*, with `--native` or without."""
    function = site.function
    if site.use.name == "async_to_sync":
        if site.outer is not None and plan.module.runs_in_loop(site.outer):
            return "`async_to_sync` in async code is an error: await the function"
        return ""
    return "" if function is None else wrong_for_thread(plan, site.use, function)


def _plan_native(plan: Plan, site: _Site, affine: set[cst.CSTNode]) -> str:
    """Plan the native form, or return why there is none; an empty text means no report."""
    name = site.use.name
    if name in plan.options.patched:
        return f"other files name the `{name}` of this one: it stays"
    if name == "database_sync_to_async":
        plan.counts["stays"] += 1
        return ""
    if site.is_passed_on:
        return f"`{name}` is passed on"
    if site.wrapping is None:
        return f"what `{name}` is given cannot be told"
    if site.call is not None and loses_comment(site.call, site.wrapping):
        return "a comment is in the way"
    if name == "async_to_sync":
        if not plan.options.no_affinity and plan.uses_orm:
            plan.counts["in_orm"] += 1
            return _MAY_BE_IN_TRANSACTION
        return _plan_loop(plan, site, site.wrapping, affine)
    return _plan_thread(plan, site, site.wrapping)


def _plan_thread(plan: Plan, site: _Site, wrapping: Wrapping) -> str:
    """Plan how to rewrite `sync_to_async`, or return why it stays."""
    sensitive = wrapping.options.get("thread_sensitive")
    if set(wrapping.options) - {"thread_sensitive", "executor", "context"}:
        return "`sync_to_async` has no such option"
    if sensitive is not None and full_name(sensitive.value) not in ("True", "False"):
        return f"whether it is thread-sensitive depends on `{plan.module.code(sensitive.value)}`"
    executor, context = wrapping.value("executor"), wrapping.value("context")
    if sensitive is None or full_name(sensitive.value) == "True":
        if executor is not None:
            return "`executor=` needs `thread_sensitive=False`"
        if not plan.options.no_affinity:
            plan.counts["stays"] += 1
            return ""
    if executor is not None and context is not None:
        return "no helper takes both an executor and a context"
    if executor is not None and _may_be_none(plan, executor):
        return f"`{plan.module.code(executor)}` may be `None`"
    function = site.function
    values = [] if wrapping.function is None or executor is None else [executor, wrapping.function.value]
    if values and not any(map(is_simple, values)):
        return "the executor would be made before the function"
    if context is None and function is not None and _sets_context(plan, function):
        return _SETS_CONTEXT
    place = THREAD if executor is None else EXECUTOR
    if site.outer is not None and wrapping.function is not None and context is None:
        return _rewrite_call(plan, site, wrapping, place)
    return _rewrite_wrapper(plan, site, wrapping, place)


def _plan_loop(plan: Plan, site: _Site, wrapping: Wrapping, affine: set[cst.CSTNode]) -> str:
    """Plan how to rewrite `async_to_sync`, or return why it stays."""
    if wrapping.options.keys() - {"force_new_loop"}:
        return "`async_to_sync` has no such option"
    fresh = wrapping.options.get("force_new_loop")
    if fresh is not None and full_name(fresh.value) != "False":
        return "no helper makes a loop for one call: an `EventLoopThread` is one of your own"
    function = site.function
    known = function if isinstance(function, cst.FunctionDef) else _known(plan, function)
    if known is not None and sets_context(plan.module, known):
        return _SETS_CONTEXT
    if known is not None and not plan.options.no_affinity and uses_any(plan.module, known, affine):
        return "its function calls thread-sensitive code, which belongs into this thread"
    if site.decorated is not None:
        return _rewrite_decorated(plan, site, site.decorated)
    if site.outer is not None and wrapping.function is not None:
        return _rewrite_call(plan, site, wrapping, LOOP)
    if wrapping.function is None:
        return "`async_to_sync` is passed on"
    if _may_become_method(plan, site):
        return "what is stored may be called as a method, which `.sync` does not become"
    return _rewrite_wrapper(plan, site, wrapping, LOOP, sync=True)


def _known(plan: Plan, node: cst.BaseExpression | None) -> Function | None:
    return None if node is None else function_of(plan.module, node)


def _sets_context(plan: Plan, function: cst.BaseExpression | cst.FunctionDef) -> bool:
    known = function if isinstance(function, cst.FunctionDef) else _known(plan, function)
    return known is not None and sets_context(plan.module, known)


def _may_be_none(plan: Plan, node: cst.BaseExpression) -> bool:
    """Return whether *node* is a parameter, or a variable that may be `None`."""
    if not isinstance(node, cst.Name):
        return False
    module = plan.module
    for scope in module.scopes_up(module.scope(node)):
        found = module.assignments(scope, node.value)
        if found:
            return len(found) > 1 or _binds_none(plan, found[0])
    return False


def _binds_none(plan: Plan, assignment: BaseAssignment) -> bool:
    """Return whether *assignment* is a parameter, sets `None`, or only declares a type."""
    definition = assignment.node if isinstance(assignment, Assignment) else None
    if isinstance(definition, cst.Name):
        statement = plan.module.parent(definition)
        if isinstance(statement, cst.AssignTarget):
            statement = plan.module.parent(statement)
        if isinstance(statement, (cst.Assign, cst.AnnAssign)):
            return statement.value is None or full_name(statement.value) == "None"
    return isinstance(definition, cst.Param)


def _may_become_method(plan: Plan, site: _Site) -> bool:
    module = plan.module
    if isinstance(module.scope(site.node), ClassScope):
        return True
    parent = module.parent(site.node)
    if isinstance(parent, cst.Arg):
        call = module.parent(parent)
        return isinstance(call, cst.Call) and full_name(call.func) == "setattr"
    if isinstance(parent, cst.Assign):
        targets = [each.target for each in parent.targets]
        return any(isinstance(each, cst.Attribute) and full_name(each.value) != "self" for each in targets)
    return False


def _rewrite_call(plan: Plan, site: _Site, wrapping: Wrapping, place: Place) -> str:
    assert site.outer is not None, "it is called"
    assert site.call is not None, "with a function"
    if not plan.is_free(place.call, site.use):
        return f"`{place.call}` is something else here"
    plan.replace(site.outer, make_call(place, wrapping, site.call))
    return _done(plan, site, place.call, "calls")


def _rewrite_wrapper(plan: Plan, site: _Site, wrapping: Wrapping, place: Place, *, sync: bool = False) -> str:
    if not plan.is_free(place.wrap, site.use):
        return f"`{place.wrap}` is something else here"
    attribute = _attribute_of_asgiref(plan, site)
    if attribute:
        return f"`{attribute}` is used, which native wrappers do not have"
    if site.call is None:
        plan.replace(site.use.node, lambda _: cst.Name(place.wrap))
    else:
        in_decorator = site.decorated is not None
        plan.replace(site.call, make_wrapper(place, wrapping, site.call, in_decorator=in_decorator, sync=sync))
    return _done(plan, site, place.wrap, "wrappers" if site.decorated is None else "decorators")


def _rewrite_decorated(plan: Plan, site: _Site, function: cst.FunctionDef) -> str:
    """Rewrite `@async_to_sync` and every use of the decorated function, if all uses are in this file."""
    module, name = plan.module, function.name.value
    scope = module.scope(function)
    if isinstance(scope, ClassScope):
        return f"`{name}` is a method: write `@in_eventloop`, and `.sync(...)` where it is called from sync code"
    if len(function.decorators) > 1:
        return f"other decorators take `{name}` as well: write `@in_eventloop`, and give them `{name}.sync`"
    is_public = isinstance(scope, GlobalScope) and (not name.startswith("_") or name in plan.options.exported)
    if is_public:
        return f"others may import `{name}`: write `@in_eventloop`, and `{name}.sync(...)` in sync code"
    uses = [access.node for each in module.assignments(scope, name) for access in each.references]
    if not certain_name(module, scope, name) or not all(isinstance(each, cst.Name) for each in uses):
        return f"`{name}` may be something else where it is used"
    if any(isinstance(module.parent(each), (cst.Attribute, cst.Del)) for each in uses):
        return f"attributes of `{name}` are used: write `@in_eventloop`, and `{name}.sync(...)` in sync code"
    if not plan.is_free(LOOP.wrap, site.use):
        return f"`{LOOP.wrap}` is something else here"
    for each in uses:
        plan.replace(each, lambda updated: cst.Attribute(updated, cst.Name("sync")))
    plan.replace(site.node, lambda _: cst.Name(LOOP.wrap))
    return _done(plan, site, LOOP.wrap, "decorators")


def _done(plan: Plan, site: _Site, helper: str, kind: str) -> str:
    plan.gone.add(site.use)
    plan.helpers[site.use.binding].add(helper)
    plan.counts[kind] += 1
    return ""


def _attribute_of_asgiref(plan: Plan, site: _Site) -> str:
    """Return an attribute of the wrapper that the file uses and that ours may not have."""
    module = plan.module
    parent = module.parent(site.node)
    if isinstance(parent, cst.Attribute):
        return full_name(parent) or parent.attr.value
    name: cst.BaseExpression | None = None
    if site.decorated is not None:
        name = site.decorated.name
    elif isinstance(parent, cst.Assign) and len(parent.targets) == 1:
        name = parent.targets[0].target
    if not isinstance(name, cst.Name):
        return ""
    scope = module.scope(site.decorated or site.node)
    for assignment in module.assignments(scope, name.value):
        for access in assignment.references:
            above = module.parent(access.node) if module.is_code(access.node) else None
            if isinstance(above, cst.Attribute) and above.value is access.node and above.attr.value in _ATTRIBUTES:
                return full_name(above)
    return ""
