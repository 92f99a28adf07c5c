"""A worker process and the thread that belongs to it.

The life of a `WorkerProcess`. It always has one owner, and only the owner reads and writes its pipes.

    state     owner       how to tell                goes on as
    --------  ----------  -------------------------  ------------------------------------------------------------------
    starting  its thread  in `Pool._starting`        idle; busy if a call waits; ended if it cannot start
    idle      the pool    in `Pool._idle`            leased to a caller; checked if its thread takes it
    leased    a caller    in a list `leased`         idle after the answer; busy if it is handed over; retiring
    busy      its thread  in `_see_through`          idle after the call; ended if dead, killed, or after `max_calls`
    checked   its thread  in `_go_on`                idle; ended if it is surplus, or has died
    retiring  its thread  `retires`                  ended
    ended     nobody      not in `Pool.workers`      -

The thread checks an idle worker every `IDLE_SECONDS`, and when the worker asks for that or its output ends. Retiring:
it has run its last call (`max_calls`), or the interpreter exits. The pool's own thread may lease a worker too, to hand
it a call. Any thread may kill a worker. Its owner notices.

Guarantees:

- The thread finishes each call that it is handed, whatever happens to the worker, and wakes the caller. The result is
  an answer, or an error that says how the worker ended. A call that the worker had not begun goes to another worker.
- The thread reads the exit status, so no process stays a zombie.

Assumption: the thread runs no foreign code except log handlers, and what pickling large arguments and unpickling
answers calls. During a call it runs them in the caller's context.
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
from ._child import Child, NotStartedError, start_worker_thread
from ._handling import handle
from ._inbox import Inbox
from ._output import Output

if TYPE_CHECKING:
    from collections.abc import Callable

    from ._call import ProcessCall
    from ._pool import Pool

IDLE_SECONDS: Final = 60.0  # how long a surplus worker may be idle
KEPT: Final = 2  # how many idle workers never end; arbitrary
TRIES: Final = 3  # how many workers may die before they begin a call; arbitrary

_numbers = itertools.count(1)


def _reader_of(child: Child, received: bytes = b"") -> channel.Reader:
    with suppress(OSError):  # in a forked child it is closed
        os.set_blocking(child.frames, True)  # `ProcessCall.receive` says why
    return channel.Reader(child.frames, received)


def _call(func: Callable[[], object]) -> None:
    func()


@final
class WorkerProcess:
    """A worker process of *pool*. It joins the idle workers when it is ready."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._number = next(_numbers)
        self._inbox: Inbox[ProcessCall | None] = Inbox()  # None: check the worker, or end it
        self._child: Child | None = None
        self._ended = False  # whether its thread takes no more calls
        self.retires = False
        self.used = time.monotonic()  # when it last finished a call
        self.quick = True  # whether its last answer to async code came within `QUICK_SECONDS`
        self.levels: object = self  # log levels that it was sent; `self` differs from all
        self.initialized: set[bytes] = set()  # the pickles of the initializers that it has called
        self.is_ready = False  # whether it has started
        self.call: ProcessCall | None = None  # the one that it runs
        self.calls = 0  # how many calls it was sent
        self.into = self.out = -1  # file descriptors: calls go in, frames come out
        self.room = 0  # how many bytes `into` takes at once while the worker is idle
        self.output: Output | None = None

    @property
    def pid(self) -> int | None:
        """The process id, or None before the process exists."""
        return self._child and self._child.pid

    def start(self) -> None:
        """Start it in a thread of its own. Raises `NotStartedError` if no thread can be started."""
        start_worker_thread(self._run, f"unfazed-worker-{self._number}")

    def hand_over(self, call: ProcessCall) -> None:
        """Make its thread the owner, which runs *call* to its end. It may be called twice."""
        self._inbox.put(call)
        if self._ended:  # either we see this, or the thread empties the inbox after our `put`
            self._fail_all()

    def look_after(self) -> None:
        """Have its thread check whether it has died, and fetch log records that arrived between calls."""
        self._inbox.put(None)

    def retire(self) -> None:
        """Make its thread the owner, which ends it."""
        self.retires = True
        self._inbox.put(None)

    def kill(self) -> None:
        """Kill the process, whatever it does. From any thread."""
        child = self._child
        if child is not None:
            child.kill()

    def message(self, call: ProcessCall) -> list[bytes]:
        """Return the bytes to send for *call*, in pieces. For its owner only."""
        pieces = call.request
        initializer = call.initializer
        if initializer is not None and initializer not in self.initialized:
            pieces = [channel.frame(channel.INITIALIZER, initializer), *pieces]
        if call.levels != self.levels:
            pieces = [channel.frame(channel.LEVELS, pickle.dumps(call.levels, channel.PROTOCOL)), *pieces]
        return pieces

    # In its own thread

    def _run(self) -> None:
        try:
            child = self._child = Child()
            output = self.output = Output(child.output, child.attention, self.look_after)
            self.into, self.out, self.room = child.calls, child.frames, child.room
            noise = child.prepare()
            start_worker_thread(self._pass_on, f"unfazed-output-{self._number}", child, output, noise)
        except NotStartedError as exc:
            self._fail_to_start(exc)
            return
        except BaseException as exc:  # no file descriptor or no memory left, say: a call may wait for this worker
            self.kill()
            self._fail_to_start(NotStartedError(f"could not start ({type(exc).__qualname__}: {exc})"))
            return
        self.is_ready = True
        self._pool.give_back(self)
        while self._go_on(child):
            pass
        self._ended = True
        self._fail_all()
        self._pool.forget(self)

    def _fail_all(self) -> None:
        """Fail calls that come too late. A caller hands one over if it is interrupted while it retires the worker."""
        with suppress(Empty):
            while True:
                call = self._inbox.get(0)
                if call is not None and call.take_over() and call.try_claim_end():
                    call.fail(WorkerProcessError(call.name, "was about to end"))

    def _pass_on(self, child: Child, output: Output, noise: bytes) -> None:
        output.pass_on(noise)
        child.close(child.output)
        self.look_after()

    def _fail_to_start(self, error: NotStartedError) -> None:
        child, output = self._child, self.output
        if child is not None and output is not None:
            child.end()
            output.pass_on(b"")  # it may say more than the error does
            child.close(child.output)
        self._pool.forget(self, error)

    def _go_on(self, child: Child) -> bool:
        """Handle the next item of the inbox. Return whether the worker lives on."""
        try:
            call = self._inbox.get(timeout=IDLE_SECONDS)
        except Empty:
            call = None
        if call is not None:
            return not call.take_over() or self._see_through(child, call)
        if not self.retires:
            if not self._pool.take(self):  # another owner has it, and will notice by itself
                return True
            if not self._is_surplus() and self._flush(child):
                self._pool.give_back(self)
                return True
        child.end()
        return False

    def _see_through(self, child: Child, call: ProcessCall) -> bool:
        """Run *call* to its end. Return whether the worker lives on."""
        outcome: tuple[Any, BaseException | None] = None, None
        reader = _reader_of(child, call.received())
        begun = False
        try:
            if call.sent or call.claim(self):
                self.call = call
                if not call.sent:
                    self.calls += 1
                    call.note_begin_elsewhere()
                    channel.write_all(child.calls, self.message(call))
                    self.levels = call.levels
                while (kind := reader.next()[0]) in (channel.RECORD, channel.BEGUN):
                    if kind == channel.BEGUN:
                        begun = True
                    else:
                        handle(reader.take(), call.have_handled if begun else _call)
                outcome = call.fetch_outcome(self, kind, reader)
        except BaseException as exc:
            if not isinstance(exc, (channel.PipeEndError, OSError)):  # no memory left, say
                child.kill()
            status = child.end()
            self.call = None
            self._pool.forget(self)
            if (begun or not self._try_another(call)) and call.try_claim_end():
                call.fail(WorkerProcessError(call.name, f"ended {status} before it answered"))
            return False
        self.call = None
        killed = not call.try_claim_end()
        lives = not (killed or call.was_last_of(self))
        if lives:
            self.used = time.monotonic()
            self._pool.give_back(self)  # before the caller goes on: it may need the worker at once
        if not killed:
            call.finish(*outcome)
        del outcome
        if not lives:
            child.end()
        return lives

    def _try_another(self, call: ProcessCall) -> bool:
        """Give *call*, which this worker has not begun, to another worker. Return whether that is possible."""
        call.tries += 1
        if call.killed or call.tries >= TRIES or self._pool.exiting:
            return False
        call.return_claim()
        self._pool.resubmit(call)
        return True

    def _is_surplus(self) -> bool:
        return time.monotonic() - self.used >= IDLE_SECONDS and self._pool.has_enough()

    def _flush(self, child: Child) -> bool:
        """Fetch the log records that arrived between calls. Return whether the worker is alive."""
        reader = _reader_of(child)
        try:
            channel.write_all(child.calls, [channel.frame(channel.FLUSH)])
            while reader.next()[0] != channel.FLUSH:
                handle(reader.take(), _call)
        except (channel.PipeEndError, OSError):
            return False
        return True
