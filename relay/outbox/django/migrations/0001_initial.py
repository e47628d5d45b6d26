"""The outbox table, in the database that RELAY_OUTBOX_USING names."""

from __future__ import annotations

from typing import Any

from django.db import migrations

from relay.outbox.django import using
from relay.outbox.table import TABLE
from relay.outbox.write import create


def _make(apps: Any, editor: Any) -> None:
    if editor.connection.alias == using():
        create(editor.connection)


def _drop(apps: Any, editor: Any) -> None:
    if editor.connection.alias == using():
        editor.execute(f"DROP TABLE IF EXISTS {TABLE}")


class Migration(migrations.Migration):
    initial = True
    operations = (migrations.RunPython(_make, _drop),)
