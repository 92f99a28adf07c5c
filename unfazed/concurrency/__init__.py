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
"""

from .. import __version__ as __version__
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
    "AsyncMapIterator",
    "CallCancelledError",
    "CallGroup",
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
    "LoopEndedError",
    "LoopStartError",
    "LoopStateError",
    "LoopThreadError",
    "MapIterator",
    "NotSendableError",
    "RemoteError",
    "RemoteTraceback",
    "ThreadpoolIterator",
    "UnfazedError",
    "WorkerProcessError",
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
    "sync_twin",
    "warm_up_processpool",
    "warm_up_processpool_sync",
)
