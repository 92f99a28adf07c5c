"""The settings. The first of the apps is all that a project needs to move."""

from __future__ import annotations

import os
from pathlib import Path

DATABASE = os.environ.get("GUESTBOOK_DATABASE", str(Path(__file__).parent.parent / "guestbook.sqlite3"))

INSTALLED_APPS = ("unfazed_compat.django", "guestbook")
MIDDLEWARE = ("guestbook.middleware.name_the_visitor", "guestbook.middleware.count_the_entries")
ROOT_URLCONF = "guestbook.urls"
ALLOWED_HOSTS = ("127.0.0.1", "localhost")
SECRET_KEY = "of an example, on this machine alone"
USE_TZ = True
DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": DATABASE,
        # as one does for SQLite behind a web server: readers do not wait for the writer, who waits for other writers
        "OPTIONS": {"timeout": 20, "transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"},
    }
}
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django": {"handlers": ["console"], "level": "ERROR"}},
}
