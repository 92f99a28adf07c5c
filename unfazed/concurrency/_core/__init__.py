"""What every call needs and no event loop: slots, one-shot futures, contexts, checks, errors.

    _taskcall.py      one async function that another thread has an event loop run
    _futures.py       one-shot futures: a result or an error, written once
    _loop.py          what we ask of an event loop
    _contexts.py      who runs in which of the contexts that users share
    _calls.py         what is known of every call, and the totals
    _observing.py     who observes the calls, and how it is told
    _slots.py         take, queue, release and lend slots; the lock
    _limits.py        who holds a slot, who queues, who gets the next: the rules
    _blockedloops.py  event loops that a sync call blocks on purpose, and what must not need them
    _checks.py        what may be called where, with which options
    _references.py    how decorated functions are sent to other processes
    _threadstart.py   how threads start and show errors, and what Python keeps us from making safe
    _errors.py        every exception class, with its text
    _lifetime.py      what we do when the interpreter exits, and in a forked child
    _finalizers.py    finalizers that a signal handler cannot prevent

No event loop runs here, and nothing here knows asyncio or trio. A file imports from those below it.
"""
