"""What runs inside a worker process, around the user's function. Standard library only: it starts fast.

The parent sends one pickled call and gets one pickled outcome; `run` never raises, so that whatever the function
does, the worker is as good as before.
"""

from __future__ import annotations

import atexit
import os
import pickle
import signal
import threading
import time
import traceback
from types import CoroutineType

ORPHAN_CHECK_SECONDS = 1.0  # how often a worker looks whether its parent is still there
LAST_SECONDS = 0.5  # how long a worker whose pipe was closed stays, which is longer than to kill it takes

# An outcome is one of these, with what it is about and the text of a traceback.
VALUE = "value"
ERROR = "error"
UNREADABLE_ERROR = "unreadable error"  # in place of one that does not survive pickling, its type and text
UNREADABLE_REQUEST = "unreadable request"  # the function or its arguments cannot be found here, and the reason
COROUTINE = "coroutine"  # the function turned out to be async
UNSENDABLE_VALUE = "unsendable value"  # in place of one that cannot be pickled, its type and the reason


def run(request: bytes) -> bytes:
    """Run a pickled `(func, args, kwargs)` and return its pickled outcome."""
    _settle_in()
    try:
        func, args, kwargs = pickle.loads(request)
    except Exception as exc:
        return _pack(UNREADABLE_REQUEST, f"{type(exc).__qualname__}: {exc}", _text_of(exc))
    try:
        value = func(*args, **kwargs)
    except BaseException as exc:  # SystemExit as well: it is the caller's, and this worker has more calls to come
        exc.__traceback__ = exc.__traceback__ and exc.__traceback__.tb_next
        return _pack_error(exc)
    if isinstance(value, CoroutineType):
        value.close()
        return _pack(COROUTINE, None, "")
    try:
        return _pack(VALUE, value, "")
    except Exception as exc:
        return _pack(UNSENDABLE_VALUE, f"{type(value).__qualname__}: {exc}", _text_of(exc))


_settled_in = False


def _settle_in() -> None:
    """Once in each worker: see to it that Ctrl-C does not interrupt it, and that it ends with its parent.

    At the end of its loop, anyio closes a worker's pipe and kills it. Where the worker is gone in between, asyncio
    complains of somebody else having read its exit status.
    """
    global _settled_in
    if _settled_in:
        return
    _settled_in = True
    if threading.current_thread() is threading.main_thread():
        # A terminal sends Ctrl-C to the workers as well. Not SIG_IGN, which the worker's own children would inherit.
        signal.signal(signal.SIGINT, _ignore)
    atexit.register(time.sleep, LAST_SECONDS)
    threading.Thread(target=_end_with, args=(os.getppid(),), name="unfazed-orphan-check", daemon=True).start()


def _ignore(*args: object) -> None:
    """Take a signal and do nothing."""


def _end_with(parent: int) -> None:
    """End this process, whatever it is doing, soon after its parent has ended: nobody is left to answer to."""
    while os.getppid() == parent:
        time.sleep(ORPHAN_CHECK_SECONDS)
    os._exit(1)


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
