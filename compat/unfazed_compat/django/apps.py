"""The app's configuration, which Django looks for in this file. It calls `setup`."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from ._setup import setup

if TYPE_CHECKING:

    class _AppConfig:
        """The part of Django's class that we use. Django has no types."""

        def ready(self) -> None: ...

else:
    from django.apps import AppConfig as _AppConfig


@final
class UnfazedConfig(_AppConfig):
    """The app `unfazed_compat.django`."""

    name = "unfazed_compat.django"
    label = "unfazed"
    verbose_name = "unfazed"

    def ready(self) -> None:
        """Move the project, once Django has loaded its apps."""
        setup()
