"""What every call needs and no event loop: slots, one-shot futures, contexts, checks, errors.

    _calls.py         a one-shot future; one call that runs as a task; what is asked of an event loop
    _contexts.py      who is in which of the contexts that users share
    _slots.py         who may run, who lends while it waits
    _checks.py        what may be called where, with which options
    _references.py    how decorated functions are sent to other processes
    _threadstart.py   how threads start, and what Python keeps us from making safe
    _errors.py        every exception class, with its text

No event loop runs here, and nothing here knows asyncio or trio. A file imports from those below it.
"""
