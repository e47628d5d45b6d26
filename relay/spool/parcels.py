"""What endpoints have not taken yet, as functions on a connection's thread."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import takewhile

from relay.spool.feed import Parcel, Progress
from relay.spool.rows import Rows

_COLUMNS = "endpoint, event, message, body, attempts, due_at, first_at, why, dead"
_PUT = Rows(f"INSERT OR REPLACE INTO parcel ({_COLUMNS}) VALUES {{}}", 9)
_COME = Rows(
    "INSERT INTO endpoint (name, cursor) VALUES {} ON CONFLICT (name) DO UPDATE SET cursor = excluded.cursor", 2
)


def cursors(connection: sqlite3.Connection) -> dict[str, int]:
    return dict(connection.execute("SELECT name, cursor FROM endpoint").fetchall())


def progress(connection: sqlite3.Connection, jobs: Sequence[Progress]) -> list[None]:
    """In order: of one parcel, and of one cursor, the last word stays."""
    for job in jobs:
        forget(connection, [(event, job.endpoint) for event in job.taken])
        _PUT.run(connection, [_row(one) for one in job.parcels])
    _COME.run(connection, list({job.endpoint: (job.endpoint, job.cursor) for job in jobs}.values()))
    return [None] * len(jobs)


def _row(one: Parcel) -> tuple[object, ...]:
    return (
        *(one.endpoint, one.event, one.message, one.body, one.attempts, one.due_at, one.first_at, one.why),
        int(one.dead),
    )


def _read(connection: sqlite3.Connection, index: str, which: str, values: Sequence[object]) -> list[Parcel]:
    # SQLite would go through the whole endpoint by its key: it does not know how few are dead, or of one message.
    rows = connection.execute(f"SELECT {_COLUMNS} FROM parcel p {index} WHERE {which}", values)
    found = [Parcel(*row) for row in rows]
    for one in found:
        one.dead = bool(one.dead)
    return found


def page(connection: sqlite3.Connection, endpoint: str, dead: bool, after: int, limit: int) -> list[Parcel]:
    which = f"endpoint = ? AND dead = {int(dead)} AND event > ? ORDER BY event LIMIT ?"
    return _read(connection, "INDEXED BY parcel_dead" if dead else "", which, (endpoint, after, limit))


_WAITS = "endpoint = ? AND dead = 0 AND "
_FIRST = (
    "SELECT q.event FROM parcel q INDEXED BY parcel_message "
    "WHERE q.endpoint = p.endpoint AND q.message = p.message AND q.dead = 0 ORDER BY q.event LIMIT 1"
)
# Nothing but the answer is sorted, and of nothing else a body is read.
_HEADS = (
    f"event IN (SELECT event FROM parcel p INDEXED BY parcel_due WHERE {_WAITS} due_at <= ? "
    f"AND (message = 0 OR event = ({_FIRST})) ORDER BY due_at, event LIMIT ?) AND endpoint = ? ORDER BY due_at, event"
)
_BEHIND = _WAITS + "message = ? AND event > ? ORDER BY event LIMIT ?"


def due(connection: sqlite3.Connection, endpoint: str, now: float, limit: int) -> list[Parcel]:
    """The first of each message, and where there is room those behind it up to the first that is not due."""
    found = _read(connection, "", _HEADS, (endpoint, now, limit, endpoint))
    for head in [one for one in found if one.message]:
        if room := limit - len(found):
            behind = _read(connection, "INDEXED BY parcel_message", _BEHIND, (endpoint, head.message, head.event, room))
            found += takewhile(lambda one: one.due_at <= now, behind)
    return found


def counts(connection: sqlite3.Connection) -> dict[str, tuple[int, int, float | None]]:
    found: dict[str, tuple[int, int, float | None]] = dict.fromkeys(cursors(connection), (0, 0, None))
    waiting = "SELECT endpoint, count(*), min(due_at) FROM parcel WHERE dead = 0 GROUP BY endpoint"
    for endpoint, count, first in connection.execute(waiting):
        found[endpoint] = count, 0, first
    for endpoint, count in connection.execute("SELECT endpoint, count(*) FROM parcel WHERE dead = 1 GROUP BY endpoint"):
        alive, _, first = found.get(endpoint, (0, 0, None))
        found[endpoint] = alive, count, first
    return found


def messages(connection: sqlite3.Connection, endpoint: str) -> set[int]:
    rows = connection.execute(
        "SELECT DISTINCT message FROM parcel WHERE endpoint = ? AND dead = 0 AND message > 0", (endpoint,)
    )
    return {row[0] for row in rows}


def some(connection: sqlite3.Connection, endpoint: str, limit: int) -> list[tuple[int, str]]:
    """(event, endpoint) of some of its parcels."""
    return connection.execute(
        "SELECT event, endpoint FROM parcel WHERE endpoint = ? LIMIT ?", (endpoint, limit)
    ).fetchall()


def forget(connection: sqlite3.Connection, keys: Sequence[tuple[int, str]]) -> None:
    connection.executemany("DELETE FROM parcel WHERE event = ? AND endpoint = ?", keys)


def forget_endpoint(connection: sqlite3.Connection, endpoint: str) -> None:
    connection.execute("DELETE FROM parcel WHERE endpoint = ?", (endpoint,))
    connection.execute("DELETE FROM endpoint WHERE name = ?", (endpoint,))
