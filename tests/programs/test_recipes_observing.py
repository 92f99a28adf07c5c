"""The recipes of `docs/how-to/operating.md`: OpenTelemetry, Prometheus, slow calls, hops, a signal."""

from __future__ import annotations

import importlib
import json
import logging
import re
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from test_recipes import HANG_SECONDS, folder, needs, run

from unfazed.concurrency import observe, run_in_threadpool_sync

if TYPE_CHECKING:
    from pathlib import Path

__all__ = ("folder",)  # the fixture

TRACED = """
import json

import anyio
import telemetry
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from unfazed.concurrency import (
    in_eventloop, run_in_eventloop, run_in_eventloop_sync, run_in_processpool, run_in_threadpool, run_in_threadpool_sync
)


def in_thread():
    with tracer.start_as_current_span("work of the user's"):
        run_in_eventloop_sync(in_own_loop)
    run_in_threadpool_sync(sibling)


def sibling():
    return baggage.get_baggage("user")


async def in_own_loop():
    seen.append(baggage.get_baggage("user"))
    await run_in_eventloop(in_background)


async def in_background():
    seen.append(await run_in_threadpool(sibling))
    await run_in_processpool(abs, -1)
    try:
        await run_in_threadpool(int, "no number")
    except ValueError:
        pass


async def main():
    token = context.attach(baggage.set_baggage("user", "42"))
    with tracer.start_as_current_span("request"):
        await run_in_threadpool(in_thread)
    with tracer.start_as_current_span("next request"):
        await run_in_threadpool(sibling)
    context.detach(token)


if __name__ == "__main__":
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)
    tracer = trace.get_tracer("test")
    telemetry.install()
    seen = []
    anyio.run(main, backend=BACKEND)
    spans = exporter.get_finished_spans()
    names = {span.context.span_id: span.name for span in spans}
    rows = [
        [span.name, names.get(span.parent and span.parent.span_id), span.attributes.get("unfazed.outcome"),
         span.status.status_code.name]
        for span in sorted(spans, key=lambda span: span.start_time)
    ]
    print(json.dumps({"seen": seen, "rows": rows, "traces": len({span.context.trace_id for span in spans})}))
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_opentelemetry_has_a_span_for_each_call_with_its_parent(folder: Path, backend: str) -> None:
    needs("opentelemetry.sdk")
    needs(backend)
    (folder / "traced.py").write_text(TRACED.replace("BACKEND", repr(backend)))

    told: dict[str, Any] = json.loads(run("traced.py"))

    assert told["seen"] == ["42", "42"]
    assert told["traces"] == 2
    assert told["rows"] == [
        ["request", None, None, "UNSET"],
        ["threadpool in_thread", "request", "returned", "UNSET"],
        ["work of the user's", "threadpool in_thread", None, "UNSET"],
        ["eventloop in_own_loop", "work of the user's", "returned", "UNSET"],
        ["eventloop in_background", "eventloop in_own_loop", "returned", "UNSET"],
        ["threadpool sibling", "eventloop in_background", "returned", "UNSET"],
        ["processpool abs", "eventloop in_background", "returned", "UNSET"],
        ["threadpool int", "eventloop in_background", "raised", "ERROR"],
        ["threadpool sibling", "threadpool in_thread", "returned", "UNSET"],
        ["next request", None, None, "UNSET"],
        ["threadpool sibling", "next request", "returned", "UNSET"],
    ]


SCRAPED = """
import urllib.request

import metrics
from prometheus_client import start_http_server

from unfazed.concurrency import run_in_processpool_sync, run_in_threadpool_sync

if __name__ == "__main__":
    metrics.install()
    server, thread = start_http_server(0, addr="127.0.0.1")
    run_in_threadpool_sync(abs, -1)
    run_in_processpool_sync(abs, -1)
    try:
        run_in_threadpool_sync(int, "no number")
    except ValueError:
        pass
    with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}/metrics") as answer:
        print(answer.read().decode())
    server.shutdown()
    server.server_close()
"""


def test_prometheus_scrapes_what_calls_came_to_and_what_there_is(folder: Path) -> None:
    needs("prometheus_client")
    (folder / "scraped.py").write_text(SCRAPED)

    lines = run("scraped.py").splitlines()

    for line in (
        'unfazed_call_run_seconds_count{function="abs",outcome="returned",place="threadpool"} 1.0',
        'unfazed_call_run_seconds_count{function="abs",outcome="returned",place="processpool"} 1.0',
        'unfazed_call_run_seconds_count{function="int",outcome="raised",place="threadpool"} 1.0',
        'unfazed_call_waited_seconds_count{function="abs",place="threadpool"} 1.0',
        'unfazed_slots{kind="threads",loop="unfazed-eventloop",state="waiting"} 0.0',
        'unfazed_slots{kind="processes",loop="unfazed-eventloop",state="running"} 0.0',
        'unfazed_worker_processes{state="idle"} 1.0',
    ):
        assert line in lines


def test_slow_calls_are_warned_of(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, background: Any
) -> None:
    monkeypatch.syspath_prepend(folder)
    slow_calls = importlib.import_module("slow_calls")

    with caplog.at_level(logging.WARNING), observe(slow_calls.SlowCalls(seconds_waited=-1, seconds_run=-1)):
        run_in_threadpool_sync(int)
    with caplog.at_level(logging.WARNING), observe(slow_calls.SlowCalls(seconds_waited=99, seconds_run=99)):
        run_in_threadpool_sync(float)

    waited, ran = (record.message for record in caplog.records)
    assert re.fullmatch(r"int\(\) waited \d+\.\d s for its turn in threadpool", waited)
    assert re.fullmatch(r"int\(\) ran \d+\.\d s in threadpool: returned", ran)


def test_a_test_counts_hops(folder: Path) -> None:
    assert "1 passed" in run("-m", "pytest", "-q", "-p", "no:cacheprovider", "test_hops.py")


STUCK = """
import os, signal, sys, threading, time
import stuck
from unfazed.concurrency import run_in_threadpool_sync

def wait_for_ever():
    print("stuck", flush=True)
    threading.Event().wait()

run_in_threadpool_sync(wait_for_ever)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this system has no such signal")
def test_a_signal_writes_what_a_program_that_is_stuck_does(folder: Path) -> None:
    (folder / "program.py").write_text(STUCK)
    command = [sys.executable, "program.py"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "stuck\n"
        program.send_signal(signal.SIGUSR1)
        assert program.stderr is not None
        assert program.stderr.readline().startswith(f"Calls of process {program.pid}: 1")
        assert "run_in_threadpool_sync(wait_for_ever) for sync code in MainThread" in program.stderr.readline()
        program.kill()
        program.communicate(timeout=HANG_SECONDS)
