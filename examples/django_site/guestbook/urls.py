"""Where the views are."""

from __future__ import annotations

from django.urls import path

from . import views

urlpatterns = (
    path("sync/<int:number>/", views.show_sync),
    path("async/<int:number>/", views.show_async),
    path("sign/", views.sign),
    path("stream/sync/", views.stream_sync),
    path("stream/async/", views.stream_async),
    path("endless/sync/", views.endless_sync),
    path("endless/async/", views.endless_async),
    path("report/", views.report),
    path("calls/", views.show_calls),
)
