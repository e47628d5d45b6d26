"""The outbox table, in SQL that SQLite and PostgreSQL both read.

A row is `waiting` until it was submitted; then it goes, or stays as `sent` for a while. `refused` and `in_doubt` wait for a
person. `attempted_at` is when the first submission began whose outcome is not known: it is committed before that begins.
"""

from __future__ import annotations

import re
from typing import Literal

Dialect = Literal["sqlite", "postgresql"]
TABLE = "relay_outbox"
STATES = ("waiting", "refused", "in_doubt", "sent")

_ID = {
    "sqlite": "INTEGER PRIMARY KEY AUTOINCREMENT",
    "postgresql": "BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY",
}
# TEXT, not JSON: what is submitted again must be what was submitted before, octet for octet.
_TABLE = """CREATE TABLE IF NOT EXISTS {table} (
  id {id},
  key TEXT NOT NULL UNIQUE,
  message TEXT NOT NULL,
  created_at DOUBLE PRECISION NOT NULL,
  state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ({states})),
  attempts INTEGER NOT NULL DEFAULT 0,
  attempted_at DOUBLE PRECISION,
  next_at DOUBLE PRECISION NOT NULL DEFAULT 0,
  last_error TEXT NOT NULL DEFAULT '',
  queue_id TEXT NOT NULL DEFAULT '',
  sent_at DOUBLE PRECISION
)"""
_INDEX = "CREATE INDEX IF NOT EXISTS {name}_waiting ON {table} (id) WHERE state = 'waiting'"
_NAME = re.compile(r"(?:[a-z_][a-z0-9_]{0,40}\.)?[a-z_][a-z0-9_]{0,40}")


def checked(table: str) -> str:
    """A name that may stand in a statement as it is. Raises ValueError."""
    if not _NAME.fullmatch(table):
        raise ValueError(f"table {table!r}: lower-case letters, digits and _ make a name; before a dot, its schema")
    return table


def channel(table: str) -> str:
    """What is notified of new rows. Without the schema, for a channel's name ends at 63 characters: a word too many does no harm."""
    return checked(table).rpartition(".")[2]


def ddl(dialect: Dialect, table: str = TABLE) -> tuple[str, ...]:
    """The statements that make the table, one by one: for a migration, or to be run by hand. Raises ValueError."""
    if dialect not in _ID:
        raise ValueError(f"no outbox for {dialect}: there is one for {' and '.join(_ID)}")
    made = _TABLE.format(table=checked(table), id=_ID[dialect], states=", ".join(f"'{s}'" for s in STATES))
    schema, dot, name = table.rpartition(".")
    if dialect == "sqlite":  # the schema stands before the index there, and not before its table
        return made, _INDEX.format(table=name, name=schema + dot + name)
    return made, _INDEX.format(table=table, name=name)
