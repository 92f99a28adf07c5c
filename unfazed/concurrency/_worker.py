"""What runs inside a worker process, around the user's function. Standard library only: it starts fast.

The parent sends one pickled call and gets one pickled outcome; `run` never raises, so that whatever the function
does, the worker is as good as before.
"""

from __future__ import annotations

import pickle
import traceback

# An outcome is one of these, with what it is about and the text of a traceback.
VALUE = "value"
ERROR = "error"
UNREADABLE_ERROR = "unreadable error"  # in place of one that does not survive pickling, its type and text
UNSENDABLE_VALUE = "unsendable value"  # in place of one that cannot be pickled, its type and the reason


def run(request: bytes) -> bytes:
    """Run a pickled `(func, args, kwargs)` and return its pickled outcome."""
    try:
        func, args, kwargs = pickle.loads(request)
        value = func(*args, **kwargs)
    except BaseException as exc:  # SystemExit as well: it is the caller's, and this worker has more calls to come
        exc.__traceback__ = exc.__traceback__ and exc.__traceback__.tb_next
        return _pack_error(exc)
    try:
        return _pack(VALUE, value, "")
    except Exception as exc:
        return _pack(UNSENDABLE_VALUE, f"{type(value).__qualname__}: {exc}", _text_of(exc))


def _pack(kind: str, about: object, text: str) -> bytes:
    return pickle.dumps((kind, about, text), pickle.HIGHEST_PROTOCOL)


def _pack_error(exc: BaseException) -> bytes:
    text = _text_of(exc)
    try:
        packed = _pack(ERROR, exc, text)
        pickle.loads(packed)  # an exception whose constructor takes other arguments than it passes on fails here
    except Exception:
        summary = "".join(traceback.format_exception_only(type(exc), exc)).strip()
        return _pack(UNREADABLE_ERROR, summary, text)
    return packed


def _text_of(exc: BaseException) -> str:
    return "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
