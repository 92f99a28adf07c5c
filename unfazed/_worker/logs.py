"""Log records on their way from a worker to the parent's loggers, which handle them as if they were their own."""

from __future__ import annotations

import logging
import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

DISABLED = " disabled"  # stands in for a logger's name where `logging.disable` is told
ROOT = ""
PLAIN = (str, int, float, bool, bytes, type(None))


def levels() -> dict[str, int]:
    """Return the levels that are set on the loggers of this process, the parent."""
    found = {ROOT: logging.root.level, DISABLED: logging.root.manager.disable}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        level = getattr(logger, "level", 0)  # a placeholder has none
        if level:
            found[name] = level
    return found


def read(frame: bytes, load: Callable[[bytes], Any]) -> logging.LogRecord:
    """Return, in the parent, the record that a worker has sent."""
    plain, others = pickle.loads(frame)
    for name, packed in others.items():
        with suppress(Exception):  # only the worker has its class: its `repr` is there
            plain[name] = load(packed)
    return logging.makeLogRecord(plain)


# In the worker

_levels: dict[str, int] | None = None  # as they have been set; None: nothing is forwarded
_send: Callable[[bytes], None] | None = None
_call_handlers = logging.Logger.callHandlers
_basic_config = logging.basicConfig


def forward(levels: dict[str, int] | None, send: Callable[[bytes], None]) -> None:
    """Have the loggers of this process accept what the parent's would, and *send* that."""
    global _levels, _send
    if _send is None:
        _send = send
        # Those that the main module has made on import are there in the parent as well, and would handle all twice.
        for logger in [logging.root, *logging.root.manager.loggerDict.values()]:
            getattr(logger, "handlers", []).clear()
        logging.Logger.callHandlers = _forward  # type: ignore[method-assign]
        logging.basicConfig = _configure
    if levels == _levels:
        return
    for name in (_levels or {}).keys() - (levels or {}).keys():
        if name == DISABLED:
            logging.disable(logging.NOTSET)
        else:
            logging.getLogger(name).setLevel(logging.WARNING if name == ROOT else logging.NOTSET)
    for name, level in (levels or {}).items():
        if name == DISABLED:
            logging.disable(level)
        else:
            logging.getLogger(name).setLevel(level)
    _levels = levels


def forget() -> None:
    """Forward nothing from now on: this is a forked child, which would mix its records with those of the worker."""
    global _levels
    _levels = None


def _configure(**kwargs: Any) -> None:
    """Do what `logging.basicConfig` does, unless it is for the terminal, where the parent's handlers write already."""
    if _levels is None or kwargs.keys() & {"filename", "handlers", "stream"}:
        _basic_config(**kwargs)


def _forward(self: logging.Logger, record: logging.LogRecord) -> None:
    """Send a record to the parent, and have it handled by what was added here meanwhile."""
    if _levels is not None and _send is not None and record.levelno >= _level_of(record.name, _levels):
        _send(_pack(record))
    if _levels is None or self.hasHandlers():
        _call_handlers(self, record)


def _level_of(name: str, levels: dict[str, int]) -> int:
    """Return the level that counts for a logger in the parent."""
    while name and name not in levels:
        name = name.rpartition(".")[0]
    return max(levels[name], levels[DISABLED] + 1)


def _text_of(value: object, form: Callable[[object], str] = str) -> str:
    try:
        return form(value)
    except Exception:
        return f"<{type(value).__qualname__}>"


def _pack(record: logging.LogRecord) -> bytes:
    try:
        message = record.getMessage()
    except Exception:  # a wrong format: logging itself would complain, and go on
        message = f"{_text_of(record.msg)} {_text_of(record.args)}"
    fields = dict(record.__dict__, msg=message, args=None)
    if record.exc_info:
        try:
            fields["exc_text"] = record.exc_text or logging.Formatter().formatException(record.exc_info)
        except Exception:
            fields["exc_text"] = _text_of(record.exc_info[0])
        fields["exc_info"] = None
    others: dict[str, bytes] = {}
    for name, value in fields.items():
        if type(value) not in PLAIN:
            with suppress(BaseException):  # whatever its `__reduce__` raises: it is not the function that fails
                others[name] = pickle.dumps(value)
            fields[name] = _text_of(value, repr)
    return pickle.dumps((fields, others))
