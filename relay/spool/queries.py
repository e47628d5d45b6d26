"""What is read for operators and housekeeping, on the read-only connection. Short transactions, pages, no locks."""

from __future__ import annotations

import json
import sqlite3
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from relay.envelope import queue_id
from relay.policy.suppression import Why
from relay.recipient import FINAL, State
from relay.spool import Filter, Notify, Place, Position, SpoolError
from relay.spool.listing import page

_FINAL = "(4, 5)"


def message(connection: sqlite3.Connection, number: int) -> dict[str, Any] | None:
    row = connection.execute("SELECT * FROM message WHERE id = ?", (number,)).fetchone()
    if row is None:
        return None
    names = [d[0] for d in connection.execute("SELECT * FROM message LIMIT 0").description]
    found: dict[str, Any] = dict(zip(names, row, strict=True))
    found["queue_id"] = queue_id(number)
    inline = connection.execute("SELECT 1 FROM content WHERE id = ?", (number,)).fetchone()
    if found["place"] == Place.TABLE and not inline:
        found["place"] = int(Place.DROPPED)
    key = connection.execute("SELECT key FROM idempotency WHERE message = ?", (number,)).fetchone()
    said = connection.execute("SELECT data FROM metadata WHERE message = ?", (number,)).fetchone()
    found |= {"key": key[0] if key else "", "metadata": json.loads(said[0]) if said else {}}
    found["recipients"] = page(connection, Filter(ids=(number,)), None, 100_000)
    found["events"] = [
        {"id": i, "at": at, "n": n, "kind": kind, "egress": egress, "code": code, **json.loads(data)}
        for i, at, n, kind, egress, code, data in connection.execute(
            "SELECT id, at, n, kind, egress, code, data FROM event WHERE message = ? ORDER BY id", (number,)
        )
    ]
    return found


def body(connection: sqlite3.Connection, number: int) -> bytes:
    row = connection.execute("SELECT bytes FROM content WHERE id = ?", (number,)).fetchone()
    if row is None:
        raise SpoolError(f"the body of {queue_id(number)} is not kept any more (spool.keep_bodies)")
    found: bytes = row[0]
    return found


def file_bodies(connection: sqlite3.Connection) -> set[int]:
    """By the index `in_file`, which wants the number said."""
    return {row[0] for row in connection.execute(f"SELECT id FROM message WHERE place = {int(Place.FILE)}")}


def stats(connection: sqlite3.Connection, users: frozenset[str] | None = None) -> list[dict[str, Any]]:
    """For each lane that has something: recipients by state, when the oldest of those that are not done was accepted, and when
    the first is due of those that wait for their turn. Of the lanes of these users: what a lane holds is of one user."""
    whose, named = "", list[str]()
    if users is not None:
        whose = "WHERE json_extract(facts, '$.user') IN (SELECT value FROM json_each(?))"
        named = [json.dumps(sorted(users))]
    facts = dict(connection.execute(f"SELECT id, facts FROM lane {whose}", named).fetchall())
    found: defaultdict[int, _Lane] = defaultdict(_Lane)
    of_lanes, among = "", list[str]()
    if users is not None:
        of_lanes, among = "AND lane IN (SELECT value FROM json_each(?))", [json.dumps(list(facts))]
    # Those that wait by the index `ready`, which has them by lane: to group rows that lie otherwise is to sort them.
    for lane, count, deferred, first, due in connection.execute(
        "SELECT lane, count(*), sum(state), min(message), min(due_at) FROM recipient "
        f"WHERE state < 2 {of_lanes} GROUP BY lane",
        among,
    ):
        found[lane] = _Lane({0: count - deferred, 1: deferred}, first, due)
    for part in parts(connection):
        for lane, state, count, first in connection.execute(
            "SELECT lane, state, count(*), min(message) FROM recipient "
            f"WHERE message > ? AND message <= ? AND state > 1 {of_lanes} GROUP BY lane, state",
            (*part, *among),
        ):
            found[lane].add(state, count, first)
    firsts = json.dumps([lane.first for lane in found.values() if lane.first is not None])
    ids = "WHERE id IN (SELECT value FROM json_each(?))"
    # Ids grow with time, so that no other message is read for it.
    accepted = dict(connection.execute(f"SELECT id, accepted_at FROM message {ids}", (firsts,)).fetchall())
    return [
        {
            "lane": number,
            "facts": facts[number],
            "states": {State(state).label: count for state, count in sorted(lane.states.items()) if count},
            "oldest": accepted.get(lane.first),
            "due_at": lane.due,
        }
        for number, lane in sorted(found.items())
        if number in facts and (lane.first is None or lane.first in accepted)
    ]


@dataclass(slots=True)
class _Lane:
    """What is in it, by state; its first message that is not done; when the first is due."""

    states: dict[int, int] = field(default_factory=dict)
    first: int | None = None
    due: float | None = None

    def add(self, state: int, count: int, first: int) -> None:
        self.states[state] = self.states.get(state, 0) + count
        if state not in FINAL:
            self.first = first if self.first is None else min(self.first, first)


