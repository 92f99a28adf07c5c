"""Both faces of the library do the same: each test runs on the async class, and on its sync twin."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from weather import AsyncReport, AsyncWeather, Report, Weather

from unfazed.concurrency import contextmanager_in_eventloop_sync, iterate_in_eventloop_sync, run_in_eventloop_sync

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from contextlib import AbstractContextManager
    from pathlib import Path


class Face:
    """Uses one of the two as a sync test can."""

    def __init__(self, is_async: bool) -> None:
        self.is_async = is_async
        self.weather: Any = AsyncWeather if is_async else Weather
        self.report: Any = AsyncReport if is_async else Report

    def call(self, method: Callable[..., Any], *args: object) -> Any:
        return run_in_eventloop_sync(method, *args) if self.is_async else method(*args)

    def items(self, iterable: Any) -> Iterable[Any]:
        return iterate_in_eventloop_sync(iterable) if self.is_async else iterable

    def entered(self, manager: Any) -> AbstractContextManager[Any]:
        entered: AbstractContextManager[Any] = contextmanager_in_eventloop_sync(manager) if self.is_async else manager
        return entered

    def callback(self, func: Callable[[Any], bool]) -> Callable[[Any], Any]:
        async def call(report: Any) -> bool:
            return func(report)

        return call if self.is_async else func


@pytest.fixture(params=[True, False], ids=["async", "sync"])
def face(request: pytest.FixtureRequest) -> Face:
    return Face(request.param)


@pytest.fixture
def service(face: Face, tmp_path: Path) -> Any:
    (tmp_path / "Oslo.txt").write_text("rain\n", encoding="utf-8")
    (tmp_path / "Rome.txt").write_text("sun\n", encoding="utf-8")
    return face.weather(tmp_path)


def test_reports(face: Face, service: Any) -> None:
    reports = face.call(service.reports, "Oslo", "Rome")

    assert reports == [face.report(service, "Oslo", "rain"), face.report(service, "Rome", "sun")]


def test_a_report_can_be_read_again(face: Face, service: Any) -> None:
    report = face.call(service.report, "Oslo")
    with face.entered(service.editing("Oslo")) as words:
        words.extend(["snow", "storm"])

    assert face.call(report.refresh)
    assert report.text == "snow storm"


def test_cities(face: Face, service: Any) -> None:
    assert list(face.items(service.cities())) == ["Oslo", "Rome"]


def test_a_callback_is_of_the_same_kind(face: Face, service: Any) -> None:
    found = face.call(service.find, face.callback(lambda report: report.text == "sun"))

    assert found.city == "Rome"
    assert face.call(service.find, face.callback(lambda report: False)) is None


def test_it_is_a_context_manager(face: Face, service: Any) -> None:
    with face.entered(service) as entered:
        assert entered is service
