"""Reports to senders, written in the transaction that makes the news. On the writing connection's thread.

Owns: reading what a report needs from the rows just written, storing it as a new message, and the two events that link
both stories. What it says and to whom is the Reporter's. A constant number of statements, whatever the batch.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

from relay.envelope import queue_id
from relay.recipient import News
from relay.spool import End, Event, Notify, Original, Report, Reporter, Tell, hot
from relay.spool.hot import NOTHING, Written
from relay.spool.lanes import Lanes

FULL_LIMIT = 50_000  # bytes of a message that a report quotes whole

_BLOCK = 200


def write(
    lanes: Lanes, reporter: Callable[[], Reporter | None], connection: sqlite3.Connection, tells: Sequence[Tell]
) -> Written:
    """Tell the senders: one report for each message and kind of news."""
    writes = reporter()
    if writes is None or not tells:
        return NOTHING
    groups: dict[tuple[int, News], list[End]] = {}
    for end in _ends(connection, tells):
        groups.setdefault((end.tell.message, end.tell.news), []).append(end)
    originals = _originals(connection, {message for message, _ in groups})
    found = [(ends, writes.make(originals[message], ends, _when(ends))) for (message, _), ends in groups.items()]
    written = Written([report for _, report in found])
    if made := [report.message for _, report in found if report.message is not None]:
        written.lanes = hot.store(lanes, connection, made)
    told = [
        (e.tell.message, e.tell.n) for ends, r in found if r.news is News.DELAYED and r.result != "early" for e in ends
    ]
    for start in range(0, len(told), _BLOCK):
        wanted, values = hot.keyed(told[start : start + _BLOCK])
        connection.execute(
            f"{wanted} UPDATE recipient SET notify = notify | {int(Notify.TOLD)} FROM v WHERE message = v.m AND n = v.i",
            values,
        )
    hot.insert_events(connection, [event for ends, report in found for event in _story(ends, report)])
    return written


def waiting(connection: sqlite3.Connection, keys: Sequence[tuple[int, int]], now: float) -> list[Tell]:
    """Of these, whoever still waits for a next hop and was not told of it."""
    wanted, values = hot.keyed(keys)
    rows = connection.execute(
        f"{wanted} SELECT message, n FROM v CROSS JOIN recipient ON message = v.m AND n = v.i "
        f"WHERE state < 2 AND notify & {int(Notify.TOLD)} = 0",
        values,
    )
    return [Tell(message, n, News.DELAYED, now) for message, n in rows]


def _when(ends: Sequence[End]) -> float:
    return max(end.tell.at for end in ends)


def _ends(connection: sqlite3.Connection, tells: Sequence[Tell]) -> list[End]:
    by_key = {(t.message, t.n): t for t in tells}
    keys, ends = sorted(by_key), []
    for start in range(0, len(keys), _BLOCK):
        wanted, values = hot.keyed(keys[start : start + _BLOCK])
        rows = connection.execute(
            f"{wanted} SELECT message, n, address, notify, orcpt, egress, note, in_doubt, expires_at FROM v "
            "CROSS JOIN recipient ON message = v.m AND n = v.i",
            values,
        )
        for message, n, address, notify, orcpt, egress, text, doubt, expires_at in rows:
            note: dict[str, Any] = json.loads(text)
            said, why, remote = (str(note.get(name, "")) for name in ("last_reply", "why", "remote"))
            tell = by_key[message, n]
            ends.append(End(tell, address, notify, orcpt, egress, why, said, bool(doubt), expires_at, remote))
    return ends


def _originals(connection: sqlite3.Connection, messages: set[int]) -> dict[int, Original]:
    rows = connection.execute(
        "SELECT m.id, sender, accepted_at, send_at, size, smtp, head, envid, ret, report, "
        f"CASE WHEN ret = 'FULL' AND size <= {FULL_LIMIT} THEN bytes END "
        "FROM message m LEFT JOIN content c ON c.id = m.id WHERE m.id IN (SELECT value FROM json_each(?))",
        (json.dumps(list(messages)),),
    )
    return {row[0]: Original(*row) for row in rows}


def _story(ends: Sequence[End], report: Report) -> list[Event]:
    """How each of the two messages names the other."""
    now = _when(ends)
    n = ends[0].tell.n if len(ends) == 1 else None
    if report.message is not None:
        made, about = queue_id(report.message.id), queue_id(report.original)
        data = {"why": f"report {made}: {report.why}", "report": made, "news": report.news.value}
        return [
            Event(now, report.original, n, "reported", data=data),
            Event(now, report.message.id, None, "report_on", data={"why": f"report on {about}", "message": about}),
        ]
    if report.why:
        return [Event(now, report.original, n, "not_reported", data={"why": report.why, "news": report.news.value})]
    return []