def used_lanes(connection: sqlite3.Connection) -> set[int]:
    """Those that some recipient is of, whatever its state."""
    return {
        row[0]
        for after, last in parts(connection)
        for row in connection.execute(
            "SELECT DISTINCT lane FROM recipient WHERE message > ? AND message <= ?", (after, last)
        )
    }


_PART = 5_000  # rows, by which all of them are gone through: what groups more of them sorts them for longer


def parts(connection: sqlite3.Connection) -> Iterator[tuple[int, int]]:
    """All messages, in parts of about so many recipients: (after this id, to this one)."""
    after = -1
    while True:
        row = connection.execute(
            "SELECT message FROM recipient WHERE message > ? ORDER BY message LIMIT 1 OFFSET ?", (after, _PART)
        ).fetchone()
        yield after, (last := row[0] if row else (1 << 63) - 1)
        if row is None:
            return
        after = last


def oldest(connection: sqlite3.Connection, after: int, moving: int) -> tuple[int, int, float | None] | None:
    """(id of the oldest message from `after` on that is not done, of the oldest from `moving` on that wants to leave, its
    acceptance); where none wants to leave the second is above all ids.

    Both are earlier answers: what is done stays done, so that the finished ones before it are not read again. What is held
    waits for a person and is no sign of trouble; until someone releases it, it is not read again either.
    """
    first = connection.execute(
        f"SELECT message FROM recipient WHERE message >= ? AND state NOT IN {_FINAL} ORDER BY message LIMIT 1", (after,)
    ).fetchone()
    if first is None:
        return None
    found = connection.execute(
        "SELECT message, accepted_at FROM recipient JOIN message ON id = message "
        "WHERE message >= ? AND state IN (0, 1, 2) AND send_at <= accepted_at ORDER BY message LIMIT 1",
        (max(moving, first[0]),),
    ).fetchone()
    if found is None:
        found = (connection.execute("SELECT max(message) + 1 FROM recipient").fetchone()[0], None)
    return first[0], *found


_STALE = (
    "SELECT r.message, r.n, r.lane, r.address, m.sender, m.header_from, m.user, m.class, m.tag, m.listener, m.client, "
    "m.size, m.head FROM recipient r JOIN message m ON m.id = r.message WHERE "
)


def stale(connection: sqlite3.Connection, lane: int, limit: int) -> list[dict[str, Any]]:
    """Recipients of a lane that wait for their turn, with all that facts are made of; by the index `ready`."""
    return _named(connection, _STALE + "r.lane = ? AND r.state < 2 LIMIT ?", (lane, limit))


def stale_held(
    connection: sqlite3.Connection, lanes: Sequence[int], after: tuple[int, int], limit: int
) -> list[dict[str, Any]]:
    """Those that are held, of many lanes at once: no index knows them."""
    wanted = "(r.message, r.n) > (?, ?) AND r.state = 3 AND r.lane IN (SELECT value FROM json_each(?)) "
    return _named(
        connection, _STALE + wanted + "ORDER BY r.message, r.n LIMIT ?", (*after, json.dumps(list(lanes)), limit)
    )


def _named(connection: sqlite3.Connection, sql: str, values: tuple[Any, ...]) -> list[dict[str, Any]]:
    cursor = connection.execute(sql, values)
    names = [d[0] for d in cursor.description]
    return [dict(zip(names, row, strict=True)) for row in cursor]


