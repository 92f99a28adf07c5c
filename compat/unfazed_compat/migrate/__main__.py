"""The entry point of the command: check that its dependencies are installed, then run it.

Worker processes run this file too, so it imports nothing at the top level.
"""

if __name__ == "__main__":
    import sys
    from importlib.util import find_spec

    missing: list[str] = [name for name in ("libcst", "pathspec", "rich") if find_spec(name) is None]
    if missing:
        print(  # noqa: T201
            f"The migration needs {', '.join(missing)}: `pip install 'unfazed-concurrency[migrate]'`", file=sys.stderr
        )
        sys.exit(2)

    from ._command import main

    sys.exit(main(sys.argv[1:]))
