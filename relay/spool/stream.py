"""The stream of events, and what a report teaches, as functions on a connection's thread.

An id is a cursor of many readers, so none is given twice: the newest event is never deleted, and where a reader may know
greater ids than the table (a backup, a salvage), a mark takes the highest. A mark has no kind; no reader sees it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from relay import clock
from relay.events import Row
from relay.policy.suppression import Suppression
from relay.spool import Event, counts, hot, suppressed
from relay.spool.feed import Learnt

SWEPT = 5000  # events that one answer for some users looks through
ADDRESSES = 20_000  # of recipients that one answer holds, about
MOST_TOLD = 1000  # recipients of one message

_SELECT = (
    "SELECT e.id, e.at, e.kind, e.message, e.n, e.egress, e.code, e.data, m.sender, m.header_from, r.address, m.user, "
    "m.class, m.tag, d.data FROM event e LEFT JOIN message m ON m.id = e.message "
    "LEFT JOIN recipient r ON r.message = e.message AND r.n = e.n LEFT JOIN metadata d ON d.message = m.id WHERE e.kind <> '' AND "
)


def events(connection: sqlite3.Connection, after: int, limit: int, until: int | None) -> list[Row]:
    values = (after, (1 << 62) if until is None else until, limit)
    return _read(connection, "e.id > ? AND e.id <= ? ORDER BY e.id LIMIT ?", values)


def events_of(
    connection: sqlite3.Connection, users: Sequence[str], after: int, limit: int, until: int
) -> tuple[list[Row], int, int]:
    """(those about mail of these users, the cursor behind what was looked through, how many that were)."""
    upto, looked = connection.execute(
        "SELECT max(id), count(*) FROM (SELECT id FROM event WHERE id > ? AND id <= ? ORDER BY id LIMIT ?)",
        (after, until, SWEPT),
    ).fetchone()
    if not looked:
        return [], until, 0
    # Not by an index of users: in order, and over these events alone.
    found = connection.execute(
        "SELECT e.id FROM event e CROSS JOIN message m ON m.id = e.message AND +m.user IN (SELECT value FROM json_each(?)) "
        "WHERE e.id > ? AND e.id <= ? AND e.kind <> '' ORDER BY e.id LIMIT ?",
        (json.dumps(list(users)), after, upto, limit),
    ).fetchall()
    if not found:
        return [], upto, looked
    which = "e.id IN (SELECT value FROM json_each(?)) ORDER BY e.id"
    rows = _read(connection, which, (json.dumps([number for (number,) in found]),))
    if not rows:  # a purge took them meanwhile
        return [], upto, looked
    whole = len(rows) == len(found) < limit
    return rows, upto if whole else rows[-1].id, looked


def newest_of(connection: sqlite3.Connection, users: Sequence[str], after: int, most: int) -> list[int]:
    """Ids of those about mail of these users, in order: of the newest `most` events of all."""
    rows = connection.execute(
        "SELECT e.id FROM (SELECT id, message FROM event WHERE id > ? ORDER BY id DESC LIMIT ?) e "
        "CROSS JOIN message m ON m.id = e.message AND +m.user IN (SELECT value FROM json_each(?))",
        (after, most, json.dumps(list(users))),
    )
    return sorted(number for (number,) in rows)


def story(connection: sqlite3.Connection, message: int) -> list[Row]:
    return _read(connection, "e.message = ? ORDER BY e.id", (message,))


def _read(connection: sqlite3.Connection, which: str, values: tuple[Any, ...]) -> list[Row]:
    rows = [
        Row(
            number, at, kind, message, n, egress, code, json.loads(data) if data != "{}" else {},
            sender or "", from_ or "", address or "", user or "", class_ or "", tag or "", said or "",
        )
        for number, at, kind, message, n, egress, code, data, sender, from_, address, user, class_, tag, said
        in connection.execute(_SELECT + which, values)
    ]  # fmt: skip
    if whole := list(dict.fromkeys(row.message for row in rows if row.n is None and row.message)):
        rows = _addressed(connection, rows, whole)
    return rows


def _addressed(connection: sqlite3.Connection, rows: list[Row], messages: list[int]) -> list[Row]:
    """With the recipients of those that are of a whole message; cut off where that would be too many."""
    found: dict[int, list[str]] = {message: [] for message in messages}
    # In the order of the rows: so the nested loop of a CROSS JOIN goes.
    read = connection.execute(
        "SELECT r.message, r.address FROM json_each(?) j CROSS JOIN recipient r ON r.message = j.value AND r.n < ? LIMIT ?",
        (json.dumps(messages), MOST_TOLD, ADDRESSES + 1),
    ).fetchall()
    for message, address in read:
        found[message].append(address)
    if len(read) > ADDRESSES:
        cut = read[-1][0]  # it may have more of them, and what is after it has not been read
        rows = rows[: next(i for i, row in enumerate(rows) if row.n is None and row.message == cut)]
    for row in rows:
        if row.n is None and row.message:
            addresses = found[row.message]
            if len(addresses) == 1:
                row.recipient = addresses[0]
            if row.kind == "accepted":
                row.recipients = tuple(addresses)
    return rows


def last(connection: sqlite3.Connection) -> int:
    found: int | None = connection.execute("SELECT max(id) FROM event").fetchone()[0]
    return found or 0


def at(connection: sqlite3.Connection, wanted: float) -> int:
    """The least cursor after which the next event is not older: ids and times grow together."""
    low, high = 0, last(connection)
    while low < high:
        middle = (low + high) // 2
        number, found = connection.execute(
            "SELECT id, at FROM event WHERE id > ? ORDER BY id LIMIT 1", (middle,)
        ).fetchone()
        low, high = (low, middle) if found >= wanted else (number, high)
    return low


def note(connection: sqlite3.Connection, jobs: Sequence[Sequence[Event]]) -> list[None]:
    hot.insert_events(connection, [event for job in jobs for event in job])
    return [None] * len(jobs)


@dataclass(slots=True)
class Taught:
    """`changed`: None where it was learnt before."""

    changed: list[Suppression] | None
    removed: list[tuple[str, str]] = field(default_factory=list)


def learn(connection: sqlite3.Connection, learnt: Learnt) -> Taught:
    now = clock.now()
    if learnt.once and not _is_new(connection, learnt.once, now):
        return Taught(None)
    hot.insert_events(connection, learnt.events)
    gone = suppressed.remove(connection, learnt.removed, now)
    listed = suppressed.put(connection, learnt.suppressions, learnt.softly)
    hot.insert_events(connection, [*gone.events, *listed.events])
    counts.remember(connection, [learnt.documents])
    return Taught(listed.changed, gone.removed)


def _is_new(connection: sqlite3.Connection, key: str, now: float) -> bool:
    return bool(
        connection.execute(
            "INSERT INTO heard (key, at) VALUES (?, ?) ON CONFLICT DO NOTHING RETURNING 1", (key, now)
        ).fetchall()
    )


def over(now: float, connection: sqlite3.Connection, keys: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Forgets those of these (address, scope) that have come to their end."""
    gone = suppressed.remove(connection, [(scope, address) for address, scope in keys], now, over=True)
    hot.insert_events(connection, gone.events)
    return gone.removed