def expired(connection: sqlite3.Connection, now: float, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
    return connection.execute(
        "SELECT message, n FROM recipient WHERE (message, n) > (?, ?) AND state IN (0, 1, 3) AND expires_at <= ? LIMIT ?",
        (*after, now, limit),
    ).fetchall()


def first_expiry(connection: sqlite3.Connection, after: int) -> float | None:
    """When the first of those that are not done expires."""
    found: float | None = connection.execute(
        "SELECT min(expires_at) FROM recipient WHERE message >= ? AND state < 4", (after,)
    ).fetchone()[0]
    return found


_WAIT = "SELECT count(*) FROM recipient WHERE lane = ? AND state < 2 AND "
_BY_LANE = (
    "SELECT lane, count(*) FROM recipient WHERE state < 2 AND lane IN (SELECT value FROM json_each(?)) "
    "AND priority IN (0, 1, 2, 3) AND due_at <= ? GROUP BY lane"
)


def before(
    connection: sqlite3.Connection, place: Position, lanes: Sequence[int], now: float
) -> tuple[int, dict[int, int]]:
    """(how many of its lane are claimed before a recipient, how many are due in each of these lanes)."""
    lane, priority, due_at, message = place
    counts = (
        (_WAIT + "priority < ? AND due_at <= ?", (lane, priority, now)),
        (_WAIT + "priority = ? AND due_at < ?", (lane, priority, due_at)),
        (_WAIT + "priority = ? AND due_at = ? AND message < ?", (lane, priority, due_at, message)),
    )
    own = sum(connection.execute(sql, values).fetchone()[0] for sql, values in counts)
    return own, dict(connection.execute(_BY_LANE, (json.dumps(list(lanes)), now)).fetchall())


_SILENT = int(Notify.NEVER | Notify.TOLD)
_TO_TELL = f"r.notify & {_SILENT} = 0 AND (r.notify = 0 OR r.notify & {int(Notify.DELAY)}) AND m.sender != ''"


def untold(connection: sqlite3.Connection, before: float, after: tuple[int, int], limit: int) -> list[tuple[int, int]]:
    """Those that wait since before that time and whose sender is to hear of it and has not."""
    return connection.execute(
        "SELECT r.message, r.n FROM recipient r JOIN message m ON m.id = r.message "
        f"WHERE (r.message, r.n) > (?, ?) AND r.state < 2 AND {_TO_TELL} "
        "AND max(m.accepted_at, m.send_at) <= ? ORDER BY r.message, r.n LIMIT ?",
        (*after, before, limit),
    ).fetchall()


def first_untold(connection: sqlite3.Connection, after: int) -> float | None:
    """Since when the first of those waits that are to be told some day, or are in flight and may be."""
    found: float | None = connection.execute(
        "SELECT min(max(m.accepted_at, m.send_at)) FROM recipient r JOIN message m ON m.id = r.message "
        f"WHERE r.message >= ? AND r.state < 3 AND {_TO_TELL}",
        (after,),
    ).fetchone()[0]
    return found


def purgeable(
    connection: sqlite3.Connection, before: float, after: int, limit: int
) -> tuple[int, list[tuple[int, int]]]:
    """(last id that was looked at, 0 at the end; (message, its rows) of those that were done before that time)."""
    # Ids grow with time: the first that is too young ends the walk, and no younger row is read.
    rows = [
        row
        for row in connection.execute(
            "SELECT id, accepted_at FROM message WHERE id > ? ORDER BY id LIMIT ?", (after, limit)
        ).fetchall()
        if row[1] < before
    ]
    if not rows:
        return 0, []
    done = connection.execute(
        "SELECT value, (SELECT count(*) FROM recipient WHERE message = value) "
        "+ (SELECT count(*) FROM event WHERE message = value) FROM json_each(?) WHERE "
        f"NOT EXISTS (SELECT 1 FROM recipient WHERE message = value AND state NOT IN {_FINAL}) "
        "AND NOT EXISTS (SELECT 1 FROM event WHERE message = value AND at >= ?)",
        (json.dumps([r[0] for r in rows]), before),
    ).fetchall()
    return rows[-1][0], done


def integrity(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("PRAGMA integrity_check(20)").fetchall()
    return [r[0] for r in rows if r[0] != "ok"] + strays(connection)


def strays(connection: sqlite3.Connection) -> list[str]:
    """What lacks its other half."""
    problems = []
    lonely: int = connection.execute(
        "SELECT count(*) FROM message WHERE NOT EXISTS (SELECT 1 FROM recipient WHERE message = id)"
    ).fetchone()[0]
    if lonely:
        problems.append(f"{plural(lonely, 'message')} without recipients")
    orphans: int = connection.execute(
        "SELECT count(*) FROM recipient WHERE message NOT IN (SELECT id FROM message)"
    ).fetchone()[0]
    if orphans:
        problems.append(f"{plural(orphans, 'recipient')} without a message")
    bodiless: int = connection.execute(
        "SELECT count(*) FROM message m WHERE place = 0 AND NOT EXISTS (SELECT 1 FROM content WHERE id = m.id) "
        f"AND EXISTS (SELECT 1 FROM recipient WHERE message = m.id AND state NOT IN {_FINAL})"
    ).fetchone()[0]
    if bodiless:
        problems.append(f"{plural(bodiless, 'message')} without a body, still waiting")
    return problems + _strays_of_feed(connection)


def _strays_of_feed(connection: sqlite3.Connection) -> list[str]:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'parcel'").fetchone():
        return []  # of an older schema, which is brought up to date later
    problems = []
    homeless: int = connection.execute(
        "SELECT count(*) FROM parcel WHERE endpoint NOT IN (SELECT name FROM endpoint)"
    ).fetchone()[0]
    if homeless:
        problems.append(f"{plural(homeless, 'event')} waiting for an endpoint that is not known")
    causeless: int = connection.execute(
        "SELECT count(*) FROM suppression WHERE why NOT IN (SELECT value FROM json_each(?))",
        (json.dumps([int(why) for why in Why]),),
    ).fetchone()[0]
    if causeless:
        problems.append(f"{plural(causeless, 'suppression')} without a cause that can be")
    return problems


def plural(count: int, word: str) -> str:
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


assert {int(s) for s in FINAL} == {4, 5}  # the literals above
