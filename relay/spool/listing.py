"""What a filter selects, as pages of recipients and of messages, on the read-only connection.

A filter that matches nothing walks over all rows. So what recipients and their lanes know is asked of their small rows, and of
messages only what they alone know; that first, and their recipients after.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from relay.envelope import queue_id
from relay.recipient import State
from relay.spool import Filter, Notify

_COLUMNS = (
    "r.message, r.n, r.lane, r.state, r.priority, r.due_at, r.expires_at, r.attempts, r.in_doubt, r.address, r.egress, "
    "r.note, r.notify, r.orcpt, m.sender, m.header_from, m.user, m.class, m.tag, m.listener, m.client, m.accepted_at, "
    "m.size, m.report"
)
_MESSAGE = (
    "SELECT m.id, m.sender, m.header_from, m.user, m.class, m.tag, m.listener, m.client, m.priority, m.send_at, "
    "m.accepted_at, m.size, m.report, (SELECT key FROM idempotency WHERE message = m.id), d.data "
    "FROM message m LEFT JOIN metadata d ON d.message = m.id WHERE m.id IN (SELECT value FROM json_each(?))"
)
_NAMES = (
    "number", "sender", "from", "user", "class", "tag", "listener", "client", "priority", "send_at", "accepted_at", "size",
    "report", "key", "metadata",
)  # fmt: skip


class _Part(NamedTuple):
    """One condition; `{id}` is the message's number, in whichever table is at hand. `of`: `r`, `m`, or empty: both.

    `first`: it leaves out so much that messages are gone through, and recipients of what is left.
    """

    of: str
    sql: str
    values: tuple[Any, ...]
    first: bool = False


def like(glob: str) -> str:
    """Our glob as SQLite's GLOB, which has [sets] that ours has not."""
    return glob.casefold().replace("[", "[[]")


def _among(numbers: Iterable[Any]) -> tuple[str]:
    return (json.dumps(list(numbers)),)


_WILD = frozenset("*?")
_LISTED = "IN (SELECT value FROM json_each(?))"


def _parts(wanted: Filter) -> list[_Part]:
    found = list[_Part]()

    def add(of: str, sql: str, *values: Any, first: bool = False) -> None:
        found.append(_Part(of, sql, values, first))

    if wanted.ids:
        add("", f"{{id}} {_LISTED}", *_among(wanted.ids))
    if wanted.key:
        add("", "{id} IN (SELECT message FROM idempotency WHERE key = ?)", wanted.key)
    if wanted.lanes is not None:
        add("r", f"r.lane {_LISTED}", *_among(wanted.lanes))
    if wanted.states:
        add("r", f"r.state {_LISTED}", *_among(int(s) for s in wanted.states))
    if wanted.recipient:
        add("r", "lower(r.address) GLOB ?", like(wanted.recipient))
    if wanted.domain:
        add("r", "lower(r.address) GLOB ?", "*@" + like(wanted.domain))
    if wanted.egress:
        ahead = f"WHEN r.state < 4 THEN r.lane {_LISTED} ELSE 0"
        glob = like(wanted.egress)
        add("r", f"CASE WHEN r.egress <> '' THEN lower(r.egress) GLOB ? {ahead} END", glob, *_among(wanted.ahead))
    if wanted.error:
        word = wanted.error.lower()
        said = [f"instr(lower(json_extract(r.note, '$.{name}')), ?)" for name in ("why", "last_reply")]
        add("r", f"r.note <> '{{{{}}}}' AND ({' OR '.join(said)})", word, word)
    # A lane's facts have its class and user: the few lanes are asked, and the messages of those that fit. What they say counts.
    for name, glob in (("class", wanted.class_), ("user", wanted.user)):
        if glob:
            add("r", f"r.lane IN (SELECT id FROM lane WHERE lower(json_extract(facts, '$.{name}')) GLOB ?)", like(glob))
            add("m", f"lower(m.{name}) GLOB ?", like(glob))
    if wanted.users is not None:
        names = _among(sorted(wanted.users))
        add("r", f"r.lane IN (SELECT id FROM lane WHERE json_extract(facts, '$.user') {_LISTED})", *names)
        add("m", f"m.user {_LISTED}", *names)  # what the message itself says is what counts
    if wanted.sender:
        add("m", "lower(m.sender) GLOB ?", like(wanted.sender), first=True)
    if wanted.tag and not _WILD & set(wanted.tag):
        add("m", "m.tag <> '' AND m.tag = ? COLLATE NOCASE", wanted.tag, first=True)  # by the index `tagged`
    elif wanted.tag:
        add("m", "lower(m.tag) GLOB ?", like(wanted.tag), first=True)
    if wanted.accepted_before is not None:
        add("m", "m.accepted_at <= ?", wanted.accepted_before)
    return found


