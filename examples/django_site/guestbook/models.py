"""What is in the guest book."""

from __future__ import annotations

from django.db import models


class Entry(models.Model):
    """One guest's entry."""

    id = models.AutoField(primary_key=True)
    name = models.CharField(max_length=100)

    class Meta:
        ordering = ("id",)
