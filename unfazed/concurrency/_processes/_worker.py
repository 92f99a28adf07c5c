"""A worker process and the thread that belongs to it.

At each moment a worker has one owner, who alone reads and writes its pipes:

    owner           until
    its thread      it is ready; a call that was handed over has ended; it is about to end
    the pool        somebody takes it, to make a call; or its thread does, to end it
    a caller        the call has ended; or it hands worker and call over to the thread

Guarantees: the thread ends every call that it is handed, whatever becomes of the worker: with an answer, with how the
worker has ended, or, if the worker had not begun it, by handing it to another one. It wakes the caller. It reads the
status of the process, which so never stays a zombie.
Assumption: the thread runs no code of anybody else but log handlers, and what pickles large arguments and unpickles the
answer, in the context of the caller.
"""

from __future__ import annotations

import itertools
import os
import pickle
import time
from contextlib import suppress
from queue import Empty
from typing import TYPE_CHECKING, Any, Final, final

from ..._worker import channel
from .._core._errors import WorkerProcessError
from ._handling import handle
from ._inbox import Inbox
from ._output import Output
from ._starting import Child, NotStartedError, start_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._call import ProcessCall
    from ._pool import Pool

IDLE_SECONDS: Final = 60.0  # after which a worker that nobody has needed ends, unless it is among the first few
KEPT: Final = 2  # how many idle workers stay, however long; arbitrary
TRIES: Final = 3  # how many workers in a row may turn out to have ended before they began a call; arbitrary

_numbers = itertools.count(1)


def _reader_of(child: Child, received: bytes = b"") -> channel.Reader:
    with suppress(OSError):  # we are in a forked child
        os.set_blocking(child.frames, True)  # as `ProcessCall.receive` explains
    return channel.Reader(child.frames, received)


def _call(func: Callable[[], object]) -> None:
    func()


