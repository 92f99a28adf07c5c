"""Sends log records from a worker to the parent, where the loggers of the same name handle them like their own."""

from __future__ import annotations

import logging
import pickle
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

DISABLED = " disabled"  # a key like a logger's name, for the level of `logging.disable`
ROOT = ""
PLAIN = (str, int, float, bool, bytes, type(None))


def levels() -> dict[str, int]:
    """Return the levels that are set on the loggers of this process. Called in the parent."""
    found = {ROOT: logging.root.level, DISABLED: logging.root.manager.disable}
    for name, logger in list(logging.root.manager.loggerDict.items()):
        level = getattr(logger, "level", 0)  # a placeholder has none
        if level:
            found[name] = level
    return found


def read(frame: bytes, load: Callable[[bytes], Any]) -> logging.LogRecord:
    """Return the record that a worker has sent. Called in the parent."""
    plain, others = pickle.loads(frame)
    for name, packed in others.items():
        with suppress(Exception):  # only the worker has its class: keep the `repr`
            plain[name] = load(packed)
    return logging.makeLogRecord(plain)


# In the worker

_levels: dict[str, int] | None = None  # the parent's, as set here; None: nothing is forwarded
_send: Callable[[bytes], None] | None = None
_call_handlers = logging.Logger.callHandlers
_basic_config = logging.basicConfig


def forward(levels: dict[str, int] | None, send: Callable[[bytes], None]) -> None:
    """Set the parent's *levels* on the loggers of this process, and *send* what they accept to the parent."""
    global _levels, _send
    if _send is None:
        _send = send
        # The main module has added these handlers on import, in the parent too: each record would be handled twice.
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
    """Forward nothing from now on. A forked child must not mix its records with the worker's."""
    global _levels
    _levels = None


def _configure(**kwargs: Any) -> None:
    """Do what `logging.basicConfig` does, except for the terminal: the parent's handlers write there already."""
    if _levels is None or kwargs.keys() & {"filename", "handlers", "stream"}:
        _basic_config(**kwargs)


def _forward(self: logging.Logger, record: logging.LogRecord) -> None:
    """Send a record to the parent. Handlers that were added in this worker handle it too."""
    if _levels is not None and _send is not None and record.levelno >= _level_of(record.name, _levels):
        _send(_pack(record))
    if _levels is None or self.hasHandlers():
        _call_handlers(self, record)


def _level_of(name: str, levels: dict[str, int]) -> int:
    """Return the lowest level at which this logger accepts records in the parent."""
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
    except Exception:  # a wrong format: logging only reports it, and goes on
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
            with suppress(BaseException):  # whatever its `__reduce__` raises: the call must not fail
                others[name] = pickle.dumps(value)
            fields[name] = _text_of(value, repr)
    return pickle.dumps((fields, others))
