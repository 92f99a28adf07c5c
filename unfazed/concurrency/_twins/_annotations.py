"""The translation of annotations and defaults from async code to sync code."""

from __future__ import annotations

import builtins
import collections.abc
import inspect
import re
from typing import TYPE_CHECKING, Any, TypeVar

import libcst as cst
from libcst import matchers

from .._core._checks import is_async
from ._members import parameters_of
from ._sources import ModuleSource, Origin, dotted_name, source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from ._imports import Imports

_MODULES = frozenset(
    (
        "typing",
        "typing_extensions",
        "collections.abc",
        "contextlib",
        "types",
        "asyncio",
        "asyncio.futures",
        "asyncio.tasks",
    )
)
# Types that become their last argument: `Awaitable[T]` becomes `T`. Without arguments they become `Any`.
_AWAITABLES = frozenset(("Awaitable", "Coroutine", "CoroutineType", "Future", "Task"))
_RENAMED = {
    "AsyncIterator": ("collections.abc", "Iterator"),
    "AsyncIterable": ("collections.abc", "Iterable"),
    "AsyncGenerator": ("collections.abc", "Generator"),
    "AsyncContextManager": ("contextlib", "AbstractContextManager"),
    "AbstractAsyncContextManager": ("contextlib", "AbstractContextManager"),
}
SELF = Origin("typing_extensions", "Self", is_for_types=True)
ANY = Origin("typing", "Any")