# -- ids that are not given twice, and what is forgotten


def lift(connection: sqlite3.Connection, now: float, restored: bool) -> None:
    """At a start: the next id is above all that a reader may know. Of a restored backup nobody knows how far they came; so
    it is by the time, as the numbers of messages are."""
    top = last(connection)
    wanted: int = connection.execute(
        "SELECT coalesce(max(cursor), 0) FROM (SELECT cursor FROM endpoint UNION ALL SELECT cursor FROM consumer)"
    ).fetchone()[0]
    if restored:
        wanted = max(wanted, top + (1 << 20), int(now) << 20)
    if wanted > top:
        connection.execute(
            "INSERT INTO event (id, at, message, n, kind, egress, code, data) VALUES (?, ?, 0, NULL, '', '', 0, '{}')",
            (wanted, now),
        )


def strays(connection: sqlite3.Connection, before: float, after: int, limit: int) -> tuple[int, list[tuple[int]]]:
    """(last id that was looked at, 0 at the end; those before that time that no message takes with it when it goes)."""
    rows = connection.execute(
        "SELECT e.id, e.at, m.id FROM event e LEFT JOIN message m ON m.id = e.message "
        "WHERE e.id > ? AND e.id < (SELECT max(id) FROM event) ORDER BY e.id LIMIT ?",
        (after, limit),
    ).fetchall()
    old = [(number, message) for number, at, message in rows if at < before]
    if len(old) < len(rows):  # only up to the first that is too young
        end = next(number for number, at, _ in rows if at >= before)
        old = [(number, message) for number, message in old if number < end]
    return (old[-1][0] if old else 0), [(number,) for number, message in old if message is None]


def forget(connection: sqlite3.Connection, ids: Sequence[tuple[int]]) -> None:
    connection.execute(
        "DELETE FROM event WHERE id IN (SELECT value FROM json_each(?)) AND id < (SELECT max(id) FROM event)",
        (json.dumps([number for (number,) in ids]),),
    )


def heard_before(connection: sqlite3.Connection, before: float, limit: int) -> list[tuple[str]]:
    return connection.execute("SELECT key FROM heard WHERE at < ? LIMIT ?", (before, limit)).fetchall()


def unhear(connection: sqlite3.Connection, keys: Sequence[tuple[str]]) -> None:
    connection.executemany("DELETE FROM heard WHERE key = ?", keys)
