"""A call in a worker process, from async and from sync code.

The pool is anyio's: `anyio.to_process.run_sync` finds or starts a worker and hands it one pickled call. What
travels with the call, `_worker.trampoline.run`, sees to it that the worker outlives whatever the function does.
"""

from __future__ import annotations

import itertools
import math
import os
import pickle
import sys
import threading
import types
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple, ParamSpec, TypeVar, cast
from weakref import WeakKeyDictionary

from anyio import (
    BrokenWorkerProcess,
    CancelScope,
    EndOfStream,
    create_task_group,
    current_time,
    get_cancelled_exc_class,
    to_process,
)

from .._worker import logs, payloads, settling, trampoline
from . import _relay, _slots
from ._checks import (
    Dual,
    async_function_error,
    name_of,
    require_count,
    require_flag,
    require_limiter,
    require_sync,
    require_timeout,
)
from ._errors import NotSendableError, RemoteError, RemoteTraceback, WorkerProcessError
from ._eventloop import submit_to_background
from ._loops import current_loop
from ._references import Unpickler, to_send
from ._synccalls import call_from_sync, lending
from ._waits import NO_LIMIT, DefaultLimiter, Timeout, call_beside, until_held, within

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Generator

    from anyio import CapacityLimiter

    from ._calls import Loop

P = ParamSpec("P")
T = TypeVar("T")


class ProcessOptions(NamedTuple):
    """What `in_processpool` takes; it says what each one means."""

    limiter: CapacityLimiter | None = None
    kill_on_cancel: bool = False
    timeout: float | None = None
    initializer: Callable[[], object] | None = None
    max_calls: int | None = None


START_SECONDS: Final = 5.0  # after which a worker has started, or hangs; arbitrary
TRIES: Final = 3  # how many workers in a row may turn out to have ended before the call; arbitrary
_serials = itertools.count(1)  # numbers of calls; 0 is none
NO_OPTIONS: Final = ProcessOptions()
_default_limiter = DefaultLimiter(to_process.current_default_process_limiter)


def _pack(
    func: Callable[..., object],
    args: tuple[object, ...],
    kwargs: dict[str, Any],
    helper: str,
    memory: payloads.Memory | None,
) -> bytes:
    """Pickle a call, or say what cannot be pickled and what to write instead."""
    sent = to_send(func)
    if not kwargs and all(map(payloads.is_small, args)):
        memory = None
    try:
        return payloads.pack((sent, args, kwargs), memory)
    except MemoryError:
        raise
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


# As each was when it was wrapped: a worker calls it once, whatever becomes of what it refers to here.
_initializers: WeakKeyDictionary[Callable[[], object], bytes] = WeakKeyDictionary()


def _pack_initializer(initializer: Callable[[], object]) -> bytes:
    with suppress(KeyError, TypeError):  # not every object can be a key there
        return _initializers[initializer]
    try:
        packed = pickle.dumps(to_send(initializer), pickle.HIGHEST_PROTOCOL)
    except Exception as exc:
        raise NotSendableError(
            f"in_processpool() cannot send its initializer {name_of(initializer)} to a worker process ({exc}): "
            f"there, functions are found by module and name; write it as `def` at the top level of a module"
        ) from exc
    with suppress(TypeError):
        _initializers[initializer] = packed
    return packed


def _innermost(func: object) -> object:
    while isinstance(func, partial):
        func = func.func
    return func


