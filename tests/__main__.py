"""Runs the tests: `python tests`, with what pytest takes. Each worker process imports this file, and not pytest."""

if __name__ == "__main__":
    import os
    import sys
    from pathlib import Path

    import pytest

    arguments = sys.argv[1:]
    if not any(Path(each.partition("::")[0]).exists() for each in arguments):  # neither files nor folders: all of them
        if not any(each.startswith("-n") for each in arguments):  # one process more than CPUs, because tests wait
            arguments += ["-n", str((os.cpu_count() or 1) + 1), "--dist", "worksteal"]
        arguments.append(str(Path(__file__).parent))
    sys.exit(pytest.main(arguments))
