"""Which thread makes a call of `sync_to_async`.

Thread-sensitive calls go, in this order, to

1. the sync code that called the async code, and waits for it (`AsyncToSync.executors`)
2. the thread of a `ThreadSensitiveContext`
3. the thread that waits for all that the current loop does (`AsyncToSync.loop_thread_executors`)
4. one thread for the whole process (`SyncToAsync.single_thread_executor`)

A task may outlive the sync code that made it. Then 1 or 3 do not wait any more, and the call goes to the next one.

Other calls go to the wrapper's own executor, or else to the loop's default executor; on trio, to anyio's threads.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from . import _shared
from ._currentthreadexecutor import CurrentThreadExecutor
from ._executorcall import send
from ._loops import Loop, TrioLoop
from ._singlethreadexecutor import SingleThreadExecutor

if TYPE_CHECKING:
    from concurrent.futures import Executor

    from ._threadcall import ThreadCall

fallback_executor = SingleThreadExecutor()
_shared.replace_unused_executor(fallback_executor)  # asgiref's own hangs in forked children

_left_in_parent: list[Executor] = []  # after a fork: not to be ended, as what they hold belongs to the parent


def send_to_its_thread(wrapper: Any, loop: Loop, call: ThreadCall[Any]) -> None:
    """Have the right thread make *call* of *wrapper*, which is a `SyncToAsync`, ours or asgiref's."""
    if wrapper._thread_sensitive:
        _send_thread_sensitive(wrapper, loop, call)
        return
    executor: Executor | None = wrapper._executor
    if executor is not None:
        send(executor, call)
    elif isinstance(loop, TrioLoop):
        loop.call_in_thread(call.run, call.fail_unless_begun)
    else:
        call.woken_by_loop = True
        loop.run_in_executor(None, call.run).add_done_callback(call.waker())


def _send_thread_sensitive(wrapper: Any, loop: Loop, call: ThreadCall[Any]) -> None:
    if _send_if_waiting(getattr(_shared.executors, "current", None), call):
        return
    scope = wrapper.thread_sensitive_context.get(None)
    if scope is not None:
        if getattr(scope, "_exited", False):
            raise RuntimeError(
                "ThreadSensitiveContext has exited. Tasks created inside a context with an executor must finish "
                "before it exits."
            )
        executor = _shared.scope_executors.get(scope)
        if executor is None:  # several threads may get here: the first one's executor counts
            executor = _shared.scope_executors.setdefault(scope, SingleThreadExecutor())
        _refuse_own_thread(executor)
        send(executor, call)
        return
    if _send_if_waiting(_shared.loop_thread_executors.get(loop), call):
        return
    last: Executor = wrapper.single_thread_executor
    _refuse_own_thread(last)
    send(last, call)


def _send_if_waiting(executor: Executor | None, call: ThreadCall[Any]) -> bool:
    """Have the thread behind *executor* make *call*. Return `False` if it does not wait any more."""
    if executor is None:
        return False
    try:
        send(executor, call)
    except RuntimeError:
        if isinstance(executor, (CurrentThreadExecutor, *_shared.asgirefs_current_thread_executor)):
            return False
        raise  # another kind of executor, with an error of its own
    return True


def _refuse_own_thread(executor: Executor) -> None:
    """Raise an error if the current loop runs in the one thread of *executor*: the call would wait for itself."""
    threads = getattr(executor, "_threads", ())
    if threading.current_thread() in threads and getattr(executor, "_max_workers", 1) == 1:
        raise RuntimeError("Single thread executor already being used, would deadlock")


def _reset_after_fork() -> None:
    """Replace asgiref's own executor if it had a thread, which stayed in the parent process."""
    executor = _shared.single_thread_executor()
    if type(executor) is ThreadPoolExecutor and executor._threads:
        _left_in_parent.append(executor)
        _shared.set_single_thread_executor(fallback_executor)


if hasattr(os, "register_at_fork"):  # pragma: no branch  Windows has none
    os.register_at_fork(after_in_child=_reset_after_fork)
