"""One file moves with `--native`: iterators that were bridged by hand."""

from __future__ import annotations

from textwrap import dedent

import pytest
from migrating import HEAD, NATIVE, migrated, reasons
from unfazed_compat.migrate._plan import Options

STEP = """
def step(iterator):
    try:
        return next(iterator)
    except StopIteration:
        raise StopAsyncIteration
"""
OUTER_STEP = STEP.lstrip()
BRIDGES = [
    """
    async def bridge(iterable):
        '''Yield all.'''
        iterator = iter(iterable)
        end = object()
        while True:
            item = await sync_to_async(next, thread_sensitive=False)(iterator, end)
            if item is end:
                return
            yield item
    """,
    """
    END = object()
    async def bridge(iterable):
        iterator = await sync_to_async(iter, thread_sensitive=False)(iterable)
        while (item := await sync_to_async(next, thread_sensitive=False)(iterator, END)) is not END:
            yield item
    """,
    """
    async def bridge(iterable):
        iterator = iter(iterable)
        def step():
            try:
                return next(iterator)
            except StopIteration:
                raise StopAsyncIteration()
        while True:
            try:
                yield await sync_to_async(step, thread_sensitive=False)()
            except StopAsyncIteration:
                break
    """,
    """
    async def bridge(iterable):
        iterator = iter(iterable)
        def step(it):
            try:
                return next(it)
            except StopIteration:
                raise StopAsyncIteration from None
        while 1:
            try:
                item = await sync_to_async(step, thread_sensitive=False)(iterator)
            except StopAsyncIteration:
                return
            yield item
    """,
]


@pytest.mark.parametrize("body", BRIDGES)
def test_iterators_by_hand_become_ours(body: str) -> None:
    result = migrated(HEAD + dedent(body), NATIVE)
    new = result.new.decode()

    assert "    async for item in iterate_in_threadpool(iterable):\n        yield item\n" in new
    assert "from unfazed.concurrency import iterate_in_threadpool\n" in new
    assert "asgiref" not in new
    assert "while" not in new
    assert result.findings == ()


GOOD = BRIDGES[0]
NEARLY_BRIDGES = [
    GOOD.replace("thread_sensitive=False", ""),
    GOOD.replace("thread_sensitive=False", "thread_sensitive=False, executor=e"),
    GOOD.replace("thread_sensitive=False", "*options"),
    GOOD.replace("yield item", "yield item  # why"),
    GOOD.replace("yield item", "yield other"),
    GOOD.replace("if item is end", "if other is end"),
    GOOD.replace("(iterator, end)", "(iterator, None)").replace("is end", "is None"),
    GOOD.replace("(iterator, end)", "(other, end)"),
    GOOD.replace("(iterator, end)", "(iterator, *end)"),
    GOOD.replace("is end", "is other"),
    GOOD.replace("end = object()", "print(end)"),
    GOOD.replace("end = object()", "def g(): pass"),
    GOOD.replace("end = object()", "end = object()\n        iterator = iter(iterable)"),
    GOOD.replace("iterable", "item"),
    GOOD.replace("iterator = iter(iterable)", "pass"),
    GOOD.replace("end = object()", "iterate_in_threadpool = object()"),
    GOOD.replace("next,", "other,"),
    f"iterate_in_threadpool = 1\n{dedent(GOOD)}",
    GOOD.replace("next,", "next, *more,"),
    GOOD.replace("end = object()", "end = None"),
    "async def bridge(): pass\nsync_to_async(next)",
    "async def bridge(): 'nothing'\nsync_to_async(next)",
    "async def bridge():\n    'nothing'\nsync_to_async(next)",
    BRIDGES[2].replace("(step,", "(other,"),
    BRIDGES[2].replace("(step,", "(lambda: step(),"),
    BRIDGES[2]
    .replace("def step", "def other")
    .replace("async def bridge", OUTER_STEP.replace("\n", "\n    ") + "\n    async def bridge"),
    BRIDGES[3].replace("(iterator)\n", "(other)\n"),
    BRIDGES[1].replace("END = object()", "END = None"),
    BRIDGES[1].replace("END = object()", "from x import END"),
    BRIDGES[1].replace("END = object()", ""),
]


@pytest.mark.parametrize("body", NEARLY_BRIDGES)
def test_what_is_no_more_than_like_an_iterator_is_reported(body: str) -> None:
    result = migrated(HEAD + dedent(body), NATIVE)

    assert "async for" not in result.new.decode()


def test_an_iterator_by_hand_stays_where_others_need_the_name() -> None:
    options = Options(native=True, patched=frozenset({"sync_to_async"}))

    assert "async for" not in migrated(HEAD + dedent(GOOD), options).new.decode()


def test_a_function_of_another_name_is_not_the_step() -> None:
    assert "iterator bridge, by hand" in reasons(migrated("import asgiref\n" + STEP, NATIVE))
