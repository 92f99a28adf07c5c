"""`setup`: move a Django project to this adapter, and warn where that did not work."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from typing import Any, NamedTuple

from unfazed.concurrency import UnfazedError
from unfazed_compat.asgiref import install


class _Finding(NamedTuple):
    """A problem that `setup` has found, and what to do about it."""

    message: str
    hint: str
    id: str


_EARLIER = (
    "Write `import unfazed_compat.django; unfazed_compat.django.setup()` where the program starts, at the top of "
    "manage.py, wsgi.py or asgi.py"
)

_findings: tuple[_Finding, ...] = ()  # of the latest `setup`


def setup() -> None:
    """Call `install` of `unfazed_compat.asgiref`, and add the system check `unfazed` to the project's.

    It is never too late for Django itself: all wrappers are moved, also those made earlier. But it may be too late for
    what others have done with asgiref. The system check reports that. So does a `RuntimeWarning` here, because servers
    do not run system checks:

        unfazed.W001    asgiref's version does not fit; asgiref works as before
        unfazed.W002    somebody had patched asgiref, for example a monitoring agent: these patches have no effect
        unfazed.W003    thread-sensitive calls were made before: asgiref's thread still makes them, but not at exit

    Calling it again is harmless.

    Example:
        `INSTALLED_APPS = ["unfazed_compat.django", ...]` in a project's settings does it.
    """
    global _findings
    _findings = tuple(_install())
    for finding in _findings:
        warnings.warn(f"{finding.message}. {finding.hint}.", RuntimeWarning, stacklevel=2)
    import_module("django.core.checks").register(check, "unfazed")


def _install() -> list[_Finding]:
    try:
        installed = install()
    except UnfazedError as exc:
        return [
            _Finding(
                f"unfazed_compat.django has changed nothing: {exc}",
                "Ask pip for a version of asgiref that fits, or for the newest unfazed-concurrency",
                "unfazed.W001",
            )
        ]
    findings: list[_Finding] = []
    if installed.out_of_use:
        names = ", ".join(installed.out_of_use)
        findings.append(
            _Finding(
                f"unfazed_compat.django.setup() came after somebody else had patched asgiref.sync ({names}), and these "
                f"patches are out of use",
                f"{_EARLIER}, above whatever patches asgiref",
                "unfazed.W002",
            )
        )
    executor = import_module("asgiref.sync").SyncToAsync.single_thread_executor
    if type(executor) is ThreadPoolExecutor and executor._threads:
        findings.append(
            _Finding(
                "unfazed_compat.django.setup() came after thread-sensitive calls had been made, so asgiref's own "
                "thread still makes them; it takes none after the main thread has ended",
                f"{_EARLIER}, above whatever makes such calls",
                "unfazed.W003",
            )
        )
    return findings


def check(**_: Any) -> list[Any]:
    """The system check: return what `setup` has found."""
    warning = import_module("django.core.checks").Warning
    return [warning(f"{finding.message}.", hint=f"{finding.hint}.", id=finding.id) for finding in _findings]
