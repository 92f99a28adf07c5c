"""Which loop runs a call of `async_to_sync`, and how the calling thread waits for that.

    in a worker thread of a loop    the worker's loop
    in any other thread             the loop of the thread's `LoopThread`; with `force_new_loop`, of a new one
    in `AsyncSingleThreadContext`   instead of the latter, the loop of the `LoopThread` that its threads share

While it waits, the calling thread makes the thread-sensitive calls that the loop sends back to it.
"""

from __future__ import annotations

import asyncio
import functools
import os
from typing import TYPE_CHECKING, Any

from . import _shared
from ._loops import Loop, TrioLoop, is_worker, loop_of_worker
from ._loopthreads import LoopThread, is_stopped, loop_thread_of_this_thread

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future
    from contextvars import Context

    from ._currentthreadexecutor import CurrentThreadExecutor
    from ._taskcall import TaskCall


def loop_of_this_thread(wrapper: object) -> Loop | None:
    """Return the loop whose worker this thread is, or else the one that *wrapper* is bound to.

    `None` if there is none, or if it has ended or stayed in the parent process at a fork.
    """
    loop = _known_loop(_shared.threadlocal, 0)
    if loop is not None:
        return loop if loop.is_running() else None
    loop = _known_loop(wrapper, _shared.process)
    return loop if loop is not None and loop.is_running() else loop_of_worker()


def _known_loop(holder: object, process: int) -> Loop | None:
    loop: Loop | None = getattr(holder, "main_event_loop", None)
    return loop if getattr(holder, "main_event_loop_pid", process) == os.getpid() else None


def task_context_of_this_thread() -> list[Any] | None:
    """Return the list of the async calls that this thread makes as a worker; `None` if it has forked since."""
    has_forked = getattr(_shared.threadlocal, "main_event_loop_pid", 0) != os.getpid()
    return None if has_forked else getattr(_shared.threadlocal, "task_context", None)


def run_in_its_loop(loop: Loop, call: TaskCall, caller: CurrentThreadExecutor) -> bool:
    """Run *call* in *loop*, and wait until it has ended. Return `False` if the loop does not accept it."""
    call.result.on_done = caller.finish

    def send() -> bool:
        try:
            call.send_to(loop)
        except RuntimeError:  # the loop has ended meanwhile
            call.result.on_done = None
            return False
        return True

    is_gone = loop.is_closed if isinstance(loop, TrioLoop) else functools.partial(is_stopped, loop)
    return call.wait(send, caller, is_gone, lending=is_worker())


def run_in_loop_thread(call: TaskCall, caller: CurrentThreadExecutor, context: Context, new_loop: bool) -> None:
    """Run *call* in the loop of a `LoopThread`, and wait until all that it leaves there has ended."""
    scope = _shared.async_single_thread_context.get(None)
    temporary: LoopThread | None = None
    if scope is None:
        executor: Executor | None = None if new_loop else loop_thread_of_this_thread()
    else:
        executor = _executor_of(scope)
        if isinstance(executor, LoopThread) and executor.waits_for_this_thread():
            executor = None
    if executor is None:
        executor = temporary = LoopThread()
    try:
        if isinstance(executor, LoopThread) and (executor is temporary or not new_loop):
            executor.run(call, caller, context)
        else:
            _run_in_executor(executor, call, caller, context)
    finally:
        if temporary is not None:
            temporary.shutdown(wait=False)


def _executor_of(scope: object) -> Executor:
    """Return the executor that the threads in one `AsyncSingleThreadContext` share. The first thread makes it.

    A copied context may be used after the `with` block, and makes another one. That ends when the context goes.
    """
    executors = _shared.single_thread_contexts
    executor = executors.get(scope)
    if isinstance(executor, LoopThread) and executor.takes_no_more_calls():
        removed = executors.pop(scope, None)
        if removed is not None and removed is not executor:  # another thread has just put in a new one
            executors.setdefault(scope, removed)
        executor = None
    # One that `setdefault` refuses has no thread yet, and just goes.
    return executors.setdefault(scope, LoopThread()) if executor is None else executor


def _run_in_executor(executor: Executor, call: TaskCall, caller: CurrentThreadExecutor, context: Context) -> None:
    """Run *call* in a new loop in the thread of *executor*, and wait until that loop has ended."""
    sent: list[Future[None]] = []

    def send() -> bool:
        sent.append(executor.submit(context.run, lambda: asyncio.run(_run_in_new_loop(call, caller))))
        sent[0].add_done_callback(caller.finish)
        return True

    call.wait(send, caller, lambda: all(future.done() for future in sent))
    sent[0].result()


async def _run_in_new_loop(call: TaskCall, caller: CurrentThreadExecutor) -> None:
    loop = asyncio.get_running_loop()
    _shared.loop_thread_executors[loop] = caller
    try:
        task = call.start(loop)
        if task is not None:
            await asyncio.wait([task])
    finally:
        del _shared.loop_thread_executors[loop]
