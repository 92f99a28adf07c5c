"""Measurements against others, side by side: `python -m benchmarks --help`.

    __main__.py   the command line
    _rows.py      what is measured: calls of ours, and the same of others; _rows_scoped.py and _rows_many.py have more
    _measure.py   how: in batches, ours and the others' in turn
    _starts.py    in fresh processes: imports, first calls, memory
    _growth.py    how cost grows with callers, limits, and what is open
    _report.py    JSON, the figures in the pages, and pictures

Never a test: what a machine can do at the moment decides nothing about whether the code is right.
"""
