"""Writes the functions of async classes as methods of their twins: signature, docstring, and one line of code."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import libcst as cst

from ._annotations import SELF, Translator
from ._sources import Origin, dotted_name

if TYPE_CHECKING:
    from collections.abc import Iterator

# Decorators that type checkers or readers need. All others already act on the async function, which the twin calls.
_KEPT = ("overload", "final", "deprecated")
# Decorators that do not look at the arguments of a call. Any other one may ask which of them are there.
_TRANSPARENT = (*_KEPT, "abstractmethod", "asynccontextmanager", "classmethod", "override", "staticmethod")
# Async special methods, and the functions of `unfazed.twins` that the twin's methods call for them.
SPECIAL = {
    "__aenter__": "enter",
    "__aexit__": "leave",
    "__aiter__": "iterate",
    "__anext__": "step",
    "__await__": "wait",
}
_EXIT = "exc_type: type[BaseException] | None, exc: BaseException | None, traceback: {} | None"


class Function:
    """One function in the body of an async class.

    Args:
        node: The function.
        kind: Its kind of member, as in `Member.kind`.
        sync_name: The name of the twin's method.
        translator: The translator for its class.
        returns: The annotation of its result, if that is on another function; `None` if it is on this one.
    """

    def __init__(
        self,
        node: cst.FunctionDef,
        kind: str,
        sync_name: str,
        translator: Translator,
        returns: cst.Annotation | None = None,
    ) -> None:
        self._node = node
        self._written_returns = returns or node.returns
        self._kind = kind
        self._sync_name = sync_name
        self._translator = translator
        self._name = node.name.value
        self.is_overload = any(translator.is_named(each.decorator, "overload") for each in node.decorators)

    @property
    def type_of_self(self) -> str | None:
        """The annotation of `self`, which an overload for one class only has."""
        own = self._own_parameters()[:1]
        return dotted_name(own[0].annotation.annotation) if own and own[0].annotation else None

    @property
    def gives_awaitable(self) -> bool:
        """Whether it is async, or its annotation says that it returns an awaitable."""
        node = self._node.returns.annotation if self._node.returns else None
        is_awaitable = isinstance(node, cst.Subscript) and self._translator.is_named(
            node.value, "Awaitable", "Coroutine"
        )
        return self._node.asynchronous is not None or is_awaitable

    @property
    def returns(self) -> cst.Annotation | None:
        """The annotation of its result."""
        return self._node.returns

    @property
    def is_getter(self) -> bool:
        return self._accessor() == "getter"

    def lines(self, in_protocol: bool = False) -> Iterator[str]:
        """Yield the lines of the method."""
        saved = dict(self._translator.meanings)
        type_parameters = self._translator.type_parameters(self._node.type_parameters)
        self._replace_type_of_self()
        parameters = self._parameters()
        yield from self._decorators(in_protocol)
        yield f"def {self._sync_name}{type_parameters}({', '.join(parameters)}) -> {self._returns()}:"
        docstring = self._node.get_docstring(clean=False)
        if docstring is not None and not self.is_overload:
            yield f"    {docstring_code(docstring)}"
        yield f"    {'...' if in_protocol or self.is_overload else self._line()}"
        if any(self._translator.is_named(each.decorator, "cached_property") for each in self._node.decorators):
            yield from self._cache_lines()
        self._translator.meanings = saved

    def _cache_lines(self) -> Iterator[str]:
        """Yield the setter and the deleter of a `cached_property`."""
        first, name = self._own_parameters()[0].name.value, self._name
        yield f"@{name}.setter"
        yield f"def {name}({first}, value: {self._returns()}) -> None:"
        yield f'    {self._translator.helper("set_attribute")}({first}, "{name}", value)'
        yield f"@{name}.deleter"
        yield f"def {name}({first}) -> None:"
        yield f'    {self._translator.helper("delete_attribute")}({first}, "{name}")'

    def _replace_type_of_self(self) -> None:
        """Replace a type variable for the type of `self` by `Self`, because its bound may be the async class."""
        first = self._own_parameters()[:1]
        if self._kind == "staticmethod" or not first or first[0].annotation is None:
            return
        node: cst.BaseExpression = first[0].annotation.annotation
        if isinstance(node, cst.Subscript) and self._kind == "classmethod":  # type[T]
            node = cst.ensure_type(node.slice[0].slice, cst.Index).value
        name = self._translator.plain_name(node)
        if name is not None:
            self._translator.meanings[name] = SELF

    def _own_parameters(self) -> list[cst.Param]:
        return [*self._node.params.posonly_params, *self._node.params.params]

    def _decorators(self, in_protocol: bool) -> Iterator[str]:
        if self._kind == "property":
            accessor = self._accessor()
            getter = self._translator.builtin("property")
            yield f"@{getter}" if accessor == "getter" else f"@{self._sync_name}.{accessor}"
        for each in self._node.decorators:
            node = each.decorator.func if isinstance(each.decorator, cst.Call) else each.decorator
            name = (dotted_name(node) or "").rpartition(".")[2]
            if name in ("classmethod", "staticmethod"):
                yield f"@{self._translator.builtin(name)}"
            elif name in _KEPT and self._translator.is_named(node, name):
                yield f"@{self._translator.expression(each.decorator)}"
            elif in_protocol and name == "abstractmethod":
                yield f"@{self._translator.name_of(Origin('abc', name))}"

    def _accessor(self) -> str:
        """Return which function of a property this is: "getter", "setter" or "deleter"."""
        for each in self._node.decorators:
            _, _, last = (dotted_name(each.decorator) or "").rpartition(".")
            if last in ("setter", "deleter"):
                return last
        return "getter"

    def _parameters(self) -> list[str]:
        """Return the code of the parameters."""
        if self._sync_name == "__exit__":
            traceback = self._translator.name_of(Origin("types", "TracebackType"))
            return ["self", *_EXIT.format(traceback).split(", ")]
        own = self._own_parameters()
        skipped = own[0] if own and self._kind != "staticmethod" else None
        params = self._node.params
        written = [self._parameter(each, each is skipped) for each in params.posonly_params]
        written += ["/"] if params.posonly_params else []
        written += [self._parameter(each, each is skipped) for each in params.params]
        if isinstance(params.star_arg, cst.Param):
            written.append(f"*{self._parameter(params.star_arg)}")
        elif params.kwonly_params:
            written.append("*")
        written += [self._parameter(each) for each in params.kwonly_params]
        if params.star_kwarg is not None:
            written.append(f"**{self._parameter(params.star_kwarg)}")
        return written

    def _parameter(self, param: cst.Param, is_bare: bool = False) -> str:
        text = param.name.value
        if not is_bare:
            text += f": {self._translator.annotation(param.annotation.annotation if param.annotation else None)}"
        if param.default is not None:
            default = "..." if self.is_overload else self._default(param.default)
            text += f" = {default}" if not is_bare else f"={default}"
        return text

    def _default(self, node: cst.BaseExpression) -> str:
        if self._translator.is_of_async_side(node):
            return f"{self._translator.helper('default')}()"
        return self._translator.expression(node)

    def _returns(self) -> str:
        node = self._written_returns.annotation if self._written_returns else None
        if self._name == "__init__" or (node is None and self._accessor() != "getter"):
            return "None"
        text = self._translator.annotation(node)
        if self._name == "__await__" and isinstance(node, cst.Subscript):  # Generator[Any, Any, T]
            return self._translator.annotation(cst.ensure_type(node.slice[-1].slice, cst.Index).value)
        if any(self._translator.is_named(each.decorator, "asynccontextmanager") for each in self._node.decorators):
            manager = self._translator.name_of(Origin("contextlib", "AbstractContextManager"))
            item = "Any"
            if isinstance(node, cst.Subscript):
                item = self._translator.annotation(cst.ensure_type(node.slice[0].slice, cst.Index).value)
            return f"{manager}[{item}]"
        return text

    def _line(self) -> str:
        """Return the line of code in the body."""
        returns = self._returns()
        call = self._call()
        node = self._written_returns.annotation if self._written_returns else None
        if node is not None and self._translator.is_named(node, "NoReturn", "Never"):
            return f"raise {call}"  # type checkers do not know that the call never returns
        return call if returns == "None" else f"return {call}"

    def _call(self) -> str:
        own = [param.name.value for param in self._own_parameters()]
        first = own[0] if own else "self"
        name = f'"{self._name}"'
        names = {param.name.value for param in (*self._own_parameters(), *self._node.params.kwonly_params)}

        def helper(name: str) -> str:
            return self._translator.helper(name, names)

        if self._name in SPECIAL:
            passed = [first, "exc_type", "exc", "traceback"] if self._name == "__aexit__" else [first]
            return f"{helper(SPECIAL[self._name])}({', '.join(passed)})"
        if self._name == "__init__":
            maker = "make_without_defaults" if self._may_ask_for_arguments() else "make"
            return f"{helper(maker)}({', '.join([first, *self._arguments()])})"
        if self._kind == "property":
            accessor = self._accessor()
            if accessor == "setter":
                return f"{helper('set_attribute')}({first}, {name}, {own[1]})"
            return f"{helper('get_attribute' if accessor == 'getter' else 'delete_attribute')}({first}, {name})"
        if self._kind == "staticmethod":
            return f"{helper('call_class')}({', '.join([self._translator.twin_name, name, *self._arguments(0)])})"
        plain_call = "call_without_defaults" if self._may_ask_for_arguments() else "call"
        helpers = {
            "classmethod": "call_class",
            "maker": "call_maker",
            "operator": "call_operator",
            "method": plain_call,
        }
        return f"{helper(helpers[self._kind])}({', '.join([first, name, *self._arguments()])})"

    def _may_ask_for_arguments(self) -> bool:
        """Return whether a decorator may ask which arguments a call has. Then those not passed must not be there."""
        if self._kind not in ("method", "operator") or isinstance(self._node.params.star_arg, cst.Param):
            return False
        decorators = (getattr(each.decorator, "func", each.decorator) for each in self._node.decorators)
        return any((dotted_name(each) or "").rpartition(".")[2] not in _TRANSPARENT for each in decorators)

    def _arguments(self, skipped: int = 1) -> list[str]:
        """Return the arguments that the line passes on: all of them, positional if possible."""
        params = self._node.params
        own = self._own_parameters()[skipped:]
        by_name = params.kwonly_params
        defaults = [each.default for each in params.params if each.default is not None]
        may_be_left_out = any(map(self._translator.is_of_async_side, defaults))
        if self._may_ask_for_arguments() or (may_be_left_out and not isinstance(params.star_arg, cst.Param)):
            by_name = [each for each in params.params if each.default is not None] + [*by_name]
        names = [each.name.value for each in own if each not in by_name]
        if isinstance(params.star_arg, cst.Param):
            names.append(f"*{params.star_arg.name.value}")
        names += [f"{each.name.value}={each.name.value}" for each in by_name]
        if params.star_kwarg is not None:
            names.append(f"**{params.star_kwarg.name.value}")
        return names


def docstring_code(text: str) -> str:
    """Return the code of a docstring. The formatter indents it."""
    quotes = '"""'
    prefix = "r" if "\\" in text else ""
    if quotes in text or text.endswith('"') or (prefix and text.endswith("\\")):
        return repr(inspect.cleandoc(text))
    return f"{prefix}{quotes}{text}{quotes}"
