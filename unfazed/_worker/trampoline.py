"""Runs one call in a worker process. `run` never raises, so that the worker is as good afterwards as before.

The parent sends a pickled call and gets a pickled outcome, with the number of the call: no call takes another's answer.
"""

from __future__ import annotations

import pickle
from types import CoroutineType
from typing import NoReturn

from . import payloads, settling

# An outcome is one of these, with what it is about and the text of a traceback.
VALUE = "value"
ERROR = "error"
UNREADABLE_ERROR = "unreadable error"  # in place of one that does not survive pickling, its type and text
UNREADABLE_REQUEST = "unreadable request"  # the function or its arguments cannot be found here, and the reason
COROUTINE = "coroutine"  # the function turned out to be async
UNSENDABLE_VALUE = "unsendable value"  # in place of one that cannot be pickled, its type and the reason

UNHEARD = b"unheard"  # instead of an outcome, where the parent does not hear this worker as it thinks
UNREACHABLE = b"unreachable"  # instead of an outcome, where the memory with the call cannot be opened

Outcome = bytes | tuple[object]  # a packed one, or else a small and plain value

_calls = 0  # how many there have been
_initialized: set[bytes] = set()


def run(
    serial: int,
    request: bytes,
    initializer: bytes | None = None,
    line: settling.Address | None = None,
    levels: dict[str, int] | None = None,
    memory: payloads.Address | None = None,
) -> tuple[int, int, int, Outcome]:
    """Run a pickled `(func, args, kwargs)` in this process.

    Args:
        serial: The number of the call.
        request: The call.
        initializer: A pickled function without arguments, to be called first if it has not been called here.
        line: Where the parent takes output, log records and the number of the current call.
        levels: The levels of the parent's loggers; `None` where it wants no log records.
        memory: Where a large call is, and a large outcome is to be put; `None` where all goes through the pipe.

    Returns:
        The number of the call, how many calls there have been here, how many log records this one has sent, and its
        outcome.
    """
    global _calls
    settling.settle_in(line)
    if line is not None and not settling.is_connected():
        return serial, _calls, 0, UNHEARD
    settling.begin(serial, levels)
    _calls += 1
    outcome = _initialize(initializer) or _run(request, None if memory is None else payloads.open_at(memory))
    return serial, _calls, settling.end(), outcome


def retire() -> NoReturn:
    """End this worker without an answer."""
    settling.hang_up()


def _initialize(initializer: bytes | None) -> bytes | None:
    """Call the initializer, unless it has been called here. Return what to answer if it fails."""
    if initializer is None or initializer in _initialized:
        return None
    try:
        pickle.loads(initializer)()
        settling.keep_places()  # it may have its own idea of where the output goes
    except BaseException as exc:
        return _pack_error(exc)
    _initialized.add(initializer)
    return None


def _run(request: bytes, memory: payloads.Memory | None) -> Outcome:
    try:
        func, args, kwargs = payloads.unpack(request, memory)
    except payloads.UnreachableError:
        return UNREACHABLE
    except MemoryError as exc:
        return _pack_error(exc)
    except BaseException as exc:
        return _pack(UNREADABLE_REQUEST, f"{type(exc).__qualname__}: {_reason_of(exc)}", _text_of(exc))
    try:
        value = func(*args, **kwargs)
    except BaseException as exc:  # SystemExit as well: it is the caller's, and this worker has more calls to come
        return _pack_error(exc.with_traceback(exc.__traceback__ and exc.__traceback__.tb_next))
    if payloads.is_small(value):
        return (value,)
    if isinstance(value, CoroutineType):
        value.close()
        return _pack(COROUTINE, None, "")
    try:
        return payloads.pack((VALUE, value, ""), memory)
    except MemoryError as exc:
        return _pack_error(exc)
    except BaseException as exc:  # whatever its `__reduce__` raises
        return _pack(UNSENDABLE_VALUE, f"{type(value).__qualname__}: {_reason_of(exc)}", _text_of(exc))


def _pack(kind: str, about: object, text: str) -> bytes:
    return pickle.dumps((kind, about, text), pickle.HIGHEST_PROTOCOL)


def _pack_error(exc: BaseException) -> bytes:
    text = _text_of(exc)
    try:
        packed = _pack(ERROR, exc, text)
        pickle.loads(packed)  # an exception whose constructor takes other arguments than it passes on fails here
    except BaseException:  # whatever its `__reduce__` raises
        return _pack(UNREADABLE_ERROR, _summary_of(exc), text)
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
