"""Programs made from the patterns that real projects have: each prints the same after it has moved."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
from textwrap import dedent, indent
from typing import NamedTuple

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from unfazed_compat.migrate._plan import Options
from unfazed_compat.migrate._source import migrate

SECONDS = 50  # for one program in all its forms, on a machine that is busy

START = """
import asyncio
import contextvars
import threading
from concurrent.futures import ThreadPoolExecutor

variable = contextvars.ContextVar("variable", default=0)
pool = ThreadPoolExecutor(1)

def double(x, *, plus=0):
    return 2 * x + plus

def remember(x):
    variable.set(x)

def fail(x):
    raise ValueError(x)

async def adouble(x, *, plus=0):
    await asyncio.sleep(0)
    return 2 * x + plus

async def aremember(x):
    remember(x)

async def afail(x):
    raise ValueError(x)
"""


class Names(NamedTuple):
    """A form of importing both, and what they are called then."""

    statement: str
    sync_to_async: str
    async_to_sync: str


FORMS = [
    Names("from asgiref.sync import async_to_sync, sync_to_async", "sync_to_async", "async_to_sync"),
    Names("from asgiref.sync import (\n    async_to_sync as a,\n    sync_to_async as s,\n)", "s", "a"),
    Names("import asgiref.sync", "asgiref.sync.sync_to_async", "asgiref.sync.async_to_sync"),
    Names("import asgiref.sync as both", "both.sync_to_async", "both.async_to_sync"),
    Names("from asgiref import sync", "sync.sync_to_async", "sync.async_to_sync"),
]

# S and A stand for the names, N for a number, OPTIONS for some.
ASYNC_PARTS = [
    "print(await S(double, OPTIONS)(N, plus=N))",
    "print(await S(lambda: N, OPTIONS)())",
    "print(await S(sum, OPTIONS)(x for x in (N, N)))",
    "print(await asyncio.gather(S(double, OPTIONS)(N), S(double)(N)))",
    "stored = S(double, OPTIONS)\nprint(await stored(N), await stored(x=N))",
    "@S(OPTIONS)\ndef inner(x):\n    return x + N\nprint(await inner(N))",
    "@S\ndef inner(x):\n    return x + N\nprint(await inner(N), asyncio.iscoroutinefunction(double))",
    "class A:\n    @S(OPTIONS)\n    def m(self, x):\n        return x + N\nprint(await A().m(N))",
    "class A:\n    @classmethod\n    @S(OPTIONS)\n    def m(cls, x):\n        return cls.__name__, x + N\nprint(await A.m(N))",
    "print(await S(double, thread_sensitive=False, executor=pool)(N))",
    "try:\n    await S(fail, OPTIONS)(N)\nexcept ValueError as exc:\n    print(repr(exc))",
    "await S(remember, OPTIONS)(N)\nprint(variable.get())",
    "async def f(S_NAME):\n    return S_NAME(double, N)\nprint(await f(lambda *args: args[1]))",
    "print(await S(A(adouble), OPTIONS)(N))",
    """
    async def bridge(iterable):
        iterator = iter(iterable)
        end = object()
        while True:
            item = await S(next, OPTIONS)(iterator, end)
            if item is end:
                break
            yield item
    print([item async for item in bridge([N, N, N])])
    """,
    """
    def step(iterator):
        try:
            return next(iterator)
        except StopIteration:
            raise StopAsyncIteration
    async def bridge(iterable):
        iterator = iter(iterable)
        while True:
            try:
                yield await S(step, OPTIONS)(iterator)
            except StopAsyncIteration:
                return
    print([item async for item in bridge([N, N, N])])
    """,
]
SYNC_PARTS = [
    "print(A(adouble)(N, plus=N))",
    "print(list(map(A(adouble), [N, N])))",
    "stored = A(adouble)\nprint(stored(N), stored(x=N))",
    "@A\nasync def inner(x):\n    return await adouble(x)\nprint(inner(N), list(map(inner, [N])))",
    "class C:\n    @A\n    async def m(self, x):\n        return await adouble(x)\nprint(C().m(N))",
    "class C:\n    async def m(self, x):\n        return x + N\n    n = A(m)\nprint(C().n(N))",
    "try:\n    A(afail)(N)\nexcept ValueError as exc:\n    print(repr(exc))",
    "A(aremember)(N)\nprint(variable.get())",
    "async def inner():\n    return await S(threading.get_ident)()\nprint(A(inner)() == threading.get_ident())",
    "print(A(adouble, force_new_loop=True)(N))",
]
OPTIONS = st.sampled_from(["thread_sensitive=False", "thread_sensitive=True", ""])


@st.composite
def programs(draw: st.DrawFn) -> str:
    """Return a program that prints something in each of its parts."""
    parts: list[str] = []
    ends: list[str] = []
    form = draw(st.sampled_from(FORMS))
    outside = draw(st.booleans())
    chosen = draw(st.lists(st.sampled_from([*ASYNC_PARTS, *SYNC_PARTS]), min_size=4, max_size=8))
    for index, part in enumerate(chosen):
        body = dedent(part).strip()
        while "OPTIONS" in body:
            body = body.replace("OPTIONS", draw(OPTIONS), 1)
        while "N" in body.replace("S_NAME", ""):
            position = next(at for at, letter in enumerate(body) if letter == "N" and body[at - 2 : at + 4] != "S_NAME")
            body = f"{body[:position]}{draw(st.integers(0, 9))}{body[position + 1 :]}"
        body = body.replace("S_NAME", form.sync_to_async.rpartition(".")[2]).replace("class A", "class Sample")
        body = body.replace("A()", "Sample()").replace("A.m", "Sample.m")
        body = body.replace("S(", f"{form.sync_to_async}(").replace("@S\n", f"@{form.sync_to_async}\n")
        body = body.replace("A(", f"{form.async_to_sync}(").replace("@A\n", f"@{form.async_to_sync}\n")
        lines = body if outside else f"{form.statement}\n{body}"
        is_async = part in ASYNC_PARTS
        parts.append(f"{'async ' if is_async else ''}def part{index}():\n{indent(lines, '    ')}\n")
        ends.append(f"asyncio.run(part{index}())" if is_async else f"part{index}()")
    return "\n".join([START, form.statement if outside else "", *parts, *ends, "pool.shutdown()", ""])


# All forms of a program in one process: starting one takes longer than running them.
RUN = """
import contextlib, io, json, sys
outputs = []
for source in json.load(sys.stdin):
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(compile(source, "program", "exec"), {"__name__": "__main__"})
    outputs.append(output.getvalue())
json.dump(outputs, sys.stdout)
"""


def outputs_of(sources: list[str]) -> list[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", RUN],
        input=json.dumps(sources),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
    )
    assert done.returncode == 0, done.stderr
    outputs: list[str] = json.loads(done.stdout)
    return outputs


# Hypothesis's own on Python 3.15, of an object that it keeps itself
@pytest.mark.filterwarnings("ignore:It looks like `register_random`")
@settings(max_examples=15, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given(programs())
def test_a_program_that_has_moved_prints_the_same(source: str) -> None:
    ast.parse(source)
    sources = [source]
    ways = [Options(), Options(native=True)]
    if "get_ident" not in source:  # where it matters in which thread
        ways.append(Options(native=True, no_affinity=True))
    for options in ways:
        result = migrate(source.encode(), options)
        assert not result.error
        assert result.new != result.old
        assert migrate(result.new, options).new == result.new
        sources.append(result.new.decode())

    original, *others = outputs_of(sources)

    assert original.count("\n") >= 4
    for moved, output in zip(sources[1:], others, strict=True):
        assert output == original, moved