def _where(parts: Sequence[_Part], number: str) -> tuple[str, list[Any]]:
    return (
        " AND ".join(["1", *(part.sql.format(id=number) for part in parts)]),
        [value for part in parts for value in part.values],
    )


# -- recipients


def page(
    connection: sqlite3.Connection, wanted: Filter, after: tuple[int, int] | None, limit: int
) -> list[dict[str, Any]]:
    """Recipients with their message, in order of acceptance."""
    parts = _parts(wanted)
    where, values = _where(parts, "m.id" if any(part.first for part in parts) else "r.message")
    message, n = after or (-1, -1)
    # CROSS JOIN: SQLite keeps the order in which they are said.
    if any(part.first for part in parts):
        source, start = "message m CROSS JOIN recipient r ON r.message = m.id", "m.id >= ? AND (m.id > ? OR r.n > ?)"
        values, order = [message, message, n, *values], "m.id, r.n"
    else:
        source, start = "recipient r CROSS JOIN message m ON m.id = r.message", "(r.message, r.n) > (?, ?)"
        values, order = [message, n, *values], "r.message, r.n"
    cursor = connection.execute(
        f"SELECT {_COLUMNS} FROM {source} WHERE {start} AND {where} ORDER BY {order} LIMIT ?", [*values, limit]
    )
    names = [d[0] for d in cursor.description]
    return [_flat(dict(zip(names, row, strict=True))) for row in cursor]


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """One recipient as the flat object that every list prints."""
    note = json.loads(row.pop("note"))
    state = State(row.pop("state"))
    return {
        "queue_id": queue_id(row["message"]),
        "recipient": row.pop("address"),
        "state": state.label,
        "why": note.get("why", ""),
        "last_reply": note.get("last_reply", ""),
        "remote_id": note.get("remote_id", ""),
        "remote": note.get("remote", ""),
        "tls": note.get("tls", ""),
        "settled_at": note.get("settled_at"),
        "held_by": note.get("held_by", "") if state is State.HELD else "",
        **row,
        "in_doubt": bool(row["in_doubt"]),
        "notify": Notify(row["notify"]).words,
        "from": row.pop("header_from"),
    }


# -- messages


def messages(
    connection: sqlite3.Connection, wanted: Filter, after: int | None, limit: int, newest: bool
) -> list[dict[str, Any]]:
    """One row a message that a filter selects, or some recipient of it; in order of acceptance, or the other way round."""
    numbers = _numbers(connection, wanted, after, limit, newest)
    among = _among(numbers)
    counts: dict[int, dict[str, int]] = {}
    for number, state, count in connection.execute(
        f"SELECT message, state, count(*) FROM recipient WHERE message {_LISTED} GROUP BY message, state", among
    ):
        counts.setdefault(number, {})[State(state).label] = count
    rows = {row[0]: dict(zip(_NAMES, row, strict=True)) for row in connection.execute(_MESSAGE, among)}
    return [_summed(rows[number], counts.get(number, {})) for number in numbers]


def _numbers(connection: sqlite3.Connection, wanted: Filter, after: int | None, limit: int, newest: bool) -> list[int]:
    parts = _parts(wanted)
    asked = {part.of for part in parts}
    if "r" not in asked:
        number, source = "m.id", "message m"
    elif "m" not in asked:
        number, source = "r.message", "recipient r"
    elif any(part.first for part in parts):
        number, source = "m.id", "message m CROSS JOIN recipient r ON r.message = m.id"
    else:
        number, source = "r.message", "recipient r CROSS JOIN message m ON m.id = r.message"
    where, values = _where(parts, number)
    start, order = ("<", "DESC") if newest else (">", "ASC")
    first = (1 << 63) - 1 if newest else -1
    rows = connection.execute(
        f"SELECT {number} FROM {source} WHERE {number} {start} ? AND {where} "
        f"GROUP BY {number} ORDER BY {number} {order} LIMIT ?",
        [first if after is None else after, *values, limit],
    )
    return [row[0] for row in rows]


def _summed(row: dict[str, Any], states: dict[str, int]) -> dict[str, Any]:
    return {
        "queue_id": queue_id(row["number"]),
        **row,
        "key": row["key"] or "",
        "metadata": json.loads(row["metadata"]) if row["metadata"] else {},
        "recipients": sum(states.values()),
        "states": states,
    }