def _unpack(outcome: trampoline.Outcome, memory: payloads.Memory | None, func: object, helper: str) -> Any:
    """Return the value that a worker sent, or raise the error."""
    if isinstance(outcome, tuple):
        return outcome[0]
    name = name_of(func)
    try:
        kind, about, text = payloads.unpack(outcome, memory, Unpickler)
    except MemoryError:
        raise
    except Exception as exc:
        raise NotSendableError(f"what {name}() returned or raised cannot be read in this process: {exc}") from exc
    if kind == trampoline.VALUE:
        return about
    if kind == trampoline.COROUTINE:
        raise async_function_error(func, helper)
    if kind == trampoline.UNSENDABLE_VALUE:
        about = NotSendableError(f"what {name}() returned cannot be sent back from its worker process, {about}")
    elif kind == trampoline.UNREADABLE_REQUEST:
        about = NotSendableError(
            f"{name}() or its arguments cannot be found in the worker process, {about}: what is sent must be at the "
            f"top level of a module that can be imported, or of a script, above its `if __name__ == '__main__':`"
        )
    elif kind == trampoline.UNREADABLE_ERROR:
        about = RemoteError(about)
    try:
        raise about from RemoteTraceback(text)
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
        self._options = options
        self._timeout = None if options.timeout is None else Timeout(options.timeout, name_of(func))
        self._initializer = None if options.initializer is None else _pack_initializer(options.initializer)
        self._memory = payloads.borrow()
        self._in_use = False  # whether a worker may read or write the memory
        try:
            self._request = _pack(func, args, kwargs, helper, self._memory)
        except BaseException:
            self._give_back()
            raise
        self._serial = next(_serials)
        self._context = copy_context()  # in which its log records are handled
        self._levels = logs.levels() if _relay.settings.logs else None
        self._life: CancelScope | None = None  # around its stay in a worker: cancelled to end that
        self._killed = False
        self._safe_from = -math.inf  # when a worker that is killed is left behind no more, as the loop knows time
        self._records = 0  # how many log records the worker has sent
        self._hears = not _relay.is_handling()  # a handler would wait for itself

    def run(self) -> Awaitable[trampoline.Outcome]:
        """Send the call to a worker and return its outcome.

        anyio ends the worker where asyncio cancels the task that waits for it, and leaves one behind that is starting
        then. So a task of its own does that, which nobody cancels, and we wait for it: not beyond the timeout, nor
        at all where that is the option; then the worker is killed.
        """
        return lending(within(self._timeout, self._run))

    async def _run(self, timer: CancelScope | None) -> trampoline.Outcome:
        loop = current_loop()
        limiter, kill_on_cancel, *_ = self._options
        slot = _slots.acquire(limiter or _default_limiter.of(loop))
        try:
            if not slot.held:
                await until_held(slot, loop)
            return await call_beside(
                partial(self._send, loop),
                self._func,
                loop,
                on_cancel=self._kill if kill_on_cancel else _wait_all_the_same,
                timer=timer,
                on_timeout=self._kill,
            )
        finally:
            _slots.release(slot)

    def _kill(self) -> None:
        self._killed = True
        if self._life is not None:
            self._life.deadline = max(current_time(), self._safe_from)

    def _error(self, reason: str) -> WorkerProcessError:
        return WorkerProcessError(name_of(self._func), reason)

    async def _send(self, loop: Loop) -> trampoline.Outcome:
        """Have a worker run the call, whatever became of that worker since its last one."""
        relay = _relay.current()
        tries_left = TRIES
        while not self._killed:  # it may be before it has begun
            tries_left -= 1
            self._life = life = CancelScope()
            flight = _relay.Flight(loop, self._context, life.cancel)
            try:
                if relay is not None:
                    relay.flights[self._serial] = flight
                with life:
                    if self._timeout is not None or self._options.kill_on_cancel:
                        # Killed while it starts, a worker would be left behind. This one is the next to be taken.
                        self._safe_from = current_time() + START_SECONDS
                        await _ask(os.getpid)
                        self._safe_from = -math.inf
                    if not self._killed:
                        await self._exchange(relay, flight)
                missing = self._records > flight.records  # log records that the worker has sent before its answer
                if missing and relay is not None and self._hears and not self._killed:
                    with CancelScope() as self._life:
                        await flight.heard(relay, self._records)
            except BrokenWorkerProcess as exc:
                interrupted = isinstance(exc.__cause__, KeyboardInterrupt)  # by Ctrl-C, before it could be told not to
                starting = "initialization" in str(exc)
                if starting and not (interrupted and tries_left):
                    raise self._error(_why_not_started(exc.__cause__)) from exc
                if relay is not None:
                    await relay.settled(loop, self._hears)
                if not starting and (relay is None or flight.begun or not tries_left):
                    raise self._error(f"ended {flight.status} before it answered") from exc
            else:
                if flight.outcome is None and flight.begun:
                    assert relay is not None, "who else would have told"
                    await relay.settled(loop, self._hears)
                    raise self._error(f"ended {flight.status} before it answered")
                return flight.outcome or b""  # which nobody reads: who has had it killed raises
            finally:
                if relay is not None:
                    del relay.flights[self._serial]
        return b""  # as above

    async def _exchange(self, relay: _relay.Relay | None, flight: _relay.Flight) -> None:
        """Send the call and take its outcome; then end the worker if it has served its time, or is out of step."""
        address = None if relay is None else relay.address
        initializer = self._initializer
        self._in_use = True
        memory = None if self._memory is None else self._memory.address
        answer = await _ask(trampoline.run, self._serial, self._request, initializer, address, self._levels, memory)
        pending = 0  # how many answers are to come that nobody waits for
        while (mine := self._recognize(answer)) is None:
            # The answer to something else: Ctrl-C, before the worker had been told to ignore it, or a call before
            # that. Nothing comes in between: the next question goes to the worker that was used last.
            error, answer = answer, await _ask(os.getpid)
            if isinstance(error, BaseException) and isinstance(answer, (int, Exception)):
                # That was ours: we are not found there, or no worker can be asked at all.
                raise self._error(f"could not run it ({type(error).__qualname__}: {error})") from error
            pending += 1
        _, calls, records, outcome = mine
        self._in_use = False
        if outcome == trampoline.UNHEARD:
            flight.begun = True  # nobody could tell
            await self._exchange(None, flight)
            return
        if outcome == trampoline.UNREACHABLE:
            self._request = payloads.to_plain(self._request, self._memory)
            self._give_back()
            await self._exchange(relay, flight)
            return
        flight.outcome, self._records = outcome, records  # before all that ends when the worker does
        max_calls = self._options.max_calls
        if pending or (max_calls is not None and calls >= max_calls):
            await _retire(pending)

    def _recognize(self, answer: object) -> tuple[int, int, int, trampoline.Outcome] | None:
        """Return *answer* if it is the one to this call."""
        known = cast("tuple[int, int, int, trampoline.Outcome]", answer)
        return known if isinstance(answer, tuple) and known[:1] == (self._serial,) else None

    def _give_back(self) -> None:
        memory, self._memory = self._memory, None
        if memory is not None:
            payloads.give_back(memory, clean=not self._in_use)

    async def value(self) -> Any:
        """Run the call for async code, and return its value."""
        try:
            return _unpack(await self.run(), self._memory, self._func, self._helper)
        finally:
            self._give_back()

    def wait_for(self, helper: str, instead: str) -> Any:
        """Run the call for sync code, and return its value."""
        try:
            outcome = call_from_sync(self.run, self._func, helper, instead, submit_to_background)
            return _unpack(outcome, self._memory, self._func, self._helper)
        finally:
            self._give_back()


