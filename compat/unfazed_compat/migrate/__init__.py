"""A code base moves from asgiref: `python -m unfazed_compat.migrate PATH...`.

| promise | how it is kept |
|---|---|
| nothing is written without `--write` | a diff and a summary are the default; exits with 1 if something would change |
| all files are written or none | new files lie next to the old ones first; what fails puts the old ones back |
| formatting, comments, encodings, line ends, permissions stay | libcst keeps what it does not change |
| the default changes no meaning | names of asgiref and channels come from our adapters: only imports change |
| names are resolved, never guessed | by libcst's scopes; what could be something else is left and reported |
| what is thread-sensitive stays so | `--native` leaves it to the adapter, but in paths named by `--no-affinity` |
| what is inside a transaction stays in it | so it leaves `async_to_sync` in files that use Django's ORM, and lists it |
| twice is as good as once | what has moved is not touched again |

With `--native`, context variables that a function sets do not come back to its caller any more. Where that can be seen
in the same file, the call is left and reported.

    __main__.py    the command, if what it needs is installed
    _command.py    its options, and what it exits with
    _files.py      which files there are
    _run.py        all files, in several processes
    _mentions.py   what files say about each other's names
    _source.py     one file: what it is, and what becomes of it
    _module.py     a parsed file: scopes, parents, lines
    _orm.py        whether a file uses Django's ORM
    _origins.py    the names that move, and where to
    _bindings.py   what an import binds, and every use of it
    _findings.py   what is reported and not rewritten
    _imports.py    imports are rewritten
    _calls.py      calls, stored wrappers and decorators are rewritten
    _functions.py  what can be known of a function that is wrapped
    _bridges.py    iterators written by hand
    _plan.py       what is to be changed, gathered, then done
    _writing.py    all files or none
    _report.py     what the user sees

It needs the extra `migrate`: libcst, pathspec and rich.
"""
