"""What the tests with Django share: one project for the whole process, for Django takes no second one."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import django
import pytest
from django.conf import settings

if TYPE_CHECKING:
    from pathlib import Path


@functools.cache
def _planets(folder: Path) -> Any:
    database = folder / "planets.sqlite3"
    settings.configure(
        DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": str(database)}},
        DEFAULT_AUTO_FIELD="django.db.models.AutoField",
        USE_TZ=True,
    )
    django.setup()
    from django.db import connection, models

    class Planet(models.Model):  # type: ignore[misc]
        name = models.CharField(max_length=20)

        class Meta:
            app_label = "planets"

    with connection.schema_editor() as editor:
        editor.create_model(Planet)
    Planet.objects.create(name="earth")
    connection.close()
    return Planet


@pytest.fixture
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model, in a database with one of it."""
    return _planets(tmp_path_factory.getbasetemp())
