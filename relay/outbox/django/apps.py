"""The app that brings the table."""

from __future__ import annotations

from django.apps import AppConfig


class OutboxConfig(AppConfig):
    name = "relay.outbox.django"
    label = "relay_outbox"
    verbose_name = "Relay's outbox"
