"""How a function in a worker thread learns that nobody waits for it any more."""

from __future__ import annotations

from anyio import from_thread

from .._eventloops._loops import running_loop
from .._eventloops._synccalls import belongs_to_others_loop
from .._eventloops._workers import thread


def check_cancelled() -> None:
    """Raise the cancellation if the caller of the function that runs in this thread no longer wants its result.

    A thread cannot be stopped from outside. A function that runs for long calls this now and then, and so can be
    stopped all the same. It raises if the caller

    - was cancelled, in async code or in the worker thread that waits for this one;
    - was interrupted, in sync code: by Ctrl-C, or whatever a signal handler raises;
    - has abandoned the call: because its `timeout` is over, or with `abandon_on_cancel`;
    - has left the iteration for which a generator fetches an item in advance.

    It does nothing if there is no such caller: in the main thread, in a thread that you started, in async code, in a
    worker process, in the threads of an executor, and while a context manager is left, which is cleanup. In a worker
    thread that anyio or trio started (`anyio.to_thread.run_sync`) it does the same as `anyio.from_thread.
    check_cancelled`. It is cheap: call it as often as you like.

    Cancellation:
        What it raises is the cancellation class of the event loop that the thread belongs to, `asyncio.CancelledError`
        or `trio.Cancelled`. Let it pass: `finally` and `with` clean up as always. Nobody sees it, because the caller
        raises its own exception. It raises at each call from then on. Cleanup may make sync calls of this package, as
        it may in async code: on asyncio they run, on trio they are cancelled as well.

    Raises:
        BaseException: The cancellation.

    Example:
        `for block in blocks: check_cancelled(); digest.update(block)`
    """
    worker = thread.worker
    if worker is not None and not (worker.is_cancelled() or worker.called_back_in_the_task):
        return  # the common case, checked first for speed
    if running_loop() is not None:
        return
    if worker is None:
        belongs_to_others_loop()  # which raises it
    elif worker.is_cancelled():
        worker.raise_cancellation()
    else:
        from_thread.check_cancelled()
