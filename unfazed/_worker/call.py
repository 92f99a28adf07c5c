"""Runs one call in a worker process. `run` never raises, so that the worker is as good afterwards as before."""

from __future__ import annotations

import pickle
from types import CoroutineType
from typing import TYPE_CHECKING

from . import channel

if TYPE_CHECKING:
    from .channel import Reader

# What an outcome that is no value is about; with it go what belongs to it, and the text of a traceback.
ERROR = "error"
INITIALIZER_ERROR = "initializer error"  # the function has not been called, and the initializer will be called again
UNREADABLE_ERROR = "unreadable error"  # in place of one that does not survive pickling, its type and text
UNREADABLE_REQUEST = "unreadable request"  # the function or its arguments cannot be found here, and the reason
COROUTINE = "coroutine"  # the function turned out to be async
UNSENDABLE_VALUE = "unsendable value"  # in place of one that cannot be pickled, its type and the reason

PLAIN = frozenset((type(None), bool, int, float))  # whose pickles are small, or hard to come by

_initialized: set[bytes] = set()


def run(request: Reader, initializer: bytes | None = None) -> list[bytes]:
    """Run a pickled `(func, args, kwargs)` in this process.

    Args:
        request: Where the call is to be read from.
        initializer: A pickled function without arguments, to be called first if it has not been called here.

    Returns:
        The frame with its outcome, in pieces.
    """
    try:
        failure = _initialize(initializer)
        if failure is not None:
            request.skip()
            return failure
        return _run(request)
    except BaseException as exc:  # of a signal handler that the function has left behind, or for want of memory
        return _error(exc)


def _initialize(initializer: bytes | None) -> list[bytes] | None:
    """Call the initializer, unless it has been called here. Return what to answer if it fails."""
    if initializer is None or initializer in _initialized:
        return None
    try:
        pickle.loads(initializer)()
    except BaseException as exc:
        return _error(exc, INITIALIZER_ERROR)
    _initialized.add(initializer)
    return None


def _run(request: Reader) -> list[bytes]:
    try:
        try:
            if request.left < channel.CHUNK_BYTES:
                func, args, kwargs = pickle.loads(request.take())
            else:
                func, args, kwargs = pickle.Unpickler(request).load()
        finally:
            request.skip()
    except MemoryError as exc:
        return _error(exc)
    except BaseException as exc:
        return _outcome(UNREADABLE_REQUEST, f"{type(exc).__qualname__}: {_reason_of(exc)}", _text_of(exc))
    try:
        value = func(*args, **kwargs)
    except BaseException as exc:  # SystemExit as well: it is the caller's, and this worker has more calls to come
        return _error(exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next))
    del func, args, kwargs
    if type(value) in PLAIN:
        return [channel.frame(channel.VALUE, pickle.dumps(value, channel.PROTOCOL))]
    if isinstance(value, CoroutineType):
        value.close()
        return _outcome(COROUTINE, None, "")
    try:
        return channel.in_frame(channel.VALUE, channel.pickle_in_pieces(value))
    except MemoryError as exc:
        return _error(exc)
    except BaseException as exc:  # whatever its `__reduce__` raises
        return _outcome(UNSENDABLE_VALUE, f"{type(value).__qualname__}: {_reason_of(exc)}", _text_of(exc))


def _outcome(kind: str, about: object, text: str) -> list[bytes]:
    return channel.in_frame(channel.OUTCOME, [pickle.dumps((kind, about, text), channel.PROTOCOL)])


def _error(exc: BaseException, kind: str = ERROR) -> list[bytes]:
    text = _text_of(exc)
    try:
        packed = pickle.dumps((kind, exc, text), channel.PROTOCOL)
        pickle.loads(packed)  # an exception whose constructor takes other arguments than it passes on fails here
    except BaseException:  # whatever its `__reduce__` raises
        return _outcome(UNREADABLE_ERROR if kind == ERROR else kind, _legible(exc), text)
    return channel.in_frame(channel.OUTCOME, [packed])


def _legible(exc: BaseException) -> object:
    """Return the type and text of *exc*; of a group what it says, and its members: each pickled if it can be."""
    members: tuple[BaseException, ...] | None = getattr(exc, "exceptions", None)
    if not isinstance(members, tuple) or not hasattr(exc, "derive"):  # what a group has on each Python
        return _summary_of(exc)
    return str(getattr(exc, "message", "")), [_pickled(member) or _legible(member) for member in members]


def _pickled(exc: BaseException) -> bytes | None:
    try:
        packed = pickle.dumps(exc, channel.PROTOCOL)
        pickle.loads(packed)
    except BaseException:  # as above
        return None
    return packed


def _text_of(exc: BaseException) -> str:
    import traceback
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.15 has one for a main module that was imported like ours
            return "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    except Exception:  # of one whose text, or attributes, are not what they should be
        return "".join(traceback.format_tb(exc.__traceback__)) + _summary_of(exc)


def _summary_of(exc: BaseException) -> str:
    import traceback

    try:
        return "".join(traceback.format_exception_only(type(exc), exc)).strip()
    except Exception:  # as above
        return type(exc).__qualname__


def _reason_of(exc: BaseException) -> str:
    try:
        return str(exc) or type(exc).__qualname__
    except Exception:
        return _summary_of(exc)
