"""Many calls at once: groups of calls that were started, and the same function for each item of some iterables.

    _callgroup.py      `CallGroup`: started calls that end together
    _mapasync.py       the public functions for async code
    _mapsync.py        the public functions for sync code
    _mapdual.py        `.map` and `.map.sync` of dual callables
    _mapiterators.py   what they return: iterators over the results
    _maprun.py         one map: which calls have begun, which results are ready, what ends it
    _mapinput.py       reads the input, as it is needed
    _mapplaces.py      makes one call, in a place
    _chunks.py         several items in one call in a worker process
    _mapcall.py        one call: its items, and then their results

The calls themselves are those of `_threads`, `_processes`, `_executors` and `_eventloops`; there is `Handle`, too. A
file imports from those below it.
"""

from ._callgroup import CallGroup

__all__ = ("CallGroup",)
