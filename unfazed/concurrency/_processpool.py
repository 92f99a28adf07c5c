"""A call in a worker process, from async and from sync code.

The pool is anyio's: `anyio.to_process.run_sync` finds or starts a worker and hands it one pickled call. What
travels with the call, `_worker.run`, sees to it that the worker outlives whatever the function does.
"""

from __future__ import annotations

import io
import pickle
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar

from anyio import BrokenWorkerProcess, CancelScope, to_process

from . import _slots, _worker
from ._checks import (
    Dual,
    async_function_error,
    name_of,
    require_flag,
    require_limiter,
    require_sync,
    require_timeout,
)
from ._errors import NotSendableError, RemoteError, RemoteTraceback, WorkerProcessError
from ._eventloop import submit_to_background
from ._loops import current_loop
from ._references import to_send
from ._synccalls import call_from_sync, lending
from ._waits import NO_LIMIT, Timeout, call_in, hold_slot, within

if TYPE_CHECKING:
    from collections.abc import Callable

    from anyio import CapacityLimiter

P = ParamSpec("P")
T = TypeVar("T")


class ProcessOptions(NamedTuple):
    """What `in_processpool` takes; it says what each one means."""

    limiter: CapacityLimiter | None = None
    kill_on_cancel: bool = False
    timeout: float | None = None


NO_OPTIONS: Final = ProcessOptions()


def _pack(func: Callable[..., object], args: tuple[object, ...], kwargs: dict[str, Any], helper: str) -> bytes:
    """Pickle a call, or say what cannot be pickled and what to write instead."""
    sent = to_send(func)
    try:
        return pickle.dumps((sent, args, kwargs), pickle.HIGHEST_PROTOCOL)
    except Exception as exc:
        name = name_of(func)
        try:
            pickle.dumps(sent, pickle.HIGHEST_PROTOCOL)
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


class _Call:
    """One call in a worker process."""

    def __init__(
        self,
        helper: str,
        func: Callable[..., object],
        args: tuple[object, ...],
        kwargs: dict[str, Any],
        options: ProcessOptions = NO_OPTIONS,
    ) -> None:
        self._helper = helper
        self._func = func
        self._name = name_of(func)
        self._options = options
        self._timeout = None if options.timeout is None else Timeout(options.timeout, self._name)
        self._request = _pack(func, args, kwargs, helper)

    async def run(self) -> bytes:
        """Send the call to a worker and return its pickled outcome.

        anyio ends the worker where asyncio cancels the task that waits for it, and leaves one behind that is starting
        then. So a task of its own does that, which nobody cancels, and we wait for it: not beyond the timeout, nor
        at all where that is the option; then the worker is killed.
        """
        try:
            return await lending(within(self._timeout, self._run))
        except BrokenWorkerProcess as exc:
            if "initialization" in str(exc):
                reason = (
                    "could not start: a script that uses worker processes needs its own calls behind "
                    "`if __name__ == '__main__':`, for each worker imports it"
                )
            else:
                reason = "ended before it answered"
            raise WorkerProcessError(self._name, reason) from exc

    async def _run(self, timer: CancelScope | None) -> bytes:
        loop = current_loop()
        limiter, kill_on_cancel, _ = self._options
        slot = await hold_slot(loop, limiter or to_process.current_default_process_limiter())
        life = CancelScope()  # around the call, once its worker has started: cancelled to kill that
        send = self._send if timer is None and not kill_on_cancel else partial(self._send_or_kill, life)

        def cancel(_: object) -> None:
            if kill_on_cancel:
                life.cancel()

        try:
            return await call_in(
                loop.submit, send, self._name, loop, on_cancel=cancel, timer=timer, on_timeout=life.cancel
            )
        finally:
            _slots.release(slot)

    async def _send(self) -> bytes:
        return await to_process.run_sync(_worker.run, self._request, limiter=NO_LIMIT)

    async def _send_or_kill(self, life: CancelScope) -> bytes:
        """Do the same, so that it can be killed from the moment that a worker has started.

        Cancelled while it starts one, anyio would leave it behind. Where one has answered, it goes on with that one.
        """
        await to_process.run_sync(int, limiter=NO_LIMIT)
        with life:
            return await to_process.run_sync(_worker.run, self._request, cancellable=True, limiter=NO_LIMIT)
        return b""  # nobody reads it: who has had it killed raises

    def read(self, outcome: bytes) -> Any:
        return _unpack(outcome, self._func, self._helper)

    def wait_for(self, helper: str, instead: str) -> Any:
        """Run the call for sync code, and return its value."""
        return self.read(call_from_sync(self.run, self._name, helper, instead, submit_to_background))


def _require(func: Callable[P, T], helper: str) -> Callable[P, T]:
    """Return the function to be sent, or refuse *func*. A dual callable stands for what it wraps."""
    wrapped: Callable[P, T] = func.__wrapped__ if isinstance(func, Dual) else func
    require_sync(wrapped, helper)
    return wrapped


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
    call = _Call("run_in_processpool", _require(func, "run_in_processpool"), args, kwargs)
    result: T = call.read(await call.run())
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
    helper = "run_in_processpool_sync"
    call = _Call(helper, _require(func, helper), args, kwargs)
    result: T = call.wait_for(helper, f"await run_in_processpool({name_of(func)}, ...)")
    return result


class ProcessPlace(ProcessOptions):
    """Where `in_processpool` runs a function, and how."""

    __slots__ = ()

    def check(self) -> None:
        """Refuse wrong options."""
        require_limiter(self.limiter, "in_processpool")
        require_flag(self.kill_on_cancel, "kill_on_cancel", "in_processpool")
        require_timeout(self.timeout, "in_processpool")

    def require(self, func: Callable[..., object]) -> None:
        """Refuse what cannot run here."""
        require_sync(func, "in_processpool")

    async def run(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call for async code."""
        call = _Call("in_processpool", func, args, kwargs, self)
        return call.read(await call.run())

    def run_sync(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call for sync code."""
        name = name_of(func)
        return _Call("in_processpool", func, args, kwargs, self).wait_for(f"{name}.sync", f"await {name}(...)")
