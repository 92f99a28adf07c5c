"""The command, if the packages that it needs are installed.

Worker processes import this file too, so all imports are under the guard.
"""

if __name__ == "__main__":
    import sys
    from importlib.util import find_spec

    missing: list[str] = [name for name in ("libcst", "ruff") if find_spec(name) is None]
    if missing:
        print(  # noqa: T201
            f"The generator needs {', '.join(missing)}: `pip install 'unfazed-concurrency[twins]'`", file=sys.stderr
        )
        sys.exit(2)

    from ..concurrency._twins._command import main

    sys.exit(main(sys.argv[1:]))
