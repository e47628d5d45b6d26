"""Who is suppressed, as functions on a connection's thread. Whoever writes one inserts the events that it gives back."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from relay.events import Kind
from relay.policy.suppression import Softly, Suppression, Why, outweighs, plain
from relay.spool import Event
from relay.spool.feed import Known, SuppressionFilter
from relay.spool.listing import like
from relay.spool.rows import MOST, Rows

Key = tuple[str, str]  # scope, address

_COLUMNS = "address, scope, why, evidence, source, at, until, message"
_PUT = Rows(f"INSERT OR REPLACE INTO suppression ({_COLUMNS}) VALUES {{}}", 8)
_OF_KEYS = Rows(
    f"WITH v(s, a) AS (VALUES {{}}) SELECT {_COLUMNS} FROM v CROSS JOIN suppression ON scope = v.s AND address = v.a",
    2,
)


@dataclass(slots=True)
class Listed:
    """What a transaction made of the list."""

    changed: list[Suppression] = field(default_factory=list)  # new ones too
    removed: list[Key] = field(default_factory=list)
    events: list[Event] = field(default_factory=list)


def put(connection: sqlite3.Connection, entries: Sequence[Suppression], softly: Sequence[Softly] = ()) -> Listed:
    """Lists these, and those of whom it was one soft bounce too many. What `outweighs` a new one stays as it is."""
    best: dict[Key, Suppression] = {}
    for one in chain(entries, _counted(connection, softly)):
        known = best.get(one.key)
        if known is None or outweighs(one, known):
            best[one.key] = one
    if not best:
        return Listed()
    old = {one.key: one for one in _of_keys(connection, list(best))}
    changed = [one for key, one in best.items() if key not in old or outweighs(one, old[key])]
    _PUT.run(connection, [_row(one) for one in changed])
    # One that has come to its end, and is not forgotten yet, suppressed nobody any more.
    fresh = [one for one in changed if one.key not in old or 0 < old[one.key].until <= one.at]
    return Listed(changed, [], [_event(one, "suppression_added", one.at) for one in fresh])


def remove(connection: sqlite3.Connection, keys: Sequence[Key], now: float, over: bool = False) -> Listed:
    """`over`: only those that have come to their end. Soft bounces of theirs are counted anew."""
    gone = [one for one in _of_keys(connection, list(dict.fromkeys(keys))) if not over or 0 < one.until <= now]
    removed = [one.key for one in gone]
    connection.executemany("DELETE FROM suppression WHERE scope = ? AND address = ?", removed)
    connection.executemany("DELETE FROM softly WHERE scope = ? AND address = ?", removed)
    return Listed([], removed, [_event(one, "suppression_removed", now) for one in gone])


def _counted(connection: sqlite3.Connection, softly: Sequence[Softly]) -> Iterator[Suppression]:
    """Remembers soft bounces; those entries that they come to. What is told twice of one message is one bounce."""
    for one in softly:
        e = one.entry
        connection.execute(
            "INSERT INTO softly (scope, address, at, until, message) VALUES (?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            (*e.key, e.at, e.at + one.within, e.message),
        )
        # Reports come late and out of order: it is reckoned back from the newest bounce.
        connection.execute(
            "DELETE FROM softly WHERE scope = ?1 AND address = ?2 "
            "AND at <= (SELECT max(at) FROM softly WHERE scope = ?1 AND address = ?2) - ?3",
            (*e.key, one.within),
        )
        (count,) = connection.execute(
            "SELECT count(DISTINCT CASE WHEN message > 0 THEN message ELSE -at END) FROM softly WHERE scope = ? AND address = ?",
            e.key,
        ).fetchone()
        if 0 < one.count <= count:
            connection.execute("DELETE FROM softly WHERE scope = ? AND address = ?", e.key)
            yield e


def _row(one: Suppression) -> tuple[object, ...]:
    return one.address, one.scope, int(one.why), one.evidence, one.source, one.at, one.until, one.message


def _of(
    address: str, scope: str, why: int, evidence: str, source: str, at: float, until: float, message: int
) -> Suppression:
    return Suppression(address, scope, Why(why), evidence, source, at, until, message)


def _of_keys(connection: sqlite3.Connection, keys: Sequence[Key]) -> list[Suppression]:
    found = []
    for start in range(0, len(keys), MOST):
        block = keys[start : start + MOST]
        rows = connection.execute(_OF_KEYS.text(len(block)), list(chain.from_iterable(block)))
        found += [_of(*row) for row in rows]
    return found


def _event(one: Suppression, kind: Kind, at: float) -> Event:
    data = {
        "address": one.address,
        "scope": one.scope or "all",
        "why": one.why.word,
        "evidence": one.evidence,
        "source": one.source,
        "until": one.until,
    }
    return Event(at, one.message, None, kind, data=data)


# -- read


def of_address(connection: sqlite3.Connection, address: str, scopes: Sequence[str]) -> list[Suppression]:
    among = " AND scope IN (SELECT value FROM json_each(?))" if scopes else ""
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM suppression WHERE address = ?{among} ORDER BY scope",
        (plain(address), *([json.dumps(list(scopes))] if scopes else [])),
    )
    return [_of(*row) for row in rows]


def page(connection: sqlite3.Connection, wanted: SuppressionFilter, after: Key | None, limit: int) -> list[Suppression]:
    parts: list[str] = []
    values: list[object] = []

    def add(part: str, *value: object) -> None:
        parts.append(part)
        values.extend(value)

    add("(scope, address) > (?, ?)", *after) if after else add("1")
    if wanted.scope is not None:
        add("scope = ?", wanted.scope)
    if wanted.address and not set(wanted.address) & set("*?"):
        add("address = ?", plain(wanted.address))
    elif wanted.address:
        add("address GLOB ?", like(wanted.address))
    if wanted.why is not None:
        add("why = ?", int(wanted.why))
    if wanted.source:
        add("source = ?", wanted.source)
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM suppression WHERE {' AND '.join(parts)} ORDER BY scope, address LIMIT ?",
        (*values, limit),
    )
    return [_of(*row) for row in rows]


def index(path: Path) -> Iterator[tuple[str, str, Why]]:
    """Row by row, over a connection of its own that ends with it. Raises sqlite3.Error and ValueError."""
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, check_same_thread=False)
    try:
        whys = {int(why): why for why in Why}
        for scope, address, why in connection.execute("SELECT scope, address, why FROM suppression"):
            yield scope, address, whys[why]
    finally:
        connection.close()


def over(connection: sqlite3.Connection, now: float, limit: int) -> list[Key]:
    """(address, scope) of those that have come to their end."""
    return connection.execute(
        "SELECT address, scope FROM suppression WHERE until > 0 AND until <= ? LIMIT ?", (now, limit)
    ).fetchall()


def forgotten(connection: sqlite3.Connection, now: float, limit: int) -> list[tuple[str, str, float, int]]:
    """Soft bounces that count no more."""
    return connection.execute(
        "SELECT address, scope, at, message FROM softly WHERE until <= ? LIMIT ?", (now, limit)
    ).fetchall()


def forget(connection: sqlite3.Connection, rows: Sequence[tuple[str, str, float, int]]) -> None:
    connection.executemany("DELETE FROM softly WHERE address = ? AND scope = ? AND at = ? AND message = ?", rows)


def known(connection: sqlite3.Connection, message: int, n: int | None, address: str) -> Known | None:
    """By number; else by address; else the only one."""
    who = connection.execute("SELECT n, address FROM recipient WHERE message = ? ORDER BY n", (message,)).fetchall()
    if n is None and address:
        wanted = plain(address)
        n = next((number for number, text in who if plain(text) == wanted), None)
    if n is None and len(who) == 1:
        n = who[0][0]
    row = connection.execute(
        "SELECT message, n, address, state, r.egress, sender, header_from, user, class, tag, accepted_at, head "
        "FROM recipient r JOIN message m ON m.id = r.message WHERE message = ? AND n = ?",
        (message, n),
    ).fetchone()
    return Known(*row) if row else None
