"""What was used up of rates, and small documents by key, as functions on a connection's thread.

A count is written as the new one, not as a difference: what is written twice, or of which only the last was written, is right.
So of many who count the same at once one row is written, and a count must never be overtaken by an older one.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from relay.spool import NewMessage
from relay.spool.rows import Rows

Row = tuple[str, float, int]  # key, until, count

_SPEND = Rows(
    "INSERT INTO spent (key, until, count) VALUES {} ON CONFLICT (key, until) DO UPDATE SET count = excluded.count", 3
)
_EMPTIED = Rows("DELETE FROM spent WHERE count <= 0 AND key IN (VALUES {})", 1)
_ENDED = Rows("DELETE FROM spent WHERE until <= ? AND key IN (VALUES {})", 1)
_KEEP = Rows("INSERT INTO kept (key, value) VALUES {} ON CONFLICT (key) DO UPDATE SET value = excluded.value", 2)
_DROP = Rows("DELETE FROM kept WHERE key IN (VALUES {})", 1)


def accept(
    store: Callable[[sqlite3.Connection, Sequence[NewMessage]], Sequence[Any]],
    connection: sqlite3.Connection,
    works: Sequence[NewMessage | Sequence[Row]],
) -> list[Any]:
    """Messages, by `store` (hot.accept), and what is spent with them or without one: for a message what `store` says of it.

    Both kinds in one batch, in the order in which they were asked for: of a count the last word stays, whoever said it.
    """
    messages = [work for work in works if isinstance(work, NewMessage)]
    stored = iter(store(connection, messages) if messages else ())
    results: list[Any] = []
    rows: list[Row] = []
    for work in works:
        if isinstance(work, NewMessage):
            results.append(next(stored))
            _, fresh, *_ = results[-1]
            rows += work.spent if fresh else ()
        else:
            results.append(None)
            rows += work
    if rows:
        write(connection, rows)
    return results


def write(connection: sqlite3.Connection, rows: Sequence[Row]) -> None:
    last = {(key, until): count for key, until, count in rows}
    _SPEND.run(connection, [(*part, count) for part, count in last.items()])
    emptied = dict.fromkeys(key for (key, _), count in last.items() if count <= 0)
    _EMPTIED.run(connection, [(key,) for key in emptied])


def spent(connection: sqlite3.Connection) -> dict[str, list[tuple[float, int]]]:
    """(until, count) of every key, in order of `until`."""
    found: dict[str, list[tuple[float, int]]] = {}
    for key, until, count in connection.execute("SELECT key, until, count FROM spent ORDER BY key, until"):
        found.setdefault(key, []).append((until, count))
    return found


def ended(connection: sqlite3.Connection, before: float) -> list[tuple[str]]:
    """The keys of which something has ended by then. A walk over all of them: an index would be written with each count."""
    found: list[tuple[str]] = connection.execute(
        "SELECT DISTINCT key FROM spent WHERE until <= ?", (before,)
    ).fetchall()
    return found


def forget(before: float, connection: sqlite3.Connection, keys: Sequence[tuple[str]]) -> None:
    _ENDED.run(connection, keys, before)


def move(connection: sqlite3.Connection, seconds: float) -> None:
    """All that was spent ends by so much later, or sooner where it is negative.

    Taken out and put back: on its way a row would meet its neighbour.
    """
    moved: dict[tuple[str, float], int] = {}
    for key, until, count in connection.execute("DELETE FROM spent RETURNING key, until, count").fetchall():
        part = key, until + seconds
        moved[part] = moved.get(part, 0) + count  # two that lie close may fall together
    _SPEND.run(connection, [(*part, count) for part, count in moved.items()])


def remember(connection: sqlite3.Connection, batches: Sequence[Mapping[str, str | None]]) -> list[None]:
    documents = {key: value for batch in batches for key, value in batch.items()}
    _KEEP.run(connection, [(key, value) for key, value in documents.items() if value is not None])
    _DROP.run(connection, [(key,) for key, value in documents.items() if value is None])
    return [None] * len(batches)


def remembered(connection: sqlite3.Connection) -> dict[str, str]:
    return dict(connection.execute("SELECT key, value FROM kept").fetchall())
