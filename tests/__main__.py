"""Runs the tests: `python tests`, with what pytest takes. Each worker process imports this file, and not pytest."""

if __name__ == "__main__":
    import os
    import sys
    from pathlib import Path

    import pytest

    arguments = sys.argv[1:]
    if not any(Path(each.partition("::")[0]).exists() for each in arguments):  # neither files nor folders: all of them
        if not any(each.startswith("-n") for each in arguments):
            # One process more than CPUs, because tests wait. Just one without a GIL: whoever waits for a lock there
            # yields the CPU forty times first, so several processes slow each other down.
            processes = 1 if "UNFAZED_TEST_NO_GIL" in os.environ else (os.cpu_count() or 1) + 1
            arguments += ["-n", str(processes), "--dist", "worksteal"]
        arguments.append(str(Path(__file__).parent))
    sys.exit(pytest.main(arguments))
