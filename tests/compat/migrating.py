"""What the tests of the migration share."""

from __future__ import annotations

from textwrap import dedent

from unfazed_compat.migrate._plan import Options
from unfazed_compat.migrate._source import Result, migrate

IMPORTS_ONLY = Options()
NATIVE = Options(native=True)
NO_AFFINITY = Options(native=True, no_affinity=True)
HEAD = "from asgiref.sync import sync_to_async\n"
ASYNC_HEAD = "from asgiref.sync import async_to_sync\n"


def migrated(source: str, options: Options = IMPORTS_ONLY) -> Result:
    """Migrate *source*, and see that a second time changes nothing."""
    result = migrate(dedent(source).encode(), options)

    assert not result.error
    again = migrate(result.new, options)
    assert again.new.decode() == result.new.decode()
    return result


def reasons(result: Result) -> str:
    return "\n".join(f"{line}: {reason}" for line, reason in result.findings)
