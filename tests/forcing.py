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
