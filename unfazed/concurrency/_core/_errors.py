"""All exception classes of this package, with their texts. Nothing else.

Each class inherits `UnfazedError` and the closest builtin exception. Its arguments are what its text needs, so it can
be pickled.
"""

from __future__ import annotations

import pickle
import sys


class UnfazedError(Exception):
    """Root of the exceptions that this package defines."""


class LoopThreadError(UnfazedError, RuntimeError):
    """Raised when a sync helper is called in a thread where an event loop is running: it would block that loop.

    Also raised when a call needs an event loop that is blocked until this call has ended (`allow_blocking_loop`).

    Args:
        helper: The name of the sync helper.
        instead: The code to write instead.
        needed: What the call needs, if it is part of what the sync helper waits for; otherwise empty.
    """

    def __init__(self, helper: str, instead: str, needed: str = "") -> None:
        super().__init__(helper, instead, needed)
        self.helper = helper
        self.instead = instead
        self.needed = needed
        self.in_ipython: bool = _ipython_runs()

    def __str__(self) -> str:
        if self.needed:
            return (
                f"this call would never end: it needs {self.needed}, which {self.helper}() blocks until then; "
                f"write `{self.instead}` there instead"
            )
        in_notebook = (
            "; in a notebook, `await` works at the top level of a cell, and after "
            "`configure_background_eventloop(allow_blocking_loop=True)` sync calls work, too"
            if self.in_ipython
            else ""
        )
        return (
            f"{self.helper}() would block the event loop that is running in this thread: write `{self.instead}` here, "
            f"or call the sync function that this is in with `await run_in_threadpool(...)` further up{in_notebook}"
        )


def _ipython_runs() -> bool:
    get_ipython = getattr(sys.modules.get("IPython"), "get_ipython", None)
    return get_ipython is not None and get_ipython() is not None


class LoopEndedError(UnfazedError, RuntimeError):
    """Raised when a call needs an event loop that has ended, or that cannot be started any more.

    Args:
        reason: What has ended. It is the first half of a sentence.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.reason}; this call cannot be made any more"


class LoopStartError(UnfazedError, RuntimeError):
    """Raised when an event loop thread cannot start: its backend is not installed, or does not accept its options.

    Args:
        backend: The name of the backend.
        reason: What went wrong.
    """

    def __init__(self, backend: str, reason: str) -> None:
        super().__init__(backend, reason)
        self.backend = backend
        self.reason = reason

    def __str__(self) -> str:
        return f"cannot start an event loop with backend {self.backend!r}: {self.reason}"


class LoopStateError(UnfazedError, RuntimeError):
    """Raised when an event loop thread is used, started, stopped or configured at the wrong time.

    Also raised when a `CallGroup` is used at the wrong time, when an iterator is used in an event loop that it does not
    belong to, and when a finalizer makes a call that cannot wait.

    Args:
        problem: What is wrong, and what to write instead.
    """


class CallCancelledError(UnfazedError, RuntimeError):
    """Raised in async code, or by a handle, when a call was cancelled on the loop where it ran, not by its caller.

    Args:
        name: The name of the async function.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name

    def __str__(self) -> str:
        return f"{self.name}() was cancelled on the event loop where it ran, not by its caller"


class CallTimeoutError(UnfazedError, TimeoutError):
    """Raised when a call with a `timeout` has taken too long.

    Args:
        name: The name of the function.
        seconds: The timeout.
        waited_for: What the call waited for if it never started, otherwise empty.
    """

    def __init__(self, name: str, seconds: float, waited_for: str = "") -> None:
        super().__init__(name, seconds, waited_for)
        self.name = name
        self.seconds = seconds
        self.waited_for = waited_for

    def __str__(self) -> str:
        if self.waited_for:
            return f"{self.name}() has not started within {self.seconds} seconds: it waited for {self.waited_for}"
        return f"{self.name}() has not ended within {self.seconds} seconds"


class InUseError(UnfazedError, RuntimeError):
    """Raised when a second call uses a context, an iterator or a context manager that allows one call at a time.

    Args:
        problem: What is in use, and what to do instead.
    """


class WrongOptionError(UnfazedError, TypeError, ValueError):
    """Raised when an option has a wrong value, or when there is no such option.

    Args:
        problem: What was expected, what came, and what to write instead.
    """


class WrongFunctionError(UnfazedError, TypeError):
    """Raised when a helper cannot use what it was given: for example, an async function for a worker thread.

    Args:
        problem: What was expected, what came, and what to write instead.
    """


class NotSendableError(UnfazedError, TypeError, pickle.PicklingError):
    """Raised when a function or its arguments cannot be sent to a worker process, or its result cannot be sent back.

    Args:
        problem: What cannot be sent, and what to write instead.
    """

    has_not_begun = False  # whether it was raised before the function was called


class WorkerProcessError(UnfazedError, RuntimeError):
    """Raised when a worker process cannot start, or ends before it has answered a call.

    Args:
        name: The name of the function that the process was to run.
        reason: What happened to the worker.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"the worker process for {self.name}() {self.reason}; the next call gets a new one"


class ExecutorError(UnfazedError, RuntimeError):
    """Raised when an executor breaks, or refuses, loses or cancels a call.

    Args:
        name: The name of the function that the executor was to run.
        reason: What happened to the call.
    """

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(name, reason)
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"the call of {self.name}() {self.reason}"


class RemoteError(UnfazedError, RuntimeError):
    """Raised in place of an exception that a worker process raised and could not pickle. It has the same text.

    Args:
        text: The type and text of the original.
    """


class RemoteTraceback(UnfazedError):  # noqa: N818  not an error, only its traceback
    """The cause of each exception that comes from a worker process: the traceback of that process, as text.

    Args:
        text: The formatted traceback.
    """

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f'\n"""\n{self.text}"""'
