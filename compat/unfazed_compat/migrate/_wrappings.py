"""Read the arguments of a wrapper, and write the call of the helper that replaces it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import libcst as cst

from ._module import full_name, has_comment

if TYPE_CHECKING:
    from collections.abc import Callable

_KEYWORDS = {"sync_to_async": "func", "async_to_sync": "awaitable", "database_sync_to_async": "func"}


class Wrapping(NamedTuple):
    """The arguments of a wrapper: the function and the options."""

    function: cst.Arg | None
    options: dict[str, cst.Arg]

    def value(self, name: str) -> cst.BaseExpression | None:
        """Return the value of an option, or `None` if it is missing or the literal `None`."""
        option = self.options.get(name)
        if option is None or full_name(option.value) == "None":
            return None
        return option.value


class Place(NamedTuple):
    """The helpers for one place to run, and the option that becomes the argument before the function."""

    call: str
    wrap: str
    first: str = ""


THREAD = Place("run_in_threadpool", "in_threadpool")
EXECUTOR = Place("run_in_executor", "in_executor", "executor")
LOOP = Place("run_in_eventloop_sync", "in_eventloop")


def read(name: str, call: cst.Call) -> Wrapping | None:
    """Return the arguments that *call* passes to the wrapper *name*, or `None` if they are not clear."""
    function: cst.Arg | None = None
    options: dict[str, cst.Arg] = {}
    for argument in call.args:
        keyword = "" if argument.keyword is None else argument.keyword.value
        is_function = keyword in ("", _KEYWORDS[name])
        if argument.star or (is_function and function is not None):
            return None
        if is_function:
            function = argument
        else:
            options[keyword] = argument
    return Wrapping(function, options)


def loses_comment(call: cst.Call, wrapping: Wrapping) -> bool:
    """Return whether *call* has a comment outside of the wrapped function."""
    empty = cst.Name("function")
    if wrapping.function is None:
        return has_comment(call)
    return has_comment(call.with_deep_changes(wrapping.function, value=empty))


def make_call(place: Place, wrapping: Wrapping, call: cst.Call) -> Callable[[Any], cst.CSTNode]:
    """Return a function that turns `sync_to_async(f)(x)` into `run_in_threadpool(f, x)`."""
    wanted = [*([wrapping.options[place.first]] if place.first else []), wrapping.function]
    positions = [call.args.index(each) for each in wanted if each is not None]

    def make(updated: Any) -> cst.CSTNode:
        inner: cst.Call = updated.func
        outer: cst.Call = updated
        space: Any = outer.whitespace_before_args
        if not isinstance(space, cst.ParenthesizedWhitespace) or has_comment(space):
            space = cst.SimpleWhitespace(" ")
        given = [cst.Arg(inner.args[each].value, comma=cst.Comma(whitespace_after=space)) for each in positions]
        rest = [_parenthesized(each) for each in outer.args]
        if not rest:
            given[-1] = given[-1].with_changes(comma=cst.MaybeSentinel.DEFAULT)
        return outer.with_changes(func=cst.Name(place.call), args=[*given, *rest])

    return make


def _parenthesized(argument: cst.Arg) -> cst.Arg:
    """Return *argument* so that others may stand next to it. A generator expression needs parentheses."""
    value = argument.value
    if isinstance(value, cst.GeneratorExp) and not value.lpar:
        return argument.with_changes(value=value.with_changes(lpar=[cst.LeftParen()], rpar=[cst.RightParen()]))
    return argument


def make_wrapper(
    place: Place, wrapping: Wrapping, call: cst.Call, *, in_decorator: bool = False, sync: bool = False
) -> Callable[[Any], cst.CSTNode]:
    """Return a function that turns `sync_to_async(f, thread_sensitive=False)` into `in_threadpool(f)`."""
    first = [wrapping.options[place.first]] if place.first else []
    context = [wrapping.options["context"]] if wrapping.value("context") is not None else []
    kept = [*first, *([] if wrapping.function is None else [wrapping.function]), *context]
    positions = [call.args.index(each) for each in kept]

    def make(updated: Any) -> cst.CSTNode:
        arguments: list[cst.Arg] = [updated.args[each] for each in positions]
        name = cst.Name(place.wrap)
        if in_decorator and not arguments:
            return name
        for index in range(len(arguments) - len(context)):
            arguments[index] = arguments[index].with_changes(keyword=None, equal=cst.MaybeSentinel.DEFAULT)
        if arguments:
            end: cst.Arg = updated.args[-1]
            arguments[-1] = arguments[-1].with_changes(comma=end.comma, whitespace_after_arg=end.whitespace_after_arg)
        for index, argument in enumerate(arguments[:-1]):
            if not isinstance(argument.comma, cst.Comma):
                comma = cst.Comma(whitespace_after=cst.SimpleWhitespace(" "))
                arguments[index] = argument.with_changes(comma=comma)
        made = updated.with_changes(func=name, args=arguments)
        return cst.Attribute(made, cst.Name("sync")) if sync else made

    return make


def is_simple(node: cst.BaseExpression) -> bool:
    """Return whether *node* may be evaluated earlier or later without a difference."""
    while isinstance(node, cst.Attribute):
        node = node.value
    return isinstance(node, (cst.Name, cst.Lambda))
