"""What runs inside a worker process, around the user's function. Standard library only: it starts fast.

The parent sends one pickled call and gets one pickled outcome; `run` never raises, so that whatever the function
does, the worker is as good as before.
"""

from __future__ import annotations

import pickle
import traceback

# An outcome is (value, None, "") or (None, error, the text of its traceback).


def run(request: bytes) -> bytes:
    """Run a pickled `(func, args, kwargs)` and return its pickled outcome."""
    try:
        func, args, kwargs = pickle.loads(request)
        return pickle.dumps((func(*args, **kwargs), None, ""), pickle.HIGHEST_PROTOCOL)
    except BaseException as exc:  # SystemExit as well: it is the caller's, and this worker has more calls to come
        exc.__traceback__ = exc.__traceback__ and exc.__traceback__.tb_next
        return _pack_error(exc)


def _pack_error(exc: BaseException) -> bytes:
    text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    try:
        packed = pickle.dumps((None, exc, text), pickle.HIGHEST_PROTOCOL)
        pickle.loads(packed)  # an exception whose constructor takes other arguments than it passes on fails here
        return packed
    except Exception:
        summary = "".join(traceback.format_exception_only(type(exc), exc)).strip()
        return pickle.dumps((None, None, summary + "\n" + text), pickle.HIGHEST_PROTOCOL)