async def _ask(func: Callable[..., object], *args: object) -> object:
    """Return what a worker answers, which is the one that answered last, or a new one; an exception as it is."""
    asking = to_process.run_sync(func, *args, cancellable=True, limiter=NO_LIMIT)
    try:
        return await (_in_turns(asking) if "uvloop" in sys.modules else asking)
    except (BrokenWorkerProcess, get_cancelled_exc_class()):
        raise
    except OSError as exc:  # of this process, which cannot start one, or of one that is gone before it is ready
        raise BrokenWorkerProcess("Error during worker process initialization") from exc
    except BaseException as exc:
        return exc


_turn = threading.RLock()  # held for each step of what may start a worker; made anew in a forked child


@types.coroutine
def _in_turns(coroutine: Coroutine[Any, Any, T]) -> Generator[Any, Any, T]:
    """Await *coroutine*, each step of it while no other thread is at one.

    uvloop lets other threads run while it starts a process, for what is done before a fork is written in Python; and
    it refuses to start one while another loop is at it, and leaks that one's pipes.
    """
    step: Callable[[Any], Any] = coroutine.send
    sent: Any = None
    while True:
        with _turn:
            try:
                awaited = step(sent)
            except StopIteration as stop:
                value: T = stop.value
                return value
        try:
            step, sent = coroutine.send, (yield awaited)
        except BaseException as exc:
            step, sent = coroutine.throw, exc


