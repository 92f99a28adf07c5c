"""What runs inside a worker process, around the user's function.

    main.py      once in each worker: its streams, its main module; then one call after the other
    call.py      runs one call, so that the worker outlives whatever the function does
    logs.py      log records on their way to the parent
    channel.py   what goes through the pipes, used by both ends

Standard library only, and of that what a call needs: a worker starts fast. Nothing here imports `unfazed.concurrency`,
whose `_processes` is the other end.
"""
