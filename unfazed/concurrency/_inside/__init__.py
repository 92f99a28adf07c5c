"""What goes on inside, for those who run a program: statistics, a dump, the calls that a test has made.

    _recording.py    `record_calls`: the calls of a block, for tests
    _dump.py         `dump_calls`: what each call does, and which calls wait for which, as text
    _waits.py        which calls wait for which
    _parents.py      which call has made which
    _statistics.py   `statistics`: numbers, for machines
    _lists.py        the calls, limiters, workers and loops that there are now

Nothing here is used by a call, and nothing here waits: everything is read as it is, by any thread, also in a signal
handler. What tells observers is in `_core/_observing.py`. A file imports from those below it.
"""
