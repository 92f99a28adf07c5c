"""Ways to bring about a rare moment of a call in a worker process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable


def once_before(func: Callable[..., Any], act: Callable[[], object]) -> Callable[..., Any]:
    """Return *func*, before which *act* is called the first time."""
    acts = [act]

    def do(*args: Any, **kwargs: Any) -> Any:
        if acts:
            acts.pop()()
        return func(*args, **kwargs)

    return do


def raising(error: BaseException) -> Callable[[], object]:
    def do() -> None:
        raise error

    return do


class ModuleWith:
    """A module, with some attributes of its own: for one importer of it."""

    def __init__(self, module: Any, **attributes: Any) -> None:
        self.__dict__.update(attributes)
        self._module = module

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)
