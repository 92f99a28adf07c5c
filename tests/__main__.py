"""Runs the tests: `python tests`, with what pytest takes. Each worker process imports this file, and not pytest."""

if __name__ == "__main__":
    import sys
    from pathlib import Path

    import pytest

    arguments = sys.argv[1:]
    if not any(Path(each.partition("::")[0]).exists() for each in arguments):  # neither files nor folders: all of them
        arguments.append(str(Path(__file__).parent))
    sys.exit(pytest.main(arguments))
