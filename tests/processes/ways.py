"""Both ways in which a call reaches its worker process, and a loop for async calls."""

from __future__ import annotations

from typing import Any

import anyio
import pytest

from unfazed.concurrency._processes import _call

Backend = tuple[str, dict[str, Any]]


@pytest.fixture(params=[True, False], ids=["direct", "by its thread"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Let callers talk to workers directly, or through the workers' threads, as on Windows."""
    monkeypatch.setattr(_call, "DIRECT", request.param)
    direct: bool = request.param
    return direct


def in_loop(backend: Backend, afn: Any, *args: Any) -> Any:
    return anyio.run(afn, *args, backend=backend[0], backend_options=backend[1])
