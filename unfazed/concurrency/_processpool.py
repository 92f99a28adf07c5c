"""A call in a worker process, from async and from sync code.

The pool is anyio's: `anyio.to_process.run_sync` finds or starts a worker and hands it one pickled call. What
travels with the call, `_worker.run`, sees to it that the worker outlives whatever the function does.
"""

from __future__ import annotations

import io
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from anyio import BrokenWorkerProcess, to_process

from . import _slots, _worker
from ._checks import async_function_error, name_of, require_sync
from ._errors import NotSendableError, RemoteError, RemoteTraceback, WorkerProcessError
from ._eventloop import submit_to_background
from ._loops import NO_LIMIT, call_in, current_loop, hold_slot
from ._synccalls import call_from_sync

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
T = TypeVar("T")


def _pack(func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, Any], helper: str) -> bytes:
    """Pickle a call, or say what cannot be pickled and what to write instead."""
    require_sync(func, helper)
    try:
        return pickle.dumps((func, args, kwargs), pickle.HIGHEST_PROTOCOL)
    except Exception as exc:
        name = name_of(func)
        try:
            pickle.dumps(func, pickle.HIGHEST_PROTOCOL)
        except Exception:
            problem = f"{helper}() cannot send {name} to a worker process ({exc}): "
            if "<" in getattr(_innermost(func), "__qualname__", ""):  # <lambda>, <locals>
                problem += (
                    "there, functions are found by module and name; write it as `def` at the top level of a module"
                )
            else:
                problem += "what it belongs to cannot be pickled; send a plain function, and what it needs as arguments"
            problem += f", or run it in a thread, with `{helper.replace('process', 'thread')}({name}, ...)`"
        else:
            problem = f"{helper}() cannot send the arguments of {name}() to a worker process: {exc}"
        raise NotSendableError(problem) from exc


def _innermost(func: object) -> object:
    while isinstance(func, partial):
        func = func.func
    return func


class _Unpickler(pickle.Unpickler):
    """Reads what a worker sent, to which our `__main__` goes by another name, as in `multiprocessing`."""

    def find_class(self, module: str, name: str, /) -> Any:
        return super().find_class("__main__" if module == "__mp_main__" else module, name)


def _unpack(outcome: bytes, func: object, helper: str) -> Any:
    """Return the value that a worker sent, or raise the error."""
    name = name_of(func)
    try:
        kind, about, text = _Unpickler(io.BytesIO(outcome)).load()
    except Exception as exc:
        raise NotSendableError(f"what {name}() returned or raised cannot be read in this process: {exc}") from exc
    if kind == _worker.VALUE:
        return about
    if kind == _worker.COROUTINE:
        raise async_function_error(func, helper)
    if kind == _worker.UNSENDABLE_VALUE:
        about = NotSendableError(f"what {name}() returned cannot be sent back from its worker process, {about}")
    elif kind == _worker.UNREADABLE_REQUEST:
        about = NotSendableError(
            f"{name}() or its arguments cannot be found in the worker process, {about}: what is sent must be at the "
            f"top level of a module that can be imported, or of a script, above its `if __name__ == '__main__':`"
        )
    elif kind == _worker.UNREADABLE_ERROR:
        about = RemoteError(about)
    about.__cause__ = RemoteTraceback(text)
    try:
        raise about
    finally:
        del about


async def _send(request: bytes, name: str) -> bytes:
    """Send a pickled call to a worker and return its pickled outcome.

    anyio ends the worker where asyncio cancels the task that waits for it, and leaves one behind that is starting
    then. So a task of its own does that, which nobody cancels, and we wait for it.
    """
    loop = current_loop()
    slot = await hold_slot(loop, to_process.current_default_process_limiter())
    try:
        return await call_in(
            loop.submit,
            lambda: to_process.run_sync(_worker.run, request, limiter=NO_LIMIT),
            name,
            loop,
            pass_on=False,
        )
    except BrokenWorkerProcess as exc:
        if "initialization" in str(exc):
            reason = (
                "could not start: a script that uses worker processes needs its own calls behind "
                "`if __name__ == '__main__':`, for each worker imports it"
            )
        else:
            reason = "ended before it answered"
        raise WorkerProcessError(name, reason) from exc
    finally:
        _slots.release(slot)


async def run_in_processpool(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in a worker process and await its result.

    The same as `anyio.to_process.run_sync`, but for keyword arguments, for a worker that outlives what the function
    raises, and for the traceback there. Workers are started when they are needed and used again by all calls from
    the same event loop. Limited by anyio's default process limiter: as many as there are CPU cores.

    Args:
        func: A sync function at the top level of a module. Its positional and keyword arguments follow, whatever
            their names; all of them are pickled, and so is the result.

    Cancellation:
        Before the call has been sent, it never is. Later, this call waits for the worker, drops what it answered,
        and raises the cancellation; so it does on asyncio's own `task.cancel()`, however often. The slot is given
        back when the worker has answered.

    Returns:
        What *func* returned, or rather a copy.

    Raises:
        WrongFunctionError: If *func* is async, or cannot be called.
        NotSendableError: If *func*, its arguments or its result cannot be pickled.
        WorkerProcessError: If the worker ends before it has answered, or cannot start.
        RemoteError: If what *func* raised cannot be pickled.
        BaseException: Whatever *func* raised; its cause is a `RemoteTraceback`.

    Example:
        `digest = await run_in_processpool(hash_file, path, algorithm="sha256")`
    """
    request = _pack(func, args, kwargs, "run_in_processpool")
    result: T = _unpack(await _send(request, name_of(func)), func, "run_in_processpool")
    return result


def run_in_processpool_sync(func: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a sync function in a worker process and wait for its result: `run_in_processpool` for sync code.

    In a worker thread of an event loop the processes are that loop's, elsewhere the background event loop's.

    Args:
        func: A sync function at the top level of a module. Its positional and keyword arguments follow, whatever
            their names; all of them are pickled, and so is the result.

    Cancellation:
        Interrupted by Ctrl-C (or whatever a signal handler raises): a call that has not been sent never is, one
        that runs is waited for, and then the exception is raised. A second Ctrl-C stops waiting.

    Returns:
        What *func* returned, or rather a copy.

    Raises:
        LoopThreadError: If an event loop is running in this thread, which the call would block.
        LoopEndedError: If the interpreter is exiting.
        WrongFunctionError: If *func* is async, or cannot be called.
        NotSendableError: If *func*, its arguments or its result cannot be pickled.
        WorkerProcessError: If the worker ends before it has answered, or cannot start.
        RemoteError: If what *func* raised cannot be pickled.
        BaseException: Whatever *func* raised; its cause is a `RemoteTraceback`.

    Example:
        `digest = run_in_processpool_sync(hash_file, path, algorithm="sha256")`
    """
    request = _pack(func, args, kwargs, "run_in_processpool_sync")
    name = name_of(func)
    instead = f"await run_in_processpool({name}, ...)"
    helper = "run_in_processpool_sync"
    outcome = call_from_sync(partial(_send, request, name), name, helper, instead, submit_to_background)
    result: T = _unpack(outcome, func, helper)
    return result
