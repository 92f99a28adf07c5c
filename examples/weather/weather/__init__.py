"""Weather reports, for async code and for sync code.

`AsyncWeather` is written by hand; `Weather` is written from it, by

    python -m unfazed.twins weather._async:AsyncWeather weather._async:AsyncReport --output weather/_sync.py
"""

from ._async import AsyncReport, AsyncWeather
from ._sync import Report, Weather

__all__ = ("AsyncReport", "AsyncWeather", "Report", "Weather")
