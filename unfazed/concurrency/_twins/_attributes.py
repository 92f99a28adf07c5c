"""The data attributes that a generated class declares for type checkers: from the class body and the constructor."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

import libcst as cst

from ._annotations import ANY, Translator
from ._sources import dotted_name, last_name, source_of_class

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from ._members import Member

_PLAIN = (bool, int, float, complex, str, bytes)


class DataAttributes:
    """The public attributes of a class, and their types.

    Args:
        cls: The class.
        members: Its members at run time.
        owners: The classes to search, the class itself first.
        translator_of: Returns the translator for one of them.
    """

    def __init__(
        self,
        cls: type,
        members: Sequence[Member],
        owners: Iterable[type],
        translator_of: Callable[[type], Translator],
    ) -> None:
        self.types: dict[str, str] = {}
        self.init_only: set[str] = set()  # arguments of a dataclass that are no attributes
        self._cls = cls
        self._translator_of = translator_of
        others = {member.name for member in members if member.kind not in ("attribute", "property")}
        slots = {member.name for member in members if inspect.ismemberdescriptor(member.value)}
        others |= {member.name for member in members if member.kind == "property"} - slots
        for owner in owners:
            for name, written in self._declared_in(owner):
                if name not in others:
                    self.types.setdefault(name, written)
        for member in members:
            if member.kind == "attribute":
                self.types.setdefault(member.name, self._type_of(member.value, translator_of(cls)))

    def _declared_in(self, owner: type) -> Iterator[tuple[str, str]]:
        source = source_of_class(owner)
        for part in source.parts_of(owner) if source else []:
            if isinstance(part, cst.AnnAssign) and isinstance(part.target, cst.Name):
                value: Any = vars(owner).get(part.target.value)
                yield from self._annotated(owner, part.target.value, part.annotation.annotation, value)
            elif isinstance(part, cst.FunctionDef) and part.name.value == "__init__":
                yield from self._set_by(part, owner)

    def _annotated(self, owner: type, name: str, node: cst.BaseExpression, value: object) -> Iterator[tuple[str, str]]:
        if name.startswith("_"):
            return
        translator = self._translator_of(owner)
        if isinstance(node, cst.Subscript) and translator.is_named(node.value, "ClassVar", "Final", "InitVar"):
            if translator.is_named(node.value, "InitVar"):
                self.init_only.add(name)
            node = cst.ensure_type(node.slice[0].slice, cst.Index).value
        if translator.is_named(node, "ClassVar", "Final", "TypeAlias"):
            yield name, self._type_of(value, translator)
        else:
            yield name, translator.annotation(node)

    def _set_by(self, init: cst.FunctionDef, owner: type) -> Iterator[tuple[str, str]]:
        """Yield the attributes that the constructor sets: `self.name: T = ...`, or `self.name = annotated_argument`."""
        params = init.params
        every = [*params.posonly_params, *params.params, *params.kwonly_params]
        annotations = {param.name.value: param.annotation for param in every}
        this = every[0].name.value if every else ""
        for line in init.body.body:
            for statement in line.body if isinstance(line, cst.SimpleStatementLine) else ():
                target: Any
                annotation: cst.Annotation | None
                if isinstance(statement, cst.AnnAssign):
                    target, annotation = statement.target, statement.annotation
                elif isinstance(statement, cst.Assign) and isinstance(statement.value, cst.Name):
                    target, annotation = statement.targets[0].target, annotations.get(statement.value.value)
                else:
                    continue
                if annotation is not None and dotted_name(target) == f"{this}.{last_name(target)}":
                    yield from self._annotated(owner, last_name(target), annotation.annotation, None)

    def _type_of(self, value: object, translator: Translator) -> str:
        """Return the type of a value without an annotation."""
        if type(value) in _PLAIN:
            return type(value).__name__
        if inspect.isclass(value):
            return f"type[{translator.class_name(value)}]"
        return translator.name_of(ANY)
