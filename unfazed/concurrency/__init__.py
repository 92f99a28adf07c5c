"""Write a call once, say where it runs, and make it from async code or from sync code, on asyncio or on trio.

A call has a place, where it runs, and a caller, who waits for it. Every name says both:

    await run_in_threadpool(func, ...)              run_in_threadpool_sync(func, ...)           a worker thread
    await run_in_processpool(func, ...)             run_in_processpool_sync(func, ...)          a worker process
    await run_in_executor(executor, func, ...)      run_in_executor_sync(executor, func, ...)   any executor
    await run_in_eventloop(func, ...)               run_in_eventloop_sync(func, ...)            an event loop

With `start_in_` instead of `run_in_`, such a call starts and returns its `Handle` at once, from async and sync code: a
`concurrent.futures.Future` that can also be awaited. In a `CallGroup`, calls that were started end together.

Many of them at once, bounded, as an iterator over the results:

    async for result in map_in_threadpool(func, items)         for result in map_in_threadpool_sync(func, items)
    and the same for `map_in_processpool`, `map_in_executor` and `map_in_eventloop`

Options go to the decorators, which make a function that can be called in all these ways: `await read(path)`,
`read.sync(path)`, `read.start(path)`, `read.map(paths)`, `read.map.sync(paths)`.

    in_threadpool(limiter=..., abandon_on_cancel=..., timeout=..., context=...)
    in_processpool(limiter=..., kill_on_cancel=..., timeout=..., initializer=..., max_calls=...)
    in_executor(executor, timeout=...)
    in_eventloop(timeout=..., context=...)

Iterators and context managers cross the border in the same words: `iterate_in_threadpool`,
`iterate_in_eventloop_sync`, `contextmanager_in_threadpool`, `contextmanager_in_eventloop_sync`. `EventLoopThread` is
an event loop in a thread of its own. `sync_twin` makes a class for sync code from an async one. `check_cancelled` stops
a function in a thread, and `allow_blocking_loop` lets sync calls wait where an event loop runs.

What goes on inside: `statistics()` returns numbers, `dump_calls()` writes who waits for whom, `observe(...)` tells an
object about each call, and `record_calls()` gives a test the calls of a block.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .. import __version__ as __version__
from ._core import _lifetime as _lifetime  # now, because of exit handlers and fork handlers of the program

if TYPE_CHECKING:
    from ._core._errors import (
        CallCancelledError,
        CallTimeoutError,
        ExecutorError,
        InUseError,
        LoopEndedError,
        LoopStartError,
        LoopStateError,
        LoopThreadError,
        NotSendableError,
        RemoteError,
        RemoteTraceback,
        UnfazedError,
        WorkerProcessError,
        WrongFunctionError,
        WrongOptionError,
    )
    from ._core._observing import CallObserver, Observation, ObservedCall, observe
    from ._dual import (
        DualCallable,
        DualContextManager,
        DualIterator,
        DualMethod,
        in_eventloop,
        in_executor,
        in_processpool,
        in_threadpool,
    )
    from ._eventloops._background import (
        configure_background_eventloop,
        run_in_eventloop,
        run_in_eventloop_sync,
        start_in_eventloop,
    )
    from ._eventloops._blocking import allow_blocking_loop
    from ._eventloops._handle import Handle
    from ._eventloops._loopthread import EventLoopThread
    from ._executors import run_in_executor, run_in_executor_sync, start_in_executor
    from ._inside._dump import dump_calls
    from ._inside._recording import record_calls
    from ._inside._statistics import (
        AbandonedThread,
        BackgroundLoopStatistics,
        CallStatistics,
        LimiterStatistics,
        PlaceStatistics,
        Statistics,
        WorkerStatistics,
        statistics,
    )
    from ._many import CallGroup
    from ._many._mapasync import map_in_eventloop, map_in_executor, map_in_processpool, map_in_threadpool
    from ._many._mapdual import DualMap
    from ._many._mapiterators import AsyncMapIterator, MapIterator
    from ._many._mapsync import (
        map_in_eventloop_sync,
        map_in_executor_sync,
        map_in_processpool_sync,
        map_in_threadpool_sync,
    )
    from ._processes import (
        configure_processpool,
        run_in_processpool,
        run_in_processpool_sync,
        start_in_processpool,
        warm_up_processpool,
        warm_up_processpool_sync,
    )
    from ._scoped._contextmanagers import contextmanager_in_eventloop_sync, contextmanager_in_threadpool
    from ._scoped._taskiterators import iterate_in_eventloop_sync
    from ._scoped._threaditerators import ThreadpoolIterator, iterate_in_threadpool
    from ._threads._cancellation import check_cancelled
    from ._threads._threadcall import count_abandoned_threads
    from ._threads._threadpool import (
        configure_threadpool,
        run_in_threadpool,
        run_in_threadpool_sync,
        start_in_threadpool,
    )
    from ._twins import sync_twin

__all__ = (
    "AbandonedThread",
    "AsyncMapIterator",
    "BackgroundLoopStatistics",
    "CallCancelledError",
    "CallGroup",
    "CallObserver",
    "CallStatistics",
    "CallTimeoutError",
    "DualCallable",
    "DualContextManager",
    "DualIterator",
    "DualMap",
    "DualMethod",
    "EventLoopThread",
    "ExecutorError",
    "Handle",
    "InUseError",
    "LimiterStatistics",
    "LoopEndedError",
    "LoopStartError",
    "LoopStateError",
    "LoopThreadError",
    "MapIterator",
    "NotSendableError",
    "Observation",
    "ObservedCall",
    "PlaceStatistics",
    "RemoteError",
    "RemoteTraceback",
    "Statistics",
    "ThreadpoolIterator",
    "UnfazedError",
    "WorkerProcessError",
    "WorkerStatistics",
    "WrongFunctionError",
    "WrongOptionError",
    "allow_blocking_loop",
    "check_cancelled",
    "configure_background_eventloop",
    "configure_processpool",
    "configure_threadpool",
    "contextmanager_in_eventloop_sync",
    "contextmanager_in_threadpool",
    "count_abandoned_threads",
    "dump_calls",
    "in_eventloop",
    "in_executor",
    "in_processpool",
    "in_threadpool",
    "iterate_in_eventloop_sync",
    "iterate_in_threadpool",
    "map_in_eventloop",
    "map_in_eventloop_sync",
    "map_in_executor",
    "map_in_executor_sync",
    "map_in_processpool",
    "map_in_processpool_sync",
    "map_in_threadpool",
    "map_in_threadpool_sync",
    "observe",
    "record_calls",
    "run_in_eventloop",
    "run_in_eventloop_sync",
    "run_in_executor",
    "run_in_executor_sync",
    "run_in_processpool",
    "run_in_processpool_sync",
    "run_in_threadpool",
    "run_in_threadpool_sync",
    "start_in_eventloop",
    "start_in_executor",
    "start_in_processpool",
    "start_in_threadpool",
    "statistics",
    "sync_twin",
    "warm_up_processpool",
    "warm_up_processpool_sync",
)

# Where the names are. A room is imported when one of its names is first used.
_HOMES = {
    "AbandonedThread": "_inside._statistics",
    "AsyncMapIterator": "_many._mapiterators",
    "BackgroundLoopStatistics": "_inside._statistics",
    "CallCancelledError": "_core._errors",
    "CallGroup": "_many",
    "CallObserver": "_core._observing",
    "CallStatistics": "_inside._statistics",
    "CallTimeoutError": "_core._errors",
    "DualCallable": "_dual",
    "DualContextManager": "_dual",
    "DualIterator": "_dual",
    "DualMap": "_many._mapdual",
    "DualMethod": "_dual",
    "EventLoopThread": "_eventloops._loopthread",
    "ExecutorError": "_core._errors",
    "Handle": "_eventloops._handle",
    "InUseError": "_core._errors",
    "LimiterStatistics": "_inside._statistics",
    "LoopEndedError": "_core._errors",
    "LoopStartError": "_core._errors",
    "LoopStateError": "_core._errors",
    "LoopThreadError": "_core._errors",
    "MapIterator": "_many._mapiterators",
    "NotSendableError": "_core._errors",
    "Observation": "_core._observing",
    "ObservedCall": "_core._observing",
    "PlaceStatistics": "_inside._statistics",
    "RemoteError": "_core._errors",
    "RemoteTraceback": "_core._errors",
    "Statistics": "_inside._statistics",
    "ThreadpoolIterator": "_scoped._threaditerators",
    "UnfazedError": "_core._errors",
    "WorkerProcessError": "_core._errors",
    "WorkerStatistics": "_inside._statistics",
    "WrongFunctionError": "_core._errors",
    "WrongOptionError": "_core._errors",
    "allow_blocking_loop": "_eventloops._blocking",
    "check_cancelled": "_threads._cancellation",
    "configure_background_eventloop": "_eventloops._background",
    "configure_processpool": "_processes",
    "configure_threadpool": "_threads._threadpool",
    "contextmanager_in_eventloop_sync": "_scoped._contextmanagers",
    "contextmanager_in_threadpool": "_scoped._contextmanagers",
    "count_abandoned_threads": "_threads._threadcall",
    "dump_calls": "_inside._dump",
    "in_eventloop": "_dual",
    "in_executor": "_dual",
    "in_processpool": "_dual",
    "in_threadpool": "_dual",
    "iterate_in_eventloop_sync": "_scoped._taskiterators",
    "iterate_in_threadpool": "_scoped._threaditerators",
    "map_in_eventloop": "_many._mapasync",
    "map_in_eventloop_sync": "_many._mapsync",
    "map_in_executor": "_many._mapasync",
    "map_in_executor_sync": "_many._mapsync",
    "map_in_processpool": "_many._mapasync",
    "map_in_processpool_sync": "_many._mapsync",
    "map_in_threadpool": "_many._mapasync",
    "map_in_threadpool_sync": "_many._mapsync",
    "observe": "_core._observing",
    "record_calls": "_inside._recording",
    "run_in_eventloop": "_eventloops._background",
    "run_in_eventloop_sync": "_eventloops._background",
    "run_in_executor": "_executors",
    "run_in_executor_sync": "_executors",
    "run_in_processpool": "_processes",
    "run_in_processpool_sync": "_processes",
    "run_in_threadpool": "_threads._threadpool",
    "run_in_threadpool_sync": "_threads._threadpool",
    "start_in_eventloop": "_eventloops._background",
    "start_in_executor": "_executors",
    "start_in_processpool": "_processes",
    "start_in_threadpool": "_threads._threadpool",
    "statistics": "_inside._statistics",
    "sync_twin": "_twins",
    "warm_up_processpool": "_processes",
    "warm_up_processpool_sync": "_processes",
}

if not TYPE_CHECKING:  # or else type checkers would accept every name

    def __getattr__(name: str) -> object:
        """Import a public name on its first use."""
        home = _HOMES.get(name)
        if home is None:
            raise AttributeError(
                f"module {__name__!r} has no attribute {name!r}", name=name, obj=import_module(__name__)
            )
        value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
        return value

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