class Translator:
    """Translates the annotations and defaults in one async class.

    Args:
        source: The module of the class.
        owner: The class.
        twins: The names of the twin classes, by their async classes.
        imports: Collects the imports of the generated module.
        avoid: The names of the twin's members. In the class body they hide the module's names.
        meanings: Names that mean something else in this class, such as type parameters of its bases.
        twin_name: The name of the twin class.
    """

    def __init__(
        self,
        source: ModuleSource,
        owner: type,
        twins: Mapping[type, str],
        imports: Imports,
        avoid: frozenset[str],
        meanings: Mapping[str, str | Origin],
        twin_name: str,
    ) -> None:
        self._source = source
        self._owner = owner
        self._twins = twins
        self._imports = imports
        self._avoid = avoid
        self.meanings: dict[str, str | Origin] = dict(meanings)
        self._expanding: tuple[Origin, ...] = ()
        self._is_for_types = True  # whether what we translate is for type checkers, not evaluated at run time
        self.twin_name = twin_name
        self.unknown: list[str] = []  # names that could not be found
        self.mentioned: list[type] = []  # classes without a twin in this module
        self.rebound: set[str] = set()  # type parameters whose bounds are not those of the async class

    def annotation(self, node: cst.BaseExpression | None) -> str:
        """Return the annotation for sync code, or `Any` if there is none."""
        return self._imports.name_of(ANY, self._avoid) if node is None else self._code(self._type(node))

    def expression(self, node: cst.BaseExpression) -> str:
        """Return any other expression, with the names of the generated module."""
        outer, self._is_for_types = self.meanings, False
        self.meanings = outer | {name: name for name in _bound_in(node)}
        renamed: Any = node.visit(_Renaming(self))
        self.meanings, self._is_for_types = outer, True
        return self._code(renamed)

    def is_of_async_side(self, node: cst.BaseExpression) -> bool:
        """Return whether a default names a class with a twin or an async function, which sync code does not get."""
        origins = (self._origin(dotted_name(name) or "") for name in matchers.findall(node, matchers.Name()))
        found = [origin.find() for origin in origins if origin is not None]
        return any(is_async(each) or (inspect.isclass(each) and each in self._twins) for each in found)

    def name_of(self, origin: Origin) -> str:
        return self._imports.name_of(origin, self._avoid)

    def class_name(self, cls: type) -> str:
        """Return the name of the twin of a class, or its own name if it has no twin."""
        if cls in self._twins:
            return self._twins[cls]
        return cls.__name__ if cls.__module__ == "builtins" else self.name_of(Origin(cls.__module__, cls.__qualname__))

    def plain_name(self, node: cst.BaseExpression) -> str | None:
        """Return the name if an annotation is just a name, quoted or not, otherwise `None`."""
        if isinstance(node, cst.SimpleString):
            node = cst.parse_expression(str(node.evaluated_value))
        return dotted_name(node)

    def helper(self, name: str, hidden_by: Iterable[str] = ()) -> str:
        """Return the name of one of the functions of `unfazed.twins`, other than the names in *hidden_by*."""
        return self._imports.name_of(Origin("unfazed.twins", name), frozenset(hidden_by))

    def builtin(self, name: str) -> str:
        """Return the name of a builtin in the body of the class."""
        return f"{self.name_of(Origin('builtins', None))}.{name}" if name in self._avoid else name

    def type_parameters(self, node: cst.TypeParameters | None) -> str:
        """Return the type parameters of a function or class. From now on their names mean themselves."""
        if node is None:
            return ""
        names = [part.param.name.value for part in node.params]
        self.meanings.update(zip(names, names, strict=True))
        written: list[str] = []
        for part in node.params:
            text = self._code(part.param)
            if isinstance(part.param, cst.TypeVar) and part.param.bound is not None:
                bound = self.annotation(part.param.bound)
                if bound != self._code(part.param.bound):
                    self.rebound.add(part.param.name.value)
                text = f"{part.param.name.value}: {bound}"
            default = f" = {self.annotation(part.default)}" if part.default is not None else ""
            written.append(text + default)
        return f"[{', '.join(written)}]"

    def is_named(self, node: cst.BaseExpression, *names: str) -> bool:
        """Return whether *node* is one of *names*, from a standard library module that defines types or decorators."""
        origin = self._origin(dotted_name(node) or "")
        return (
            origin is not None
            and (origin.name or "") in names
            and origin.module in (*_MODULES, "dataclasses", "functools", "warnings")
        )

    def _code(self, node: cst.CSTNode) -> str:
        return self._source.tree.code_for_node(node)

    def _type(self, node: Any, is_bare: bool = True) -> Any:
        if isinstance(node, (cst.SimpleString, cst.ConcatenatedString)):
            text = str(node.evaluated_value).strip()
            try:
                return self._type(cst.parse_expression(text))
            except cst.ParserSyntaxError:  # it is for another tool
                self.unknown.append(repr(text))
                return cst.parse_expression(self.name_of(ANY))
        if isinstance(node, (cst.Name, cst.Attribute)):
            named = self._named(node)
            return self._with_parameters(node, named) if is_bare else named
        if isinstance(node, cst.Subscript):
            return self._subscript(node)
        if isinstance(node, cst.BinaryOperation):
            return cst.parse_expression(" | ".join(dict.fromkeys(self._members_of_union(node))))
        if isinstance(node, (cst.List, cst.Tuple)):
            return node.with_changes(
                elements=[part.with_changes(value=self._type(part.value)) for part in node.elements]
            )
        if isinstance(node, cst.StarredElement):
            return node.with_changes(value=self._type(node.value))
        return node

    def _members_of_union(self, node: Any) -> list[str]:
        """Return the members of a union for sync code. Some may be equal, as in `T | Awaitable[T]`."""
        if isinstance(node, cst.BinaryOperation):
            return [*self._members_of_union(node.left), *self._members_of_union(node.right)]
        translated = self._type(node)
        if isinstance(translated, cst.BinaryOperation):
            return [*_flat_union(translated, self._code)]
        return [self._code(translated)]

    def _subscript(self, node: cst.Subscript) -> Any:
        base = node.value
        indexes = [part.slice for part in node.slice if isinstance(part.slice, cst.Index)]
        if self.is_named(base, *_AWAITABLES):
            return self._type(indexes[-1].value)
        if self.is_named(base, "Literal"):
            return node.with_changes(value=self._type(base, is_bare=False))
        types = indexes[:1] if self.is_named(base, "Annotated") else indexes
        translated = [index.with_changes(value=self._type(index.value)) for index in types]
        alias = self._origin(dotted_name(base) or "")
        expanded = alias and self._meaning_of(alias, [self._code(index.value) for index in translated])
        if expanded is not None:
            return expanded
        translated += [index.with_changes(value=index.value.visit(_Renaming(self))) for index in indexes[len(types) :]]
        if self.is_named(base, "AsyncGenerator"):
            translated = [translated[0], cst.Index(cst.Name("None")), cst.Index(cst.Name("None"))]
        if self.is_named(base, "Union"):
            translated = [*{self._code(index): index for index in translated}.values()]
            if len(translated) == 1:
                return translated[0].value
        elements = [cst.SubscriptElement(index) for index in translated]
        return node.with_changes(value=self._type(base, is_bare=False), slice=elements)

    def _named(self, node: cst.Name | cst.Attribute) -> Any:
        name = dotted_name(node) or ""
        root, dot, rest = name.partition(".")
        if root in self.meanings:
            meaning = self.meanings[root]
            written = meaning if isinstance(meaning, str) else self.name_of(meaning)
            return cst.parse_expression(written + dot + rest)  # `P.args` has two parts
        origin = self._origin(name)
        if origin is None:
            return self._builtin(node, name)
        if origin.module in _MODULES and origin.name in _RENAMED:
            origin = Origin(*_RENAMED[origin.name])
        elif origin.module in _MODULES and origin.name in _AWAITABLES:  # without arguments
            origin = ANY
        elif origin.module == "typing" and hasattr(collections.abc, origin.name or ""):  # same type, but not deprecated
            origin = origin._replace(module="collections.abc")
        found = origin.find()
        if inspect.isclass(found):
            if found in self._twins:
                return cst.Name(self._twins[found])
            self.mentioned.append(found)
        own = self._own_type_variable(origin) if isinstance(found, TypeVar) else None
        if own is not None:
            return cst.Name(own)
        meaning_here = self._meaning_of(origin)
        return cst.parse_expression(self.name_of(origin)) if meaning_here is None else meaning_here

    def _meaning_of(self, origin: Origin, arguments: Sequence[str] = ()) -> cst.BaseExpression | None:
        """Return the translated type behind a type alias with *arguments*, if the alias contains async types."""
        source = source_of(origin.module) if origin.name and "." not in origin.name else None
        meaning = source.meaning_of(origin.name) if source and origin.name else None
        if source is None or meaning is None or origin in self._expanding:
            return None
        alias = origin.find()
        parameters = getattr(alias, "__type_params__", ()) or getattr(alias, "__parameters__", ())
        meanings: dict[str, str | Origin] = dict.fromkeys((each.__name__ for each in parameters), ANY)
        there = self._in_module(source, meanings | dict(zip(meanings, arguments, strict=False)))
        there._expanding = (*self._expanding, origin)
        if not there._mentions_async(meaning):
            return None
        is_for_several = any(type(each).__name__ == "TypeVarTuple" for each in parameters)
        if is_for_several or (arguments and len(arguments) != len(meanings)):
            return cst.parse_expression(self.name_of(ANY))
        translated: cst.BaseExpression = there._type(meaning)
        return translated

    def _own_type_variable(self, origin: Origin) -> str | None:
        """Define a type variable with a bound or constraints for sync code, if those of the library's are async."""
        source = source_of(origin.module)
        made = source.value_of(origin.name or "") if source else None
        if source is None or not isinstance(made, cst.Call):
            return None
        there = self._in_module(source, {})
        limits = made.args[1:]
        if not any(there._mentions_async(arg.value) for arg in limits):
            return None
        name = self._imports.own_name_of(origin, self._avoid)
        self.rebound.add(origin.name or "")
        written = [f"{there.expression(made.func)}({name!r}"]
        for arg in limits:
            is_type = arg.keyword is None or arg.keyword.value in ("bound", "default")
            keyword = f"{arg.keyword.value}=" if arg.keyword is not None else ""
            # as strings, because the twins are defined later
            written.append(keyword + (repr(there.annotation(arg.value)) if is_type else self._code(arg.value)))
        self._imports.definitions[name] = f"{', '.join(written)})"
        return name

    def _in_module(self, source: ModuleSource, meanings: Mapping[str, str | Origin]) -> Translator:
        return Translator(source, self._owner, self._twins, self._imports, self._avoid, meanings, self.twin_name)

    def _mentions_async(self, node: cst.BaseExpression) -> bool:
        written = matchers.findall(node, matchers.Name() | matchers.Attribute() | matchers.SimpleString())
        return any(self._is_async(name) for each in written for name in _names_in(each))

    def _is_async(self, name: str) -> bool:
        """Return whether a dotted name is a type that sync code replaces by another one."""
        origin = self._origin(name)
        if origin is None or origin.name is None:
            return False
        if origin.module in _MODULES:
            return origin.name in _RENAMED or origin.name in _AWAITABLES
        return origin.find() in self._twins or self._meaning_of(origin) is not None

    def _with_parameters(self, node: cst.Name | cst.Attribute, named: Any) -> Any:
        """Add `Any` as the parameters of a generic type that was written without any."""
        origin = self._origin(dotted_name(node) or "")
        root = dotted_name(node) or ""
        if isinstance(named, cst.Subscript) or root in self.meanings:
            return named
        if origin is None:
            count = _BARE.get(root, 0)
        elif origin.module in _MODULES:
            count = _BARE.get(origin.name or "", 0)
        else:
            count = len(parameters_of(origin.find()) if inspect.isclass(origin.find()) else ())
        if not count:
            return named
        unknown = self.name_of(ANY)
        parameters = ", ".join([unknown] * count)
        if (origin.name if origin else root) in ("Callable", "tuple", "Tuple"):
            parameters = f"..., {unknown}" if (origin and origin.name == "Callable") else f"{unknown}, ..."
        return cst.parse_expression(f"{self._code(named)}[{parameters}]")

    def _builtin(self, node: cst.BaseExpression, name: str) -> cst.BaseExpression:
        root = name.partition(".")[0]
        if not hasattr(builtins, root):
            self.unknown.append(name)
            return cst.Name(self.name_of(ANY))
        return cst.parse_expression(self.builtin(name)) if root in self._avoid else node

    def _origin(self, name: str) -> Origin | None:
        """Return where a dotted name comes from, or `None` for a builtin."""
        root, _, rest = name.partition(".")
        value = vars(self._owner).get(root)
        is_value = value is not None and not hasattr(builtins, root) and not inspect.isroutine(value)
        if (is_value or inspect.isclass(value)) and self._source.origin_of(root) is None:
            return Origin(self._owner.__module__, f"{self._owner.__qualname__}.{name}")
        origin = self._source.origin_of(root, self._is_for_types)
        if origin is None or not rest:
            return origin
        module, parts = origin.module, rest.split(".")
        if origin.name is not None:
            found = origin.find()
            if not inspect.ismodule(found):
                return origin._replace(name=f"{origin.name}.{rest}")
            path = f"{module}.{origin.name}"  # as it was written, if it can be imported from there
            module = path if Origin(path, None).find() is found else found.__name__
        while len(parts) > 1 and Origin(f"{module}.{parts[0]}", None).find() is not None:
            module = f"{module}.{parts.pop(0)}"
        return Origin(module, ".".join(parts), origin.is_for_types)


