"""Event loops: the background loop, loops in threads of their own, how sync code finds one, how async code waits.

    _background.py    a call in an event loop; the background event loop
    _bypassing.py     calls of a loop that a worker thread runs, bypassing the loop
    _loopthread.py    `EventLoopThread`: an event loop in a thread of its own
    _started.py       calls that are started in a loop
    _handle.py        `Handle`: a call that was started
    _synccalls.py     how sync code finds a loop, and waits for it
    _blocking.py      who may block an event loop with a sync call
    _loopchecks.py    what a loop may be asked to run, and with which options it may be started
    _workers.py       what a worker thread of ours knows: its loop, its slot, the call that it waits for
    _waiting.py       how async code waits, despite cancellation
    _timeouts.py      how long one call may take
    _limiters.py      the limiters that we give to anyio, and those that anyio has
    _unseenerrors.py  errors of started calls that nobody has asked for
    _loops.py         running loops as other threads see them: all that differs between asyncio and trio

Nothing here runs functions of the caller's in threads, processes or executors. A file imports from those below it.
"""