@final
class WorkerProcess:
    """A worker process of *pool*, to which it is given back first when it is ready."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._number = next(_numbers)
        self._inbox: Inbox[ProcessCall | None] = Inbox()  # None: there is something to look after
        self._child: Child | None = None
        self._ended = False  # whether its thread takes no more
        self.retires = False
        self.used = time.monotonic()  # when its thread has last given it to the pool
        self.levels: object = self  # of the parent's loggers, as the worker knows them: at first not at all
        self.initialized: set[bytes] = set()  # the initializers that have been called there
        self.calls = 0  # how many have been sent
        self.into = self.out = -1  # the pipes where calls go in, and frames come out; for its owner
        self.room = 0  # bytes that the former takes at once, while the worker is idle
        self.output: Output | None = None

    @property
    def pid(self) -> int | None:
        """The number of the process, once there is one."""
        return self._child and self._child.pid

    def start(self) -> None:
        """Start it, in a thread of its own. Raises `NotStartedError` if there can be none."""
        start_thread(self._run, f"unfazed-worker-{self._number}")

    def hand_over(self, call: ProcessCall) -> None:
        """Have its thread own it, and go on with *call*. Doing so twice is harmless."""
        self._inbox.put(call)
        if self._ended:  # either we see that, or the thread, which takes all that is in the inbox, sees the call
            self._fail_all()

    def look_after(self) -> None:
        """Have its thread look whether it has ended, or has log records of threads that were left behind."""
        self._inbox.put(None)

    def retire(self) -> None:
        """Have its thread own it, and end it."""
        self.retires = True
        self._inbox.put(None)

    def kill(self) -> None:
        """End it at once, whatever it does. From any thread."""
        child = self._child
        if child is not None:
            child.kill()

    def message(self, call: ProcessCall) -> list[bytes]:
        """Return what to send for *call*, in pieces; for its owner."""
        pieces = call.request
        initializer = call.initializer
        if initializer is not None and initializer not in self.initialized:
            pieces = [channel.frame(channel.INITIALIZER, initializer), *pieces]
        if call.levels != self.levels:
            pieces = [channel.frame(channel.LEVELS, pickle.dumps(call.levels, channel.PROTOCOL)), *pieces]
        return pieces

    # In its thread

    def _run(self) -> None:
        try:
            child = self._child = Child()
            output = self.output = Output(child.output, child.attention, self.look_after)
            self.into, self.out, self.room = child.calls, child.frames, child.room
            noise = child.prepare()
            start_thread(self._pass_on, f"unfazed-output-{self._number}", child, output, noise)
        except NotStartedError as exc:
            self._fail_to_start(exc)
            return
        self._pool.give_back(self)
        while self._go_on(child):
            pass
        self._ended = True
        self._fail_all()
        self._pool.forget(self)

    def _fail_all(self) -> None:
        """Fail calls that come when it has been told to end; their callers have been interrupted amid that."""
        with suppress(Empty):
            while True:
                call = self._inbox.get(0)
                if call is not None and call.take_over() and call.end():
                    call.fail(WorkerProcessError(call.name, "was about to end"))

    def _pass_on(self, child: Child, output: Output, noise: bytes) -> None:
        output.pass_on(noise)
        child.close(child.output)
        self.look_after()

    def _fail_to_start(self, error: NotStartedError) -> None:
        child, output = self._child, self.output
        if child is not None and output is not None:
            child.end()
            output.pass_on(b"")  # where it may say more
            child.close(child.output)
        self._pool.forget(self, error)

    def _go_on(self, child: Child) -> bool:
        """Do what comes next. Return whether the worker lives on."""
        try:
            call = self._inbox.get(timeout=IDLE_SECONDS)
        except Empty:
            call = None
        if call is not None:
            return not call.take_over() or self._see_through(child, call)
        if not self.retires:
            if not self._pool.take(self):  # somebody else owns it, who will see for himself
                return True
            if not self._is_surplus() and self._flush(child):
                self._pool.give_back(self)
                return True
        child.end()
        return False

    def _see_through(self, child: Child, call: ProcessCall) -> bool:
        """Go on with *call* to its end. Return whether the worker lives on."""
        outcome: tuple[Any, BaseException | None] = None, None
        reader = _reader_of(child, call.received())
        begun = False
        try:
            if call.sent or call.claim(self):
                if not call.sent:
                    self.calls += 1
                    channel.write_all(child.calls, self.message(call))
                    self.levels = call.levels
                while (kind := reader.next()[0]) in (channel.RECORD, channel.BEGUN):
                    if kind == channel.BEGUN:
                        begun = True
                    else:
                        handle(reader.take(), call.have_handled if begun else _call)
                outcome = call.outcome(self, kind, reader)
        except BaseException as exc:
            if not isinstance(exc, (channel.PipeEndError, OSError)):  # there is no memory left, for one
                child.kill()
            status = child.end()
            self._pool.forget(self)
            if (begun or not self._try_another(call)) and call.end():
                call.fail(WorkerProcessError(call.name, f"ended {status} before it answered"))
            return False
        killed = not call.end()
        lives = not (killed or call.was_last_of(self))
        if lives:
            self.used = time.monotonic()
            self._pool.give_back(self)  # before the caller goes on, who may need it at once
        if not killed:
            call.finish(*outcome)
        del outcome
        if not lives:
            child.end()
        return lives

    def _try_another(self, call: ProcessCall) -> bool:
        """Have another worker run *call*, which this one has not begun. Return whether it may."""
        call.tries += 1
        if call.killed or call.tries >= TRIES or self._pool.exiting:
            return False
        call.return_claim()
        self._pool.resubmit(call)
        return True

    def _is_surplus(self) -> bool:
        return time.monotonic() - self.used >= IDLE_SECONDS and self._pool.has_others_than(self)

    def _flush(self, child: Child) -> bool:
        """Take the log records that threads have left behind. Return whether the worker is alive."""
        reader = _reader_of(child)
        try:
            channel.write_all(child.calls, [channel.frame(channel.FLUSH)])
            while reader.next()[0] != channel.FLUSH:
                handle(reader.take(), _call)
        except (channel.PipeEndError, OSError):
            return False
        return True
