"""Runs one call in a worker process. Guarantee: `run` never raises, so the worker can take the next call."""

from __future__ import annotations

import pickle
from types import CoroutineType
from typing import TYPE_CHECKING

from . import channel

if TYPE_CHECKING:
    from .channel import Reader

# The kinds of an outcome that is not a value. Each is sent with details and the text of a traceback.
ERROR = "error"  # details: see `_described`
INITIALIZER_ERROR = "initializer error"  # the function was not called; the next call runs the initializer again
UNREADABLE_REQUEST = "unreadable request"  # function or arguments do not unpickle; details: why
COROUTINE = "coroutine"  # the function turned out to be async
UNSENDABLE_VALUE = "unsendable value"  # it cannot be pickled; details: its type and why

PLAIN = frozenset((type(None), bool, int, float))  # their pickles are small, except that of a huge int

_initialized: set[bytes] = set()


class Results:
    """The results of several calls in one. If they cannot be pickled, those are sent that can be."""

    if TYPE_CHECKING:

        def without_unsendable(self) -> Results:
            """Return the same with failures instead of results that cannot be pickled."""
            ...


def run(request: Reader, initializer: bytes | None = None) -> list[bytes]:
    """Run a pickled `(func, args, kwargs)` in this process.

    Args:
        request: The pickle is read from it.
        initializer: A pickled function without arguments. It is called first, unless this worker has called it before.

    Returns:
        The frame with the outcome, in pieces.
    """
    try:
        failure = _initialize(initializer)
        if failure is not None:
            request.skip()
            return failure
        return _run(request)
    except BaseException as exc:  # a signal handler that a function installed, or no memory
        return _error(exc)


def _initialize(initializer: bytes | None) -> list[bytes] | None:
    """Call the initializer, unless this worker has called it before. Return the answer to send if it fails."""
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
    value: object = None
    raised: BaseException | None = None
    try:
        value = func(*args, **kwargs)
    except BaseException as exc:  # SystemExit too: it goes to the caller, and the worker lives on
        raised = exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next)
    if raised is not None:  # not in the `except`: there, PyPy may put the old traceback back
        try:
            return _error(raised)
        finally:
            del raised
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
        if isinstance(value, Results):
            return channel.in_frame(channel.VALUE, channel.pickle_in_pieces(value.without_unsendable()))
        return channel.in_frame(channel.OUTCOME, [_unsendable(value, exc)])


def unsendable(value: object) -> bytes | None:
    """Return the pickled outcome that says why *value* cannot be sent, or `None` if it can be."""
    if isinstance(value, CoroutineType):
        value.close()
        return packed_outcome(COROUTINE, None, "")
    try:
        pickle.dumps(value, channel.PROTOCOL)
    except MemoryError as exc:
        return packed_error(exc)
    except BaseException as exc:  # as above
        return _unsendable(value, exc)
    return None


def _unsendable(value: object, exc: BaseException) -> bytes:
    return packed_outcome(UNSENDABLE_VALUE, f"{type(value).__qualname__}: {_reason_of(exc)}", _text_of(exc))


def packed_outcome(kind: str, about: object, text: str) -> bytes:
    return pickle.dumps((kind, about, text), channel.PROTOCOL)


def _outcome(kind: str, about: object, text: str) -> list[bytes]:
    return channel.in_frame(channel.OUTCOME, [packed_outcome(kind, about, text)])


def _error(exc: BaseException, kind: str = ERROR) -> list[bytes]:
    return channel.in_frame(channel.OUTCOME, [packed_error(exc, kind)])


def packed_error(exc: BaseException, kind: str = ERROR) -> bytes:
    """Return the pickled outcome of a call that raised *exc*."""
    return packed_outcome(kind, _described(exc), _text_of(exc))


def _described(exc: BaseException) -> tuple[object, object]:
    """Return the pickle of *exc*, or `None`, and its text. For a group without a pickle, return message and members."""
    packed = _pickled(exc)
    members: tuple[BaseException, ...] | None = getattr(exc, "exceptions", None)
    if packed is None and isinstance(members, tuple) and hasattr(exc, "derive"):  # a group has both, on each Python
        return str(getattr(exc, "message", "")), [_described(member) for member in members]
    return packed, _summary_of(exc)


def _pickled(exc: BaseException) -> bytes | None:
    try:
        packed = pickle.dumps(exc, channel.PROTOCOL)
        pickle.loads(packed)  # fails if its constructor needs other arguments than its `args`
    except BaseException:  # whatever its `__reduce__` or its class raises
        return None
    return packed


def _text_of(exc: BaseException) -> str:
    import traceback
    import warnings

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python 3.15 warns about a main module imported as ours is
            return "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
    except Exception:  # raised by `__str__`, or because of odd attributes
        return "".join(traceback.format_tb(exc.__traceback__)) + _summary_of(exc)


def _summary_of(exc: BaseException) -> str:
    import traceback

    try:
        return "".join(traceback.format_exception_only(type(exc), exc)).strip()
    except Exception:  # as in `_text_of`
        return type(exc).__qualname__


def _reason_of(exc: BaseException) -> str:
    try:
        return str(exc) or type(exc).__qualname__
    except Exception:
        return _summary_of(exc)
