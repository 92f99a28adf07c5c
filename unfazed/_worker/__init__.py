"""What runs inside a worker process, around the user's function.

    trampoline.py   runs one call, so that the worker outlives whatever the function does
    settling.py     once in each worker: its signals, its streams, its line to the parent
    logs.py         log records on their way to the parent
    payloads.py     calls and outcomes as bytes, and the large ones in memory that both processes share

Standard library only, and of that what a call needs: a worker starts fast. Nothing here imports `unfazed.concurrency`;
its process pool (`_processpool.py`, and `_relay.py`, the other end of the line) imports what is here.
"""
