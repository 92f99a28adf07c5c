"""Pickles calls, and unpickles results and errors. An error about what cannot be sent says what to write instead."""

from __future__ import annotations

import builtins
import importlib
import pickle
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakKeyDictionary

from ..._worker import call, channel
from .._core._checks import async_function_error, name_of
from .._core._errors import NotSendableError, RemoteError, RemoteTraceback
from .._core._references import Unpickler, load, to_send

if TYPE_CHECKING:
    from collections.abc import Callable

OFF_LOOP_BYTES: Final = 256 * 1024  # a larger pickle blocks an event loop for about 1 ms or more
GLANCE: Final = 1024  # up to how many characters or bytes a string is small; arbitrary
PLAIN: Final = frozenset((type(None), bool, int, float))


def _is_small(value: object) -> bool:
    """Return whether *value* is small and of a plain type. Only a quick look: containers are not small."""
    kind = type(value)
    return kind in PLAIN or (isinstance(value, (str, bytes)) and len(value) <= GLANCE and kind in (str, bytes))


def pack(
    func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, Any], helper: str, *, at_once: bool = False
) -> list[bytes]:
    """Return the frame of a call, in pieces. Raises `TooMuchError` if it must be made *at_once* and is too large."""
    sent = to_send(func)
    try:
        if not kwargs and all(map(_is_small, args)):
            return [channel.frame(channel.CALL, pickle.dumps((sent, args, kwargs), channel.PROTOCOL))]
        if at_once and any(isinstance(arg, (str, bytearray)) and len(arg) > OFF_LOOP_BYTES for arg in args):
            raise channel.TooMuchError  # the pickler would copy it in one step, before we count
        most = OFF_LOOP_BYTES if at_once else float("inf")
        return channel.in_frame(channel.CALL, channel.pickle_in_pieces((sent, args, kwargs), most))
    except (MemoryError, channel.TooMuchError):
        raise
    except Exception as exc:
        name = name_of(func)
        if not _succeeds(pickle.dumps, sent, channel.PROTOCOL):
            problem = f"{helper}() cannot send {name} to a worker process ({exc}): "
            if "<" in getattr(_innermost(func), "__qualname__", "") or _is_local(exc):  # <lambda>, <locals>
                problem += (
                    "there, functions are found by module and name; write it as `def` at the top level of a module"
                )
            else:
                problem += "what it belongs to cannot be pickled; send a plain function, and what it needs as arguments"
            problem += f", or run it in a thread, with `{helper.replace('process', 'thread')}({name}, ...)`"
        else:
            if _succeeds(pickle.dumps, (args, kwargs), channel.PROTOCOL):
                raise  # pickling works, so a signal handler raised it
            problem = f"{helper}() cannot send the arguments of {name}() to a worker process: {exc}"
            if _is_local(exc):
                problem += f"; {_TOP_LEVEL}"
        error = NotSendableError(problem)
        error.has_not_begun = True
        raise error from exc


# The pickle that was made when the initializer was wrapped. Workers recognize an initializer by its pickle and call it
# once. So the pickle must stay the same, even if what the initializer refers to changes.
_initializers: WeakKeyDictionary[Callable[[], object], bytes] = WeakKeyDictionary()


def pack_initializer(initializer: Callable[[], object]) -> bytes:
    with suppress(KeyError, TypeError):  # not packed yet, or it cannot be a key of this dict
        return _initializers[initializer]
    try:
        packed = pickle.dumps(to_send(initializer), channel.PROTOCOL)
    except Exception as exc:
        raise NotSendableError(
            f"in_processpool() cannot send its initializer {name_of(initializer)} to a worker process ({exc}): "
            f"there, functions are found by module and name; write it as `def` at the top level of a module"
        ) from exc
    with suppress(TypeError):
        _initializers[initializer] = packed
    return packed


_TOP_LEVEL: Final = "classes and functions are found by module and name there: write it at the top level of a module"


def _is_local(error: BaseException) -> bool:
    """Return whether *error* says that a class or a function is local, and so cannot be found by its name."""
    return "<locals>" in str(error) or "<lambda>" in str(error)


def _innermost(func: object) -> object:
    while isinstance(func, partial):
        func = func.func
    return func


def read_payload(data: bytes | channel.Reader, func: object) -> Any:
    """Unpickle *data*, or what comes from it. Raises `NotSendableError` if that fails."""
    if isinstance(data, channel.Reader) and data.left <= channel.CHUNK_BYTES:
        data = data.take()
    try:
        if isinstance(data, bytes):
            return load(data) if b"__mp_main__" in data else pickle.loads(data)  # faster, with the same result
        try:
            return Unpickler(data).load()
        finally:
            data.skip()
    except (MemoryError, channel.PipeEndError):
        raise
    except Exception as exc:
        if isinstance(data, bytes) and _succeeds(load, data):
            raise  # unpickling works, so a signal handler raised it
        name = name_of(func)
        raise NotSendableError(f"what {name}() returned cannot be read in this process: {exc}") from exc


def _succeeds(func: Callable[..., object], *args: object) -> bool:
    try:
        func(*args)
    except Exception:
        return False
    return True


def _to_exception(about: tuple[Any, Any]) -> BaseException:
    """Return the exception that `unfazed._worker.call` has described."""
    error: BaseException
    text, rest = about
    if type(rest) is not list:
        return _load_exception(*about)
    members = cast("list[tuple[Any, Any]]", rest)
    group: Any = vars(builtins).get("BaseExceptionGroup")
    if group is None:  # pragma: no cover  before Python 3.11: anyio installs the backport
        group = importlib.import_module("exceptiongroup").BaseExceptionGroup
    error = group(text, [_to_exception(each) for each in members])
    return error


def _load_exception(pickled: bytes | None, text: str) -> BaseException:
    """Return the exception that was *pickled*. If it cannot be read, return its *text* as an error."""
    if pickled is None:
        return RemoteError(text)
    try:
        error = load(pickled)
    except Exception as exc:
        if _succeeds(load, pickled):
            raise  # unpickling works, so a signal handler raised it
        return RemoteError(f"{text} (it cannot be read in this process: {exc})")
    return error if isinstance(error, BaseException) else RemoteError(text)


def to_error(outcome: tuple[str, Any, str], func: object, helper: str) -> BaseException:
    """Return what to raise for the *outcome* of a call that did not return a value."""
    kind, about, text = outcome
    name = name_of(func)
    if kind == call.COROUTINE:
        return async_function_error(func, helper)
    error: BaseException
    if kind == call.UNSENDABLE_VALUE:
        advice = f"; {_TOP_LEVEL}" if "<loc" in about else ""
        error = NotSendableError(f"what {name}() returned cannot be sent back from its worker process, {about}{advice}")
    elif kind == call.UNREADABLE_REQUEST:
        error = unreadable = NotSendableError(
            f"{name}() or its arguments cannot be found in the worker process, {about}: what is sent must be at the "
            f"top level of a module that can be imported, or of a script, above its `if __name__ == '__main__':`"
        )
        unreadable.has_not_begun = True
    else:
        error = _to_exception(about)
    BaseException.__setattr__(error, "__cause__", RemoteTraceback(text))  # its class may define `__setattr__`
    return error
