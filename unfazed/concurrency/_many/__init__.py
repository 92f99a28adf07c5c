"""Many calls at once: the same function for each item of one or more iterables.

    _mapasync.py       the public functions for async code
    _mapsync.py        the public functions for sync code
    _mapdual.py        `.map` and `.map.sync` of dual callables
    _mapiterators.py   what they return: iterators over the results
    _maprun.py         one map: which calls have begun, which results are ready, what ends it
    _mapinput.py       reads the input, as it is needed
    _mapplaces.py      makes one call, in a place
    _chunks.py         several items in one call in a worker process
    _mapcall.py        one call: its items, and then their results

The calls themselves are those of `_threads`, `_processes`, `_executors` and `_eventloops`. A file imports from those
below it.
"""
