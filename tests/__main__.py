"""Runs the tests: `python tests`, with what pytest takes. Each worker process imports this file, and not pytest."""

if __name__ == "__main__":
    import sys

    import pytest

    sys.exit(pytest.main())
