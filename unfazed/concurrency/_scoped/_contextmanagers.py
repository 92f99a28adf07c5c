"""Context managers across the border: sync ones for async code, async ones for sync code.

Each keeps a runner while it is entered. So it is left in the same thread or task, and in the same context.

Guarantee: what has been entered is left, even if a signal handler raises on the way in or out.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, final

from .._core._calls import StepCall
from .._core._checks import in_brief, name_of, not_copied, require_limiter, visible_names, wrong_source
from .._core._errors import InUseError, LoopEndedError, WrongFunctionError
from .._eventloops._background import submit_to_background
from .._eventloops._synccalls import Interrupts, call_from_sync
from ._collector import collector
from ._taskrunner import TaskRunner
from ._threadrunner import ThreadRunner

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    from anyio import CapacityLimiter

    from .._eventloops._synccalls import Submit

    _ExcInfo = tuple[type[BaseException] | None, BaseException | None, TracebackType | None]

T = TypeVar("T")


def _info_of(exc: BaseException) -> _ExcInfo:
    return type(exc), exc, exc.__traceback__


def _loop_ended() -> _ExcInfo:
    """Return what a context manager is left with if its loop ends before its user leaves it."""
    return _info_of(LoopEndedError("the event loop of this context manager has ended"))


def _wrong_way(made_by: object, word: str) -> WrongFunctionError:
    return WrongFunctionError(f"{made_by!r} is for {word}: write `{word} ...`")


def _require_new(runner: object, helper: str) -> None:
    if runner is not None:
        raise InUseError(f"this context manager has been entered already: make another one, with {helper}()")


@final
class _InThread(AbstractAsyncContextManager[T, "bool | None"]):
    """A sync context manager, entered and left in one thread."""

    def __init__(self, manager: AbstractContextManager[T, bool | None], limiter: CapacityLimiter | None) -> None:
        self._manager = manager
        self._limiter = limiter
        self._runner: ThreadRunner[bool | None] | None = None
        self._entered = False
        self._exc_info: _ExcInfo | None = None  # what it is left with

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        state = "entered" if self._entered else "not entered"
        return f"<contextmanager_in_threadpool({in_brief(self._manager)}), {state}>"

    def __reduce__(self) -> NoReturn:
        raise not_copied(self)

    if not TYPE_CHECKING:  # checkers know that there is no such thing

        def __enter__(self):
            raise _wrong_way(self, "async with")

        def __exit__(self, *exc_info):
            """Exist: `with` looks for it before it calls `__enter__`, which raises."""

    async def __aenter__(self) -> T:
        _require_new(self._runner, "contextmanager_in_threadpool")
        runner = ThreadRunner("contextmanager_in_threadpool", self._exit, self._limiter)
        try:
            self._runner = runner
            return await runner.run(self._enter)
        except BaseException as exc:
            await self._leave(runner, _info_of(exc))  # it may have been entered
            raise

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        assert self._runner is not None, "it has been entered"
        return await self._leave(self._runner, (exc_type, exc, traceback))

    async def _leave(self, runner: ThreadRunner[bool | None], exc_info: _ExcInfo) -> bool | None:
        self._exc_info = exc_info
        runner.announce_waiter()
        runner.leave()
        try:
            return await runner.wait_until_ended()
        finally:
            self._runner = self._exc_info = None
            del exc_info

    def _enter(self) -> T:
        value = self._manager.__enter__()
        self._entered = True
        return value

    def _exit(self) -> bool | None:
        if not self._entered:
            return None
        self._entered = False
        return self._manager.__exit__(*self._exc_info or _loop_ended())


def contextmanager_in_threadpool(
    manager: AbstractContextManager[T, bool | None], /, *, limiter: CapacityLimiter | None = None
) -> AbstractAsyncContextManager[T, bool | None]:
    """Use a sync context manager that blocks from async code.

    It is entered and left in the same worker thread and in the same context, a copy of the caller's. Entering it takes
    a slot. While it is entered it holds none, and leaving it never waits for one.

    Args:
        manager: A sync context manager. It can be entered as often as *manager* can, but not twice at once.
        limiter: Bounds how many managers are being entered at once, from any loop or thread; `None`, the default, is
            anyio's default thread limiter. If entering waits for something, such as a connection, that others hold
            until they get a slot of the same limiter, use another limiter.

    Cancellation:
        Entering is cancelled as `run_in_threadpool` is. What has been entered by then is left again, with the
        cancellation. Leaving is waited for despite cancellation. Then the cancellation is raised, unless leaving
        raised something else.

    Returns:
        An async context manager. Exceptions are passed in, and can be suppressed.

    Raises:
        WrongFunctionError: If *manager* is not a sync context manager.
        WrongOptionError: If *limiter* is not a limiter.
        InUseError: On entering, if it has been entered already.
        LoopStateError: On leaving, if it was entered in another event loop. It is left, and not waited for.
        BaseException: Whatever entering or leaving raised.

    Example:
        `async with contextmanager_in_threadpool(open(path)) as file: ...`
    """
    kind: Any = type(manager)
    if kind is _InThread or not (hasattr(kind, "__enter__") and hasattr(kind, "__exit__")):
        raise wrong_source(manager, "contextmanager_in_threadpool", "a context manager", "async with", "__aenter__")
    require_limiter(limiter, "contextmanager_in_threadpool")
    return _InThread(manager, limiter)


@final
class InTask(AbstractContextManager[T, "bool | None"]):
    """An async context manager, entered and left in one task: where `call_from_sync` finds it, or *submit* puts it."""

    def __init__(
        self,
        manager: AbstractAsyncContextManager[T, bool | None],
        submit: Submit = submit_to_background,
        words: tuple[object, str, str] | None = None,
    ) -> None:
        self._manager = manager
        self._submit = submit
        self._words = words or (manager, "contextmanager_in_eventloop_sync", "async with ...")  # for errors
        self._runner: TaskRunner | None = None
        self._left_with: _ExcInfo | None = None  # if nobody waits for its end
        self._entered = False

    def __dir__(self) -> list[str]:
        return visible_names(self)

    def __repr__(self) -> str:
        state = "entered" if self._entered else "not entered"
        return f"<contextmanager_in_eventloop_sync({in_brief(self._manager)}), {state}>"

    def __reduce__(self) -> NoReturn:
        raise not_copied(self)

    if not TYPE_CHECKING:  # as above

        async def __aenter__(self):
            raise _wrong_way(self, "with")

        async def __aexit__(self, *exc_info):
            """Exist: `async with` looks for it before it calls `__aenter__`, which raises."""

    def __enter__(self) -> T:
        _require_new(self._runner, "contextmanager_in_eventloop_sync")
        runner = TaskRunner(self._exit_by_itself, "contextmanager_in_eventloop_sync")
        interrupts = Interrupts()
        try:
            self._call(runner.start, self._submit, interrupts, counted=False)
            value: T = self._call(self._enter, runner.take, interrupts)
            self._runner = runner
            return value
        except BaseException as exc:
            self._runner = None
            with suppress(LoopEndedError):  # it has been left, or was never started
                if interrupts.is_over:
                    runner.leave()
                else:
                    self._leave(runner, _info_of(exc), interrupts)  # it may have been entered
            raise

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> bool | None:
        try:
            assert self._runner is not None, "it has been entered"
            if collector.is_at_work:  # it ends a generator of the user's that has entered us
                self._left_with = (exc_type, exc, traceback)
                with suppress(LoopEndedError):
                    self._runner.leave()
                return None
            return self._leave(self._runner, (exc_type, exc, traceback), Interrupts())
        finally:
            runner, self._runner = self._runner, None
            if runner is not None and not runner.over:  # a signal handler raised before we could leave it
                with suppress(LoopEndedError):
                    runner.leave()

    def _leave(self, runner: TaskRunner, exc_info: _ExcInfo, interrupts: Interrupts) -> bool | None:
        try:
            leave = partial(runner.finish, partial(self._exit, exc_info))
            suppressed: bool | None = self._call(leave, runner.take, interrupts)
        except LoopEndedError:
            if runner.outcome is None:
                raise
            return runner.outcome.read()  # it was left when a scope was cancelled that it holds
        return suppressed

    def _call(
        self, work: Callable[[], Awaitable[Any]], submit: Submit, interrupts: Interrupts, *, counted: bool = True
    ) -> Any:
        func, helper, instead = self._words
        options: dict[str, Any] = {"always": submit is not submit_to_background, "interrupts": interrupts}
        if not counted:
            return call_from_sync(work, func, helper, instead, submit, counted=False, **options)
        step = StepCall(in_brief(func) if func is self._manager else func, helper)
        try:
            value = call_from_sync(work, func, helper, instead, submit, carried=step, **options)
        except BaseException as exc:
            if step.waiter is not None:  # otherwise it was refused
                step.note_end(exc)
            raise
        step.note_end(None)
        return value

    async def _enter(self) -> T:
        value = await self._manager.__aenter__()
        self._entered = True
        return value

    async def _exit(self, exc_info: _ExcInfo) -> bool | None:
        if not self._entered:
            return None
        self._entered = False
        return await self._manager.__aexit__(*exc_info)

    async def _exit_by_itself(self, cancellation: BaseException | None) -> bool | None:
        left_with, self._left_with = self._left_with, None
        return await self._exit(_info_of(cancellation) if cancellation is not None else left_with or _loop_ended())


def contextmanager_in_eventloop_sync(
    manager: AbstractAsyncContextManager[T, bool | None], /
) -> AbstractContextManager[T, bool | None]:
    """Use an async context manager from sync code.

    It is entered and left in the same task and in the same context, a copy of the caller's. So it may hold a cancel
    scope or a task group. If a worker thread enters it, it runs in the loop of that worker, otherwise on the background
    event loop.

    Args:
        manager: An async context manager. It can be entered as often as *manager* can, but not twice at once.

    Cancellation:
        Entering and leaving are cancelled as `run_in_eventloop_sync` is: in a worker thread with the task that is
        waiting for the thread, elsewhere by Ctrl-C. What has been entered by then is left again. Leaving always
        begins, and its cleanup is waited for, unless the garbage collector ends a generator that has entered it. If its
        loop ends, it is left at once, with a `LoopEndedError`. If a scope that it holds is cancelled, it is left at
        once, with the cancellation; then the end of the `with` block raises what leaving raised.

    Returns:
        A context manager. Exceptions are passed in, and can be suppressed.

    Raises:
        WrongFunctionError: If *manager* is not an async context manager.
        InUseError: On entering, if it has been entered already.
        LoopThreadError: If an event loop is running in this thread: it would be blocked.
        LoopStartError: On entering, if the background event loop cannot start.
        LoopEndedError: If the event loop has ended, for example at exit.
        BaseException: Whatever entering or leaving raised.

    Example:
        `with contextmanager_in_eventloop_sync(connect(url)) as connection: ...`
    """
    kind: Any = type(manager)
    if kind is InTask or not (hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__")):
        helper = "contextmanager_in_eventloop_sync"
        raise wrong_source(manager, helper, "an async context manager", "with", "__enter__")
    return InTask(manager)


def enter_in_eventloop(
    manager: AbstractAsyncContextManager[T, bool | None], func: object, helper: str, instead: str
) -> AbstractContextManager[T, bool | None]:
    """Do the same for a dual: errors name its function *func*, as in `call_from_sync`."""
    kind: Any = type(manager)
    if not (hasattr(kind, "__aenter__") and hasattr(kind, "__aexit__")):
        raise wrong_source(manager, helper.format(name_of(func)), "an async context manager", "with", "__enter__")
    return InTask(manager, words=(func, helper, instead))
