"""The code that runs inside a worker process, around the user's function.

    main.py      starts the worker: its streams and its main module; then runs one call after the other
    chunks.py    runs several items in one call
    call.py      runs one call, so that the worker survives whatever the function does
    logs.py      sends log records to the parent
    channel.py   what goes through the pipes; both ends use it

Nothing here imports more than it needs from the standard library, so that a worker starts fast. Nothing here imports
`unfazed.concurrency`. The other end of the pipes is its `_processes`.
"""