def _forget_turn() -> None:
    global _turn
    _turn = threading.RLock()


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_forget_turn)


async def _retire(pending: int) -> None:
    """End the worker that answered last, and have anyio see that, before it is given another call."""
    with suppress(BrokenWorkerProcess):
        for _ in range(pending + 1):  # pragma: no branch  the last one breaks the worker
            await _ask(trampoline.retire)


def _why_not_started(error: BaseException | None) -> str:
    if isinstance(error, ImportError) and "relative import" in str(error):
        return (
            f"could not start, as it could not import the main module ({error}): `python -m package` needs absolute "
            f"imports in its `__main__.py`, for each worker imports that by its path"
        )
    cannot = isinstance(error, (OSError, NotImplementedError))  # this system, or this event loop
    if cannot and not isinstance(error, ProcessLookupError):  # the worker is gone
        return f"could not start ({type(error).__qualname__}: {error})"
    silent = error is None or isinstance(error, (EndOfStream, ProcessLookupError))
    if not (silent or isinstance(error, RuntimeError)):
        return f"could not start, as it could not import the main module ({type(error).__qualname__}: {error})"
    reason = "" if silent else f" ({type(error).__qualname__}: {error})"
    return (
        f"could not start{reason}: a script that uses worker processes needs its own calls behind "
        f"`if __name__ == '__main__':`, for each worker imports it"
    )


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
        WrongFunctionError: If *func* is async, or returns a coroutine, or cannot be called.
        NotSendableError: If *func*, its arguments or its result cannot be pickled.
        WorkerProcessError: If the worker ends before it has answered, or cannot start.
        RemoteError: If what *func* raised cannot be pickled.
        BaseException: Whatever *func* raised; its cause is a `RemoteTraceback`.

    Example:
        `digest = await run_in_processpool(hash_file, path, algorithm="sha256")`
    """
    call = _Call("run_in_processpool", _require(func, "run_in_processpool"), args, kwargs)
    result: T = await call.value()
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
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the interpreter is exiting.
        WrongFunctionError: If *func* is async, or returns a coroutine, or cannot be called.
        NotSendableError: If *func*, its arguments or its result cannot be pickled.
        WorkerProcessError: If the worker ends before it has answered, or cannot start.
        RemoteError: If what *func* raised cannot be pickled.
        BaseException: Whatever *func* raised; its cause is a `RemoteTraceback`.

    Example:
        `digest = run_in_processpool_sync(hash_file, path, algorithm="sha256")`
    """
    helper = "run_in_processpool_sync"
    call = _Call(helper, _require(func, helper), args, kwargs)
    result: T = call.wait_for(helper, "await run_in_processpool({}, ...)")
    return result


async def warm_up_processpool(count: int, /) -> None:
    """Start worker processes ahead of the first calls, and wait until they are there.

    Args:
        count: How many are to be there, those that have been started before included. Those of this event loop, whose
            calls use them; how many of them are used at once is up to the limiter of the calls.

    Cancellation:
        Waits until the workers have started, and then raises.

    Raises:
        WrongOptionError: If *count* is no number of processes.
        WorkerProcessError: If one cannot start.

    Example:
        `await warm_up_processpool(4)`
    """
    require_count(count, "count", "warm_up_processpool")
    loop = current_loop()
    await call_beside(partial(_start_workers, count), warm_up_processpool, loop, on_cancel=_wait_all_the_same)