# The number of parameters of types that are often written without any.
_BARE = {
    **dict.fromkeys(("list", "set", "frozenset", "type", "tuple", "deque"), 1),
    **dict.fromkeys(("List", "Set", "FrozenSet", "Type", "Tuple", "Deque", "Callable"), 1),
    **dict.fromkeys(("Iterator", "Iterable", "Sequence", "Collection", "AsyncIterator", "AsyncIterable"), 1),
    **dict.fromkeys(("dict", "Dict", "Mapping", "MutableMapping"), 2),
}


def _names_in(node: Any) -> list[str]:
    """Return a name, or the names in a string."""
    if isinstance(node, cst.SimpleString):
        return re.findall(r"[^\W\d][\w.]*", str(node.evaluated_value))
    return [dotted_name(node) or ""]


def _bound_in(node: cst.BaseExpression) -> Iterator[str]:
    """Yield the names that an expression binds itself: parameters of lambdas, and targets of comprehensions."""
    for binder in matchers.findall(node, matchers.Param() | matchers.CompFor()):
        target = binder.name if isinstance(binder, cst.Param) else cst.ensure_type(binder, cst.CompFor).target
        for name in matchers.findall(target, matchers.Name()):
            yield cst.ensure_type(name, cst.Name).value


def _flat_union(node: Any, code: Callable[[cst.CSTNode], str]) -> Iterator[str]:
    if isinstance(node, cst.BinaryOperation):
        yield from _flat_union(node.left, code)
        yield from _flat_union(node.right, code)
    else:
        yield code(node)


class _Renaming(cst.CSTTransformer):
    """Replaces each name in an expression by its name in the generated module."""

    def __init__(self, translator: Translator) -> None:
        super().__init__()
        self._translator = translator

    def visit_Attribute(self, node: cst.Attribute) -> bool:
        return False

    def visit_Arg(self, node: cst.Arg) -> bool:
        return False

    def leave_Arg(self, original_node: cst.Arg, updated_node: cst.Arg) -> cst.Arg:
        return updated_node.with_changes(value=original_node.value.visit(self))  # its keyword is no name

    def leave_Attribute(self, original_node: cst.Attribute, updated_node: cst.Attribute) -> cst.BaseExpression:
        if dotted_name(original_node) is None:
            return updated_node.with_changes(value=original_node.value.visit(self))
        named: cst.BaseExpression = self._translator._named(original_node)
        return named

    def leave_Name(self, original_node: cst.Name, updated_node: cst.Name) -> cst.BaseExpression:
        named: cst.BaseExpression = self._translator._named(original_node)
        return named
