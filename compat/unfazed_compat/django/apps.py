"""What Django looks for in an app: here, its only reason is to call `setup`."""

from __future__ import annotations

from typing import TYPE_CHECKING, final

from ._setup import setup

if TYPE_CHECKING:

    class _AppConfig:
        """What is used of Django's, which has no types."""

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
        """Move the project, when Django has loaded its apps."""
        setup()