def warm_up_processpool_sync(count: int, /) -> None:
    """Start worker processes ahead of the first calls: `warm_up_processpool` for sync code.

    Args:
        count: How many are to be there, those that have been started before included. In a worker thread of an event
            loop they are that loop's, elsewhere the background event loop's.

    Cancellation:
        Interrupted by Ctrl-C, it waits until the workers have started, and then raises. A second Ctrl-C stops waiting.

    Raises:
        LoopThreadError: If an event loop is running in this thread, which the call would block.
        LoopStartError: If the background event loop cannot start.
        LoopEndedError: If the interpreter is exiting.
        WrongOptionError: If *count* is no number of processes.
        WorkerProcessError: If one cannot start.

    Example:
        `warm_up_processpool_sync(4)`
    """
    helper = "warm_up_processpool_sync"
    require_count(count, "count", helper)
    warm_up = partial(warm_up_processpool, count)
    call_from_sync(warm_up, warm_up, helper, f"await warm_up_processpool({count})", submit_to_background)


def _wait_all_the_same() -> None:
    """Do nothing about a cancellation: the worker is at work, or starting, and would be left behind."""


async def _start_workers(count: int) -> None:
    """Have so many workers at once say that they are there: each is one that is idle, or a new one."""
    errors: list[Exception] = []
    address = None if (relay := _relay.current()) is None else relay.address

    async def start() -> None:
        try:
            answer = await _ask(settling.settle_in, address)
        except BrokenWorkerProcess as exc:
            errors.append(exc)
        else:
            if isinstance(answer, Exception):
                errors.append(answer)

    async with create_task_group() as tasks:
        for _ in range(count):
            tasks.start_soon(start)
    if errors:
        error = errors[0]
        reason = _why_not_started(error.__cause__ if isinstance(error, BrokenWorkerProcess) else error)
        raise WorkerProcessError("warm_up_processpool", reason) from error


def configure_processpool(*, output: bool = True, logs: bool = True) -> None:
    """Say what becomes of what worker processes write and log; at any time, for all event loops of this process.

    Args:
        output: Whether what they write, by `print` or otherwise, appears on `sys.stderr`, in whole lines. Else it is
            dropped.
        logs: Whether the records of their loggers are handled by the loggers of the same name here, if their levels
            here are met. Else they are the worker's own affair, which has no handlers unless the function's modules
            add some: warnings go to its output. Calls that run already are not concerned.

    Raises:
        WrongOptionError: If an option is not True or False.

    Example:
        `configure_processpool(output=False)`
    """
    require_flag(output, "output", "configure_processpool")
    require_flag(logs, "logs", "configure_processpool")
    _relay.settings.output = output
    _relay.settings.logs = logs


class ProcessPlace(ProcessOptions):
    """Where `in_processpool` runs a function, and how."""

    __slots__ = ()

    def check(self) -> None:
        """Refuse wrong options."""
        require_limiter(self.limiter, "in_processpool")
        require_flag(self.kill_on_cancel, "kill_on_cancel", "in_processpool")
        require_timeout(self.timeout, "in_processpool")
        if self.initializer is not None:
            require_sync(self.initializer, "in_processpool(initializer=...)")
            _pack_initializer(self.initializer)
        if self.max_calls is not None:
            require_count(self.max_calls, "max_calls", "in_processpool", at_least=1)

    def require(self, func: Callable[..., object]) -> None:
        """Refuse what cannot run here."""
        require_sync(func, "in_processpool")

    async def run(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call for async code."""
        return await _Call("in_processpool", func, args, kwargs, self).value()

    def run_sync(self, func: Callable[..., Any], args: tuple[object, ...], kwargs: dict[str, Any]) -> Any:
        """Run a call for sync code."""
        return _Call("in_processpool", func, args, kwargs, self).wait_for("{}.sync", "await {}(...)")
