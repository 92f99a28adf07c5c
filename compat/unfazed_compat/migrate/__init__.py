"""Move a code base from asgiref to this package: `python -m unfazed_compat.migrate PATH...`.

| promise | how it is kept |
|---|---|
| nothing is written without `--write` | it shows a diff and a summary, and exits with 1 if a file would change |
| all files are written or none | new files are prepared next to the old ones; after an error the old ones come back |
| formatting, comments, encodings, line ends, permissions stay | libcst keeps everything that is not rewritten |
| the default changes no meaning | only imports change: the names of asgiref and channels come from our adapters |
| names are resolved, never guessed | by libcst's scopes; a name that could be something else stays, and is reported |
| thread-sensitive calls stay so | `--native` leaves them to the adapter, unless `--no-affinity` names their path |
| code in a transaction stays in it | `--native` leaves `async_to_sync` in files that use Django's ORM, and reports it |
| running it twice changes nothing more | names that have moved are not touched again |

With `--native`, the caller no longer sees the context variables that a function sets. If the same file shows that a
function sets some, its calls are left alone and reported.

    __main__.py    the entry point: checks that the dependencies are installed
    _command.py    the options and the exit codes
    _files.py      finds the files
    _run.py        migrates all files, in several processes
    _mentions.py   which names files use from each other
    _source.py     migrates one file
    _module.py     a parsed file: scopes, parents, lines
    _orm.py        whether a file uses Django's ORM
    _origins.py    the names that move, and their new modules
    _bindings.py   the names that an import binds, and their uses
    _findings.py   the places that are reported and not rewritten
    _imports.py    rewrites imports
    _calls.py      rewrites calls, stored wrappers and decorators
    _functions.py  what a file shows of a wrapped function
    _bridges.py    rewrites hand-written async generators over sync iterators
    _plan.py       collects the changes to a file, then applies them
    _writing.py    writes all files or none
    _report.py     prints the results

It needs the extra `migrate`: libcst, pathspec and rich.
"""
